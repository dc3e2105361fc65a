use clap::Parser;

use super::{scheme::Knee, *};
use crate::{
    args::{Cli, Command, CompareArgs},
    json::sample,
};

fn point(variant: &str, level: u64, rates: &[f64], p99_us: f64) -> Point {
    let run = |rate: &f64| {
        let mut run = sample();
        run.all.throughput_ops_per_s = *rate;
        run.all.response_us.p99 = p99_us;
        run
    };
    Point { runs: rates.iter().map(run).collect(), ..Point::new(variant, level) }
}

/// Two tunings: the slow one with a level before its knee, the fast one with one behind it, with runs that are not valid.
pub(crate) fn sample_sweep() -> SweepReport {
    let mut fast = point("fast", 64, &[150.0, 151.0, 152.0, 153.0, 1.0], 300.0);
    fast.runs[4].valid = false;
    fast.runs[4].invalid_because = vec!["late".to_owned()];
    let ten = [160.0, 161.0, 162.0, 163.0, 164.0, 165.0, 166.0, 167.0, 168.0];
    let mut over = point("fast", 256, &ten, 25_000.0);
    over.runs[0].valid = false;
    over.failures = vec!["could not start <it>".to_owned()];
    over.behind = Some("p99 was 25 ms, above 20 ms".to_owned());
    SweepReport {
        tool: "wpaxos-load sweep".to_owned(),
        started_at: "1970-01-01T00:00:00.000Z".to_owned(),
        levels: "in flight".to_owned(),
        rule: "a rule".to_owned(),
        p99_bound_us: Some(20_000.0),
        interrupted: false,
        variants: vec!["slow".to_owned(), "fast".to_owned()],
        points: vec![point("slow", 64, &[99.0, 100.0, 101.0, 102.0], 300.0), fast, over],
        knees: BTreeMap::from([("slow".to_owned(), 64), ("fast".to_owned(), 64)]),
    }
}

#[test]
fn repeats_take_turns() {
    assert_eq!(order(2, 4), [0, 1, 1, 0, 0, 1, 1, 0]);
    assert_eq!(order(3, 2), [0, 1, 2, 2, 1, 0]);
    // Whatever grows with time grows alike for all: with an even number of repeats their places have the same mean.
    let (order, mut places) = (order(3, 6), [0; 3]);
    order.iter().enumerate().for_each(|(place, variant)| places[*variant] += place);
    assert!(places.iter().all(|sum| *sum == places[0]), "{places:?}");
}

#[test]
fn the_knee_is_where_the_rule_says() {
    let closed = Knee { p99_bound: Duration::from_millis(10), is_open: false };
    let (low, high) = (point("a", 1, &[100.0], 500.0), point("a", 4, &[104.0], 900.0));
    assert_eq!(closed.behind(None, &low), None);
    assert_eq!(closed.behind(Some(&low), &high).unwrap(), "throughput changed by +4.0%");
    assert_eq!(closed.behind(Some(&low), &point("a", 4, &[106.0], 900.0)), None);
    assert_eq!(closed.behind(Some(&low), &point("a", 4, &[900.0], 10_000.0)), None, "the bound itself is allowed");
    assert_eq!(closed.behind(Some(&low), &point("a", 4, &[900.0], 10_100.0)).unwrap(), "p99 was 10.1 ms, above 10 ms");
    let open = Knee { is_open: true, ..closed };
    let offered = |rate: f64, offered: f64| {
        let mut point = point("a", 1000, &[rate], 100.0);
        point.runs[0].offered_ops_per_s = Some(offered);
        point
    };
    assert!(open.behind(None, &offered(989.0, 1000.0)).unwrap().contains("98.9% of what was offered"));
    assert_eq!(open.behind(None, &offered(991.0, 1000.0)), None);
    assert_eq!(
        open.behind(None, &offered(970.0, 975.0)),
        None,
        "random arrivals offer more or less than the level says"
    );
    assert!(open.rule().contains("99%") && closed.rule().contains("10 ms"));
}

#[test]
fn a_level_at_which_most_runs_fell_behind_is_behind_the_knee_whatever_the_others_say() {
    let open = Knee { p99_bound: Duration::from_millis(10), is_open: true };
    let mut lucky = point("a", 1000, &[1000.0, 1000.0, 1000.0, 1000.0], 100.0);
    assert_eq!(open.behind(None, &lucky), None);
    lucky.runs[0].valid = false;
    assert_eq!(open.behind(None, &lucky), None, "three of four");
    lucky.runs[1].valid = false;
    assert_eq!(open.behind(None, &lucky).unwrap(), "only 2 of 4 runs were valid");
    let mut failed = point("a", 1000, &[1000.0], 100.0);
    failed.failures = vec!["no".to_owned()];
    assert_eq!(open.behind(None, &failed).unwrap(), "only 1 of 2 runs were valid");
}

#[test]
fn the_tables_have_medians_of_valid_runs_and_what_differences_say() {
    let report = sample_sweep();
    let rows = report.rows();
    assert_eq!((&rows[2][2][..], &rows[2][8][..], &rows[2][9][..]), ("152", "4 of 5", "knee"), "{rows:?}");
    assert_eq!((&rows[3][8][..], &rows[3][9][..]), ("8 of 10", "behind the knee"));
    assert_eq!(rows[1][9], "", "the slow one has met no knee");
    let differences = report.difference_rows();
    assert_eq!(differences.len(), 2, "at 256 there is nothing to compare with");
    assert!(differences[1][1] == "fast against slow" && differences[1][2].contains("real"), "{differences:?}");
    assert_eq!(report.headline(), "fast: 152 requests/s at 64 in flight, p99 300 µs");
    assert_eq!(report.outcome("slow"), "no knee up to 64 in flight, the highest level");
    assert_eq!(report.outcome("fast"), "knee at 64 in flight: at 256 p99 was 25 ms, above 20 ms");
    let text = report.text();
    assert!(text.contains("fast at 64 in flight, run 5: not valid: late"), "{text}");
    assert!(text.contains("fast at 256 in flight: no run: could not start <it>"), "{text}");
}

#[test]
fn without_a_valid_run_something_is_shown_and_nothing_is_claimed() {
    let mut report = sample_sweep();
    report.points[1].runs.iter_mut().for_each(|run| run.valid = false);
    assert!(!report.points[1].is_sound() && report.points[1].throughput().0 == 151.0);
    assert_eq!(report.difference_rows().len(), 1, "only the head");
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
        ("--tuning a.toml --json x.json", "--out"),
        ("--tuning a.toml --data there", "empty disk"),
        ("--tuning a.toml --load", "--preload"),
    ] {
        let error = Scheme::new(&args(flags)).err().unwrap().to_string();
        assert!(error.contains(said), "{flags}: {error}");
    }
}

#[test]
fn the_time_that_is_left_is_told_before_and_after_the_first_run() {
    let mut clock = Clock {
        started: Instant::now() - Duration::from_secs(200),
        run_time: Duration::from_secs(10),
        runs_done: 0,
        levels_left: 2,
        runs_max: 30,
    };
    assert_eq!(clock.left(10, 10), "1:40 left at this level, at most 5:00 in all");
    clock.runs_done = 10;
    clock.levels_left = 1;
    assert_eq!(clock.left(5, 10), "1:40 left at this level, at most 5:00 in all");
    assert_eq!(minutes(Duration::from_secs(3909)), "1:05:09");
}

/// The flags of a sweep of two tunings on tiny clusters, which takes no time.
fn small(directory: &std::path::Path, more: &str) -> SweepArgs {
    for name in ["one", "two"] {
        fs::write(directory.join(format!("{name}.toml")), format!("name = \"{name}\"")).unwrap();
    }
    let at = directory.display();
    args(&format!(
        "--tuning {at}/one.toml --tuning {at}/two.toml --zones 1 --nodes 1 --durability none --warmup 10ms --out {at}/out {more}"
    ))
}

/// Two tunings, two levels, tiny clusters: what a user gets.
#[test]
fn a_small_sweep_leaves_its_runs_its_report_and_its_page() {
    let directory = tempfile::tempdir().unwrap();
    let flags = small(directory.path(), "--depths 1,2 --repeats 1 --duration 50ms --p99-bound 10s");
    let report = sweep(&flags, &AtomicBool::new(false)).unwrap();
    assert!(report.points.len() >= 2 && report.points[0].runs.len() == 1, "{:?}", report.points.len());
    let file = |name: &str| directory.path().join("out").join(name);
    for name in ["one-1-1.json", "two-1-1.json", "one-1-1.hlog", "sweep.json", "sweep.html"] {
        assert!(file(name).exists(), "no {name}");
    }
    let loaded = SweepReport::load(&file("sweep.json")).unwrap();
    assert!(loaded.rows() == report.rows() && loaded.knees == report.knees);
    let page = fs::read_to_string(file("sweep.html")).unwrap();
    assert!(page.contains("</svg>one</li>") && page.contains("</svg>two</li>"));
    let comparison = crate::compare::load(&CompareArgs { files: vec![file("sweep.json")], ..CompareArgs::default() });
    assert_eq!(comparison.unwrap().groups.len(), report.knees.len());
}

/// What cannot be run is kept as a failure, and the sweep comes to its end.
#[test]
fn runs_that_fail_are_kept_and_end_the_climb() {
    let directory = tempfile::tempdir().unwrap();
    let flags = small(directory.path(), "--depths 1,2 --repeats 2 --duration 20ms --from-zones 9");
    let report = sweep(&flags, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.points.len(), 2, "nobody went on to the second level");
    assert!(
        report.points.iter().all(|point| point.failures.len() == 2 && point.failures[0].contains("--from-zones 9"))
    );
    assert!(report.knees.is_empty() && report.outcome("one").contains("only 0 of 2 runs were valid"));
}

#[test]
fn an_interrupted_sweep_reports_what_was_done() {
    let directory = tempfile::tempdir().unwrap();
    let flags = small(directory.path(), "--depths 1,2 --repeats 2 --duration 30s");
    let interrupted = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let sweep = scope.spawn(|| sweep(&flags, &interrupted));
        std::thread::sleep(Duration::from_millis(300));
        interrupted.store(true, Ordering::Relaxed);
        sweep.join().unwrap().unwrap()
    });
    assert!(report.interrupted && report.points.is_empty() && report.knees.is_empty());
    assert!(directory.path().join("out/sweep.html").exists() && !directory.path().join("out/one-1-1.hlog").exists());
}
