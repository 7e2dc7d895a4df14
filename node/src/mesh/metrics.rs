//! What operators see of the mesh.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::validation::Reason;
use crate::ops::metrics::Registry;

/// The metrics of the swarm task.
pub(super) struct Metrics {
    pub(super) peers: IntGauge,
    pub(super) publishers: IntGauge,
    pub(super) topics: IntGauge,
    pub(super) muted: IntGauge,
    pub(super) batches_published: IntCounter,
    pub(super) batches_received: IntCounterVec,
    pub(super) batches_late: IntCounter,
    pub(super) events_received: IntCounterVec,
    pub(super) bytes_received: IntCounterVec,
    batches_rejected: Vec<IntCounter>,
    pub(super) queue_drops: IntCounter,
    pub(super) edge_input_full: IntCounter,
    pub(super) ingest_input_full: IntCounter,
    pub(super) heads_answered: IntCounter,
    pub(super) heads_refused: IntCounter,
    pub(super) heads_asked: IntCounter,
    pub(super) heads_failed: IntCounter,
    pub(super) connections_reset: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let rejected = registry.counters(
            "mesh_batches_rejected_total",
            "Messages of the mesh that were not believed, by reason.",
            &["reason"],
        );
        let asked = registry.counters(
            "mesh_heads_asked_total",
            "Questions about heads put to ingest peers, by outcome.",
            &["outcome"],
        );
        let answered = registry.counters(
            "mesh_heads_answered_total",
            "Questions of other peers about heads, by outcome.",
            &["outcome"],
        );
        Self {
            peers: registry.gauge("mesh_peers", "Peers connected."),
            publishers: registry.gauge("mesh_publishers_connected", "Configured publishers connected."),
            topics: registry.gauge("mesh_topics_joined", "Topics joined."),
            muted: registry.gauge("mesh_peers_muted", "Peers not listened to after invalid messages."),
            batches_published: registry.counter("mesh_batches_published_total", "Own batches published."),
            batches_received: registry.counters(
                "mesh_batches_received_total",
                "Batches received and accepted, by channel.",
                &["channel"],
            ),
            batches_late: registry.counter(
                "mesh_batches_late_total",
                "Batches accepted after a later one of the same publisher and topic.",
            ),
            events_received: registry.counters(
                "mesh_events_received_total",
                "Events in the batches received and accepted, by channel.",
                &["channel"],
            ),
            bytes_received: registry.counters(
                "mesh_bytes_received_total",
                "Bytes of the batches received and accepted, without copies, by channel.",
                &["channel"],
            ),
            batches_rejected: Reason::ALL
                .iter()
                .map(|reason| rejected.with_label_values(&[reason.name()]))
                .collect(),
            queue_drops: registry.counter(
                "gossip_queue_drops_total",
                "Messages that gossipsub dropped because a peer's queue was full or slow.",
            ),
            edge_input_full: registry.dropped_events("edge_input_full"),
            ingest_input_full: registry.dropped_events("ingest_input_full"),
            heads_asked: asked.with_label_values(&["answered"]),
            heads_failed: asked.with_label_values(&["failed"]),
            heads_answered: answered.with_label_values(&["answered"]),
            heads_refused: answered.with_label_values(&["refused"]),
            connections_reset: registry.counters(
                "mesh_connections_reset_total",
                "Connections closed by this node because they no longer worked, by reason.",
                &["reason"],
            ),
        }
    }

    pub(super) fn rejected(&self, reason: Reason) {
        self.batches_rejected[reason as usize].inc();
    }
}
