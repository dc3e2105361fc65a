//! Which commands of an object's last writers are executed, and with what outcome: what makes a retry harmless.

use smallvec::SmallVec;

use super::Executed;
use crate::command::{ID_MAX, ID_MIN, Status};

/// How many slots of an object may be open at once: proposed, and not executed by its owner. All replicas of a cluster have to
/// have the same number, which is why it cannot be set; the simulator, whose histories are short, runs clusters with fewer.
pub const OPEN_SLOTS_MAX: u64 = 256;
/// How many writers an object remembers, at the least. The one whose last write is oldest is dropped first, but never while a
/// copy of that write may still be in an open slot: more than these are those that wrote in the last slots that may be open.
pub const SESSIONS_MIN: usize = 16;
/// How many sessions there can be.
pub const SESSIONS_MAX: usize = SESSIONS_MIN + OPEN_SLOTS_MAX as usize;
/// How many ids below the highest a session remembers, each by a bit.
const WINDOW: u64 = 64;
/// How many executed ids below that it remembers one by one. A client's ids rise over all its objects, so those of one
/// object may be far apart, and two that overtake each other on their way are not a retry.
pub const OLDER_MAX: usize = 8;

/// What one client has had executed on one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// The client.
    pub client: u64,
    /// The highest of its ids that was executed.
    pub highest: u64,
    /// Bit i: whether `highest - 1 - i` was executed.
    pub before: u64,
    /// The highest executed ids below these 64.
    pub older: Older,
    /// Every executed id that is remembered in no other way is at or below this, or was executed before the session began.
    pub floor: u64,
    /// Before the session began, ids below this may have been executed: an earlier session of the client may have been
    /// dropped. 0 if none was.
    pub blind_below: u64,
    /// The slot of its last execution: the oldest is dropped first.
    pub slot: u64,
    /// The [digest](crate::command::Command::digest) of `highest`.
    pub digest: u32,
    /// The outcome of `highest`.
    pub status: Status,
    /// The object's version after `highest`.
    pub version: u64,
}

/// The sessions of an object's last writers (`protocol.md` §7); part of the replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Recent {
    /// In no order that matters but the same on every replica.
    pub sessions: SmallVec<[Session; 1]>,
    /// All ids of sessions that were dropped are below this, whosever they were: a retry of an unknown client with such an id
    /// cannot be judged. 0 if none was dropped.
    pub blind_below: u64,
}

/// What is known of a command before it is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It has not been executed.
    Fresh,
    /// It has, with this outcome.
    Done(Executed),
    /// A retry of a command that has been; its outcome is no longer known, nor what it was.
    Duplicate,
    /// A retry of a command that may have been.
    Unknown,
    /// Another command with its id has been.
    Reused,
    /// A first copy, and a command with its id has been; what that was is no longer known.
    Taken,
    /// A first copy, and a command with its id may have been.
    Stale,
}

impl Judgement {
    /// What a command that is judged so is answered without being executed; `None` if it is to be. `version` is the object's.
    pub fn answer(self, version: u64) -> Option<Executed> {
        let status = match self {
            Self::Fresh => return None,
            Self::Done(executed) => return Some(executed),
            Self::Duplicate => Status::Duplicate,
            Self::Unknown => Status::OutcomeUnknown,
            Self::Reused => Status::IdReused,
            Self::Taken => Status::IdTaken,
            Self::Stale => Status::IdStale,
        };
        Some(Executed { status, version, repeated: false })
    }
}

/// A write that is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The slot that decided it.
    pub slot: u64,
    /// Who issued it.
    pub client: u64,
    /// The client's number for it.
    pub id: u64,
    /// Its [digest](crate::command::Command::digest).
    pub digest: u32,
}

impl Recent {
    /// Whether executing the commands of the slots up to `applied`, which left the object at `version`, can have made it.
    /// Execution goes on from whatever passes: it neither overflows nor makes what does not pass.
    pub fn is_possible(&self, applied: u64, version: u64) -> bool {
        let mut clients: SmallVec<[u64; 16]> = self.sessions.iter().map(|session| session.client).collect();
        let mut slots: SmallVec<[u64; 16]> = self.sessions.iter().map(|session| session.slot).collect();
        clients.sort_unstable();
        slots.sort_unstable();
        let rises = |row: &[u64]| row.windows(2).all(|pair| pair[0] < pair[1]);
        let possible = |session: &Session| {
            session.is_possible() && session.blind_below <= self.blind_below && session.version <= version
        };
        self.sessions.len() <= SESSIONS_MAX
            && self.sessions.iter().all(possible)
            && rises(&clients)
            && rises(&slots)
            && slots.first().is_none_or(|first| *first > 0)
            && slots.last().is_none_or(|last| *last <= applied)
    }

    /// What is known of a client's command. Its digest is compared with that of the client's highest id only; a first copy
    /// with any other id that is remembered as executed is not taken for done, whatever it is.
    pub fn judge(&self, client: u64, id: u64, digest: u32, retry: bool) -> Judgement {
        self.judge_at(self.place_of(client), id, digest, retry)
    }

    /// Where a client's session is, for [`Self::judge_at`] and [`Self::record_at`].
    pub(super) fn place_of(&self, client: u64) -> Option<usize> {
        self.sessions.iter().position(|session| session.client == client)
    }

    pub(super) fn judge_at(&self, place: Option<usize>, id: u64, digest: u32, retry: bool) -> Judgement {
        let session = place.map(|place| &self.sessions[place]);
        let blind_below = session.map_or(self.blind_below, |session| session.blind_below);
        let unseen = if retry && id < blind_below { Judgement::Unknown } else { Judgement::Fresh };
        let Some(session) = session.filter(|session| id <= session.highest) else { return unseen };
        let executed = if retry { Judgement::Duplicate } else { Judgement::Taken };
        match session.highest - id {
            0 if session.digest != digest => Judgement::Reused,
            0 => Judgement::Done(Executed { status: session.status, version: session.version, repeated: true }),
            back @ 1..=WINDOW if session.before >> (back - 1) & 1 == 1 => executed,
            1..=WINDOW => unseen,
            _ if session.older.has(session.highest, id) => executed,
            _ if id > session.floor => unseen,
            _ if retry => Judgement::Unknown,
            _ => Judgement::Stale,
        }
    }

    /// Notes that a command that was judged [`Judgement::Fresh`] is executed, on an object that has up to `open_slots` open
    /// at a time.
    pub fn record(&mut self, write: Write, executed: Executed, open_slots: u64) {
        self.record_at(self.place_of(write.client), write, executed, open_slots);
    }

    pub(super) fn record_at(&mut self, place: Option<usize>, write: Write, executed: Executed, open_slots: u64) {
        assert!(open_slots <= OPEN_SLOTS_MAX, "there are places for the sessions of {OPEN_SLOTS_MAX} slots");
        let Write { slot, client, id, digest } = write;
        let Some(session) = place.map(|place| &mut self.sessions[place]) else {
            let session = Session {
                client,
                highest: id,
                before: 0,
                older: Older::default(),
                floor: 0,
                blind_below: self.blind_below,
                slot,
                digest,
                status: executed.status,
                version: executed.version,
            };
            self.admit(session, open_slots);
            return;
        };
        session.slot = slot;
        if id > session.highest {
            session.rise_to(id);
            (session.digest, session.status, session.version) = (digest, executed.status, executed.version);
            return;
        }
        assert!(id < session.highest, "the highest id was judged done");
        match session.highest - id - 1 {
            place @ 0..WINDOW => session.before |= 1 << place,
            _ => session.remember_older(id),
        }
    }

    fn admit(&mut self, session: Session, open_slots: u64) {
        let slot = session.slot;
        while self.sessions.len() >= SESSIONS_MIN {
            let oldest = self.sessions.iter().enumerate().min_by_key(|(_, session)| session.slot);
            let (place, oldest) = oldest.expect("there are some");
            if oldest.slot + open_slots >= slot {
                break;
            }
            self.blind_below = self.blind_below.max(oldest.highest.saturating_add(1));
            self.sessions.swap_remove(place);
        }
        self.sessions.push(Session { blind_below: self.blind_below, ..session });
    }
}

impl Session {
    /// Whether its ids can be those of commands that were executed.
    fn is_possible(&self) -> bool {
        let ids_before = self.highest.saturating_sub(ID_MIN);
        self.client != 0
            && (ID_MIN..=ID_MAX).contains(&self.highest)
            && (ids_before >= WINDOW || self.before >> ids_before == 0)
            && (self.floor == 0 || self.floor < self.highest.saturating_sub(WINDOW))
    }

    /// Moves the window up to a new highest id; what falls out of it is remembered one by one.
    fn rise_to(&mut self, id: u64) {
        let (step, before) = (id - self.highest, self.highest);
        let forgotten = self.older.forget_far(before, step);
        self.forget(forgotten);
        self.highest = id;
        let stays = WINDOW.saturating_sub(step);
        let mut leaving = if stays == 0 { self.before } else { self.before >> stays << stays };
        while leaving != 0 {
            // The lowest id first, so that the highest ones stay remembered.
            let place = 63 - u64::from(leaving.leading_zeros());
            self.remember_older(before - 1 - place);
            leaving &= !(1 << place);
        }
        if step > WINDOW {
            let forgotten = self.older.push(id, before);
            self.forget(forgotten);
        }
        let shifted = if step < WINDOW { self.before << step } else { 0 };
        self.before = if step <= WINDOW { shifted | 1 << (step - 1) } else { 0 };
    }

    fn remember_older(&mut self, id: u64) {
        let forgotten = self.older.add(self.highest, id);
        self.forget(forgotten);
    }

    /// These ids, 0 for none, are no longer remembered one by one.
    fn forget(&mut self, id: u64) {
        self.floor = self.floor.max(id);
    }
}

/// Some ids below a session's highest one, falling, each by its lower half: the upper half follows, because none of them is
/// 2^32 or more below the highest.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash)]
pub struct Older {
    low: [u32; OLDER_MAX],
    count: u8,
}

impl Older {
    /// From how far below the highest id they are, rising, 0 for none; `None` if [`Self::backs`] never gives such numbers.
    pub fn from_backs(highest: u64, backs: [u32; OLDER_MAX]) -> Option<Self> {
        let count = backs.iter().take_while(|back| **back != 0).count();
        let (some, none) = backs.split_at(count);
        let rise = some.windows(2).all(|pair| pair[0] < pair[1]) && none.iter().all(|back| *back == 0);
        let exist = some.last().is_none_or(|back| u64::from(*back) <= highest.saturating_sub(ID_MIN));
        let below_window = some.first().is_none_or(|back| u64::from(*back) > WINDOW);
        let low = backs.map(|back| if back == 0 { 0 } else { (highest as u32).wrapping_sub(back) });
        (rise && exist && below_window).then_some(Self { low, count: count as u8 })
    }

    /// How far below the highest id each is, rising; 0 for none.
    pub fn backs(&self, highest: u64) -> [u32; OLDER_MAX] {
        let mut backs = [0; OLDER_MAX];
        for (back, low) in backs.iter_mut().zip(self.low()) {
            *back = (highest as u32).wrapping_sub(*low);
        }
        backs
    }

    fn low(&self) -> &[u32] {
        &self.low[..usize::from(self.count)]
    }

    fn has(&self, highest: u64, id: u64) -> bool {
        highest - id <= u64::from(u32::MAX) && self.low().contains(&(id as u32))
    }

    /// The highest id is about to rise by `step`: forgets what is too far below it then. The highest id that was forgotten,
    /// 0 if none was.
    fn forget_far(&mut self, highest: u64, step: u64) -> u64 {
        let mut forgotten = 0;
        while let Some(last) = self.low().last() {
            let back = u64::from((highest as u32).wrapping_sub(*last));
            if back.saturating_add(step) <= u64::from(u32::MAX) {
                break;
            }
            // They fall, so the last that is too far is the highest of these.
            forgotten = highest - back;
            self.count -= 1;
            self.low[usize::from(self.count)] = 0;
        }
        forgotten
    }

    /// Adds an id that is above all others. The id that there is no place for, 0 if there was.
    fn push(&mut self, highest: u64, id: u64) -> u64 {
        if highest - id > u64::from(u32::MAX) {
            return id;
        }
        let last = self.low[OLDER_MAX - 1];
        // Of a length that is known: two moves and no call.
        let before = self.low;
        self.low[1..].copy_from_slice(&before[..OLDER_MAX - 1]);
        self.low[0] = id as u32;
        if usize::from(self.count) == OLDER_MAX {
            return highest - u64::from((highest as u32).wrapping_sub(last));
        }
        self.count += 1;
        0
    }

    /// Adds an id below the highest. The id that there is no place for, 0 if there was.
    fn add(&mut self, highest: u64, id: u64) -> u64 {
        let back = highest - id;
        if back > u64::from(u32::MAX) {
            return id;
        }
        let back_of = |low: u32| u64::from((highest as u32).wrapping_sub(low));
        let place = self.low().iter().position(|low| back_of(*low) > back).unwrap_or(usize::from(self.count));
        if place == OLDER_MAX {
            return id;
        }
        let last = self.low[OLDER_MAX - 1];
        let dropped = if usize::from(self.count) == OLDER_MAX { highest - back_of(last) } else { 0 };
        self.low.copy_within(place..OLDER_MAX - 1, place + 1);
        self.low[place] = id as u32;
        self.count = (self.count + 1).min(OLDER_MAX as u8);
        dropped
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const DONE: Executed = Executed { status: Status::Ok, version: 1, repeated: true };

    /// Every command with the same id is the same one.
    impl Recent {
        fn judged(&self, client: u64, id: u64, retry: bool) -> Judgement {
            self.judge(client, id, id as u32, retry)
        }

        fn note(&mut self, slot: u64, client: u64, id: u64) {
            let write = Write { slot, client, id, digest: id as u32 };
            self.record(write, Executed { repeated: false, ..DONE }, OPEN_SLOTS_MAX);
        }
    }

    proptest! {
        /// Whatever the order in which ids are executed, none is ever taken for fresh again, and one that was not executed
        /// is never taken for done.
        #[test]
        fn a_session_never_forgets_wrongly(
            ids in prop::collection::vec(1..400u64, 1..60),
            spread in prop::sample::select(vec![1, 50, 20_000_000, 1 << 40]),
        ) {
            let (mut recent, mut executed) = (Recent::default(), BTreeSet::new());
            for id in ids.into_iter().map(|id| id * spread) {
                match recent.judged(7, id, false) {
                    Judgement::Fresh => {
                        prop_assert!(executed.insert(id), "{id} was executed before");
                        recent.note(id, 7, id);
                    }
                    Judgement::Done(_) | Judgement::Taken => prop_assert!(executed.contains(&id)),
                    Judgement::Stale => prop_assert!(id <= recent.sessions[0].floor),
                    other => prop_assert!(false, "{id}, a first copy, is judged {other:?}"),
                }
                for id in &executed {
                    prop_assert_ne!(recent.judged(7, *id, true), Judgement::Fresh);
                    prop_assert_ne!(recent.judged(7, *id, false), Judgement::Fresh);
                    let other = recent.judge(7, *id, !(*id as u32), false);
                    prop_assert!(!matches!(other, Judgement::Fresh | Judgement::Done(_)), "{other:?}");
                }
            }
        }
    }

    /// A client's session was dropped; a late command of a lower id begins another one.
    #[test]
    fn a_new_session_does_not_vouch_for_what_a_dropped_one_knew() {
        let mut recent = Recent::default();
        recent.note(1, 7, 5);
        for client in 100..100 + SESSIONS_MIN as u64 {
            recent.note(client - 98, client, 1);
        }
        assert_eq!(
            (recent.blind_below, recent.sessions.len()),
            (0, 1 + SESSIONS_MIN),
            "a copy may still be in an open slot"
        );
        recent.note(OPEN_SLOTS_MAX + 2, 150, 1);
        assert_eq!((recent.blind_below, recent.sessions.len()), (6, 1 + SESSIONS_MIN));
        assert_eq!(recent.judged(7, 5, true), Judgement::Unknown);
        assert_eq!(recent.judged(7, 6, true), Judgement::Fresh, "above everything that was forgotten");
        recent.note(OPEN_SLOTS_MAX + 3, 7, 3);
        assert_eq!(recent.judged(7, 3, true), Judgement::Done(DONE));
        for id in [2, 4, 5] {
            assert_eq!(recent.judged(7, id, true), Judgement::Unknown, "{id}");
            assert_eq!(recent.judged(7, id, false), Judgement::Fresh, "{id} as a first copy");
        }
        recent.note(OPEN_SLOTS_MAX + 4, 7, 5);
        assert_eq!((recent.judged(7, 4, true), recent.judged(7, 6, true)), (Judgement::Unknown, Judgement::Fresh));
    }

    #[test]
    fn ids_that_are_too_far_below_are_forgotten_and_never_taken_for_fresh() {
        let mut recent = Recent::default();
        let far = u64::from(u32::MAX);
        for id in [5, 100, 100 + far, 101 + far, 300 + far] {
            assert_eq!(recent.judged(7, id, false), Judgement::Fresh, "{id}");
            recent.note(id, 7, id);
        }
        // 5 and 100 are more than 2^32 below the highest.
        let backs = recent.sessions[0].older.backs(300 + far);
        assert_eq!((backs[..3].to_vec(), recent.sessions[0].floor), (vec![199, 200, 0], 100));
        assert_eq!(Older::from_backs(300 + far, backs), Some(recent.sessions[0].older));
        assert_eq!((recent.judged(7, 100, true), recent.judged(7, 99, false)), (Judgement::Unknown, Judgement::Stale));
        assert_eq!(
            (recent.judged(7, 101, true), recent.judged(7, 100 + far, true)),
            (Judgement::Fresh, Judgement::Duplicate)
        );
        recent.note(500 + far, 7, 101);
        assert_eq!(recent.judged(7, 101, true), Judgement::Unknown, "it is too far below to be remembered by itself");
        for wrong in [[82, 81, 0], [0, 81, 0], [81, 81, 0], [81, 100, 0], [64, 81, 0]] {
            let mut backs = [0; OLDER_MAX];
            backs[..3].copy_from_slice(&wrong);
            assert_eq!(Older::from_backs(100, backs), None, "{wrong:?}");
        }
        let mut backs = [0; OLDER_MAX];
        backs[..2].copy_from_slice(&[65, 99]);
        assert!(Older::from_backs(100, backs).is_some_and(|older| older.backs(100) == backs), "ids 35 and 1");
    }

    #[test]
    fn ids_that_are_far_apart_may_overtake_each_other() {
        let mut recent = Recent::default();
        let execute = |recent: &mut Recent, id: u64| {
            assert_eq!(recent.judged(7, id, false), Judgement::Fresh, "{id}");
            recent.note(id, 7, id);
        };
        for number in 1..=OLDER_MAX as u64 {
            execute(&mut recent, 1_000 * number);
        }
        // Late by up to as many commands as are remembered.
        execute(&mut recent, 10);
        assert_eq!(recent.judged(7, 1_000, true), Judgement::Duplicate);
        execute(&mut recent, 90_000);
        // Now the lowest is no longer remembered, and what is no higher cannot be judged.
        assert_eq!((recent.judged(7, 10, true), recent.judged(7, 9, true)), (Judgement::Unknown, Judgement::Unknown));
        assert_eq!(
            (recent.judged(7, 11, true), recent.judged(7, 1_000, true)),
            (Judgement::Fresh, Judgement::Duplicate)
        );
    }
}
