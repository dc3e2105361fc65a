//! Paxi's benchmark settings from its JSON, as if they had been given as flags. Flags that were given win.

use std::path::Path;

use wpaxos::config::paxi::{PaxiBenchmark, PaxiConfig, PaxiDistribution};

use crate::args::{DistributionName, RunArgs};

/// The settings of a file, and what a reader of them should know.
///
/// # Errors
/// If it cannot be read or is wrong; names the line or the setting.
pub fn load(file: &Path) -> Result<(PaxiBenchmark, Vec<String>), String> {
    let config = PaxiConfig::load(file).map_err(|error| error.to_string())?;
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
