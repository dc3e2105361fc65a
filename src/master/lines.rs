//! Lines of JSON over a socket, with a bound on their length and on the time that each may take.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::diagnostics::Quoted;

/// The longest line that the master reads, in bytes.
pub(super) const REQUEST_BYTES_MAX: usize = 4096;
/// The longest line that is read from a master, in bytes: a configuration.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The longest that a line may take to be sent.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What a replica or a client asks.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Request {
    /// A replica: that it be a member, and for the configuration.
    Register {
        version: u32,
        /// `ZONE.NODE`.
        id: String,
        /// `IP` or `IP:PORT`: where it will listen.
        address: String,
        /// The same for HTTP; beside `address` if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        http: Option<String>,
    },
    /// A client: for the configuration.
    Fetch { version: u32 },
    /// A replica that was handed the configuration: its shards listen.
    Up,
}

/// What the master says.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// Not yet: for whom it waits.
    Waiting { text: String },
    /// A cluster file and a tuning file.
    Configuration { cluster: String, tuning: String },
    /// Never, and why.
    Refused { text: String },
}

/// Why no line came.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("the connection was closed")]
    Closed,
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    #[error("'{start}' is not understood: {problem}")]
    Nonsense { start: String, problem: String },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The lines of one connection.
pub(super) struct Lines<'a> {
    stream: &'a TcpStream,
    read: Vec<u8>,
    /// So many bytes of `read` hold no line end.
    searched: usize,
    bytes_max: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn new(stream: &'a TcpStream, bytes_max: usize) -> Self {
        Self { stream, read: Vec::new(), searched: 0, bytes_max }
    }

    /// The next line; `None` if it is not complete at `until`. What came of it is kept for the next call.
    pub(super) fn next<T: DeserializeOwned>(&mut self, until: Instant) -> Result<Option<T>, LineError> {
        let mut piece = [0; 4096];
        loop {
            if let Some(end) = self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let line: Vec<u8> = self.read.drain(..=end).collect();
                self.searched = 0;
                return parse(&line[..end]).map(Some);
            }
            self.searched = self.read.len();
            if self.read.len() >= self.bytes_max {
                return Err(LineError::TooLong(self.bytes_max));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let room = piece.len().min(self.bytes_max - self.read.len());
            match self.stream.read_from(&mut piece[..room]) {
                Ok(0) => return Err(LineError::Closed),
                Ok(bytes) => self.read.extend_from_slice(&piece[..bytes]),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Reading through a shared reference.
trait ReadFrom {
    fn read_from(&self, into: &mut [u8]) -> io::Result<usize>;
}

impl ReadFrom for TcpStream {
    fn read_from(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut stream = self;
        stream.read(into)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    serde_json::from_slice(line).map_err(|error| {
        let start: String = String::from_utf8_lossy(line).chars().take(60).collect();
        let problem = Quoted::name(&error.to_string()).to_string();
        LineError::Nonsense { start: start.escape_debug().to_string(), problem }
    })
}

/// Sends a line, in [`SEND_TIMEOUT`] altogether.
pub(super) fn send(mut stream: &TcpStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let (mut rest, until) = (&line[..], Instant::now() + SEND_TIMEOUT);
    while !rest.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the other side reads too slowly"));
        }
        stream.set_write_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => rest = &rest[bytes..],
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the other side is still there, as far as the system knows: it has closed nothing, and nothing came back.
pub(super) fn is_open(stream: &TcpStream) -> bool {
    match recv(stream, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, bytes)) => bytes > 0,
        Err(error) => error == rustix::io::Errno::AGAIN || error == rustix::io::Errno::INTR,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn lines_arrive_whole_however_they_are_cut() {
        let (mut near, far) = pair();
        let mut lines = Lines::new(&far, 100);
        near.write_all(b"{\"ask\":").unwrap();
        assert_eq!(lines.next::<Request>(Instant::now() + Duration::from_millis(20)).unwrap(), None);
        near.write_all(b"\"up\"}\n{\"ask\":\"fetch\",\"version\":1}\n").unwrap();
        assert_eq!(lines.next(soon()).unwrap(), Some(Request::Up));
        assert_eq!(lines.next(soon()).unwrap(), Some(Request::Fetch { version: 1 }));
        drop(near);
        assert!(matches!(lines.next::<Request>(soon()), Err(LineError::Closed)));
    }

    #[test]
    fn what_is_too_long_or_no_request_is_named() {
        for (said, message) in [
            (vec![b'x'; 101], "longer than 100 bytes"),
            (b"GET / HTTP/1.1\r\n".to_vec(), "'GET / HTTP/1.1\\r' is not understood"),
            (b"\xff\n".to_vec(), "is not understood"),
            (b"{\"ask\":\"vote\"}\n".to_vec(), "unknown variant `vote`"),
            (b"{\"ask\":\"fetch\"}\n".to_vec(), "missing field `version`"),
            (b"{\"ask\":\"fetch\",\"version\":1,\"more\":2}\n".to_vec(), "unknown field `more`"),
        ] {
            let (mut near, far) = pair();
            near.write_all(&said).unwrap();
            let error = Lines::new(&far, 100).next::<Request>(soon()).unwrap_err().to_string();
            assert!(error.contains(message), "{error:?} does not say {message:?}");
        }
    }

    #[test]
    fn an_end_is_seen_without_reading() {
        let (mut near, far) = pair();
        assert!(is_open(&far));
        near.write_all(b"x").unwrap();
        let mut lines = Lines::new(&far, 100);
        assert!(is_open(&far));
        drop(near);
        assert!(lines.next::<Request>(soon()).is_err());
        assert!(!is_open(&far));
    }

    #[test]
    fn an_answer_to_nobody_is_an_error() {
        let (near, far) = pair();
        drop(near);
        let answer = Answer::Waiting { text: "x".repeat(8 << 20) };
        assert!(send(&far, &answer).is_err());
    }
}
