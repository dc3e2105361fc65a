//! Frames as a hostile peer makes them: of the right layout and with a right checksum, their numbers plausible, at their limits
//! or beyond; and frames that it has seen, with something changed.

use bytes::BytesMut;
use zerocopy::{
    Immutable, IntoBytes,
    little_endian::{U16, U32, U64},
};

use super::{
    Ballot, Random,
    message::{
        BatchHead, CompareHead, EntryHead, ForwardHead, ForwardReplyHead, HeartbeatHead, KeyBallotHead, ListHead,
        ListRequestBody, ListRow, MergeRow, NUMBER_MAX, Objection, PrepareHead, PromiseHead, ROUND_MAX, Reached,
        Refusal, RejectHead, RoundHead, SkipBody, Standing, StateEntryHead, StreamId, TailHead, put_state,
    },
};
use crate::{
    command::{Action, Command, Expect, ID_MAX, NewCommand, VALUE_BYTES_MAX},
    store::{OPEN_SLOTS_MAX, ObjectState},
    topology::NodeId,
    wire::{self, Frame, Kind},
};

/// What is forged from the layouts; everything else is forged from frames that were seen.
const KINDS: [Kind; 21] = [
    Kind::AcceptBatch,
    Kind::AcceptBatch,
    Kind::AcceptBatch,
    Kind::Ack,
    Kind::Ack,
    Kind::Resume,
    Kind::Skip,
    Kind::Prepare,
    Kind::Promise,
    Kind::Reject,
    Kind::Forward,
    Kind::ForwardReply,
    Kind::Handover,
    Kind::Confirm,
    Kind::ConfirmReply,
    Kind::StateRequest,
    Kind::State,
    Kind::CatchUpDone,
    Kind::Compare,
    Kind::List,
    Kind::Merge,
];

/// A hostile peer's hand.
#[derive(Clone, Debug)]
pub struct Forger {
    random: Random,
    nodes: Vec<NodeId>,
    /// Which of them it is.
    me: usize,
    keys: Vec<Vec<u8>>,
    /// The shard and configuration version of its frames.
    shard: u16,
    version: u32,
    /// The streams of which it has seen a frame: its own among them.
    streams: Vec<StreamId>,
    /// Numbers that it has seen in frames.
    seen: Vec<u64>,
}

impl Forger {
    /// A peer that is `me` among `nodes` and knows of these keys.
    pub fn new(seed: u64, nodes: Vec<NodeId>, me: usize, keys: Vec<Vec<u8>>, shard: u16) -> Self {
        Self { random: Random(seed), nodes, me, keys, shard, version: 1, streams: Vec::new(), seen: Vec::new() }
    }

    /// Learns from a frame that is real.
    pub fn learn(&mut self, frame: &Frame) {
        self.version = frame.config_version;
        let body = frame.body();
        for place in (0..body.len().min(128).saturating_sub(7)).step_by(8) {
            let number = u64::from_le_bytes(body[place..place + 8].try_into().expect("eight bytes"));
            if self.seen.len() < 256 {
                self.seen.push(number);
            } else {
                let place = self.random.next() as usize % self.seen.len();
                self.seen[place] = number;
            }
        }
        if matches!(frame.kind, Kind::AcceptBatch | Kind::Ack | Kind::Resume)
            && let Ok((stream, _)) = <StreamId as zerocopy::FromBytes>::ref_from_prefix(body)
            && !self.streams.contains(stream)
            && self.streams.len() < 32
        {
            self.streams.push(*stream);
        }
    }

    /// A frame of its own making.
    pub fn forge(&mut self) -> Option<Frame> {
        let kind = KINDS[self.below(KINDS.len() as u64) as usize];
        let mut body = BytesMut::new();
        match kind {
            Kind::AcceptBatch => self.batch(&mut body),
            Kind::Ack | Kind::Resume => self.standing(&mut body),
            Kind::Skip | Kind::CatchUpDone => {
                let (stream, to_seq) = (self.stream(), self.number());
                put(&mut body, &SkipBody { stream, to_seq });
            }
            Kind::Compare => self.compare(&mut body),
            Kind::ConfirmReply => self.confirm_reply(&mut body),
            Kind::Confirm => put(&mut body, &RoundHead { round: self.number() }),
            Kind::List | Kind::Merge => {
                let (asked, next, more) = (self.place(), self.place(), self.flag());
                put(&mut body, &ListHead { asked, next, more, reserved: [0; 3] });
            }
            _ => {}
        }
        if !matches!(
            kind,
            Kind::AcceptBatch
                | Kind::Ack
                | Kind::Resume
                | Kind::Skip
                | Kind::CatchUpDone
                | Kind::Compare
                | Kind::ConfirmReply
        ) {
            for _ in 0..=self.below(3) {
                self.row(kind, &mut body);
            }
        }
        self.frame(kind, &body)
    }

    /// A frame that was seen, changed in a place or two.
    pub fn mutate(&mut self, frame: &Frame) -> Option<Frame> {
        let (mut kind, mut body) = (frame.kind, frame.body().to_vec());
        for _ in 0..=self.below(2) {
            let length = body.len() as u64;
            match self.below(12) {
                0..=6 if length > 0 => {
                    let near = self.below(3) > 0;
                    let place = self.below(if near { length.min(72) } else { length }) as usize;
                    let width = [8, 8, 4, 2, 1][self.below(5) as usize].min(body.len() - place);
                    let number = self.number().get().to_le_bytes();
                    body[place..place + width].copy_from_slice(&number[..width]);
                }
                7 => body.truncate(self.below(length + 1) as usize),
                8 => {
                    let from = self.below(length + 1) as usize;
                    body.extend_from_within(from..);
                }
                9 => {
                    let (from, count) = (self.below(length + 1) as usize, self.below(64) as usize);
                    body.drain(from..(from + count).min(body.len()));
                }
                10 => kind = KINDS[self.below(KINDS.len() as u64) as usize],
                _ => {}
            }
        }
        self.frame(kind, &body)
    }

    fn frame(&mut self, kind: Kind, body: &[u8]) -> Option<Frame> {
        let version = match self.below(40) {
            0 => self.version.wrapping_sub(1),
            _ => self.version,
        };
        let fits = body.len() <= kind.body_bytes_max();
        fits.then(|| wire::parse(wire::frame(kind, self.shard, version, body)).expect("it was just made"))
    }

    /// What else it chooses.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.next() % bound
    }

    fn number(&mut self) -> U64 {
        let small = self.below(12);
        let number = match self.below(24) {
            0 => NUMBER_MAX - 1 - self.random.next() % 3,
            1 => NUMBER_MAX,
            2 => u64::MAX - self.random.next() % 2,
            3 => 1 << 32,
            4 => 1 << 63,
            5..=9 if !self.seen.is_empty() => {
                let place = self.below(self.seen.len() as u64) as usize;
                self.seen[place].wrapping_add(self.below(3)).wrapping_sub(1)
            }
            10 => self.ballot().get(),
            _ => small,
        };
        number.into()
    }

    fn place(&mut self) -> U32 {
        let small = self.below(4) as u32;
        U32::new(if self.below(3) == 0 { u32::MAX } else { small })
    }

    fn flag(&mut self) -> u8 {
        match self.below(12) {
            0 => 255,
            1..=4 => 1,
            _ => 0,
        }
    }

    fn ballot(&mut self) -> U64 {
        let round = match self.below(16) {
            0 => ROUND_MAX - 1 - self.random.next() % 3,
            1 => ROUND_MAX,
            2 => 0,
            3 => 1 << 40,
            _ => self.below(9),
        };
        let mine = self.below(3) > 0;
        let place = if mine { self.me } else { self.below(self.nodes.len() as u64) as usize };
        let owner = if self.below(40) == 0 { NodeId::new(9, 200) } else { self.nodes[place] };
        U64::new(Ballot::new(1, round, owner).number)
    }

    fn ballot_version(&mut self) -> U32 {
        let version = match self.below(16) {
            0 => self.version + 1,
            1 => 0,
            2 => u32::MAX,
            _ => self.version,
        };
        version.into()
    }

    fn stream(&mut self) -> StreamId {
        if self.streams.is_empty() || self.below(12) == 0 {
            let (incarnation, boot) = (self.number(), (self.below(4) as u32).into());
            return StreamId { incarnation, boot, version: self.ballot_version() };
        }
        let place = self.below(self.streams.len() as u64) as usize;
        let mut stream = self.streams[place];
        if self.below(8) == 0 {
            stream.boot = (stream.boot.get() + 1).into();
        }
        stream
    }

    fn key(&mut self) -> Vec<u8> {
        let place = self.below(self.keys.len() as u64) as usize;
        self.keys[place].clone()
    }

    fn command(&mut self, key: &[u8]) -> Vec<u8> {
        let large = vec![7; if self.below(200) == 0 { VALUE_BYTES_MAX } else { 300 }];
        let action = match self.below(8) {
            0 => Action::Noop,
            1 => Action::Get,
            2 => Action::Delete,
            3 => Action::CompareAndSwap { expect: Expect::Absent, value: b"c" },
            4 => Action::Put(&large),
            _ => Action::Put(b"forged"),
        };
        let id = [1, 2, 3, 5, 70, 1 << 40, ID_MAX, 0, u64::MAX][self.below(9) as usize];
        let client = [1, 2, 3, 77, u64::MAX, 0][self.below(6) as usize];
        let (client, id) = if action == Action::Noop && self.below(4) > 0 { (0, 0) } else { (client, id) };
        let mut bytes = Vec::new();
        let retry = self.below(3) == 0;
        NewCommand { client, id, retry, key, action }.encode(&mut bytes).expect("its parts are short enough");
        bytes
    }

    /// A state that commands have made, now and then with a number that they have not.
    fn state(&mut self, key: &[u8]) -> (u64, ObjectState) {
        let (mut state, mut slot) = (ObjectState::default(), 0);
        for _ in 0..self.below(30) {
            let bytes = self.command(key);
            let command = Command::parse(&bytes).expect("it was just made");
            if command.is_request() {
                slot += 1;
                state.execute(slot, command, OPEN_SLOTS_MAX);
            }
        }
        match self.below(12) {
            0 => state.version = self.number().get(),
            1 => state.value = Some(vec![0; VALUE_BYTES_MAX + 1].as_slice().into()),
            2 => state.recent.blind_below = self.number().get(),
            3 if !state.recent.sessions.is_empty() => {
                let number = self.number().get();
                let which = self.below(6);
                let session = &mut state.recent.sessions[0];
                *[
                    &mut session.client,
                    &mut session.highest,
                    &mut session.before,
                    &mut session.floor,
                    &mut session.slot,
                    &mut session.version,
                ][which as usize] = number;
            }
            4 => slot = self.number().get(),
            _ => {}
        }
        (slot, state)
    }

    fn entries(&mut self, body: &mut BytesMut) -> (u32, u32) {
        let (start, entries) = (body.len(), self.below(5) as u32);
        let ballot = self.ballot();
        for _ in 0..entries {
            let key = self.key();
            let command = self.command(&key);
            let own = if self.below(6) == 0 { self.ballot() } else { ballot };
            let command_bytes = (command.len() as u32).into();
            put(body, &EntryHead { slot: self.number(), ballot: own, command_bytes, empty: 0.into() });
            body.extend_from_slice(&command);
        }
        (entries, (body.len() - start) as u32)
    }

    fn batch(&mut self, body: &mut BytesMut) {
        let mut rows = BytesMut::new();
        let (entries, entries_bytes) = self.entries(&mut rows);
        let withdrawn = self.below(3) as u32;
        for _ in 0..withdrawn {
            rows.extend_from_slice(self.number().as_bytes());
        }
        let head = BatchHead {
            stream: self.stream(),
            first_seq: self.number(),
            commit_from: self.number(),
            commit_to: self.number(),
            entries: entries.into(),
            entries_bytes: entries_bytes.into(),
            withdrawn: withdrawn.into(),
            reserved: 0.into(),
        };
        put(body, &head);
        body.extend_from_slice(&rows);
    }

    fn standing(&mut self, body: &mut BytesMut) {
        let refusals = self.below(4) as u32;
        let head = Standing {
            stream: self.stream(),
            refusals: refusals.into(),
            learner: self.flag(),
            reserved: [0; 3],
            last_seq: self.number(),
            watermark: self.number(),
            behind_from: self.number(),
        };
        put(body, &head);
        for _ in 0..refusals {
            put(body, &Refusal { seq: self.number(), ballot: self.ballot() });
        }
    }

    fn compare(&mut self, body: &mut BytesMut) {
        put(body, &CompareHead { answers: self.flag(), settled: self.flag(), reserved: [0; 2] });
        for _ in 0..self.below(12) {
            let owner = self.below(self.nodes.len() as u64 + 1) as u8;
            put(body, &Reached { owner, reserved: [0; 3], stream: self.stream(), up_to: self.number() });
        }
    }

    fn confirm_reply(&mut self, body: &mut BytesMut) {
        put(body, &RoundHead { round: self.number() });
        for _ in 0..self.below(3) {
            let index = (self.below(4) as u32).into();
            put(body, &Objection { ballot: self.ballot(), index, reserved: 0.into() });
        }
    }

    fn tail(&mut self, body: &mut BytesMut, key: &[u8]) -> U32 {
        let entries = self.below(4) as u32;
        let mut slot = self.number().get();
        for _ in 0..entries {
            let other = self.key();
            let wrong = self.below(12) == 0;
            let command = self.command(if wrong { &other } else { key });
            let head = TailHead {
                slot: slot.into(),
                ballot: self.ballot(),
                ballot_version: self.ballot_version(),
                command_bytes: (command.len() as u32).into(),
                decided: self.flag(),
                reserved: [0; 3],
            };
            put(body, &head);
            body.extend_from_slice(&command);
            slot = slot.wrapping_add(1 + self.below(2));
        }
        entries.into()
    }

    fn row(&mut self, kind: Kind, body: &mut BytesMut) {
        let key = self.key();
        let key_bytes = U16::new(key.len() as u16);
        match kind {
            Kind::Prepare => {
                put(body, &PrepareHead { ballot: self.ballot(), applied: self.number(), key_bytes, reserved: [0; 6] });
            }
            Kind::Reject => {
                let (ballot, higher) = (self.ballot(), self.ballot());
                put(body, &RejectHead { ballot, higher, key_bytes, reserved: [0; 6] });
            }
            Kind::Handover | Kind::Confirm => {
                put(body, &KeyBallotHead { ballot: self.ballot(), key_bytes, reserved: [0; 6] });
            }
            Kind::List => put(body, &ListRow { applied: self.number(), key_bytes, reserved: [0; 6] }),
            Kind::StateRequest => {
                let (applied, promised, promised_version) = (self.number(), self.ballot(), self.ballot_version());
                let (state_bytes, reserved) = (0.into(), 0.into());
                put(body, &StateEntryHead { applied, promised, promised_version, state_bytes, key_bytes, reserved });
            }
            _ => return self.row_with_parts(kind, &key, body),
        }
        body.extend_from_slice(&key);
    }

    fn row_with_parts(&mut self, kind: Kind, key: &[u8], body: &mut BytesMut) {
        let key_bytes = U16::new(key.len() as u16);
        let mut rest = BytesMut::from(key);
        match kind {
            Kind::State => {
                let (applied, state) = self.state(key);
                let state_bytes = (put_state(&mut rest, &state) as u32).into();
                let (promised, promised_version) = (self.ballot(), self.ballot_version());
                let (applied, reserved) = (applied.into(), 0.into());
                put(body, &StateEntryHead { applied, promised, promised_version, state_bytes, key_bytes, reserved });
            }
            Kind::Promise => {
                let (applied, state) = self.state(key);
                let with_state = self.below(2) == 0;
                let state_bytes = if with_state { put_state(&mut rest, &state) as u32 } else { 0 }.into();
                let (ballot, tail) = (self.ballot(), self.tail(&mut rest, key));
                let (more, part) = (self.flag(), (self.below(3) as u32 / 2).into());
                let (applied, reserved) = (applied.into(), 0);
                put(body, &PromiseHead { ballot, applied, state_bytes, tail, key_bytes, more, reserved, part });
            }
            Kind::Merge => {
                let (applied, tail) = (self.number(), self.tail(&mut rest, key));
                put(body, &MergeRow { applied, tail, key_bytes, reserved: 0.into() });
            }
            Kind::Forward => {
                rest = BytesMut::from(&self.command(key)[..]);
                let (id, command_bytes) = (self.number(), (rest.len() as u32).into());
                let (zone, read) = (self.below(3) as u8, self.below(3) as u8);
                put(body, &ForwardHead { id, command_bytes, zone, read, reserved: 0.into() });
            }
            _ => {
                rest = BytesMut::from(&b"value"[..]);
                let (id, version, slot, ballot) = (self.number(), self.number(), self.number(), self.ballot());
                let (status, redirect, repeated) = (self.below(22) as u8, self.flag(), self.flag());
                put(
                    body,
                    &ForwardReplyHead {
                        id,
                        version,
                        slot,
                        ballot,
                        value_bytes: 5.into(),
                        status,
                        redirect,
                        repeated,
                        reserved: 0,
                    },
                );
            }
        }
        body.extend_from_slice(&rest);
    }

    /// Asks for any page of a list, and a heartbeat of any times.
    pub fn small(&mut self, zones: usize) -> Option<Frame> {
        let mut body = BytesMut::new();
        let kind = [Kind::ListRequest, Kind::MergeRequest, Kind::Heartbeat][self.below(3) as usize];
        if kind == Kind::Heartbeat {
            put(&mut body, &HeartbeatHead { sent_us: self.number(), echo_us: self.number(), held_us: self.number() });
            for _ in 0..zones {
                body.extend_from_slice(&(self.number().get() as u32).to_le_bytes());
            }
        } else {
            put(&mut body, &ListRequestBody { cursor: self.place() });
        }
        self.frame(kind, &body)
    }
}

fn put(body: &mut BytesMut, part: &(impl IntoBytes + Immutable)) {
    body.extend_from_slice(part.as_bytes());
}
