//! Registers whose writes have values of their own, and nothing else known: decided without a search.
//!
//! P. Gibbons and E. Korach, "Testing Shared Memories" (1997): a write and the reads that saw it make a cluster, which
//! stands together in any order that explains them. From the first return to the last call of a cluster, if they come in
//! this order, the object surely has its value (a *forward zone*); if the last call comes before the first return, the
//! cluster fits at any point between them (a *backward zone*). The history is linearizable if and only if no read returned
//! before its write was called, no two forward zones overlap, and no backward zone lies inside a forward one.

use std::collections::HashMap;

use super::{Act, Operation, Outcome, State, Verdict};
use crate::command::Status;

/// A write and the reads that saw it.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    /// When the write was called; `None` until it is found.
    written: Option<u64>,
    first_return: u64,
    last_call: u64,
    has_reads: bool,
    /// Whether the write happened even if nobody saw it.
    certain: bool,
}

impl Cluster {
    const EMPTY: Self = Self { written: None, first_return: u64::MAX, last_call: 0, has_reads: false, certain: false };
}

/// The verdict on the operations on one key; `None` if they are not of this kind: there are other acts than reads and
/// writes, versions are known, or a value is written twice.
pub(super) fn check(operations: &[Operation], start: State) -> Option<Verdict> {
    if start.version != State::VERSION_UNKNOWN && start != State::default() {
        return None;
    }
    let mut clusters: HashMap<u64, Cluster> = HashMap::with_capacity(operations.len());
    // What was there before was written before everything.
    let before = Cluster { written: Some(0), first_return: 0, last_call: 0, has_reads: false, certain: true };
    clusters.insert(start.value, before);
    for operation in operations {
        let (value, is_read) = match (operation.act, operation.outcome) {
            (Act::Get, Outcome::Known(Status::Ok, State::VERSION_UNKNOWN, value)) if value != 0 => (value, true),
            (Act::Get, Outcome::Known(Status::NotFound, State::VERSION_UNKNOWN, 0)) => (0, true),
            (Act::Get, Outcome::Unknown) => continue,
            (Act::Put(value), Outcome::Known(Status::Ok, State::VERSION_UNKNOWN, 0)) if value != 0 => (value, false),
            (Act::Put(value), Outcome::Happened | Outcome::Unknown) if value != 0 => (value, false),
            _ => return None,
        };
        let cluster = clusters.entry(value).or_insert(Cluster::EMPTY);
        cluster.last_call = cluster.last_call.max(operation.called);
        if is_read {
            cluster.has_reads = true;
        } else if cluster.written.replace(operation.called).is_some() {
            return None;
        }
        if operation.outcome != Outcome::Unknown {
            cluster.first_return = cluster.first_return.min(operation.returned);
            cluster.certain |= !is_read;
        }
    }
    clusters.retain(|_, cluster| cluster.certain || cluster.has_reads);
    Some(if is_linearizable(&clusters) { Verdict::Linearizable } else { Verdict::Not })
}

fn is_linearizable(clusters: &HashMap<u64, Cluster>) -> bool {
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for cluster in clusters.values() {
        // A value from nowhere, or from the future.
        if cluster.written.is_none_or(|written| cluster.first_return < written) {
            return false;
        }
        let zone = (cluster.first_return, cluster.last_call);
        if cluster.first_return < cluster.last_call { forward.push(zone) } else { backward.push(zone) }
    }
    forward.sort_unstable();
    let overlap = forward.windows(2).any(|pair| pair[1].0 < pair[0].1);
    let is_inside = |(first_return, last_call): &(u64, u64)| {
        let around = forward.partition_point(|(begin, _)| begin < last_call).checked_sub(1);
        around.is_some_and(|around| *first_return < forward[around].1)
    };
    !overlap && !backward.iter().any(is_inside)
}
