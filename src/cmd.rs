//! `wpaxos cmd`: one-off commands from a shell, and a prompt when none is given.
//!
//! What a command gives goes to standard output, why it gives nothing to standard error; a value that could not be read
//! is never printed as an empty one. With `--json` each command prints one line of JSON to standard output instead,
//! whatever became of it, with an `outcome` in it.

use std::{
    ffi::OsString,
    io::{self, BufRead, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value, json};

use crate::{
    client::{Client, ClientError, Options, RequestError, Swap},
    command::Expect,
    config::ConfigError,
    protocol::ReadMode,
    topology::{Cluster, NodeId},
};

/// For `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done; a Put that an earlier attempt executed counts as done
  1  the key has no value, or is not as cas expects
  2  the command line, the cluster file, the key or the value is wrong
  3  refused: it did not happen
  4  ambiguous: it may have happened, or what came of it is unknown
  5  no node can be reached, or it refuses us";

const OK: u8 = 0;
const NEGATIVE: u8 = 1;
const USAGE: u8 = 2;
const REFUSED: u8 = 3;
const AMBIGUOUS: u8 = 4;
const UNREACHABLE: u8 = 5;

/// One-off commands: get, put, delete, cas, stats. Reads commands from standard input, one a line, if none is given.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct CmdArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The zone to count as being in, from 1; that of the first node that answers without it.
    #[arg(long, value_name = "ZONE", value_parser = clap::value_parser!(u8).range(1..))]
    zone: Option<u8>,
    /// The cluster's name, checked before anything is sent; with --config, the file's without it.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The longest that one command may take, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 6000, value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: u64,
    /// Read through the object's log, not by confirming who owns it.
    #[arg(long)]
    log_reads: bool,
    /// Print one line of JSON per command.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct TargetArgs {
    /// A shard of a node of the cluster, any; may be given several times.
    #[arg(long = "seed", value_name = "HOST:PORT")]
    seeds: Vec<String>,
    /// The cluster file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A line of the prompt.
#[derive(Parser)]
#[command(multicall = true, disable_help_flag = true)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Clone, Debug)]
enum Verb {
    /// Print the value of a key.
    Get {
        /// The key.
        key: OsString,
    },
    /// Set a key.
    Put {
        /// The key.
        key: OsString,
        /// Its new value.
        value: OsString,
    },
    /// Remove a key's value.
    Delete {
        /// The key.
        key: OsString,
    },
    /// Set a key if it is as expected.
    Cas {
        /// The key.
        key: OsString,
        #[command(flatten)]
        expect: ExpectArgs,
        /// Its new value.
        value: OsString,
    },
    /// Print the counters of shards.
    Stats {
        /// Of this node only: ZONE.NODE.
        #[arg(long)]
        node: Option<NodeId>,
        /// Of this shard only, from 0.
        #[arg(long)]
        shard: Option<u16>,
    },
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct ExpectArgs {
    /// If it has no value.
    #[arg(long)]
    absent: bool,
    /// If it has this value.
    #[arg(long, value_name = "VALUE")]
    expect: Option<OsString>,
    /// If it is at this version.
    #[arg(long)]
    version: Option<u64>,
}

/// Why no command could be tried.
#[derive(Debug, thiserror::Error)]
pub enum CmdError {
    /// The cluster file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Standard input or output fails.
    #[error("standard input or output: {0}")]
    Terminal(#[from] io::Error),
}

impl CmdError {
    /// What the process ends with: see [`EXIT_CODES`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Config(_) => USAGE,
            Self::Client(error) => code_of_client(error),
            Self::Terminal(_) => UNREACHABLE,
        })
    }
}

fn code_of_client(error: &ClientError) -> u8 {
    match error {
        ClientError::NoSeeds | ClientError::Options(_) | ClientError::Zone { .. } => USAGE,
        _ => UNREACHABLE,
    }
}

/// The name of a cluster file's cluster, and every shard of every node in it as a seed.
///
/// # Errors
/// If the file cannot be read or is wrong.
pub fn seeds_from_config(file: &Path) -> Result<(String, Vec<std::net::SocketAddr>), ConfigError> {
    let cluster = Cluster::load(file)?;
    let seeds = cluster.nodes.iter().flat_map(|node| node.shards.iter().copied()).collect();
    Ok((cluster.name, seeds))
}

/// Connects, executes the command or the lines of standard input, prints what comes of it, and gives the exit code: of the
/// last line that failed, if there are several.
///
/// # Errors
/// If no command could be tried. With `--json` that is printed too.
pub fn run(args: CmdArgs) -> Result<ExitCode, CmdError> {
    let json = args.json;
    run_to(args, &mut io::stdin().lock(), &mut io::stdout().lock()).map(ExitCode::from).inspect_err(|error| {
        if json {
            println!("{}", json!({"outcome": "unreachable", "error": error.to_string()}));
        }
    })
}

fn run_to(args: CmdArgs, input: &mut dyn BufRead, out: &mut dyn Write) -> Result<u8, CmdError> {
    let mut client = Client::connect(options(&args)?)?;
    let code = match args.verb {
        Some(verb) => execute(&mut client, &verb).print(args.json, out)?,
        None => prompt(&mut client, args.json, input, out)?,
    };
    out.flush()?;
    Ok(code)
}

fn options(args: &CmdArgs) -> Result<Options, ConfigError> {
    let mut options = Options::to(&args.target.seeds);
    if let Some(file) = &args.target.config {
        let (name, seeds) = seeds_from_config(file)?;
        options = Options { cluster: Some(name), ..Options::to(seeds) };
    }
    options.cluster = args.cluster.clone().or(options.cluster);
    options.zone = args.zone;
    options.request_timeout = Duration::from_millis(args.timeout_ms);
    options.read = if args.log_reads { ReadMode::Log } else { ReadMode::Confirm };
    Ok(options)
}

/// Commands line by line; words are separated by blanks. Gives the code of the last that failed.
fn prompt(client: &mut Client, json: bool, input: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<u8> {
    let interactive = io::stdin().is_terminal();
    let (mut line, mut code) = (String::new(), OK);
    loop {
        if interactive {
            eprint!("{}> ", client.cluster().cluster);
        }
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(code);
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let ended = match words.first().copied() {
            None => OK,
            Some("quit" | "exit") => return Ok(code),
            Some(_) => match Line::try_parse_from(words) {
                Ok(line) => execute(client, &line.verb).print(json, out)?,
                Err(error) => Report::failed(USAGE, "usage", error.to_string().trim_end()).print(json, out)?,
            },
        };
        out.flush()?;
        code = if ended == OK { code } else { ended };
    }
}

/// What became of a command.
struct Report {
    code: u8,
    outcome: &'static str,
    /// What there is to say, for `--json`.
    fields: Map<String, Value>,
    /// For standard output.
    text: Option<Vec<u8>>,
    /// For standard error.
    note: Option<String>,
}

impl Report {
    fn new(code: u8, outcome: &'static str) -> Self {
        Self { code, outcome, fields: Map::new(), text: None, note: None }
    }

    fn failed(code: u8, outcome: &'static str, why: &str) -> Self {
        Self { note: Some(format!("error: {why}")), ..Self::new(code, outcome) }.with("error", why)
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    fn text(self, text: impl Into<Vec<u8>>) -> Self {
        Self { text: Some(text.into()), ..self }
    }

    fn note(self, note: &str) -> Self {
        Self { note: Some(note.to_owned()), ..self }
    }

    /// Prints it and gives its code.
    fn print(mut self, json: bool, out: &mut dyn Write) -> io::Result<u8> {
        if json {
            self.fields.insert("outcome".to_owned(), self.outcome.into());
            writeln!(out, "{}", Value::Object(self.fields))?;
            return Ok(self.code);
        }
        if let Some(text) = self.text {
            out.write_all(&text)?;
            out.write_all(b"\n")?;
        }
        if let Some(note) = self.note {
            eprintln!("{note}");
        }
        Ok(self.code)
    }
}

fn execute(client: &mut Client, verb: &Verb) -> Report {
    let ended = match verb {
        Verb::Get { key } => get(client, key.as_bytes()),
        Verb::Put { key, value } => put(client, key.as_bytes(), value.as_bytes()),
        Verb::Delete { key } => delete(client, key.as_bytes()),
        Verb::Cas { key, expect, value } => cas(client, key.as_bytes(), expect, value.as_bytes()),
        Verb::Stats { node, shard } => return stats(client, *node, *shard),
    };
    ended.unwrap_or_else(|error| failed(&error))
}

fn get(client: &mut Client, key: &[u8]) -> Result<Report, RequestError> {
    Ok(match client.get(key)? {
        None => not_found(),
        Some((value, version)) => {
            let report = Report::new(OK, "value").with("version", version);
            let report = match std::str::from_utf8(&value) {
                Ok(text) => report.with("value", text),
                Err(_) => report.with("value_hex", hex(&value)),
            };
            report.text(value)
        }
    })
}

fn put(client: &mut Client, key: &[u8], value: &[u8]) -> Result<Report, RequestError> {
    match client.put(key, value) {
        Err(RequestError::Duplicate) => {
            Ok(Report::new(OK, "done").note("done, by an earlier attempt; the version is unknown"))
        }
        other => {
            let version = other?;
            Ok(Report::new(OK, "done").with("version", version).text(format!("done, version {version}")))
        }
    }
}

fn delete(client: &mut Client, key: &[u8]) -> Result<Report, RequestError> {
    Ok(match client.delete(key)? {
        None => not_found(),
        Some(version) => Report::new(OK, "done").with("version", version).text(format!("done, version {version}")),
    })
}

fn cas(client: &mut Client, key: &[u8], expect: &ExpectArgs, value: &[u8]) -> Result<Report, RequestError> {
    let expect = match (&expect.expect, expect.version) {
        (Some(value), _) => Expect::Value(value.as_bytes()),
        (None, Some(version)) => Expect::Version(version),
        (None, None) => Expect::Absent,
    };
    Ok(match client.compare_and_swap(key, expect, value)? {
        Swap::Swapped { version } => {
            Report::new(OK, "done").with("version", version).text(format!("done, version {version}"))
        }
        Swap::Failed { version } => Report::new(NEGATIVE, "cas-failed")
            .with("version", version)
            .note(&format!("not swapped: the key is not as expected, but at version {version}")),
    })
}

fn not_found() -> Report {
    Report::new(NEGATIVE, "not-found").note("not found")
}

/// Of all shards that are asked for, even if some cannot be reached.
fn stats(client: &Client, node: Option<NodeId>, shard: Option<u16>) -> Report {
    let nodes = node.map_or_else(|| client.nodes().to_vec(), |node| vec![node]);
    let shards = shard.map_or_else(|| (0..client.shards()).collect::<Vec<_>>(), |shard| vec![shard]);
    let (mut rows, mut text, mut errors, mut code) = (Vec::new(), String::new(), Vec::new(), OK);
    for (node, shard) in nodes.iter().flat_map(|node| shards.iter().map(move |shard| (*node, *shard))) {
        match client.stats(node, shard) {
            Ok(stats) => {
                text.push_str(&stats_text(node, shard, &stats));
                rows.push(json!({"node": node.to_string(), "shard": shard, "stats": stats}));
            }
            Err(error) => {
                code = code_of(&error).0;
                errors.push(format!("error: {error}"));
                rows.push(json!({"node": node.to_string(), "shard": shard, "error": error.to_string()}));
            }
        }
    }
    let outcome = if code == OK { "stats" } else { "incomplete" };
    let mut report = Report::new(code, outcome).with("shards", rows);
    report.text = (!text.is_empty()).then(|| text.trim_end().as_bytes().to_vec());
    report.note = (!errors.is_empty()).then(|| errors.join("\n"));
    report
}

fn stats_text(node: NodeId, shard: u16, stats: &Value) -> String {
    let mut text = format!("{node} shard {shard}\n");
    match stats.as_object() {
        Some(fields) => fields.iter().for_each(|(name, value)| text.push_str(&format!("  {name:<32} {value}\n"))),
        None => text.push_str(&format!("  {stats}\n")),
    }
    text
}

fn failed(error: &RequestError) -> Report {
    let (code, outcome) = code_of(error);
    Report::failed(code, outcome, &error.to_string())
}

fn code_of(error: &RequestError) -> (u8, &'static str) {
    match error {
        RequestError::Submit(_) | RequestError::NoSuchShard { .. } => (USAGE, "usage"),
        RequestError::InFlight(_) | RequestError::Refused(_) => (REFUSED, "refused"),
        RequestError::Ambiguous(_) | RequestError::Duplicate | RequestError::WrongAnswer => (AMBIGUOUS, "ambiguous"),
        RequestError::Client(error) => (code_of_client(error), "unreachable"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::tests::fake::{Act, Fake, Mode, Seen, done},
        command::{Op, Status},
    };

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        cmd: CmdArgs,
    }

    fn parse(words: &[&str]) -> Result<CmdArgs, clap::Error> {
        Cli::try_parse_from(["cmd"].iter().chain(words)).map(|cli| cli.cmd)
    }

    /// Exit code and standard output of `wpaxos cmd` with these words, against `fake`.
    fn cmd(fake: &Fake, words: &[&str], input: &str) -> (u8, String) {
        let seed = fake.addresses[0].to_string();
        let target = ["--seed", &seed, "--timeout-ms", "300"];
        let args = parse(&[&target, words].concat()).unwrap();
        let mut out = Vec::new();
        let code = run_to(args, &mut input.as_bytes(), &mut out).unwrap();
        (code, String::from_utf8_lossy(&out).into_owned())
    }

    fn answer(seen: &Seen) -> Act {
        let status = |status| Act::Answer(status, Vec::new());
        match (seen.op, seen.key.as_slice()) {
            (Op::Get, b"there") => Act::Answer(Status::Ok, b"value".to_vec()),
            (Op::Get, b"empty") => status(Status::Ok),
            (Op::Get, b"bytes") => Act::Answer(Status::Ok, vec![0xff, 0]),
            (_, b"gone") => status(Status::NotFound),
            (_, b"other") => status(Status::CasFailed),
            (_, b"bad") => status(Status::BadRequest),
            (_, b"unknown") => status(Status::OutcomeUnknown),
            (_, b"twice") => status(Status::Duplicate),
            (_, b"silent") => Act::Ignore,
            _ => done(),
        }
    }

    fn fake() -> Fake {
        Fake::start(&[("1.1", Mode::Good)], 2, None, answer)
    }

    #[test]
    fn each_end_has_its_exit_code_and_no_failure_prints_a_value() {
        let fake = fake();
        for (words, code, printed) in [
            (vec!["get", "there"], OK, Some("value\n")),
            (vec!["get", "empty"], OK, Some("\n")),
            (vec!["put", "k", "v"], OK, None),
            (vec!["put", "twice", "v"], OK, Some("")),
            (vec!["delete", "k"], OK, None),
            (vec!["cas", "k", "--absent", "v"], OK, None),
            (vec!["get", "gone"], NEGATIVE, Some("")),
            (vec!["delete", "gone"], NEGATIVE, Some("")),
            (vec!["cas", "other", "--expect", "old", "v"], NEGATIVE, Some("")),
            (vec!["get", ""], USAGE, Some("")),
            (vec!["stats", "--node", "7.7"], USAGE, Some("")),
            (vec!["put", "bad", "v"], REFUSED, Some("")),
            (vec!["get", "bad"], REFUSED, Some("")),
            (vec!["put", "unknown", "v"], AMBIGUOUS, Some("")),
            (vec!["put", "silent", "v"], AMBIGUOUS, Some("")),
            (vec!["cas", "twice", "--version", "3", "v"], AMBIGUOUS, Some("")),
        ] {
            let (ended, out) = cmd(&fake, &words, "");
            assert_eq!(ended, code, "{words:?}");
            match printed {
                Some(printed) => assert_eq!(out, printed, "{words:?}"),
                None => assert!(out.starts_with("done, version ") && out.ends_with('\n'), "{words:?}: {out}"),
            }
        }
    }

    #[test]
    fn json_is_one_line_whatever_happens() {
        let fake = fake();
        for (words, outcome, field) in [
            (vec!["get", "there"], "value", "value"),
            (vec!["get", "bytes"], "value", "value_hex"),
            (vec!["get", "gone"], "not-found", "outcome"),
            (vec!["put", "k", "v"], "done", "version"),
            (vec!["cas", "other", "--absent", "v"], "cas-failed", "version"),
            (vec!["put", "bad", "v"], "refused", "error"),
            (vec!["put", "unknown", "v"], "ambiguous", "error"),
            (vec!["stats"], "stats", "shards"),
        ] {
            let (_, out) = cmd(&fake, &[&["--json"], words.as_slice()].concat(), "");
            assert_eq!(out.lines().count(), 1);
            let line: Value = serde_json::from_str(&out).unwrap();
            assert!(line["outcome"] == outcome && line.get(field).is_some(), "{words:?}: {out}");
        }
    }

    #[test]
    fn stats_are_of_every_shard_or_of_those_asked_for() {
        let fake = fake();
        let (code, out) = cmd(&fake, &["stats"], "");
        assert_eq!((code, out.matches("1.1 shard").count()), (OK, 2), "{out}");
        let (code, out) = cmd(&fake, &["stats", "--node", "1.1", "--shard", "1"], "");
        assert!(code == OK && out.starts_with("1.1 shard 1\n  node"), "{out}");
    }

    #[test]
    fn the_prompt_takes_lines_and_ends_with_the_last_failure() {
        let fake = fake();
        let (code, out) = cmd(&fake, &[], "get there\n\nget gone\nput k\nnonsense\nget there\nexit\nget there\n");
        assert_eq!((code, out.as_str()), (USAGE, "value\nvalue\n"));
        assert_eq!(cmd(&fake, &[], "get there").0, OK);
        assert_eq!(cmd(&fake, &[], "").0, OK);
    }

    #[test]
    fn a_wrong_command_line_is_refused() {
        for wrong in [
            "get k",
            "--seed h:1 --config f get k",
            "--seed h:1 get",
            "--seed h:1 put k",
            "--seed h:1 cas k v",
            "--seed h:1 cas k --absent --version 1 v",
            "--seed h:1 --zone 0 get k",
            "--seed h:1 frob k",
        ] {
            let words: Vec<&str> = wrong.split(' ').collect();
            assert!(parse(&words).is_err(), "'{wrong}' was taken");
        }
    }

    #[test]
    fn seeds_come_from_the_cluster_file_and_its_name_is_checked() {
        let fake = fake();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cluster.toml");
        let write = |name: &str| {
            let addresses: Vec<String> = fake.addresses.iter().map(ToString::to_string).collect();
            let node = format!("[[node]]\nid = \"1.1\"\naddresses = {addresses:?}\n");
            std::fs::write(&file, format!("name = \"{name}\"\nshards = 2\n{node}")).unwrap();
        };
        write("fake");
        assert_eq!(seeds_from_config(&file).unwrap(), ("fake".to_owned(), fake.addresses.clone()));
        let args = || parse(&["--config", file.to_str().unwrap(), "get", "there"]).unwrap();
        let mut out = Vec::new();
        assert_eq!(run_to(args(), &mut io::empty(), &mut out).unwrap(), OK);
        write("another");
        let error = run_to(args(), &mut io::empty(), &mut out).unwrap_err();
        assert!(matches!(error, CmdError::Client(ClientError::Cluster { .. })), "{error}");
        std::fs::write(&file, "nonsense").unwrap();
        let error = run_to(args(), &mut io::empty(), &mut out).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::from(USAGE));
    }

    #[test]
    fn nobody_there_is_its_own_exit_code() {
        let absent = Fake::start(&[("1.1", Mode::Refusing)], 1, None, answer);
        let args = parse(&["--seed", &absent.addresses[0].to_string(), "get", "k"]).unwrap();
        let error = run_to(args, &mut io::empty(), &mut Vec::new()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::from(UNREACHABLE));
        assert!(error.to_string().ends_with("we are closed"));
    }
}
