//! `wpaxos cmd` as a process, against a cluster that is real.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use wpaxos::{
    local::{LocalCluster, LocalHttp, LocalOptions},
    topology::{HistoryBounds, NodeId},
};

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
    // One that ends at once does not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
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
    assert_eq!((code, line), (1, json!({"outcome": "not-found"})));
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

/// Three zones of one node that serve HTTP.
fn served(faults: bool, history: bool) -> Cluster {
    let history = history.then(HistoryBounds::default);
    Cluster::start(LocalOptions { http: LocalHttp::AnyPorts, faults, history, shards: 2, ..LocalOptions::default() })
}

fn column(table: &str, at: usize) -> Vec<String> {
    let cell = |line: &str| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
    table.lines().skip(1).map(cell).collect()
}

#[test]
fn histories_owners_and_steals_are_those_of_the_replicas() {
    let mut cluster = served(false, true);
    for line in ["put k one", "put k two", "delete k", "put other x"] {
        assert_eq!(cluster.cmd(line).code, 0);
    }
    assert_eq!(cluster.cmd("history k").out, "       1  \"one\"\n       2  \"two\"\n       3  removed\n");
    let (code, line) = cluster.json("history k --node 1.1");
    let versions = json!([
        {"version": 1, "value": "one"}, {"version": 2, "value": "two"}, {"version": 3, "value": null}
    ]);
    assert_eq!((code, &line["versions"]), (0, &versions));

    // The others learn of the last write with the next thing that they are sent.
    let up_to = |cluster: &Cluster| cluster.json("consensus k").1["keys"][0]["nodes"][2]["last"].as_u64();
    let started = std::time::Instant::now();
    while up_to(&cluster) != Some(3) {
        assert!(started.elapsed() < std::time::Duration::from_secs(40), "3.1 does not learn");
    }
    let ended = cluster.cmd("consensus k");
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (0, "\"k\": all 3 nodes agree, up to version 3; versions compared: 3\n")
    );
    assert_eq!(cluster.cmd("consensus k nobody-wrote-it").code, 1);

    let ended = cluster.cmd("steal k 3.1");
    assert!(ended.code == 0 && ended.out.starts_with("done: 3.1 leads \"k\" at ballot "), "{}", ended.err);
    let (code, line) = cluster.json("owners k --node 3.1");
    let owner = &line["owners"][0];
    assert_eq!((code, &owner["owner"], &owner["leads"]), (0, &json!("3.1"), &json!(true)));
    let ended = cluster.cmd("owners k");
    assert_eq!((ended.code, column(&ended.out, 1)), (0, ["1.1", "2.1", "3.1"].map(str::to_owned).to_vec()));
    let ended = cluster.cmd("owners --limit 1");
    assert_eq!((ended.code, ended.out.lines().count()), (0, 2));
    assert!(ended.err.contains("more: owners --after "), "{}", ended.err);

    // A node that is gone is named wherever it should have answered, and what the others say is still said.
    cluster.local.stop_node(NodeId::new(2, 1)).unwrap();
    let ended = cluster.cmd("--timeout-ms 2000 status");
    assert_eq!((ended.code, column(&ended.out, 1)), (5, ["up", "no", "up"].map(str::to_owned).to_vec()));
    assert!(ended.err.contains("2.1"), "{}", ended.err);
    let ended = cluster.cmd("consensus k");
    assert!(ended.code == 5 && ended.out.contains("the 2 nodes that answered agree"), "{} {}", ended.code, ended.out);
    assert!(ended.err.contains("2.1"), "{}", ended.err);
    assert_eq!(cluster.cmd("crash 1.1 5").code, 3, "faults are not allowed here");
    cluster.local.stop().unwrap();
}

#[test]
fn faults_begin_and_end_where_they_are_told_to() {
    let cluster = served(true, false);
    let faults = |cluster: &Cluster| -> Vec<Vec<String>> {
        let (code, line) = cluster.json("status");
        assert_eq!(code, 0);
        let of_node = |node: &Value| {
            let faults = node["status"]["faults"].as_array().unwrap().clone();
            faults.iter().map(|fault| fault["fault"].as_str().unwrap().to_owned()).collect()
        };
        line["nodes"].as_array().unwrap().iter().map(of_node).collect()
    };
    for line in [
        "drop 1.1 2.1 600",
        "slow 1.1 3.1 20 600",
        "flaky 2.1 1.1 0.25 0",
        "partition 600 3.1 2.1 --one-way",
        "partition 600 1.1",
        "crash 3.1 600",
    ] {
        let ended = cluster.cmd(line);
        assert!(ended.code == 0 && ended.out.starts_with("done, on "), "{line}: {}", ended.err);
    }
    let of_first = ["drop 2.1", "slow 3.1 20 ms", "partition 2.1,3.1 both"].map(str::to_owned).to_vec();
    let of_second = ["flaky 1.1 0.25", "partition 1.1 in"].map(str::to_owned).to_vec();
    let of_third = ["partition 1.1 in", "crash"].map(str::to_owned).to_vec();
    assert_eq!(faults(&cluster), [of_first, of_second.clone(), of_third]);
    assert_eq!(cluster.cmd("heal 1.1 3.1").code, 0);
    assert_eq!(faults(&cluster), [vec![], of_second, vec![]]);
    assert_eq!(cluster.cmd("heal").out, "done, on 1.1, 2.1, 3.1\n");
    assert!(faults(&cluster).iter().all(Vec::is_empty));
    for (line, code, err) in [
        ("crash 7.1 5", 2, "has no node 7.1; it has 1.1, 2.1, 3.1"),
        ("drop 1.1 1.1 5", 2, "name two nodes"),
        ("flaky 1.1 2.1 7 5", 2, "from 0 to 1"),
        ("slow 1.1 2.1 100000 5", 2, "100000"),
        ("partition 5 1.1,2.1,3.1", 2, "both sides"),
        ("history k", 3, "[history]"),
        ("consensus k", 3, "[history]"),
        ("owners --after never-met", 2, "not met"),
    ] {
        let ended = cluster.cmd(line);
        assert!(ended.code == code && ended.err.contains(err), "{line}: {} {}", ended.code, ended.err);
        assert!(!ended.out.contains("done"), "{line}: {}", ended.out);
    }
    cluster.local.stop().unwrap();
}
