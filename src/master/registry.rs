//! Who has registered: the master's decisions, without its sockets.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    Place,
    lines::{ANSWER_BYTES_MAX, Answer},
    ports::{Bases, Claim, assign},
};
use crate::{
    config::Template,
    topology::{Cluster, Member, NodeId},
};

/// What the configuration is made from.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// How many replicas it waits for.
    pub(super) n: usize,
    pub(super) template: Template,
    /// The tuning file that is handed out.
    pub(super) tuning_text: String,
    pub(super) bases: Bases,
    /// Addresses that no node may have: the master's own.
    pub(super) others: Vec<SocketAddr>,
}

/// The connection of a replica that waits, or that has been handed the configuration and is not up yet.
pub(super) trait Line {
    /// Whether the other side is still there.
    fn is_open(&self) -> bool;
    /// Who that is, for messages.
    fn describe(&self) -> String;
}

/// A registration, for as long as its connection lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    pub(super) id: NodeId,
    number: u64,
}

/// What became of a registration.
#[derive(Debug)]
pub(super) enum Registered {
    /// It waits for others, or the cluster has become complete by it.
    Waits(Ticket),
    /// The cluster was complete before: it may be started if nobody answers at the address.
    Known(Ticket, SocketAddr),
}

struct Candidate<L> {
    claim: Claim,
    line: L,
    number: u64,
}

#[derive(Debug)]
enum Phase {
    /// Replicas are missing.
    Gathering,
    /// Everybody has been found.
    Complete { cluster: Box<Cluster>, text: String },
    /// Everybody has been found, and they do not go together.
    Failed(String),
}

/// Who has registered.
pub(super) struct Registry<L> {
    settings: Settings,
    phase: Phase,
    /// While replicas are missing: those that wait.
    candidates: BTreeMap<NodeId, Candidate<L>>,
    /// Once the cluster is complete: those that have been handed the configuration and are not up yet.
    starting: BTreeMap<NodeId, (u64, L)>,
    next: u64,
    /// Counts what those who wait want to know of.
    pub(super) changes: u64,
}

impl<L: Line> Registry<L> {
    /// One that goes on from a cluster that was complete before, if there is one.
    pub(super) fn new(settings: Settings, complete: Option<Cluster>) -> Self {
        let phase = match complete {
            Some(cluster) => Phase::Complete { text: cluster.to_toml(), cluster: Box::new(cluster) },
            None => Phase::Gathering,
        };
        let (candidates, starting) = (BTreeMap::new(), BTreeMap::new());
        Self { settings, phase, candidates, starting, next: 0, changes: 0 }
    }

    /// What can be answered to whoever waits, if it is not to wait on.
    pub(super) fn answer(&self) -> Option<Answer> {
        match &self.phase {
            Phase::Gathering => None,
            Phase::Complete { text, .. } => {
                Some(Answer::Configuration { cluster: text.clone(), tuning: self.settings.tuning_text.clone() })
            }
            Phase::Failed(text) => Some(Answer::Refused { text: text.clone() }),
        }
    }

    /// Why the cluster cannot be made of those that registered.
    pub(super) fn failure(&self) -> Option<&str> {
        match &self.phase {
            Phase::Failed(text) => Some(text),
            Phase::Gathering | Phase::Complete { .. } => None,
        }
    }

    /// For whom is being waited, if anybody.
    pub(super) fn waiting(&self) -> String {
        match &self.phase {
            Phase::Gathering => {}
            Phase::Complete { .. } => return "the cluster is complete".to_owned(),
            Phase::Failed(text) => return text.clone(),
        }
        let (have, n) = (self.candidates.len(), self.settings.n);
        let ids: Vec<String> = self.candidates.keys().map(NodeId::to_string).collect();
        let ids = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        format!("waiting for {} of {n}: have {ids}", n.saturating_sub(have))
    }

    /// A replica registers. When the last one does, `save` is called with the cluster before anybody can be told.
    ///
    /// # Errors
    /// Why it is refused, for whoever started it.
    pub(super) fn register(
        &mut self,
        claim: Claim,
        line: L,
        save: impl FnOnce(&Settings, &str) -> Result<(), String>,
    ) -> Result<Registered, String> {
        self.next += 1;
        let ticket = Ticket { id: claim.id, number: self.next };
        match &self.phase {
            Phase::Failed(text) => Err(text.clone()),
            Phase::Complete { cluster, .. } => {
                let probe = check_known(cluster, &claim)?;
                if let Some((_, other)) = self.starting.get(&claim.id).filter(|(_, other)| other.is_open()) {
                    return Err(format!("{} is being started by {}; stop that one first", claim.id, other.describe()));
                }
                self.starting.insert(claim.id, (ticket.number, line));
                Ok(Registered::Known(ticket, probe))
            }
            Phase::Gathering => {
                self.check_new(&claim)?;
                self.candidates.insert(claim.id, Candidate { claim, line, number: ticket.number });
                self.changes += 1;
                if self.candidates.len() == self.settings.n {
                    self.complete(save);
                }
                Ok(Registered::Waits(ticket))
            }
        }
    }

    /// Whether a replica may wait with those that do. Those whose connections have ended are forgotten first.
    fn check_new(&mut self, claim: &Claim) -> Result<(), String> {
        self.candidates.retain(|_, candidate| candidate.line.is_open());
        if let Some(other) = self.candidates.get(&claim.id) {
            let other = other.line.describe();
            return Err(format!("{} is registered by {other}, which waits as well; stop that one first", claim.id));
        }
        let same = |a: Place, b: Place| a.port.is_some() && a == b;
        for other in self.candidates.values().map(|candidate| candidate.claim) {
            let pairs = [
                (Some(claim.native), Some(other.native)),
                (claim.http, other.http),
                (Some(claim.native), other.http),
                (claim.http, Some(other.native)),
            ];
            let shared = pairs.into_iter().find_map(|(a, b)| a.zip(b).filter(|(a, b)| same(*a, *b)));
            if let Some((Place { ip, port }, _)) = shared {
                let address = SocketAddr::new(ip, port.unwrap_or_default());
                return Err(format!("{address} is already claimed by {}; every node needs its own address", other.id));
            }
        }
        Ok(())
    }

    fn complete(&mut self, save: impl FnOnce(&Settings, &str) -> Result<(), String>) {
        self.phase = match self.make_cluster().and_then(|cluster| {
            let text = cluster.to_toml();
            save(&self.settings, &text)?;
            Ok((cluster, text))
        }) {
            Ok((cluster, text)) => Phase::Complete { cluster: Box::new(cluster), text },
            Err(problem) => Phase::Failed(problem),
        };
        let handed_out = std::mem::take(&mut self.candidates).into_iter();
        self.starting.extend(handed_out.map(|(id, candidate)| (id, (candidate.number, candidate.line))));
    }

    fn make_cluster(&self) -> Result<Cluster, String> {
        let Settings { template, bases, others, tuning_text, .. } = &self.settings;
        let claims: Vec<Claim> = self.candidates.values().map(|candidate| candidate.claim).collect();
        let ids: Vec<String> = claims.iter().map(|claim| claim.id.to_string()).collect();
        let placed = assign(&claims, template.shards(), *bases, others)?;
        let cluster = template.with_nodes(&placed).map_err(|error| {
            format!("the nodes that registered ({}) do not go together with the configuration: {error}", ids.join(", "))
        })?;
        // Quotes and line ends take two bytes in JSON.
        if 2 * (cluster.to_toml().len() + tuning_text.len()) > ANSWER_BYTES_MAX {
            return Err(format!(
                "{} shards of {} nodes are too many addresses for one answer",
                cluster.shards,
                claims.len()
            ));
        }
        Ok(cluster)
    }

    /// The end of a registration: its connection has ended, it is up, or it has been refused after all.
    pub(super) fn end(&mut self, ticket: Ticket) {
        if self.candidates.get(&ticket.id).is_some_and(|candidate| candidate.number == ticket.number) {
            self.candidates.remove(&ticket.id);
            self.changes += 1;
        }
        if self.starting.get(&ticket.id).is_some_and(|(number, _)| *number == ticket.number) {
            self.starting.remove(&ticket.id);
        }
    }
}

/// That a replica belongs to the cluster at the address that it says; gives where it would answer if it is alive.
fn check_known(cluster: &Cluster, claim: &Claim) -> Result<SocketAddr, String> {
    let Some(index) = cluster.index_of(claim.id) else {
        let ids: Vec<String> = cluster.nodes.iter().map(|member| member.id.to_string()).collect();
        let problem = format!("the cluster is complete and has no node {}; it has {}", claim.id, ids.join(", "));
        return Err(problem + " (a master with --fresh starts a new cluster)");
    };
    let member: &Member = cluster.member(index);
    let at = |place: Place, address: SocketAddr| {
        // An address without a port may be the default: then the replica finds out when it listens.
        place.port.is_none_or(|port| SocketAddr::new(place.ip, port) == address)
    };
    let native = member.shards[0];
    if !at(claim.native, native) {
        return Err(format!(
            "the cluster is complete and has {} at {native}; start it with --address {native}",
            claim.id
        ));
    }
    match (claim.http, member.http) {
        (Some(place), Some(http)) if !at(place, http) => {
            Err(format!("the cluster is complete and has {} serve HTTP at {http}", claim.id))
        }
        _ => Ok(native),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, path::Path, rc::Rc};

    use super::*;

    #[derive(Clone)]
    struct FakeLine(Rc<Cell<bool>>);

    impl Line for FakeLine {
        fn is_open(&self) -> bool {
            self.0.get()
        }

        fn describe(&self) -> String {
            "somebody".to_owned()
        }
    }

    fn line() -> FakeLine {
        FakeLine(Rc::new(Cell::new(true)))
    }

    fn registry(n: usize, template: &str) -> Registry<FakeLine> {
        let template = Template::parse(template.to_owned(), Path::new("t.toml")).unwrap();
        let bases = Bases { native: 1736, http: None };
        Registry::new(Settings { n, template, tuning_text: "name = \"x\"".to_owned(), bases, others: Vec::new() }, None)
    }

    fn claim(id: &str, address: &str) -> Claim {
        Claim { id: id.parse().unwrap(), native: address.parse().unwrap(), http: None }
    }

    fn register(registry: &mut Registry<FakeLine>, id: &str, address: &str) -> (Result<Registered, String>, FakeLine) {
        let line = line();
        (registry.register(claim(id, address), line.clone(), |_, _| Ok(())), line)
    }

    fn cluster(registry: &Registry<FakeLine>) -> String {
        match registry.answer() {
            Some(Answer::Configuration { cluster, .. }) => cluster,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_waits_for_all_and_says_for_whom() {
        let mut registry = registry(3, "name = \"t\"");
        assert_eq!(registry.waiting(), "waiting for 3 of 3: have none");
        register(&mut registry, "2.1", "10.0.0.1").0.unwrap();
        register(&mut registry, "1.2", "10.0.0.1").0.unwrap();
        assert_eq!(registry.waiting(), "waiting for 1 of 3: have 1.2, 2.1");
        assert_eq!((registry.answer(), registry.changes), (None, 2));
        let mut saved = String::new();
        let save = |_: &Settings, text: &str| {
            saved = text.to_owned();
            Ok(())
        };
        registry.register(claim("1.1", "10.0.0.1"), line(), save).unwrap();
        let text = cluster(&registry);
        assert_eq!((saved, registry.waiting().as_str()), (text.clone(), "the cluster is complete"));
        let ports = ["1.1", "1.2", "2.1"].map(|id| {
            let cluster = Cluster::parse(&text, Path::new("c.toml")).unwrap();
            cluster.member(cluster.index_of(id.parse().unwrap()).unwrap()).shards[0].port()
        });
        assert_eq!(ports, [1736, 1737, 1738], "by id, not by who came first");
    }

    #[test]
    fn who_is_gone_makes_room_and_who_is_there_does_not() {
        let mut registry = registry(2, "name = \"t\"");
        let (first, open) = register(&mut registry, "1.1", "10.0.0.1");
        let first = first.unwrap();
        let refused = register(&mut registry, "1.1", "10.0.0.2").0.unwrap_err();
        assert_eq!(refused, "1.1 is registered by somebody, which waits as well; stop that one first");
        open.0.set(false);
        register(&mut registry, "1.1", "10.0.0.2").0.unwrap();
        // The news that the first has gone comes late.
        let Registered::Waits(ticket) = first else { panic!("{first:?}") };
        registry.end(ticket);
        assert_eq!(registry.waiting(), "waiting for 1 of 2: have 1.1");
    }

    #[test]
    fn two_cannot_claim_one_address() {
        let mut registry = registry(3, "name = \"t\"");
        register(&mut registry, "1.1", "10.0.0.1:7000").0.unwrap();
        let refused = register(&mut registry, "1.2", "10.0.0.1:7000").0.unwrap_err();
        assert_eq!(refused, "10.0.0.1:7000 is already claimed by 1.1; every node needs its own address");
        let http = Claim { http: Some("10.0.0.1:7000".parse().unwrap()), ..claim("1.2", "10.0.0.1") };
        assert!(registry.register(http, line(), |_, _| Ok(())).is_err());
        register(&mut registry, "1.2", "10.0.0.1").0.unwrap();
        register(&mut registry, "1.3", "10.0.0.1").0.unwrap();
    }

    #[test]
    fn a_replica_that_starts_again_gets_the_same_once_the_old_one_is_gone() {
        let mut registry = registry(1, "name = \"t\"");
        let (first, open) = register(&mut registry, "1.1", "10.0.0.1");
        let text = cluster(&registry);
        let refused = register(&mut registry, "1.1", "10.0.0.1").0.unwrap_err();
        assert_eq!(refused, "1.1 is being started by somebody; stop that one first");
        open.0.set(false);
        let (again, _) = register(&mut registry, "1.1", "10.0.0.1");
        let Registered::Known(ticket, probe) = again.unwrap() else { panic!("it is complete") };
        assert_eq!(probe, "10.0.0.1:1736".parse().unwrap(), "who is up answers there");
        let Registered::Waits(old) = first.unwrap() else { panic!("it was not") };
        registry.end(old);
        assert!(register(&mut registry, "1.1", "10.0.0.1").0.is_err(), "only its own end counts");
        registry.end(ticket);
        register(&mut registry, "1.1", "10.0.0.1").0.unwrap();
        assert_eq!(cluster(&registry), text);
    }

    #[test]
    fn a_complete_cluster_takes_no_stranger_and_no_other_address() {
        let mut registry = registry(1, "name = \"t\"");
        let (_, open) = register(&mut registry, "1.1", "10.0.0.1");
        open.0.set(false);
        for (id, address, message) in [
            ("1.2", "10.0.0.1", "has no node 1.2; it has 1.1"),
            ("1.1", "10.0.0.1:9", "has 1.1 at 10.0.0.1:1736; start it with --address 10.0.0.1:1736"),
        ] {
            let refused = register(&mut registry, id, address).0.unwrap_err();
            assert!(refused.contains(message), "{refused}");
        }
        register(&mut registry, "1.1", "10.0.0.1:1736").0.unwrap();
    }

    #[test]
    fn nodes_that_do_not_go_together_are_told_so() {
        let mut registry = registry(2, "name = \"t\"\n[quorum]\nnode_failures = 1");
        register(&mut registry, "1.1", "10.0.0.1").0.unwrap();
        register(&mut registry, "1.2", "10.0.0.1").0.unwrap();
        assert!(matches!(registry.answer(), Some(Answer::Configuration { .. })));
        let mut registry = self::registry(2, "name = \"t\"\n[quorum]\nnode_failures = 1");
        register(&mut registry, "1.1", "10.0.0.1").0.unwrap();
        register(&mut registry, "2.1", "10.0.0.1").0.unwrap();
        let failure = registry.failure().unwrap().to_owned();
        assert!(failure.contains("(1.1, 2.1) do not go together") && failure.contains("t.toml: quorum.node_failures"));
        assert_eq!(registry.answer(), Some(Answer::Refused { text: failure.clone() }));
        assert_eq!(register(&mut registry, "3.1", "10.0.0.1").0.unwrap_err(), failure);
    }

    #[test]
    fn what_cannot_be_saved_is_not_handed_out() {
        let mut registry = registry(1, "name = \"t\"");
        registry.register(claim("1.1", "10.0.0.1"), line(), |_, _| Err("disk full".to_owned())).unwrap();
        assert_eq!(registry.answer(), Some(Answer::Refused { text: "disk full".to_owned() }));
    }
}
