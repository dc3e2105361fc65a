//! Bounded memory: whatever happens, a node holds no more of anything than its tuning allows.

use super::{Rule, Violation};
use crate::topology::NodeIndex;

macro_rules! sizes {
    ($($name:ident, $what:literal;)*) => {
        /// How much of each thing one shard of a node holds; as a bound, how much it may.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Sizes {
            $(#[doc = concat!("The ", $what, ".")] pub $name: u64,)*
        }

        impl Sizes {
            /// Without any bound.
            pub const UNBOUNDED: Self = Self { $($name: u64::MAX,)* };

            fn list(&self) -> [(&'static str, u64); [$(stringify!($name)),*].len()] {
                [$(($what, self.$name)),*]
            }

            fn max(&self, other: &Self) -> Self {
                Self { $($name: self.$name.max(other.$name),)* }
            }
        }
    };
}

sizes! {
    stream_bytes, "bytes of its own stream that it retains";
    received_bytes, "bytes of received frames that it holds";
    requests, "requests that wait at it";
    link_queue_bytes, "bytes in the fullest of its link queues";
    client_queue_bytes, "bytes in the fullest of its client queues";
    tail_entries, "entries in the tails of its objects";
    log_pending_bytes, "bytes of records that wait for its disk";
    unacked_bytes, "bytes of its own stream that a member was sent and has not acked";
}

/// The oracle of bounded memory.
#[derive(Clone, Debug)]
pub struct Memory {
    bounds: Sizes,
    peaks: Sizes,
}

impl Memory {
    /// With these bounds for every shard of every node.
    pub fn new(bounds: Sizes) -> Self {
        Self { bounds, peaks: Sizes::default() }
    }

    /// Takes a sample of a shard.
    ///
    /// # Errors
    /// If it holds more of something than it may: by how much, and of all such things the first.
    pub fn sample(&mut self, node: NodeIndex, shard: u16, sizes: &Sizes) -> Result<(), Violation> {
        self.peaks = self.peaks.max(sizes);
        for ((what, held), (_, bound)) in sizes.list().into_iter().zip(self.bounds.list()) {
            if held > bound {
                let node = node.0;
                let text =
                    format!("shard {shard} of node {node}: the {what} are {held}, {} over {bound}", held - bound);
                return Err(Rule::Memory.broken(text));
            }
        }
        Ok(())
    }

    /// The most that any shard has held of each thing.
    pub fn peaks(&self) -> Sizes {
        self.peaks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Sizes = Sizes {
        stream_bytes: 100,
        received_bytes: 200,
        requests: 3,
        link_queue_bytes: 400,
        client_queue_bytes: 500,
        tail_entries: 6,
        log_pending_bytes: 700,
        unacked_bytes: 800,
    };

    #[test]
    fn what_is_within_its_bounds_is_taken() {
        let mut memory = Memory::new(BOUNDS);
        memory.sample(NodeIndex(0), 0, &BOUNDS).unwrap();
        memory.sample(NodeIndex(1), 0, &Sizes::default()).unwrap();
        assert_eq!(memory.peaks(), BOUNDS);
        Memory::new(Sizes::UNBOUNDED).sample(NodeIndex(0), 0, &BOUNDS).unwrap();
    }

    #[test]
    fn every_bound_is_watched() {
        let over = [
            Sizes { stream_bytes: 107, ..BOUNDS },
            Sizes { received_bytes: 207, ..BOUNDS },
            Sizes { requests: 10, ..BOUNDS },
            Sizes { link_queue_bytes: 407, ..BOUNDS },
            Sizes { client_queue_bytes: 507, ..BOUNDS },
            Sizes { tail_entries: 13, ..BOUNDS },
            Sizes { log_pending_bytes: 707, ..BOUNDS },
            Sizes { unacked_bytes: 807, ..BOUNDS },
        ];
        for (sizes, (what, bound)) in over.iter().zip(BOUNDS.list()) {
            let violation = Memory::new(BOUNDS).sample(NodeIndex(2), 1, sizes).unwrap_err();
            assert_eq!(violation.rule, Rule::Memory);
            assert_eq!(violation.text, format!("shard 1 of node 2: the {what} are {}, 7 over {bound}", bound + 7));
        }
    }
}
