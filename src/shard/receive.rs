//! The receive buffer of a connection: large reads, frames split off without copying.

use std::rc::Rc;

use bytes::BytesMut;

use super::budget::{Budget, Held};
use crate::wire::{self, Frame, FrameError};

/// What was read from a connection and is not yet a frame.
///
/// The buffer is initialised in its whole length, so that reads go straight into it. Frames are split off its front and
/// share its memory; once all of them are dropped it is used again, otherwise the next chunk is a new one.
#[derive(Debug)]
pub(super) struct Receiver {
    buffer: BytesMut,
    filled: usize,
    /// Asked for in one read: grows towards `read_bytes_max` while reads are full, so that the many connections that
    /// carry little take little memory.
    read_bytes: usize,
    read_bytes_max: usize,
    /// The memory that `buffer` is a part of, shared with whatever waits for frames that were split off it.
    chunk: Rc<Held>,
}

/// What is asked for first, and at least, whatever the tuning says.
const READ_BYTES_MIN: usize = 8192;

impl Receiver {
    /// Asks for up to `read_bytes_max` in one read, or somewhat less at the end of a chunk.
    pub(super) fn new(read_bytes_max: usize) -> Self {
        let (read_bytes, read_bytes_max) = (READ_BYTES_MIN, read_bytes_max.max(READ_BYTES_MIN));
        let chunk = Rc::new(Held::new(None, read_bytes));
        Self { buffer: BytesMut::zeroed(read_bytes), filled: 0, read_bytes, read_bytes_max, chunk }
    }

    /// Counts what it holds from now on.
    pub(super) fn charge(&mut self, budget: &Rc<Budget>) {
        self.chunk = Rc::new(self.chunk.of(budget));
    }

    /// The memory that the frames taken since the last read are views of.
    pub(super) fn chunk(&self) -> &Rc<Held> {
        &self.chunk
    }

    /// Bytes of memory that it holds for what is still to come.
    pub(super) fn held_bytes(&self) -> usize {
        self.chunk.bytes()
    }

    /// Whether a frame has begun that is not whole. All whole ones must have been taken.
    pub(super) fn is_partial(&self) -> bool {
        self.filled > 0
    }

    /// How many bytes the next frame has, whole or not; `None` before that is known.
    ///
    /// # Errors
    /// If the bytes cannot be a frame.
    pub(super) fn next_bytes(&self) -> Result<Option<usize>, FrameError> {
        wire::frame_bytes(&self.buffer[..self.filled])
    }

    /// Where the next read goes; never empty.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.filled < self.read_bytes / 4 || self.is_oversized() {
            self.renew();
        }
        &mut self.buffer[self.filled..]
    }

    /// So many bytes were read into the front of [`Self::spare`].
    pub(super) fn received(&mut self, bytes: usize) {
        assert!(bytes <= self.buffer.len() - self.filled, "a read stays within its buffer");
        self.filled += bytes;
        if self.filled == self.buffer.len() {
            self.read_bytes = (self.read_bytes * 2).min(self.read_bytes_max);
        }
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// If the bytes cannot be a frame, or not an intact one.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let received = &self.buffer[..self.filled];
        let Some(bytes) = wire::frame_bytes(received)?.filter(|bytes| *bytes <= received.len()) else {
            return Ok(None);
        };
        self.filled -= bytes;
        wire::parse(self.buffer.split_to(bytes).freeze()).map(Some)
    }

    /// Makes room. A frame that is still incomplete grows by what has been received of it, never by what its header
    /// says, so that no stranger's number sizes the buffer.
    fn renew(&mut self) {
        let more = self.read_bytes.max(self.filled);
        if self.is_oversized() {
            let mut fresh = BytesMut::with_capacity(self.filled + more);
            fresh.extend_from_slice(&self.buffer[..self.filled]);
            self.buffer = fresh;
        } else {
            self.buffer.truncate(self.filled);
            self.buffer.reserve(more);
        }
        self.buffer.resize(self.buffer.capacity(), 0);
        // Whatever waits for frames of the old chunk keeps that.
        match Rc::get_mut(&mut self.chunk) {
            Some(chunk) => chunk.set(self.buffer.len()),
            None => self.chunk = Rc::new(self.chunk.another(self.buffer.len())),
        }
    }

    /// Whether a large frame has left memory that no usual one needs: it is given back before the next read.
    fn is_oversized(&self) -> bool {
        let usual = self.filled + self.read_bytes.max(self.filled);
        self.chunk.bytes() > 4 * usual.max(READ_BYTES_MIN) && self.chunk.bytes() > 2 * self.read_bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Kind;

    fn feed(receiver: &mut Receiver, mut bytes: &[u8], step: usize) -> Vec<Frame> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let spare = receiver.spare();
            let take = step.min(bytes.len()).min(spare.len());
            spare[..take].copy_from_slice(&bytes[..take]);
            receiver.received(take);
            bytes = &bytes[take..];
            while let Some(frame) = receiver.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        frames
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_were_cut() {
        let bodies: Vec<Vec<u8>> = [0, 1, 100, 5000, 40_000, 7, 0, 3].map(|n: usize| vec![n as u8; n]).to_vec();
        let stream: Vec<u8> = bodies.iter().flat_map(|body| wire::frame(Kind::Request, 3, 0, body).to_vec()).collect();
        for step in [1, 7, 23, 4096, 1 << 20] {
            let mut receiver = Receiver::new(8192);
            for _ in 0..3 {
                let frames = feed(&mut receiver, &stream, step);
                assert!(frames.iter().map(|frame| frame.body()).eq(bodies.iter().map(|body| &body[..])));
            }
        }
    }

    #[test]
    fn memory_is_used_again_once_the_frames_are_dropped() {
        let frame = wire::frame(Kind::Request, 0, 0, &[7; 1000]);
        let mut receiver = Receiver::new(8192);
        let start = receiver.spare().as_ptr() as usize;
        for _ in 0..1000 {
            assert_eq!(feed(&mut receiver, &frame, 1 << 20).len(), 1);
            let at = receiver.spare().as_ptr() as usize;
            assert!((start..start + 8192).contains(&at), "a new chunk was allocated");
        }
    }

    #[test]
    fn a_header_does_not_size_the_buffer() {
        let mut receiver = Receiver::new(8192);
        let huge = wire::frame(Kind::Request, 0, 0, &vec![0; wire::BODY_BYTES_MAX]);
        assert!(feed(&mut receiver, &huge[..5000], 5000).is_empty());
        assert!(receiver.buffer.len() <= 30_000, "{} bytes for 5000 received", receiver.buffer.len());
        assert_eq!(feed(&mut receiver, &huge[5000..], 1 << 16).len(), 1);
    }

    #[test]
    fn a_large_frame_leaves_no_memory_behind() {
        let budget = Budget::new(usize::MAX);
        let mut receiver = Receiver::new(8192);
        receiver.charge(&budget);
        let usual = wire::frame(Kind::Request, 0, 0, &[7; 100]);
        for round in 0..3 {
            let large = wire::frame(Kind::Request, 0, 0, &vec![1; 1 << 20]);
            let whole = [&large[..], &usual[..]].concat();
            let frames = feed(&mut receiver, &whole, 8192);
            assert!(frames.len() == 2 && budget.used() >= 1 << 20, "{}", budget.used());
            drop(frames);
            receiver.spare();
            assert!(budget.used() <= 64 << 10, "round {round}: {} bytes stay", budget.used());
        }
        drop(receiver);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn memory_is_counted_as_long_as_somebody_waits_for_a_frame_of_it() {
        let budget = Budget::new(usize::MAX);
        let mut receiver = Receiver::new(8192);
        receiver.charge(&budget);
        let frame = wire::frame(Kind::Request, 0, 0, &[7; 1000]);
        let mut waiting = Vec::new();
        for _ in 0..100 {
            let frames = feed(&mut receiver, &frame, 1 << 20);
            waiting.push((frames, Rc::clone(receiver.chunk())));
        }
        assert!(budget.used() >= 100_000, "{} bytes for 100 frames of 1000", budget.used());
        assert!(budget.used() <= 200_000, "{} bytes for 100 frames of 1000", budget.used());
        waiting.clear();
        receiver.spare();
        assert!(budget.used() <= 16_384, "{}", budget.used());
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let mut receiver = Receiver::new(8192);
        receiver.spare()[..24].copy_from_slice(b"GET / HTTP/1.1\r\nHost: h\r");
        receiver.received(24);
        assert!(matches!(receiver.next_frame(), Err(FrameError::Magic(_))));
    }
}
