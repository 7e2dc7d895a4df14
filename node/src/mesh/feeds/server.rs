//! Who is served: bounded in number, and in turn.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use libp2p::PeerId;
use tickmesh_protocol::{PublisherKey, feed::FeedRequest};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Incoming, Settings,
    private::{Gate, Granted, PrivateAccess},
    serving::Serving,
    wire::Io,
};
use crate::{
    mesh::{identity::publisher_of, metrics::FeedMetrics},
    ports::FeedStore,
};

/// Feeds that prepare a page at the same time. It is CPU alone, so a few keep the cores busy, and the next in line waits
/// for a few pages only, whatever is asked for by others.
const TURNS: usize = 4;

/// Refusals under way: being told why is a kindness that a flood of requests must not live on. Beyond it streams are
/// just reset.
const MAX_REFUSALS: usize = 64;

/// Serves feeds from the node's own store.
pub(in crate::mesh) struct Server {
    pub(super) store: Arc<dyn FeedStore>,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<FeedMetrics>,
    /// First come, first served; held while a page is prepared, never while it is written.
    pub(super) turns: Semaphore,
    publishers: Arc<HashSet<PublisherKey>>,
    /// Nobody gets private streams without it.
    gate: Option<Gate>,
    pub(super) granted: Granted,
    places: Mutex<Places>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Places {
    of_peers: HashMap<PeerId, usize>,
    /// Of all peers but publishers: what edges ask for must never keep ingest peers from hearing of one another.
    of_all: usize,
    refusals: usize,
}

/// What a feed counts as while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Publisher,
    Other,
    Refusal,
}

impl Server {
    /// Its tasks are tracked by `tasks` and end with `stop`.
    pub(in crate::mesh) fn new(
        store: Arc<dyn FeedStore>,
        settings: Settings,
        publishers: Arc<HashSet<PublisherKey>>,
        gate: Option<Gate>,
        metrics: Arc<FeedMetrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            settings,
            metrics,
            turns: Semaphore::new(TURNS),
            publishers,
            gate,
            granted: Granted::default(),
            places: Mutex::default(),
            tasks,
            stop,
        })
    }

    /// Serves what peers open, until the node stops.
    pub(in crate::mesh) async fn run(self: Arc<Self>, mut incoming: Incoming) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                stream = incoming.recv() => match stream {
                    Some((peer, stream)) => self.clone().accept(peer, stream),
                    None => break,
                },
            }
        }
    }

    /// What a peer must show for private streams; none if it may not ask for any.
    pub(super) fn access_of(&self, peer: &PeerId) -> Option<&PrivateAccess> {
        self.gate.as_ref().filter(|gate| gate.edges.contains(peer)).map(|gate| &gate.access)
    }

    /// Whether a peer may ask for this: of private streams only those that it was granted.
    pub(super) fn may_ask(&self, peer: PeerId, request: &FeedRequest) -> bool {
        let private = request.topic().is_some_and(|topic| self.store.is_private(topic));
        match request {
            _ if !private => true,
            FeedRequest::Streams { after, live: false, .. } => {
                self.granted.has_all(peer, after.iter().map(|(stream, _)| stream))
            }
            _ => false,
        }
    }

    /// Serves one stream of a peer in a task of its own.
    pub(super) fn accept(self: Arc<Self>, peer: PeerId, io: impl Io + 'static) {
        let is_publisher = publisher_of(&peer).is_some_and(|key| self.publishers.contains(&key));
        let Some((place, reason)) = self.take_place(peer, is_publisher) else {
            self.metrics.refused_unread();
            return;
        };
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        // Made before the task, which may end before it began.
        let taken = Taken { server: self, peer, place };
        tasks.spawn(stop.run_until_cancelled_owned(async move {
            let server = &taken.server;
            let serving = Serving::new(server, io);
            let (kind, outcome) = match reason {
                None => serving.run(peer, is_publisher).await,
                Some(reason) => serving.refuse(reason).await,
            };
            tracing::debug!(%peer, kind, outcome = outcome.name(), "feed ended");
            server.metrics.ended(kind, outcome);
        }));
    }

    /// A place to serve or, with a reason, to refuse; none if it is not even to be refused.
    fn take_place(&self, peer: PeerId, is_publisher: bool) -> Option<(Place, Option<&'static str>)> {
        let mut places = self.places();
        let of_peer = places.of_peers.get(&peer).copied().unwrap_or_default();
        let reason = if of_peer >= self.settings.per_peer {
            Some("busy: this peer has too many feeds open")
        } else if !is_publisher && places.of_all >= self.settings.in_all {
            Some("busy: too many feeds are open")
        } else {
            None
        };
        let place = match (reason, is_publisher) {
            (Some(_), _) if places.refusals >= MAX_REFUSALS => return None,
            (Some(_), _) => Place::Refusal,
            (None, true) => Place::Publisher,
            (None, false) => Place::Other,
        };
        match place {
            Place::Refusal => places.refusals += 1,
            Place::Publisher | Place::Other => {
                *places.of_peers.entry(peer).or_default() += 1;
                places.of_all += usize::from(place == Place::Other);
                self.metrics.serving.inc();
            }
        }
        Some((place, reason))
    }

    fn leave_place(&self, peer: PeerId, place: Place) {
        let mut places = self.places();
        if place == Place::Refusal {
            places.refusals = places.refusals.saturating_sub(1);
            return;
        }
        self.metrics.serving.dec();
        if place == Place::Other {
            places.of_all = places.of_all.saturating_sub(1);
        }
        if let Some(of_peer) = places.of_peers.get_mut(&peer) {
            *of_peer = of_peer.saturating_sub(1);
            if *of_peer == 0 {
                places.of_peers.remove(&peer);
            }
        }
    }

    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a place back.
struct Taken {
    server: Arc<Server>,
    peer: PeerId,
    place: Place,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.server.leave_place(self.peer, self.place);
    }
}
