//! The configuration of a cluster: its members and zones, its quorum system, and who owns what.

use std::{fmt::Write as _, net::SocketAddr};

use xxhash_rust::xxh3::xxh3_64;

use super::{HistoryBounds, HttpSettings, NodeId, NodeIndex, WanMatrix, ZoneIndex, wan::Thousandths};

/// A cluster as all of its members and clients know it.
///
/// Made by [`Cluster::load`] or by [`Cluster::local`], which check it. Code that receives one relies on: at least one node;
/// `nodes` sorted by id and `zones` by number, each of them listed in the other; every member with `shards` addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// What the operator calls it; a node refuses peers and clients of another name.
    pub name: String,
    /// How many ranges the key space is cut into, from 1: the same on every node, one core each.
    pub shards: u16,
    /// The members, sorted by id. A [`NodeIndex`] is a position here.
    pub nodes: Vec<Member>,
    /// The zones, sorted by number. A [`ZoneIndex`] is a position here.
    pub zones: Vec<Zone>,
    /// Which sets of nodes decide.
    pub quorum: QuorumSpec,
    /// Who owns an object before anybody has taken it.
    pub initial_owner: InitialOwner,
    /// When an owner hands an object to another zone.
    pub steal: StealPolicy,
    /// Distances between zones: emulated as delays on links, and known to the `cost` policy from the start.
    pub wan: Option<WanMatrix>,
    /// How replicas serve HTTP.
    pub http: HttpSettings,
    /// Whether faults may be injected over HTTP.
    pub faults: bool,
    /// What is kept of earlier values; `None` keeps nothing.
    pub history: Option<HistoryBounds>,
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name.
    pub id: NodeId,
    /// The zone that `id` names, as a position in [`Cluster::zones`].
    pub zone: ZoneIndex,
    /// Where each of its shards listens, by [`super::ShardId`].
    pub shards: Vec<SocketAddr>,
    /// Where it serves HTTP, if it does.
    pub http: Option<SocketAddr>,
}

/// A unit of failure: a region, a data centre, a rack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zone {
    /// Its number, from 1, as in the ids of its nodes.
    pub number: u8,
    /// What people call it; `zone-N` if nobody named it. No two zones share one.
    pub name: String,
    /// Its nodes, ascending and contiguous; at least one.
    pub nodes: Vec<NodeIndex>,
}

/// Which sets of nodes are quorums of phase 1 and phase 2 (`protocol.md` §2), as configured.
///
/// [`crate::quorum::Quorums`] checks it against the cluster and answers questions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum QuorumSpec {
    /// WPaxos: phase 1 needs `node_failures + 1` nodes in each of all but `zone_failures` zones, phase 2 all but
    /// `node_failures` nodes in each of `zone_failures + 1` zones.
    Floor {
        /// f_n: nodes that may fail in a zone, below the size of every zone.
        node_failures: u8,
        /// f_z: zones that may fail, below the number of zones.
        zone_failures: u8,
    },
    /// The classic grid: one node of every zone for phase 1 (a row), all nodes of any one zone for phase 2 (a column).
    /// Short for `Floor` without failures.
    Grid,
    /// More than half of all nodes, whatever their zones, for both phases.
    Majority,
    /// Flexible Paxos: any `q1` nodes for phase 1, any `q2` for phase 2; together more than there are nodes.
    Flexible {
        /// Nodes of phase 1.
        q1: u8,
        /// Nodes of phase 2.
        q2: u8,
    },
    /// A majority of the nodes of any one zone for phase 2; for phase 1, in every zone, as many as meet each majority.
    ZoneMajority,
    /// All nodes for both phases.
    All,
    /// Any `n` nodes for both phases, more than half.
    Count {
        /// Nodes of either phase.
        n: u8,
    },
    /// Three quarters of all nodes, rounded up, for both phases.
    Fast,
}

impl QuorumSpec {
    /// What a cluster with zones of these sizes gets if nothing is configured: `Floor` with no zone failure, and one
    /// node failure where every zone has at least three nodes.
    pub fn default_for(zone_sizes: impl IntoIterator<Item = usize>) -> Self {
        let node_failures = u8::from(zone_sizes.into_iter().all(|nodes| nodes >= 3));
        Self::Floor { node_failures, zone_failures: 0 }
    }
}

/// Who owns an object before anybody has taken it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum InitialOwner {
    /// Nobody: the first node that is asked runs phase 1, as in the paper.
    #[default]
    FirstTouch,
    /// A node that follows from the key, at a ballot that all nodes hold as promised from the start.
    Home(Home),
}

/// How an object's home follows from its key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Home {
    /// Spread evenly over all nodes by the key's token.
    Hash,
    /// One node for everything.
    Node(NodeId),
}

/// When the owner of an object hands it to another zone. Accesses are counted per zone (`protocol.md` §6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StealPolicy {
    /// Never.
    None,
    /// On the first request from another zone.
    Immediate,
    /// After this many requests in a row from one other zone.
    Consecutive {
        /// Requests in a row, from 1.
        hits: u32,
    },
    /// At the end of an interval in which another zone made more than half of the requests.
    Majority {
        /// Length of an interval in microseconds.
        interval_us: u64,
    },
    /// When the moving average of another zone's share of the requests exceeds one half.
    Ema {
        /// Weight of the newest interval in thousandths, from 1 to 1000.
        alpha_permille: u32,
        /// Length of an interval in microseconds.
        interval_us: u64,
    },
    /// When the round-trip cost, weighted by the zones that use the object, would fall enough.
    Cost {
        /// Moves if the new cost is below this many thousandths of today's, from 1 to 999.
        gain_permille: u32,
        /// How far back accesses count, in microseconds.
        window_us: u64,
        /// How long an object that was moved stays, in microseconds.
        hold_us: u64,
    },
}

impl StealPolicy {
    /// `Consecutive`: the requests in a row if no number is given.
    pub const HITS: u32 = 3;
    /// `Majority` and `Ema`: the interval if none is given, in microseconds.
    pub const INTERVAL_US: u64 = 1_000_000;
    /// `Ema`: the weight of the newest interval if none is given, in thousandths.
    pub const ALPHA_PERMILLE: u32 = 300;
    /// `Cost`: the threshold if none is given, in thousandths of today's cost.
    pub const GAIN_PERMILLE: u32 = 800;
    /// `Cost`: the window if none is given, in microseconds.
    pub const WINDOW_US: u64 = 1_000_000;
    /// `Cost`: the hold time if none is given, in microseconds.
    pub const HOLD_US: u64 = 5_000_000;
}

impl Default for StealPolicy {
    /// `Consecutive` with [`StealPolicy::HITS`].
    fn default() -> Self {
        Self::Consecutive { hits: Self::HITS }
    }
}

impl Cluster {
    /// A cluster from the addresses of its nodes: `addresses[zone][node][shard]`, ids counted from 1.1, with the
    /// default quorums, owner and policy. Change its fields as needed. For clusters inside one process.
    ///
    /// # Panics
    /// If there is no zone, a zone without nodes, a node without shards, nodes with different numbers of them, or more
    /// than [`super::NodeSet::CAPACITY`] nodes.
    pub fn local(name: &str, addresses: Vec<Vec<Vec<SocketAddr>>>) -> Self {
        let sizes: Vec<usize> = addresses.iter().map(Vec::len).collect();
        let total = sizes.iter().sum::<usize>();
        assert!(total <= super::NodeSet::CAPACITY, "{total} nodes are more than {}", super::NodeSet::CAPACITY);
        assert!(!sizes.is_empty() && !sizes.contains(&0), "every zone needs a node: sizes {sizes:?}");
        let shards = addresses[0][0].len();
        assert!((1..=usize::from(u16::MAX)).contains(&shards), "{shards} shards");

        let (mut nodes, mut zones) = (Vec::with_capacity(total), Vec::with_capacity(sizes.len()));
        for (zone, members) in addresses.into_iter().enumerate() {
            let number = zone as u8 + 1;
            let first = nodes.len();
            for (node, listens) in members.into_iter().enumerate() {
                assert_eq!(listens.len(), shards, "every node has the same number of shards");
                let id = NodeId::new(number, node as u8 + 1);
                nodes.push(Member { id, zone: ZoneIndex(zone as u8), shards: listens, http: None });
            }
            let members = (first..nodes.len()).map(|node| NodeIndex(node as u8)).collect();
            zones.push(Zone { number, name: Zone::default_name(number), nodes: members });
        }
        Self {
            name: name.to_owned(),
            shards: shards as u16,
            nodes,
            zones,
            quorum: QuorumSpec::default_for(sizes),
            initial_owner: InitialOwner::default(),
            steal: StealPolicy::default(),
            wan: None,
            http: HttpSettings::default(),
            faults: false,
            history: None,
        }
    }

    /// The position of the member with this id.
    pub fn index_of(&self, id: NodeId) -> Option<NodeIndex> {
        self.nodes.binary_search_by_key(&id, |member| member.id).ok().map(|index| NodeIndex(index as u8))
    }

    /// The member at this position.
    ///
    /// # Panics
    /// If there is none.
    pub fn member(&self, node: NodeIndex) -> &Member {
        &self.nodes[node.index()]
    }

    /// The cluster as a cluster file: complete, in one fixed form, distances written out.
    pub fn to_toml(&self) -> String {
        let mut text = self.settings_toml();
        for member in &self.nodes {
            let addresses: Vec<String> = member.shards.iter().map(|address| format!("\"{address}\"")).collect();
            let _ = writeln!(text, "\n[[node]]\nid = \"{}\"\naddresses = [{}]", member.id, addresses.join(", "));
            if let Some(http) = member.http {
                let _ = writeln!(text, "http = \"{http}\"");
            }
        }
        text
    }

    /// A number that tells configurations apart: peers compare it when they meet, so that two nodes with different
    /// files refuse each other. Addresses do not count: a node may move, or be seen at another address from elsewhere,
    /// and the hello names it anyway.
    pub fn fingerprint(&self) -> u64 {
        let mut text = self.settings_toml();
        for member in &self.nodes {
            let _ = writeln!(text, "{}", member.id);
        }
        xxh3_64(text.as_bytes())
    }

    /// Everything but the nodes.
    fn settings_toml(&self) -> String {
        let mut text = format!("name = {}\nshards = {}\n", quoted(&self.name), self.shards);
        self.quorum.write_toml(&mut text);
        self.initial_owner.write_toml(&mut text);
        self.steal.write_toml(&mut text);
        if let Some(wan) = &self.wan {
            let _ = writeln!(text, "\n[wan]\nrtt_ms = {}", wan.to_toml_rows());
        }
        self.http.write_toml(&mut text);
        let _ = writeln!(text, "\n[faults]\nallowed = {}", self.faults);
        HistoryBounds::write_toml(self.history, &mut text);
        for zone in &self.zones {
            let _ = writeln!(text, "\n[[zone]]\nnumber = {}\nname = {}", zone.number, quoted(&zone.name));
        }
        text
    }
}

impl Zone {
    /// The name of a zone that nobody named.
    pub fn default_name(number: u8) -> String {
        format!("zone-{number}")
    }
}

impl QuorumSpec {
    /// The name of the system in the cluster file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floor { .. } => "floor",
            Self::Grid => "grid",
            Self::Majority => "majority",
            Self::Flexible { .. } => "flexible",
            Self::ZoneMajority => "zone-majority",
            Self::All => "all",
            Self::Count { .. } => "count",
            Self::Fast => "fast",
        }
    }

    fn write_toml(self, text: &mut String) {
        let _ = writeln!(text, "\n[quorum]\nsystem = \"{}\"", self.name());
        let _ = match self {
            Self::Floor { node_failures, zone_failures } => {
                writeln!(text, "node_failures = {node_failures}\nzone_failures = {zone_failures}")
            }
            Self::Flexible { q1, q2 } => writeln!(text, "q1 = {q1}\nq2 = {q2}"),
            Self::Count { n } => writeln!(text, "n = {n}"),
            Self::Grid | Self::Majority | Self::ZoneMajority | Self::All | Self::Fast => Ok(()),
        };
    }
}

impl InitialOwner {
    fn write_toml(self, text: &mut String) {
        let _ = match self {
            Self::FirstTouch => writeln!(text, "\n[owner]\ninitial = \"first-touch\""),
            Self::Home(Home::Hash) => writeln!(text, "\n[owner]\ninitial = \"home\"\nhome = \"hash\""),
            Self::Home(Home::Node(node)) => writeln!(text, "\n[owner]\ninitial = \"home\"\nhome = \"{node}\""),
        };
    }
}

impl StealPolicy {
    /// The name of the policy in the cluster file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Immediate => "immediate",
            Self::Consecutive { .. } => "consecutive",
            Self::Majority { .. } => "majority",
            Self::Ema { .. } => "ema",
            Self::Cost { .. } => "cost",
        }
    }

    pub(crate) fn write_toml(self, text: &mut String) {
        let _ = writeln!(text, "\n[steal]\npolicy = \"{}\"", self.name());
        let _ = match self {
            Self::None | Self::Immediate => Ok(()),
            Self::Consecutive { hits } => writeln!(text, "hits = {hits}"),
            Self::Majority { interval_us } => writeln!(text, "interval_ms = {}", Thousandths(interval_us)),
            Self::Ema { alpha_permille, interval_us } => {
                let alpha = Thousandths(alpha_permille.into());
                writeln!(text, "interval_ms = {}\nalpha = {alpha}", Thousandths(interval_us))
            }
            Self::Cost { gain_permille, window_us, hold_us } => {
                let gain = Thousandths(gain_permille.into());
                let (window, hold) = (Thousandths(window_us), Thousandths(hold_us));
                writeln!(text, "gain = {gain}\nwindow_ms = {window}\nhold_ms = {hold}")
            }
        };
    }
}

/// A string as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zones of these sizes, with two shards per node.
    fn cluster(sizes: &[usize]) -> Cluster {
        let address = |shard: u16| ([10, 0, 0, 1], 7000 + shard).into();
        Cluster::local("test", sizes.iter().map(|nodes| vec![vec![address(0), address(1)]; *nodes]).collect())
    }

    #[test]
    fn a_local_cluster_is_well_formed() {
        let cluster = cluster(&[3, 1]);
        assert_eq!(cluster.shards, 2);
        let ids: Vec<String> = cluster.nodes.iter().map(|member| member.id.to_string()).collect();
        assert_eq!(ids, ["1.1", "1.2", "1.3", "2.1"]);
        assert_eq!(cluster.zones[1].nodes, [NodeIndex(3)]);
        assert_eq!((cluster.zones[1].number, cluster.zones[1].name.as_str()), (2, "zone-2"));
        assert_eq!(cluster.member(NodeIndex(3)).zone, ZoneIndex(1));
        assert_eq!(cluster.index_of(NodeId::new(1, 3)), Some(NodeIndex(2)));
        assert_eq!(cluster.index_of(NodeId::new(2, 2)), None);
        assert_eq!(
            (cluster.initial_owner, cluster.steal),
            (InitialOwner::FirstTouch, StealPolicy::Consecutive { hits: 3 })
        );
    }

    #[test]
    fn the_default_tolerates_a_node_where_zones_are_large_enough() {
        let floor = |node_failures| QuorumSpec::Floor { node_failures, zone_failures: 0 };
        for (sizes, spec) in [(vec![3, 3], floor(1)), (vec![5], floor(1)), (vec![3, 2], floor(0)), (vec![1], floor(0))]
        {
            assert_eq!(cluster(&sizes).quorum, spec, "{sizes:?}");
        }
    }

    #[test]
    #[should_panic(expected = "every zone needs a node")]
    fn a_zone_needs_a_node() {
        cluster(&[3, 0]);
    }

    #[test]
    #[should_panic(expected = "129 nodes are more than 128")]
    fn a_cluster_has_a_most() {
        cluster(&[100, 29]);
    }

    #[test]
    fn fingerprints_differ_with_everything_but_addresses() {
        let base = cluster(&[3, 3]);
        let mut moved = base.clone();
        moved.nodes[2].shards[0].set_port(1);
        moved.nodes[1].http = Some(([10, 0, 0, 1], 80).into());
        assert_eq!(moved.fingerprint(), base.fingerprint());

        let changed = [
            Cluster { name: "other".to_owned(), ..base.clone() },
            Cluster { shards: 3, ..base.clone() },
            Cluster { quorum: QuorumSpec::Majority, ..base.clone() },
            Cluster { initial_owner: InitialOwner::Home(Home::Hash), ..base.clone() },
            Cluster { initial_owner: InitialOwner::Home(Home::Node(NodeId::new(1, 1))), ..base.clone() },
            Cluster { steal: StealPolicy::Consecutive { hits: 4 }, ..base.clone() },
            Cluster { wan: Some(WanMatrix::uniform(2, 1000)), ..base.clone() },
            Cluster { faults: true, ..base.clone() },
            Cluster { history: Some(HistoryBounds::default()), ..base.clone() },
            Cluster { http: HttpSettings { body_bytes_max: 1, ..base.http }, ..base.clone() },
            cluster(&[3, 4]),
            cluster(&[3, 3, 1]),
            base.clone(),
        ];
        let mut seen: Vec<u64> = changed.iter().map(Cluster::fingerprint).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), changed.len());
    }
}
