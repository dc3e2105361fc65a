//! The load generator's command line. See the library for how it works.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use wpaxos_load::{
    args::{CheckArgs, Cli, Command, CompareArgs, RunArgs, SweepArgs},
    check::{Verdict, judge},
    compare::{self, CompareError},
    history::read_csv,
    html,
    json::{ReportFileError, RunReport},
    plan::Plan,
    report::{grouped, render},
    run::execute,
    sweep::{Point, SweepError, sweep},
};

/// The run could not be made.
const FAILED: u8 = 1;
/// A flag is wrong.
const USAGE: u8 = 2;
/// A run was reported that is not valid, or a check came to no end.
const NOT_VALID: u8 = 3;
/// What clients saw is not linearizable.
const NOT_LINEARIZABLE: u8 = 4;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Run(args)) => run(&args),
        Some(Command::Compare(args)) => side_by_side(&args),
        Some(Command::Sweep(args)) => climb(&args),
        Some(Command::Check(args)) => check_file(&args),
        None => run(&cli.run),
    };
    match outcome {
        Ok(0) if wpaxos::diagnostics::has_failed() => ExitCode::from(FAILED),
        Ok(code) => ExitCode::from(code),
        Err((code, message)) => {
            wpaxos::complain!("wpaxos-load: {message}");
            ExitCode::from(code)
        }
    }
}

fn run(args: &RunArgs) -> Result<u8, (u8, String)> {
    let plan = Plan::from_args(args).map_err(|error| (USAGE, error.to_string()))?;
    let interrupted = interruption()?;
    let (mut worst, mut throughputs) = (0, Vec::new());
    for round in 1..=plan.rounds {
        let plan = plan.of_round(round);
        if plan.rounds > 1 {
            wpaxos::say!("Round {round} of {}", plan.rounds);
        }
        let report = execute(&plan, &interrupted).map_err(|error| (FAILED, error.to_string()))?;
        wpaxos::say!("{}", render(&report));
        if let Some(path) = &plan.json {
            report.save(path).map_err(|error| (FAILED, error.to_string()))?;
        }
        if let Some(path) = &plan.html {
            html::save(&html::of_run(&report), path).map_err(|error| (FAILED, error.to_string()))?;
        }
        throughputs.push(grouped(report.all.throughput_ops_per_s.round() as u64));
        worst = worst.max(code_of(&report));
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    if plan.rounds > 1 {
        wpaxos::say!("{} rounds: {} requests/s", throughputs.len(), throughputs.join(", "));
    }
    Ok(worst)
}

/// Set by the first signal, which asks for the report; the second ends the process at once.
fn interruption() -> Result<Arc<AtomicBool>, (u8, String)> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(FAILED), Arc::clone(&interrupted))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
            .map_err(|error| (FAILED, format!("cannot handle signals: {error}")))?;
    }
    Ok(interrupted)
}

fn side_by_side(args: &CompareArgs) -> Result<u8, (u8, String)> {
    let failed = |error: ReportFileError| (FAILED, error.to_string());
    let comparison = compare::load(args).map_err(|error| match error {
        CompareError::Usage(_) => (USAGE, error.to_string()),
        CompareError::File(_) => (FAILED, error.to_string()),
    })?;
    wpaxos::say!("{}", comparison.text());
    if let Some(path) = &args.html {
        html::save(&html::of_comparison(&comparison), path).map_err(failed)?;
    }
    Ok(0)
}

fn climb(args: &SweepArgs) -> Result<u8, (u8, String)> {
    let report = sweep(args, &*interruption()?).map_err(|error| match error {
        SweepError::Plan(_) => (USAGE, error.to_string()),
        SweepError::File(_) | SweepError::Out { .. } => (FAILED, error.to_string()),
    })?;
    wpaxos::say!("{}\n\n{}\n", report.headline(), report.text());
    wpaxos::say!("Saved in {}: sweep.html, sweep.json and every run", args.out.display());
    let is_sound = report.points.iter().any(Point::is_sound);
    Ok(if report.interrupted || !is_sound { NOT_VALID } else { 0 })
}

/// The worse, the higher.
fn code_of(report: &RunReport) -> u8 {
    match (report.check.as_ref().map(|check| check.verdict), report.valid) {
        (Some(Verdict::Violated), _) => NOT_LINEARIZABLE,
        (_, true) => 0,
        (_, false) => NOT_VALID,
    }
}

fn check_file(args: &CheckArgs) -> Result<u8, (u8, String)> {
    let records = read_csv(&args.file).map_err(|error| (FAILED, error.to_string()))?;
    if records.is_empty() {
        return Err((FAILED, format!("{}: no row says anything: there is nothing to check", args.file.display())));
    }
    let report = judge(records, args.fresh);
    wpaxos::say!("{}", report.text());
    Ok(match report.verdict {
        Verdict::Linearizable => 0,
        Verdict::Violated => NOT_LINEARIZABLE,
        Verdict::Undecided => NOT_VALID,
    })
}
