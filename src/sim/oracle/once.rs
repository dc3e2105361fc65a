//! At most once (`protocol.md` §10, invariant 7), and each request answered once, to whom asked, with what can be an answer.
//!
//! Effects are told from what the cluster holds: a value, whose number is unique, belongs to one version of one key; and if
//! the version rose over a slot, the slot's command took effect there. Answers are told from what the clients see.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Rule, Violation, linear::Act};
use crate::{
    command::{Command, Status},
    topology::NodeIndex,
};

/// A command as its client names it: client and id.
pub type CommandId = (u64, u64);

/// A request as it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Who asks: the connection, under a number that is never used again.
    pub connection: u64,
    /// The client's command; asked again, it is the same one.
    pub command: CommandId,
    /// The object.
    pub key: u64,
    /// What it does.
    pub act: Act,
}

/// An answer as it reaches the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// The version that it names.
    pub version: u64,
    /// The number of the value that it carries; 0 if it carries none.
    pub value: u64,
}

/// A command on an object: an id says nothing of other objects.
type Place = (CommandId, u64);

#[derive(Clone, Debug, Default)]
struct Known {
    /// What was asked for first under this id, and whether something else was too: what is answered is about either.
    act: Option<Act>,
    is_shared: bool,
    /// How often it was asked, and how often refused: only if always, it is certain that nothing happened.
    asked: usize,
    refused: usize,
    /// The first answer that says how a write ended.
    answer: Option<(Status, u64)>,
    /// The highest slot that it can have taken effect in.
    effect: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    asked: Asked,
    answered: bool,
}

/// The last state of an object that was taken.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    applied: u64,
    version: u64,
}

/// The oracle of invariant 7 and of answers.
#[derive(Clone, Debug, Default)]
pub struct Once {
    requests: HashMap<u64, Request>,
    commands: HashMap<Place, Known>,
    /// By value: the key that it was to be written to, and by whom.
    written: HashMap<u64, (u64, CommandId)>,
    /// By value: the key and the version that it was seen at.
    seen: HashMap<u64, (u64, u64)>,
    last: HashMap<u64, Last>,
    closed: BTreeSet<u64>,
}

impl Once {
    /// Nothing has been asked.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client asks, for the first time or again; `request` is a number that no other request has.
    ///
    /// # Errors
    /// If the history is none: a number is used twice, or a value is written by two commands.
    pub fn asked(&mut self, request: u64, asked: Asked) -> Result<(), Violation> {
        let value = asked.act.written();
        let owner = (asked.key, asked.command);
        let reused = value != 0 && *self.written.entry(value).or_insert(owner) != owner;
        if reused || self.requests.insert(request, Request { asked, answered: false }).is_some() {
            let text = format!("request {request} is no request: its number or its value {value} was used before");
            return Err(Rule::Core.broken(text));
        }
        let known = self.commands.entry((asked.command, asked.key)).or_default();
        known.asked += 1;
        known.is_shared |= *known.act.get_or_insert(asked.act) != asked.act;
        Ok(())
    }

    /// An answer reaches a connection, of which nothing is to be judged but that it was asked for there: another command of
    /// this client has the same id.
    ///
    /// # Errors
    /// If it was not asked for there, or was answered before.
    pub fn ended(&mut self, connection: u64, request: u64) -> Result<(), Violation> {
        self.take_answer(connection, request).map(|_| ())
    }

    /// An answer reaches a connection.
    ///
    /// # Errors
    /// If it was not asked for there, was answered before, or cannot be the answer.
    pub fn answered(&mut self, connection: u64, request: u64, answer: Answer) -> Result<(), Violation> {
        let asked = self.take_answer(connection, request)?;
        let wrong = |what: &str| {
            let text = format!("request {request} gets {answer:?} on connection {connection}: {what}");
            Err(Rule::WrongAnswer.broken(text))
        };
        if let Some(what) = mismatch(asked.act, answer) {
            return wrong(what);
        }
        if answer.value != 0 && self.written.get(&answer.value).is_none_or(|(key, _)| *key != asked.key) {
            return wrong(&format!("nobody has asked to write that to key {}", asked.key));
        }
        if asked.act != Act::Get {
            self.learn(request, asked, answer)?;
        }
        Ok(())
    }

    /// What was asked there, and is answered now.
    fn take_answer(&mut self, connection: u64, request: u64) -> Result<Asked, Violation> {
        let wrong = |what: &str| {
            let text = format!("request {request} gets an answer on connection {connection}: {what}");
            Err(Rule::WrongAnswer.broken(text))
        };
        let Some(known) = self.requests.get_mut(&request) else { return wrong("nobody asked it") };
        let asked = known.asked;
        if asked.connection != connection {
            return wrong(&format!("it was asked on connection {}", asked.connection));
        }
        if known.answered {
            return wrong("it was answered before");
        }
        if self.closed.contains(&connection) {
            return wrong("that is closed");
        }
        known.answered = true;
        Ok(asked)
    }

    /// What an answer says of a write.
    fn learn(&mut self, request: u64, asked: Asked, answer: Answer) -> Result<(), Violation> {
        let command = self.commands.get_mut(&(asked.command, asked.key)).expect("it was asked");
        if command.is_shared {
            return Ok(());
        }
        if answer.status.is_refused() {
            command.refused += 1;
            return command.check_effect((asked.command, asked.key));
        }
        if !answer.status.is_executed() || answer.status == Status::Duplicate {
            return Ok(());
        }
        let now = (answer.status, answer.version);
        let before = *command.answer.get_or_insert(now);
        if before == now {
            return Ok(());
        }
        let (client, id) = asked.command;
        let text = format!(
            "request {request}, command {id} of client {client}, ended in {now:?} and, asked before, in {before:?}"
        );
        Err(Rule::WrongAnswer.broken(text))
    }

    /// A connection is closed: what it has not been answered by now it never will be.
    pub fn closed(&mut self, connection: u64) {
        self.closed.insert(connection);
    }

    /// Requests that are not answered, on connections that are open, rising.
    pub fn unanswered(&self) -> Vec<u64> {
        let open = |request: &Request| !request.answered && !self.closed.contains(&request.asked.connection);
        let mut open: Vec<u64> =
            self.requests.iter().filter(|(_, request)| open(request)).map(|(number, _)| *number).collect();
        open.sort_unstable();
        open
    }

    /// A replica holds this of an object: everything up to `applied` is executed. `decided` gives the command of a slot, if
    /// it is known.
    ///
    /// # Errors
    /// If a command took effect twice, or though it was refused, or if nobody asked for what the object holds.
    pub fn state<'a>(
        &mut self,
        node: NodeIndex,
        key: u64,
        applied: u64,
        (version, value): (u64, u64),
        decided: impl Fn(u64) -> Option<&'a [u8]>,
    ) -> Result<(), Violation> {
        let at = || format!("slot {applied} of key {key}, node {}", node.0);
        if value != 0 {
            let known = *self.seen.entry(value).or_insert((key, version));
            if known != (key, version) {
                let text =
                    format!("value {value} is version {version} of key {key} and {} of key {}", known.1, known.0);
                return Err(Rule::ExecutedTwice.broken(format!("{text} ({})", at())));
            }
            let Some((_, writer)) = self.written.get(&value).copied().filter(|(of, _)| *of == key) else {
                let text = format!("nobody has asked to write value {value} to key {key} ({})", at());
                return Err(Rule::StrayValue.broken(text));
            };
            self.took_effect(writer, key, applied, false)?;
        }
        let last = *self.last.entry(key).or_default();
        if applied <= last.applied {
            return Ok(());
        }
        self.last.insert(key, Last { applied, version });
        self.attribute(key, last, Last { applied, version }, decided)
    }

    /// Tells which commands took effect between two states of an object, and whether they can have.
    fn attribute<'a>(
        &mut self,
        key: u64,
        from: Last,
        to: Last,
        decided: impl Fn(u64) -> Option<&'a [u8]>,
    ) -> Result<(), Violation> {
        let slots = from.applied + 1..=to.applied;
        let mut commands = Vec::new();
        for slot in slots.clone() {
            let Some(command) = decided(slot) else { return Ok(()) };
            let command = Command::view(command);
            if command.op().is_write() {
                commands.push((slot, (command.client(), command.id())));
            }
        }
        let effects = to.version.saturating_sub(from.version);
        let fresh: BTreeMap<CommandId, u64> =
            commands.iter().rev().filter(|(_, id)| self.is_fresh((*id, key))).map(|(slot, id)| (*id, *slot)).collect();
        if to.version < from.version || effects > fresh.len() as u64 + self.placed(key, &commands, from) {
            let text = format!(
                "key {key} goes from version {} to {} over slots {slots:?}, with {} commands that had not taken effect",
                from.version,
                to.version,
                fresh.len()
            );
            return Err(Rule::ExecutedTwice.broken(text));
        }
        // With one command there is no doubt which it was.
        if let ([(slot, id)], 1) = (&commands[..], effects) {
            self.took_effect(*id, key, *slot, true)?;
        }
        Ok(())
    }

    fn is_fresh(&self, place: Place) -> bool {
        self.commands.get(&place).is_none_or(|known| known.effect.is_none())
    }

    /// How many of these commands are known to have taken effect in just these slots, by the values that they left.
    fn placed(&self, key: u64, commands: &[(u64, CommandId)], from: Last) -> u64 {
        let ids: BTreeSet<CommandId> = commands.iter().map(|(_, id)| *id).collect();
        let effect = |id: &CommandId| self.commands.get(&(*id, key)).and_then(|known| known.effect);
        let here = |id: &&CommandId| effect(id).is_some_and(|slot| slot > from.applied);
        ids.iter().filter(here).count() as u64
    }

    /// A command took effect on a key, in `slot` if that is certain, or else in it or before.
    fn took_effect(&mut self, id: CommandId, key: u64, slot: u64, is_certain: bool) -> Result<(), Violation> {
        let known = self.commands.entry((id, key)).or_default();
        let (client, number) = id;
        match &mut known.effect {
            None => known.effect = Some(slot),
            Some(before) if is_certain && *before < slot => {
                let text = format!(
                    "command {number} of client {client} takes effect in slot {slot} of key {key}, and did before, by \
                     slot {before}"
                );
                return Err(Rule::ExecutedTwice.broken(text));
            }
            Some(before) => *before = slot.min(*before),
        }
        known.check_effect((id, key))
    }
}

impl Known {
    /// What takes effect was asked for, and not always refused.
    fn check_effect(&self, ((client, id), key): Place) -> Result<(), Violation> {
        let Some(slot) = self.effect else { return Ok(()) };
        let text =
            |what: &str| format!("command {id} of client {client} {what} took effect by slot {slot} of key {key}");
        match (self.asked, self.refused) {
            (0, _) => Err(Rule::StrayValue.broken(text("was never asked for, but"))),
            (asked, refused) if asked == refused => Err(Rule::ExecutedTwice.broken(text("was refused, but"))),
            _ => Ok(()),
        }
    }
}

/// Why this cannot be the answer to that, whatever happened.
fn mismatch(act: Act, answer: Answer) -> Option<&'static str> {
    let is_read = act == Act::Get;
    match answer.status {
        Status::Ok if is_read && answer.value == 0 => Some("a read that found something has its value"),
        Status::Ok if is_read => None,
        _ if answer.value != 0 => Some("only a read that found something has a value"),
        Status::NotFound if !is_read && act != Act::Delete => Some("only reads and deletes miss a value"),
        Status::CasFailed if matches!(act, Act::Get | Act::Put(_) | Act::Delete) => Some("it expects nothing"),
        Status::Duplicate | Status::OutcomeUnknown | Status::IdTaken | Status::IdReused | Status::IdStale
            if is_read =>
        {
            Some("a read is not judged")
        }
        Status::IdReused => Some("no client gives an id to two commands"),
        Status::Ok if answer.version == 0 => Some("a write that took effect has a version"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Action, NewCommand};

    const NODE: NodeIndex = NodeIndex(0);

    fn ask(client: u64, id: u64, act: Act) -> Asked {
        Asked { connection: client, command: (client, id), key: 5, act }
    }

    fn answer(status: Status, version: u64, value: u64) -> Answer {
        Answer { status, version, value }
    }

    const REFUSED: Answer = Answer { status: Status::Overloaded, version: 0, value: 0 };

    /// Client 1 has asked twice to write 11 (requests 1 and 2), client 2 once to write 22 (3) and to read (4), client 3 to
    /// delete (5).
    fn asked() -> Once {
        let mut once = Once::new();
        let put = ask(1, 1, Act::Put(11));
        once.asked(1, put).unwrap();
        once.asked(2, put).unwrap();
        once.asked(3, ask(2, 1, Act::CasAbsent(22))).unwrap();
        once.asked(4, ask(2, 2, Act::Get)).unwrap();
        once.asked(5, ask(3, 1, Act::Delete)).unwrap();
        once
    }

    fn write(client: u64, id: u64, action: Action<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        NewCommand { client, id, retry: false, key: b"key-5", action }.encode(&mut bytes).unwrap();
        bytes
    }

    /// Shows states of key 5, one after the other: slot, version, value; `log` says what was decided from slot 1 on.
    fn show(once: &mut Once, log: &[Vec<u8>], states: &[(u64, u64, u64)]) -> Result<(), Rule> {
        for (applied, version, value) in states {
            let decided = |slot: u64| log.get(slot as usize - 1).map(|command| command.as_slice());
            once.state(NODE, 5, *applied, (*version, *value), decided).map_err(|violation| violation.rule)?;
        }
        Ok(())
    }

    fn logs() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let put = |client: u64, value: u64| write(client, 1, Action::Put(&value.to_le_bytes()));
        (put(1, 11), put(2, 22), write(3, 1, Action::Delete))
    }

    #[test]
    fn what_happens_once_is_taken() {
        let (first, second, delete) = logs();
        let log = [first.clone(), first, delete.clone(), second, delete];
        let states = [(1, 1, 11), (2, 1, 11), (3, 2, 0), (4, 3, 22), (5, 3, 22)];
        assert_eq!(show(&mut asked(), &log, &states), Ok(()));
        assert_eq!(show(&mut asked(), &log, &[(2, 1, 11), (5, 3, 22), (1, 1, 11)]), Ok(()), "another falls behind");
        assert_eq!(show(&mut asked(), &log, &[(5, 3, 22)]), Ok(()), "all at once");
        assert_eq!(show(&mut asked(), &[], &[(5, 3, 22)]), Ok(()), "nobody knows what was decided");
    }

    #[test]
    fn what_happens_twice_is_refused() {
        let (first, second, delete) = logs();
        let twice = |log: &[Vec<u8>], states: &[(u64, u64, u64)]| {
            assert_eq!(show(&mut asked(), log, states), Err(Rule::ExecutedTwice), "{states:?}");
        };
        let log = [first.clone(), second, first.clone()];
        twice(&log, &[(1, 1, 11), (2, 2, 22), (3, 3, 11)]);
        twice(&[first.clone(), first.clone()], &[(1, 1, 11), (2, 2, 11)]);
        twice(&[first.clone(), first], &[(2, 2, 11)]);
        // A delete leaves no value to know it by.
        let log = [delete.clone(), delete];
        twice(&log, &[(1, 1, 0), (2, 2, 0)]);
        twice(&log, &[(2, 2, 0)]);
    }

    #[test]
    fn what_was_refused_must_not_happen() {
        let (_, second, delete) = logs();
        let mut once = asked();
        once.answered(2, 3, REFUSED).unwrap();
        assert_eq!(show(&mut once, std::slice::from_ref(&second), &[(1, 1, 22)]), Err(Rule::ExecutedTwice));
        let mut once = asked();
        once.answered(3, 5, REFUSED).unwrap();
        assert_eq!(show(&mut once, &[delete], &[(1, 1, 0)]), Err(Rule::ExecutedTwice));
        let mut once = asked();
        show(&mut once, &[second], &[(1, 1, 22)]).unwrap();
        assert_eq!(once.answered(2, 3, REFUSED).unwrap_err().rule, Rule::ExecutedTwice, "the refusal may come later");
        let mut once = asked();
        once.answered(1, 1, REFUSED).unwrap();
        show(&mut once, &[], &[(1, 1, 11)]).unwrap();
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        assert_eq!(show(&mut asked(), &[], &[(1, 1, 99)]), Err(Rule::StrayValue));
        let unasked = write(9, 1, Action::Delete);
        assert_eq!(show(&mut asked(), &[unasked], &[(1, 1, 0)]), Err(Rule::StrayValue));
        let mut once = asked();
        let elsewhere = once.state(NODE, 6, 1, (1, 11), |_| None).unwrap_err();
        assert_eq!(elsewhere.rule, Rule::StrayValue, "it was to be written to another key");
        assert_eq!(once.asked(1, ask(1, 9, Act::Get)).unwrap_err().rule, Rule::Core);
        assert_eq!(once.asked(9, ask(1, 9, Act::Put(11))).unwrap_err().rule, Rule::Core);
    }

    #[test]
    fn right_answers_are_taken() {
        let mut once = asked();
        once.answered(1, 1, answer(Status::Ok, 1, 0)).unwrap();
        once.answered(1, 2, answer(Status::Ok, 1, 0)).unwrap();
        once.answered(2, 4, answer(Status::Ok, 1, 11)).unwrap();
        assert_eq!(once.unanswered(), [3, 5]);
        once.closed(2);
        assert_eq!(once.unanswered(), [5]);
        once.answered(3, 5, answer(Status::TimeoutMaybeDone, 0, 0)).unwrap();
        assert_eq!(once.unanswered(), [0; 0]);
    }

    #[test]
    fn wrong_answers_are_refused() {
        let ok = answer(Status::Ok, 1, 0);
        let wrong = [
            ("asked by nobody", 1, 9, ok),
            ("asked elsewhere", 2, 1, ok),
            ("a write with a value", 1, 1, answer(Status::Ok, 1, 11)),
            ("a write that expects nothing", 1, 1, answer(Status::CasFailed, 1, 0)),
            ("a write that misses nothing", 1, 1, answer(Status::NotFound, 1, 0)),
            ("an effect without a version", 1, 1, answer(Status::Ok, 0, 0)),
            ("a read without what it found", 2, 4, ok),
            ("a read of nothing, with a value", 2, 4, answer(Status::NotFound, 1, 11)),
            ("a read of what nobody wrote", 2, 4, answer(Status::Ok, 1, 99)),
            ("a duplicate read", 2, 4, answer(Status::Duplicate, 1, 0)),
        ];
        for (what, connection, request, answer) in wrong {
            let violation = asked().answered(connection, request, answer).expect_err(what);
            assert_eq!(violation.rule, Rule::WrongAnswer, "{what}");
        }
        let mut again = asked();
        again.answered(1, 1, ok).unwrap();
        assert_eq!(again.answered(1, 1, ok).unwrap_err().rule, Rule::WrongAnswer, "answered twice");
        let another = again.answered(1, 2, answer(Status::Ok, 2, 0)).unwrap_err();
        assert_eq!(another.rule, Rule::WrongAnswer, "two outcomes of one command");
        let mut closed = asked();
        closed.closed(1);
        assert_eq!(closed.answered(1, 1, ok).unwrap_err().rule, Rule::WrongAnswer);
        let mut other_key = asked();
        let elsewhere = Asked { key: 6, ..ask(1, 2, Act::Get) };
        other_key.asked(6, elsewhere).unwrap();
        assert!(other_key.answered(1, 6, answer(Status::Ok, 1, 11)).is_err(), "it is another key's value");
    }
}
