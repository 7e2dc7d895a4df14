//! `tickmesh-sim`: simulates and measures tickmesh networks.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "commands talk to people")]

#[cfg(feature = "load")]
mod load;
#[cfg(feature = "load")]
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tickmesh_sim::model;

/// Simulates and measures tickmesh networks.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Torture the state machines in virtual time: many seeds, each a world with faults, each exactly repeatable
    Model(model::Model),
    /// Connect many clients to edges, make events at a rate, check every sequence, measure latency
    #[cfg(feature = "load")]
    Load(load::Load),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Model(model) => model.run(),
        #[cfg(feature = "load")]
        Command::Load(load) => load.run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
