//! One fetch of missing events: a task that asks one server after the other, as [`Fetching`] says.
//!
//! It hands pages to the hub through a bounded channel and reads no further while that is full, so a feed goes as fast as
//! the hub takes it.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tickmesh_protocol::{
    PublisherKey, SignedBatch, StreamName, Topic, feed::FeedFrame, fetching::Fetching, repair::Fetched,
};
use tokio::{sync::mpsc, time::timeout};

use super::Upstream;

/// How long a server may take to its first frame while there is another one to ask: one that is frozen keeps its
/// connections. A feed from memory begins within a round trip, twice 150 ms at most.
const FIRST_FRAME: Duration = Duration::from_millis(600);

/// What is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Events,
    Snapshots,
}

/// What a fetch hands to the hub, in this order: pages and slow servers, then the results.
#[derive(Debug)]
pub enum Part {
    /// Events, or snapshots.
    Page(SignedBatch),
    /// The server did not begin in time, and another one was asked.
    Slow(PublisherKey),
    /// How it ended for each stream. The last part.
    Results(Vec<(StreamName, Fetched)>),
}

/// Runs a fetch to its end. The parts carry `id`.
pub async fn run(
    id: u64,
    kind: Kind,
    topic: Topic,
    mut fetching: Fetching,
    upstream: Arc<dyn Upstream>,
    parts: mpsc::Sender<(u64, Part)>,
) {
    while let Some(ask) = fetching.next_ask() {
        let server = ask.server;
        let mut frames = match kind {
            Kind::Events => upstream.fetch(&topic, ask),
            Kind::Snapshots => upstream.snapshots(&topic, ask),
        };
        let mut begun = false;
        loop {
            let frame = if begun || fetching.others() == 0 {
                frames.next().await
            } else if let Ok(frame) = timeout(FIRST_FRAME, frames.next()).await {
                frame
            } else {
                fetching.failed();
                if parts.send((id, Part::Slow(server))).await.is_err() {
                    return;
                }
                break;
            };
            begun = true;
            match (kind, frame) {
                (Kind::Events, Some(Ok(FeedFrame::Page(page))))
                | (Kind::Snapshots, Some(Ok(FeedFrame::Snapshots(page)))) => {
                    for event in &page.batch().events {
                        fetching.passed(event);
                    }
                    if parts.send((id, Part::Page(page))).await.is_err() {
                        return;
                    }
                }
                (_, Some(Ok(FeedFrame::End { streams }))) => {
                    fetching.ended(&streams);
                    break;
                }
                (_, Some(Ok(FeedFrame::Working))) => {}
                (_, Some(Ok(other))) => {
                    tracing::debug!(%topic, ?server, frame = ?other, "a feed sent something else");
                    break;
                }
                (_, Some(Err(unavailable))) => {
                    tracing::debug!(%topic, ?server, reason = %unavailable, "fetch failed");
                    break;
                }
                (_, None) => break,
            }
        }
        fetching.failed();
    }
    let _ = parts.send((id, Part::Results(fetching.results().collect()))).await;
}
