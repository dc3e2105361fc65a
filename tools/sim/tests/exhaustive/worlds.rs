//! The small worlds, and how many states each has: (a) steals, (b) lost connections, (c) an owner that dies, (d) two
//! objects, (e) duels of candidates, (f) reads, (g) what only a planted bug makes anything of.

use wpaxos::{protocol::Protocol, topology::QuorumSpec};

use crate::{
    setup::{Act, Ask, Setup, Sight},
    world::{Asked, Node, World},
};

/// Phase 1 needs a node of every zone, phase 2 all nodes of any one: of two zones with one node each, the owner alone.
const EVERY_ZONE: QuorumSpec = QuorumSpec::Floor { node_failures: 0, zone_failures: 0 };
/// Phase 1 needs a node of all zones but one, phase 2 all nodes of two zones: of two zones with one node each, the
/// candidate alone and then both.
const BUT_ONE_ZONE: QuorumSpec = QuorumSpec::Floor { node_failures: 0, zone_failures: 1 };

const fn put(node: usize, key: u8) -> Ask {
    Ask { node, key, act: Act::Put, after: None }
}

const fn get(node: usize, key: u8, after: usize) -> Ask {
    Ask { node, key, act: Act::Get, after: Some(after) }
}

const fn log_get(node: usize, key: u8, after: usize) -> Ask {
    Ask { node, key, act: Act::LogGet, after: Some(after) }
}

/// Two zones with a node each, which never stops.
fn pair(quorum: QuorumSpec, asks: &[Ask]) -> Setup {
    Setup::new(&[1, 1], quorum, asks).with(&[ALL_ANSWERED])
}

/// Three zones with a node each.
fn trio(asks: &[Ask]) -> Setup {
    Setup::new(&[1, 1, 1], QuorumSpec::Majority, asks).with(&[ALL_ANSWERED])
}

/// Two zones that write the same object, which moves to whoever asks.
const STEALS: [Ask; 4] = [put(0, 0), put(1, 0), put(0, 0), put(1, 0)];
/// The same with less to write.
const TWO_WRITERS: [Ask; 2] = [put(0, 0), put(1, 0)];
/// Two objects, of which the second node wants both.
const TWO_OBJECTS: [Ask; 3] = [put(0, 0), put(1, 1), put(1, 0)];
/// A read of what the reader has seen written, and one of what the other zone has.
const READS: [Ask; 4] = [put(0, 0), put(1, 0), get(0, 0, 0), get(0, 0, 1)];

/// A world and its name.
type NamedWorld = (&'static str, fn() -> Setup);

macro_rules! worlds {
    ($($(#[$attribute:meta])* $name:ident: $states:literal, $setup:expr;)*) => {
        $(
            #[test]
            $(#[$attribute])*
            fn $name() {
                crate::check(stringify!($name), $states, $setup);
            }
        )*

        /// All of them, by name.
        pub const ALL: &[NamedWorld] = &[$((stringify!($name), || $setup),)*];
    };
}

/// Those that are too large to count: planted bugs are looked for in them.
pub const UNCOUNTED: &[NamedWorld] = &[
    ("e_three_writes_of_three_nodes", || trio(&STEALS[..3])),
    ("h_the_second_owner_of_three_writes_dies", || Setup { mortal: vec![1], ticks: 1, ..trio(&STEALS[..3]) }),
];

/// The world with this name.
pub fn named(name: &str) -> Setup {
    let (_, setup) = ALL
        .iter()
        .chain(UNCOUNTED)
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("there is no world {name}"));
    setup()
}

// Each with the number of states that can be reached. Another number is another behaviour: look why before it is written
// here.
worlds! {
    a_steal_where_owners_commit_alone: 33_757,
        pair(EVERY_ZONE, &STEALS).with(&[STOLEN, REFUSED]);
    a_steal_where_both_zones_accept: 76_073,
        pair(BUT_ONE_ZONE, &STEALS).with(&[STOLEN, WITHDRAWN, TAKEN_OVER]);
    a_steal_with_a_slow_log_where_owners_commit_alone: 1_992,
        Setup { slow_log: true, ..pair(EVERY_ZONE, &TWO_WRITERS).with(&[STOLEN]) };
    a_steal_with_a_slow_log_where_both_zones_accept: 1_976,
        Setup { slow_log: true, ..pair(BUT_ONE_ZONE, &TWO_WRITERS).with(&[STOLEN, TAKEN_OVER]) };

    b_two_losses_where_owners_commit_alone: 5_733,
        Setup { losses: 2, ..pair(EVERY_ZONE, &TWO_WRITERS).with(&[STOLEN]) };
    b_two_losses_where_both_zones_accept: 7_942,
        Setup { losses: 2, ..pair(BUT_ONE_ZONE, &TWO_WRITERS).with(&[STOLEN, WITHDRAWN, TAKEN_OVER]) };
    b_a_loss_and_time: 60_089,
        Setup { losses: 1, ticks: 1, ..pair(BUT_ONE_ZONE, &TWO_WRITERS).with(&[STOLEN, WITHDRAWN, TAKEN_OVER]) };
    b_a_loss_and_more_time: 425_887,
        Setup { losses: 1, ticks: 2, ..pair(EVERY_ZONE, &TWO_WRITERS).with(&[STOLEN]) };
    b_a_loss_with_a_slow_log: 28_570,
        Setup { losses: 1, slow_log: true, ..pair(BUT_ONE_ZONE, &TWO_WRITERS).with(&[STOLEN, WITHDRAWN]) };
    #[ignore = "782 thousand states"]
    b_three_writes_a_loss_and_time_where_owners_commit_alone: 782_754,
        Setup { losses: 1, ticks: 1, ..pair(EVERY_ZONE, &STEALS[..3]).with(&[STOLEN]) };
    #[ignore = "2.6 million states"]
    b_three_writes_a_loss_and_time_where_both_zones_accept: 2_615_917,
        Setup { losses: 1, ticks: 1, ..pair(BUT_ONE_ZONE, &STEALS[..3]).with(&[STOLEN, WITHDRAWN, TAKEN_OVER]) };

    c_the_owner_dies_and_the_other_zone_is_a_quorum: 1_086_136,
        Setup {
            mortal: vec![0],
            ticks: 1,
            ..Setup::new(&[2, 1], EVERY_ZONE, &[put(0, 0), put(2, 0)]).with(&[SECOND_OWNER, TAKEN_OVER, STOLEN])
        };
    #[ignore = "1.5 million states"]
    c_the_owner_dies_and_two_are_a_majority: 1_544_483,
        Setup { mortal: vec![0], ticks: 1, ..trio(&TWO_WRITERS).with(&[SECOND_OWNER, TAKEN_OVER, STOLEN]) };

    #[ignore = "1.8 million states"]
    c_the_second_owner_dies_and_two_are_a_majority: 1_839_331,
        Setup { mortal: vec![1], ticks: 1, ..trio(&TWO_WRITERS).with(&[SECOND_OWNER, TAKEN_OVER]) };

    d_two_objects: 2_300,
        pair(BUT_ONE_ZONE, &TWO_OBJECTS).with(&[STOLEN, TAKEN_OVER]);
    d_two_objects_and_a_loss: 36_851,
        Setup { losses: 1, ..pair(BUT_ONE_ZONE, &TWO_OBJECTS).with(&[STOLEN, WITHDRAWN, TAKEN_OVER]) };
    #[ignore = "1.8 million states"]
    d_two_objects_a_loss_and_time: 1_825_822,
        Setup { losses: 1, ticks: 1, ..pair(BUT_ONE_ZONE, &TWO_OBJECTS).with(&[STOLEN, WITHDRAWN]) };

    e_two_candidates_of_three_nodes: 42_790,
        trio(&TWO_WRITERS).with(&[STOLEN, BEATEN, WITHDRAWN, TAKEN_OVER]);
    f_reads_against_a_steal: 4_106,
        pair(BUT_ONE_ZONE, &READS).with(&[STOLEN, READ]);
    f_reads_against_a_steal_where_owners_commit_alone: 1_268,
        pair(EVERY_ZONE, &READS).with(&[STOLEN, READ]);
    f_reads_in_the_log: 535,
        pair(BUT_ONE_ZONE, &[put(0, 0), put(1, 0), log_get(0, 0, 0)]).with(&[STOLEN]);
    f_a_read_of_three_nodes: 446_189,
        trio(&[put(0, 0), put(2, 0), get(0, 0, 1)]).with(&[STOLEN, READ]);
    f_a_read_against_a_steal_and_a_loss: 7_268,
        Setup { losses: 1, ..pair(BUT_ONE_ZONE, &READS[..3]).with(&[STOLEN, READ]) };

    g_halves_that_never_hear_each_other: 36,
        Setup {
            deaf: vec![(0, 1), (0, 3), (2, 1), (2, 3)],
            ..Setup::new(&[2, 2], EVERY_ZONE, &[put(0, 0), put(1, 0)])
        };
}

/// Whether a node has counted this.
fn counted(node: &Node, name: &str) -> bool {
    node.core.counters().iter().any(|(counter, count)| *counter == name && *count > 0)
}

/// Whether some node has.
fn somewhere(world: &World, name: &str) -> bool {
    world.nodes.iter().any(|node| counted(node, name))
}

const STOLEN: Sight = ("a steal completes", |_, world| {
    let stolen = |node: &Node| node.core.objects().any(|object| object.leads) && counted(node, "steals");
    world.nodes.iter().any(|node| stolen(node))
});
const WITHDRAWN: Sight = ("an entry is withdrawn", |_, world| somewhere(world, "withdrawn"));
const TAKEN_OVER: Sight = ("a slot is taken over with what was reported", |_, world| somewhere(world, "taken_over"));
const REFUSED: Sight = ("an entry is refused", |_, world| somewhere(world, "refused"));
const BEATEN: Sight = ("a candidate is beaten", |_, world| somewhere(world, "rejected"));
const READ: Sight = ("a read is answered after a round", |_, world| somewhere(world, "reads"));
const ALL_ANSWERED: Sight = ("everybody is answered", |_, world| {
    world.asked.iter().all(|asked| matches!(asked, Asked::Answered { answer, .. } if answer.status.is_executed()))
});
const SECOND_OWNER: Sight = ("another owner commits after a crash", |_, world| {
    let committed = |dead: bool| {
        (0..world.nodes.len()).any(|node| world.dead[node] == dead && counted(&world.nodes[node], "committed"))
    };
    committed(true) && committed(false)
});
