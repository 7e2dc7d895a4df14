//! `tickmesh client`: a small client that follows streams, for people and for scripts.

mod backoff;
mod credentials;
mod follow;
mod output;
mod positions_file;
mod signatures;
mod streams;

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;

use tickmesh::auth::Pattern;
use tickmesh_protocol::client::Secret;

use self::{
    credentials::Credentials, follow::Follower, output::Output, positions_file::PositionsFile,
    signatures::Signatures,
};

/// Follow streams from the command line.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    tickmesh client --subscribe trades.btc_usdt ticker.btc_usdt\n  \
    tickmesh client --url ws://127.0.0.1:8080/ws --url ws://127.0.0.1:8081/ws --subscribe trades.btc_usdt --latency\n  \
    tickmesh client --subscribe depth.eth_usdt --format json --count 100\n  \
    TICKMESH_TOKEN=$(tickmesh token --sub alice) tickmesh client --subscribe trades.btc_usdt\n  \
    tickmesh client --token-file bot.token --resume bot.positions --subscribe orders.bot\n  \
    tickmesh client --jwks https://exchange.example/jwks.json --require-signature 'orders.*' --subscribe orders.alice\n\n\
    When a connection is lost, the next --url is tried, and each stream goes on where it was: what was missed is replayed.\n\
    With --resume also where the last run was; after a kill -9, the events of its last five seconds are printed again.\n\
    Events go to standard output, everything else to standard error. Keys from --jwks should come from the exchange: who serves both events and keys can forge both.\n\
    Exit code: 0, or 1 if an event was missed (even if the edge told so), doubled, out of order or not signed as it should be.")]
pub struct Client {
    /// Address of an edge; may be given several times
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/ws")]
    url: Vec<String>,
    /// Streams to follow
    #[arg(long, value_name = "STREAM", num_args = 1.., required = true)]
    subscribe: Vec<String>,
    /// Token to sign in with; better given as TICKMESH_TOKEN, which other users of the machine do not see
    #[arg(long, env = "TICKMESH_TOKEN", hide_env_values = true, conflicts_with_all = ["api_key", "token_file"])]
    token: Option<String>,
    /// API key to sign in with
    #[arg(long, env = "TICKMESH_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// File with the token to sign in with, read again when it expires
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    token_file: Option<PathBuf>,
    /// Go on where the last run was: positions are kept in this file
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// How events are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Print each event's latency, from the engine's timestamp in its data, and percentiles at the end
    #[arg(long)]
    latency: bool,
    /// Public keys of the exchange (JWKS), to verify signed events with
    #[arg(long, value_name = "URL|FILE")]
    jwks: Option<String>,
    /// Streams whose events must be signed, such as orders.*
    #[arg(long, value_name = "PATTERN", num_args = 1.., requires = "jwks")]
    require_signature: Vec<Pattern>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people: time, stream, sequence, data
    Text,
    /// One JSON object per line, as the edge sent it
    Json,
}

impl Client {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        for url in &self.url {
            anyhow::ensure!(
                url.starts_with("ws://"),
                "{url}: an address looks like ws://127.0.0.1:8080/ws; TLS ends at the load balancer in front of an edge"
            );
        }
        let output = Output::new(self.format, self.latency);
        let credentials = match (self.token, self.api_key, self.token_file) {
            (Some(token), ..) => Credentials::Token(Secret::new(token)),
            (None, Some(key), _) => Credentials::ApiKey(Secret::new(key)),
            (None, None, Some(file)) => Credentials::from_file(file)?,
            (None, None, None) => Credentials::Anonymous,
        };
        let file = self.resume.map(PositionsFile::open).transpose()?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let signatures = match &self.jwks {
                Some(from) => Some(Signatures::new(from, self.require_signature).await?),
                None => None,
            };
            Follower::new(self.url, self.subscribe, credentials, self.count, file, signatures, output)
                .run()
                .await
        })
    }
}
