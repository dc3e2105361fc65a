//! The hello, and blocking conversations with one shard: how a client learns of the cluster, and how it asks for counters.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{ClientError, Options, connection::resolve};
use crate::{
    api::native::{ClientHello, ClientWelcome},
    wire::{self, Kind},
};

/// Between two rounds over all seeds.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// How a replica that has as many clients as it may begins its refusal.
const FULL: &str = "full: ";
const READ_BYTES: usize = 16 << 10;

/// A client's hello.
pub(super) fn hello(cluster: Option<String>, client: u64, zone: Option<u8>) -> ClientHello {
    ClientHello { cluster, client, zone }
}

/// The frame of a hello to a shard.
pub(super) fn hello_frame(hello: &ClientHello, shard: u16) -> Bytes {
    let body = serde_json::to_vec(hello).expect("a hello of plain fields becomes JSON");
    wire::frame(Kind::ClientHello, shard, 0, &body)
}

/// Asks the seeds in turn, over and over, until one welcomes us. Gives its address and its welcome.
///
/// # Errors
/// If time runs out, if every seed refuses, or if one is of the wrong cluster or talks nonsense: waiting mends that not.
pub(super) fn ask_seeds(options: &Options, client: u64) -> Result<(String, ClientWelcome), ClientError> {
    let started = Instant::now();
    let deadline = started + options.connect_timeout;
    let hello = hello(options.cluster.clone(), client, options.zone);
    loop {
        let mut reasons = Vec::new();
        let mut fatal = None;
        for seed in &options.seeds {
            let patience = deadline.min(Instant::now() + options.attempt_timeout);
            match Conversation::open(seed, &hello, 0, patience) {
                Ok((_, welcome)) => return checked(options, seed, welcome),
                Err(ClientError::Unreachable { reasons: reason, .. }) => reasons.push(reason),
                // A place may become free.
                Err(ClientError::Refused { address, reason }) if reason.starts_with(FULL) => {
                    reasons.push(format!("{address}: {reason}"));
                }
                Err(error) => fatal = Some(error),
            }
        }
        let over = Instant::now() + ROUND_PAUSE >= deadline;
        if let Some(error) = fatal.filter(|_| over || reasons.is_empty()) {
            return Err(error);
        }
        if over {
            return Err(ClientError::Unreachable { waited: started.elapsed(), reasons: reasons.join("; ") });
        }
        thread::sleep(ROUND_PAUSE);
    }
}

fn checked(options: &Options, seed: &str, welcome: ClientWelcome) -> Result<(String, ClientWelcome), ClientError> {
    match &options.cluster {
        Some(expected) if *expected != welcome.cluster => {
            Err(ClientError::Cluster { address: seed.to_owned(), expected: expected.clone(), found: welcome.cluster })
        }
        _ => Ok((seed.to_owned(), welcome)),
    }
}

/// A blocking connection to one shard.
#[derive(Debug)]
pub(super) struct Conversation {
    address: String,
    stream: TcpStream,
    received: Vec<u8>,
    deadline: Instant,
    opened: Instant,
}

impl Conversation {
    /// Connects and says hello.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] if it does not answer, [`ClientError::Refused`] if it refuses, and
    /// [`ClientError::Malformed`] if it answers with something else.
    pub(super) fn open(
        address: &str,
        hello: &ClientHello,
        shard: u16,
        deadline: Instant,
    ) -> Result<(Self, ClientWelcome), ClientError> {
        let opened = Instant::now();
        let unreachable = |error: std::io::Error| ClientError::Unreachable {
            waited: opened.elapsed(),
            reasons: format!("{address}: {error}"),
        };
        let to = resolve(address).map_err(unreachable)?;
        let stream = TcpStream::connect_timeout(&to, left(deadline)).map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let mut this = Self { address: address.to_owned(), stream, received: Vec::new(), deadline, opened };
        this.send(&hello_frame(hello, shard))?;
        let welcome = this.receive(Kind::ClientWelcome)?;
        let welcome = this.json(&welcome)?;
        Ok((this, welcome))
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] if the connection breaks or the time is over.
    pub(super) fn send(&mut self, frame: &[u8]) -> Result<(), ClientError> {
        let sent = self.stream.set_write_timeout(Some(left(self.deadline)));
        sent.and_then(|()| self.stream.write_all(frame)).map_err(|error| self.unreachable(&error))
    }

    /// Receives one frame's body.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub(super) fn receive(&mut self, expected: Kind) -> Result<Vec<u8>, ClientError> {
        loop {
            let whole = wire::frame_bytes(&self.received).map_err(|error| self.malformed(&error))?;
            if let Some(length) = whole.filter(|length| *length <= self.received.len()) {
                let frame = wire::view(&self.received[..length]).map_err(|error| self.malformed(&error))?;
                let (kind, body) = (frame.kind, frame.body.to_vec());
                self.received.drain(..length);
                return match kind {
                    kind if kind == expected => Ok(body),
                    Kind::Refused => Err(ClientError::Refused {
                        address: self.address.clone(),
                        reason: String::from_utf8_lossy(&body).into_owned(),
                    }),
                    kind => Err(self.malformed(&format!("a {kind:?} frame instead of {expected:?}"))),
                };
            }
            self.read_some()?;
        }
    }

    /// Reads a body as JSON.
    ///
    /// # Errors
    /// [`ClientError::Malformed`] if it is not.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.malformed(&error))
    }

    fn read_some(&mut self) -> Result<(), ClientError> {
        let mut buffer = [0; READ_BYTES];
        if Instant::now() >= self.deadline {
            return Err(self.unreachable(&"no answer in time"));
        }
        let read = self.stream.set_read_timeout(Some(left(self.deadline)));
        match read.and_then(|()| self.stream.read(&mut buffer)) {
            Ok(0) => Err(self.unreachable(&"the node closed the connection")),
            Ok(bytes) => {
                self.received.extend_from_slice(&buffer[..bytes]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(self.unreachable(&"no answer in time"))
            }
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    fn unreachable(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Unreachable { waited: self.opened.elapsed(), reasons: format!("{}: {reason}", self.address) }
    }

    fn malformed(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Malformed { address: self.address.clone(), reason: reason.to_string() }
    }
}

/// Time left; never 0, which sockets take for "for ever".
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
