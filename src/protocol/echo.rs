//! A stand-in for tests and for measuring a driver alone: it moves frames and answers as a real protocol does, and
//! agrees on nothing.
//!
//! A write is answered when a majority of the nodes has acknowledged the batch that carried it; a read is answered at
//! once from what this node has executed. Nothing is sent again, no node takes over from another, and two nodes that
//! write the same key never agree. **Not for data.**

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::{Micros, Outputs, Protocol, Record, RecordId, Reply, ReplyTo, Request, Send};
use crate::{
    command::{Action, Command, Status},
    topology::{Cluster, NodeId, NodeIndex, NodeSet},
    tuning::Tuning,
    wire::{self, Frame, FrameError, HEADER_BYTES, Kind},
};

/// Bytes before the commands of a batch: its number.
const BATCH_HEADER_BYTES: usize = 8;

/// See the [module](self).
#[derive(Debug)]
pub struct Echo {
    own: NodeIndex,
    id: NodeId,
    shard: u16,
    linger_us: u64,
    entries_max: usize,
    bytes_max: usize,
    requests_max: usize,
    timeout_us: u64,
    up: NodeSet,
    /// The open batch and when it was begun.
    batch: BytesMut,
    entries: usize,
    begun: Option<Micros>,
    /// Number of the last batch sent, and the highest that each node has acknowledged.
    sent: u64,
    acked: Vec<u64>,
    /// Highest number to acknowledge to each node, if it has not been.
    owed: Vec<Option<u64>>,
    waiting: VecDeque<Waiting>,
    values: BTreeMap<Bytes, (u64, Vec<u8>)>,
    stopping: bool,
    batches_received: u64,
}

#[derive(Debug)]
struct Waiting {
    batch: u64,
    since: Micros,
    to: ReplyTo,
    command: Bytes,
}

impl Echo {
    /// For one shard of a node.
    pub fn new(cluster: &Cluster, tuning: &Tuning, node: NodeIndex, shard: u16) -> Self {
        let nodes = cluster.nodes.len();
        Self {
            own: node,
            id: cluster.member(node).id,
            shard,
            linger_us: tuning.batch.linger_us,
            entries_max: tuning.batch.entries_max,
            bytes_max: tuning.batch.bytes_max,
            requests_max: tuning.flow.requests_max,
            timeout_us: tuning.timers.request_timeout_us,
            up: NodeSet::EMPTY,
            batch: BytesMut::new(),
            entries: 0,
            begun: None,
            sent: 0,
            acked: vec![0; nodes],
            owed: vec![None; nodes],
            waiting: VecDeque::new(),
            values: BTreeMap::new(),
            stopping: false,
            batches_received: 0,
        }
    }

    fn reply(&self, to: ReplyTo, status: Status, version: u64, value: &[u8], out: &mut Outputs) {
        let start = out.value_bytes.len();
        out.value_bytes.extend_from_slice(value);
        let value = start..out.value_bytes.len();
        out.replies.push(Reply {
            to,
            status,
            version,
            slot: version,
            repeated: false,
            ballot: 0,
            owner: Some(self.id),
            value,
        });
    }

    fn read(&self, to: ReplyTo, key: &[u8], out: &mut Outputs) {
        match self.values.get(key) {
            Some((version, value)) => self.reply(to, Status::Ok, *version, value, out),
            None => self.reply(to, Status::NotFound, 0, &[], out),
        }
    }

    fn append(&mut self, now: Micros, command: &Command<'_>) {
        if self.begun.is_none() {
            self.begun = Some(now);
            wire::begin(&mut self.batch);
            self.batch.extend_from_slice(&(self.sent + 1).to_le_bytes());
        }
        self.entries += 1;
        self.batch.extend_from_slice(command.bytes());
    }

    fn is_due(&self, now: Micros) -> bool {
        let full = self.entries >= self.entries_max || self.batch.len() >= self.bytes_max;
        self.begun.is_some_and(|begun| full || self.stopping || now.since(begun) >= self.linger_us)
    }

    fn send_batch(&mut self, out: &mut Outputs) {
        wire::finish(&mut self.batch, 0, Kind::AcceptBatch, self.shard, 0);
        let frame = self.batch.split().freeze();
        (self.begun, self.entries) = (None, 0);
        self.sent += 1;
        self.acked[self.own.index()] = self.sent;
        for to in self.up.iter().filter(|to| out.room[to.index()] > 0) {
            out.sends.push(Send { to, frame: frame.clone(), after: RecordId(0) });
        }
    }

    fn send_acks(&mut self, out: &mut Outputs) {
        for (peer, owed) in self.owed.iter_mut().enumerate() {
            if let Some(number) = owed.take() {
                let frame = wire::frame(Kind::Ack, self.shard, 0, &number.to_le_bytes());
                out.sends.push(Send { to: NodeIndex(peer as u8), frame, after: RecordId(0) });
            }
        }
    }

    /// The highest batch that a majority has.
    fn committed(&self) -> u64 {
        let mut acked = self.acked.clone();
        acked.sort_unstable();
        acked[(acked.len() - 1) / 2]
    }

    fn execute(&mut self, out: &mut Outputs) {
        let committed = self.committed();
        while self.waiting.front().is_some_and(|waiting| waiting.batch <= committed) {
            let waiting = self.waiting.pop_front().expect("there is a first one");
            let command = Command::view(&waiting.command);
            let entry = self.values.entry(waiting.command.slice_ref(command.key())).or_default();
            entry.0 += 1;
            let version = entry.0;
            match command.action() {
                Action::Put(value) | Action::CompareAndSwap { value, .. } => entry.1 = value.to_vec(),
                Action::Noop | Action::Get | Action::Delete => entry.1.clear(),
            }
            self.reply(waiting.to, Status::Ok, version, &[], out);
        }
    }
}

fn number_in(frame: &Frame) -> Result<u64, FrameError> {
    let malformed = FrameError::Body { kind: frame.kind, bytes: frame.body().len(), what: "it has no number" };
    let number = frame.body().get(..BATCH_HEADER_BYTES).ok_or(malformed)?;
    Ok(u64::from_le_bytes(number.try_into().expect("eight bytes")))
}

impl Protocol for Echo {
    fn on_link_up(&mut self, _: Micros, peer: NodeIndex, _: u64, _: &mut Outputs) {
        assert!(self.up.insert(peer), "a link goes down before it comes up again");
    }

    fn on_link_down(&mut self, _: Micros, peer: NodeIndex, _: &mut Outputs) {
        assert!(self.up.contains(peer), "a link that goes down was up");
        self.up.remove(peer);
        self.owed[peer.index()] = None;
    }

    fn on_frame(&mut self, _: Micros, peer: NodeIndex, frame: &Frame, _: &mut Outputs) -> Result<(), FrameError> {
        assert!(self.up.contains(peer), "frames come while the link is up");
        let number = number_in(frame)?;
        match frame.kind {
            Kind::AcceptBatch => {
                self.batches_received += 1;
                self.owed[peer.index()] = Some(number);
            }
            Kind::Ack => self.acked[peer.index()] = self.acked[peer.index()].max(number.min(self.sent)),
            kind => {
                let what = "this stand-in knows AcceptBatch and Ack only";
                return Err(FrameError::Body { kind, bytes: frame.body().len(), what });
            }
        }
        Ok(())
    }

    fn on_request(&mut self, now: Micros, request: Request<'_>, out: &mut Outputs) {
        let to = request.reply_to;
        if self.stopping {
            return self.reply(to, Status::ShuttingDown, 0, &[], out);
        }
        if !request.command.op().is_write() {
            return self.read(to, request.command.key(), out);
        }
        if self.waiting.len() >= self.requests_max {
            return self.reply(to, Status::Overloaded, 0, &[], out);
        }
        self.append(now, &request.command);
        let (batch, command) = (self.sent + 1, request.frame.slice_ref(request.command.bytes()));
        self.waiting.push_back(Waiting { batch, since: now, to, command });
        if self.batch.len() + HEADER_BYTES >= self.bytes_max.min(wire::BODY_BYTES_MAX / 4) {
            self.send_batch(out);
        }
    }

    fn on_durable(&mut self, _: Micros, _: RecordId, _: &mut Outputs) {}

    /// An echo keeps nothing.
    fn on_replay(&mut self, _: Micros, _: &Record) -> Result<(), FrameError> {
        Ok(())
    }

    fn end_replay(&mut self, _: Micros) {}

    fn on_tick(&mut self, now: Micros, out: &mut Outputs) {
        while self.waiting.front().is_some_and(|waiting| now.since(waiting.since) > self.timeout_us) {
            let waiting = self.waiting.pop_front().expect("there is a first one");
            self.reply(waiting.to, Status::TimeoutMaybeDone, 0, &[], out);
        }
    }

    fn flush(&mut self, now: Micros, out: &mut Outputs) {
        if self.is_due(now) {
            self.send_batch(out);
        }
        self.send_acks(out);
        self.execute(out);
    }

    fn flush_at(&self) -> Option<Micros> {
        self.begun.map(|begun| begun.plus(self.linger_us))
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    fn on_stop(&mut self, _: Micros, out: &mut Outputs) {
        self.stopping = true;
        for waiting in std::mem::take(&mut self.waiting) {
            self.reply(waiting.to, Status::TimeoutMaybeDone, 0, &[], out);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("batches_sent", self.sent), ("batches_received", self.batches_received)]
    }
}
