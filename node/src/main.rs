//! Commands of `tickmesh`.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// WebSocket broker for exchanges: ingest peers read the event log, a gossipsub mesh carries it, edge peers push it to
/// clients.
#[derive(Parser)]
#[command(version, after_help = "Start here:  tickmesh demo")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show it all at work: three regions, two ingest peers, a market, a page
    Demo(commands::demo::Demo),
    /// Run one peer
    Run(commands::run::Run),
    /// Check a configuration: every fault at once, nothing started
    Check(commands::check::Check),
    /// Make the keys of a peer, of the network and for signing, or show a peer's id
    Keys(commands::keys::Keys),
    /// Make a token for a client
    Token(commands::token::Token),
    /// Show how a running peer sees the mesh: who leads what, heads, lags
    Mesh(commands::mesh::Mesh),
    /// Take credentials back, in the whole mesh
    Admin(commands::admin::Admin),
    /// List records that could not become events, and put them back after a fix
    DeadLetters(commands::dead_letters::DeadLetters),
    /// Follow streams from the command line
    Client(commands::client::Client),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Run(run) => run.run(),
        Command::Check(check) => check.run(),
        Command::Keys(keys) => keys.run(),
        Command::Token(token) => token.run(),
        Command::Mesh(mesh) => mesh.run(),
        Command::Admin(admin) => admin.run(),
        Command::DeadLetters(letters) => letters.run(),
        Command::Client(client) => client.run(),
    };
    outcome.unwrap_or_else(commands::report)
}
