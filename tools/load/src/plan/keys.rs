//! How keys are drawn, from flags.

use std::time::Duration;

use super::{PlanError, wrong};
use crate::{
    args::{self, DistributionName, RunArgs},
    workload::Distribution,
};

/// How often the middle of the normal distribution moves on, if it does.
pub(super) fn step(args: &RunArgs) -> Result<Option<Duration>, PlanError> {
    let moves = args.moving.unwrap_or(false);
    match args.speed {
        Some(0) => wrong("--speed 0: expected milliseconds between two steps, from 1"),
        Some(speed) if !moves => {
            wrong(format!("--speed {speed} is how fast --move moves: give --move too, or leave it out"))
        }
        Some(speed) if speed > 604_800_000 => wrong(format!("--speed {speed}: expected at most 604800000 ms")),
        speed => Ok(moves.then(|| Duration::from_millis(speed.unwrap_or(500)))),
    }
}

/// Refuses parameters of distributions that are not drawn from.
fn refuse_parameters_of_others(args: &RunArgs, name: DistributionName) -> Result<(), PlanError> {
    use DistributionName::{Conflict, Exponential, Normal, Zipfan, Zipfian};
    let parameters: [(&str, bool, &[DistributionName]); 10] = [
        ("--zipf-theta", args.zipf_theta.is_some(), &[Zipfian]),
        ("--zipf-s", args.zipf_s.is_some(), &[Zipfian, Zipfan]),
        ("--zipf-v", args.zipf_v.is_some(), &[Zipfian, Zipfan]),
        ("--conflicts", args.conflicts.is_some(), &[Conflict]),
        ("--locality", args.locality.is_some(), &[Normal]),
        ("--mu", args.mu.is_some(), &[Normal]),
        ("--sigma", args.sigma.is_some(), &[Normal]),
        ("--move", args.moving == Some(true), &[Normal]),
        ("--lambda", args.lambda.is_some(), &[Exponential]),
        ("--exponential-mean", args.exponential_mean.is_some(), &[Exponential]),
    ];
    match parameters.into_iter().find(|(_, given, owners)| *given && !owners.contains(&name)) {
        Some((flag, _, owners)) => wrong(format!(
            "{flag} belongs to --distribution {}, not to {}: leave one of them out",
            args::name_of(owners[0]),
            args::name_of(name)
        )),
        None => Ok(()),
    }
}

/// The distribution, with its parameters.
pub(super) fn distribution(args: &RunArgs, keys: u64) -> Result<Distribution, PlanError> {
    let name = args.distribution.unwrap_or(DistributionName::Uniform);
    refuse_parameters_of_others(args, name)?;
    Ok(match name {
        DistributionName::Uniform => Distribution::Uniform,
        DistributionName::Sequential => Distribution::Sequential,
        DistributionName::Zipfian if args.zipf_s.is_none() && args.zipf_v.is_none() => {
            match args.zipf_theta.unwrap_or(0.99) {
                theta if (0.0..=10.0).contains(&theta) => Distribution::Zipfian { theta },
                theta => return wrong(format!("--zipf-theta {theta}: expected 0 to 10")),
            }
        }
        DistributionName::Zipfian | DistributionName::Zipfan => zipfan(args)?,
        DistributionName::Conflict => match args.conflicts.unwrap_or(50.0) {
            percent if (0.0..=100.0).contains(&percent) => Distribution::Conflict { percent },
            percent => return wrong(format!("--conflicts {percent}: expected a percentage from 0 to 100")),
        },
        DistributionName::Exponential => exponential(args, keys)?,
        DistributionName::Normal => normal(args)?,
    })
}

fn positive(flag: &str, value: f64) -> Result<f64, PlanError> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { wrong(format!("{flag} {value}: expected above 0")) }
}

fn zipfan(args: &RunArgs) -> Result<Distribution, PlanError> {
    if args.zipf_theta.is_some() {
        return wrong("--zipf-theta and --zipf-s both are the exponent: give one of them");
    }
    let (s, v) = (args.zipf_s.unwrap_or(2.0), args.zipf_v.unwrap_or(1.0));
    if !(s > 1.0 && s <= 10.0) {
        return wrong(format!("--zipf-s {s}: expected above 1, at most 10; --zipf-theta takes exponents from 0 on"));
    }
    if !(1.0..=1e15).contains(&v) {
        return wrong(format!("--zipf-v {v}: expected 1 or more, at most 1e15"));
    }
    Ok(Distribution::Zipfan { s, v })
}

fn exponential(args: &RunArgs, keys: u64) -> Result<Distribution, PlanError> {
    let mean = match (args.lambda, args.exponential_mean) {
        (Some(_), Some(_)) => {
            return wrong("--lambda and --exponential-mean (1 / LAMBDA) say the same: give one of them");
        }
        (Some(lambda), None) => 1.0 / positive("--lambda", lambda)?,
        (None, mean) => positive("--exponential-mean", mean.unwrap_or(keys as f64 / 10.0))?,
    };
    if !mean.is_finite() {
        return wrong("--lambda is too small: its inverse is no number");
    }
    Ok(Distribution::Exponential { mean })
}

fn normal(args: &RunArgs) -> Result<Distribution, PlanError> {
    Ok(match (args.locality, args.sigma, args.mu) {
        (Some(_), Some(_), _) => {
            return wrong("--locality and --sigma both say how wide the normal distribution is: give one of them");
        }
        (Some(_), None, Some(_)) => {
            return wrong(
                "--locality gives each zone a part of its own, --mu all zones the same middle: give one of them",
            );
        }
        (None, sigma, Some(mu)) if mu.is_finite() && mu.abs() <= 1e15 => {
            Distribution::NormalAt { mu, sigma: positive("--sigma", sigma.unwrap_or(60.0))? }
        }
        (None, _, Some(mu)) => return wrong(format!("--mu {mu}: expected the number of a key, at most 1e15")),
        (None, Some(sigma), None) => Distribution::NormalSigma { sigma: positive("--sigma", sigma)? },
        (locality, None, None) => match locality.unwrap_or(0.95) {
            locality if locality > 0.0 && locality < 1.0 => Distribution::NormalLocality { locality },
            locality => return wrong(format!("--locality {locality}: expected a share above 0 and below 1")),
        },
    })
}
