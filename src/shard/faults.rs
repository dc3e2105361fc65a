//! Faults at a node's links to its peers, injected by people over HTTP (`[faults] allowed`), and how a shard acts them out.
//!
//! The protocol relies on what a link is: frames arrive in order, whole and once, **or the link goes down** and both sides
//! start over from what they know. No fault may break that, or it would find faults that no network has:
//! - *Cut* (crash, drop, partition): from the moment on at which a link is cut one way, nothing more passes that way, not even
//!   the rest of a frame that was half sent; the peer sees silence, as in a real partition. While a link is cut either way no
//!   new connection becomes a link. When the cut ends the connection is closed, so that both sides start over.
//! - *Slow*: frames are held back, in order; a frame never overtakes one that was held longer.
//! - *Flaky*: a stream that has lost a frame is of no use any more, so with the frame the connection is lost, and is dialled
//!   again. A real network loses packets, and TCP sends them again: that is *slow*.
//!
//! Faults are independent of each other, and each ends in its own time: a link is cut while any fault cuts it, and is as slow
//! and as flaky as the worst of them. Clients and HTTP are not affected.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    api::http::{Cut, FaultOrder, Injection},
    protocol::Micros,
    topology::{Cluster, NodeIndex},
};

/// Faults at a time: more are refused.
const FAULTS_MAX: usize = 1000;

/// The faults of a node, which its shards look up when they have changed.
#[derive(Debug, Default)]
pub(super) struct Faults {
    active: Mutex<Vec<Fault>>,
    /// Counts changes.
    edition: AtomicU64,
}

/// An injected fault.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) what: Injection,
    /// When it ends; when it is healed if `None`.
    pub(super) until: Option<Micros>,
}

/// What the faults make of the link to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct LinkFault {
    /// Nothing is taken from it.
    pub(super) deaf: bool,
    /// Nothing goes to it.
    pub(super) mute: bool,
    /// What goes to it is held back so long, in microseconds.
    pub(super) slow_us: u64,
    /// Each frame for it is lost with this probability.
    pub(super) flaky: f64,
}

impl LinkFault {
    /// Whether the link is cut one way or both.
    pub(super) const fn is_cut(self) -> bool {
        self.deaf || self.mute
    }
}

impl Faults {
    /// Injects one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn inject(
        &self,
        now: Micros,
        own: NodeIndex,
        cluster: &Cluster,
        order: FaultOrder,
    ) -> Result<(), String> {
        for peer in order.what.peers() {
            match cluster.index_of(*peer) {
                None => return Err(format!("the cluster '{}' has no node {peer}", cluster.name)),
                Some(index) if index == own => return Err(format!("{peer} is this node; name its peers")),
                Some(_) => {}
            }
        }
        let mut active = self.active.lock().expect("nothing panics under this lock");
        active.retain(|fault| fault.until.is_none_or(|until| until > now));
        if active.len() >= FAULTS_MAX {
            return Err(format!("{FAULTS_MAX} faults are active already; /heal ends them"));
        }
        active.push(Fault { what: order.what, until: order.for_us.map(|us| now.plus(us)) });
        self.edition.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Ends all of them.
    pub(super) fn heal(&self) {
        self.active.lock().expect("nothing panics under this lock").clear();
        self.edition.fetch_add(1, Ordering::Release);
    }

    /// Those that have not ended.
    pub(super) fn active(&self, now: Micros) -> Vec<Fault> {
        let active = self.active.lock().expect("nothing panics under this lock");
        active.iter().filter(|fault| fault.until.is_none_or(|until| until > now)).cloned().collect()
    }
}

/// What a shard knows of its node's faults.
#[derive(Debug)]
pub(super) struct Known {
    edition: u64,
    /// When the next fault ends.
    next_end: Option<Micros>,
    links: Vec<LinkFault>,
}

impl Known {
    pub(super) fn new(nodes: usize) -> Self {
        Self { edition: 0, next_end: None, links: vec![LinkFault::default(); nodes] }
    }

    /// Looks whether anything has changed: what each link was before, if so.
    pub(super) fn refresh(&mut self, now: Micros, faults: &Faults, cluster: &Cluster) -> Option<Vec<LinkFault>> {
        let edition = faults.edition.load(Ordering::Acquire);
        if edition == self.edition && self.next_end.is_none_or(|end| end > now) {
            return None;
        }
        let active = faults.active(now);
        self.edition = edition;
        self.next_end = active.iter().filter_map(|fault| fault.until).min();
        let links = (0..self.links.len()).map(|peer| link_fault(&active, cluster, NodeIndex(peer as u8))).collect();
        Some(std::mem::replace(&mut self.links, links))
    }

    /// What is wrong with the link to `peer`.
    pub(super) fn link(&self, peer: NodeIndex) -> LinkFault {
        self.links[peer.index()]
    }

    /// When the next fault ends.
    pub(super) const fn next_end(&self) -> Option<Micros> {
        self.next_end
    }
}

fn link_fault(active: &[Fault], cluster: &Cluster, peer: NodeIndex) -> LinkFault {
    let id = cluster.member(peer).id;
    let mut link = LinkFault::default();
    for fault in active {
        match &fault.what {
            Injection::Crash => (link.deaf, link.mute) = (true, true),
            Injection::Drop(to) if *to == id => link.mute = true,
            Injection::Slow(to, us) if *to == id => link.slow_us = link.slow_us.max(*us),
            Injection::Flaky(to, p) if *to == id => link.flaky = link.flaky.max(*p),
            Injection::Partition(from, cut) if from.contains(&id) => {
                link.deaf |= *cut != Cut::Out;
                link.mute |= *cut != Cut::In;
            }
            Injection::Drop(_) | Injection::Slow(..) | Injection::Flaky(..) | Injection::Partition(..) => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::NodeId;

    fn cluster() -> Cluster {
        let address = |port| vec![std::net::SocketAddr::from(([127, 0, 0, 1], port))];
        Cluster::local("test", vec![vec![address(1), address(2)], vec![address(3)]])
    }

    fn order(what: Injection, for_us: Option<u64>) -> FaultOrder {
        FaultOrder { what, for_us }
    }

    const OWN: NodeIndex = NodeIndex(0);
    const PEER: NodeIndex = NodeIndex(1);
    const OTHER: NodeIndex = NodeIndex(2);

    #[test]
    fn faults_overlap_and_each_ends_in_its_own_time() {
        let (cluster, faults) = (cluster(), Faults::default());
        let peer = cluster.member(PEER).id;
        let mut known = Known::new(3);
        let inject = |now, what, for_us| faults.inject(Micros(now), OWN, &cluster, order(what, for_us)).unwrap();
        assert_eq!(known.refresh(Micros(0), &faults, &cluster), None, "nothing has changed");
        inject(0, Injection::Drop(peer), Some(100));
        inject(0, Injection::Drop(peer), Some(300));
        inject(0, Injection::Slow(peer, 5), Some(50));
        inject(0, Injection::Slow(peer, 9), None);
        assert!(known.refresh(Micros(0), &faults, &cluster).is_some());
        let link = LinkFault { mute: true, slow_us: 9, ..LinkFault::default() };
        assert_eq!(
            (known.link(PEER), known.link(OTHER), known.next_end()),
            (link, LinkFault::default(), Some(Micros(50)))
        );
        known.refresh(Micros(100), &faults, &cluster);
        assert!(known.link(PEER).mute, "the longer one goes on");
        assert_eq!(known.next_end(), Some(Micros(300)));
        let before = known.refresh(Micros(300), &faults, &cluster).unwrap();
        assert!(before[PEER.index()].mute && !known.link(PEER).mute && known.link(PEER).slow_us == 9);
        faults.heal();
        known.refresh(Micros(301), &faults, &cluster);
        assert_eq!((known.link(PEER), known.next_end()), (LinkFault::default(), None));
    }

    #[test]
    fn cuts_by_way() {
        let (cluster, faults) = (cluster(), Faults::default());
        let mut known = Known::new(3);
        let mut after = |what| {
            faults.heal();
            faults.inject(Micros(0), OWN, &cluster, order(what, None)).unwrap();
            known.refresh(Micros(0), &faults, &cluster);
            [PEER, OTHER].map(|node| (known.link(node).deaf, known.link(node).mute))
        };
        let other = vec![NodeId::new(2, 1)];
        assert_eq!(after(Injection::Crash), [(true, true); 2]);
        assert_eq!(after(Injection::Partition(other.clone(), Cut::Both)), [(false, false), (true, true)]);
        assert_eq!(after(Injection::Partition(other.clone(), Cut::In)), [(false, false), (true, false)]);
        assert_eq!(after(Injection::Partition(other, Cut::Out)), [(false, false), (false, true)]);
    }

    #[test]
    fn strangers_and_oneself_are_refused_and_so_are_too_many() {
        let (cluster, faults) = (cluster(), Faults::default());
        let inject = |id: NodeId| faults.inject(Micros(0), OWN, &cluster, order(Injection::Drop(id), None));
        assert!(inject(NodeId::new(9, 1)).unwrap_err().contains("no node 9.1"));
        assert!(inject(NodeId::new(1, 1)).unwrap_err().contains("is this node"));
        for _ in 0..FAULTS_MAX {
            inject(NodeId::new(1, 2)).unwrap();
        }
        assert!(inject(NodeId::new(1, 2)).unwrap_err().contains("/heal"));
    }
}
