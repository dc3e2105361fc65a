//! Evidence that a node came back on an older copy of its directory, or on one that has lost its end (`protocol.md` §8;
//! `docs/decisions/0020-peers-remember-what-was-acked.md`).
//!
//! What has left a node was durable there. So whoever comes back as the same incarnation has at least what its peers have seen
//! of it; if not, its promises and votes may be gone too, and it must not vote on.
//!
//! ```text
//! the one that came back                              an owner whose stream it had acked
//!   Resume{stream, last_seq below the ack}       ──►
//!                    ◄── Older{stream, acked, came}        nothing else of this connection is taken
//!   ends: exit code 9
//! ```
//! | who finds it | by what |
//! |---|---|
//! | an owner | a Resume below what this incarnation has acked of the owner's stream |
//! | the node itself | two peers follow a later boot's stream of its own, or have more of a stream than it has sent |
//!
//! An owner's word is believed at once: nobody else may know, and whoever ends needlessly loses nothing. What was acked is
//! known for as long as the owner's process runs; which stream of a node its peers follow, they know from their logs.

use zerocopy::IntoBytes;

use super::{
    WPaxos,
    message::{OlderBody, Reader, Standing, StreamId},
};
use crate::{
    protocol::{Outputs, RecordId},
    topology::NodeIndex,
    wire::{Frame, FrameError, Kind},
};

/// What every such text ends with: what an operator has to know.
const DIRECTORY: &str = "this data directory is an older copy, or has lost its end; what this node has promised and accepted \
                         since is not in it, so it must not vote. Start it with the directory that it had, or with an empty \
                         one: it is then named anew and learns what it missed";

impl WPaxos {
    /// Looks at where a peer stands on a new connection. True if that shows that the peer has lost something: then nothing
    /// else is made of it.
    ///
    /// # Errors
    /// If it shows that this node has: one peer may be wrong or lie, and gets no link; two are believed.
    pub(super) fn is_evidence(
        &mut self,
        from: NodeIndex,
        standing: &Standing,
        reader: &Reader<'_>,
        out: &mut Outputs,
    ) -> Result<bool, FrameError> {
        let (theirs, mine, last_seq) = (standing.stream, self.stream.id, standing.last_seq.get());
        let is_later = theirs.incarnation == mine.incarnation && theirs.boot.get() > mine.boot.get();
        if is_later || (theirs == mine && last_seq > self.stream.sealed_seq()) {
            if self.versions.contradict(from) {
                let (peer, boot, met) = (self.config.nodes[from.index()], mine.boot, theirs.boot);
                let sent = self.stream.sealed_seq();
                let what = format!(
                    "node {peer} is not the first to have entries up to {last_seq} of boot {met} of this node, which is in \
                     boot {boot} and has sent {sent}"
                );
                self.condemn(out, &what);
            }
            return Err(reader.wrong("it has more of this node's streams than this node has sent"));
        }
        let came = if theirs == mine { last_seq } else { 0 };
        let acked = self.links[from.index()].acked;
        if came >= acked {
            return Ok(false);
        }
        self.counters.older_copies += 1;
        self.links[from.index()].disown();
        let body = OlderBody { stream: mine, acked: acked.into(), came: came.into() };
        self.links[from.index()].send(Kind::Older, body.as_bytes(), RecordId::NONE, out);
        Ok(true)
    }

    /// An owner says that this incarnation has acked more of its stream than it has.
    pub(super) fn on_older(&mut self, from: NodeIndex, frame: &Frame, out: &mut Outputs) -> Result<(), FrameError> {
        let mut reader = Reader::new(frame);
        let body: OlderBody = *reader.take()?;
        let acked = reader.number(body.acked)?;
        if !reader.is_empty() {
            return Err(reader.wrong("it has bytes behind its end"));
        }
        let known = self.taken_of(from, body.stream);
        if known < acked {
            let peer = self.config.nodes[from.index()];
            self.condemn(out, &format!("this node has acked {acked} entries of node {peer}'s stream and has {known}"));
        }
        Ok(())
    }

    /// How much of a stream this node has.
    fn taken_of(&self, owner: NodeIndex, stream: StreamId) -> u64 {
        let inbound = &self.inbound[owner.index()];
        if inbound.id == Some(stream) { inbound.last_seq } else { 0 }
    }

    /// This node must not vote on, and ends.
    fn condemn(&mut self, out: &mut Outputs, what: &str) {
        self.versions.deny_vote();
        out.damaged.get_or_insert_with(|| format!("{what}: {DIRECTORY}"));
    }
}
