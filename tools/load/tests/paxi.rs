//! Paxi's settings and files, the check of what clients saw, and clusters that give no answer, as users of the binary
//! meet them.

mod fake;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use wpaxos::local::{LocalCluster, LocalOptions};

use fake::Mode;

/// Far longer than any run here may take: whoever has not ended by then hangs.
const HANGS: Duration = Duration::from_secs(120);

fn spawn(flags: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos-load"));
    command.args(flags.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Exit code, stdout and stderr of a run that must end by itself.
fn finish(mut child: Child) -> (i32, String, String) {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > HANGS {
            child.kill().unwrap();
            panic!("it hangs: {:?}", child.wait_with_output().unwrap());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn run(flags: &str) -> (i32, String, String) {
    finish(spawn(flags))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

const SMALL: &str = "--zones 1 --nodes 1 --durability none --quiet";

#[test]
fn a_checked_run_leaves_paxis_files_and_a_spoilt_history_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let [report, latency, history] = ["run.json", "latency", "history.csv"].map(|name| directory.path().join(name));
    let (code, text, error) = run(&format!(
        "{SMALL} --N 3000 --Concurrency 16 --K 20 --W 0.5 --LinearizabilityCheck --json {} --latency-file {} --history-csv {}",
        report.display(),
        latency.display(),
        history.display()
    ));
    assert!(code == 0 && text.contains("Linearizable\n3000 operations on 20 keys were checked"), "{text}\n{error}");
    let report = json(&report);
    assert_eq!((&report["response_us"]["count"], &report["errors"]), (&3000.into(), &serde_json::json!({})));
    assert_eq!((&report["check"]["verdict"], &report["config"]["requests"]), (&"linearizable".into(), &3000.into()));

    let times: Vec<f64> = fs::read_to_string(&latency).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(times.len(), 3000);
    assert!(times.is_sorted());
    // The same times as the histogram's, which keeps three digits.
    let longest_ms = report["response_us"]["max"].as_f64().unwrap() / 1000.0;
    assert!((times[2999] / longest_ms - 1.0).abs() < 0.01, "{} ms and {longest_ms} ms", times[2999]);

    let check = |file: &Path| run(&format!("check {}", file.display()));
    assert_eq!(check(&history).0, 0);
    // The last read that saw a value says now that there was none; or it names another write.
    let rows = fs::read_to_string(&history).unwrap();
    let is_read = |row: &&str| row.split(',').nth(1) == Some("") && row.split(',').nth(2) != Some("0");
    let victim = rows.lines().rfind(is_read).expect("half of 3000 are reads");
    let columns: Vec<&str> = victim.split(',').collect();
    for seen in ["0", "12345"] {
        let spoilt = [columns[0], "", seen, columns[3], columns[4], columns[5]].join(",");
        fs::write(&history, rows.replace(victim, &spoilt)).unwrap();
        let (code, text, _) = check(&history);
        assert!(
            code == 4 && text.contains(&format!("NOT LINEARIZABLE: 1 of 20 keys: {}", columns[0])),
            "{code}: {text}"
        );
    }
    // Paxi's five columns know no versions: the values alone show it.
    let five = |row: &str| row.rsplit_once(',').unwrap().0.to_owned() + "\n";
    let paxis: String = rows.lines().map(five).collect();
    fs::write(&history, &paxis).unwrap();
    assert_eq!(check(&history).0, 0);
    fs::write(
        &history,
        paxis.replace(&five(victim), &five(&[columns[0], "", "0", columns[3], columns[4], ""].join(","))),
    )
    .unwrap();
    assert_eq!(check(&history).0, 4);
    fs::write(&history, "1,2,3\n").unwrap();
    let (code, _, error) = check(&history);
    assert!(code == 1 && error.contains("line 1") && error.contains("expected KEY,INPUT,OUTPUT"), "{error}");
}

#[test]
fn all_requests_are_made_however_few_are_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.json");
    for (concurrency, threads) in [(1, 1), (2, 1), (5, 4), (100, 2)] {
        let flags = format!("--target null --N 101 --Concurrency {concurrency} --threads {threads} --quiet");
        let (code, text, _) = run(&format!("{flags} --json {}", file.display()));
        assert_eq!((code, &json(&file)["response_us"]["count"]), (0, &101.into()), "{text}");
    }
}

#[test]
fn a_cluster_that_forgets_is_found_out() {
    let address = fake::start(Mode::Forgetful);
    let (code, text, _) = run(&format!(
        "--seed-address {address} --quiet --N 500 --concurrency 4 --keys 5 --linearizability-check --history-max 400"
    ));
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("NOT LINEARIZABLE: 5 of 5 keys: 0, 1, 2, 3, 4"), "{text}");
    assert!(text.contains("400 operations on 5 keys were checked: those of the first"), "{text}");
    assert!(text.contains("\n> ") && text.contains("read: no value"), "{text}");
    assert!(text.contains("NOT VALID: the history is not linearizable"), "{text}");
}

#[test]
fn a_block_of_paxis_file_is_run_and_its_scenario() {
    let directory = tempfile::tempdir().unwrap();
    let [config, file] = ["config.json", "run.json"].map(|name| directory.path().join(name));
    let block = r#"{"benchmark": {"T": 0, "N": 400, "K": 30, "W": 1, "Concurrency": 10, "Distribution": "conflict",
                    "Conflicts": 50, "Min": 100, "LinearizabilityCheck": true}}"#;
    fs::write(&config, block).unwrap();
    let flags = format!("{SMALL} --benchmark {} --json {}", config.display(), file.display());
    let (code, text, error) = run(&flags);
    assert_eq!(code, 0, "{text}\n{error}");
    let report = json(&file);
    assert_eq!((&report["write"]["response_us"]["count"], &report["config"]["concurrency"]), (&400.into(), &10.into()));
    assert_eq!((&report["config"]["conflicts"], &report["config"]["first_key"]), (&50.0.into(), &100.into()));
    assert_eq!(report["check"]["verdict"], "linearizable");
    let (code, text, _) = run(&format!("{flags} --rounds 2 --linearizability-check=false --N 50"));
    assert!(code == 0 && text.contains("Round 2 of 2") && text.contains("2 rounds: "), "{text}");
    for round in 1..=2 {
        let report = json(&directory.path().join(format!("run-{round}.json")));
        assert_eq!(report["response_us"]["count"], 50);
        assert_eq!(report["check"], Value::Null);
    }
}

#[test]
fn a_key_space_is_filled_once() {
    let cluster = LocalCluster::start(LocalOptions { zones: 1, nodes: 1, ..LocalOptions::default() }).unwrap();
    let seed = cluster.seeds()[0];
    let directory = tempfile::tempdir().unwrap();
    let history = directory.path().join("history.csv");
    let flags = format!("--seed-address {seed} --quiet --K 77 --Min 13 --threads 2 --clients-per-zone 2");
    let (code, text, error) = run(&format!("{flags} --load --concurrency 3 --history-csv {}", history.display()));
    assert_eq!(code, 0, "{text}\n{error}");
    let rows = fs::read_to_string(&history).unwrap();
    let mut keys: Vec<u64> = rows.lines().map(|row| row.split(',').next().unwrap().parse().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, (13..90).collect::<Vec<u64>>());
    // Whoever reads them now begins with these values, and that is linearizable.
    let (code, text, error) = run(&format!("{flags} --N 2000 --linearizability-check --Distribution zipfan"));
    assert!(code == 0 && text.contains("Linearizable"), "{text}\n{error}");
    cluster.stop().unwrap();
}

#[test]
fn whoever_gets_no_answer_gives_up_and_says_so() {
    let mute = fake::start(Mode::Mute);
    let (code, _, error) = run(&format!("--seed-address {mute} -T 1 --warmup 0s"));
    assert!(code == 1 && error.contains(&mute.to_string()), "{error}");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.json");
    let silent = fake::start(Mode::Silent);
    for (flags, kind) in
        [("--request-timeout 60s --grace 500ms", "unanswered"), ("--request-timeout 300ms", "timeout_maybe_done")]
    {
        let flags = format!("{flags} --seed-address {silent} -T 1 --warmup 0s --concurrency 7 --quiet");
        let (code, text, error) = run(&format!("{flags} --json {}", file.display()));
        assert_eq!(code, 3, "{text}\n{error}");
        assert!(text.contains("NOT VALID: no request that was due in the measured time was answered"), "{text}");
        let report = json(&file);
        let failed = report["errors"][kind].as_u64().unwrap_or_else(|| panic!("no {kind}: {text}"));
        assert!(failed >= 7 && text.contains("0 of these requests did not happen"), "{text}");
        assert_eq!((&report["response_us"]["count"], &report["throughput_ops_per_s"]), (&0.into(), &0.0.into()));
    }
}

#[test]
fn a_cluster_that_stops_in_the_middle_ends_the_run_in_time() {
    let options = LocalOptions { zones: 2, nodes: 1, ..LocalOptions::default() };
    let cluster = LocalCluster::start(options).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.json");
    let seed = cluster.seeds()[0];
    let mut child = spawn(&format!(
        "--seed-address {seed} -T 4 --warmup 0s --concurrency 8 --linearizability-check --json {}",
        file.display()
    ));
    let mut progress = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = progress.next().unwrap().unwrap();
    assert!(first.contains("1/4 s"), "{first}");
    cluster.stop().unwrap();
    // Somebody must read the progress, or the run waits for that.
    let rest = thread::spawn(move || progress.map_while(Result::ok).collect::<Vec<String>>());
    let (code, text, _) = finish(child);
    rest.join().unwrap();
    assert!(code == 3 && text.contains("NOT VALID: nothing was answered in the last "), "{text}");
    let report = json(&file);
    assert_eq!(report["check"]["verdict"], "linearizable", "what was lost in the end may have happened: {text}");
    assert!(report["response_us"]["count"].as_u64().unwrap() > 0, "{text}");
    let errors = report["errors"].as_object().unwrap();
    assert!(errors.values().map(|count| count.as_u64().unwrap()).sum::<u64>() >= 8, "{text}");
    let all = fs::read_to_string(&file).unwrap();
    assert!(all.contains("\"valid\": false"), "{all}");
}
