//! What an operator asks of the catalogue: `GET /admin/catalogue`, `POST /admin/catalogue`, `POST /admin/catalogue/dry-run`.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tickmesh_protocol::catalogue::{Change, Kind, Name, Origin};

use super::{Keeper, Refused, plan::definitions};
use crate::transform::{Sample, try_routes};

/// Most records that are tried at once.
const MAX_SAMPLES: usize = 64;

/// What is to be changed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// `[[source]]` and `[[route]]` tables with names, TOML. What is there under such a name is replaced.
    #[serde(default)]
    add: String,
    #[serde(default)]
    remove_sources: Vec<String>,
    #[serde(default)]
    remove_routes: Vec<String>,
    /// Ingest peers that are not connected need not agree.
    #[serde(default)]
    without_absent: bool,
    /// Records to be tried; for a dry run.
    #[serde(default)]
    samples: Vec<Sample>,
}

impl Wanted {
    fn change(&self) -> Result<Change, Refused> {
        let name = |kind| move |name: &String| Name { kind, name: name.clone() };
        let sources = self.remove_sources.iter().map(name(Kind::Source));
        let routes = self.remove_routes.iter().map(name(Kind::Route));
        Ok(Change {
            origin: Origin::Admin,
            remove: sources.chain(routes).collect(),
            add: definitions(&self.add, Origin::Admin).map_err(Refused::Invalid)?,
        })
    }
}

pub(in crate::app) fn router(keeper: Keeper) -> Router {
    Router::new()
        .route("/admin/catalogue", get(list).post(change))
        .route("/admin/catalogue/dry-run", post(dry_run))
        .with_state(keeper)
}

async fn list(State(keeper): State<Keeper>) -> Json<Value> {
    let catalogue = keeper.catalogue().await;
    let of = |kind| {
        let present = catalogue.entries.iter().filter(|entry| entry.until.is_none());
        let of_kind = present.filter(|entry| entry.definition.name.kind == kind);
        let shown = of_kind.map(|entry| {
            json!({
                "name": entry.definition.name.name, "origin": entry.definition.origin, "since_version": entry.since,
                "definition": shown(kind, &entry.definition.text),
            })
        });
        shown.collect::<Vec<_>>()
    };
    Json(json!({ "version": catalogue.version, "sources": of(Kind::Source), "routes": of(Kind::Route) }))
}

/// A definition as it may be shown: whatever a source may hold of passwords is not.
fn shown(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Route => text.to_owned(),
        Kind::Source => {
            let table: toml::Table = text.parse().unwrap_or_default();
            let plain = table.into_iter().filter(|(key, _)| {
                ["kind", "topics", "subjects", "stream", "keys", "start", "home", "standby_regions"]
                    .contains(&&**key)
            });
            plain.collect::<toml::Table>().to_string()
        }
    }
}

async fn change(State(keeper): State<Keeper>, Json(wanted): Json<Wanted>) -> Response {
    let changed = match wanted.change() {
        Ok(change) => keeper.change(change, wanted.without_absent).await,
        Err(refused) => Err(refused),
    };
    match changed {
        Ok(version) => Json(json!({ "version": version })).into_response(),
        Err(refused) => refuse(&refused),
    }
}

async fn dry_run(State(keeper): State<Keeper>, Json(wanted): Json<Wanted>) -> Response {
    if wanted.samples.len() > MAX_SAMPLES {
        return refuse(&Refused::Invalid(vec![format!("at most {MAX_SAMPLES} samples at once")]));
    }
    let planned = async {
        let change = wanted.change()?;
        let plan = keeper.try_out(&change).await?;
        let samples = wanted.samples;
        let routes: Vec<_> = plan.routes.values().flat_map(|table| table.iter().cloned()).collect();
        let routes: Vec<_> = routes.into_iter().filter(|route| !route.life.is_over()).collect();
        let tried = tokio::task::spawn_blocking(move || {
            let routes: Vec<_> = routes.iter().map(|route| &*route.config).collect();
            samples
                .into_iter()
                .map(|sample| try_routes(&routes, keeper.private(), sample))
                .collect::<Result<Vec<_>, _>>()
        });
        let tried = tried.await.map_err(|_| Refused::Ended(crate::ingest::Ended))?;
        tried.map_err(|error| Refused::Invalid(vec![error.to_string()]))
    };
    match planned.await {
        Ok(tried) => Json(json!({ "good": true, "samples": tried })).into_response(),
        Err(refused) => refuse(&refused),
    }
}

fn refuse(refused: &Refused) -> Response {
    let status = match refused {
        Refused::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refused::Busy(_) | Refused::Sibling { .. } | Refused::Absent(_) | Refused::Beyond(_) => {
            StatusCode::CONFLICT
        }
        Refused::Ended(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let reasons = match refused {
        Refused::Invalid(reasons) => reasons.clone(),
        other => vec![other.to_string()],
    };
    (status, Json(json!({ "refused": reasons, "again": refused.is_passing() }))).into_response()
}
