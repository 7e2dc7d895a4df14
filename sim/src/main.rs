//! `tickmesh-sim`: simulates and measures tickmesh networks.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "commands talk to people")]

mod load;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Simulates and measures tickmesh networks.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect many clients to edges, make events at a rate, check every sequence, measure latency
    Load(load::Load),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Load(load) => load.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
