//! `tickmesh token`.

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};
use tickmesh::config::reader::Span;

/// The secret of the demo's tokens, which everybody knows.
pub const DEMO_SECRET: &str = "the demo's secret, which is none: everybody can read it";

/// Make a token for a client.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tickmesh token --sub alice                         a token that a running demo accepts\n  \
                        tickmesh token --sub bot-7 --roles trader --pairs 'btc_*' --ttl 24h --secret-file jwt.secret\n\n\
                        Signed with HS256. Exchanges make their tokens themselves; this is for trying things out."
)]
pub struct Token {
    /// The user
    #[arg(long, value_name = "USER")]
    sub: String,
    /// The user's roles
    #[arg(long, value_name = "ROLE", num_args = 1.., value_delimiter = ',')]
    roles: Vec<String>,
    /// Keys of the public streams it may have, such as btc_*; all if left out
    #[arg(long, value_name = "PATTERN", num_args = 1.., value_delimiter = ',')]
    pairs: Vec<String>,
    /// How long it is valid
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span)]
    ttl: Duration,
    /// Who says so (claim iss)
    #[arg(long)]
    issuer: Option<String>,
    /// For whom (claim aud)
    #[arg(long)]
    audience: Option<String>,
    /// File with the secret ([auth.jwt] secret_file); the demo's, if left out
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

/// A token that the demo accepts.
pub fn demo_token(user: &str, ttl: Duration) -> anyhow::Result<String> {
    let (roles, pairs) = (Vec::new(), Vec::new());
    let token =
        Token { sub: user.into(), roles, pairs, ttl, issuer: None, audience: None, secret_file: None };
    token.sign(DEMO_SECRET.as_bytes())
}

fn span(text: &str) -> Result<Duration, String> {
    Span::try_from(text.to_owned()).map(|span| span.0)
}

impl Token {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let secret = match &self.secret_file {
            Some(file) => fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
            None => DEMO_SECRET.into(),
        };
        println!("{}", self.sign(secret.trim_ascii())?);
        Ok(ExitCode::SUCCESS)
    }

    fn sign(self, secret: &[u8]) -> anyhow::Result<String> {
        let now = SystemTime::UNIX_EPOCH.elapsed().context("the clock stands before 1970")?.as_secs();
        let mut claims = Map::new();
        claims.insert("sub".into(), self.sub.into());
        claims.insert("iat".into(), now.into());
        claims.insert("exp".into(), now.saturating_add(self.ttl.as_secs()).into());
        let lists = [("roles", self.roles), ("pairs", self.pairs)];
        claims.extend(
            lists
                .into_iter()
                .filter(|(_, list)| !list.is_empty())
                .map(|(name, list)| (name.into(), list.into())),
        );
        let texts = [("iss", self.issuer), ("aud", self.audience)];
        claims.extend(
            texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::String(text?)))),
        );
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))?)
    }
}
