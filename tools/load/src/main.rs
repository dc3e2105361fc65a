//! The load generator's command line. See the library for how it works.

use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use wpaxos_load::{
    args::{Cli, Command, RunArgs},
    compare::compare,
    plan::Plan,
    report::render,
    run::execute,
};

/// The run could not be made.
const FAILED: u8 = 1;
/// A flag is wrong.
const USAGE: u8 = 2;
/// A run was reported that is not valid.
const NOT_VALID: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Run(args)) => run(&args),
        Some(Command::Compare(args)) => match compare(&args.files) {
            Ok(table) => {
                println!("{table}");
                Ok(0)
            }
            Err(error) => Err((FAILED, error.to_string())),
        },
        None => run(&cli.run),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err((code, message)) => {
            eprintln!("wpaxos-load: {message}");
            ExitCode::from(code)
        }
    }
}

fn run(args: &RunArgs) -> Result<u8, (u8, String)> {
    let plan = Plan::from_args(args).map_err(|error| (USAGE, error.to_string()))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal ends the process at once; the first only asks for the report.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(FAILED), Arc::clone(&interrupted))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
            .map_err(|error| (FAILED, format!("cannot handle signals: {error}")))?;
    }
    let report = execute(&plan, &interrupted).map_err(|error| (FAILED, error.to_string()))?;
    println!("{}", render(&report));
    if let Some(path) = &plan.json {
        report.save(path).map_err(|error| (FAILED, error.to_string()))?;
    }
    Ok(if report.valid { 0 } else { NOT_VALID })
}
