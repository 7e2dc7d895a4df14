//! Batches: in, out, and which topics.

use std::{sync::Arc, time::Instant};

use libp2p::{
    PeerId,
    gossipsub::{self, MessageAcceptance, MessageId, PublishError, TopicHash},
};
use prometheus::IntCounter;
use tickmesh_protocol::{SignedBatch, Topic};
use tokio::sync::mpsc::error::TrySendError;

use super::Node;
use crate::{
    mesh::{behaviour::gossip_topic, handle::Roles, identity::publisher_of, validation::Verdict},
    ports::IngestInput,
};

/// A topic this node has joined.
pub(super) struct JoinedTopic {
    topic: Topic,
    roles: Roles,
    batches: IntCounter,
    events: IntCounter,
    bytes: IntCounter,
}

impl Node {
    /// Joins and leaves topics until the swarm is as the node wants it.
    pub(super) fn follow_wanted(&mut self) {
        for (topic, roles) in self.wanted.take_changed() {
            let name = gossip_topic(&topic);
            if let Some(joined) = self.joined.get_mut(&name.hash()) {
                joined.roles = roles;
                if !roles.any() {
                    self.leave(&topic);
                }
            } else if roles.any() {
                self.join(topic, roles);
            }
        }
        self.metrics.topics.set(i64::try_from(self.joined.len()).unwrap_or(i64::MAX));
    }

    fn join(&mut self, topic: Topic, roles: Roles) {
        let name = gossip_topic(&topic);
        if let Err(error) = self.swarm.behaviour_mut().gossip.subscribe(&name) {
            tracing::error!(%topic, %error, "topic not joined");
            return;
        }
        tracing::debug!(%topic, "joined");
        let channel = &[topic.channel()];
        let joined = JoinedTopic {
            roles,
            batches: self.metrics.batches_received.with_label_values(channel),
            events: self.metrics.events_received.with_label_values(channel),
            bytes: self.metrics.bytes_received.with_label_values(channel),
            topic,
        };
        self.joined.insert(name.hash(), joined);
    }

    fn leave(&mut self, topic: &Topic) {
        let name = gossip_topic(topic);
        self.joined.remove(&name.hash());
        self.validator.forget(topic);
        let behaviour = self.swarm.behaviour_mut();
        if behaviour.gossip.unsubscribe(&name) {
            behaviour.one.unsubscribed();
        }
        tracing::debug!(%topic, "left");
    }

    /// Whether the edge has joined a topic.
    pub(super) fn edge_has_joined(&self, topic: &Topic) -> bool {
        self.joined.get(&gossip_topic(topic).hash()).is_some_and(|joined| joined.roles.edge)
    }

    /// Sends a batch of this node to all who want it, its own edge included.
    pub(super) fn publish(&mut self, batch: SignedBatch) {
        self.follow_wanted();
        let topic = gossip_topic(&batch.batch().topic).hash();
        let batch = Arc::new(batch);
        let published = self.swarm.behaviour_mut().gossip.publish(topic.clone(), batch.envelope().to_vec());
        match published {
            Ok(_) | Err(PublishError::NoPeersSubscribedToTopic) => {}
            // Each queue that was full is counted when gossipsub reports it (SlowPeer).
            Err(PublishError::AllQueuesFull(peers)) => tracing::debug!(%topic, peers, "all queues are full"),
            Err(error) => tracing::error!(%topic, %error, "batch not published"),
        }
        self.metrics.batches_published.inc();
        self.deliver(&topic, batch);
    }

    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                self.on_message(propagation_source, &message_id, message);
            }
            gossipsub::Event::Subscribed { peer_id, topic } => self.on_subscribed(peer_id, topic.as_str()),
            gossipsub::Event::Unsubscribed { peer_id, topic } => {
                self.on_unsubscribed(peer_id, topic.as_str());
            }
            gossipsub::Event::SlowPeer { peer_id, failed_messages } => {
                let dropped = failed_messages.priority.saturating_add(failed_messages.non_priority);
                self.metrics.queue_drops.inc_by(u64::try_from(dropped).unwrap_or(u64::MAX));
                self.on_slow(peer_id, dropped, Instant::now());
            }
            gossipsub::Event::GossipsubNotSupported { peer_id } => {
                tracing::warn!(peer = %peer_id, "peer does not speak gossipsub");
            }
        }
    }

    fn on_message(&mut self, from: PeerId, id: &MessageId, message: gossipsub::Message) {
        let verdict = match self.joined.get(&message.topic) {
            // It was left while this was on its way.
            None => None,
            Some(joined) => {
                Some(self.validator.judge(message.data.into(), &joined.topic, || publisher_of(&from)))
            }
        };
        let acceptance = match verdict {
            None => MessageAcceptance::Ignore,
            Some(Verdict::Accept { batch, late }) => {
                self.metrics.batches_late.inc_by(u64::from(late));
                self.on_batch(&message.topic, batch);
                MessageAcceptance::Accept
            }
            Some(Verdict::Ignore(reason)) => {
                tracing::debug!(peer = %from, topic = %message.topic, reason = reason.name(), "batch ignored");
                self.metrics.rejected(reason);
                MessageAcceptance::Ignore
            }
            Some(Verdict::Reject(reason)) => {
                tracing::debug!(peer = %from, topic = %message.topic, reason = reason.name(), "batch rejected");
                self.metrics.rejected(reason);
                self.strike(from, reason.name());
                MessageAcceptance::Reject
            }
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, &from, acceptance);
    }

    fn on_batch(&mut self, topic: &TopicHash, batch: Arc<SignedBatch>) {
        if let Some(joined) = self.joined.get(topic) {
            joined.batches.inc();
            joined.events.inc_by(batch.batch().events.len() as u64);
            joined.bytes.inc_by(batch.envelope().len() as u64);
        }
        self.deliver(topic, batch);
    }

    /// Hands a batch to the stages that joined its topic. Never waits: a stage that is full gets it no more.
    fn deliver(&self, topic: &TopicHash, batch: Arc<SignedBatch>) {
        let Some(joined) = self.joined.get(topic) else {
            return;
        };
        let events = batch.batch().events.len() as u64;
        let of_others = batch.batch().publisher != self.me;
        if joined.roles.ingest
            && of_others
            && let Some(ingest) = &self.ports.ingest
            && let Err(TrySendError::Full(_)) = ingest.try_send(IngestInput::Batch(batch.clone()))
        {
            self.metrics.ingest_input_full.inc_by(events);
        }
        if joined.roles.edge
            && let Some(edge) = &self.ports.edge
            && let Err(TrySendError::Full(_)) = edge.try_send(batch)
        {
            self.metrics.edge_input_full.inc_by(events);
        }
    }
}
