//! `tickmesh admin`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hyper::{Method, Uri};
use serde::Deserialize;
use serde_json::json;
use tickmesh_protocol::revocation::{Revocation, RevokedKind};

use super::operators::{Ask, ask};

/// Do something to a running mesh: take credentials back.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tickmesh admin revoke --user alice --token-file admin.token\n  \
    tickmesh admin revoke --api-key bot-7 --ops http://10.0.0.7:9100 --token-file admin.token\n  \
    tickmesh admin revocations --token-file admin.token\n\n\
    Ask an ingest peer whose [ops] admin_token_file holds the same token. The others and all edges in mesh.edges hear of it at\n\
    once; connections that were opened with what was revoked are closed with 4401.")]
pub struct Admin {
    #[command(subcommand)]
    command: Command,
    /// The operators' address of an ingest peer ([ops] listen)
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:9100")]
    ops: Uri,
    /// File with the operators' token; or give the token as TICKMESH_ADMIN_TOKEN
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Close the connections of a user, a token or an API key, and refuse what was issued to it
    Revoke(Revoke),
    /// List what was revoked
    Revocations,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Revoke {
    /// A user: whatever was issued to it until now
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// One token, by its jti
    #[arg(long, value_name = "JTI")]
    token_id: Option<String>,
    /// One API key, by its id
    #[arg(long, value_name = "ID")]
    api_key: Option<String>,
}

impl Admin {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let token = match (&self.token_file, std::env::var("TICKMESH_ADMIN_TOKEN")) {
            (Some(file), _) => {
                fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
            }
            (None, Ok(token)) => token,
            (None, Err(_)) => bail!("give the operators' token: --token-file FILE or TICKMESH_ADMIN_TOKEN"),
        };
        let bearer = format!("Bearer {}", token.trim());
        super::runtime()?.block_on(self.ask(&bearer))?;
        Ok(ExitCode::SUCCESS)
    }

    async fn ask(&self, bearer: &str) -> anyhow::Result<()> {
        const PATH: &str = "/admin/revocations";
        let headers = [("authorization", bearer), ("content-type", "application/json")];
        let (method, body) = match &self.command {
            Command::Revocations => (Method::GET, String::new()),
            Command::Revoke(revoke) => {
                let (kind, id) = revoke.what()?;
                (Method::POST, json!({"kind": kind, "id": id}).to_string())
            }
        };
        let (status, body) = ask(&self.ops, Ask { method, path: PATH, headers: &headers, body }).await?;
        if !status.is_success() {
            bail!("{} refuses ({status}): {}", self.ops, String::from_utf8_lossy(&body));
        }
        match &self.command {
            Command::Revoke(_) => println!("revoked; its connections are being closed"),
            Command::Revocations => {
                #[derive(Deserialize)]
                struct List {
                    revocations: Vec<Revocation>,
                }
                let list: List = serde_json::from_slice(&body).context("the answer is no list")?;
                for Revocation { kind, id, at } in list.revocations {
                    println!("{kind:?}\t{id}\t{at}");
                }
            }
        }
        Ok(())
    }
}

impl Revoke {
    fn what(&self) -> anyhow::Result<(RevokedKind, &str)> {
        let all = [
            (RevokedKind::User, &self.user),
            (RevokedKind::Token, &self.token_id),
            (RevokedKind::ApiKey, &self.api_key),
        ];
        let given = all.into_iter().find_map(|(kind, id)| Some((kind, id.as_deref()?)));
        given.context("one of --user, --token-id, --api-key")
    }
}
