//! What a batch costs between a socket's buffer and a command: encoding it into a frame, and checking and walking a
//! received one. Keys of 16 bytes, values of 64; the checksum is included. Divide by the elements for the cost per command.

#![allow(missing_docs)] // criterion's macro makes an undocumented public function.

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use wpaxos::{
    api::native::{self, ReplyRef},
    command::{Action, NewCommand, Status},
    protocol::ReadMode,
    topology::NodeId,
    wire::{self, Kind},
};

const BATCHES: [u64; 3] = [1, 16, 256];
const VALUE: [u8; 64] = [7; 64];

fn put_requests(out: &mut BytesMut, commands: u64) {
    let start = wire::begin(out);
    for id in 0..commands {
        let key = (u128::from(id) * 0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let command = NewCommand { client: 1, id, retry: false, key: &key, action: Action::Put(&VALUE) };
        native::put_request_prefix(out, command.encoded_bytes(), ReadMode::Confirm);
        command.encode(out).expect("within the limits");
    }
    wire::finish(out, start, Kind::Request, 0, 0);
}

fn put_replies(out: &mut BytesMut, commands: u64) {
    let start = wire::begin(out);
    for id in 0..commands {
        let owner = Some(NodeId::new(1, 1));
        ReplyRef { id, status: Status::Ok, version: id, slot: id, ballot: 1, owner, value: &VALUE }.encode(out);
    }
    wire::finish(out, start, Kind::Reply, 0, 0);
}

fn frames(criterion: &mut Criterion) {
    for commands in BATCHES {
        let mut group = criterion.benchmark_group(format!("framing/{commands}"));
        group.throughput(Throughput::Elements(commands));
        let mut out = BytesMut::new();
        group.bench_function("encode requests", |bencher| {
            bencher.iter(|| {
                out.clear();
                put_requests(&mut out, black_box(commands));
                out.len()
            });
        });
        group.bench_function("encode replies", |bencher| {
            bencher.iter(|| {
                out.clear();
                put_replies(&mut out, black_box(commands));
                out.len()
            });
        });
        let mut requests = BytesMut::new();
        put_requests(&mut requests, commands);
        group.bench_function("decode requests", |bencher| {
            bencher.iter(|| {
                let frame = wire::view(black_box(&requests)).expect("whole");
                native::requests(frame.body).map(|request| request.expect("valid").1.id()).sum::<u64>()
            });
        });
        let frozen = requests.freeze();
        group.bench_function("parse a shared frame", |bencher| {
            bencher.iter_batched(|| frozen.clone(), |bytes| wire::parse(bytes).expect("whole"), BatchSize::SmallInput);
        });
        let mut replies = BytesMut::new();
        put_replies(&mut replies, commands);
        group.bench_function("decode replies", |bencher| {
            bencher.iter(|| {
                let frame = wire::view(black_box(&replies)).expect("whole");
                native::replies(frame.body).map(|reply| reply.expect("valid").version).sum::<u64>()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
