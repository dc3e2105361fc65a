//! What waits to be written to a socket, and the one system call that writes it.

use std::{collections::VecDeque, io, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

use super::connection::Socket;
use crate::protocol::Micros;

/// Frames that one system call takes at most.
const FRAMES_PER_SEND: usize = 64;

/// What a send did, for the counters.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Sent {
    /// System calls.
    pub(super) calls: u64,
    /// Bytes that the kernel took.
    pub(super) bytes: u64,
    /// Whether the socket would take no more.
    pub(super) blocked: bool,
}

/// Frames for a peer, shared with the queues of other peers and never copied.
#[derive(Debug, Default)]
pub(super) struct FrameQueue {
    /// Held back to emulate distance, with the time at which each is released; in order of both.
    held: VecDeque<(Micros, Bytes)>,
    held_bytes: usize,
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
}

impl FrameQueue {
    /// Adds a frame that may be sent at once.
    pub(super) fn push(&mut self, frame: Bytes) {
        self.ready_bytes += frame.len();
        self.ready.push_back(frame);
    }

    /// Adds a frame that is held until `release`.
    pub(super) fn hold(&mut self, release: Micros, frame: Bytes) {
        self.held_bytes += frame.len();
        self.held.push_back((release, frame));
    }

    /// Lets go of what was held until `now`; true if that was anything.
    pub(super) fn release(&mut self, now: Micros) -> bool {
        let mut any = false;
        while self.next_release().is_some_and(|release| release <= now) {
            let (_, frame) = self.held.pop_front().expect("there is a next one");
            self.held_bytes -= frame.len();
            self.push(frame);
            any = true;
        }
        any
    }

    /// When [`Self::release`] has something to do next.
    pub(super) fn next_release(&self) -> Option<Micros> {
        self.held.front().map(|(release, _)| *release)
    }

    /// When the last frame that is held is released.
    pub(super) fn last_release(&self) -> Option<Micros> {
        self.held.back().map(|(release, _)| *release)
    }

    /// Bytes that could be sent now.
    pub(super) fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// Bytes that are held back.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Sends what is ready as far as the socket takes it, many frames to a system call.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) fn send(&mut self, socket: &dyn Socket) -> io::Result<Sent> {
        let mut sent = Sent::default();
        while !self.ready.is_empty() && !sent.blocked {
            let mut slices = [IoSlice::new(&[]); FRAMES_PER_SEND];
            let (mut count, mut offered) = (0, 0);
            for (slice, frame) in slices.iter_mut().zip(&self.ready) {
                *slice = IoSlice::new(frame);
                (count, offered) = (count + 1, offered + frame.len());
            }
            let taken = socket.send(&slices[..count])?;
            self.forget(taken);
            sent.calls += 1;
            sent.bytes += taken as u64;
            sent.blocked = taken < offered;
        }
        Ok(sent)
    }

    /// Drops bytes from the front that the kernel has taken.
    fn forget(&mut self, mut bytes: usize) {
        self.ready_bytes -= bytes;
        while bytes > 0 {
            let front = self.ready.front_mut().expect("the kernel takes no more than it was given");
            if front.len() > bytes {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.ready.pop_front();
        }
    }
}

/// Bytes for a client, encoded one behind the other into one buffer that is used again.
#[derive(Debug, Default)]
pub(super) struct ByteQueue {
    bytes: BytesMut,
    /// Lengths at the end of `bytes` that are held back, with the time at which each is released.
    held: VecDeque<(Micros, usize)>,
    held_bytes: usize,
    /// The largest that the buffer's memory was since it was made.
    allocated: usize,
}

/// A buffer larger than this is given back when little is left in it.
const KEEP_BYTES: usize = 16 << 10;

impl ByteQueue {
    /// The buffer, for appending.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// Holds back what was appended since `start` (a length of the buffer) until `release`.
    pub(super) fn hold_since(&mut self, start: usize, release: Micros) {
        let bytes = self.bytes.len() - start;
        self.held_bytes += bytes;
        self.held.push_back((release, bytes));
    }

    /// Lets go of what was held until `now`; true if that was anything.
    pub(super) fn release(&mut self, now: Micros) -> bool {
        let mut any = false;
        while self.next_release().is_some_and(|release| release <= now) {
            let (_, bytes) = self.held.pop_front().expect("there is a next one");
            self.held_bytes -= bytes;
            any = true;
        }
        any
    }

    /// When [`Self::release`] has something to do next.
    pub(super) fn next_release(&self) -> Option<Micros> {
        self.held.front().map(|(release, _)| *release)
    }

    /// Bytes of memory that it holds.
    pub(super) fn allocated(&mut self) -> usize {
        self.allocated = self.allocated.max(self.bytes.capacity());
        self.allocated
    }

    /// Bytes unsent, held back or not.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is unsent.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends what is not held back, as far as the socket takes it.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(super) fn send(&mut self, socket: &dyn Socket) -> io::Result<Sent> {
        let mut sent = Sent::default();
        loop {
            let ready = self.bytes.len() - self.held_bytes;
            if ready == 0 || sent.blocked {
                break;
            }
            sent.calls += 1;
            let taken = socket.send(&[IoSlice::new(&self.bytes[..ready])])?;
            self.bytes.advance(taken);
            sent.bytes += taken as u64;
            sent.blocked = taken < ready;
        }
        if self.allocated() > KEEP_BYTES && self.bytes.len() < self.allocated / 4 {
            let mut fresh = BytesMut::with_capacity(self.bytes.len().max(KEEP_BYTES));
            fresh.extend_from_slice(&self.bytes);
            self.allocated = fresh.capacity();
            self.bytes = fresh;
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn frames_arrive_whole_and_in_order_through_a_socket_that_blocks() {
        let (near, mut far) = pair();
        let mut queue = FrameQueue::default();
        let mut expected = Vec::new();
        for number in 0..400_u32 {
            let frame = Bytes::from(vec![number as u8; 1 + (number as usize * 7919) % 60_000]);
            expected.extend_from_slice(&frame);
            queue.push(frame);
        }
        let reader = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let mut received = Vec::new();
            far.read_to_end(&mut received).unwrap();
            received
        });
        let mut was_blocked = false;
        while queue.ready_bytes() > 0 {
            let sent = queue.send(&near).unwrap();
            was_blocked |= sent.blocked;
            std::thread::yield_now();
        }
        drop(near);
        assert!(was_blocked, "the test sends more than a socket holds");
        assert!(reader.join().unwrap() == expected);
    }

    #[test]
    fn what_is_held_goes_when_its_time_has_come_and_not_before() {
        let (near, mut far) = pair();
        let mut queue = ByteQueue::default();
        queue.buffer().extend_from_slice(b"first");
        let start = queue.len();
        queue.buffer().extend_from_slice(b"second");
        queue.hold_since(start, Micros(50));
        assert_eq!(queue.send(&near).unwrap().bytes, 5);
        assert!(!queue.release(Micros(49)));
        assert_eq!((queue.next_release(), queue.send(&near).unwrap().calls), (Some(Micros(50)), 0));
        assert!(queue.release(Micros(50)));
        assert_eq!((queue.send(&near).unwrap().bytes, queue.len()), (6, 0));
        drop(near);
        let mut received = String::new();
        far.read_to_string(&mut received).unwrap();
        assert_eq!(received, "firstsecond");
    }
}
