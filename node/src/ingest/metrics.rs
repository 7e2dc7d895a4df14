//! What ingest counts.

use prometheus::{IntCounter, IntGauge, IntGaugeVec};
use tickmesh_protocol::takeover::Counts;

use crate::{
    ops::metrics::Registry,
    source::Record,
    transform::{Making, operators::depth::Gap},
};

pub(super) struct Metrics {
    /// Events handed to the mesh by this peer.
    pub(super) published: IntCounter,
    pub(super) batches: IntCounter,
    pub(super) heads: IntCounter,
    pub(super) dead_letters: IntCounter,
    late: IntCounter,
    old_updates: IntCounter,
    book_gaps: IntCounter,
    pub(super) books_incomplete: IntGauge,
    pub(super) private: IntCounter,
    pub(super) signed: IntCounter,
    pub(super) replayed: IntCounter,
    /// 1 for each source that was read to its log's end.
    pub(super) warm: IntGaugeVec,
    pub(super) leading: IntGauge,
    pub(super) history_bytes: IntGauge,
    pub(super) history_events: IntGauge,
    takeovers: IntCounter,
    yields: IntCounter,
    overflowed: IntCounter,
    /// What of the counts is in the counters already.
    counted: Counts,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            published: registry
                .counter("events_published_total", "Events that this peer published on the mesh."),
            batches: registry
                .counter("batches_published_total", "Signed batches that this peer published, heads included."),
            heads: registry.counter(
                "heads_published_total",
                "Heads of silent streams that this peer told the mesh, so that who missed the last event learns of it.",
            ),
            dead_letters: registry.counter("dead_letters_total", "Records that could not become events."),
            late: registry.counter(
                "trades_late_total",
                "Trades that came after their time was over for candles or the ticker, and count for nothing there.",
            ),
            old_updates: registry.counter(
                "book_updates_old_total",
                "Records that were no newer than the order book of their key by the engine's update ids, and count for nothing.",
            ),
            book_gaps: registry.counter(
                "book_gaps_total",
                "Order books that became incomplete: a record did not follow by the engine's update ids, or made no sense.",
            ),
            books_incomplete: registry.gauge(
                "books_incomplete",
                "Keys whose order book waits for the next snapshot, and of which nothing is told.",
            ),
            private: registry.counter(
                "events_private_total",
                "Events of private channels: sequenced, never published by gossip.",
            ),
            signed: registry
                .counter("events_signed_total", "Events that were signed for clients, replayed ones included."),
            replayed: registry.counter(
                "events_restored_total",
                "Events of records from before this peer's start: for the history, not for gossip.",
            ),
            warm: registry.gauges(
                "source_warm",
                "1 if a source was read up to its log's end since the start, so that this peer ranks; 0 before.",
                &["source"],
            ),
            leading: registry.gauge("topics_led", "Topics that this peer leads."),
            history_bytes: registry.gauge("history_bytes", "Bytes of events in the history."),
            history_events: registry.gauge("history_events", "Events in the history."),
            takeovers: registry.counter(
                "takeovers_total",
                "Topics that this peer began to lead because their leader was lost or silent.",
            ),
            yields: registry.counter("yields_total", "Topics that this peer gave back to a better rank."),
            overflowed: registry.dropped_events("backlog_full"),
            counted: Counts::default(),
        }
    }

    /// Counts what operators passed over, and says where books were lost.
    pub(super) fn count_making(&self, source: &str, record: &Record, making: &Making) {
        self.late.inc_by(making.late as u64);
        self.old_updates.inc_by(making.old as u64);
        self.book_gaps.inc_by(making.gaps.len() as u64);
        for Gap { key, reason } in &making.gaps {
            tracing::warn!(
                source,
                topic = &*record.topic,
                partition = record.partition,
                position = record.position,
                %key,
                reason,
                "order book is incomplete, nothing is told of it until the next snapshot"
            );
        }
    }

    pub(super) fn count(&mut self, now: Counts) {
        self.takeovers.inc_by(now.takeovers - self.counted.takeovers);
        self.yields.inc_by(now.yields - self.counted.yields);
        self.overflowed.inc_by(now.overflowed - self.counted.overflowed);
        self.counted = now;
    }
}
