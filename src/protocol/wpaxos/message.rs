//! The messages of WPaxos as bytes.
//!
//! ```text
//! client      owner                     its Q2                  other nodes
//!   │ Request   │                          │                        │
//!   ├──────────►│  (nobody's object)       │                        │
//!   │           ├── Prepare{objects} ─────►├───────────────────────►│   phase 1, once per object
//!   │           │◄─ Promise{state, tail} ──┤◄───────────────────────┤
//!   │           ├── AcceptBatch{seq…} ────►│ (held: learners) ─────►│   phase 2, one stream per node
//!   │           │◄─ Ack{up to, refusals} ──┤                        │
//!   │◄──────────┤ executes, answers        │                        │
//!   │           ├── AcceptBatch{…, commit watermark} ──────────────►│   all execute
//! ```
//! Every body is a head (where there is one) and a row of elements `fixed part | key | …`, read in place.
//! Elements of one frame share the frame's configuration version; ballots travel without it unless they may be older.

use std::hash::{Hash, Hasher};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::Ballot;
use crate::store::OLDER_MAX;

mod reader;

pub use super::bounds::{NUMBER_MAX, ROUND_MAX};
pub use reader::{Reader, ballot_from, earlier_ballot, promise_from, put_state};

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $bytes:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

layout! {
    /// Which accept stream: one boot of one incarnation of its owner, in one configuration version.
    StreamId, 16 {
        /// The owner's incarnation.
        incarnation: U64,
        /// Its boot counter.
        boot: U32,
        /// The configuration version.
        version: U32,
    }
}

/// Those that are kept in a node's state are compared by their bytes.
macro_rules! compared {
    ($name:ident) => {
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.as_bytes() == other.as_bytes()
            }
        }

        impl Eq for $name {}

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.as_bytes().hash(state);
            }
        }
    };
}

compared!(StreamId);
compared!(Reached);

layout! {
    /// Heads an AcceptBatch: `head | entries | withdrawn numbers (u64 each, rising)`.
    BatchHead, 56 {
        /// The stream.
        stream: StreamId,
        /// The number of the first entry; of the next one if there is none.
        first_seq: U64,
        /// The commit watermark moves from here …
        commit_from: U64,
        /// … to here.
        commit_to: U64,
        /// How many entries.
        entries: U32,
        /// Their bytes.
        entries_bytes: U32,
        /// How many numbers in (from, to] are withdrawn: passed, not committed.
        withdrawn: U32,
        /// Must be 0.
        reserved: U32,
    }
}

layout! {
    /// An entry of an AcceptBatch; the command follows.
    EntryHead, 24 {
        /// The object's slot.
        slot: U64,
        /// The ballot that it is proposed at.
        ballot: U64,
        /// Bytes of command.
        command_bytes: U32,
        /// 1 if the entry was withdrawn before it was sent: its number is empty, and the command a no-op that names the
        /// object.
        empty: U32,
    }
}

layout! {
    /// An Ack or a Resume; the standing refusals follow.
    Standing, 48 {
        /// The stream.
        stream: StreamId,
        /// How many refusals follow.
        refusals: U32,
        /// 1 if the receiver has no vote: it stores the stream, and what it says is no ack.
        learner: u8,
        /// Must be 0.
        reserved: [u8; 3],
        /// The last number that was taken.
        last_seq: U64,
        /// The receiver's commit watermark.
        watermark: U64,
        /// The first number whose effects the receiver may lack because of a Skip; 0 if none.
        behind_from: U64,
    }
}

layout! {
    /// An entry that the receiver refused.
    Refusal, 16 {
        /// Its number.
        seq: U64,
        /// The ballot that the receiver had promised.
        ballot: U64,
    }
}

layout! {
    /// A Skip: numbers up to here are no longer kept. Also the whole of a CatchUpDone.
    SkipBody, 24 {
        /// The stream.
        stream: StreamId,
        /// The last number left out.
        to_seq: U64,
    }
}

layout! {
    /// The whole of an Older: the receiver came back with less of the sender's stream than it had acked.
    OlderBody, 32 {
        /// The stream.
        stream: StreamId,
        /// The last number that was acked.
        acked: U64,
        /// The last number that it came back with.
        came: U64,
    }
}

layout! {
    /// Phase 1a of one object; the key follows.
    PrepareHead, 24 {
        /// The candidate's ballot.
        ballot: U64,
        /// What the candidate has executed.
        applied: U64,
        /// Bytes of key.
        key_bytes: U16,
        /// Must be 0.
        reserved: [u8; 6],
    }
}

layout! {
    /// Phase 1b of one object; key, state and tail follow.
    PromiseHead, 32 {
        /// The ballot that is promised.
        ballot: U64,
        /// What the acceptor has executed.
        applied: U64,
        /// Bytes of state; 0 if the candidate has executed as much.
        state_bytes: U32,
        /// How many tail entries.
        tail: U32,
        /// Bytes of key.
        key_bytes: U16,
        /// 1 if the tail goes on in the next part, a row of its own.
        more: u8,
        /// Must be 0.
        reserved: u8,
        /// Which part of the promise, from 0; the state is in the first. A promise counts once all its parts have come.
        part: U32,
    }
}

layout! {
    /// A slot above `applied`; the command follows.
    TailHead, 28 {
        /// The slot.
        slot: U64,
        /// The ballot that it was accepted at.
        ballot: U64,
        /// That ballot's configuration version.
        ballot_version: U32,
        /// Bytes of command.
        command_bytes: U32,
        /// 1 if it is known to be decided.
        decided: u8,
        /// Must be 0.
        reserved: [u8; 3],
    }
}

layout! {
    /// A Prepare that was beaten; the key follows.
    RejectHead, 24 {
        /// The ballot that was asked for.
        ballot: U64,
        /// The ballot that beat it.
        higher: U64,
        /// Bytes of key.
        key_bytes: U16,
        /// Must be 0.
        reserved: [u8; 6],
    }
}

layout! {
    /// The state of one object; key and state follow. In a StateRequest only the key, and `applied` is the asker's.
    StateEntryHead, 28 {
        /// What is executed.
        applied: U64,
        /// The sender's promise.
        promised: U64,
        /// That ballot's configuration version.
        promised_version: U32,
        /// Bytes of state.
        state_bytes: U32,
        /// Bytes of key.
        key_bytes: U16,
        /// Must be 0.
        reserved: U16,
    }
}

layout! {
    /// An object's state; value and sessions follow.
    StateHead, 24 {
        /// The object's version.
        version: U64,
        /// All ids of sessions that were dropped are below this.
        blind_below: U64,
        /// Bytes of value.
        value_bytes: U32,
        /// 1 if there is a value.
        has_value: u8,
        /// Must be 0.
        reserved: u8,
        /// How many sessions.
        sessions: U16,
    }
}

layout! {
    /// One of the object's last writers.
    SessionBody, 96 {
        /// The client.
        client: U64,
        /// Its highest executed id.
        highest: U64,
        /// Which of the 64 before.
        before: U64,
        /// Executed ids below these.
        older: [U32; OLDER_MAX],
        /// Executed ids that are not remembered are at or below this.
        floor: U64,
        /// Ids below this may have been executed before the session began.
        blind_below: U64,
        /// The slot of its last execution.
        slot: U64,
        /// The object's version after the highest.
        version: U64,
        /// The digest of the highest.
        digest: U32,
        /// Its outcome.
        status: u8,
        /// Must be 0.
        reserved: [u8; 3],
    }
}

layout! {
    /// Heads a Compare: rows of [`Reached`] follow, for streams that have ended.
    CompareHead, 4 {
        /// 1 if it answers one.
        answers: u8,
        /// 1 if everything that was passed is executed, so that the rows can be relied on.
        settled: u8,
        /// Must be 0.
        reserved: [u8; 2],
    }
}

layout! {
    /// How far a node got in a stream.
    Reached, 28 {
        /// The stream's owner, by index.
        owner: u8,
        /// Must be 0.
        reserved: [u8; 3],
        /// The stream.
        stream: StreamId,
        /// The effects of everything up to here are there.
        up_to: U64,
    }
}

layout! {
    /// The whole of a ListRequest.
    ListRequestBody, 4 {
        /// The place, in the asked node's table, of the first object to list.
        cursor: U32,
    }
}

layout! {
    /// Heads a List or a Merge.
    ListHead, 12 {
        /// The place that was asked for.
        asked: U32,
        /// The place to ask for next; all ones at the end.
        next: U32,
        /// 1 if the page goes on in the next frame.
        more: u8,
        /// Must be 0.
        reserved: [u8; 3],
    }
}

layout! {
    /// An object in a List; the key follows.
    ListRow, 16 {
        /// What is executed.
        applied: U64,
        /// Bytes of key.
        key_bytes: U16,
        /// Must be 0.
        reserved: [u8; 6],
    }
}

layout! {
    /// A request passed to an owner; the command follows.
    ForwardHead, 16 {
        /// The sender's number for it.
        id: U64,
        /// Bytes of command.
        command_bytes: U32,
        /// The client's zone, from 0.
        zone: u8,
        /// A read mode.
        read: u8,
        /// Must be 0.
        reserved: U16,
    }
}

layout! {
    /// The answer to a forwarded request; the value follows.
    ForwardReplyHead, 40 {
        /// The number that came with it.
        id: U64,
        /// The object's version.
        version: U64,
        /// The slot that decided it.
        slot: U64,
        /// The answering node's promise for the object.
        ballot: U64,
        /// Bytes of value.
        value_bytes: U32,
        /// A status.
        status: u8,
        /// 1 if nothing was done because `ballot` names another owner.
        redirect: u8,
        /// 1 if the command was executed before, and nothing was done now.
        repeated: u8,
        /// Must be 0.
        reserved: u8,
    }
}

layout! {
    /// The owner asks the receiver to take an object, or asks whether it still owns it; the key follows.
    KeyBallotHead, 16 {
        /// The owner's ballot.
        ballot: U64,
        /// Bytes of key.
        key_bytes: U16,
        /// Must be 0.
        reserved: [u8; 6],
    }
}

layout! {
    /// Heads a Confirm, a ConfirmReply, a Probe and a ProbeReply.
    RoundHead, 8 {
        /// The asking node's number for the round.
        round: U64,
    }
}

layout! {
    /// An object in a Probe; the key follows.
    ProbeRow, 8 {
        /// Bytes of key.
        key_bytes: U16,
        /// Must be 0.
        reserved: [u8; 6],
    }
}

layout! {
    /// An object of a Confirm that somebody else has taken, or of a Probe that the sender knows.
    Objection, 16 {
        /// The higher ballot; to a Probe the sender's promise, or 0 if that is of an earlier version or none.
        ballot: U64,
        /// The object's place in the Confirm or Probe.
        index: U32,
        /// Must be 0.
        reserved: U32,
    }
}

layout! {
    /// A Configuration: rows of incarnations follow, one for each member.
    ConfigurationHead, 8 {
        /// The version.
        version: U32,
        /// 1 if the sender does not take the receiver for the member that it says it is.
        stranger: u8,
        /// Must be 0.
        reserved: [u8; 3],
    }
}

layout! {
    /// A step of the Paxos instance that decides a configuration version; rows of incarnations follow if there is a value.
    ReconfigureHead, 24 {
        /// A [`super::versions::Step`].
        step: u8,
        /// 1 if a value follows.
        has_value: u8,
        /// Must be 0.
        reserved: U16,
        /// The version that is to be decided.
        version: U32,
        /// The ballot that is asked for, promised, proposed or accepted; of a refusal, the one that beat it.
        ballot: U64,
        /// The ballot that the value was accepted at; 0 if none was.
        accepted: U64,
    }
}

layout! {
    /// What a node knows of the configuration, in its log and checkpoints: incarnations that are named, incarnations that were
    /// met first, and those that are accepted for the next version follow, one of each for each member.
    MembershipBody, 24 {
        /// The version.
        version: U32,
        /// A [`super::versions::Standing`].
        standing: u8,
        /// 1 if a value is accepted for the next version.
        has_accepted: u8,
        /// Must be 0.
        reserved: U16,
        /// The ballot promised for the next version.
        promised: U64,
        /// The ballot that its value was accepted at.
        accepted: U64,
    }
}

layout! {
    /// An object in a Merge, or one more part of its tail; key and tail follow.
    MergeRow, 16 {
        /// What is executed.
        applied: U64,
        /// How many tail entries.
        tail: U32,
        /// Bytes of key.
        key_bytes: U16,
        /// Must be 0.
        reserved: U16,
    }
}

layout! {
    /// In a checkpoint: where a node stood in a stream; refusals, and then frames with what it had not passed, follow.
    StreamPlace, 48 {
        /// The stream.
        stream: StreamId,
        /// The last number that was taken.
        last_seq: U64,
        /// The commit watermark.
        watermark: U64,
        /// The first number whose effects may be missing because of a Skip; 0 if none.
        behind_from: U64,
        /// How many refusals follow.
        refusals: U32,
        /// The stream's owner, by index.
        owner: u8,
        /// Must be 0.
        reserved: [u8; 3],
    }
}

layout! {
    /// In a checkpoint: an object; key, state and tail follow.
    KeptHead, 36 {
        /// The highest ballot seen.
        promised: U64,
        /// That ballot's configuration version.
        promised_version: U32,
        /// What is executed.
        applied: U64,
        /// Bytes of state.
        state_bytes: U32,
        /// How many tail entries.
        tail: U32,
        /// Bytes of key.
        key_bytes: U16,
        /// 1 if the tail goes on in the next part, a row of its own.
        more: u8,
        /// Must be 0.
        reserved: u8,
        /// Which part of the object, from 0; the state is in the first.
        part: U32,
    }
}

layout! {
    /// In a checkpoint: a tail entry; its command follows. It belongs to this number of a stream, if there is one.
    KeptEntry, 40 {
        /// The slot.
        slot: U64,
        /// The ballot that it was accepted at.
        ballot: U64,
        /// That ballot's configuration version.
        ballot_version: U32,
        /// Bytes of command.
        command_bytes: U32,
        /// The number in the stream; 0 if it belongs to none.
        seq: U64,
        /// The stream's owner, by index.
        owner: u8,
        /// 1 if it is known to be decided.
        decided: u8,
        /// Must be 0.
        reserved: [u8; 6],
    }
}

layout! {
    /// A Heartbeat; the sender's round-trip time to each zone in microseconds (u32 each, 0 unknown) follows.
    HeartbeatHead, 24 {
        /// The sender's clock.
        sent_us: U64,
        /// `sent_us` of the last heartbeat received on this link; 0 if none.
        echo_us: U64,
        /// How long ago that was.
        held_us: U64,
    }
}
