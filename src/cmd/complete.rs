//! Completion at the prompt: verbs, their flags, and node ids where a node is asked for.

use clap::{Arg, Command, CommandFactory};
use rustyline::{
    Context, Helper,
    completion::{Completer, Pair},
    highlight::Highlighter,
    hint::Hinter,
    validate::Validator,
};

use super::verbs::Line;
use crate::topology::NodeId;

/// What stands for a node in `--help`.
const NODE_NAMES: &[&str] = &["NODE", "FROM", "TO"];

/// What can be completed: the commands as they are declared, and the cluster's nodes.
pub(super) struct Completion {
    commands: Command,
    nodes: Vec<String>,
}

impl Completion {
    pub(super) fn new(nodes: Vec<NodeId>) -> Self {
        let mut commands = Line::command();
        commands.build();
        Self { commands, nodes: nodes.iter().map(ToString::to_string).collect() }
    }

    /// What the last word of a line may become, and where it begins.
    fn candidates(&self, line: &str) -> (usize, Vec<String>) {
        let start = line.rfind([' ', '\t', ',']).map_or(0, |blank| blank + 1);
        let (before, word) = line.split_at(start);
        // Within quotation marks nothing is completed.
        let Some(words) = shlex::split(&before.replace(',', " ")) else { return (start, Vec::new()) };
        let all = match words.split_first() {
            None => self.verbs(),
            Some((verb, _)) if verb == "help" && words.len() == 1 => self.verbs(),
            Some((verb, rest)) => self.arguments(verb, rest, word),
        };
        let mut fitting: Vec<String> = all.into_iter().filter(|candidate| candidate.starts_with(word)).collect();
        fitting.sort_unstable();
        (start, fitting)
    }

    fn verbs(&self) -> Vec<String> {
        self.commands.get_subcommands().map(|verb| verb.get_name().to_owned()).collect()
    }

    fn arguments(&self, verb: &str, rest: &[String], word: &str) -> Vec<String> {
        let Some(command) = self.commands.find_subcommand(verb) else { return Vec::new() };
        let flag = |word: &str| {
            let name = word.strip_prefix("--")?;
            command.get_opts().find(|option| option.get_long() == Some(name))
        };
        if let Some(flag) = rest.last().and_then(|last| flag(last)).filter(|flag| flag.get_action().takes_values()) {
            return self.values_of(flag);
        }
        if word.starts_with('-') {
            let longs = command.get_arguments().filter_map(Arg::get_long);
            return longs.map(|long| format!("--{long}")).collect();
        }
        let (mut place, mut of_flag) = (0, false);
        for word in rest {
            let is_flag = word.starts_with("--");
            place += usize::from(!is_flag && !of_flag);
            of_flag = flag(word).is_some_and(|flag| flag.get_action().takes_values());
        }
        let positionals: Vec<&Arg> = command.get_positionals().collect();
        let repeated =
            positionals.last().filter(|last| last.get_num_args().is_some_and(|range| range.max_values() > 1));
        let asked = positionals.get(place).or(repeated);
        asked.map_or_else(Vec::new, |argument| self.values_of(argument))
    }

    fn values_of(&self, argument: &Arg) -> Vec<String> {
        let names = argument.get_value_names().unwrap_or_default();
        if names.iter().any(|name| NODE_NAMES.contains(&name.as_str())) { self.nodes.clone() } else { Vec::new() }
    }
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, candidates) = self.candidates(&line[..at]);
        let pair = |display: String| Pair { replacement: format!("{display} "), display };
        Ok((start, candidates.into_iter().map(pair).collect()))
    }
}

impl Hinter for Completion {
    type Hint = String;
}

impl Highlighter for Completion {}
impl Validator for Completion {}
impl Helper for Completion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_flags_and_nodes_are_completed_where_they_belong() {
        let nodes = [NodeId::new(1, 1), NodeId::new(1, 2), NodeId::new(2, 1)];
        let completion = Completion::new(nodes.to_vec());
        for (line, start, expected) in [
            ("st", 0, vec!["stats", "status", "steal"]),
            ("  pa", 2, vec!["partition"]),
            ("help sl", 5, vec!["slow"]),
            ("frob ", 5, vec![]),
            ("get k", 4, vec![]),
            ("get ", 4, vec![]),
            ("put 'a key ", 11, vec![]),
            ("cas k --", 6, vec!["--absent", "--expect", "--version"]),
            ("cas k --absent --v", 15, vec!["--version"]),
            ("crash ", 6, vec!["1.1", "1.2", "2.1"]),
            ("crash 1", 6, vec!["1.1", "1.2"]),
            ("crash 1.1 ", 10, vec![]),
            ("drop 1.1 2", 9, vec!["2.1"]),
            ("slow 1.1 2.1 ", 13, vec![]),
            ("partition 5 1.1 1.1 2", 20, vec!["2.1"]),
            ("partition 5 1.1,2", 16, vec!["2.1"]),
            ("steal key 2", 10, vec!["2.1"]),
            ("history --node 2", 15, vec!["2.1"]),
            ("owners --limit ", 15, vec![]),
            ("owners --limit 5 --n", 17, vec!["--node"]),
            ("status 1.1 ", 11, vec!["1.1", "1.2", "2.1"]),
            ("ex", 0, vec!["exit"]),
        ] {
            let found = completion.candidates(line);
            assert_eq!(
                (found.0, found.1.iter().map(String::as_str).collect::<Vec<_>>()),
                (start, expected),
                "'{line}'"
            );
        }
        assert!(completion.candidates("").1.len() > 18);
    }
}
