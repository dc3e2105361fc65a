use clap::Parser;

use super::*;
use crate::{
    args::{Cli, Command},
    json::sample,
};

fn point(variant: &str, level: u64, rates: &[f64], p99_us: f64) -> Point {
    let run = |rate: &f64| {
        let mut run = sample();
        run.all.throughput_ops_per_s = *rate;
        run.all.response_us.p99 = p99_us;
        run
    };
    Point { variant: variant.to_owned(), level, runs: rates.iter().map(run).collect() }
}

#[test]
fn repeats_take_turns() {
    assert_eq!(order(2, 4), [0, 1, 1, 0, 0, 1, 1, 0]);
    assert_eq!(order(3, 2), [0, 1, 2, 2, 1, 0]);
}

#[test]
fn the_knee_is_where_the_rule_says() {
    let closed = Knee { p99_bound: Duration::from_millis(10), is_open: false };
    let (low, high) = (point("a", 1, &[100.0], 500.0), point("a", 4, &[104.0], 900.0));
    assert!(!closed.is_behind(None, &low) && closed.is_behind(Some(&low), &high), "less than 5% more");
    assert!(!closed.is_behind(Some(&low), &point("a", 4, &[106.0], 900.0)));
    assert!(closed.is_behind(Some(&low), &point("a", 4, &[900.0], 10_001.0)), "the bound on p99");
    let open = Knee { is_open: true, ..closed };
    assert!(open.is_behind(None, &point("a", 1000, &[989.0], 100.0)));
    assert!(!open.is_behind(None, &point("a", 1000, &[991.0], 100.0)));
    let mut invalid = point("a", 1000, &[1000.0], 100.0);
    invalid.runs[0].valid = false;
    assert!(open.is_behind(None, &invalid), "nothing that may be quoted");
    assert!(open.rule().contains("99%") && closed.rule().contains("10 ms"));
}

#[test]
fn the_tables_have_medians_of_valid_runs_and_what_differences_say() {
    let mut fast = point("fast", 64, &[150.0, 151.0, 152.0, 153.0, 1.0], 300.0);
    fast.runs[4].valid = false;
    let report = SweepReport {
        tool: String::new(),
        started_at: String::new(),
        levels: "in flight".to_owned(),
        rule: "a rule".to_owned(),
        interrupted: false,
        variants: vec!["slow".to_owned(), "fast".to_owned()],
        points: vec![point("slow", 64, &[99.0, 100.0, 101.0, 102.0], 300.0), fast],
        knees: BTreeMap::from([("fast".to_owned(), 64)]),
    };
    let rows = report.rows();
    assert_eq!((&rows[2][2][..], &rows[2][8][..], &rows[2][9][..]), ("151", "4 of 5", "knee"), "{rows:?}");
    let differences = report.difference_rows();
    assert!(differences[1][1] == "fast against slow" && differences[1][2].contains("real"), "{differences:?}");
    assert!(report.headline().contains("fast at 64"));
    let page = crate::html::of_sweep(&report);
    for part in ["a rule", "fast against slow", "knee", "Latency against throughput", "151"] {
        assert!(page.contains(part), "no {part}");
    }
}

fn args(flags: &str) -> SweepArgs {
    let words = ["wpaxos-load", "sweep"].into_iter().chain(flags.split_whitespace());
    match Cli::try_parse_from(words).unwrap().command {
        Some(Command::Sweep(args)) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_contradicts_itself_is_refused_before_the_first_run() {
    for (flags, said) in [
        ("", "--tuning"),
        ("--tuning none.toml", "none.toml"),
        ("--tuning a.toml --tuning b/a.toml", "different file names"),
        ("--tuning a.toml --concurrency 4", "--depths"),
        ("--tuning a.toml --seed-address 127.0.0.1:1", "of its own"),
        ("--tuning a.toml --rates 5 --depths 5", "contradict"),
    ] {
        let error = Scheme::new(&args(flags)).err().unwrap().to_string();
        assert!(error.contains(said), "{flags}: {error}");
    }
}

/// Two tunings, two levels, tiny clusters: what a user gets.
#[test]
fn a_small_sweep_leaves_its_runs_its_report_and_its_page() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::write(directory.path().join(format!("{name}.toml")), format!("name = \"{name}\"")).unwrap();
    }
    let at = directory.path().display();
    let flags = format!(
        "--tuning {at}/one.toml --tuning {at}/two.toml --zones 1 --nodes 1 --durability none --depths 1,2 --repeats 1 \
         --duration 50ms --warmup 10ms --p99-bound 10s --out {at}/out"
    );
    let report = sweep(&args(&flags), &AtomicBool::new(false)).unwrap();
    assert!(report.points.len() >= 2 && report.points[0].runs.len() == 1, "{:?}", report.points.len());
    for file in ["one-1-1.json", "two-1-1.json", "sweep.json", "sweep.html"] {
        assert!(directory.path().join("out").join(file).exists(), "no {file}");
    }
    let loaded = SweepReport::load(&directory.path().join("out/sweep.json")).unwrap();
    assert!(loaded.rows() == report.rows() && loaded.knees == report.knees);
    let files = [directory.path().join("out/sweep.json"), directory.path().join("out/one-1-1.json")];
    assert!(crate::compare::load(&files).unwrap().groups.len() >= 2);
}
