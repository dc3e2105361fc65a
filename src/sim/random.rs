//! One seed, several streams: each part of the simulator draws from its own, so that a change in one does not shift the
//! others.

/// What a stream is for: its salt.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// What the run is about.
    Plan = 1,
    /// Delays, and where bytes are cut.
    Network = 2,
    /// When turns run.
    Schedule = 3,
    /// What clients ask.
    Clients = 4,
    /// How long the disk takes, and what it loses.
    Disk = 5,
    /// What goes wrong, and when.
    Faults = 6,
    /// What hostile clients do.
    Hostile = 7,
    /// What else the run is about: what is drawn later leaves the plan of other runs as it was.
    Extremes = 8,
    /// What goes wrong in those runs besides.
    ExtremeFaults = 9,
    /// What a log without a cluster is given, and what happens to it.
    Log = 10,
    /// How much may wait for a disk.
    Waiting = 11,
}

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed` for this purpose.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let mut random = Self(seed ^ (purpose as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
        random.any();
        Self(random.any())
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, `bound`.
    ///
    /// # Panics
    /// If there is nothing below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing to choose from");
        self.any() % bound
    }

    /// From `low` up to and including `high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so often in a thousand.
    pub fn permille(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// A delay around `usual`: mostly between half of it and twice. With a heavy tail, one in fifty is up to ten times as
    /// long, and one in a thousand up to a hundred times.
    pub fn delay(&mut self, usual: u64, heavy_tail: bool) -> u64 {
        let longest = match self.below(1000) {
            _ if !heavy_tail => usual * 2,
            0 => usual * 100,
            1..20 => usual * 10,
            _ => usual * 2,
        };
        self.range(usual / 2, longest.max(usual / 2))
    }
}
