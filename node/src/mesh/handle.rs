//! How the rest of the node talks to the swarm's task.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use libp2p::{Multiaddr, PeerId};
use tickmesh_protocol::{
    PublisherKey, SignedBatch, Topic,
    feed::FeedRequest,
    head::{HeadReply, HeadRequest},
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{
    behaviour::MAX_TOPICS,
    feeds::{FeedClient, FeedError, FeedReader, LivePublishers, PrivateFeed},
    heads::{HeadError, TIMEOUT},
};

/// Batches on their way to the swarm. Few, so that a publisher soon feels a swarm that is behind, and makes its batches
/// larger; it waits when this is full.
pub(super) const PUBLISH_QUEUE: usize = 16;

/// Questions on their way to the swarm; askers wait when it is full, within their 2 s.
pub(super) const QUESTION_QUEUE: usize = 256;

/// A question and where its answer goes.
pub(super) type NewQuestion = (HeadRequest, oneshot::Sender<Result<HeadReply, HeadError>>);

/// Which stage of a node wants a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Edge,
    Ingest,
}

/// Talks to the mesh. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MeshHandle {
    pub(super) peer_id: PeerId,
    pub(super) listen_addrs: Arc<[Multiaddr]>,
    pub(super) wanted: Arc<Wanted>,
    pub(super) publish: mpsc::Sender<SignedBatch>,
    pub(super) questions: mpsc::Sender<NewQuestion>,
    pub(super) feeds: FeedClient,
}

impl MeshHandle {
    /// Where this node listens, real ports and its peer id included.
    pub fn listen_addrs(&self) -> &[Multiaddr] {
        &self.listen_addrs
    }

    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// Starts to receive a topic for a role. Never waits; a question asked after this finds the topic joined.
    pub fn join(&self, topic: &Topic, role: Role) {
        self.wanted.set(topic, role, true);
    }

    /// A role needs a topic no more. It is left when no role needs it.
    pub fn leave(&self, topic: &Topic, role: Role) {
        self.wanted.set(topic, role, false);
    }

    /// Publishes a batch of this node to everybody who joined its topic, its own edge included. Batches go out in the
    /// order of these calls. Waits while the swarm is behind; that nobody has joined the topic is no error.
    pub async fn publish(&self, batch: SignedBatch) {
        if self.publish.send(batch).await.is_err() {
            tracing::debug!("batch not published: the mesh has stopped");
        }
    }

    /// Asks the ingest peers, the best ranked first, where streams stand. [`Role::Edge`] must have joined the topic.
    /// Everything published after the answer was given reaches the edge port.
    ///
    /// # Errors
    /// After [`TIMEOUT`] at the latest.
    pub async fn heads(&self, request: HeadRequest) -> Result<HeadReply, HeadError> {
        let ask = async {
            let (answer, answered) = oneshot::channel();
            self.questions.send((request, answer)).await.map_err(|_| HeadError::Stopped)?;
            answered.await.map_err(|_| HeadError::Stopped)?
        };
        tokio::time::timeout(TIMEOUT, ask).await.unwrap_or(Err(HeadError::Timeout))
    }

    /// Asks a publisher, which may be this node, for a feed. Waits while [`super::feeds::MAX_ASKED_FEEDS`] others for a
    /// range are open at it.
    ///
    /// # Errors
    /// If the publisher is not configured, not connected or serves no feeds.
    pub async fn feed(&self, publisher: PublisherKey, request: FeedRequest) -> Result<FeedReader, FeedError> {
        self.feeds.feed(publisher, request).await
    }

    /// Asks a publisher, which may be this node, for a private feed.
    ///
    /// # Errors
    /// If the publisher is not configured, not connected or serves no feeds. What it refuses is told by the feed.
    pub async fn private(&self, publisher: PublisherKey) -> Result<PrivateFeed, FeedError> {
        self.feeds.private(publisher).await
    }

    /// Who can be asked for feeds, now and whenever that changes.
    pub fn live_publishers(&self) -> watch::Receiver<LivePublishers> {
        self.feeds.live_publishers()
    }
}

/// Which topics the roles of this node want: state, not commands, so that none can be lost and none needs a queue.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    topics: Mutex<WantedTopics>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct WantedTopics {
    roles: HashMap<Topic, Roles>,
    /// Those whose roles changed since the swarm looked.
    changed: HashSet<Topic>,
}

/// The roles that want a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) edge: bool,
    pub(super) ingest: bool,
}

impl Roles {
    pub(super) fn any(self) -> bool {
        self.edge || self.ingest
    }
}

impl Wanted {
    fn set(&self, topic: &Topic, role: Role, want: bool) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let mut roles = topics.roles.get(topic).copied().unwrap_or_default();
        let wanted = match role {
            Role::Edge => &mut roles.edge,
            Role::Ingest => &mut roles.ingest,
        };
        if *wanted == want {
            return;
        }
        *wanted = want;
        if !roles.any() {
            topics.roles.remove(topic);
        } else if topics.roles.len() < MAX_TOPICS || topics.roles.contains_key(topic) {
            topics.roles.insert(topic.clone(), roles);
        } else {
            // Peers would ignore the subscription, so do not pretend; questions about the topic will say "not joined".
            tracing::error!(%topic, limit = MAX_TOPICS, "topic not joined: too many are");
            return;
        }
        topics.changed.insert(topic.clone());
        drop(topics);
        self.changed.notify_one();
    }

    /// What has changed since the last call.
    pub(super) fn take_changed(&self) -> Vec<(Topic, Roles)> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::mem::take(&mut topics.changed);
        changed
            .into_iter()
            .map(|topic| {
                let roles = topics.roles.get(&topic).copied().unwrap_or_default();
                (topic, roles)
            })
            .collect()
    }

    /// Waits until something may have changed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_left_when_no_role_wants_it() {
        let topic: Topic = "/tickmesh/1/all/trades/7".parse().unwrap();
        let wanted = Wanted::default();
        wanted.set(&topic, Role::Edge, true);
        wanted.set(&topic, Role::Ingest, true);
        assert_eq!(wanted.take_changed(), vec![(topic.clone(), Roles { edge: true, ingest: true })]);
        wanted.set(&topic, Role::Ingest, true);
        assert_eq!(wanted.take_changed(), vec![], "joining twice is joining once");
        wanted.set(&topic, Role::Edge, false);
        wanted.set(&topic, Role::Edge, true);
        wanted.set(&topic, Role::Edge, false);
        assert_eq!(wanted.take_changed(), vec![(topic.clone(), Roles { edge: false, ingest: true })]);
        wanted.set(&topic, Role::Ingest, false);
        assert_eq!(wanted.take_changed(), vec![(topic, Roles::default())]);
        assert!(wanted.topics.lock().unwrap().roles.is_empty());
    }
}
