//! The deterministic simulator: whole clusters, as they are shipped, in virtual time.
//!
//! Everything follows from one seed: the topology, the quorums, the tuning, what clients ask, what goes wrong and when. The
//! shards are those of a replica ([`crate::shard`]) with the shipped protocol: sessions, hello, batching, queues, mailboxes
//! and the accept stream; only sockets, the clock and the disk are others.
//!
//! | file | what it holds |
//! |---|---|
//! | [`plan`] | what a run is about: cluster, tuning, weather |
//! | [`random`] | salted random streams |
//! | `world` | the driver: processes, connections, events |
//! | `process`, `witness` | one process of one node, and who looks at it |
//! | `net`, `carry` | connections that carry bytes, and how the world drives them |
//! | `block`, `machine`, `tasks` | a block device, and what else a log runs on |
//! | [`logs`] | logs as they are shipped, on block devices, without a cluster |
//! | [`disk`] | a disk that keeps a log, and loses what was not synced |
//! | `ledger` | a log with an oracle beside it that knows what is durable |
//! | [`faults`] | what goes wrong |
//! | `clients` | who asks what, and what they learn |
//! | `careless` | clients that keep to no rule |
//! | [`oracle`] | what must hold |
//! | [`hostile`] | cores among which one peer sends what it likes |
//! | [`shrink`] | a shorter schedule for a run that fails |
//! | [`run`] | one run, from its seed to its verdict |
//! | `trace` | frames, for people |

mod block;
mod careless;
mod carry;
mod clients;
pub mod disk;
pub mod faults;
pub mod hostile;
mod ledger;
pub mod logs;
mod machine;
mod net;
pub mod oracle;
pub mod plan;
mod process;
pub mod random;
pub mod run;
pub mod shrink;
mod tasks;
mod trace;
mod witness;
mod world;
