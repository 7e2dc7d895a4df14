//! The edge's metrics.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

use tickmesh_protocol::client::{ErrorCode, Rejection};

use crate::ops::metrics::Registry;

/// What the edge counts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EdgeMetrics {
    pub connections: IntGauge,
    pub connections_opened: IntCounter,
    pub connections_closed: IntCounterVec,
    pub subscriptions: IntGauge,
    pub duplicates: IntCounter,
    pub refetched: IntCounter,
    pub refetched_duplicates: IntCounter,
    pub repaired_gaps: IntCounter,
    pub unrepaired_gaps: IntCounter,
    pub streams_repairing: IntGauge,
    pub streams_catching_up: IntGauge,
    pub early: IntCounter,
    pub client_queue_frames: IntGauge,
    pub slow_client_disconnects: IntCounter,
    /// Missed events sent to clients that came back.
    pub replayed: IntCounter,
    resumed: IntCounterVec,
    auth_rejections: IntCounterVec,
    /// Frames that a shard's queue did not take, counted once per event and shard.
    pub dropped_shard_full: IntCounter,
    /// Events held for a stream that is being joined, beyond the bound; what is needed of them is fetched.
    pub dropped_join_full: IntCounter,
    /// Events after a hole, beyond the bound; they are fetched.
    pub dropped_hold_full: IntCounter,
    /// Frames that were queued for a client when it was closed as slow.
    pub dropped_slow_client: IntCounter,
    /// Events left out for a slow client, which was given a newer one, or a snapshot.
    pub dropped_conflated: IntCounter,
    pub dropped_resynced: IntCounter,
    pub conflations: IntCounter,
    pub resyncs: IntCounter,
    pub snapshots_sent: IntCounter,
    delivered: IntCounterVec,
    latency: HistogramVec,
}

/// The metrics of one channel's events.
#[derive(Debug)]
pub struct ChannelMetrics {
    /// Whether its events are their users' own.
    pub private: bool,
    pub delivered: IntCounter,
    pub latency: Histogram,
}

/// [`ChannelMetrics`] by channel, looked up once per stream and not once per event. Only channels that the ingest peers
/// know come in here, so their number is that of the configured routes.
#[derive(Debug, Default)]
pub struct Channels {
    private: Arc<HashSet<String>>,
    known: HashMap<Box<str>, Arc<ChannelMetrics>>,
}

impl Channels {
    /// With the channels that are private.
    pub fn new(private: Arc<HashSet<String>>) -> Self {
        Self { private, known: HashMap::new() }
    }
}

impl EdgeMetrics {
    pub fn new(registry: &Registry) -> Self {
        let gaps =
            registry.counters("gaps_total", "Holes found in streams, by what became of them.", &["repaired"]);
        Self {
            connections: registry.gauge("connections", "WebSocket connections open now."),
            connections_opened: registry
                .counter("connections_opened_total", "WebSocket connections accepted."),
            connections_closed: registry.counters(
                "connections_closed_total",
                "WebSocket connections ended, by the reason.",
                &["reason"],
            ),
            subscriptions: registry.gauge("subscriptions", "Subscriptions of all connections."),
            duplicates: registry
                .counter("duplicates_total", "Events that were published again and not delivered again."),
            refetched: registry
                .counter("events_refetched_total", "Events that gossip had not brought and a feed did."),
            refetched_duplicates: registry
                .counter("refetched_duplicates_total", "Events that came both by gossip and by a feed."),
            early: registry.counter(
                "events_early_total",
                "Events that came before one that belongs in front of them, and waited for it.",
            ),
            repaired_gaps: gaps.with_label_values(&["yes"]),
            unrepaired_gaps: gaps.with_label_values(&["no"]),
            streams_repairing: registry
                .gauge("streams_repairing", "Streams of which something is known to be missing."),
            streams_catching_up: registry.gauge(
                "streams_catching_up",
                "Streams of which so much is missing that newer events are fetched later.",
            ),
            client_queue_frames: registry.gauge(
                "client_queue_frames",
                "Frames waiting for clients that have not taken them yet; updated twice a second or less.",
            ),
            slow_client_disconnects: registry
                .counter("slow_client_disconnects_total", "Connections closed with 4408."),
            replayed: registry
                .counter("events_replayed_total", "Missed events sent to clients that came back."),
            resumed: registry.counters(
                "streams_resumed_total",
                "Streams that clients came back to, by whether all that they had missed could be sent.",
                &["complete"],
            ),
            auth_rejections: registry.counters(
                "auth_rejections_total",
                "Credentials that were not accepted, by the reason.",
                &["reason"],
            ),
            dropped_shard_full: registry.dropped_events("shard_full"),
            dropped_join_full: registry.dropped_events("join_full"),
            dropped_hold_full: registry.dropped_events("hold_full"),
            dropped_slow_client: registry.dropped_events("slow_client"),
            dropped_conflated: registry.dropped_events("conflated"),
            dropped_resynced: registry.dropped_events("resynced"),
            conflations: registry.counter(
                "slow_client_conflations_total",
                "Times that a stream went to a slow client by its newest event only.",
            ),
            resyncs: registry.counter(
                "slow_client_resyncs_total",
                "Times that a stream went to a slow client by a snapshot.",
            ),
            snapshots_sent: registry.counter("snapshots_sent_total", "Snapshots sent to clients."),
            delivered: registry.counters(
                "events_delivered_total",
                "Events handed to client connections, once per connection.",
                &["channel"],
            ),
            latency: registry.latencies(
                "delivery_latency_seconds",
                "From the engine's time of an event to its writes to the clients, once per event and shard.",
                &["channel"],
            ),
        }
    }

    /// Streams of an answered resume request.
    pub fn count_resumed(&self, complete: usize, rejected: &[Rejection]) {
        let gap =
            |rejection: &&Rejection| matches!(rejection.code, ErrorCode::ResumeGap | ErrorCode::EpochChanged);
        self.resumed.with_label_values(&["yes"]).inc_by(complete as u64);
        self.resumed.with_label_values(&["no"]).inc_by(rejected.iter().filter(gap).count() as u64);
    }

    pub fn auth_rejected(&self, reason: &str) {
        self.auth_rejections.with_label_values(&[reason]).inc();
    }

    pub fn channel(&self, channels: &mut Channels, channel: &str) -> Arc<ChannelMetrics> {
        if let Some(metrics) = channels.known.get(channel) {
            return Arc::clone(metrics);
        }
        let metrics = Arc::new(ChannelMetrics {
            private: channels.private.contains(channel),
            delivered: self.delivered.with_label_values(&[channel]),
            latency: self.latency.with_label_values(&[channel]),
        });
        channels.known.insert(channel.into(), Arc::clone(&metrics));
        metrics
    }
}
