//! The binary as its users meet it: runs, files, exit codes.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use serde_json::Value;

fn load(flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos-load"));
    command.args(flags.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(flags: &str) -> (i32, String, String) {
    let Output { status, stdout, stderr } = load(flags).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_run_leaves_a_report_a_json_file_and_an_interval_log() {
    let directory = tempfile::tempdir().unwrap();
    let (file, log) = (directory.path().join("run.json"), directory.path().join("run.hlog"));
    let (code, report, progress) = run(&format!(
        "run --target null --rate 2000 --arrivals poisson --threads 2 --zones 2 --warmup 300ms --duration 1500ms \
         --json {} --hdr {}",
        file.display(),
        log.display()
    ));
    assert!(report.contains("requests/s offered") && report.contains("zone 2 write"), "{report}");
    assert!(progress.contains("warm-up") && progress.contains("1/2 s"), "{progress}");
    let json = json(&file);
    // A busy machine may make a run miss its schedule; it says so then.
    assert_eq!(code, if json["valid"] == true { 0 } else { 3 }, "{report}");
    let count = json["response_us"]["count"].as_u64().unwrap();
    assert!((2700..3300).contains(&count), "{count} requests in 1.5 s");
    let zones = json["zones"].as_array().unwrap();
    assert_eq!(zones.iter().map(|zone| zone["response_us"]["count"].as_u64().unwrap()).sum::<u64>(), count);
    assert_eq!((&json["config"]["arrivals"], &json["config"]["threads"]), (&"poisson".into(), &2.into()));

    let text = fs::read(&log).unwrap();
    let mut tags = Vec::new();
    for entry in IntervalLogIterator::new(&text) {
        if let LogEntry::Interval(interval) = entry.unwrap() {
            tags.push((interval.start_timestamp().as_secs(), interval.tag().map(|tag| tag.as_str().to_owned())));
        }
    }
    for second in 0..2 {
        for tag in [None, Some("read".to_owned()), Some("write".to_owned())] {
            assert!(tags.contains(&(second, tag.clone())), "no {tag:?} in second {second}: {tags:?}");
        }
    }
}

#[test]
fn the_generator_alone_says_what_it_could_make() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.json");
    run(&format!("--target null --quiet --concurrency 512 --warmup 200ms --duration 1s --json {}", file.display()));
    let report = json(&file);
    // The rate is for people to read: a slow day is no fault.
    println!("{} requests per second against nothing", report["throughput_ops_per_s"]);
    assert!(report["response_us"]["count"].as_u64().unwrap() > 512, "{report}");
    assert_eq!((&report["valid"], &report["errors"]), (&serde_json::json!(true), &serde_json::json!({})));
}

#[test]
fn a_signal_ends_the_run_early_with_a_report() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.json");
    let flags = format!("--target null --rate 1000 --warmup 100ms --duration 60s --json {}", file.display());
    let child = load(&flags).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("NOT VALID: interrupted"));
    let json = json(&file);
    assert_eq!((&json["interrupted"], &json["valid"]), (&true.into(), &false.into()));
    let (count, measured) = (json["response_us"]["count"].as_f64().unwrap(), json["measured_s"].as_f64().unwrap());
    assert!(measured > 0.2 && measured < 30.0, "measured {measured} s");
    assert!((count / measured / 1000.0 - 1.0).abs() < 0.05, "{count} requests in {measured} s");
}

#[test]
fn two_runs_are_set_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let files = ["a.json", "b.json"].map(|name| directory.path().join(name).display().to_string());
    for (file, keys) in files.iter().zip([10, 20]) {
        run(&format!("--target null --quiet --keys {keys} --rate 100 --warmup 0s --duration 200ms --json {file}"));
    }
    let (code, table, _) = run(&format!("compare {} {}", files[0], files[1]));
    assert_eq!(code, 0);
    assert!(table.contains("throughput") && table.contains("keys"), "{table}");
    assert!(!table.contains("value_bytes"), "the same in both: {table}");
    let (code, _, error) = run(&format!("compare {} no-such.json", files[0]));
    assert!(code == 1 && error.contains("no-such.json"), "{error}");
}

#[test]
fn wrong_flags_and_unreachable_clusters_have_their_exit_codes() {
    for (flags, code, said) in [
        ("--rate 5 --concurrency 5", 2, "--concurrency"),
        ("run --distribution zipfain", 2, "zipfian"),
        ("--Throttle 5 --rate 5", 2, "--throttle"),
        ("--target null --from-zones 4", 1, "the cluster has zones 1, 2, 3"),
        ("--target null --distribution normal --locality 0.2", 1, "above 0.3330"),
        ("--target null --json /no/such/directory/run.json", 1, "/no/such/directory/run.json"),
        ("--target null --hdr /no/such/directory/run.hlog", 1, "/no/such/directory/run.hlog"),
        ("--seed-address 127.0.0.1:1", 1, "127.0.0.1:1"),
        ("--config no-such.toml", 1, "no-such.toml"),
    ] {
        let (found, _, error) = run(flags);
        assert!(found == code && error.contains(said), "{flags}: exit code {found}, {error}");
    }
}

#[test]
fn its_own_cluster_answers() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.json");
    let flags = "--zones 2 --nodes 1 --concurrency 8 --keys 50 --distribution normal --locality 0.9 --steal none \
                 --warmup 500ms --duration 1s";
    let (code, report, error) = run(&format!("{flags} --json {}", file.display()));
    assert!(code == 0, "{report}\n{error}");
    let json = json(&file);
    assert!(json["response_us"]["count"].as_u64().unwrap() > 100, "{report}");
    assert!(json["config"]["facts"]["quorum"].as_str().is_some_and(|quorum| quorum.contains("f_z=0")), "{report}");
    assert_eq!(json["config"]["cluster"]["nodes"], serde_json::json!(["1.1", "2.1"]));
    assert_eq!((&json["config"]["locality"], &json["zones"][1]["zone"]), (&0.9.into(), &2.into()));
}

/// What was written before the history began is no fault of the cluster, and a read-modify-write is two operations of it.
#[test]
fn a_preloaded_workload_can_be_judged() {
    let (code, report, _) = run(
        "run --workload f --zones 1 --nodes 1 --durability none --keys 50 --value-bytes uniform:16-40 --concurrency 4 \
         --warmup 0s --duration 300ms --linearizability-check",
    );
    assert!(report.contains("rmw") && report.contains("ycsb-f"), "{report}");
    assert_eq!(code, 0, "{report}");
}

#[test]
fn pages_are_written_and_comparisons_too() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display();
    for name in ["a", "b"] {
        let flags = format!(
            "run --target null --zones 1 --concurrency 4 --warmup 0s --duration 200ms --json {at}/{name}.json --html {at}/{name}.html"
        );
        assert_eq!(run(&flags).0, 0);
    }
    let (code, table, _) = run(&format!("compare {at}/a.json {at}/b.json --html {at}/both.html"));
    assert!(code == 0 && table.contains("throughput, 1/s"), "{table}");
    for name in ["a", "both"] {
        let page = fs::read_to_string(directory.path().join(format!("{name}.html"))).unwrap();
        assert!(page.contains("</html>") && page.contains("<svg"), "{name}");
    }
}
