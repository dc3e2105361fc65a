//! The requests of a worker that wait for their answers, and the operations that these make up.

use crate::{measure::Kind, target::ErrorKind};

/// A request under way; its place is the tag of its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// The call that stands for the whole operation: itself, unless it is one of a scan.
    pub(crate) operation: u32,
    /// What the recorder calls it, if it is recorded.
    pub(crate) recorded: Option<u32>,
    /// The key's number.
    pub(crate) number: u64,
    /// The operation.
    pub(crate) kind: Kind,
    /// When the operation was meant to start, and when its first request was sent.
    pub(crate) intended_ns: u64,
    pub(crate) sent_ns: u64,
    /// Requests of the operation that are still to be answered.
    left: u32,
    /// The first thing that went wrong.
    pub(crate) failed: Option<ErrorKind>,
    /// A read-modify-write whose read was answered.
    pub(crate) writes: bool,
}

/// All requests under way. Places are used again, so that it allocates only while it grows.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    places: Vec<Call>,
    free: Vec<u32>,
}

impl Calls {
    /// A new operation, with its first request.
    pub(crate) fn begin(&mut self, kind: Kind, number: u64, intended_ns: u64, sent_ns: u64) -> u32 {
        let (recorded, failed, writes) = (None, None, false);
        let call = Call { operation: 0, recorded, number, kind, intended_ns, sent_ns, left: 1, failed, writes };
        let place = self.put(call);
        self.places[place as usize].operation = place;
        place
    }

    /// One more request of an operation.
    pub(crate) fn add(&mut self, operation: u32, number: u64) -> u32 {
        self.places[operation as usize].left += 1;
        let call = Call { number, recorded: None, ..self.places[operation as usize] };
        self.put(call)
    }

    fn put(&mut self, call: Call) -> u32 {
        if let Some(place) = self.free.pop() {
            self.places[place as usize] = call;
            return place;
        }
        self.places.push(call);
        u32::try_from(self.places.len() - 1).expect("far fewer requests are under way at once")
    }

    /// The call at a place.
    pub(crate) fn get_mut(&mut self, place: u32) -> &mut Call {
        &mut self.places[place as usize]
    }

    /// A request has ended, well or not. The whole operation, if that was the last of it.
    pub(crate) fn end(&mut self, place: u32, failed: Option<ErrorKind>) -> Option<Call> {
        let operation = self.places[place as usize].operation;
        let whole = &mut self.places[operation as usize];
        whole.failed = whole.failed.or(failed);
        whole.left -= 1;
        let ended = (whole.left == 0).then_some(*whole);
        // The first request stands for the operation until all are answered.
        if place != operation {
            self.free.push(place);
        }
        if ended.is_some() {
            self.free.push(operation);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_ends_with_its_last_answer_whichever_that_is() {
        let mut calls = Calls::default();
        let scan = calls.begin(Kind::Scan, 5, 10, 11);
        let others = [calls.add(scan, 6), calls.add(scan, 7)];
        let read = calls.begin(Kind::Read, 9, 20, 20);
        assert!(calls.end(scan, None).is_none() && calls.end(others[1], Some(ErrorKind::Overloaded)).is_none());
        assert_eq!(calls.end(read, None).map(|call| (call.kind, call.failed)), Some((Kind::Read, None)));
        let whole = calls.end(others[0], None).expect("that was the last");
        assert_eq!((whole.kind, whole.intended_ns, whole.failed), (Kind::Scan, 10, Some(ErrorKind::Overloaded)));
        let again: Vec<u32> = (0..4).map(|number| calls.begin(Kind::Read, number, 0, 0)).collect();
        assert!(again.iter().all(|place| *place < 4), "places are used again: {again:?}");
    }
}
