//! Which commands of an object's last writers are executed, and with what outcome: what makes a retry harmless.

use super::Executed;
use crate::command::Status;

/// How many writers an object remembers. The one whose last write is oldest is dropped first.
pub const SESSIONS_MAX: usize = 16;
/// How many ids below the highest a session remembers.
const WINDOW: u64 = 64;

/// What one client has had executed on one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// The client.
    pub client: u64,
    /// The highest of its ids that was executed.
    pub highest: u64,
    /// Bit i: whether `highest - 1 - i` was executed.
    pub before: u64,
    /// The slot of its last execution: the oldest is dropped first.
    pub slot: u64,
    /// The outcome of `highest`.
    pub status: Status,
    /// The object's version after `highest`.
    pub version: u64,
}

/// The sessions of an object's last writers (`protocol.md` §7); part of the replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Recent {
    /// At most [`SESSIONS_MAX`], in no order that matters but the same on every replica.
    pub sessions: Vec<Session>,
    /// Whether a session was ever dropped: an unknown client's retry cannot be judged then.
    pub dropped: bool,
}

/// What is known of a command before it is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It has not been executed.
    Fresh,
    /// It has, with this outcome.
    Done(Executed),
    /// It has; its outcome is no longer known.
    Duplicate,
    /// It may have been.
    Unknown,
}

impl Recent {
    /// What is known of a client's command.
    pub fn judge(&self, client: u64, id: u64, retry: bool) -> Judgement {
        let Some(session) = self.sessions.iter().find(|session| session.client == client) else {
            return if retry && self.dropped { Judgement::Unknown } else { Judgement::Fresh };
        };
        if id > session.highest {
            return Judgement::Fresh;
        }
        match session.highest - id {
            0 => Judgement::Done(Executed { status: session.status, version: session.version }),
            back @ 1..=WINDOW if session.before >> (back - 1) & 1 == 1 => Judgement::Duplicate,
            1..=WINDOW => Judgement::Fresh,
            _ => Judgement::Unknown,
        }
    }

    /// Notes that a command that was judged [`Judgement::Fresh`] is executed.
    pub fn record(&mut self, slot: u64, client: u64, id: u64, executed: Executed) {
        let Some(session) = self.sessions.iter_mut().find(|session| session.client == client) else {
            self.admit(Session {
                client,
                highest: id,
                before: 0,
                slot,
                status: executed.status,
                version: executed.version,
            });
            return;
        };
        session.slot = slot;
        if id > session.highest {
            let step = id - session.highest;
            let shifted = if step < WINDOW { session.before << step } else { 0 };
            session.before = if step <= WINDOW { shifted | 1 << (step - 1) } else { 0 };
            (session.highest, session.status, session.version) = (id, executed.status, executed.version);
        } else {
            assert!(id < session.highest, "the highest id was judged done");
            session.before |= 1 << (session.highest - id - 1);
        }
    }

    fn admit(&mut self, session: Session) {
        if self.sessions.len() < SESSIONS_MAX {
            self.sessions.push(session);
            return;
        }
        let oldest = self.sessions.iter_mut().min_by_key(|session| session.slot).expect("full");
        *oldest = session;
        self.dropped = true;
    }
}
