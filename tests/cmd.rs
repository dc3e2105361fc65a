//! `wpaxos cmd` as a process, against a cluster that is real.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;
use wpaxos::local::{LocalCluster, LocalOptions};

/// What a process left behind.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

struct Cluster {
    local: LocalCluster,
    directory: tempfile::TempDir,
}

impl Cluster {
    fn start(options: LocalOptions) -> Self {
        let local = LocalCluster::start(options).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("cluster.toml"), local.cluster().to_toml()).unwrap();
        Self { local, directory }
    }

    fn config(&self) -> String {
        self.directory.path().join("cluster.toml").to_str().unwrap().to_owned()
    }

    /// `wpaxos cmd` with these words, split at blanks.
    fn cmd(&self, line: &str) -> Ended {
        run(&[&["--config", &self.config()], words(line).as_slice()].concat(), "")
    }

    fn json(&self, line: &str) -> (i32, Value) {
        let ended = self.cmd(&format!("--json {line}"));
        assert_eq!(ended.out.lines().count(), 1, "{line}: {} {}", ended.out, ended.err);
        (ended.code, serde_json::from_str(&ended.out).unwrap())
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').filter(|word| !word.is_empty()).collect()
}

fn run(args: &[&str], input: &str) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos"));
    command.args(["--log", "error", "cmd"]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn keys_are_read_and_written_and_each_end_has_its_code() {
    let cluster = Cluster::start(LocalOptions { shards: 2, ..LocalOptions::default() });
    for (line, code, out, err) in [
        ("get greeting", 1, "", "greeting: not found\n"),
        ("put greeting hello", 0, "done, version 1\n", ""),
        ("get greeting", 0, "hello\n", ""),
        ("get greeting --log-reads", 2, "", "--log-reads"),
        ("--log-reads get greeting", 0, "hello\n", ""),
        ("cas greeting --expect other bye", 1, "", "at version 1\n"),
        ("cas greeting --version 1 bye", 0, "done, version 2\n", ""),
        ("set other -1", 0, "done, version 1\n", ""),
        ("mget other greeting none", 1, "other\t-1\ngreeting\tbye\n", "none: not found\n"),
        ("delete other", 0, "done, version 2\n", ""),
        ("delete other", 1, "", "other: not found\n"),
        ("--zone 9 get other", 5, "", "no zone 9"),
        ("--cluster mine get other", 5, "", "wants cluster 'mine'"),
        ("stats --node 7.7", 2, "", "7.7"),
        ("frob", 2, "", "frob"),
        ("status", 2, "", "http = "),
    ] {
        let ended = cluster.cmd(line);
        assert_eq!((ended.code, ended.out.as_str()), (code, out), "{line}: {}", ended.err);
        assert!(ended.err.contains(err) && (!err.is_empty() || ended.err.is_empty()), "{line}: {}", ended.err);
    }
    let (code, line) = cluster.json("get none");
    assert_eq!((code, line), (1, serde_json::json!({"outcome": "not-found"})));
    let (code, line) = cluster.json("stats --shard 1");
    assert_eq!((code, line["shards"].as_array().unwrap().len()), (0, 3));
    let (code, line) = cluster.json("--zone 9 get none");
    assert_eq!((code, line["outcome"].as_str()), (5, Some("unreachable")));
    cluster.local.stop().unwrap();
}

#[test]
fn lines_of_a_pipe_are_commands() {
    let cluster = Cluster::start(LocalOptions::default());
    let seed = cluster.local.seeds()[1].to_string();
    let input = "# set up\nput 'a key' \"two words\"\r\n\nget \"a key\"\nget none\nfrob\nget a\\ key\nquit\nget none\n";
    let ended = run(&["--seed", &seed], input);
    assert_eq!((ended.code, ended.out.as_str()), (1, "done, version 1\ntwo words\ntwo words\n"), "{}", ended.err);
    assert!(ended.err.starts_with("none: not found\nerror: unrecognized subcommand 'frob'"), "{}", ended.err);

    let ended = run(&["--seed", &seed, "--json"], "get none\nget 'open\nput k v\nhelp\n");
    let outcomes: Vec<Value> = ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcomes: Vec<&str> = outcomes.iter().map(|line: &Value| line["outcome"].as_str().unwrap()).collect();
    assert_eq!((ended.code, outcomes), (1, vec!["not-found", "usage", "done", "help"]));
    assert_eq!(ended.err, "");

    assert_eq!(run(&["--seed", &seed], "").code, 0);
    let ended = run(&[], "get k\n");
    assert!(ended.code == 2 && ended.err.contains("--config FILE"), "{}", ended.err);
    cluster.local.stop().unwrap();
}
