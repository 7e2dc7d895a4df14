//! What other publishers say of themselves: one feed to each that is connected, opened again when it fails. The swarm's
//! task hands it on to ingest, so that it stands in order with the comings and goings of their connections.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tickmesh_protocol::{
    PublisherKey,
    feed::{FeedFrame, FeedRequest, Status},
};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{FeedError, client::FeedClient};
use crate::ops::backoff::{Backoff, chance};

/// The first wait after a feed of statuses failed; each further one is twice as long. A peer that just starts needs no
/// more.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The longest wait: a peer that cannot be asked does not lead, so soon enough for one that comes back.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The latest status of each publisher that the swarm has not seen, with the connection it came over.
#[derive(Debug, Default)]
pub(in crate::mesh) struct Statuses {
    latest: Mutex<HashMap<PublisherKey, (u64, Status)>>,
    changed: Notify,
}

impl Statuses {
    fn put(&self, publisher: PublisherKey, connection: u64, status: Status) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.insert(publisher, (connection, status));
        drop(latest);
        self.changed.notify_one();
    }

    /// What came since the last call.
    pub(in crate::mesh) fn take(&self) -> HashMap<PublisherKey, (u64, Status)> {
        std::mem::take(&mut self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something came.
    pub(in crate::mesh) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Keeps a feed of statuses open to each connected publisher.
pub(in crate::mesh) async fn exchange(
    me: PublisherKey,
    client: FeedClient,
    statuses: Arc<Statuses>,
    stop: CancellationToken,
) {
    let mut live = client.live_publishers();
    let mut tasks = JoinSet::new();
    let mut following: HashMap<PublisherKey, (u64, AbortHandle)> = HashMap::new();
    loop {
        let now = live.borrow_and_update().clone();
        following.retain(|publisher, (connection, task)| {
            let same = now.get(publisher) == Some(connection);
            if !same {
                task.abort();
            }
            same
        });
        for (publisher, connection) in now {
            if publisher != me && !following.contains_key(&publisher) {
                let task = tasks.spawn(follow(client.clone(), publisher, connection, statuses.clone()));
                following.insert(publisher, (connection, task));
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = live.changed() => if changed.is_err() { break },
            // None ends by itself; this only clears away those that were aborted.
            Some(_) = tasks.join_next() => {}
        }
    }
    tasks.shutdown().await;
}

/// Follows one publisher over one connection until it is aborted.
async fn follow(client: FeedClient, publisher: PublisherKey, connection: u64, statuses: Arc<Statuses>) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let ended = async {
            let mut reader = client.feed(publisher, FeedRequest::Status).await?;
            while let Some(frame) = reader.next().await? {
                if let FeedFrame::Status(status) = frame {
                    backoff.succeeded();
                    statuses.put(publisher, connection, status);
                }
            }
            Ok::<_, FeedError>(())
        };
        if let Err(error) = ended.await {
            tracing::debug!(?publisher, %error, "status of a publisher not to be had");
        }
        sleep(backoff.failed(chance())).await;
    }
}
