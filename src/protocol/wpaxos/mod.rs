//! WPaxos: multi-leader wide-area Paxos with flexible quorums and object stealing.

mod ballot;

pub use ballot::Ballot;
