//! Bounds of what a node takes from others. Whatever passes, the node can execute, log, put into a checkpoint, read back and
//! send; whatever does not is refused before anything of its frame is taken, with a reason.
//!
//! | what | bound | how a node keeps to it |
//! |---|---|---|
//! | rounds | below [`ROUND_MAX`] | it begins no candidacy above |
//! | configuration versions | below [`VERSION_MAX`] | it proposes none above |
//! | slots | below [`NUMBER_MAX`] | an owner has no free slot above |
//! | versions of objects | at most what is executed | a slot raises one by 1 |
//! | numbers in streams | below [`NUMBER_MAX`] | they are counted one by one |
//! | entries above a watermark | `wire::ENTRIES_OPEN_MAX` | an owner takes no request with half of them open |
//! | command ids | `ID_MIN` to `ID_MAX` | requests with others are refused |
//! | keys, values, sessions | `KEY_BYTES_MAX`, `VALUE_BYTES_MAX`, `SESSIONS_MAX` | requests are, as are states |
//! | bodies | `Kind::body_bytes_max` | rows go into the next frame, long tails into several rows |
//!
//! [`super::message::Reader`] checks them, whoever the frame is from: a peer, the log, a checkpoint.

use super::message::{
    BatchHead, EntryHead, ForwardHead, ForwardReplyHead, KeptEntry, KeptHead, KeyBallotHead, ListHead, ListRow,
    MergeRow, Objection, PrepareHead, ProbeRow, PromiseHead, Refusal, RejectHead, SessionBody, Standing,
    StateEntryHead, StateHead, StreamPlace, TailHead,
};
use crate::{
    command::{COMMAND_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX},
    store::SESSIONS_MAX,
    wire::{BATCH_BYTES_MAX, ENTRIES_OPEN_MAX, Kind, SPLIT_BYTES, WITHDRAWN_MAX},
};

/// Slots, and numbers in streams, are below: counting on from one does not overflow.
pub const NUMBER_MAX: u64 = 1 << 60;
/// Configuration versions are below: counting on from one does not overflow.
pub const VERSION_MAX: u32 = 1 << 30;
/// Rounds are below: at a steal per microsecond that is four years of one object.
pub const ROUND_MAX: u64 = 1 << 47;

/// An object's largest state.
const STATE_BYTES_MAX: usize = size_of::<StateHead>() + VALUE_BYTES_MAX + SESSIONS_MAX * size_of::<SessionBody>();

/// The largest row of `head` bytes with a key.
const fn keyed(head: usize) -> usize {
    head + KEY_BYTES_MAX
}

/// The largest part of a tail that goes into one row: it ends with the entry that reaches the limit.
const fn tail(entry_head: usize) -> usize {
    SPLIT_BYTES + entry_head + COMMAND_BYTES_MAX
}

/// Asserts that a frame which is closed once it has reached [`SPLIT_BYTES`] stays within its kind's limit.
const fn holds(kind: Kind, row: usize) {
    assert!(SPLIT_BYTES + row <= kind.body_bytes_max());
}

const _: () = {
    let entry = size_of::<EntryHead>() + COMMAND_BYTES_MAX;
    let batch = size_of::<BatchHead>() + BATCH_BYTES_MAX + entry + 8 * WITHDRAWN_MAX;
    assert!(batch <= Kind::AcceptBatch.body_bytes_max());
    let refusals = ENTRIES_OPEN_MAX * size_of::<Refusal>();
    assert!(size_of::<Standing>() + refusals <= Kind::Ack.body_bytes_max());
    assert!(size_of::<StreamPlace>() + refusals <= Kind::StreamPlace.body_bytes_max());
    assert!(SPLIT_BYTES + 8 <= Kind::ConfirmReply.body_bytes_max());
    assert!(size_of::<Objection>() < size_of::<KeyBallotHead>() + 1, "an answer is no longer than what it answers");
    holds(Kind::Prepare, keyed(size_of::<PrepareHead>()));
    holds(Kind::Reject, keyed(size_of::<RejectHead>()));
    holds(Kind::Handover, keyed(size_of::<KeyBallotHead>()));
    holds(Kind::Confirm, 8 + keyed(size_of::<KeyBallotHead>()));
    holds(Kind::Probe, 8 + keyed(size_of::<ProbeRow>()));
    assert!(size_of::<Objection>() < 2 * size_of::<ProbeRow>() + 1, "an answer is not twice what it answers");
    holds(Kind::StateRequest, keyed(size_of::<StateEntryHead>()));
    holds(Kind::State, keyed(size_of::<StateEntryHead>()) + STATE_BYTES_MAX);
    holds(Kind::Forward, size_of::<ForwardHead>() + COMMAND_BYTES_MAX);
    holds(Kind::ForwardReply, size_of::<ForwardReplyHead>() + VALUE_BYTES_MAX);
    holds(Kind::Promise, keyed(size_of::<PromiseHead>()) + STATE_BYTES_MAX + tail(size_of::<TailHead>()));
    holds(Kind::Merge, size_of::<ListHead>() + keyed(size_of::<MergeRow>()) + tail(size_of::<TailHead>()));
    holds(Kind::Kept, keyed(size_of::<KeptHead>()) + STATE_BYTES_MAX + tail(size_of::<KeptEntry>()));
    let list = super::converge::LIST_OBJECTS * keyed(size_of::<ListRow>());
    assert!(size_of::<ListHead>() + list <= Kind::List.body_bytes_max());
};
