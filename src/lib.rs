//! **wpaxos**: a replicated key-value store whose replica is thread-per-core.
//!
//! Each core runs one shard executor that owns a contiguous range of the hashed key space, with its own WPaxos
//! leader state, its own sockets and no locks. This crate is the library behind the `wpaxos` binary and behind
//! every tool; read it in this order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`topology`] | zones, nodes, shards; the cluster file; key → shard |
//! | [`tuning`] | the tuning file: every knob, its unit, its default, its check |
//! | [`command`] | client commands and their outcomes |
//! | [`mutant`] | known bugs that the simulator's tests plant, to prove that it finds them |
//! | [`store`] | the key-value state machine, deterministic, per object |
//! | [`linear`] | linearizability of what clients saw, for the simulator and the load generator |
//! | [`quorum`] | quorum systems, asked by question |
//! | [`config`] | the files that operators write: reading and checking them |
//! | [`protocol`] | the sans-IO `Protocol` trait and WPaxos behind it |
//! | [`wire`] | frames: headers, checksums, splitting a byte stream without copying it |
//! | `wal` | the write-ahead log of a shard: groups in recycled segments, recovery, checkpoints; the data directory |
//! | [`api`] | what clients speak: native frames, HTTP |
//! | [`shard`] | the executor of one core: event loop, peer links, batching, timers, mailboxes |
//! | [`server`], [`local`] | one replica; a whole cluster in one process |
//! | [`master`] | hands one configuration to all replicas and clients that ask for it |
//! | [`failure`] | why a replica ended, and its exit codes |
//! | [`diagnostics`] | what processes say to people, which nothing that serves waits for |
//! | [`client`] | the client library: topology-aware and pipelined |
//! | [`cmd`] | `wpaxos cmd`: one-off commands |
//! | `sim` (feature `sim`) | the deterministic simulator: whole clusters in virtual time, faults, oracles |
//!
//! Imports go down only: `shard` and `client` → `config`, `api`, `wire`, `protocol` → `store`, `quorum`, `command`,
//! `topology`. Nothing below `protocol` knows a socket, a file, a thread, a clock or a random source.

pub mod api;
pub mod client;
pub mod cmd;
pub mod command;
pub mod config;
pub mod diagnostics;
pub mod failure;
pub mod linear;
pub mod local;
pub mod master;
pub mod mutant;
pub(crate) mod notify;
pub mod protocol;
pub mod quorum;
pub mod server;
pub mod shard;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;
pub mod topology;
pub mod tuning;
pub(crate) mod wal;
pub mod wire;
