//! How replicas and clients ask the master.

use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    HEARTBEAT, MasterError, PORT, Place, VERSION,
    lines::{ANSWER_BYTES_MAX, Answer, LineError, Lines, Request, send},
};
use crate::{
    config::ConfigError,
    topology::{Cluster, NodeId},
    tuning::Tuning,
};

/// How often a master that is not there is tried, and flags are looked at.
const RETRY: Duration = Duration::from_millis(200);
/// The longest that one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A master that is silent for so long is not there: it says something every [`HEARTBEAT`].
const SILENCE: Duration = Duration::from_secs(4 * HEARTBEAT.as_secs());

/// Asks the master at `address` (`HOST` or `HOST:PORT`) for the configuration, and waits up to `patience` until it has one,
/// or is there at all. `on_wait` is told what is waited for, whenever that changes.
///
/// # Errors
/// If there is none in time, with what was last heard; if the master refuses, or what it says is not understood.
pub fn fetch(
    address: &str,
    patience: Duration,
    on_wait: &mut dyn FnMut(&str),
) -> Result<(Cluster, Tuning), MasterError> {
    let asker = Asker::new(address, Some(patience), &AtomicBool::new(false))?.ask(None, on_wait)?;
    Ok((asker.cluster, asker.tuning))
}

/// Registers the replica `id` with the master at `address`, and waits until the cluster is complete, for as long as it
/// takes or until `stop` is set. `native` is where it will listen, `http` where it will serve HTTP; without them the IP is
/// that by which this machine reaches the master, and ports are the master's choice.
///
/// # Errors
/// If the master refuses, or what it says is not understood.
pub fn register(
    address: &str,
    id: NodeId,
    native: Option<Place>,
    http: Option<Place>,
    stop: &AtomicBool,
    on_wait: &mut dyn FnMut(&str),
) -> Result<Registration, MasterError> {
    Asker::new(address, None, stop)?.ask(Some((id, native, http)), on_wait)
}

/// A configuration that the master handed out.
pub struct Registration {
    /// The cluster.
    pub cluster: Cluster,
    /// The tuning that the master hands out to all.
    pub tuning: Tuning,
    stream: TcpStream,
}

impl Registration {
    /// Tells the master that this replica listens. If it cannot be told any more, it finds out when it needs to know.
    pub fn up(self) {
        let _ = send(&self.stream, &Request::Up);
    }
}

/// What a replica registers with.
type Claim = (NodeId, Option<Place>, Option<Place>);

struct Asker<'a> {
    /// With a port.
    address: String,
    patience: Option<Duration>,
    until: Option<Instant>,
    stop: &'a AtomicBool,
    /// What was last heard, or what last went wrong.
    last: String,
}

/// Why an attempt gave nothing.
enum Attempt {
    /// To be tried again.
    Broken(String),
    Final(MasterError),
}

impl From<io::Error> for Attempt {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl<'a> Asker<'a> {
    fn new(address: &str, patience: Option<Duration>, stop: &'a AtomicBool) -> Result<Self, MasterError> {
        let address = with_port(address)
            .map_err(|problem| MasterError::Address { address: address.to_owned(), problem: problem.to_owned() })?;
        let until = patience.map(|patience| Instant::now() + patience);
        Ok(Self { address, patience, until, stop, last: String::new() })
    }

    fn ask(mut self, claim: Option<Claim>, on_wait: &mut dyn FnMut(&str)) -> Result<Registration, MasterError> {
        loop {
            match self.attempt(claim, on_wait) {
                Ok(registration) => return Ok(registration),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Broken(problem)) => {
                    self.hear(format!("the master at {}: {problem}; trying again", self.address), on_wait);
                }
            }
            self.check_time()?;
            thread::sleep(RETRY);
        }
    }

    /// Takes note of what was heard, and passes it on if it is new.
    fn hear(&mut self, text: String, on_wait: &mut dyn FnMut(&str)) {
        if self.last != text {
            on_wait(&text);
            self.last = text;
        }
    }

    fn check_time(&self) -> Result<(), MasterError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(MasterError::Stopped(self.address.clone()));
        }
        match self.patience {
            Some(patience) if self.until.is_some_and(|until| Instant::now() >= until) => {
                Err(MasterError::Patience { address: self.address.clone(), patience, last: self.last.clone() })
            }
            _ => Ok(()),
        }
    }

    fn attempt(&mut self, claim: Option<Claim>, on_wait: &mut dyn FnMut(&str)) -> Result<Registration, Attempt> {
        let stream = self.connect()?;
        send(&stream, &request(claim, stream.local_addr()?))?;
        let mut lines = Lines::new(&stream, ANSWER_BYTES_MAX);
        let mut heard = Instant::now();
        loop {
            self.check_time().map_err(Attempt::Final)?;
            match lines.next::<Answer>(Instant::now() + RETRY) {
                Ok(None) if heard.elapsed() < SILENCE => {}
                Ok(None) => return Err(Attempt::Broken(format!("it has been silent for {SILENCE:?}"))),
                Ok(Some(Answer::Waiting { text })) => {
                    heard = Instant::now();
                    self.hear(text, on_wait);
                }
                Ok(Some(Answer::Refused { text })) => {
                    return Err(Attempt::Final(MasterError::Refused { address: self.address.clone(), text }));
                }
                Ok(Some(Answer::Configuration { cluster, tuning })) => {
                    let wrong = |source| MasterError::Config { address: self.address.clone(), source };
                    let (cluster, tuning) = parse(&cluster, &tuning).map_err(|error| Attempt::Final(wrong(error)))?;
                    return Ok(Registration { cluster, tuning, stream });
                }
                Err(error @ (LineError::Closed | LineError::Io(_))) => return Err(Attempt::Broken(error.to_string())),
                Err(error) => {
                    let (address, problem) = (self.address.clone(), error.to_string());
                    return Err(Attempt::Final(MasterError::Answer { address, problem }));
                }
            }
        }
    }

    fn connect(&self) -> Result<TcpStream, Attempt> {
        let addresses = self.address.to_socket_addrs()?;
        let left = self.until.map_or(CONNECT_TIMEOUT, |until| until.saturating_duration_since(Instant::now()));
        let timeout = left.clamp(Duration::from_millis(1), CONNECT_TIMEOUT);
        let mut problem = "its name has no address".to_owned();
        for address in addresses {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => problem = error.to_string(),
            }
        }
        Err(Attempt::Broken(problem))
    }
}

fn request(claim: Option<Claim>, local: SocketAddr) -> Request {
    let Some((id, native, http)) = claim else { return Request::Fetch { version: VERSION } };
    let place = |place: Place| match place.port {
        Some(port) => SocketAddr::new(place.ip, port).to_string(),
        None => place.ip.to_string(),
    };
    let native = native.unwrap_or(Place { ip: local.ip(), port: None });
    Request::Register { version: VERSION, id: id.to_string(), address: place(native), http: http.map(place) }
}

fn parse(cluster: &str, tuning: &str) -> Result<(Cluster, Tuning), ConfigError> {
    let cluster = Cluster::parse(cluster, Path::new("cluster"))?;
    Ok((cluster, Tuning::parse(tuning, Path::new("tuning"))?))
}

/// `HOST:PORT` of `HOST` or `HOST:PORT`; an IPv6 address stands in brackets if a port follows.
fn with_port(address: &str) -> Result<String, &'static str> {
    if address.is_empty() || address.contains(['/', ' ']) {
        return Err("has no host");
    }
    if let Ok(ip) = address.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(SocketAddr::new(ip, PORT).to_string());
    }
    match address.rsplit_once(':') {
        None => Ok(format!("{address}:{PORT}")),
        Some(("", _)) => Err("has no host"),
        Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(address.to_owned()),
        Some(_) => Err("has no port from 1 to 65535 after the colon"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out() {
        for (given, expected) in [
            ("10.0.0.1", "10.0.0.1:1735"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("::1", "[::1]:1735"),
            ("[::1]", "[::1]:1735"),
            ("[::1]:80", "[::1]:80"),
            ("host", "host:1735"),
            ("host:80", "host:80"),
        ] {
            assert_eq!(with_port(given).unwrap(), expected);
        }
        for wrong in ["", ":80", "host:", "host:0", "host:http", "http://host:80", "a b"] {
            assert!(with_port(wrong).is_err(), "{wrong}");
        }
    }
}
