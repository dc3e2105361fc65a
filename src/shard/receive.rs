//! The receive buffer of a connection: large reads, frames split off without copying.

use bytes::BytesMut;

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
}

/// What is asked for first, and at least, whatever the tuning says.
const READ_BYTES_MIN: usize = 8192;

impl Receiver {
    /// Asks for up to `read_bytes_max` in one read, or somewhat less at the end of a chunk.
    pub(super) fn new(read_bytes_max: usize) -> Self {
        let (read_bytes, read_bytes_max) = (READ_BYTES_MIN, read_bytes_max.max(READ_BYTES_MIN));
        Self { buffer: BytesMut::zeroed(read_bytes), filled: 0, read_bytes, read_bytes_max }
    }

    /// Where the next read goes; never empty.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.filled < self.read_bytes / 4 {
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
        self.buffer.truncate(self.filled);
        self.buffer.reserve(self.read_bytes.max(self.filled));
        self.buffer.resize(self.buffer.capacity(), 0);
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
    fn what_is_no_frame_is_an_error() {
        let mut receiver = Receiver::new(8192);
        receiver.spare()[..24].copy_from_slice(b"GET / HTTP/1.1\r\nHost: h\r");
        receiver.received(24);
        assert!(matches!(receiver.next_frame(), Err(FrameError::Magic(_))));
    }
}
