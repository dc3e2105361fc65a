//! What a learner does before it votes (`protocol.md` §8): it takes over, durably, what others have executed and accepted of
//! *every* object, from a Q1 of members that vote. Whatever its earlier incarnation had a part in deciding, such a Q1 knows.
//!
//! Others are gone through one after the other, page by page: keys, what is executed, and tails. States are asked for only
//! where they are ahead of what is here. A restart, or a connection that ends, begins that member anew; what has come is kept.

use bytes::{Bytes, BytesMut};
use zerocopy::IntoBytes;

use super::{
    Mutant, ObjectIndex, WPaxos,
    message::{ListHead, ListRequestBody, MergeRow, Reader, StateEntryHead},
    object::{Object, Source, TailEntry},
    phase1::{put_tail, put_tail_part, read_tail},
};
use crate::{
    protocol::{Micros, Outputs, RecordId},
    topology::{NodeIndex, NodeSet},
    wire::{Frame, FrameError, Kind, SPLIT_BYTES},
};

/// How many objects a page lists, and about how many bytes go with it, its tails included. A page may take several frames.
const PAGE_OBJECTS: usize = 512;
const PAGE_BYTES: usize = 1 << 20;
/// The end of a list.
const END: u32 = u32::MAX;

/// The list that is being gone through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Page {
    from: NodeIndex,
    cursor: u32,
    /// Whether it has to be asked for.
    due: bool,
    heard_at: Micros,
}

/// How far a learner is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Merge {
    done: NodeSet,
    page: Option<Page>,
    /// Where to look for the next member.
    next: u8,
}

impl Merge {
    /// Members that were gone through.
    pub(super) fn done(&self) -> NodeSet {
        self.done
    }

    /// A page does not outlive its connection.
    pub(super) fn part_from(&mut self, peer: NodeIndex) {
        self.page.take_if(|page| page.from == peer);
    }
}

impl WPaxos {
    /// Asks for the next page, when all states that the last one made this node ask for have come; or begins with a member.
    pub(super) fn pump_merge(&mut self, now: Micros, out: &mut Outputs) {
        if !self.versions.is_learner() {
            return;
        }
        let patience = self.config.timers.request_timeout_us;
        let merge = &mut self.versions.merge;
        merge.page.take_if(|page| now.since(page.heard_at) > patience);
        if merge.page.is_none() {
            let nodes = self.links.len() as u8;
            let after = merge.next;
            let may_be_asked = |node: &NodeIndex| {
                let link = &self.links[node.index()];
                link.is_up() && link.has_place() && !link.learner && !merge.done.contains(*node)
            };
            let next = (0..nodes).map(|step| NodeIndex((after + step) % nodes)).find(may_be_asked);
            let Some(from) = next else { return };
            merge.next = from.0 + 1;
            merge.page = Some(Page { from, cursor: 0, due: true, heard_at: now });
        }
        let Some(page) = self.versions.merge.page.as_mut().filter(|page| page.due) else { return };
        page.due = false;
        let (from, cursor) = (page.from, page.cursor);
        self.links[from.index()].flush(out);
        let body = ListRequestBody { cursor: cursor.into() };
        self.links[from.index()].send(Kind::MergeRequest, body.as_bytes(), RecordId(0), out);
    }

    /// Lists objects for a learner, in as many frames as their tails need. Whoever has no vote says nothing.
    pub(super) fn on_merge_request(
        &mut self,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let body: &ListRequestBody = reader.take()?;
        if !self.may_vote() {
            return Ok(());
        }
        let start = body.cursor.get() as usize;
        let (mut next, mut bytes) = (start, 0);
        let mut rows = BytesMut::new();
        self.links[from.index()].flush(out);
        while next < self.objects.len() && next < start + PAGE_OBJECTS && bytes < PAGE_BYTES {
            let known = &self.objects[ObjectIndex(next as u32)];
            next += 1;
            if known.applied == 0 && known.tail.is_empty() {
                continue;
            }
            bytes += known.state.value.as_ref().map_or(0, |value| value.len());
            let mut tail = known.tail.iter().peekable();
            let mut more = true;
            while more {
                let before = rows.len();
                self.put_row(&mut rows, known, &mut tail);
                more = tail.peek().is_some();
                bytes += rows.len() - before;
                if rows.len() >= SPLIT_BYTES {
                    let head = ListHead { asked: body.cursor, next: body.cursor, more: 1, reserved: [0; 3] };
                    self.send_page(from, head, &rows.split(), out);
                }
            }
        }
        let next = if next >= self.objects.len() { END } else { next as u32 };
        let head = ListHead { asked: body.cursor, next: next.into(), more: 0, reserved: [0; 3] };
        self.send_page(from, head, &rows, out);
        Ok(())
    }

    /// Appends an object with so much of its tail as goes into one row.
    fn put_row<'a>(&self, rows: &mut BytesMut, known: &Object, tail: &mut impl Iterator<Item = &'a TailEntry>) {
        let start = rows.len();
        let mut row = MergeRow {
            applied: known.applied.into(),
            tail: 0.into(),
            key_bytes: (known.key.len() as u16).into(),
            reserved: 0.into(),
        };
        rows.extend_from_slice(row.as_bytes());
        rows.extend_from_slice(&known.key);
        row.tail = put_tail_part(rows, tail, |rows, entry| {
            put_tail(rows, entry, super::command_of(&self.stream, &self.inbound, &entry.source).bytes());
        });
        rows[start..start + size_of::<MergeRow>()].copy_from_slice(row.as_bytes());
    }

    /// Sends a page or a part of one, behind the record of this version: see `Link::send`.
    fn send_page(&self, to: NodeIndex, head: ListHead, rows: &[u8], out: &mut Outputs) {
        self.links[to.index()].send(Kind::Merge, &[head.as_bytes(), rows].concat(), self.logged, out);
    }

    /// A page: takes over its tails, and asks for the states that are ahead.
    pub(super) fn on_merge(
        &mut self,
        now: Micros,
        from: NodeIndex,
        frame: &Frame,
        out: &mut Outputs,
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: ListHead = *reader.take()?;
        let asked = head.asked.get();
        let Some(page) = &self.versions.merge.page else { return Ok(()) };
        if page.from != from || page.due || page.cursor != asked {
            return Ok(());
        }
        self.take_rows(now, from, frame)?;
        let is_whole = head.more == 0;
        if let Some(page) = &mut self.versions.merge.page {
            page.heard_at = now;
            if is_whole {
                (page.cursor, page.due) = (head.next.get(), true);
            }
        }
        if is_whole && asked == END {
            let merge = &mut self.versions.merge;
            (merge.page, _) = (None, merge.done.insert(from));
            if self.has_merged() {
                self.become_voter(now, out);
            }
        }
        Ok(())
    }

    /// Whether everything that a Q1 of others knew has come.
    fn has_merged(&self) -> bool {
        let done = self.versions.merge.done;
        self.config.is_phase1_quorum(done) || self.config.has(Mutant::MergeFromOne)
    }

    /// Whether the other members hold a Q1 at all.
    pub(super) fn merge_may_end(&self) -> bool {
        let others = (0..self.links.len()).map(|node| NodeIndex(node as u8));
        let others = others.filter(|node| *node != self.config.me && !self.links[node.index()].learner);
        self.config.is_phase1_quorum(others.collect())
    }

    /// Takes the rows of a page, as they came or from the log.
    pub(super) fn take_rows(&mut self, now: Micros, from: NodeIndex, frame: &Frame) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let head: &ListHead = reader.take()?;
        reader.zero(head.reserved)?;
        reader.flag(head.more)?;
        let rows = reader.clone().rows(|reader| {
            let row: &MergeRow = reader.take()?;
            reader.zero(row.reserved)?;
            let key = reader.key(row.key_bytes)?;
            let applied = reader.number(row.applied)?;
            Ok((key, applied, read_tail(reader, frame, key, row.tail.get())?))
        })?;
        reader.at_most(rows.len(), PAGE_OBJECTS)?;
        self.log_received(from, frame);
        let mut asked = None;
        for (key, applied, tail) in rows {
            let object = self.object_of(key);
            for (slot, reported) in tail {
                if self.config.has(Mutant::MergeWithoutTails) {
                    continue;
                }
                let command = Bytes::copy_from_slice(&reported.command);
                let (ballot, decided) = (reported.ballot, reported.decided);
                let source = Source::Held(Box::new(command));
                self.take_over_entry(now, object, TailEntry { slot, ballot, decided, source });
            }
            self.executable.push(object);
            let mine = self.objects[object].applied;
            // Another part of the same object follows the first one.
            if applied > mine && asked.replace(object) != Some(object) {
                let head = StateEntryHead {
                    applied: mine.into(),
                    promised: 0.into(),
                    promised_version: 0.into(),
                    state_bytes: 0.into(),
                    key_bytes: (key.len() as u16).into(),
                    reserved: 0.into(),
                };
                self.counters.states_asked += 1;
                self.links[from.index()].put(Kind::StateRequest, RecordId::NONE, &head, &[key]);
            }
        }
        Ok(())
    }

    /// What somebody has accepted counts as accepted here, too: a decision, or else what has the highest ballot, this node's
    /// own included.
    fn take_over_entry(&mut self, now: Micros, object: ObjectIndex, entry: TailEntry) {
        let (slot, ballot, decided) = (entry.slot, entry.ballot, entry.decided);
        let lowest = self.config.has(Mutant::MergeKeepsLowest);
        let known = &mut self.objects[object];
        if slot <= known.applied {
            return;
        }
        let is_better = match known.tail.get_mut(slot) {
            None => true,
            Some(known) if known.decided => false,
            Some(known) => decided || (ballot > known.ballot) != lowest,
        };
        if !is_better {
            return;
        }
        known.tail.put(entry);
        self.raise(now, object, ballot);
        if decided {
            self.note_gap(now, object);
        } else {
            self.orphan_withdrawn(now, object, slot, ballot);
        }
    }
}
