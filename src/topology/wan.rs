//! Distances between zones.

use std::fmt::Write as _;

use super::ZoneIndex;

/// Round-trip times between zones, symmetric, in microseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WanMatrix {
    zones: usize,
    /// Row by row.
    rtt_us: Vec<u64>,
}

impl WanMatrix {
    /// Where every two different zones are `rtt_us` microseconds apart, and 0 within a zone.
    pub fn uniform(zones: usize, rtt_us: u64) -> Self {
        let pair = |index: usize| if index / zones == index % zones { 0 } else { rtt_us };
        Self { zones, rtt_us: (0..zones * zones).map(pair).collect() }
    }

    /// The round-trip time between two zones, in microseconds: between nodes of one zone if they are the same.
    ///
    /// # Panics
    /// If a zone is out of range.
    pub fn rtt_us(&self, a: ZoneIndex, b: ZoneIndex) -> u64 {
        assert!(a.index() < self.zones && b.index() < self.zones, "{a:?} or {b:?} is not one of {} zones", self.zones);
        self.rtt_us[a.index() * self.zones + b.index()]
    }

    /// How many zones it covers.
    pub fn zones(&self) -> usize {
        self.zones
    }

    /// The rows in milliseconds, as TOML.
    pub(super) fn to_toml_rows(&self) -> String {
        let mut text = String::from("[");
        for (index, rtt_us) in self.rtt_us.iter().enumerate() {
            let _ = match (index % self.zones, index) {
                (0, 0) => write!(text, "[{}", Millis(*rtt_us)),
                (0, _) => write!(text, "], [{}", Millis(*rtt_us)),
                _ => write!(text, ", {}", Millis(*rtt_us)),
            };
        }
        text + "]]"
    }
}

/// Microseconds, shown as milliseconds without loss.
struct Millis(u64);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 % 1000 {
            0 => write!(f, "{}", self.0 / 1000),
            rest => write!(f, "{}.{rest:03}", self.0 / 1000),
        }
    }
}
