//! `tickmesh client`: a small client that follows streams, for people and for scripts.

mod follow;
mod output;
mod signatures;

use std::process::ExitCode;

use clap::ValueEnum;

use tickmesh::auth::Pattern;

use self::{follow::Follower, output::Output, signatures::Signatures};

/// Follow streams from the command line.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    tickmesh client --subscribe trades.btc_usdt ticker.btc_usdt\n  \
    tickmesh client --url ws://127.0.0.1:8080/ws --url ws://127.0.0.1:8081/ws --subscribe trades.btc_usdt --latency\n  \
    tickmesh client --subscribe depth.eth_usdt --format json --count 100\n  \
    TICKMESH_TOKEN=$(tickmesh token --sub alice) tickmesh client --subscribe trades.btc_usdt\n  \
    tickmesh client --jwks https://exchange.example/jwks.json --require-signature 'orders.*' --subscribe orders.alice\n\n\
    With several --url the next one is tried when a connection is lost. Events go to standard output, everything else\n\
    to standard error. Keys from --jwks should come from the exchange: who serves both events and keys can forge both.\n\
    Exit code: 0, or 1 if an event was missed, doubled, out of order or not signed as it should be.")]
pub struct Client {
    /// Address of an edge; may be given several times
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/ws")]
    url: Vec<String>,
    /// Streams to follow
    #[arg(long, value_name = "STREAM", num_args = 1.., required = true)]
    subscribe: Vec<String>,
    /// Token to sign in with; better given as TICKMESH_TOKEN, which other users of the machine do not see
    #[arg(long, env = "TICKMESH_TOKEN", hide_env_values = true, conflicts_with = "api_key")]
    token: Option<String>,
    /// API key to sign in with
    #[arg(long, env = "TICKMESH_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
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
        let credential = match (self.token, self.api_key) {
            (Some(token), _) => Some(("authorization", format!("Bearer {token}"))),
            (None, Some(key)) => Some(("x-api-key", key)),
            (None, None) => None,
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let signatures = match &self.jwks {
                Some(from) => Some(Signatures::new(from, self.require_signature).await?),
                None => None,
            };
            Follower::new(self.url, self.subscribe, credential, self.count, signatures, output)?.run().await
        })
    }
}
