//! What operators see of the mesh.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use tickmesh_protocol::feed::FeedFrame;

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

/// The metrics of feeds, served and asked for.
pub(super) struct FeedMetrics {
    requests: IntCounterVec,
    asked: IntCounterVec,
    pub(super) serving: IntGauge,
    pub(super) reading: IntGauge,
    pages_served: IntCounter,
    pub(super) pages_received: IntCounter,
    bytes_served: IntCounter,
    bytes_received: IntCounter,
    pub(super) private_served: IntCounter,
    pub(super) private_received: IntCounter,
    pub(super) private_denied: IntCounter,
}

/// How a feed that was served ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FeedOutcome {
    /// Everything asked for was sent.
    Served,
    Refused,
    /// The request was none.
    Invalid,
    /// The reader closed the feed: the usual end of a live one.
    Gone,
    /// The reader took nothing for too long, or its request did not come.
    Slow,
    /// A fault of this node.
    Failed,
}

impl FeedOutcome {
    /// The label in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
            Self::Gone => "gone",
            Self::Slow => "slow",
            Self::Failed => "failed",
        }
    }
}

impl FeedMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let direction = &["direction"];
        let open = registry.gauges("feeds_open", "Feeds that are open, by direction.", direction);
        let pages = registry.counters("feed_pages_total", "Pages of feeds, by direction.", direction);
        let bytes = registry.counters("feed_bytes_total", "Bytes of feeds, by direction.", direction);
        let private = registry.counters(
            "private_events_total",
            "Events of private streams that went from an ingest peer to an edge, by direction.",
            direction,
        );
        Self {
            requests: registry.counters(
                "feed_requests_total",
                "Feeds that peers asked this node for, by kind and by how they ended.",
                &["kind", "outcome"],
            ),
            asked: registry.counters(
                "feed_asked_total",
                "Feeds that this node asked publishers for, by kind and by how they ended.",
                &["kind", "outcome"],
            ),
            serving: open.with_label_values(&["served"]),
            reading: open.with_label_values(&["received"]),
            pages_served: pages.with_label_values(&["served"]),
            pages_received: pages.with_label_values(&["received"]),
            bytes_served: bytes.with_label_values(&["served"]),
            bytes_received: bytes.with_label_values(&["received"]),
            private_served: private.with_label_values(&["served"]),
            private_received: private.with_label_values(&["received"]),
            private_denied: registry.counter(
                "private_denied_total",
                "Requests of edges for private streams without what their users must show.",
            ),
        }
    }

    pub(super) fn ended(&self, kind: &str, outcome: FeedOutcome) {
        self.requests.with_label_values(&[kind, outcome.name()]).inc();
    }

    /// A flood: not even the request was read.
    pub(super) fn refused_unread(&self) {
        self.requests.with_label_values(&["unknown", "reset"]).inc();
    }

    pub(super) fn asked(&self, kind: &str, outcome: &str) {
        self.asked.with_label_values(&[kind, outcome]).inc();
    }

    pub(super) fn served(&self, frame: &FeedFrame, bytes: usize) {
        self.pages_served.inc_by(u64::from(matches!(frame, FeedFrame::Page(_) | FeedFrame::Snapshots(_))));
        self.bytes_served.inc_by(bytes as u64);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes_received.inc_by(bytes as u64);
    }
}
