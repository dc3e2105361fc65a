//! How long to wait before dialling again.

/// Waits that double from the shortest to the longest, each of them shortened by a random part of up to a half, so that
/// nodes that lost each other at once do not come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    min_us: u64,
    max_us: u64,
    next_us: u64,
    random: u64,
}

impl Backoff {
    /// From `min_us` to `max_us`; every seed gives another stream.
    pub(super) fn new(min_us: u64, max_us: u64, seed: u64) -> Self {
        let min_us = min_us.max(1);
        Self { min_us, max_us: max_us.max(min_us), next_us: min_us, random: seed | 1 }
    }

    /// After success: the next wait is a short one.
    pub(crate) fn reset(&mut self) {
        self.next_us = self.min_us;
    }

    /// The next wait in microseconds.
    pub(crate) fn next_us(&mut self) -> u64 {
        // xorshift64: no more is asked of it than that two nodes differ.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let whole = self.next_us;
        self.next_us = whole.saturating_mul(2).min(self.max_us);
        whole - self.random % (whole / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_bounds() {
        let mut backoff = Backoff::new(1000, 8000, 42);
        for whole in [1000, 2000, 4000, 8000, 8000] {
            let wait = backoff.next_us();
            assert!((whole / 2..=whole).contains(&wait), "{wait} of {whole}");
        }
        backoff.reset();
        assert!(backoff.next_us() <= 1000);
        assert!(Backoff::new(0, 0, 0).next_us() <= 1);
    }
}
