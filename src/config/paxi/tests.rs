use std::{net::Ipv4Addr, path::Path};

use super::*;
use crate::topology::QuorumSpec;

/// Paxi's own sample, as it is.
const SAMPLE: &str = include_str!("../../../docs/examples/paxi.json");

/// Knows `localhost` and `far`, and nothing else.
fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    match name {
        "localhost" => Ok(vec!["::1".parse().unwrap(), Ipv4Addr::LOCALHOST.into()]),
        "far" => Ok(vec![Ipv4Addr::new(10, 0, 0, 7).into()]),
        "empty" => Ok(Vec::new()),
        _ => Err(io::Error::other("nobody knows it")),
    }
}

fn parsed(text: &str) -> Result<PaxiConfig, ConfigError> {
    PaxiConfig::parse_with(text, Path::new("config.json"), &resolve, true)
}

/// Two nodes, and what else is given.
fn with(rest: &str) -> Result<PaxiConfig, ConfigError> {
    parsed(&format!("{{\n\"address\": {{\"1.1\": \"tcp://10.0.0.1:1735\", \"2.1\": \"10.0.0.2:1735\"}}{rest}}}"))
}

fn said(config: &PaxiConfig, field: &str) -> String {
    let notes = config.notes().iter().filter(|note| note.field == field);
    notes.map(|note| note.text.as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_is_read_as_it_is_meant() {
    let paxi = parsed(SAMPLE).unwrap();
    let (cluster, notes) = paxi.to_cluster();
    assert_eq!((cluster.zones.len(), cluster.nodes.len(), cluster.shards), (3, 9, 1));
    assert_eq!(cluster.nodes[8].shards, ["127.0.0.1:1743".parse().unwrap()]);
    assert_eq!(cluster.steal, StealPolicy::Majority { interval_us: 3_000_000 });
    assert_eq!(cluster.quorum, QuorumSpec::ZoneMajority);
    assert_eq!(cluster.nodes[8].http, Some("127.0.0.1:8088".parse().unwrap()));
    assert_eq!((cluster.http.missing, cluster.faults, cluster.history), (Missing::Empty, false, None));
    let expected = PaxiBenchmark {
        throttle: 1000,
        linearizability_check: false,
        conflicts: 0,
        mu: 500.0,
        sigma: 50.0,
        speed_ms: 10,
        ..PaxiBenchmark::default()
    };
    assert_eq!(paxi.benchmark, expected);
    for (field, text) in [
        ("benchmark.Zipfian_s", "is taken as `ZipfianS`"),
        ("benchmark.Zipfian_v", "is taken as `ZipfianV`"),
        ("threshold", "3 is the length of an interval in seconds"),
        ("threshold", "write 0.003"),
        ("buffer_size", "has no meaning here"),
        ("chan_buffer_size", "has no meaning here"),
        ("quorum", "a majority of one zone"),
        ("address", "on the address that is written"),
    ] {
        assert!(said(&paxi, field).contains(text), "{field}: {:?} does not say {text:?}", said(&paxi, field));
    }
    assert_eq!(notes, paxi.notes());
}

#[test]
fn what_is_converted_reads_the_same() {
    let rest = r#", "http_address": {"1.1": "http://10.0.0.1:80", "2.1": "10.0.0.2:80/"}, "multiversion": true, "thrifty": true"#;
    for text in
        [SAMPLE.to_owned(), format!("{{\"address\": {{\"1.1\": \"10.0.0.1:1\", \"2.1\": \"10.0.0.2:1\"}}{rest}}}")]
    {
        let paxi = parsed(&text).unwrap();
        let written = paxi.to_toml();
        assert_eq!(Cluster::parse(&written, Path::new("c.toml")).unwrap(), paxi.to_cluster().0, "{written}");
        assert!(written.contains("#   Concurrency = 1"), "{written}");
        assert_eq!(paxi.to_cluster().0.history.is_some(), text.contains("multiversion\": true"));
        assert_eq!(written.contains("#   thrifty = true"), paxi.thrifty, "{written}");
    }
}

#[test]
fn a_file_is_recognised_by_its_name_or_by_how_it_begins() {
    let text = "{\"address\": {\"1.1\": \"10.0.0.1:1735\"}}";
    for file in ["config.json", "config.JSON", "config", "c.toml"] {
        assert_eq!(Cluster::parse(&format!("\n {text}"), Path::new(file)).unwrap().name, NAME);
    }
    let error = Cluster::parse("name = \"a\"", Path::new("a.json")).unwrap_err().to_string();
    assert!(error.starts_with("a.json: line 1 (`name = \"a\"`): ") && error.contains("Paxi's JSON"), "{error}");
}

#[test]
fn keys_are_known_in_any_case_and_null_is_the_default() {
    let paxi = with(
        r#", "POLICY": "ema", "Threshold": 0.25, "Thrifty": true, "bEnChMaRk": {"t": 0, "n": 9, "zipfians": 1.5, "mu": null}"#,
    )
    .unwrap();
    let alpha_permille = 250;
    assert_eq!(paxi.to_cluster().0.steal, StealPolicy::Ema { alpha_permille, interval_us: StealPolicy::INTERVAL_US });
    assert!(paxi.to_tuning().batch.thrifty);
    let benchmark = &paxi.benchmark;
    assert_eq!((benchmark.seconds, benchmark.requests, benchmark.zipfian_s, benchmark.mu), (0, 9, 1.5, 0.0));

    let defaults = with(r#", "policy": null, "threshold": null, "benchmark": null"#).unwrap();
    assert_eq!(defaults.to_cluster().0.steal, StealPolicy::Consecutive { hits: 3 });
    assert!(said(&defaults, "policy").contains("\"null\", in quotes, is never"));
    assert_eq!(defaults.benchmark, PaxiBenchmark::default());
    assert!(!defaults.to_tuning().batch.thrifty);
}

#[test]
fn policies_and_thresholds_have_their_units() {
    use StealPolicy as S;
    let steal = |rest: &str| with(rest).unwrap().to_cluster().0.steal;
    assert_eq!(steal(r#", "policy": "", "threshold": -1"#), S::None);
    assert_eq!(steal(r#", "policy": "null""#), S::None);
    assert_eq!(steal(r#", "threshold": 7.0"#), S::Consecutive { hits: 7 });
    assert_eq!(steal(r#", "policy": "majority", "threshold": 0.25"#), S::Majority { interval_us: 250_000 });
    let hits = with(r#", "policy": "consecutive", "threshold": 7"#).unwrap();
    assert!(said(&hits, "threshold").contains("7 is requests in a row"));
}

#[test]
fn every_distribution_is_known() {
    use PaxiDistribution as D;
    for (name, distribution) in [
        ("order", D::Order),
        ("uniform", D::Uniform),
        ("conflict", D::Conflict),
        ("normal", D::Normal),
        ("zipfan", D::Zipfian),
        ("zipfian", D::Zipfian),
        ("exponential", D::Exponential),
    ] {
        let paxi = with(&format!(r#", "benchmark": {{"Distribution": "{name}"}}"#)).unwrap();
        assert_eq!(paxi.benchmark.distribution, distribution);
        assert_eq!(said(&paxi, "benchmark.Distribution").contains("zipfian"), name == "zipfan");
    }
    assert_eq!(D::Zipfian.name(), "zipfian");
}

#[test]
fn hosts_are_addresses_or_names_and_schemes_are_said() {
    let paxi =
        parsed(r#"{"address": {"1.1": "udp://localhost:1", "1.2": "chan://localhost:2", "1.3": "[::1]:3"}}"#).unwrap();
    let addresses: Vec<String> = paxi.to_cluster().0.nodes.iter().map(|node| node.shards[0].to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:1", "127.0.0.1:2", "[::1]:3"]);
    for text in ["udp is taken as tcp", "chan is taken as tcp", "'localhost' is 127.0.0.1, looked up"] {
        assert!(said(&paxi, "address").contains(text), "{text}");
    }
    assert_eq!(said(&paxi, "http_address"), "is empty: no node serves HTTP");
}

#[test]
fn a_template_needs_no_members_and_ignores_those_it_has() {
    let file = Path::new("config.json");
    let none = PaxiConfig::parse_template(r#"{"policy": "null"}"#, file).unwrap();
    assert!(none.settings_toml().contains("policy = \"none\"") && said(&none, "address").is_empty());
    let some = PaxiConfig::parse_template(SAMPLE, file).unwrap();
    assert!(!some.settings_toml().contains("[[node]]") && said(&some, "address").contains("those that register"));
}

#[test]
fn what_is_wrong_is_named_with_what_would_be_right() {
    #[rustfmt::skip]
    let table = [
        (r#", "polcy": "ema""#, "polcy: is not a key of Paxi's configuration; did you mean `policy`?"),
        (r#", "http_adress": {}"#, "did you mean `http_address`?"),
        (r#", "policy": "ema", "Policy": "ema""#, "Policy: is written twice, the other time as `policy`"),
        (r#", "thrifty": true, "thrifty": true"#, "thrifty: is written twice: one"),
        (r#", "address": {}"#, "address: is written twice"),
        (r#", "policy": "emma""#, "policy: 'emma' is not known: expected one of consecutive, majority, ema, null; did you mean `ema`?"),
        (r#", "policy": "Majority""#, "did you mean `majority`?"),
        (r#", "policy": 3"#, "policy: 3 is not a text in quotes"),
        (r#", "policy": "ema""#, "threshold: 3, the default, must be from 0.001 to 1: the weight of what is new, for policy ema"),
        (r#", "policy": "ema", "threshold": 0"#, "threshold: 0 must be from 0.001 to 1"),
        (r#", "policy": "majority", "threshold": 0"#, "threshold: 0 must be from 0.001 to 86400: seconds, for policy majority"),
        (r#", "policy": "majority", "Threshold": 86401"#, "Threshold: 86401 must be from 0.001 to 86400"),
        (r#", "threshold": 0"#, "threshold: 0 must be from 1 to 4294967295: requests in a row"),
        (r#", "threshold": 2.5"#, "threshold: 2.5 must be a whole number: requests in a row"),
        (r#", "threshold": "3""#, "threshold: \"3\" is not a number"),
        (r#", "thrifty": 1"#, "thrifty: 1 is not true or false"),
        (r#", "buffer_size": -1"#, "buffer_size: -1 must be from 0"),
        (r#", "chan_buffer_size": 1.5"#, "chan_buffer_size: 1.5 must be a whole number"),
        (r#", "benchmark": []"#, "benchmark: a list is not an object"),
        (r#", "http_address": {"1.1": "http://10.0.0.1:80"}"#, "address: 2.1 is here and not in `http_address`"),
        (r#", "http_address": {"1.1": "10.0.0.1:80", "2.1": "10.0.0.2:80", "3.1": "10.0.0.3:80"}"#, "http_address: 3.1 is here and not in `address`"),
        (r#", "http_address": {"1.1": "10.0.0.1:80", "2.1": "10.0.0.1:80"}"#, "http_address: 2.1 is at 10.0.0.1:80, and so is 1.1 in `http_address`"),
        (r#", "http_address": {"1.1": "10.0.0.1:1735", "2.1": "10.0.0.2:80"}"#, "http_address: 1.1 is at 10.0.0.1:1735, and so is 1.1 in `address`"),
        (r#", "http_address": {"1.1": "https://10.0.0.1:80", "2.1": "10.0.0.2:80"}"#, "has the scheme https, which is not served here; http is"),
        (r#", "benchmark": {"Tt": 1}"#, "benchmark.Tt: is not a key"),
        (r#", "benchmark": {"Concurency": 1}"#, "did you mean `Concurrency`?"),
        (r#", "benchmark": {"ZipfianS": 2, "Zipfian_s": 3}"#, "benchmark.Zipfian_s: is written twice, the other time as `ZipfianS`"),
        (r#", "benchmark": {"K": 0}"#, "benchmark.K: 0 must be from 1"),
        (r#", "benchmark": {"W": 50}"#, "benchmark.W: 50 must be from 0 to 1"),
        (r#", "benchmark": {"Conflicts": 101}"#, "benchmark.Conflicts: 101 must be from 0 to 100"),
        (r#", "benchmark": {"T": 0}"#, "benchmark.N: is 0 and so is T"),
        (r#", "benchmark": {"Distribution": "zipf"}"#, "benchmark.Distribution: 'zipf' is not known: expected one of order, uniform"),
        (r#", "benchmark": {"Distribution": "zipfan", "ZipfianS": 1}"#, "benchmark.ZipfianS: 1 must be above 1 where keys are zipfian"),
        (r#", "benchmark": {"Distribution": "zipfan", "ZipfianV": 0.5}"#, "benchmark.ZipfianV: 0.5 must be from 1"),
        (r#", "benchmark": {"Distribution": "normal", "Sigma": 0}"#, "benchmark.Sigma: 0 must be above 0"),
        (r#", "benchmark": {"Distribution": "normal", "Move": true, "Speed": 0}"#, "benchmark.Speed: 0 must be from 1"),
        (r#", "benchmark": {"Distribution": "exponential", "Lambda": 0}"#, "benchmark.Lambda: 0 must be above 0"),
        (r#", "benchmark": {"LinearizabilityCheck": 0}"#, "benchmark.LinearizabilityCheck: 0 is not true or false"),
        (",", "config.json: line 2 (`"),
        (", policy: 3", "the file is read as Paxi's JSON"),
    ];
    for (rest, message) in table {
        let error = with(rest).expect_err(rest).to_string();
        assert!(error.starts_with("config.json: "), "{error:?} does not name the file");
        assert!(error.contains(message), "{error:?} does not say {message:?}");
    }
}

#[test]
fn wrong_members_are_named() {
    #[rustfmt::skip]
    let table = [
        (r#"{}"#, "address: 0 nodes; a cluster has from 1 to 128"),
        (r#"[]"#, "the file: a list is not an object"),
        (r#"{"address": {"1": "10.0.0.1:1"}}"#, "address: '1' is not a node id: expected ZONE.NODE"),
        (r#"{"address": {"0.1": "10.0.0.1:1"}}"#, "address: '0.1' is not a node id"),
        (r#"{"address": {"1.1": 7}}"#, "address: 1.1: a number is not an address in quotes"),
        (r#"{"address": {"1.1": "10.0.0.1:1", "1.1": "10.0.0.2:1"}}"#, "address: 1.1 is there twice"),
        (r#"{"address": {"1.1": "10.0.0.1:1", "1.2": "10.0.0.1:1"}}"#, "address: 1.2 is at 10.0.0.1:1, and so is 1.1"),
        (r#"{"address": {"1.1": "10.0.0.1:1", "1.2": "localhost:1"}}"#, "address: 1.2 is at 127.0.0.1:1, which only its own machine can dial, and 1.1 is at 10.0.0.1:1"),
        (r#"{"address": {"1.1": "sctp://10.0.0.1:1"}}"#, "has the scheme sctp, which is not served here; tcp or udp or chan is"),
        (r#"{"address": {"1.1": "10.0.0.1"}}"#, "1.1: '10.0.0.1' has no port: expected tcp://HOST:PORT"),
        (r#"{"address": {"1.1": "10.0.0.1:http"}}"#, "has no port from 1 to 65535"),
        (r#"{"address": {"1.1": "10.0.0.1:0"}}"#, "has port 0, which nobody can dial"),
        (r#"{"address": {"1.1": ":1735"}}"#, "has no host; each node listens on one address here"),
        (r#"{"address": {"1.1": "tcp://0.0.0.0:1735"}}"#, "stands for every address, which nobody can dial"),
        (r#"{"address": {"1.1": "::1:1735"}}"#, "does not stand in brackets"),
        (r#"{"address": {"1.1": "a b:1735"}}"#, "has no host"),
        (r#"{"address": {"1.1": "nobody:1735"}}"#, "1.1: the name 'nobody' cannot be looked up: nobody knows it"),
        (r#"{"address": {"1.1": "empty:1735"}}"#, "1.1: the name 'empty' has no address"),
    ];
    for (text, message) in table {
        let error = parsed(text).expect_err(text).to_string();
        assert!(error.starts_with("config.json: "), "{error:?} does not name the file");
        assert!(error.contains(message), "{error:?} does not say {message:?}");
    }
    let many = |count: usize| {
        let node = |node: usize| format!("\"{}.{}\": \"far:{node}\"", node / 200 + 1, node % 200 + 1);
        format!("{{\"address\": {{{}}}}}", (1..=count).map(node).collect::<Vec<_>>().join(", "))
    };
    assert!(parsed(&many(128)).is_ok());
    assert!(parsed(&many(129)).unwrap_err().to_string().contains("129 nodes; a cluster has from 1 to 128"));
}

#[test]
fn what_nests_too_deep_is_refused() {
    let deep = format!("{{\"benchmark\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parsed(&deep).unwrap_err().to_string().contains("recursion limit"));
}
