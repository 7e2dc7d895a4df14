//! `tickmesh admin`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hyper::{Method, Uri};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use tickmesh_protocol::revocation::{Revocation, RevokedKind};

use super::operators::{Ask, ask};

/// Do something to a running mesh: take credentials back, change sources and routes.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    tickmesh admin revoke --user alice --token-file admin.token\n  \
    tickmesh admin revoke --api-key bot-7 --ops http://10.0.0.7:9100 --token-file admin.token\n  \
    tickmesh admin revocations --token-file admin.token\n  \
    tickmesh admin catalogue --token-file admin.token\n  \
    tickmesh admin change --add routes.toml --dry-run --sample record.json --token-file admin.token\n  \
    tickmesh admin change --add routes.toml --remove-route old_trades --token-file admin.token\n\n\
    Ask an ingest peer whose [ops] admin_token_file holds the same token. The others and all edges in mesh.edges hear of it at\n\
    once; connections that were opened with what was revoked are closed with 4401. A change of sources and routes begins at one\n\
    position of the log at all ingest peers; what it does not name flows on.")]
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
    /// List the sources and routes that can be changed, with their version
    Catalogue,
    /// Add, replace or remove sources and routes at all ingest peers
    Change(Change),
}

#[derive(Args)]
struct Change {
    /// TOML file with [[source]] and [[route]] tables, each with a name; what is there under that name is replaced
    #[arg(long, value_name = "FILE")]
    add: Option<PathBuf>,
    /// Name of a route that goes; may be repeated
    #[arg(long, value_name = "NAME")]
    remove_route: Vec<String>,
    /// Name of a source that goes; may be repeated
    #[arg(long, value_name = "NAME")]
    remove_source: Vec<String>,
    /// Only say whether it could be made
    #[arg(long)]
    dry_run: bool,
    /// A file that holds the value of one record: a dry run shows what each route would make of it
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    sample: Option<PathBuf>,
    /// The topic of the sample; every route is shown if left out
    #[arg(long, requires = "sample")]
    topic: Option<String>,
    /// Make it though ingest peers are not connected: they take it over when they come back
    #[arg(long)]
    without_absent: bool,
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
        let headers = [("authorization", bearer), ("content-type", "application/json")];
        let (method, path, body) = match &self.command {
            Command::Revocations => (Method::GET, "/admin/revocations", String::new()),
            Command::Revoke(revoke) => {
                let (kind, id) = revoke.what()?;
                (Method::POST, "/admin/revocations", json!({"kind": kind, "id": id}).to_string())
            }
            Command::Catalogue => (Method::GET, "/admin/catalogue", String::new()),
            Command::Change(change) if change.dry_run => {
                (Method::POST, "/admin/catalogue/dry-run", change.body()?)
            }
            Command::Change(change) => (Method::POST, "/admin/catalogue", change.body()?),
        };
        let (status, body) = ask(&self.ops, Ask { method, path, headers: &headers, body }).await?;
        if !status.is_success() {
            bail!("{} refuses ({status}): {}", self.ops, reasons(&body));
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
            Command::Catalogue => print_catalogue(&serde_json::from_slice(&body)?),
            Command::Change(change) => {
                let answer: Value = serde_json::from_slice(&body)?;
                if !change.dry_run {
                    println!("version {}: at all ingest peers that are connected", answer["version"]);
                }
                for tried in answer["samples"].as_array().into_iter().flatten().flat_map(lines) {
                    println!("{}", text(&tried["route"]));
                    tried["becomes"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .for_each(|line| println!("  {}", text(line)));
                }
                if change.dry_run {
                    println!("the change could be made");
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

impl Change {
    fn body(&self) -> anyhow::Result<String> {
        let read = |file: &PathBuf| {
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
        };
        let add = self.add.as_ref().map(read).transpose()?.unwrap_or_default();
        let sample = self.sample.as_ref().map(read).transpose()?;
        let value = sample.map(RawValue::from_string).transpose().context("the sample is no JSON")?;
        let wanted = Wanted {
            add,
            remove_routes: &self.remove_route,
            remove_sources: &self.remove_source,
            without_absent: self.without_absent,
            samples: value.map(|value| Sample { topic: self.topic.as_deref(), value }).into_iter().collect(),
        };
        Ok(serde_json::to_string(&wanted)?)
    }
}

/// What is asked of `/admin/catalogue`. The sample goes as it stands in its file, digit for digit.
#[derive(Serialize)]
struct Wanted<'a> {
    add: String,
    remove_routes: &'a [String],
    remove_sources: &'a [String],
    without_absent: bool,
    samples: Vec<Sample<'a>>,
}

#[derive(Serialize)]
struct Sample<'a> {
    topic: Option<&'a str>,
    value: Box<RawValue>,
}

fn print_catalogue(catalogue: &Value) {
    println!("version {}", catalogue["version"]);
    for kind in ["sources", "routes"] {
        for of in catalogue[kind].as_array().into_iter().flatten() {
            println!(
                "\n[[{}]]  # since version {}, of {}\nname = {}",
                kind.trim_end_matches('s'),
                of["since_version"],
                text(&of["origin"]),
                of["name"]
            );
            print!("{}", text(&of["definition"]));
        }
    }
}

fn lines(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What a refusal says, each reason on a line.
fn reasons(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        refused: Vec<String>,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { refused }) => refused.iter().map(|reason| format!("\n  {reason}")).collect(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    }
}
