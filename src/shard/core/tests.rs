//! A shard without an executor: who has how much of a turn, and of the memory.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, IoSlice},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use super::requests::TURN_WORK;
use crate::{
    api::native::{self, ClientHello},
    command::{Action, NewCommand, Status},
    protocol::{ReadMode, echo::Echo},
    shard::{
        Shard,
        connection::{Connection, Socket},
        hello::{Code, Refusal},
        log::Unlogged,
        node::Node,
        session::{Ended, Reading, Session},
    },
    topology::{Cluster, NodeIndex, ShardId},
    tuning::Tuning,
    wire::{self, HEADER_BYTES, Kind},
};

/// What a socket has taken, as long as there is room.
#[derive(Clone, Debug)]
struct FakeSocket {
    taken: Rc<RefCell<Vec<u8>>>,
    room: usize,
}

impl Socket for FakeSocket {
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut taken = self.taken.borrow_mut();
        let before = taken.len();
        for part in parts {
            let fits = part.len().min(self.room.saturating_sub(taken.len()));
            taken.extend_from_slice(&part[..fits]);
        }
        Ok(taken.len() - before)
    }

    fn set_buffers(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self) {}
}

fn shard_with(set: impl FnOnce(&mut Tuning)) -> Rc<Shard<Echo>> {
    let mut tuning = Tuning::default();
    set(&mut tuning);
    let cluster = Arc::new(Cluster::local("test", vec![vec![vec!["127.0.0.1:1".parse().unwrap()]]]));
    let (tuning, index) = (Arc::new(tuning), NodeIndex(0));
    let echo = Echo::new(&cluster, &tuning, index, 0);
    let node = Node::new(cluster, tuning, index, 1, BTreeMap::new(), Arc::default());
    Shard::new(Arc::new(node), ShardId(0), echo, Box::<Unlogged>::default(), None)
}

/// A client and its session.
struct Caller {
    session: Option<Session>,
    socket: FakeSocket,
    ended: Option<Ended>,
    paused: bool,
}

impl Caller {
    fn new(shard: &Shard<Echo>, client: u64, room: usize) -> Self {
        let socket = FakeSocket { taken: Rc::default(), room };
        let connection = Connection::new(Box::new(socket.clone()), "127.0.0.1:9".parse().unwrap());
        let session = Some(Session::accept(shard, connection));
        let mut caller = Self { session, socket, ended: None, paused: false };
        let hello = serde_json::to_vec(&ClientHello { cluster: None, client, zone: None }).unwrap();
        caller.send(shard, &wire::frame(Kind::ClientHello, 0, 0, &hello));
        caller
    }

    fn connection(&self) -> &Connection {
        self.session.as_ref().unwrap().connection()
    }

    /// Hands bytes to the session, which must take them all.
    fn send(&mut self, shard: &Shard<Echo>, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.ended.is_none() {
            assert!(!self.paused, "it is not read");
            let spare = self.session.as_mut().unwrap().spare();
            let take = bytes.len().min(spare.len());
            spare[..take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            let read = self.session.as_mut().unwrap().received(shard, take);
            self.note(shard, read);
        }
    }

    /// Hands bytes to the session for as long as it takes any.
    fn press(&mut self, shard: &Shard<Echo>, bytes: &[u8]) {
        for piece in bytes.chunks(1024) {
            if self.paused || self.ended.is_some() || self.connection().is_closed() {
                return;
            }
            self.send(shard, piece);
        }
    }

    /// Does what its reader would do, if it was woken.
    fn go_on(&mut self, shard: &Shard<Echo>) {
        if self.paused && self.connection().resume.take() {
            let read = self.session.as_mut().unwrap().go_on(shard);
            self.note(shard, read);
        } else if self.ended.is_none() && self.connection().is_closed() {
            let read = self.session.as_mut().unwrap().received(shard, 0);
            self.note(shard, read);
        }
    }

    fn note(&mut self, shard: &Shard<Echo>, read: Result<Reading, Ended>) {
        self.paused = matches!(read, Ok(Reading::Paused));
        if let Err(ended) = read {
            self.session.take().unwrap().end(shard, &ended);
            self.ended = Some(ended);
        }
    }

    /// Frames that its socket has taken, but for the welcome.
    fn frames(&self) -> Vec<(Kind, Vec<u8>)> {
        let taken = self.socket.taken.borrow();
        let (mut rest, mut frames) = (&taken[..], Vec::new());
        while let Some(bytes) = wire::frame_bytes(rest).unwrap().filter(|bytes| *bytes <= rest.len()) {
            let frame = wire::view(&rest[..bytes]).unwrap();
            frames.push((frame.kind, frame.body.to_vec()));
            rest = &rest[bytes..];
        }
        // The welcome comes first.
        if !frames.is_empty() {
            frames.remove(0);
        }
        frames
    }

    /// Ids and statuses of its answers, in the order in which they were sent.
    fn answers(&self) -> Vec<(u64, Status)> {
        let frames = self.frames().into_iter().filter(|(kind, _)| *kind == Kind::Reply);
        let read = |(_, body): (Kind, Vec<u8>)| -> Vec<(u64, Status)> {
            native::replies(&body).map(|reply| reply.unwrap()).map(|reply| (reply.id, reply.status)).collect()
        };
        frames.flat_map(read).collect()
    }

    fn refusal(&self) -> Option<Refusal> {
        let last = self.frames().pop().filter(|(kind, _)| *kind == Kind::Refused)?;
        Some(Refusal::read(&last.1))
    }
}

/// One frame of requests with ids from 1.
fn frame_of(client: u64, count: u64, action: Action<'_>) -> Vec<u8> {
    let mut body = bytes::BytesMut::new();
    for id in 1..=count {
        let command = NewCommand { client, id, retry: false, key: b"k", action };
        native::put_request_prefix(&mut body, command.encoded_bytes(), ReadMode::Confirm);
        command.encode(&mut body).unwrap();
    }
    wire::frame(Kind::Request, 0, 0, &body).to_vec()
}

fn turn(shard: &Shard<Echo>, callers: &mut [Caller]) {
    shard.core.borrow_mut().turn();
    shard.core.borrow_mut().feed();
    callers.iter_mut().for_each(|caller| caller.go_on(shard));
}

fn requests(shard: &Shard<Echo>) -> u64 {
    shard.core.borrow().counters.requests
}

#[test]
fn a_turn_takes_a_portion_of_a_large_frame_and_the_rest_follows_in_order() {
    let shard = shard_with(|_| {});
    let mut callers = [Caller::new(&shard, 1, usize::MAX), Caller::new(&shard, 2, usize::MAX)];
    callers[0].send(&shard, &frame_of(1, 5000, Action::Get));
    assert_eq!((requests(&shard), callers[0].paused), (1024, true), "a portion, and no more");
    callers[1].send(&shard, &frame_of(2, 10, Action::Get));
    assert_eq!((requests(&shard), callers[1].paused), (1034, false), "another client does not wait for the rest");
    let mut turns = 0;
    while callers[0].paused {
        turn(&shard, &mut callers);
        turns += 1;
        assert!(requests(&shard) <= 1034 + 1024 * turns);
    }
    assert_eq!((requests(&shard), turns), (5010, 4));
    shard.core.borrow_mut().turn();
    assert!(callers[0].answers().iter().map(|(id, _)| *id).eq(1..=5000), "in order, each once");
    assert_eq!(callers[1].answers().len(), 10);
    // What came behind the large frame is read on.
    callers[0].send(&shard, &frame_of(1, 1, Action::Get));
    assert_eq!(requests(&shard), 5011);
}

#[test]
fn many_large_frames_at_once_share_the_turns_fairly() {
    let shard = shard_with(|_| {});
    let mut callers: Vec<Caller> = (1..=40).map(|client| Caller::new(&shard, client, usize::MAX)).collect();
    let started = requests(&shard);
    for (client, caller) in (1..).zip(&mut callers) {
        caller.send(&shard, &frame_of(client, 3000, Action::Get));
    }
    assert!(requests(&shard) - started <= TURN_WORK as u64, "{} in the turn that found them", requests(&shard));
    let mut turns = 0;
    while callers.iter().any(|caller| caller.paused) {
        let before = requests(&shard);
        turn(&shard, &mut callers);
        assert!(requests(&shard) - before <= TURN_WORK as u64, "{} in one turn", requests(&shard) - before);
        turns += 1;
        let answered: Vec<usize> = callers.iter().map(|caller| caller.answers().len()).collect();
        let (least, most) = (answered.iter().min().unwrap(), answered.iter().max().unwrap());
        assert!(turns < 4 || *least > 0 && most - least <= 2 * 1024, "after {turns} turns: {answered:?}");
        assert!(turns < 20, "it does not end");
    }
    shard.core.borrow_mut().turn();
    for caller in &callers {
        assert!(caller.answers().iter().map(|(id, _)| *id).eq(1..=3000));
    }
}

#[test]
fn large_requests_count_by_their_bytes() {
    let shard = shard_with(|_| {});
    let mut caller = [Caller::new(&shard, 1, usize::MAX)];
    let value = vec![0; 100_000];
    caller[0].send(&shard, &frame_of(1, 30, Action::Put(&value)));
    assert!((10..=12).contains(&requests(&shard)), "{} of 100 kB each", requests(&shard));
    turn(&shard, &mut caller);
    turn(&shard, &mut caller);
    assert!(requests(&shard) == 30 && !caller[0].paused);
}

#[test]
fn a_clients_frame_is_refused_by_its_head_when_it_is_too_long() {
    let shard = shard_with(|_| {});
    let mut caller = Caller::new(&shard, 1, usize::MAX);
    shard.core.borrow_mut().turn();
    let huge = wire::frame(Kind::Request, 0, 0, &vec![0; native::BODY_BYTES_MAX + 1]);
    caller.send(&shard, &huge[..HEADER_BYTES]);
    assert!(matches!(caller.ended, Some(Ended::Refused(Refusal { code: Code::Limit, .. }))), "{:?}", caller.ended);
    assert!(caller.refusal().unwrap().reason.contains("at most 4194304 bytes, and this one of 4194305: split it"));
}

const BUDGET: usize = 16 << 20;

fn small() -> Rc<Shard<Echo>> {
    shard_with(|tuning| {
        tuning.flow.client_memory_bytes_max = BUDGET;
        tuning.timers.client_frame_timeout_us = 50_000;
        tuning.timers.client_unread_timeout_us = 50_000;
    })
}

#[test]
fn unfinished_frames_are_bounded_and_the_largest_goes_with_a_reason() {
    let shard = small();
    let mut callers: Vec<Caller> = (1..=20).map(|client| Caller::new(&shard, client, usize::MAX)).collect();
    shard.core.borrow_mut().turn();
    let frame = wire::frame(Kind::Request, 0, 0, &vec![0; 2 << 20]);
    for caller in &mut callers {
        caller.press(&shard, &frame[..frame.len() - 1]);
        // Readers find out at once that their connections are closed.
        let before = shard.budget.used();
        assert!(before <= BUDGET + (8 << 20), "{before}");
    }
    callers.iter_mut().for_each(|caller| caller.go_on(&shard));
    assert!(shard.budget.used() < BUDGET + (1 << 20), "{}", shard.budget.used());
    let closed: Vec<&Caller> = callers.iter().filter(|caller| caller.ended.is_some()).collect();
    assert!(!closed.is_empty() && closed.len() < callers.len(), "{} closed", closed.len());
    for caller in closed {
        let refusal = caller.refusal().expect("its socket has room for a reason");
        assert!(refusal.code == Code::Limit && refusal.reason.contains("flow.client_memory_bytes_max"), "{refusal}");
    }
    drop(callers);
}

#[test]
fn answers_that_are_not_read_are_bounded_and_so_are_requests_that_wait() {
    let shard = small();
    let mut writer = Caller::new(&shard, 99, usize::MAX);
    let value = vec![7; 1 << 20];
    writer.send(&shard, &frame_of(99, 1, Action::Put(&value)));
    let started = Instant::now();
    while writer.answers().is_empty() {
        shard.core.borrow_mut().turn();
        assert!(started.elapsed().as_secs() < 10);
    }
    // Their sockets take the welcome.
    let mut deaf: Vec<Caller> = (1..=40).map(|client| Caller::new(&shard, client, 4096)).collect();
    for (client, caller) in (1..).zip(&mut deaf) {
        caller.send(&shard, &frame_of(client, 6, Action::Get));
        assert!(shard.budget.used() <= BUDGET + (4 << 20), "{}", shard.budget.used());
    }
    assert!(shard.budget.is_spent(), "{}: the test asks for more than that", shard.budget.used());
    // Over the budget a request is refused by name; it is told so when its reader goes on.
    turn(&shard, &mut deaf);
    std::thread::sleep(std::time::Duration::from_millis(150));
    shard.core.borrow_mut().turn();
    shard.core.borrow_mut().next_tick = crate::protocol::Micros(0);
    shard.core.borrow_mut().turn();
    deaf.iter_mut().for_each(|caller| caller.go_on(&shard));
    assert!(deaf.iter().filter(|caller| caller.ended.is_some()).count() >= 2, "who takes nothing is closed");
    let refused = |caller: &Caller| caller.answers().iter().any(|(_, status)| *status == Status::Overloaded);
    assert!(deaf.iter().filter(|caller| refused(caller)).count() >= 20, "the others were refused by name");
    assert!(!shard.budget.is_spent(), "{}", shard.budget.used());
    writer.send(&shard, &frame_of(99, 1, Action::Get));
    shard.core.borrow_mut().turn();
    assert_eq!(writer.answers().last().unwrap().1, Status::Ok);
}

#[test]
fn a_frame_has_its_time_and_a_silent_client_all_the_time_there_is() {
    let shard = small();
    let mut slow = Caller::new(&shard, 1, usize::MAX);
    let mut idle = Caller::new(&shard, 2, usize::MAX);
    shard.core.borrow_mut().turn();
    let frame = frame_of(1, 1, Action::Get);
    slow.send(&shard, &frame[..frame.len() / 2]);
    idle.send(&shard, &frame_of(2, 1, Action::Get));
    std::thread::sleep(std::time::Duration::from_millis(150));
    shard.core.borrow_mut().next_tick = crate::protocol::Micros(0);
    shard.core.borrow_mut().turn();
    slow.go_on(&shard);
    idle.go_on(&shard);
    assert!(slow.ended.is_some() && idle.ended.is_none());
    assert!(slow.refusal().unwrap().reason.contains("timers.client_frame_timeout_us"));
}
