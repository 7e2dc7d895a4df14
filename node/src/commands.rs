//! The commands, one file each. Only these print.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "commands talk to people")]

pub mod admin;
pub mod check;
pub mod client;
pub mod dead_letters;
pub mod demo;
pub mod keys;
pub mod mesh;
mod operators;
pub mod run;
pub mod token;

use std::process::ExitCode;

use tickmesh::config::{InvalidConfig, LoadError};

/// Exit code for a configuration or a call that is wrong, as clap uses it.
const EXIT_USAGE: u8 = 2;

/// Says what went wrong; 2 if the configuration is wrong, else 1.
pub fn report(error: anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    let usage = error.is::<LoadError>() || error.is::<InvalidConfig>();
    if usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
}

/// A runtime for a command, with as many threads as the machine has cores.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
