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
    routing::post,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tickmesh::{
    signing::{self, PublicKeys},
    source::embedded::USERS,
};
use tokio::net::TcpListener;

use crate::commands::token::demo_token;

/// How long a token of the page is good: short enough to see that the page shows a new one in time.
const TOKEN_TTL: Duration = Duration::from_secs(180);

/// Serves the page's requests until the demo ends. `pages`: the addresses of edges, whose pages alone may ask.
pub fn serve(listener: std::net::TcpListener, pages: &[SocketAddr], keys: PublicKeys) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let origins = Origins(pages.iter().flat_map(|page| origins(page.port())).collect());
    let router = Router::new()
        .route("/demo/token", post(token))
        .merge(signing::router(keys).context("cannot serve the public keys")?)
        .layer(middleware::from_fn_with_state(origins, only_pages));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the demo's controls ended");
        }
    });
    Ok(())
}

/// Where pages may come from.
#[derive(Clone)]
struct Origins(Arc<[HeaderValue]>);

/// A browser names a page by whichever name it was opened with.
fn origins(port: u16) -> impl Iterator<Item = HeaderValue> {
    ["127.0.0.1", "localhost"]
        .into_iter()
        .filter_map(move |host| format!("http://{host}:{port}").parse().ok())
}

/// Keeps other sites out that are open in the same browser; programs on this machine name no origin.
async fn only_pages(State(origins): State<Origins>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else { return next.run(request).await };
    if !origins.0.contains(&origin) {
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

/// Why something is not done, for the page to show.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}
