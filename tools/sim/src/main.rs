//! **wpaxos-sim**: seeded runs of the simulator.

use std::process::ExitCode;

use clap::Parser;
use wpaxos::mutant::Mutant;
use wpaxos_sim::{args::Args, hostile, logs, many, one};

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list_mutants {
        for mutant in Mutant::ALL {
            wpaxos::say!("{:<32} {}", mutant.name(), mutant.what());
        }
        return ExitCode::SUCCESS;
    }
    if args.logs {
        return if logs::many(&args) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if args.hostile {
        return if hostile::run_all(&args) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let total = match args.seed {
        Some(seed) => one::run(&args, seed),
        None => many::run(&args),
    };
    if let Some(path) = &args.json
        && let Err(error) = std::fs::write(path, format!("{:#}\n", total.to_json()))
    {
        wpaxos::complain!("error: cannot write {}: {error}", path.display());
        return ExitCode::from(3);
    }
    if wpaxos::diagnostics::has_failed() {
        return ExitCode::from(3);
    }
    if total.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
