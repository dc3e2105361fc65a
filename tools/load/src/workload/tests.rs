//! Distributions against their exact shares, by chi-squared.

use proptest::prelude::*;

use super::*;
use crate::mix::Ycsb;

const DRAWS: usize = 200_000;

fn place(zone: usize, zones: usize) -> LanePlace {
    LanePlace { zone, zones, lane: zone, lanes: zones }
}

fn workload(distribution: Distribution, keys: u64) -> Workload {
    Workload {
        keys,
        first_key: 0,
        distribution,
        step: None,
        ycsb: None,
        mix: Mix::of_write_ratio(0.5),
        read_mode: ReadMode::Log,
        values: ValueSize::Fixed(100),
        seed: 1,
    }
}

/// How often each key is drawn, the first one first. The key space begins somewhere: that must make no difference.
fn counts(distribution: Distribution, keys: u64, place: LanePlace) -> Vec<usize> {
    counts_of(&Workload { first_key: 7000, ..workload(shifted(distribution), keys) }, place, 0)
}

fn shifted(distribution: Distribution) -> Distribution {
    match distribution {
        Distribution::NormalAt { mu, sigma } => Distribution::NormalAt { mu: mu + 7000.0, sigma },
        other => other,
    }
}

fn counts_of(workload: &Workload, place: LanePlace, now_ns: u64) -> Vec<usize> {
    let mut source = Keys::new(workload, &place).unwrap();
    let mut random = salted(3, 0);
    let mut counts = vec![0; workload.keys as usize];
    for _ in 0..DRAWS {
        counts[(source.draw(&mut random, now_ns) - workload.first_key) as usize] += 1;
    }
    counts
}

/// Chi-squared of the counts against expected shares, and a bound that honest samples hardly ever exceed.
fn assert_fits(counts: &[usize], share: impl Fn(usize) -> f64) {
    let mut chi = 0.0;
    let mut bins = 0.0;
    for (key, count) in counts.iter().enumerate() {
        let expected = share(key) * DRAWS as f64;
        if expected < 5.0 {
            assert!(*count < 40, "key {key} was drawn {count} times, expected {expected}");
            continue;
        }
        chi += (*count as f64 - expected).powi(2) / expected;
        bins += 1.0;
    }
    let bound = bins + 4.0 * f64::sqrt(2.0 * bins) + 10.0;
    assert!(chi < bound, "chi-squared {chi} over {bins} bins, expected below {bound}");
}

#[test]
fn uniform_is_flat() {
    assert_fits(&counts(Distribution::Uniform, 100, place(0, 3)), |_| 0.01);
}

#[test]
fn zipfian_follows_the_ranks() {
    for theta in [0.0, 0.5, 0.99, 1.0, 1.5] {
        let total: f64 = (1..=50).map(|rank| f64::from(rank).powf(-theta)).sum();
        let counts = counts(Distribution::Zipfian { theta }, 50, place(0, 1));
        assert_fits(&counts, |key| ((key + 1) as f64).powf(-theta) / total);
    }
}

#[test]
fn zipfan_follows_its_exponent_and_offset_over_exactly_its_keys() {
    for (s, v) in [(2.0, 1.0), (1.01, 1.0), (1.5, 10.0), (3.0, 2.5), (2.0, 1e6)] {
        for keys in [1, 2, 50] {
            let share = |key: usize| (v + key as f64).powf(-s);
            let total: f64 = (0..keys).map(share).sum();
            let counts = counts(Distribution::Zipfan { s, v }, keys as u64, place(0, 1));
            assert_fits(&counts, |key| share(key) / total);
        }
    }
}

#[test]
fn normal_around_a_key_goes_around_the_ring() {
    // The middle in the key space, at its edge, and outside of it; narrow, and wider than the ring.
    for (mu, sigma) in [(25.0, 3.0), (0.0, 10.0), (49.0, 4.0), (-10.0, 6.0), (130.0, 6.0), (10.0, 60.0)] {
        let up_to = |x: f64| erf(x / (sigma * std::f64::consts::SQRT_2)) / 2.0;
        let share = |key: usize| -> f64 {
            let near = (-12..=12).map(|turn| key as f64 + 50.0 * f64::from(turn) - mu);
            near.map(|distance| up_to(distance + 0.5) - up_to(distance - 0.5)).sum()
        };
        let total: f64 = (0..50).map(share).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
        assert_fits(&counts(Distribution::NormalAt { mu, sigma }, 50, place(1, 3)), share);
    }
}

#[test]
fn a_moving_middle_is_one_key_further_at_every_step_and_comes_around() {
    let still = workload(Distribution::NormalAt { mu: 3.0, sigma: 2.0 }, 40);
    let moving = Workload { step: Some(Duration::from_millis(500)), ..still.clone() };
    let at = |ms: u64| counts_of(&moving, place(0, 1), ms * 1_000_000);
    let rest = counts_of(&still, place(0, 1), 0);
    for (ms, steps) in [(0, 0), (499, 0), (500, 1), (5_000, 10), (20_000, 40), (30_499, 60)] {
        let mut expected = rest.clone();
        expected.rotate_right(steps % 40);
        assert_eq!(at(ms), expected, "after {ms} ms");
    }
    assert_ne!(at(500), rest);
}

#[test]
fn exponential_is_cut_off_behind_the_last_key() {
    for mean in [5.0, 40.0, 1e6] {
        let upto = |key: f64| -f64::exp_m1(-key / mean);
        let counts = counts(Distribution::Exponential { mean }, 50, place(0, 1));
        assert_fits(&counts, |key| (upto(key as f64 + 1.0) - upto(key as f64)) / upto(50.0));
    }
}

#[test]
fn conflict_hits_the_hot_key_that_often_and_zones_share_nothing_else() {
    for zone in 0..3 {
        let counts = counts(Distribution::Conflict { percent: 30.0 }, 31, place(zone, 3));
        let own = 1 + 10 * zone..11 + 10 * zone;
        assert_fits(&counts, |key| if key == 0 { 0.3 } else { 0.07 * f64::from(own.contains(&key)) });
    }
    assert_eq!(counts(Distribution::Conflict { percent: 0.0 }, 5, place(1, 2))[0], 0);
    assert_eq!(counts(Distribution::Conflict { percent: 100.0 }, 5, place(1, 2))[0], DRAWS);
}

#[test]
fn a_sequential_lane_goes_round_in_order() {
    let workload = Workload { first_key: 5, ..workload(Distribution::Sequential, 4) };
    let mut source = Keys::new(&workload, &place(0, 1)).unwrap();
    let drawn: Vec<u64> = (0..9).map(|_| source.draw(&mut salted(1, 1), 0)).collect();
    assert_eq!(drawn, [5, 6, 7, 8, 5, 6, 7, 8, 5]);
}

#[test]
fn sequential_lanes_together_go_through_all_keys() {
    for (keys, lanes) in [(10, 3), (12, 4), (3, 7), (1, 2)] {
        let mut seen = vec![0; keys];
        for lane in 0..lanes {
            let place = LanePlace { zone: 0, zones: 1, lane, lanes };
            let sequential = Workload { first_key: 30, ..workload(Distribution::Sequential, keys as u64) };
            let mut source = Keys::new(&sequential, &place).unwrap();
            for _ in 0..keys {
                seen[source.draw(&mut salted(1, 1), 0) as usize - 30] += 1;
            }
        }
        assert_eq!(seen, vec![lanes; keys], "{keys} keys, {lanes} lanes");
    }
}

#[test]
fn locality_is_the_share_in_the_zones_own_part() {
    for (zones, keys) in [(2, 1000), (3, 1000), (5, 1000), (3, 100_001)] {
        for locality in [0.6, 0.9, 0.95, 0.99] {
            for zone in 0..zones {
                let place = place(zone, zones);
                let (start, end) = own_part(keys, &place);
                let workload = workload(Distribution::NormalLocality { locality }, keys);
                let mut source = Keys::new(&workload, &place).unwrap();
                let mut random = salted(9, zone as u64);
                let own = (0..DRAWS).filter(|_| (start..end).contains(&source.draw(&mut random, 0))).count();
                let share = own as f64 / DRAWS as f64;
                let deviation = (locality * (1.0 - locality) / DRAWS as f64).sqrt();
                assert!((share - locality).abs() < 5.0 * deviation, "{zones} zones: {share} for {locality}");
            }
        }
    }
}

#[test]
fn sigma_is_that_of_the_paper_where_the_ring_does_not_matter() {
    // Quantile 0.975 of the standard normal is 1.959964: L = 0.95 has a half width of that many deviations.
    let sigma = sigma_of(0.95, 1.0 / 3.0);
    assert!((sigma - 1.0 / 3.0 / (2.0 * 1.959_963_985)).abs() < 1e-9, "{sigma}");
    assert!((erf(1.0) - 0.842_700_792_949_715).abs() < 1e-12 && (erf(3.0) - 0.999_977_909_503_001).abs() < 1e-12);
    assert!((own_mass(0.3, 0.4) - own_mass(0.300_000_001, 0.4)).abs() < 1e-7, "the two sums agree");
}

#[test]
fn localities_that_cannot_be_are_refused() {
    let new = |locality, keys, zones| {
        let keys = Keys::new(&workload(Distribution::NormalLocality { locality }, keys), &place(0, zones));
        keys.map(|_| ()).unwrap_err().to_string()
    };
    assert!(new(0.9, 100, 1).contains("--sigma"));
    assert!(new(0.3, 99, 3).contains("above 0.3333"));
    assert!(new(0.9, 2, 3).contains("--keys 2"));
}

#[test]
fn writes_are_as_frequent_as_asked_and_values_as_long() {
    let workload = Workload { mix: Mix::of_write_ratio(0.25), ..workload(Distribution::Uniform, 10) };
    let mut requests = Requests::new(&workload, &place(0, 1), None).unwrap();
    let mut writes = 0;
    for _ in 0..DRAWS {
        let request = requests.draw(0).request;
        assert!(request.key.len() == KEY_BYTES && request.key.starts_with(b"k00000000000000"));
        match request.operation {
            Operation::Write(value) => {
                assert_eq!(value.len(), 100);
                writes += 1;
            }
            Operation::Read => {}
        }
    }
    assert!((writes as f64 / DRAWS as f64 - 0.25).abs() < 0.01);
    for (ratio, all) in [(0.0, false), (1.0, true)] {
        let mut requests =
            Requests::new(&Workload { mix: Mix::of_write_ratio(ratio), ..workload.clone() }, &place(0, 1), None)
                .unwrap();
        assert!((0..1000).all(|_| matches!(requests.draw(0).request.operation, Operation::Write(_)) == all));
    }
}

#[test]
fn the_same_seed_draws_the_same_and_lanes_differ() {
    let draw = |seed, lane| {
        let mut keys = Keys::new(&workload(Distribution::Uniform, KEYS_MAX), &place(0, 1)).unwrap();
        let mut random = salted(seed, lane);
        (0..10).map(|_| keys.draw(&mut random, 0)).collect::<Vec<_>>()
    };
    assert_eq!(draw(1, 0), draw(1, 0));
    assert_ne!(draw(1, 0), draw(1, 1));
    assert_ne!(draw(1, 0), draw(2, 0));
}

#[test]
fn keys_are_fixed_width() {
    let mut key = *b"k000000000000000";
    write_key(&mut key, 42);
    assert_eq!(&key, b"k000000000000042");
    write_key(&mut key, KEYS_MAX);
    assert_eq!(&key, b"k999999999999999");
}

proptest! {
    #[test]
    fn every_distribution_stays_in_range(
        keys in prop_oneof![1..20u64, 1..=KEYS_MAX, Just(KEYS_MAX)], zones in 1..9usize, which in 0..9, seed: u64,
    ) {
        let distribution = match which {
            0 => Distribution::Uniform,
            1 => Distribution::Zipfian { theta: 0.99 },
            2 => Distribution::NormalSigma { sigma: keys as f64 * 3.0 },
            3 => Distribution::NormalLocality { locality: 0.7 },
            4 => Distribution::Exponential { mean: keys as f64 / 2.0 },
            5 => Distribution::Conflict { percent: 50.0 },
            6 => Distribution::Zipfan { s: 1.0 + (seed % 40 + 1) as f64 / 10.0, v: 1.0 + (seed % 1000) as f64 },
            7 => Distribution::NormalAt { mu: seed as f64, sigma: keys as f64 / 7.0 },
            _ => Distribution::Sequential,
        };
        let place = LanePlace { zone: zones - 1, zones, lane: zones - 1, lanes: zones };
        let first_key = (KEYS_MAX + 1 - keys).min(seed % 1000);
        let workload = Workload { first_key, step: Some(Duration::from_millis(1)), ..workload(distribution, keys) };
        if let Ok(mut source) = Keys::new(&workload, &place) {
            let mut random = salted(seed, 0);
            for n in 0..200 {
                let key = source.draw(&mut random, seed.wrapping_mul(n) >> 8);
                prop_assert!((first_key..first_key + keys).contains(&key), "{} of {:?}", key, workload);
            }
        }
    }
}

#[test]
fn numbered_values_are_unique_in_the_run_and_like_others_behind_the_number() {
    let workload = Workload { mix: Mix::of_write_ratio(1.0), ..workload(Distribution::Uniform, 10) };
    let mut seen = std::collections::HashSet::new();
    for run in [5, 6] {
        for lane in 0..3 {
            let place = LanePlace { zone: 0, zones: 1, lane, lanes: 3 };
            let mut numbered = Requests::new(&workload, &place, Some(run)).unwrap();
            let mut plain = Requests::new(&workload, &place, None).unwrap();
            for _ in 0..100 {
                let (Operation::Write(value), Operation::Write(other)) =
                    (numbered.draw(0).request.operation, plain.draw(0).request.operation)
                else {
                    panic!("all are writes");
                };
                assert_eq!((value.len(), &value[8..]), (100, &other[8..]));
                let number = wpaxos::linear::value_number(Some(value));
                assert!(number > 0 && number < 1 << 63 && seen.insert(number), "{number}");
            }
        }
    }
}

#[test]
fn scrambled_keys_are_as_popular_as_by_rank_and_spread_out() {
    let by_rank = counts(Distribution::Zipfian { theta: 0.99 }, 1000, place(0, 1));
    let mut spread = counts(Distribution::Scrambled { theta: 0.99 }, 1000, place(0, 1));
    let hottest = spread.iter().enumerate().max_by_key(|(_, count)| **count).unwrap().0;
    assert!(hottest > 10, "the hottest key is {hottest}");
    spread.sort_unstable_by(|a, b| b.cmp(a));
    // Several ranks may meet on one key, so a little more.
    assert!((0.95..1.3).contains(&(spread[0] as f64 / by_rank[0] as f64)), "{} of {}", spread[0], by_rank[0]);
}

#[test]
fn the_latest_inserts_are_read_most_and_only_once_they_are_acknowledged() {
    let workload = Workload { mix: Ycsb::D.mix(), ..workload(Distribution::Latest { theta: 0.99 }, 1000) };
    let places = [0, 1].map(|lane| LanePlace { zone: 0, zones: 1, lane, lanes: 2 });
    let mut inserted = std::collections::HashSet::new();
    for place in places {
        let mut requests = Requests::new(&workload, &place, None).unwrap();
        let (mut own, mut recent, mut reads) = (Vec::new(), 0, 0);
        for _ in 0..20_000 {
            let drawn = requests.draw(0);
            let (kind, number) = (drawn.kind, drawn.request.number);
            if kind == crate::measure::Kind::Insert {
                assert!(number >= 1000 && inserted.insert(number), "{number} was inserted before");
                own.push(number);
                requests.inserted();
                continue;
            }
            reads += 1;
            assert!(number < 1000 || own.contains(&number), "{number} is not there yet");
            recent += usize::from(own.iter().rev().take(10).any(|key| *key == number));
        }
        assert!(recent * 20 > reads * 7, "{recent} of {reads} reads are of the last ten");
    }
}
