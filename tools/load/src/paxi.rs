//! Paxi's benchmark settings from its JSON, as if they had been given as flags. Flags that were given win.

use std::{fs, path::Path};

use wpaxos::config::paxi::{PaxiBenchmark, PaxiConfig, PaxiDistribution};

use crate::args::{DistributionName, RunArgs};

/// The settings of a file, and what a reader of them should know.
///
/// # Errors
/// If it cannot be read or is wrong; names the line or the setting.
pub fn load(file: &Path) -> Result<(PaxiBenchmark, Vec<String>), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))?;
    // Who is in the cluster is not asked: it may be described elsewhere.
    let config = PaxiConfig::parse_template(&text, file).map_err(|error| error.to_string())?;
    let of_benchmark = config.notes().iter().filter(|note| note.field.starts_with("benchmark"));
    Ok((config.benchmark.clone(), of_benchmark.map(ToString::to_string).collect()))
}

/// The flags that were given, and beside them those that follow from the settings.
///
/// # Errors
/// If the settings say nothing that the flags leave open and a run needs.
pub fn fill_in(args: &RunArgs, settings: &PaxiBenchmark) -> Result<RunArgs, String> {
    let mut args = args.clone();
    if !args.load {
        fill_in_extent(&mut args, settings)?;
        args.write_ratio = args.write_ratio.or(Some(settings.write_ratio));
        fill_in_distribution(&mut args, settings);
    }
    args.keys = args.keys.or(Some(settings.keys));
    args.first_key = args.first_key.or(Some(settings.min));
    if args.rate.is_none() {
        args.concurrency = args.concurrency.or(Some(settings.concurrency as usize));
        args.throttle = args.throttle.or(Some(settings.throttle));
    }
    args.linearizability_check = args.linearizability_check.or(Some(settings.linearizability_check));
    Ok(args)
}

fn fill_in_extent(args: &mut RunArgs, settings: &PaxiBenchmark) -> Result<(), String> {
    match (args.duration, args.seconds, args.requests) {
        (None, Some(0.0), None) if settings.requests > 0 => args.requests = Some(settings.requests),
        (None, None, None) if settings.seconds > 0 => {
            args.seconds = Some(settings.seconds as f64);
        }
        (None, None, None) if settings.requests > 0 && args.rate.is_none() => args.requests = Some(settings.requests),
        (None, None, None) if args.rate.is_none() => {
            return Err("T and N are both 0: give one of them a number above 0".to_owned());
        }
        _ => {}
    }
    Ok(())
}

/// Only the parameters of the distribution that is drawn from.
fn fill_in_distribution(args: &mut RunArgs, settings: &PaxiBenchmark) {
    if args.distribution.is_none() {
        args.distribution = Some(match settings.distribution {
            PaxiDistribution::Order => DistributionName::Sequential,
            PaxiDistribution::Uniform => DistributionName::Uniform,
            PaxiDistribution::Conflict => DistributionName::Conflict,
            PaxiDistribution::Normal => DistributionName::Normal,
            PaxiDistribution::Zipfian => DistributionName::Zipfan,
            PaxiDistribution::Exponential => DistributionName::Exponential,
        });
    }
    match args.distribution {
        Some(DistributionName::Conflict) => args.conflicts = args.conflicts.or(Some(f64::from(settings.conflicts))),
        Some(DistributionName::Normal) => {
            if args.locality.is_none() {
                args.mu = args.mu.or(Some(settings.mu));
                args.sigma = args.sigma.or(Some(settings.sigma));
            }
            args.moving = args.moving.or(Some(settings.moves));
            if args.moving == Some(true) {
                args.speed = args.speed.or(Some(settings.speed_ms));
            }
        }
        Some(DistributionName::Zipfian | DistributionName::Zipfan) if args.zipf_theta.is_none() => {
            args.zipf_s = args.zipf_s.or(Some(settings.zipfian_s));
            args.zipf_v = args.zipf_v.or(Some(settings.zipfian_v));
        }
        Some(DistributionName::Exponential) if args.exponential_mean.is_none() => {
            args.lambda = args.lambda.or(Some(settings.lambda));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use crate::{
        args::Cli,
        plan::{Extent, Load, Plan},
        workload::Distribution,
    };

    /// The plan of a file with this `benchmark` block and these flags.
    fn plan(block: &str, flags: &str) -> Result<Plan, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        fs::write(&file, format!("{{\"benchmark\": {{{block}}}}}")).unwrap();
        let file = file.display().to_string();
        let words = ["wpaxos-load", "--benchmark", &file].into_iter().chain(flags.split_whitespace());
        Plan::from_args(&Cli::try_parse_from(words).unwrap().run).map_err(|error| error.to_string())
    }

    const ALL: &str = r#""T": 5, "N": 0, "K": 70, "W": 0.25, "Throttle": 40, "Concurrency": 3, "Min": 9,
        "Distribution": "normal", "LinearizabilityCheck": true, "Conflicts": 30, "Mu": 12, "Sigma": 4, "Move": true,
        "Speed": 20, "ZipfianS": 1.5, "ZipfianV": 2, "Lambda": 0.1"#;

    #[test]
    fn a_block_means_what_its_flags_mean() {
        let mut of_file = plan(ALL, "").unwrap();
        let flags = "-T 5 --K 70 --W 0.25 --Throttle 40 --Concurrency 3 --Min 9 --Distribution normal \
                     --LinearizabilityCheck --Mu 12 --Sigma 4 --Move --Speed 20";
        let words = ["wpaxos-load"].into_iter().chain(flags.split_whitespace());
        let of_flags = Plan::from_args(&Cli::try_parse_from(words).unwrap().run).unwrap();
        of_file.notes.clear();
        assert_eq!(format!("{of_file:?}"), format!("{of_flags:?}"));
    }

    #[test]
    fn flags_win_over_the_block() {
        let given = plan(ALL, "--N 30 --K 10 --Distribution conflict --linearizability-check=false").unwrap();
        assert_eq!(given.timing.extent, Extent::Requests(30));
        assert_eq!((given.workload.keys, given.workload.first_key, given.keep.check), (10, 9, false));
        assert_eq!(given.workload.distribution, Distribution::Conflict { percent: 30.0 });
        assert_eq!(given.workload.step, None);
        let drawn = |flags| plan(ALL, flags).unwrap().workload.distribution;
        assert_eq!(drawn("--Distribution zipfan"), Distribution::Zipfan { s: 1.5, v: 2.0 });
        assert_eq!(drawn("--Distribution zipfian --zipf-theta 0.5"), Distribution::Zipfian { theta: 0.5 });
        assert_eq!(drawn("--locality 0.9"), Distribution::NormalLocality { locality: 0.9 });
        assert_eq!(drawn("--Distribution exponential"), Distribution::Exponential { mean: 10.0 });
        assert!(matches!(plan(ALL, "--rate 7").unwrap().load, Load::Open { rate: 7, .. }));
        assert_eq!(plan(ALL, "-T 0 --N 4").unwrap().timing.extent, Extent::Requests(4));
    }

    #[test]
    fn what_a_block_leaves_out_has_paxis_defaults_and_faults_name_the_file() {
        let plain = plan("\"T\": 0, \"N\": 50", "").unwrap();
        assert_eq!(plain.timing.extent, Extent::Requests(50));
        assert_eq!(plain.load, Load::Closed { in_flight: 1, throttle: None });
        assert_eq!((plain.workload.keys, plain.keep.check), (1000, true));
        for (block, flags, said) in [
            ("\"T\": 0, \"N\": 0", "", "config.json"),
            ("\"K\": 0", "", "benchmark.K"),
            ("\"Distribution\": \"zipf\"", "", "zipfian"),
            ("", "-T 0", "config.json"),
            ("\"Min\": 999999999999999", "", "config.json"),
        ] {
            let error = plan(block, flags).unwrap_err();
            assert!(error.contains("config.json") && error.contains(said), "{block}: {error}");
        }
    }
}
