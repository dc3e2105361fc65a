//! Flags taken together.

use clap::Parser;

use super::*;
use crate::args::Cli;

fn plan(flags: &str) -> Result<Plan, String> {
    let args = Cli::try_parse_from(["wpaxos-load"].into_iter().chain(flags.split_whitespace()));
    Plan::from_args(&args.map_err(|error| error.to_string())?.run).map_err(|error| error.to_string())
}

#[test]
fn no_flags_are_a_good_run() {
    let plan = plan("").unwrap();
    assert_eq!(plan.load, Load::Closed { in_flight: 128, throttle: None });
    assert!(matches!(plan.source, Source::Local(local) if (local.zones, local.nodes, local.shards) == (3, 3, 1)));
    assert_eq!(plan.timing.extent, Extent::Time(Duration::from_secs(10)));
    assert_eq!(plan.timing.warmup, Duration::from_secs(2));
    assert_eq!((plan.rounds, plan.keep.needs_history(), plan.request_timeout), (1, false, Duration::from_secs(6)));
    assert_eq!((plan.workload.keys, plan.workload.values), (1000, ValueSize::Fixed(64)));
}

#[test]
fn contradictions_are_refused_and_name_the_flags() {
    for (flags, named, right) in [
        ("--rate 10 --concurrency 5", "--concurrency", "give one of them"),
        ("--max-in-flight 5", "--max-in-flight", "--rate"),
        ("--arrivals poisson", "--arrivals", "--rate"),
        ("--locality 0.9", "--locality", "--distribution normal"),
        ("--sigma 9 --locality 0.9 --distribution normal", "--sigma", "give one of them"),
        ("--zipf-theta 1.2 --distribution uniform", "--zipf-theta", "--distribution zipfian"),
        ("--conflicts 5 --distribution normal", "--conflicts", "--distribution conflict"),
        ("--exponential-mean 5", "--exponential-mean", "--distribution exponential"),
        ("--config a.toml --zones 3", "--zones", "--config"),
        ("--seed-address 127.0.0.1:1 --tuning t.toml", "--tuning", "--seed-address"),
        ("--seed-address 127.0.0.1:1 --config a.toml", "--config", "give one of them"),
        ("--seed-address 127.0.0.1:1 --master m", "--master", "give one of them"),
        ("--master m --zones 3", "--zones", "--master"),
        ("--target null --config a.toml", "--config", "leave out"),
        ("--target null --nodes 3", "--nodes", "leave out"),
        ("--fn 1 --quorum majority", "--fn", "floor"),
        ("--regions a,b,c", "--regions", "--wan"),
        ("--json a --hdr a", "--json", "--hdr"),
        ("--latency-file a --history-csv a", "--latency-file", "--history-csv"),
        ("--T 0 --N 0", "-T 0", "--requests (N) 0"),
        ("-T 0", "-T 0", "--requests (N)"),
        ("--N 0", "--requests (N) 0", "--duration"),
        ("-T 5 --N 100", "-T", "--requests (N) 100"),
        ("--duration 5s --N 100", "--duration", "--requests (N) 100"),
        ("-T 5 --duration 5s", "-T 5", "--duration"),
        ("--Throttle 100 --rate 100", "--throttle", "--rate"),
        ("--N 100 --rate 100", "--requests", "--rate"),
        ("--Distribution zipfan --zipf-theta 0.9", "--zipf-theta", "--distribution zipfian"),
        ("--Distribution zipfian --zipf-theta 0.9 --ZipfianS 2", "--zipf-theta", "--zipf-s"),
        ("--ZipfianV 2", "--zipf-v", "--distribution zipfian"),
        ("--Mu 5", "--mu", "--distribution normal"),
        ("--Mu 5 --locality 0.9 --Distribution normal", "--mu", "--locality"),
        ("--Move --Distribution order", "--move", "--distribution normal"),
        ("--Speed 100 --Distribution normal", "--speed 100", "--move"),
        ("--Lambda 0.1", "--lambda", "--distribution exponential"),
        ("--Lambda 0.1 --exponential-mean 5 --Distribution exponential", "--lambda", "--exponential-mean"),
        ("--LinearizabilityCheck --target null", "--linearizability-check", "--target null"),
        ("--history-csv a --value-bytes 7", "--history-csv", "--value-bytes 7"),
        ("--history-max 5", "--history-max", "--linearizability-check"),
        ("--load", "--load", "--config"),
        ("--load --config a --W 0.5", "--load", "--write-ratio"),
        ("--load --config a -T 5", "--load", "-T"),
        ("-T 10 -k 1000 -r 1 -c 50 -t 60", "-t", "--concurrency 10"),
    ] {
        let error = plan(flags).unwrap_err();
        assert!(error.contains(named) && error.contains(right), "{flags}: {error}");
    }
}

#[test]
fn values_out_of_range_are_refused_and_say_what_is_right() {
    for (flags, named, right) in [
        ("--keys 0", "--keys 0", "expected 1 to"),
        ("--K 0", "--keys 0", "expected 1 to"),
        ("--K 10 --Min 999999999999999", "--first-key", "at most"),
        ("--Min 18446744073709551615", "--first-key", "at most"),
        ("-T -1", "-T -1", "0 to 604800"),
        ("-T NaN", "-T NaN", "0 to 604800"),
        ("--N 9999999999999", "--requests", "at most"),
        ("--Throttle 2000000000", "--throttle", "at most"),
        ("--ZipfianS 1 --Distribution zipfan", "--zipf-s 1", "--zipf-theta"),
        ("--ZipfianV 0.5 --Distribution zipfan", "--zipf-v 0.5", "1 or more"),
        ("--Mu inf --Distribution normal", "--mu", "number of a key"),
        ("--Mu 5 --Sigma 0 --Distribution normal", "--sigma 0", "above 0"),
        ("--Lambda 0 --Distribution exponential", "--lambda 0", "above 0"),
        ("--Lambda 1e-320 --Distribution exponential", "--lambda", "too small"),
        ("--Move --Speed 0 --Distribution normal", "--speed 0", "from 1"),
        ("--rounds 0", "--rounds 0", "expected 1"),
        ("--history-max 0 --history-csv a", "--history-max 0", "expected 1"),
        ("--request-timeout 0s", "--request-timeout", "1ms"),
        ("--write-ratio 1.5", "--write-ratio", "0 to 1"),
        ("--write-ratio NaN", "--write-ratio", "0 to 1"),
        ("--conflicts 101 --distribution conflict", "--conflicts", "0 to 100"),
        ("--locality 1 --distribution normal", "--locality", "below 1"),
        ("--zipf-theta -1 --distribution zipfian", "--zipf-theta", "0 to 10"),
        ("--exponential-mean 0 --distribution exponential", "--exponential-mean", "above 0"),
        ("--value-bytes 9999999", "--value-bytes", "at most"),
        ("--threads 0", "--threads", "expected 1"),
        ("--concurrency 0", "--concurrency", "expected 1"),
        ("--rate 0", "--rate", "expected 1"),
        ("--duration 0s", "--duration", "at least"),
        ("--from-zones 1,1", "--from-zones", "twice"),
        ("--from-zones 0", "--from-zones", "from 1"),
        ("--zones 0", "--zones", "expected 1 to 128"),
        ("--zones 20 --nodes 20", "--zones", "at most 128"),
        ("--fn 3", "--fn", "0 to 2"),
        ("--fz 3", "--fz", "0 to 2"),
        ("--durability none --data d", "--durability none", "leave out --data"),
        ("--seed-address 127.0.0.1:1 --data d", "--data", "--seed-address"),
        ("--quorum grod", "--quorum", "grid"),
        ("--quorum flexible:2:2", "--quorum", "must be more than 9"),
        ("--quorum floor:1", "--quorum", "takes no"),
        ("--steal often", "--steal", "consecutive"),
        ("--steal consecutive:x", "--steal", "number"),
        ("--initial-owner 9.9", "--initial-owner", "members are"),
        ("--wan no-such-file.csv", "--wan", "no-such-file.csv"),
        ("--tuning no-such-file.toml", "--tuning", "no-such-file.toml"),
        ("--seed-address nowhere", "--seed-address", "HOST:PORT"),
    ] {
        let error = plan(flags).unwrap_err();
        assert!(error.contains(named) && error.contains(right), "{flags}: {error}");
    }
}

#[test]
fn the_settings_hold_what_was_asked_for() {
    let settings = plan("--rate 900 --distribution zipfian --zones 5 --fz 1 --seed 7").unwrap().settings();
    assert_eq!(settings["rate"], json!(900));
    assert_eq!(settings["zipf_theta"], json!(0.99));
    assert_eq!((&settings["local_zones"], &settings["fz"]), (&json!(5), &json!(1)));
    assert_eq!(settings["seed"], json!(7));
    assert!(!settings.contains_key("concurrency") && !settings.contains_key("steal"));
}

#[test]
fn paxis_settings_mean_what_paxi_means() {
    let of = |flags: &str| plan(flags).unwrap_or_else(|error| panic!("{flags}: {error}"));
    assert_eq!(of("-T 7").timing.extent, Extent::Time(Duration::from_secs(7)));
    let counted = of("-T 0 --N 500").timing;
    assert_eq!((counted.extent, counted.warmup), (Extent::Requests(500), Duration::ZERO));
    assert_eq!(of("-T 7 --N 0").timing.extent, Extent::Time(Duration::from_secs(7)));
    assert_eq!(of("--N 500 --warmup 1s").timing.warmup, Duration::from_secs(1));
    let closed = |throttle| Load::Closed { in_flight: 4, throttle };
    assert_eq!(of("--Concurrency 4 --Throttle 0").load, closed(None));
    assert_eq!(of("--Concurrency 4 --Throttle 30").load, closed(Some(30)));
    assert!(matches!(of("--Throttle 0 --rate 5").load, Load::Open { rate: 5, .. }));
    let drawn = |flags: &str| of(flags).workload.distribution;
    assert_eq!(drawn("--Distribution order"), Distribution::Sequential);
    assert_eq!(drawn("--Distribution zipfan"), Distribution::Zipfan { s: 2.0, v: 1.0 });
    assert_eq!(drawn("--Distribution zipfian"), Distribution::Zipfian { theta: 0.99 });
    assert_eq!(drawn("--Distribution zipfian --ZipfianS 1.5"), Distribution::Zipfan { s: 1.5, v: 1.0 });
    assert_eq!(drawn("--Distribution normal --Mu 10"), Distribution::NormalAt { mu: 10.0, sigma: 60.0 });
    assert_eq!(drawn("--Distribution exponential --Lambda 0.01"), Distribution::Exponential { mean: 100.0 });
    assert_eq!(of("--Distribution normal --Move").workload.step, Some(Duration::from_millis(500)));
    assert_eq!(of("--Distribution normal --Move --Speed 3").workload.step, Some(Duration::from_millis(3)));
    assert_eq!(of("--Move=false").workload.step, None);
    let loads = of("--load --seed-address 127.0.0.1:1 --K 70 --Min 5 --Throttle 9");
    assert_eq!(loads.timing.extent, Extent::Requests(70));
    assert_eq!((loads.workload.distribution, loads.workload.mix), (Distribution::Sequential, Mix::of_write_ratio(1.0)));
}

#[test]
fn rounds_have_output_files_of_their_own() {
    let rounds = plan("--rounds 3 --json a/run.json --latency-file latency").unwrap();
    let second = rounds.of_round(2);
    assert_eq!((second.json, second.keep.latency), (Some("a/run-2.json".into()), Some("latency-2".into())));
    let one = plan("--json a/run.json").unwrap().of_round(1);
    assert_eq!(one.json, Some("a/run.json".into()));
}
