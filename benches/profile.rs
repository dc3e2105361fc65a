//! The same work over and over, to be looked at by a profiler: committed writes through three nodes without I/O.
//!
//! `cargo bench --bench profile -- KEYS BATCH BATCHES` prints nanoseconds per committed write. Under callgrind, with
//! `--toggle-collect='*measured*'`, only what the nodes do is counted; `docs/performance.md` has the commands.

mod support;

use std::time::Instant;

use support::{Loopback, puts};

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let [keys, batch, batches] = numbers[..] else {
        // As `cargo bench` calls it: a round that is over soon.
        return run(1_000, 256, 2_000);
    };
    run(keys, batch.max(1), batches.max(1));
}

fn run(keys: u64, batch: u64, batches: u64) {
    let mut cluster = Loopback::new(1, 3);
    let mut next = 1;
    while next < keys * 3 {
        cluster.submit(0, &puts(next, 1024, keys));
        cluster.run();
        next += 1024;
    }
    cluster.tick(2_000);
    let before = cluster.replies;
    let mut elapsed = std::time::Duration::ZERO;
    for _ in 0..batches {
        let commands = puts(next, batch, keys);
        next += batch;
        let started = Instant::now();
        measured(&mut cluster, &commands);
        elapsed += started.elapsed();
    }
    let committed = cluster.replies - before;
    let ns = elapsed.as_nanos() as f64 / committed as f64;
    println!("{committed} writes of 64 bytes, {keys} keys, {batch} per batch, three nodes: {ns:.0} ns per write");
}

#[inline(never)]
fn measured(cluster: &mut Loopback, commands: &[bytes::Bytes]) {
    cluster.submit(0, commands);
    cluster.run();
}
