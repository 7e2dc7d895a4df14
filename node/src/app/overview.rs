//! The operators' page `/mesh`: how this peer sees the mesh, as JSON; `tickmesh mesh` prints it.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tickmesh_protocol::{PublisherKey, feed::Status};

use crate::{
    ingest::{Overlook, Overview},
    mesh::{MeshHandle, identity::peer_of},
    ops::metrics::Registry,
};

/// What the page shows, made anew whenever it is asked for. `sees`: with the ingest role.
pub(super) fn page(
    name: &str,
    region: &str,
    mesh: &MeshHandle,
    registry: &Registry,
    sees: Option<Overlook>,
) -> impl Fn() -> BoxFuture<'static, Value> + Clone + Send + Sync + 'static {
    let (name, region, mesh, registry) = (name.to_owned(), region.to_owned(), mesh.clone(), registry.clone());
    move || {
        let mut page = json!({
            "name": name,
            "region": region,
            "peer": mesh.peer_id().to_string(),
            "publishers": mesh.live_publishers().borrow().keys().map(peer).collect::<Vec<_>>(),
            "circuits": registry
                .circuits()
                .map(|(target, state)| (target, state.words().into()))
                .collect::<serde_json::Map<_, _>>(),
        });
        let sees = sees.clone();
        Box::pin(async move {
            if let Some(sees) = sees
                && let Some(overview) = sees.ask().await
            {
                page["ingest"] = ingest(overview);
            }
            page
        })
    }
}

fn ingest(overview: Overview) -> Value {
    let Overview { me, siblings, topics } = overview;
    let mut topics: Vec<_> = topics;
    topics.sort_by(|a, b| a.topic.cmp(&b.topic));
    let topics: Vec<_> = topics
        .into_iter()
        .map(|standing| {
            json!({
                "topic": standing.topic.to_string(),
                "source": me.sources.get(usize::from(standing.source.0)).map(|source| &source.name),
                "ranks": standing.ranks.iter().map(peer).collect::<Vec<_>>(),
                "leads": standing.leads,
                "unpublished": standing.unpublished,
                "streams": standing.streams,
                "newest": standing.newest.map(|(stream, at)| json!({
                    "stream": stream.to_string(), "epoch": at.epoch, "sequence": at.sequence,
                })),
            })
        })
        .collect();
    let siblings: Vec<_> = siblings
        .iter()
        .map(|(key, status)| {
            let mut sibling = of(status);
            sibling["peer"] = peer(key).into();
            sibling
        })
        .collect();
    let mut page = of(&me);
    page["siblings"] = siblings.into();
    page["topics"] = topics.into();
    page
}

fn of(status: &Status) -> Value {
    let sources: Vec<_> = status
        .sources
        .iter()
        .map(|source| json!({ "name": source.name, "warm": source.warm, "lag": source.lag }))
        .collect();
    json!({ "region": status.region, "boot": status.boot, "late_us": status.lag_us, "sources": sources })
}

/// A publisher as configurations name it.
fn peer(key: &PublisherKey) -> String {
    peer_of(key).map_or_else(|| format!("{key:?}"), |peer| peer.to_string())
}
