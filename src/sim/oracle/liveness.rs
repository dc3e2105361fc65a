//! What must come to pass once faults have stopped (`protocol.md` §10, invariant 9): every request ends within its bound, and
//! all live replicas become equal. If not, what is pending.

use std::collections::{BTreeMap, BTreeSet};

use super::{Rule, Violation};
use crate::topology::NodeIndex;

/// How many things of a kind a report names.
const NAMED: usize = 5;

/// One live node, as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Which.
    pub node: NodeIndex,
    /// By key the slot up to which it has executed; keys that it has not heard of may be left out.
    pub applied: BTreeMap<u64, u64>,
    /// Key and slot of entries that it knows to be decided and has not executed.
    pub decided: Vec<(u64, u64)>,
    /// Whether nothing is under way in any of its shards.
    pub is_idle: bool,
    /// How many requests its shards have not answered.
    pub waiting: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    node: NodeIndex,
    key: u64,
    asked_at: u64,
    ends_by: u64,
}

/// The oracle of invariant 9. Times are the world's, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    open: BTreeMap<u64, Open>,
    /// By the time at which it must have ended.
    deadlines: BTreeSet<(u64, u64)>,
}

impl Liveness {
    /// Nobody waits for anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request, under a number of its own, reaches a node; it must end by `ends_by`.
    pub fn asked(&mut self, request: u64, node: NodeIndex, key: u64, asked_at: u64, ends_by: u64) {
        self.ended(request);
        self.open.insert(request, Open { node, key, asked_at, ends_by });
        self.deadlines.insert((ends_by, request));
    }

    /// It is answered, or nobody waits for it any more.
    pub fn ended(&mut self, request: u64) {
        if let Some(open) = self.open.remove(&request) {
            self.deadlines.remove(&(open.ends_by, request));
        }
    }

    /// A node stops: it owes nobody anything.
    pub fn stopped(&mut self, node: NodeIndex) {
        self.open.retain(|_, open| open.node != node);
        let open = &self.open;
        self.deadlines.retain(|(_, request)| open.contains_key(request));
    }

    /// Faults stop, or a node could not run for a while: all that waits has this much longer.
    pub fn extended(&mut self, ends_by: u64) {
        for open in self.open.values_mut() {
            open.ends_by = open.ends_by.max(ends_by);
        }
        self.deadlines = self.open.iter().map(|(request, open)| (open.ends_by, *request)).collect();
    }

    /// How many requests are open.
    pub fn waiting(&self) -> usize {
        self.open.len()
    }

    /// Whether any request should have ended by now. To be asked at any time; the bounds are the caller's.
    ///
    /// # Errors
    /// If one should.
    pub fn check_requests(&self, now: u64) -> Result<(), Violation> {
        let Some((ends_by, request)) = self.deadlines.first().filter(|(ends_by, _)| *ends_by < now) else {
            return Ok(());
        };
        let open = self.open[request];
        let late = self.deadlines.range(..(now, 0)).count();
        let text = format!(
            "request {request} for key {} came to node {} {} µs ago and should have ended {} µs ago; {late} such requests",
            open.key,
            open.node.0,
            now.saturating_sub(open.asked_at),
            now - ends_by
        );
        Err(Rule::Unanswered.broken(text))
    }

    /// Whether everything had ended, and all replicas were equal, soon enough after the faults.
    ///
    /// # Errors
    /// If it was not.
    pub fn check_settled(&self, settled_us: u64, within_us: u64) -> Result<(), Violation> {
        if settled_us <= within_us {
            return Ok(());
        }
        let text =
            format!("it took {settled_us} µs after healing until replicas were equal, and {within_us} µs are enough");
        Err(Rule::NotConverged.broken(text))
    }

    /// Whether all live replicas are equal, and nothing is under way. `executed` is by key what is executed anywhere, by
    /// the dead too.
    ///
    /// # Errors
    /// If they are not: what is pending, node by node. Until they had the time for it, that is no violation.
    pub fn check_equal(executed: &BTreeMap<u64, u64>, nodes: &[Snapshot]) -> Result<(), Violation> {
        let pending: Vec<String> = nodes.iter().filter_map(|node| pending_at(executed, node)).collect();
        if pending.is_empty() { Ok(()) } else { Err(Rule::NotConverged.broken(pending.join("; "))) }
    }
}

/// What is pending at a node, if anything is.
fn pending_at(executed: &BTreeMap<u64, u64>, node: &Snapshot) -> Option<String> {
    let mut pending = Vec::new();
    let applied = |key: &u64| node.applied.get(key).copied().unwrap_or(0);
    let behind = executed.iter().filter(|(key, slot)| applied(key) < **slot);
    let behind: Vec<_> = behind.map(|(key, slot)| format!("{} of {slot} slots of key {key}", applied(key))).collect();
    if !behind.is_empty() {
        pending.push(format!("has executed {}", some_of(&behind)));
    }
    let decided: Vec<_> = node.decided.iter().map(|(key, slot)| format!("slot {slot} of key {key}")).collect();
    if !decided.is_empty() {
        pending.push(format!("knows to be decided and has not executed {}", some_of(&decided)));
    }
    if node.waiting > 0 {
        pending.push(format!("keeps {} requests waiting", node.waiting));
    }
    if !node.is_idle {
        pending.push("is not idle".to_owned());
    }
    (!pending.is_empty()).then(|| format!("node {} {}", node.node.0, pending.join(", ")))
}

fn some_of(list: &[String]) -> String {
    let named = list[..list.len().min(NAMED)].join(", ");
    if list.len() > NAMED { format!("{named} and {} more", list.len() - NAMED) } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal() -> Snapshot {
        let applied = [(1, 5), (2, 3)].into();
        Snapshot { node: NodeIndex(2), applied, decided: Vec::new(), is_idle: true, waiting: 0 }
    }

    fn difference(node: Snapshot) -> Option<String> {
        let executed = [(1, 5), (2, 3), (3, 0)].into();
        let first = Snapshot { node: NodeIndex(0), ..equal() };
        let violation = Liveness::check_equal(&executed, &[first, node]).err()?;
        assert_eq!(violation.rule, Rule::NotConverged);
        Some(violation.text)
    }

    #[test]
    fn equal_replicas_are_taken() {
        assert_eq!(difference(equal()), None);
    }

    #[test]
    fn what_is_pending_is_named() {
        let with = |change: fn(&mut Snapshot)| {
            let mut node = equal();
            change(&mut node);
            difference(node).expect("it differs")
        };
        assert_eq!(with(|node| node.applied = [(1, 5), (2, 1)].into()), "node 2 has executed 1 of 3 slots of key 2");
        assert_eq!(with(|node| node.applied = [(2, 3)].into()), "node 2 has executed 0 of 5 slots of key 1");
        let decided = with(|node| node.decided.push((1, 7)));
        assert_eq!(decided, "node 2 knows to be decided and has not executed slot 7 of key 1");
        assert_eq!(with(|node| node.is_idle = false), "node 2 is not idle");
        assert_eq!(with(|node| node.waiting = 4), "node 2 keeps 4 requests waiting");
        let much = with(|node| node.decided = (0..7).map(|slot| (9, slot)).collect());
        assert!(much.ends_with("slot 4 of key 9 and 2 more"), "{much}");
    }

    #[test]
    fn replicas_that_settle_late_are_refused() {
        let liveness = Liveness::new();
        liveness.check_settled(500, 500).unwrap();
        let violation = liveness.check_settled(501, 500).unwrap_err();
        assert_eq!(violation.rule, Rule::NotConverged);
        assert!(violation.text.starts_with("it took 501 µs after healing"), "{violation}");
    }

    #[test]
    fn requests_that_end_in_time_are_taken() {
        let mut liveness = Liveness::new();
        liveness.asked(1, NodeIndex(0), 7, 100, 200);
        liveness.asked(2, NodeIndex(1), 7, 100, 150);
        liveness.asked(3, NodeIndex(0), 7, 100, 150);
        liveness.check_requests(150).unwrap();
        liveness.ended(3);
        liveness.stopped(NodeIndex(1));
        liveness.check_requests(200).unwrap();
        liveness.extended(300);
        liveness.check_requests(300).unwrap();
        assert_eq!(liveness.waiting(), 1);
        liveness.ended(1);
        liveness.check_requests(1000).unwrap();
    }

    #[test]
    fn a_request_that_does_not_end_is_refused() {
        let mut liveness = Liveness::new();
        liveness.asked(1, NodeIndex(0), 7, 100, 200);
        liveness.asked(2, NodeIndex(1), 8, 100, 180);
        let violation = liveness.check_requests(201).unwrap_err();
        assert_eq!(violation.rule, Rule::Unanswered);
        let text = "request 2 for key 8 came to node 1 101 µs ago and should have ended 21 µs ago; 2 such requests";
        assert_eq!(violation.text, text);
        liveness.extended(300);
        assert!(liveness.check_requests(301).is_err());
    }
}
