//! Commands line by line: from a terminal with an editor, or from anything else as it comes.

use std::{
    ffi::OsString,
    io::{self, BufRead, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use clap::{Parser, error::ErrorKind};
use rustyline::{CompletionType, Config, Editor, error::ReadlineError, history::FileHistory};

use super::{
    CmdError,
    complete::Completion,
    execute,
    exit::OK,
    report::{Output, Report},
    session::Session,
    verbs::{Line, PromptVerb, Verb},
};

/// Two values of the largest size, should each of their bytes need quoting.
const LINE_BYTES_MAX: usize = 8 << 20;
/// Lines that the prompt remembers.
const HISTORY_LINES: usize = 1000;

/// What a line asks for.
enum Step {
    Nothing,
    Exit,
    Execute(Verb),
    Say(Report),
}

fn step(line: &[u8]) -> Step {
    let words = match words(line) {
        Ok(words) if words.is_empty() => return Step::Nothing,
        Ok(words) => words,
        Err(problem) => return Step::Say(Report::usage(problem)),
    };
    // The verb only: what follows may be anything.
    let words = match words.first().map(|word| word.as_bytes()) {
        Some(b"?") => [OsString::from("help")].into_iter().chain(words.into_iter().skip(1)).collect(),
        _ => words,
    };
    match Line::try_parse_from(words) {
        Ok(Line { verb: PromptVerb::Exit }) => Step::Exit,
        Ok(Line { verb: PromptVerb::Verb(verb) }) => Step::Execute(verb),
        Err(error) => {
            let said = error.to_string();
            let said = said.trim_end();
            match error.kind() {
                ErrorKind::DisplayHelp => Step::Say(Report::new(OK, "help").with("text", said).text(said)),
                _ => Step::Say(Report::usage(said.strip_prefix("error: ").unwrap_or(said))),
            }
        }
    }
}

/// A line's words, as a POSIX shell would cut them: quotation marks, backslashes, `#` for comments; nothing is expanded.
fn words(line: &[u8]) -> Result<Vec<OsString>, &'static str> {
    // Shells know no carriage return; lines that come from elsewhere end with one.
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let words = shlex::bytes::split(line).ok_or("the line ends within quotation marks, or with a backslash")?;
    Ok(words.into_iter().map(OsString::from_vec).collect())
}

/// Executes lines until they end; gives the code of the first that failed.
pub(super) fn lines(session: &mut Session, input: &mut dyn BufRead, to: &mut Output<'_>) -> Result<u8, CmdError> {
    session.begin()?;
    let (mut line, mut code) = (Vec::new(), OK);
    loop {
        line.clear();
        if input.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            return Ok(code);
        }
        if line.len() > LINE_BYTES_MAX {
            let problem = format!("a line is longer than {LINE_BYTES_MAX} bytes; nothing of it or behind it was done");
            let ended = Report::usage(&problem).print(to)?;
            return Ok(if code == OK { ended } else { code });
        }
        let ended = match step(&line) {
            Step::Nothing => OK,
            Step::Exit => return Ok(code),
            Step::Say(report) => report.print(to)?,
            Step::Execute(verb) => execute(session, &verb).print(to)?,
        };
        code = if code == OK { ended } else { code };
    }
}

/// The same from a terminal, with an editor, completion, and lines remembered in `file`. Whoever typed has seen what became of
/// each, so the code is 0.
pub(super) fn edit(session: &mut Session, file: Option<&Path>, to: &mut Output<'_>) -> Result<u8, CmdError> {
    let prompt = format!("{}> ", session.begin()?);
    let config = Config::builder().max_history_size(HISTORY_LINES)?.history_ignore_space(true).auto_add_history(true);
    let config = config.completion_type(CompletionType::List);
    let mut editor = Editor::<Completion, FileHistory>::with_config(config.build())?;
    editor.set_helper(Some(Completion::new(session.nodes())));
    if let Some(file) = file {
        // There is none the first time.
        let _ = editor.load_history(file);
    }
    let mut unsaved = None;
    loop {
        let line = match editor.readline(&prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        // At once, and behind what other prompts have written meanwhile.
        let saved = file.map_or(Ok(()), |file| append(&mut editor, file));
        unsaved = saved.err().or(unsaved);
        match step(line.as_bytes()) {
            Step::Nothing => {}
            Step::Exit => break,
            Step::Say(report) => drop(report.print(to)?),
            Step::Execute(verb) => drop(execute(session, &verb).print(to)?),
        }
    }
    if let (Some(file), Some(error)) = (file, unsaved) {
        let file = file.display();
        crate::complain!("lines were not saved in {file}: {error}; with --no-history-file it is not tried");
    }
    Ok(OK)
}

fn append(editor: &mut Editor<Completion, FileHistory>, file: &Path) -> Result<(), ReadlineError> {
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    editor.append_history(file)
}

/// Where typed lines are kept: below `XDG_STATE_HOME`, or else `~/.local/state`.
pub(super) fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().map(|home| home.join(".local/state"));
    state.or_else(home).map(|state| state.join("wpaxos").join("cmd-history"))
}

impl From<ReadlineError> for CmdError {
    fn from(error: ReadlineError) -> Self {
        match error {
            ReadlineError::Io(error) => Self::Terminal(error),
            other => Self::Terminal(io::Error::other(other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn cut(line: &[u8]) -> Vec<Vec<u8>> {
        words(line).unwrap().into_iter().map(OsString::into_vec).collect()
    }

    #[test]
    fn words_are_cut_as_in_a_shell() {
        assert_eq!(cut(b"put 'a key' \"its \\\"value\\\"\"\n"), [&b"put"[..], b"a key", b"its \"value\""]);
        assert_eq!(cut(b"put k '' # nothing\n"), [&b"put"[..], b"k", b""]);
        assert_eq!(cut(b"put \\#k a#b $HOME *\r\n")[1..], [&b"#k"[..], b"a#b", b"$HOME", b"*"]);
        assert_eq!(cut(b"put k \xff\xfe\n")[2], b"\xff\xfe");
        assert!(words(b"put k 'open\n").is_err() && words(b"put k \\").is_err());
        assert!(cut(b"  # only a comment\n").is_empty());
    }

    #[test]
    fn each_line_is_a_command_help_or_the_end() {
        assert!(matches!(step(b"\n"), Step::Nothing));
        assert!(matches!(step(b"exit\n"), Step::Exit) && matches!(step(b"quit"), Step::Exit));
        assert!(matches!(step(b"set k -1"), Step::Execute(Verb::Put { .. })));
        assert!(matches!(step(b"put k --expect"), Step::Execute(Verb::Put { .. })));
        assert!(matches!(step(b"cas k --expect -1 -2"), Step::Execute(Verb::Cas { .. })));
        assert!(matches!(step(b"get -- -k"), Step::Execute(Verb::Get { .. })));
        assert!(matches!(step(b"partition 5 1.1,1.2 2.1 --one-way"), Step::Execute(Verb::Partition { nodes, .. })
            if nodes.len() == 3));
        for help in ["help", "?", "help put", "? cas"] {
            assert!(matches!(step(help.as_bytes()), Step::Say(report) if report.code == OK), "{help}");
        }
        for wrong in [
            "frob",
            "get",
            "get a b",
            "put k 'v",
            "crash 1 5",
            "crash 1.1",
            "slow 1.1 1.2 0 5",
            "flaky 1.1 1.2 much 5",
            "partition 5",
            "partition -1 1.1",
            "owners k --after j",
            "owners --limit 0",
            "steal k",
        ] {
            let said = step(wrong.as_bytes());
            assert!(matches!(said, Step::Say(report) if report.code == super::super::exit::USAGE), "{wrong}");
        }
    }

    #[test]
    fn the_first_of_the_words_only_is_a_question_mark() {
        let Step::Execute(Verb::Get { key }) = step(b"get ?") else { panic!("it is a command") };
        assert_eq!(key, OsStr::new("?"));
    }
}
