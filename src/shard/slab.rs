//! A table with stable keys: what the driver's tokens point into.

/// Names an entry: its place, and a stamp that tells it from earlier and later ones at the same place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    index: u32,
    stamp: u32,
}

impl Key {
    /// As one number, for tokens.
    pub(super) const fn to_token(self) -> u64 {
        (self.stamp as u64) << 32 | self.index as u64
    }

    /// From [`Self::to_token`]. Any number will do: a key that was never given out finds nothing.
    pub(super) const fn from_token(token: u64) -> Self {
        Self { index: token as u32, stamp: (token >> 32) as u32 }
    }
}

/// Entries at stable keys. Places are used again, so that it allocates only while it grows.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    stamp: u32,
    entry: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slab<T> {
    /// Without entries.
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// How many entries it holds.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds an entry.
    pub(super) fn insert(&mut self, entry: T) -> Key {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            assert!(place.entry.is_none(), "a free place is empty");
            place.entry = Some(entry);
            return Key { index, stamp: place.stamp };
        }
        let index = u32::try_from(self.places.len()).expect("every caller bounds its entries far below 2^32");
        self.places.push(Place { stamp: 1, entry: Some(entry) });
        Key { index, stamp: 1 }
    }

    /// Takes an entry out; `None` if it is gone.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize).filter(|place| place.stamp == key.stamp)?;
        let entry = place.entry.take()?;
        place.stamp = place.stamp.wrapping_add(1);
        self.free.push(key.index);
        Some(entry)
    }

    /// The entry; `None` if it is gone.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize).filter(|place| place.stamp == key.stamp)?;
        place.entry.as_mut()
    }

    /// The entry; `None` if it is gone.
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize).filter(|place| place.stamp == key.stamp)?;
        place.entry.as_ref()
    }

    /// All entries.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.places.iter_mut().enumerate().filter_map(|(index, place)| {
            let key = Key { index: index as u32, stamp: place.stamp };
            place.entry.as_mut().map(|entry| (key, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_does_not_find_the_next_entry_at_its_place() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!((slab.remove(a), slab.remove(a), slab.len()), (Some('a'), None, 1));
        let c = slab.insert('c');
        assert_eq!((c.index, slab.get(a), slab.get(c), slab.get(b)), (a.index, None, Some(&'c'), Some(&'b')));
        assert_eq!(Key::from_token(c.to_token()), c);
        assert_eq!(slab.remove(Key::from_token(u64::MAX)), None);
        assert_eq!(slab.iter_mut().map(|(key, entry)| (key, *entry)).collect::<Vec<_>>(), [(c, 'c'), (b, 'b')]);
    }
}
