//! The sample web client, embedded in the binary, and what it asks about the network.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::Path,
    http::{HeaderName, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

/// What the page shows to choose from: served as `network.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Network {
    /// The edge that serves this page.
    pub node: String,
    pub region: String,
    pub edges: Vec<NetworkEdge>,
    /// Keys of the markets, as in `trades.<key>`.
    pub symbols: Vec<String>,
    /// Where the demo answers for the exchange, as in `http://127.0.0.1:8083`: the page signs users in there.
    pub controls: Option<String>,
}

/// An edge that a client may connect to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkEdge {
    pub name: String,
    pub region: String,
    /// The region's name for people.
    pub title: String,
    pub url: String,
}

/// Everything the page may load or reach: itself, and edges over WebSocket; [`page`] adds what a demo has besides.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self' ws: wss:";

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/web");

/// The page at `/`, its files, and `network.json`.
pub fn page(network: Network) -> Router {
    let policy: Arc<str> = match &network.controls {
        Some(controls) => format!("{CONTENT_SECURITY_POLICY} {controls}").into(),
        None => CONTENT_SECURITY_POLICY.into(),
    };
    let index = Arc::clone(&policy);
    Router::new()
        .route("/network.json", get(move || async move { Json(network) }))
        .route("/", get(move || file("index.html".to_owned(), index)))
        .route("/{*path}", get(move |Path(path): Path<String>| file(path, policy)))
}

async fn file(path: String, policy: Arc<str>) -> Result<impl IntoResponse, StatusCode> {
    let file = FILES.get_file(&path).ok_or(StatusCode::NOT_FOUND)?;
    let kind = match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("woff2") => "font/woff2",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    };
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, &policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The files change with the binary only, but their names do not.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, file.contents()).into_response())
}
