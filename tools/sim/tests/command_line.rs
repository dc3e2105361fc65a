//! The command line, as its user types it.

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wpaxos-sim")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn seeds_that_are_fine_end_well_and_say_how_fast() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let output = sim(&["--seeds", "10", "--first", "3", "--threads", "2", "--json", json.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    for part in ["10 seeds, 0 failed", "seeds and", "million events a minute", "of virtual time"] {
        assert!(text(&output.stdout).contains(part), "'{part}' is missing in {}", text(&output.stdout));
    }
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["runs"], 10);
    assert_eq!(report["failures"].as_array().unwrap().len(), 0);
}

#[test]
fn time_bounds_a_night() {
    let began = std::time::Instant::now();
    let output = sim(&["--minutes", "0.02", "--threads", "1"]);
    assert!(output.status.success() && text(&output.stdout).contains(" seeds, 0 failed"), "{}", text(&output.stdout));
    assert!(began.elapsed().as_millis() >= 1200, "it goes on for as long as it was told");
}

#[test]
fn a_planted_bug_ends_badly_with_the_command_that_repeats_it() {
    let output = sim(&["--mutant", "refusals-not-sent", "--seeds", "50", "--threads", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    let again = said.lines().find_map(|line| line.strip_prefix("again: ")).expect("it says how to repeat it");
    let arguments: Vec<&str> = again.split(" -- ").nth(1).unwrap().split(' ').collect();
    let repeated = sim(&arguments);
    assert_eq!(repeated.status.code(), Some(1), "{again}");
    assert!(said.contains(text(&repeated.stdout).lines().next().unwrap()), "the same thing is wrong");
}

#[test]
fn a_trace_says_what_happens() {
    let output = sim(&["--seed", "1", "--trace"]);
    assert!(output.status.success());
    let trace = text(&output.stderr);
    for part in ["node 0 starts", "client 0:", " -> ", "AcceptBatch", "healed"] {
        assert!(trace.contains(part), "'{part}' is missing in the trace");
    }
}

#[test]
fn what_is_wrong_on_the_command_line_is_named() {
    for (arguments, part) in [
        (&["--mutant", "no-such-bug"][..], "there is no mutant 'no-such-bug'"),
        (&["--seed", "1", "--seeds", "2"], "cannot be used with"),
        (&["--trace"], "--seed"),
        (&["--seeds", "many"], "invalid digit"),
        (&["--minutes", "-1"], "--minutes"),
        (&["--minutes", "NaN"], "a number of minutes"),
        (&["--threads", "0"], "at least 1"),
    ] {
        let output = sim(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stdout));
        assert!(text(&output.stderr).contains(part), "{arguments:?}: {}", text(&output.stderr));
    }
    let output = sim(&["--seed", "1", "--json", "/no/such/directory/report.json"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("cannot write /no/such/directory/report.json"));
}

#[test]
fn mutants_are_listed() {
    let output = sim(&["--list-mutants"]);
    assert!(output.status.success());
    assert!(text(&output.stdout).lines().count() == wpaxos::mutant::Mutant::ALL.len());
}
