//! The `wpaxos` binary: see `wpaxos --help`.

fn main() {}
