//! The pages of an operator: `/metrics`, `/healthz`, `/readyz`, `/dead-letters`, `/mesh`.

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use futures_util::future::BoxFuture;

use super::{health::Health, metrics::Registry};

/// Everything an operator may see.
pub fn router<L, M>(registry: Registry, health: Health, dead_letters: L, mesh: M) -> Router
where
    L: Fn() -> serde_json::Value + Clone + Send + Sync + 'static,
    M: Fn() -> BoxFuture<'static, serde_json::Value> + Clone + Send + Sync + 'static,
{
    Router::new()
        .route("/metrics", get(metrics).with_state(registry))
        .route("/dead-letters", get(move || async move { Json(dead_letters()) }))
        .route("/mesh", get(move || async move { Json(mesh().await) }))
        .merge(health_router(health))
}

/// What a load balancer may see as well: whether this peer lives, and whether it is ready.
pub fn health_router(health: Health) -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(readyz).with_state(health))
}

async fn metrics(State(registry): State<Registry>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], registry.render())
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let readiness = health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
