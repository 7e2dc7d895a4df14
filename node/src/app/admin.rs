//! What an operator may do to a running peer: `POST /admin/revocations`, `GET /admin/revocations`. And how what was revoked
//! at one ingest peer comes to the others.

use std::{collections::HashSet, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tickmesh_protocol::{
    PublisherKey,
    client::Secret,
    feed::FeedFrame,
    revocation::{MAX_REVOKED_ID_BYTES, Revocation, RevokedKind},
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::catalogue::{self, Keeper};
use crate::{auth::Authenticator, mesh::MeshHandle, ops::metrics::now_us};

/// Pause before a sibling is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be revoked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    kind: RevokedKind,
    id: String,
}

/// The operator's pages. `ingest`: revocations are spread from here, and sources and routes changed.
pub(super) fn router(
    token: Option<Secret>,
    authenticator: Arc<Authenticator>,
    ingest: Option<Keeper>,
) -> Router {
    let revocations = post(revoke).get(list).with_state((authenticator, ingest.is_some()));
    let mut pages = Router::new().route("/admin/revocations", revocations);
    if let Some(keeper) = ingest {
        pages = pages.merge(catalogue::pages::router(keeper));
    }
    pages.layer(middleware::from_fn_with_state(token.map(Arc::new), permit))
}

/// Only who shows the token; compared by their hashes, so that the time says nothing.
async fn permit(State(token): State<Option<Arc<Secret>>>, request: Request, next: Next) -> Response {
    let Some(token) = token else {
        return refuse(StatusCode::FORBIDDEN, "this peer has no ops.admin_token_file, so nobody may");
    };
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if blake3::hash(shown.as_bytes()) == blake3::hash(token.reveal().as_bytes()) {
        next.run(request).await
    } else {
        refuse(StatusCode::UNAUTHORIZED, "show the token of ops.admin_token_file: Authorization: Bearer ...")
    }
}

async fn revoke(
    State((authenticator, ingest)): State<(Arc<Authenticator>, bool)>,
    Json(Revoke { kind, id }): Json<Revoke>,
) -> Response {
    if !ingest {
        return refuse(StatusCode::CONFLICT, "ask an ingest peer: edges hear of revocations from those");
    }
    if id.is_empty() || id.len() > MAX_REVOKED_ID_BYTES {
        let message = format!("an id has 1 to {MAX_REVOKED_ID_BYTES} bytes");
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, &message);
    }
    let revocation = Revocation { kind, id, at: now_us() / 1_000_000 };
    match authenticator.revocations().add(&[revocation]) {
        Ok(()) => Json(json!({"revoked": true})).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn list(State((authenticator, _)): State<(Arc<Authenticator>, bool)>) -> Json<Value> {
    Json(json!({"revocations": authenticator.revocations().since(0)}))
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}

/// Hears from each other ingest peer what was revoked there, until `stop`.
pub(super) async fn follow_siblings(
    mesh: MeshHandle,
    me: PublisherKey,
    authenticator: Arc<Authenticator>,
    stop: CancellationToken,
) {
    let mut live = mesh.live_publishers();
    let mut followed = HashSet::new();
    loop {
        for sibling in live.borrow_and_update().keys().copied().filter(|sibling| *sibling != me) {
            if followed.insert(sibling) {
                let follow = follow(mesh.clone(), sibling, Arc::clone(&authenticator));
                tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = live.changed() => if changed.is_err() { return },
        }
    }
}

/// Publishers are configured, so there are few, and each is followed for ever.
async fn follow(mesh: MeshHandle, sibling: PublisherKey, authenticator: Arc<Authenticator>) {
    loop {
        if let Ok(mut feed) = mesh.private(sibling).await {
            let (_nothing_wanted, mut changes) = mpsc::channel(1);
            while let Ok(frame) = feed.next(&mut changes).await {
                if let FeedFrame::Revoked(revocations) = frame
                    && let Err(error) = authenticator.revocations().add(&revocations)
                {
                    tracing::error!(%error, "not everything that was revoked is refused here");
                }
            }
        }
        sleep(AGAIN).await;
    }
}
