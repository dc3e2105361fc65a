//! How often a committed write allocates, at the owner and at a follower: once per batch is fine, once per command is not.
//!
//! `cargo test --test allocations -- --nocapture` prints the figures.

#[path = "../benches/support/mod.rs"]
mod support;

use allocation_counter::measure;
use support::{Loopback, puts};

const BATCHES: u64 = 50;
const PER_BATCH: u64 = 256;

/// Allocations per committed command at the owner (node 0) and at a follower (node 1) of three, once every key has been
/// written.
fn per_command(keys: u64) -> (f64, f64) {
    let mut cluster = Loopback::new(1, 3);
    let mut next = 1;
    while next < 12 * keys.max(PER_BATCH) {
        cluster.submit(0, &puts(next, PER_BATCH, keys));
        cluster.run();
        next += PER_BATCH;
    }
    cluster.tick(20_000);
    let (mut owner, mut follower) = (0, 0);
    let before = cluster.replies;
    for _ in 0..BATCHES {
        let commands = puts(next, PER_BATCH, keys);
        next += PER_BATCH;
        owner += measure(|| cluster.submit(0, &commands)).count_total;
        loop {
            let mut quiet = true;
            for node in 0..3 {
                let mut sends = Vec::new();
                let turn = measure(|| sends = cluster.turn(node)).count_total;
                *[&mut owner, &mut follower, &mut 0][node] += turn;
                for send in sends {
                    quiet = false;
                    let to = send.to.index();
                    let taken = measure(|| cluster.deliver(node, send)).count_total;
                    *[&mut owner, &mut follower, &mut 0][to] += taken;
                }
            }
            if quiet {
                break;
            }
        }
    }
    let committed = (cluster.replies - before) as f64;
    assert!(committed >= (BATCHES * PER_BATCH) as f64 * 0.9, "{committed} commands were committed while counting");
    (owner as f64 / committed, follower as f64 / committed)
}

#[test]
fn a_committed_write_does_not_allocate() {
    // With fewer keys commands of one batch wait for slots of their object, and are kept meanwhile.
    for keys in [16, 1_000, 5_000] {
        let (owner, follower) = per_command(keys);
        println!(
            "{keys} keys, {PER_BATCH} per batch: {owner:.3} allocations per command at the owner, {follower:.3} at a follower"
        );
        assert!(owner < 0.1, "the owner allocates {owner} times per command of {keys} keys");
        assert!(follower < 0.1, "a follower allocates {follower} times per command of {keys} keys");
    }
}
