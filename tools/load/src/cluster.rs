//! A wpaxos cluster as a target: one [`Client`] per lane, all of a worker's clients waited for together.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
};
use wpaxos::{
    api::native::ClientWelcome,
    client::{Ambiguity, Client, Completion, Options, Outcome, SubmitError},
    command::{Action, Status},
    linear::value_number,
    master,
    protocol::ReadMode,
    topology::{Cluster, NodeId},
};

use crate::target::{Answer, ClusterInfo, Driver, ErrorKind, Operation, Request, Seen, Target, TargetError};

/// The most requests that one client may have in flight: above anything that a run asks for.
const IN_FLIGHT_MAX: usize = 1 << 21;
/// Clients have timers (they send again, reconnect, give up): each is polled this often even with nothing to receive.
const POLL_ALL: Duration = Duration::from_millis(5);

/// How long a master is waited for.
const MASTER_PATIENCE: Duration = Duration::from_secs(60);

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    /// How reads are answered.
    pub read: ReadMode,
    /// When a request has failed.
    pub request_timeout: Duration,
}

/// Reaches a cluster through the client library.
#[derive(Debug)]
pub struct ClusterDriver {
    options: Options,
    cluster: ClusterInfo,
}

impl ClusterDriver {
    /// Asks the seeds for the cluster.
    ///
    /// # Errors
    /// If none answers, or what they say does not fit.
    pub fn connect(seeds: &[String], asking: Asking, executors_here: Option<usize>) -> Result<Self, TargetError> {
        Self::with(Options::to(seeds), asking, executors_here)
    }

    /// The same for the cluster of a cluster file; another one is refused.
    ///
    /// # Errors
    /// If the file is wrong, or as for [`ClusterDriver::connect`].
    pub fn from_file(path: &Path, asking: Asking) -> Result<Self, TargetError> {
        let cluster = Cluster::load(path).map_err(|error| TargetError(format!("--config {error}")))?;
        Self::of(&cluster, asking)
    }

    /// The same for the cluster of a master, which is waited for, with word of that on stderr.
    ///
    /// # Errors
    /// If the master tells none in time, or as for [`ClusterDriver::connect`].
    pub fn from_master(address: &str, asking: Asking) -> Result<Self, TargetError> {
        let fetched = master::fetch(address, MASTER_PATIENCE, &mut |text| wpaxos::complain!("wpaxos-load: {text}"));
        let (cluster, _) = fetched.map_err(|error| TargetError(format!("--master: {error}")))?;
        Self::of(&cluster, asking)
    }

    fn of(cluster: &Cluster, asking: Asking) -> Result<Self, TargetError> {
        let seeds = cluster.nodes.iter().filter_map(|member| member.shards.first());
        Self::with(Options { cluster: Some(cluster.name.clone()), ..Options::to(seeds) }, asking, None)
    }

    fn with(options: Options, asking: Asking, executors_here: Option<usize>) -> Result<Self, TargetError> {
        let Asking { read, request_timeout } = asking;
        let attempt_timeout = options.attempt_timeout.min(request_timeout);
        let in_flight_max = IN_FLIGHT_MAX;
        let options = Options { read, request_timeout, attempt_timeout, in_flight_max, ..options };
        let client = Client::connect(options.clone()).map_err(|error| TargetError(error.to_string()))?;
        let cluster = info_of(client.cluster(), executors_here)?;
        Ok(Self { options, cluster })
    }
}

/// What the welcome says. Executors are taken to run here if their addresses are loopback.
fn info_of(welcome: &ClientWelcome, executors_here: Option<usize>) -> Result<ClusterInfo, TargetError> {
    let mut zones = Vec::new();
    for node in &welcome.nodes {
        let id: NodeId = node.id.parse().map_err(|error| TargetError(format!("the cluster's welcome: {error}")))?;
        zones.push(id.zone);
    }
    zones.sort_unstable();
    zones.dedup();
    let is_here = |address: &&String| {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback())
    };
    let here = || welcome.nodes.iter().flat_map(|node| &node.shards).filter(is_here).count();
    Ok(ClusterInfo {
        name: welcome.cluster.clone(),
        zones,
        nodes: welcome.nodes.iter().map(|node| node.id.clone()).collect(),
        shards: welcome.shards,
        executors_here: executors_here.unwrap_or_else(here),
        facts: welcome.facts.clone(),
    })
}

impl Driver for ClusterDriver {
    type Target = ClusterTarget;

    fn cluster(&self) -> &ClusterInfo {
        &self.cluster
    }

    fn connect(&self, lanes: &[u8]) -> Result<ClusterTarget, TargetError> {
        let connect = |zone: &u8| {
            let options = Options { zone: Some(*zone), ..self.options.clone() };
            Client::connect(options).map_err(|error| TargetError(format!("zone {zone}: {error}")))
        };
        let clients = lanes.iter().map(connect).collect::<Result<Vec<_>, _>>()?;
        ClusterTarget::new(clients).map_err(|error| TargetError(format!("cannot wait for sockets: {error}")))
    }
}

/// The clients of one worker, waited for together: each client's own epoll instance is watched by one more.
pub struct ClusterTarget {
    clients: Vec<Client>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    /// Lanes with requests that have not been written, as far as is known.
    dirty: Vec<bool>,
    all_polled: Instant,
}

impl ClusterTarget {
    fn new(clients: Vec<Client>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (lane, client) in clients.iter().enumerate() {
            epoll::add(&epoll, client.as_fd(), epoll::EventData::new_u64(lane as u64), epoll::EventFlags::IN)?;
        }
        let (events, dirty) = (Vec::with_capacity(clients.len()), vec![false; clients.len()]);
        Ok(Self { clients, epoll, events, dirty, all_polled: Instant::now() })
    }

    /// Receives on one lane, without waiting.
    fn poll_lane(&mut self, lane: usize, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError> {
        let ended = self.clients[lane].poll(Duration::ZERO, &mut |completion: Completion<'_>| {
            answered(lane, completion.tag, answer_of(completion.outcome, completion.version));
        });
        ended.map(drop).map_err(|error| TargetError(error.to_string()))
    }

    fn wait(&mut self, wait: Duration) -> Result<(), TargetError> {
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(TargetError(format!("cannot wait for sockets: {error}"))),
        }
    }
}

impl Target for ClusterTarget {
    fn submit(&mut self, lane: usize, request: Request<'_>, tag: u64) -> Result<(), ErrorKind> {
        let action = match request.operation {
            Operation::Read => Action::Get,
            Operation::Write(value) => Action::Put(value),
        };
        self.dirty[lane] = true;
        self.clients[lane].submit(action, request.key, tag).map_err(|error| match error {
            SubmitError::Full { .. } => ErrorKind::NotTaken,
            SubmitError::Command(_) | SubmitError::Noop => ErrorKind::BadRequest,
        })
    }

    fn poll(&mut self, wait: Duration, answered: &mut dyn FnMut(usize, u64, Answer)) -> Result<(), TargetError> {
        if self.all_polled.elapsed() >= POLL_ALL {
            self.all_polled = Instant::now();
            return (0..self.clients.len()).try_for_each(|lane| self.poll_lane(lane, answered));
        }
        let mut wait = wait.min(POLL_ALL);
        for lane in 0..self.clients.len() {
            if self.dirty[lane] {
                // What waits for company there must not wait any longer for this worker.
                let held = self.clients[lane].flush();
                self.dirty[lane] = held.is_some();
                wait = held.map_or(wait, |held| wait.min(held));
            }
        }
        self.wait(wait)?;
        for event in 0..self.events.len() {
            self.poll_lane(self.events[event].data.u64() as usize, answered)?;
        }
        Ok(())
    }
}

/// What an outcome counts as: whatever the cluster executed is an answer, an absent value too.
fn answer_of(outcome: Outcome<'_>, version: u64) -> Answer {
    let done = |status, value| Answer::Done(Seen { status, version, value });
    match outcome {
        Outcome::Value(value) => done(Status::Ok, number_of(value)),
        Outcome::Done => done(Status::Ok, 0),
        Outcome::NotFound => done(Status::NotFound, 0),
        Outcome::CasFailed => done(Status::CasFailed, 0),
        Outcome::Duplicate => Answer::Done(Seen::only(Status::Duplicate)),
        Outcome::Refused(status) => match Answer::of(status) {
            Answer::Done(_) => Answer::Failed(ErrorKind::BadRequest),
            failed => failed,
        },
        Outcome::Ambiguous(Ambiguity::TimedOut | Ambiguity::ReplicaTimedOut) => {
            Answer::Failed(ErrorKind::TimeoutMaybeDone)
        }
        Outcome::Ambiguous(Ambiguity::ConnectionLost) => Answer::Failed(ErrorKind::Disconnected),
        Outcome::Ambiguous(Ambiguity::OutcomeUnknown | Ambiguity::IdTaken) => Answer::Failed(ErrorKind::OutcomeUnknown),
        Outcome::Ambiguous(Ambiguity::RetryRefused(_)) => Answer::Failed(ErrorKind::RetryRefused),
    }
}

/// The number of a value that was read. A value without one was not written by this run: it gets a number that no write of
/// a run has.
pub(crate) fn number_of(value: &[u8]) -> u64 {
    match value_number(Some(value)) {
        0 => {
            let mut hasher = DefaultHasher::new();
            value.hash(&mut hasher);
            hasher.finish() | 1 << 63
        }
        number => number,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wpaxos::api::native::WelcomeNode;

    use super::*;

    fn welcome(nodes: &[(&str, &[&str])]) -> ClientWelcome {
        let node = |(id, shards): &(&str, &[&str])| WelcomeNode {
            id: (*id).to_owned(),
            shards: shards.iter().map(|shard| (*shard).to_owned()).collect(),
            http: None,
        };
        ClientWelcome {
            cluster: "test".to_owned(),
            node: "1.1".to_owned(),
            shard: 0,
            shards: 2,
            nodes: nodes.iter().map(node).collect(),
            facts: BTreeMap::from([("durability".to_owned(), "none".to_owned())]),
        }
    }

    #[test]
    fn the_welcome_tells_zones_and_what_runs_here() {
        let nodes: [(&str, &[&str]); 3] = [
            ("3.1", &["127.0.0.1:1", "127.0.0.1:2"]),
            ("1.1", &["[::1]:1", "localhost:2"]),
            ("1.2", &["10.0.0.1:1", "10.0.0.1:2"]),
        ];
        let info = info_of(&welcome(&nodes), None).unwrap();
        assert_eq!((info.zones, info.executors_here, info.shards), (vec![1, 3], 4, 2));
        assert_eq!(info.facts["durability"], "none");
        assert_eq!(info_of(&welcome(&nodes), Some(9)).unwrap().executors_here, 9);
        assert!(info_of(&welcome(&[("x", &[])]), None).unwrap_err().to_string().contains("ZONE.NODE"));
    }

    #[test]
    fn outcomes_count_as_what_they_are() {
        let missing = Answer::Done(Seen { status: Status::NotFound, version: 4, value: 0 });
        assert_eq!(answer_of(Outcome::NotFound, 4), missing);
        let read = Answer::Done(Seen { status: Status::Ok, version: 9, value: 77 });
        assert_eq!(answer_of(Outcome::Value(&[77, 0, 0, 0, 0, 0, 0, 0, 1, 2]), 9), read);
        assert_eq!(answer_of(Outcome::Refused(Status::Overloaded), 0), Answer::Failed(ErrorKind::Overloaded));
        let lost = Outcome::Ambiguous(Ambiguity::ConnectionLost);
        assert_eq!(answer_of(lost, 0), Answer::Failed(ErrorKind::Disconnected));
        assert!(number_of(b"short") >> 63 == 1 && number_of(&[0; 16]) >> 63 == 1, "no write has such a number");
    }
}
