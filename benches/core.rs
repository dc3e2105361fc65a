//! The protocol core in process: one owner, all nodes on one thread, store included; no sockets, no disk.
//! Reported per batch; a batch of 256 Puts on three nodes, divided by 256, is what `core-costs` calls "ns per write".

#![allow(missing_docs)] // criterion's macro makes an undocumented public function.

mod support;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use support::{Loopback, puts};

fn committed_writes(c: &mut Criterion) {
    let mut group = c.benchmark_group("committed_writes");
    for (zones, nodes, keys, batch) in
        [(1, 3, 1_000, 1), (1, 3, 1_000, 16), (1, 3, 1_000, 256), (1, 3, 1_000_000, 256), (3, 3, 1_000, 256)]
    {
        let mut cluster = Loopback::new(zones, nodes);
        let mut next = 1;
        while next < keys * 3 {
            cluster.submit(0, &puts(next, 1024, keys));
            cluster.run();
            next += 1024;
        }
        cluster.tick(2_000);
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("{zones}x{nodes}_nodes_{keys}_keys_{batch}_per_batch"), |b| {
            let prepare = || {
                next += batch;
                puts(next, batch, keys)
            };
            b.iter_batched(
                prepare,
                |commands| {
                    cluster.submit(0, &commands);
                    cluster.run();
                    commands
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, committed_writes);
criterion_main!(benches);
