//! Earlier values of a shard's objects, as far as there is room for them.
//!
//! Each replica keeps its own: it is no part of the replicated state, and nothing depends on it. A replica that was behind
//! and got an object's state lacks the versions that it jumped over.

use std::collections::VecDeque;

/// What an entry costs beside its value, in bytes: its places in both queues, and its allocation.
const ENTRY_BYTES: usize = 80;

/// One version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its number: how many writes had taken effect.
    pub version: u64,
    /// The value; `None` after a Delete.
    pub value: Option<Box<[u8]>>,
}

/// The last versions of a shard's objects, bounded per object and in all.
#[derive(Clone, Debug)]
pub struct History {
    versions_per_key: usize,
    bytes_max: usize,
    bytes: usize,
    /// By the object's place in its table, ascending.
    objects: Vec<VecDeque<Version>>,
    /// Objects and versions in the order in which they came. Those that made room for a newer version of their object are
    /// still in it until it is swept.
    order: VecDeque<(u32, u64)>,
    /// Entries of `objects`.
    entries: usize,
}

impl History {
    /// Keeps up to `versions_per_key` versions of each object, and up to `bytes_max` bytes in all; the oldest go first.
    pub fn new(versions_per_key: usize, bytes_max: usize) -> Self {
        let versions_per_key = versions_per_key.max(1);
        Self { versions_per_key, bytes_max, bytes: 0, objects: Vec::new(), order: VecDeque::new(), entries: 0 }
    }

    /// Notes what an object is now; nothing happens if its version is known.
    pub fn note(&mut self, object: u32, version: u64, value: Option<&[u8]>) {
        let place = object as usize;
        if self.objects.len() <= place {
            self.objects.resize_with(place + 1, VecDeque::new);
        }
        if self.objects[place].back().map_or(0, |last| last.version) >= version {
            return;
        }
        if self.objects[place].len() >= self.versions_per_key {
            self.forget_oldest(place);
        }
        let value: Option<Box<[u8]>> = value.map(Into::into);
        self.bytes += cost(value.as_deref());
        self.objects[place].push_back(Version { version, value });
        self.order.push_back((object, version));
        self.entries += 1;
        while self.bytes > self.bytes_max && self.entries > 0 {
            let (object, version) = self.order.pop_front().expect("every entry is in the order");
            if self.is_kept(object, version) {
                self.forget_oldest(object as usize);
            }
        }
        if self.order.len() > 2 * self.entries + 1024 {
            let mut order = std::mem::take(&mut self.order);
            order.retain(|(object, version)| self.is_kept(*object, *version));
            self.order = order;
        }
    }

    /// What is kept of an object, the oldest first.
    pub fn of(&self, object: u32) -> impl DoubleEndedIterator<Item = &Version> {
        self.objects.get(object as usize).into_iter().flatten()
    }

    /// The newest versions of an object, the oldest of them first, with about `bytes_max` bytes of values and at least one.
    pub fn newest_of(&self, object: u32, bytes_max: usize) -> Vec<Version> {
        let mut bytes = 0;
        let newest = self.of(object).rev().take_while(|version| {
            let fits = bytes <= bytes_max;
            bytes += cost(version.value.as_deref());
            fits
        });
        let mut newest: Vec<Version> = newest.cloned().collect();
        newest.reverse();
        newest
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Versions of an object leave in the order in which they came.
    fn is_kept(&self, object: u32, version: u64) -> bool {
        self.objects[object as usize].front().is_some_and(|oldest| oldest.version <= version)
    }

    fn forget_oldest(&mut self, place: usize) {
        let oldest = self.objects[place].pop_front().expect("the object has a version");
        self.bytes -= cost(oldest.value.as_deref());
        self.entries -= 1;
    }
}

fn cost(value: Option<&[u8]>) -> usize {
    ENTRY_BYTES + value.map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versions(history: &History, object: u32) -> Vec<u64> {
        history.of(object).map(|version| version.version).collect()
    }

    #[test]
    fn versions_are_kept_in_order_and_the_oldest_go() {
        let mut history = History::new(3, 1 << 20);
        for version in [1, 2, 2, 5, 4, 6] {
            history.note(7, version, Some(&[version as u8]));
        }
        assert_eq!(versions(&history, 7), [2, 5, 6], "5 was a jump, 4 came late");
        history.note(7, 7, None);
        let kept: Vec<_> = history.of(7).map(|version| version.value.as_deref()).collect();
        assert_eq!(kept, [Some([5].as_slice()), Some([6].as_slice()), None]);
        let newest: Vec<u64> = history.newest_of(7, ENTRY_BYTES).iter().map(|version| version.version).collect();
        assert_eq!((newest, history.newest_of(7, 0).len(), history.newest_of(7, 1 << 20).len()), (vec![6, 7], 1, 3));
        assert!(versions(&history, 0).is_empty() && versions(&history, 99).is_empty());
    }

    #[test]
    fn in_all_the_oldest_go_first_whatever_their_object() {
        let mut history = History::new(100, 3 * (ENTRY_BYTES + 10));
        for (object, version) in [(0, 1), (1, 1), (0, 2), (1, 2)] {
            history.note(object, version, Some(&[0; 10]));
        }
        assert_eq!((versions(&history, 0), versions(&history, 1)), (vec![2], vec![1, 2]));
        history.note(2, 1, Some(&[0; 10_000]));
        assert_eq!((versions(&history, 1), versions(&history, 2), history.bytes()), (vec![], vec![], 0));
    }

    proptest! {
        #[test]
        fn the_bounds_hold_and_the_newest_stay(writes in prop::collection::vec((0..4u32, 0..60usize), 1..4000)) {
            let (per_key, bytes_max) = (5, 12 * ENTRY_BYTES);
            let mut history = History::new(per_key, bytes_max);
            let mut last = [0; 4];
            for (object, bytes) in writes {
                last[object as usize] += 1;
                history.note(object, last[object as usize], Some(&vec![1; bytes]));
                prop_assert!(history.bytes() <= bytes_max);
                prop_assert_eq!(versions(&history, object).last().copied(), Some(last[object as usize]));
                prop_assert!(history.order.len() <= 2 * history.entries + 1025);
                let kept: usize = (0..4).map(|object| history.of(object).count()).sum();
                prop_assert_eq!(kept, history.entries);
                for object in 0..4 {
                    let versions = versions(&history, object);
                    prop_assert!(versions.len() <= per_key && versions.windows(2).all(|pair| pair[0] + 1 == pair[1]));
                }
            }
        }
    }
}
