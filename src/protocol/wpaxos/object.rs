//! What a node keeps per object (`protocol.md` §3), and the table of all of them.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

use bytes::Bytes;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::{Ballot, Config, bounds::NUMBER_MAX, phase1::Preparing, requests::RequestKey, steal::Accesses};
use crate::{
    command::Command,
    mutant::Mutant,
    store::{Executed, ObjectState, Recent},
    topology::{NodeIndex, token_of},
};

/// An object's place in the table of its node: stable, since objects are never forgotten.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct ObjectIndex(pub(super) u32);

/// Bytes of a key that lie in the object itself: a longer one has memory of its own.
const KEY_INLINE_BYTES: usize = 24;

/// A key as an object keeps it.
pub(super) type Key = SmallVec<[u8; KEY_INLINE_BYTES]>;

/// One object, as one node knows it: in one piece of memory, as far as key and value are of the usual size and one client
/// writes it, because every line of it that lies elsewhere is a wait of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub(super) key: Key,
    /// The highest ballot seen. Never goes down.
    pub(super) promised: Ballot,
    /// Everything up to this slot is decided and executed; `state` is the result.
    pub(super) applied: u64,
    pub(super) state: ObjectState,
    /// The slots above `applied` that this node has accepted or knows decided.
    pub(super) tail: Tail,
    pub(super) role: Role,
    /// The last number of this node's own stream that touched the object; 0 if none did.
    pub(super) own_seq: u64,
    /// What few objects need.
    pub(super) rare: Option<Box<Rare>>,
}

/// What only objects in trouble, or in demand by several zones, need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Rare {
    /// Requests whose entry was withdrawn, with its slot: the slot's decision tells what became of them (§7).
    pub(super) limbo: Vec<(u64, RequestKey)>,
    /// Reads that wait until the taken-over tail is executed (§9), and writes that wait for a slot.
    pub(super) parked: VecDeque<RequestKey>,
    /// What the steal policy counts.
    pub(super) accesses: Option<Accesses>,
    /// Whether the object waits in the list of gaps.
    pub(super) gap_noted: bool,
}

/// What a node is for an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// An acceptor and learner only.
    Idle,
    /// A candidate: phase 1 runs.
    Preparing(Box<Preparing>),
    /// The owner, at ballot `promised`.
    Leading(Leading),
}

/// What an owner knows of its lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leading {
    /// The slot of the next command.
    pub(super) next_slot: u64,
    /// The last slot that was taken over: nothing is read before it is executed (§9).
    pub(super) settled: u64,
    /// The number of the last read round that the object is in.
    pub(super) round: u64,
}

impl Object {
    pub(super) fn leading(&self) -> Option<&Leading> {
        match &self.role {
            Role::Leading(leading) => Some(leading),
            _ => None,
        }
    }

    /// Executes the command that a slot decides.
    pub(super) fn execute(&mut self, config: &Config, slot: u64, command: Command<'_>) -> Executed {
        if config.has(Mutant::RetryExecutedTwice) {
            self.state.recent = Recent::default();
        }
        if config.has(Mutant::SessionVouches) {
            self.state.recent.sessions.iter_mut().for_each(|session| session.blind_below = 0);
        }
        self.applied = slot;
        self.state.execute(slot, command, config.open_slots)
    }

    /// How many slots more may be open: so that a command is forgotten only when no copy of it can be in one
    /// (`protocol.md` §7).
    pub(super) fn free_slots(&self, config: &Config) -> u64 {
        self.leading().map_or(0, |leading| {
            let open = leading.next_slot - 1 - self.applied;
            config.open_slots.saturating_sub(open).min(NUMBER_MAX - leading.next_slot)
        })
    }

    /// Reads from each line of memory that an accept and its execution need; the sum means nothing.
    fn glance(&self) -> u64 {
        let value = self.state.value.as_deref().and_then(|value| value.last()).map_or(0, |byte| u64::from(*byte));
        let session = self.state.recent.sessions.first().map_or(0, |session| session.client ^ session.slot);
        let tail = self.tail.first.as_ref().map_or(0, |entry| entry.slot);
        self.promised.number ^ self.applied ^ self.own_seq ^ self.state.version ^ value ^ session ^ tail
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.role, Role::Idle)
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// Where the bytes of an accepted command are: the stream that brought it is the tail's memory until the watermark has
/// passed the entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// In this node's own stream, at this number.
    Own(u64),
    /// In the stream of another node, at this number.
    Stream(NodeIndex, u64),
    /// Kept for itself.
    Held(Box<Bytes>),
}

/// An accepted slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TailEntry {
    pub(super) slot: u64,
    /// The ballot that it was accepted at.
    pub(super) ballot: Ballot,
    /// Whether its command is known to be the slot's decision.
    pub(super) decided: bool,
    pub(super) source: Source,
}

/// Accepted slots in ascending order: one in place, for the usual object; more beside it.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    first: Option<TailEntry>,
    #[expect(clippy::box_collection, reason = "one word in every object, though few have it")]
    more: Option<Box<VecDeque<TailEntry>>>,
}

impl Tail {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.as_ref().map_or(0, |more| more.len())
    }

    pub(super) fn first(&self) -> Option<&TailEntry> {
        self.first.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &TailEntry> {
        self.first.iter().chain(self.more.iter().flat_map(|more| more.iter()))
    }

    pub(super) fn pop_first(&mut self) -> Option<TailEntry> {
        let next = self.more.as_mut().and_then(|more| more.pop_front());
        std::mem::replace(&mut self.first, next)
    }

    pub(super) fn get_mut(&mut self, slot: u64) -> Option<&mut TailEntry> {
        if self.first.as_ref()?.slot == slot {
            return self.first.as_mut();
        }
        let more = self.more.as_mut()?;
        if more.back()?.slot < slot {
            return None;
        }
        let place = more.binary_search_by_key(&slot, |entry| entry.slot).ok()?;
        more.get_mut(place)
    }

    /// Puts an entry at its slot, in place of what is there.
    pub(super) fn put(&mut self, entry: TailEntry) {
        match &mut self.first {
            None => self.first = Some(entry),
            Some(first) if first.slot == entry.slot => *first = entry,
            Some(first) if first.slot > entry.slot => {
                let first = std::mem::replace(first, entry);
                self.more.get_or_insert_default().push_front(first);
            }
            Some(_) => {
                let more = self.more.get_or_insert_default();
                match more.back() {
                    Some(last) if last.slot >= entry.slot => {
                        match more.binary_search_by_key(&entry.slot, |entry| entry.slot) {
                            Ok(place) => more[place] = entry,
                            Err(place) => more.insert(place, entry),
                        }
                    }
                    _ => more.push_back(entry),
                }
            }
        }
    }
}

// However the entries are spread over the two.
impl PartialEq for Tail {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Tail {}

impl Hash for Tail {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len().hash(state);
        self.iter().for_each(|entry| entry.hash(state));
    }
}

/// All objects of a shard that this node has heard of: hash tables from key to place, and the objects in rows.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    /// Many small tables, of which one at a time grows: one that holds millions would stop the shard while it moves.
    tables: Vec<HashTable<Known>>,
    /// Of [`ROW`] objects each, for the same reason; the last one grows.
    rows: Vec<Vec<Object>>,
    seed: u64,
}

/// How many tables there are, a power of two.
const TABLES: usize = 64;
/// Objects in a row, a power of two.
const ROW: usize = 1024;

/// Where [`Objects::foresee`] has found a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreseen {
    token: u64,
    /// `u32::MAX`: nowhere.
    index: u32,
}

/// Where the object of a token is. The two halves of the token, so that it takes 12 bytes and not 16.
#[derive(Clone, Copy, Debug)]
struct Known {
    token: [u32; 2],
    index: u32,
}

impl Known {
    fn new(token: u64, index: u32) -> Self {
        Self { token: [token as u32, (token >> 32) as u32], index }
    }

    fn token(&self) -> u64 {
        u64::from(self.token[1]) << 32 | u64::from(self.token[0])
    }
}

impl Objects {
    pub(super) fn new(seed: u64) -> Self {
        Self { tables: vec![HashTable::new(); TABLES], rows: Vec::new(), seed }
    }

    /// Looks many keys up at once, before each is looked up again: what is far away in memory is waited for together and not
    /// one by one. `places` is filled with what [`Self::recall`] takes.
    pub(super) fn foresee<'a>(&self, keys: impl Iterator<Item = &'a [u8]>, places: &mut Vec<Foreseen>) {
        places.clear();
        places.extend(keys.map(|key| Foreseen { token: token_of(key), index: u32::MAX }));
        for place in &mut *places {
            let hash = mixed(place.token, self.seed);
            let found = self.tables[table_of(hash)].find(hash, |known| known.token() == place.token);
            place.index = found.map_or(u32::MAX, |known| known.index);
        }
        let known = places.iter().filter(|place| place.index != u32::MAX);
        let seen = known.fold(0, |seen, place| seen ^ self[ObjectIndex(place.index)].glance());
        std::hint::black_box(seen);
    }

    /// The object with this key, if it was there when it was foreseen.
    pub(super) fn recall(&self, foreseen: Foreseen, key: &[u8]) -> Option<ObjectIndex> {
        let index = ObjectIndex(foreseen.index);
        (foreseen.index != u32::MAX && *self[index].key == *key).then_some(index)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.last().map_or(0, |last| (self.rows.len() - 1) * ROW + last.len())
    }

    pub(super) fn find(&self, key: &[u8]) -> Option<ObjectIndex> {
        let token = token_of(key);
        self.find_token(token, mixed(token, self.seed), key)
    }

    fn find_token(&self, token: u64, hash: u64, key: &[u8]) -> Option<ObjectIndex> {
        let found = self.tables[table_of(hash)].find(hash, |known| self.is_key(known, token, key));
        found.map(|known| ObjectIndex(known.index))
    }

    /// The object with this key, made by `new` (from its token) if it is not there yet.
    pub(super) fn find_or_insert(&mut self, key: &[u8], new: impl FnOnce(u64) -> Object) -> ObjectIndex {
        let token = token_of(key);
        let hash = mixed(token, self.seed);
        if let Some(index) = self.find_token(token, hash, key) {
            return index;
        }
        let index = u32::try_from(self.len()).expect("fewer than four billion objects in a shard");
        match self.rows.last_mut().filter(|row| row.len() < ROW) {
            Some(row) => row.push(new(token)),
            None => {
                // The first row grows as it fills, for those who have few objects.
                let mut row = Vec::with_capacity(if self.rows.is_empty() { 0 } else { ROW });
                row.push(new(token));
                self.rows.push(row);
            }
        }
        let seed = self.seed;
        self.tables[table_of(hash)].insert_unique(hash, Known::new(token, index), |known| mixed(known.token(), seed));
        ObjectIndex(index)
    }

    fn is_key(&self, known: &Known, token: u64, key: &[u8]) -> bool {
        known.token() == token && *self[ObjectIndex(known.index)].key == *key
    }

    pub(super) fn token(&self, index: ObjectIndex) -> u64 {
        token_of(&self[index].key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Object> {
        self.rows.iter().flatten()
    }
}

// The rows say it all: the tables follow from their keys, the seed from the node.
impl PartialEq for Objects {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl Eq for Objects {}

impl Hash for Objects {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.rows.hash(state);
    }
}

/// Shard ranges fix the token's top bits, and the table takes its tags from the top: rotate them away (and seed, so that
/// nobody can prepare keys that collide in the table).
fn mixed(token: u64, seed: u64) -> u64 {
    (token ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

/// By bits that no table looks at: it takes its tags from the top, its places from the bottom.
fn table_of(hash: u64) -> usize {
    (hash >> 48) as usize % TABLES
}

impl std::ops::Index<ObjectIndex> for Objects {
    type Output = Object;

    fn index(&self, index: ObjectIndex) -> &Object {
        &self.rows[index.0 as usize / ROW][index.0 as usize % ROW]
    }
}

impl std::ops::IndexMut<ObjectIndex> for Objects {
    fn index_mut(&mut self, index: ObjectIndex) -> &mut Object {
        &mut self.rows[index.0 as usize / ROW][index.0 as usize % ROW]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: u64, seq: u64) -> TailEntry {
        TailEntry { slot, ballot: Ballot::ZERO, decided: false, source: Source::Own(seq) }
    }

    fn slots(tail: &Tail) -> Vec<u64> {
        tail.iter().map(|entry| entry.slot).collect()
    }

    #[test]
    fn a_tail_stays_in_slot_order_whatever_comes_first() {
        let mut tail = Tail::default();
        for slot in [5, 3, 9, 7, 4, 3] {
            tail.put(entry(slot, slot));
        }
        assert_eq!((slots(&tail), tail.len()), (vec![3, 4, 5, 7, 9], 5));
        tail.put(entry(7, 70));
        assert_eq!(tail.get_mut(7).unwrap().source, Source::Own(70));
        assert!(tail.get_mut(6).is_none());
        let popped: Vec<u64> = std::iter::from_fn(|| tail.pop_first()).map(|entry| entry.slot).collect();
        assert_eq!((popped, tail.is_empty(), tail.len()), (vec![3, 4, 5, 7, 9], true, 0));
    }

    #[test]
    fn keys_are_found_again() {
        let mut objects = Objects::new(7);
        let new = |key: &[u8]| Object {
            key: key.into(),
            promised: Ballot::ZERO,
            applied: 0,
            state: ObjectState::default(),
            tail: Tail::default(),
            role: Role::Idle,
            own_seq: 0,
            rare: None,
        };
        for number in 0..1000u32 {
            let key = number.to_le_bytes();
            assert_eq!(objects.find(&key), None);
            assert_eq!(objects.find_or_insert(&key, |_| new(&key)), ObjectIndex(number));
            assert_eq!(objects.find_or_insert(&key, |_| unreachable!()), ObjectIndex(number));
        }
        assert!((0..1000u32).all(|n| objects.find(&n.to_le_bytes()) == Some(ObjectIndex(n))));
    }
}
