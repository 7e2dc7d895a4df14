//! What the page asks of the demo itself, and what an exchange has besides tickmesh: it signs users in and publishes its keys.
//!
//! It has a port of its own in the demo's process, so that it answers whichever edge is gone, the one that serves the page too.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tickmesh::{
    signing::{self, PublicKeys},
    source::embedded::USERS,
};
use tickmesh_protocol::{StreamName, Topic};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Running, process::AWAY};
use crate::commands::{
    operators::{Ask, ask},
    token::demo_token,
};

/// How long a token of the page is good: short enough to see that the page shows a new one in time.
const TOKEN_TTL: Duration = Duration::from_secs(180);

/// What the page asks for is done with.
#[derive(Clone)]
pub struct Controls {
    /// Where pages may come from.
    origins: Arc<[HeaderValue]>,
    peers: Arc<Vec<Running>>,
}

impl Controls {
    /// `pages`: the ports of edges, whose pages alone may ask.
    pub fn new(pages: impl Iterator<Item = u16>, peers: Arc<Vec<Running>>) -> Self {
        Self { origins: pages.flat_map(origins).collect(), peers }
    }

    pub async fn serve(self, address: SocketAddr, keys: PublicKeys) -> anyhow::Result<JoinHandle<()>> {
        let listener = TcpListener::bind(address).await.context("cannot listen for the page's controls")?;
        let router = Router::new()
            .route("/demo/token", post(token))
            .route("/demo/kill", post(kill))
            .route("/demo/circuits", get(circuits))
            .with_state(self.clone())
            .merge(signing::router(keys).context("cannot serve the public keys")?)
            .layer(middleware::from_fn_with_state(self, only_pages));
        Ok(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the demo's controls ended");
            }
        }))
    }
}

/// A browser names a page by whichever name it was opened with.
fn origins(port: u16) -> impl Iterator<Item = HeaderValue> {
    ["127.0.0.1", "localhost"]
        .into_iter()
        .filter_map(move |host| format!("http://{host}:{port}").parse().ok())
}

/// Keeps other sites out that are open in the same browser; programs on this machine name no origin.
async fn only_pages(State(controls): State<Controls>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else { return next.run(request).await };
    if !controls.origins.contains(&origin) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let mut response = match *request.method() {
        Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("content-type"));
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    response
}

/// Who signs in. Nobody is asked for a password: the users are the market's inventions.
#[derive(Deserialize)]
struct SignIn {
    user: String,
}

async fn token(Json(SignIn { user }): Json<SignIn>) -> Result<Json<Value>, Refused> {
    if !USERS.contains(&user.as_str()) {
        return Err(Refused(StatusCode::NOT_FOUND, format!("no such user; there are {}", USERS.join(", "))));
    }
    let token = demo_token(&user, TOKEN_TTL)
        .map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Json(json!({ "token": token })))
}

/// Who dies, as by a crash.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Victim {
    Edge(String),
    /// The ingest peer that publishes a stream.
    LeaderOf(StreamName),
}

async fn kill(State(controls): State<Controls>, Json(victim): Json<Victim>) -> Result<Json<Value>, Refused> {
    let peer = match &victim {
        Victim::Edge(name) => controls.peers.iter().find(|peer| peer.edge && peer.name == *name),
        Victim::LeaderOf(stream) => leader(&controls.peers, &Topic::spanning(stream)).await,
    };
    let conflict = |reason: &str| Refused(StatusCode::CONFLICT, reason.to_owned());
    let peer = peer.ok_or_else(|| match victim {
        Victim::Edge(_) => Refused(StatusCode::NOT_FOUND, "there is no such edge".to_owned()),
        Victim::LeaderOf(_) => conflict("no other ingest peer is ready to lead yet; try again in a moment"),
    })?;
    match peer.process.kill() {
        Ok(true) => Ok(Json(json!({ "killed": peer.name, "away_ms": AWAY.as_millis() }))),
        Ok(false) => Err(conflict("it is away already")),
        Err(error) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// The ingest peer that leads a topic, if another one is ready to go on.
async fn leader<'a>(peers: &'a [Running], topic: &Topic) -> Option<&'a Running> {
    let topic = topic.to_string();
    for peer in peers.iter().filter(|peer| !peer.edge) {
        let Some(standing) = standing(peer, &topic).await else { continue };
        if standing["leads"] == true && standing["ranks"].as_array().is_some_and(|ranks| ranks.len() > 1) {
            return Some(peer);
        }
    }
    None
}

/// How an ingest peer stands in a topic, if it answers.
async fn standing(peer: &Running, topic: &str) -> Option<Value> {
    let page = page(peer).await?;
    page["ingest"]["topics"].as_array()?.iter().find(|standing| standing["topic"] == topic).cloned()
}

/// What operators see in `/mesh` of a peer, if it answers.
async fn page(peer: &Running) -> Option<Value> {
    let ops = format!("http://{}", peer.ops).parse().ok()?;
    let question = Ask { method: Method::GET, path: "/mesh", headers: &[], body: String::new() };
    let (_, page) = ask(&ops, question).await.ok()?;
    serde_json::from_slice(&page).ok()
}

/// The circuit breakers of all peers that answer.
async fn circuits(State(controls): State<Controls>) -> Json<Value> {
    let pages = join_all(controls.peers.iter().map(page)).await;
    let of = |(peer, page): (&Running, Option<Value>)| {
        let circuits = page?["circuits"].as_object()?.clone();
        let name = peer.name;
        let circuit = move |(target, state)| json!({ "peer": name, "target": target, "state": state });
        Some(circuits.into_iter().map(circuit))
    };
    let all: Vec<_> = controls.peers.iter().zip(pages).filter_map(of).flatten().collect();
    Json(json!({ "circuits": all }))
}

/// Why something is not done, for the page to show.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}
