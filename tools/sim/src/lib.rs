//! **wpaxos-sim**: seeded runs of the simulator, one or many.

pub mod args;
pub mod hostile;
pub mod logs;
pub mod many;
pub mod one;
