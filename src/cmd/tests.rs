use clap::Parser;
use serde_json::Value;

use super::{
    exit::{AMBIGUOUS, NEGATIVE, OK, REFUSED},
    *,
};
use crate::{
    client::tests::{
        fake::{Act, Fake, Mode, Seen, done},
        fake_http::{FakeHttp, Said, ok},
    },
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
    let target = ["--seed", &seed, "--timeout-ms", "1000"];
    run(&[&target, words].concat(), input).unwrap()
}

fn run(words: &[&str], input: &str) -> Result<(u8, String), CmdError> {
    let args = parse(words).unwrap();
    let mut out = Vec::new();
    let mut to = Output { out: &mut out, json: args.json, terminal: false };
    let code = run_to(&args, &mut input.as_bytes(), &mut to)?;
    Ok((code, String::from_utf8_lossy(&out).into_owned()))
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
fn lines_are_taken_to_their_end_and_the_first_failure_counts() {
    let fake = fake();
    let (code, out) = cmd(&fake, &[], "get there\n\nget gone\nput k\nnonsense\nget 'there'\nexit\nget there\n");
    assert_eq!((code, out.as_str()), (NEGATIVE, "value\nvalue\n"));
    assert_eq!(cmd(&fake, &[], "get 'there\nput bad v").0, USAGE);
    let (code, out) = cmd(&fake, &["--json"], "help put\nnonsense\n");
    assert_eq!((code, out.lines().count()), (USAGE, 2), "{out}");
    let long = format!("get there\nput k {}\nget there\n", "v".repeat(9 << 20));
    assert_eq!(cmd(&fake, &[], &long), (USAGE, "value\n".to_owned()));
    assert_eq!(cmd(&fake, &[], "get there").0, OK);
    assert_eq!(cmd(&fake, &[], "").0, OK);
}

#[test]
fn a_wrong_command_line_is_refused() {
    for wrong in [
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
    let get = || run(&["--config", file.to_str().unwrap(), "get", "there"], "");
    assert_eq!(get().unwrap().0, OK);
    write("another");
    let error = get().unwrap_err();
    assert!(matches!(error, CmdError::Client(ClientError::Cluster { .. })), "{error}");
    std::fs::write(&file, "nonsense").unwrap();
    let error = get().unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::from(USAGE));
}

#[test]
fn nobody_there_is_its_own_exit_code() {
    let absent = Fake::start(&[("1.1", Mode::Refusing)], 1, None, answer);
    let error = run(&["--seed", &absent.addresses[0].to_string(), "get", "k"], "").unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::from(UNREACHABLE));
    assert!(error.to_string().ends_with("we are closed"));
}

#[test]
fn no_cluster_named_is_an_error_that_says_how() {
    for words in [&["get", "k"][..], &["status"], &[]] {
        let error = run(words, "get k").unwrap_err();
        assert!(matches!(error, CmdError::NoTarget) && error.to_string().contains("--config FILE"), "{error}");
        assert_eq!(error.exit_code(), ExitCode::from(USAGE));
    }
}

#[test]
fn many_keys_have_a_line_or_an_error_each() {
    let fake = fake();
    assert_eq!(cmd(&fake, &["mget", "there", "empty"], ""), (OK, "there\tvalue\nempty\t\n".to_owned()));
    assert_eq!(cmd(&fake, &["mget", "there", "gone"], ""), (NEGATIVE, "there\tvalue\n".to_owned()));
    assert_eq!(cmd(&fake, &["mget", "gone", "bad", "there"], ""), (REFUSED, "there\tvalue\n".to_owned()));
    let (code, out) = cmd(&fake, &["--json", "mget", "there", "gone", "bad", "bytes"], "");
    let line: Value = serde_json::from_str(&out).unwrap();
    let outcomes: Vec<_> =
        line["keys"].as_array().unwrap().iter().map(|key| key["outcome"].as_str().unwrap()).collect();
    assert_eq!((code, line["outcome"].as_str()), (REFUSED, Some("incomplete")));
    assert_eq!(outcomes, ["value", "not-found", "refused", "value"]);
    assert_eq!(
        (line["keys"][0]["value"].as_str(), line["keys"][3]["value_hex"].as_str()),
        (Some("value"), Some("ff00"))
    );
}

/// Nodes that serve HTTP as `handler` says, in a cluster file; nobody speaks the native protocol.
struct Nodes {
    fake: FakeHttp,
    file: tempfile::NamedTempFile,
}

impl Nodes {
    fn start(nodes: u8, http: bool, handler: impl Fn(u8, &str) -> Said + Send + Sync + 'static) -> Self {
        let fake = FakeHttp::start(nodes, move |node, what| handler(node.zone, what));
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = "name = \"fake\"\n".to_owned();
        for (node, address) in &fake.nodes {
            text += &format!("[[node]]\nid = \"{node}\"\naddress = \"127.0.0.1:{}\"\n", 1 + node.zone);
            text += &if http { format!("http = \"{address}\"\n") } else { String::new() };
        }
        std::fs::write(file.path(), text).unwrap();
        Self { fake, file }
    }

    fn cmd(&self, line: &str) -> (u8, String) {
        let target = ["--config", self.file.path().to_str().unwrap(), "--timeout-ms", "2000"];
        let words: Vec<&str> = line.split(' ').collect();
        run(&[&target, words.as_slice()].concat(), "").unwrap()
    }

    fn json(&self, line: &str) -> (u8, Value) {
        let (code, out) = self.cmd(&format!("--json {line}"));
        assert_eq!(out.lines().count(), 1, "{out}");
        (code, serde_json::from_str(&out).unwrap())
    }
}

#[test]
fn faults_are_injected_where_they_should_be() {
    let nodes = Nodes::start(3, true, |_, what| match what {
        "GET /crash?t=7" => Said::Answer(403, "[faults] allowed is false".to_owned()),
        "GET /crash?t=8" => Said::Answer(400, "no such time".to_owned()),
        "GET /crash?t=9" => Said::Raw(""),
        _ => ok("{}"),
    });
    for (line, printed, asked) in [
        ("crash 1.1 5", "done, on 1.1\n", vec!["1.1 GET /crash?t=5"]),
        ("drop 2.1 1.1 0", "done, on 2.1\n", vec!["2.1 GET /drop?id=1.1&t=0"]),
        ("slow 2.1 1.1 30 4", "done, on 2.1\n", vec!["2.1 GET /slow?id=1.1&ms=30&t=4"]),
        ("flaky 3.1 1.1 0.5 4", "done, on 3.1\n", vec!["3.1 GET /flaky?id=1.1&p=0.5&t=4"]),
        ("partition 4 3.1", "done, on 3.1\n", vec!["3.1 GET /partition?ids=1.1,2.1&t=4&way=both"]),
        ("partition 4 --one-way 3.1", "done, on 3.1\n", vec!["3.1 GET /partition?ids=1.1,2.1&t=4&way=in"]),
        ("heal 2.1", "done, on 2.1\n", vec!["2.1 GET /heal"]),
        ("heal", "done, on 1.1, 2.1, 3.1\n", vec!["1.1 GET /heal", "2.1 GET /heal", "3.1 GET /heal"]),
    ] {
        assert_eq!(nodes.cmd(line), (OK, printed.to_owned()), "{line}");
        assert_eq!(nodes.fake.asked(), asked, "{line}");
    }
    for (line, code) in [
        ("crash 1.1 7", REFUSED),
        ("crash 1.1 8", USAGE),
        ("crash 1.1 9", AMBIGUOUS),
        ("crash 9.9 5", USAGE),
        ("drop 1.1 1.1 5", USAGE),
        ("flaky 1.1 2.1 2 5", USAGE),
        ("partition 4 1.1,2.1,3.1", USAGE),
    ] {
        assert_eq!(nodes.cmd(line), (code, String::new()), "{line}");
    }
    let (code, line) = nodes.json("crash 1.1 7");
    assert_eq!((code, line["outcome"].as_str()), (REFUSED, Some("refused")));
    assert!(line["nodes"][0]["error"].as_str().unwrap().contains("[faults] allowed"), "{line}");
}

#[test]
fn histories_are_shown_and_compared() {
    let nodes = Nodes::start(3, true, |zone, what| match (what.rsplit('=').next().unwrap(), zone) {
        ("same", _) => ok(r#"[{"version":1,"value":"aGk="},{"version":2,"value":null}]"#),
        ("part", 1) | ("silent", 1 | 2) => ok(r#"[{"version":1,"value":"aGk="}]"#),
        ("part", _) => ok(r#"[{"version":1,"value":"/wA="}]"#),
        ("none", _) => ok("[]"),
        ("apart", zone) => ok(&format!(r#"[{{"version":{zone},"value":""}}]"#)),
        ("off", _) => ok("null"),
        _ => Said::Raw(""),
    });
    assert_eq!(nodes.cmd("history same"), (OK, "       1  \"hi\"\n       2  removed\n".to_owned()));
    assert_eq!(nodes.cmd("history none"), (NEGATIVE, String::new()));
    assert_eq!(nodes.cmd("history off"), (REFUSED, String::new()));
    assert_eq!(nodes.cmd("history same --node 4.1"), (USAGE, String::new()));
    assert_eq!(nodes.cmd("history silent --node 3.1").0, UNREACHABLE);
    let (_, line) = nodes.json("history same --node 2.1");
    assert_eq!((line["node"].as_str(), &line["versions"][1]["value"]), (Some("2.1"), &Value::Null));

    for (key, code, outcome, verdict, shown) in [
        ("same", OK, "agree", "agree", "\"same\": all 3 nodes agree, up to version 2; versions compared: 2\n"),
        ("part", NEGATIVE, "part", "part", "\n  1.1  \"hi\"\n  2.1  \"\\xff\\x00\"\n"),
        ("none", NEGATIVE, "not-found", "nothing", "no version is held by any of all 3 nodes"),
        ("apart", NEGATIVE, "no-overlap", "no-overlap", "  3.1  1 versions, 3 to 3\n"),
        ("silent", UNREACHABLE, "incomplete", "agree", "the 2 nodes that answered agree, up to version 1"),
        ("off", REFUSED, "incomplete", "too-few", "nothing to compare"),
    ] {
        let (ended, out) = nodes.cmd(&format!("consensus {key}"));
        assert!(ended == code && out.contains(shown), "{key}: {ended} {out}");
        let (ended, line) = nodes.json(&format!("consensus {key}"));
        let found = (ended, line["outcome"].as_str().unwrap(), line["keys"][0]["verdict"].as_str().unwrap());
        assert_eq!(found, (code, outcome, verdict), "{line}");
        assert_eq!(line["keys"][0]["nodes"].as_array().unwrap().len(), 3, "no node is left out: {line}");
    }
    // Nobody speaks the native protocol here, and nothing needs it.
    let file = nodes.file.path().to_str().unwrap();
    let (code, out) = run(&["--config", file], "consensus same\nhistory none\nconsensus part\n").unwrap();
    assert_eq!((code, out.matches("\": ").count()), (NEGATIVE, 2), "{out}");
    let (code, out) = nodes.cmd("consensus same part none");
    assert_eq!((code, out.matches("\": ").count()), (NEGATIVE, 3), "{out}");
}

#[test]
fn owners_are_as_each_node_sees_them_or_all_that_one_knows() {
    let owner =
        |key: &str| format!(r#"{{"key":"{key}","owner":"2.1","ballot":"7.2.1","leads":false,"applied":9,"steals":3}}"#);
    let nodes = Nodes::start(2, true, move |zone, what| match (what, zone) {
        ("GET /_/owners?key=k", 1) => ok(&format!("[{}]", owner("aw=="))),
        ("GET /_/owners?key=k", _) => ok("[]"),
        ("GET /_/owners?limit=2", 1) => ok(&format!("[{},{}]", owner("aw=="), owner("bA=="))),
        ("GET /_/owners?limit=2&after=l", 1) => ok(&format!("[{}]", owner("bQ=="))),
        ("POST /_/steal?key=k", 2) => ok(&owner("aw==")),
        ("POST /_/steal?key=slow", _) => Said::Answer(504, "no answer in time".to_owned()),
        _ => Said::Answer(503, "no quorum".to_owned()),
    });
    let cells = |out: &str| -> Vec<Vec<String>> {
        out.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let (code, out) = nodes.cmd("owners k");
    assert_eq!(code, OK);
    assert_eq!(cells(&out)[1..], [vec!["\"k\"", "1.1", "2.1", "7.2.1", "no", "9", "3"], vec!["\"k\"", "2.1", "-"]]);
    let (code, line) = nodes.json("owners --limit 2");
    assert_eq!((code, line["next"].as_str(), line["owners"][1]["key"].as_str()), (OK, Some("l"), Some("l")));
    let (_, line) = nodes.json("owners --limit 2 --after l");
    assert_eq!((line["next"].as_str(), line["owners"][0]["ballot"].as_str()), (None, Some("7.2.1")));
    assert_eq!(nodes.cmd("owners --node 2.1").0, REFUSED);
    assert_eq!(nodes.cmd("steal k 2.1"), (OK, "done: 2.1 leads \"k\" at ballot 7.2.1\n".to_owned()));
    assert_eq!(nodes.cmd("steal slow 1.1").0, AMBIGUOUS);
    assert_eq!(nodes.cmd("steal k 1.1").0, REFUSED);
}

#[test]
fn the_status_of_every_node_has_a_row() {
    let nodes = Nodes::start(4, true, |zone, _| match zone {
        1 => ok(
            r#"{"version":"0.1.0","facts":{"durability":"sync (direct)"},"faults":[{"fault":"drop 2.1","seconds_left":4.2},{"fault":"crash","seconds_left":null}],
            "shards":[{"shard":0,"objects":7,"waiting":1,"links":{"2.1":false,"3.1":true},
                       "membership":{"version":3,"vote":"votes","learner":null}},
                      {"shard":1,"objects":5,"waiting":2,"links":{"2.1":false,"3.1":false},
                       "membership":{"version":2,"vote":"learner",
                                     "learner":{"learned_from":["2.1"],"others":3,"may_end":true}}}]}"#,
        ),
        2 => ok(r#"{"version":"9.9.9","faults":[],"shards":[
            {"membership":{"version":5,"vote":"learner","learner":{"learned_from":[],"others":3,"may_end":false}}},
            {"membership":{"version":5,"vote":"votes","learner":null}}]}"#),
        3 => ok("{}"),
        _ => Said::Raw(""),
    });
    let (code, out) = nodes.cmd("status");
    let rows: Vec<Vec<&str>> =
        out.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(code, UNREACHABLE);
    assert_eq!(
        rows[1],
        ["1.1", "up", "0.1.0", "2", "learner 1/3", "sync", "12", "3", "2.1, 3.1", "drop 2.1 for 4 s, crash"]
    );
    assert_eq!(rows[2], ["2.1", "up", "9.9.9", "5", "learner, no quorum", "-", "0", "0", "-", "-"]);
    assert_eq!(rows[3], ["3.1", "up", "-", "-", "-", "-", "0", "0", "-", "-"]);
    assert_eq!(rows[4], ["4.1", "no answer"]);
    let (code, line) = nodes.json("status 2.1,1.1");
    assert_eq!((code, line["nodes"][1]["status"]["shards"][0]["objects"].as_u64()), (OK, Some(7)));
    assert_eq!(nodes.cmd("status 9.1").0, USAGE);
}

#[test]
fn verbs_that_need_http_say_how_to_have_it() {
    let nodes = Nodes::start(2, false, |_, _| ok("{}"));
    for line in ["status", "owners", "history k", "consensus k", "crash 1.1 1", "heal", "steal k 1.1"] {
        let words: Vec<&str> = line.split(' ').collect();
        let error =
            run(&[&["--config", nodes.file.path().to_str().unwrap()], words.as_slice()].concat(), "").unwrap_err();
        assert!(matches!(error, CmdError::NoHttp) && error.to_string().contains("http = "), "{line}: {error}");
        assert_eq!(error.exit_code(), ExitCode::from(USAGE));
    }
    let fake = fake();
    let error = run(&["--seed", &fake.addresses[0].to_string(), "status"], "").unwrap_err();
    assert!(matches!(error, CmdError::NoHttp), "{error}");
}

#[test]
fn configurations_are_converted_without_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    std::fs::write(&file, r#"{"address": {"1.1": "10.0.0.1:1"}, "policy": "majority"}"#).unwrap();
    let file = file.to_str().unwrap();
    let (code, toml) = run(&["convert", file], "").unwrap();
    let cluster = Cluster::parse(&toml, Path::new("c.toml")).unwrap();
    assert_eq!((code, &cluster), (OK, &Cluster::load(file).unwrap()));
    let (_, line) = run(&["--json", "convert", file], "").unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    let notes = line["notes"].as_array().unwrap();
    assert!(line["outcome"] == "converted" && line["toml"].is_string());
    assert!(notes.iter().any(|note| note.as_str().unwrap().contains("length of an interval in seconds")), "{notes:?}");

    let ours = directory.path().join("c.toml");
    std::fs::write(&ours, &toml).unwrap();
    assert_eq!(run(&["convert", ours.to_str().unwrap()], "").unwrap(), (OK, cluster.to_toml()));
    let error = run(&["convert", "no-such.json"], "").unwrap_err();
    assert!(error.to_string().contains("no-such.json") && error.exit_code() == ExitCode::from(USAGE), "{error}");
}

#[test]
fn a_master_that_is_not_there_is_waited_for_and_given_up() {
    let error = run(&["--master", "127.0.0.1:1", "--wait-s", "1", "get", "k"], "").unwrap_err();
    assert!(matches!(error, CmdError::Master(MasterError::Patience { .. })), "{error}");
    assert_eq!(error.exit_code(), ExitCode::from(UNREACHABLE));
    let error = run(&["--master", ":1", "get", "k"], "").unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::from(USAGE));
    assert!(parse(&["--master", "a", "--config", "b", "get", "k"]).is_err(), "two clusters");
}
