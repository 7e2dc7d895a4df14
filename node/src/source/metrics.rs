//! What sources count. The families are registered once per node; each source takes its own figures out of them by name.

use std::{sync::Arc, time::Duration};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::ops::{breaker::Circuit, metrics::Registry};

/// How often a source tries a server that fails, which cannot do without it: the longest wait of all connectors.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The metric families of all sources of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    records: IntCounterVec,
    errors: IntCounterVec,
    moves: IntCounterVec,
    growths: IntCounterVec,
    lag: IntGaugeVec,
    partitions: IntGaugeVec,
    brokers_up: IntGaugeVec,
    broker_rtt: IntGaugeVec,
    registry: Registry,
}

/// The figures of one source.
#[derive(Clone, Debug)]
pub struct Figures {
    source: String,
    errors: IntCounterVec,
    /// Records handed to ingest.
    pub records: IntCounter,
    /// Partitions whose position was no longer in the log.
    pub moved: IntCounter,
    /// Times that a topic got more partitions.
    pub grown: IntCounter,
    pub lag: IntGauge,
    pub partitions: IntGauge,
    pub brokers_up: IntGauge,
    pub broker_rtt: IntGauge,
    /// Towards the source's servers.
    pub circuit: Arc<Circuit>,
}

impl SourceMetrics {
    pub fn new(registry: &Registry) -> Self {
        Self {
            records: registry.counters("source_records_total", "Records read from a log.", &["source"]),
            errors: registry.counters(
                "source_errors_total",
                "Errors of a log's client library or server, by the name of the error.",
                &["source", "kind"],
            ),
            moves: registry.counters(
                "source_positions_lost_total",
                "Times a partition no longer held the position that was to be read next.",
                &["source"],
            ),
            growths: registry.counters(
                "source_topics_grown_total",
                "Times a topic got more partitions, so that keys moved and their streams went on in other epochs.",
                &["source"],
            ),
            lag: registry.gauges(
                "source_lag",
                "Records that are in the log and have not been read, over all partitions.",
                &["source"],
            ),
            partitions: registry.gauges("source_partitions", "Partitions that are being read.", &["source"]),
            brokers_up: registry.gauges(
                "source_brokers_up",
                "Servers of a log that this node is connected to.",
                &["source"],
            ),
            broker_rtt: registry.gauges(
                "source_broker_rtt_microseconds",
                "Mean time a log's slowest server takes to answer.",
                &["source"],
            ),
            registry: registry.clone(),
        }
    }

    /// The figures of the source with this name.
    pub fn of(&self, source: &str) -> Figures {
        let label = &[source];
        Figures {
            source: source.to_owned(),
            errors: self.errors.clone(),
            records: self.records.with_label_values(label),
            moved: self.moves.with_label_values(label),
            grown: self.growths.with_label_values(label),
            lag: self.lag.with_label_values(label),
            partitions: self.partitions.with_label_values(label),
            brokers_up: self.brokers_up.with_label_values(label),
            broker_rtt: self.broker_rtt.with_label_values(label),
            circuit: Arc::new(Circuit::new(&self.registry, format!("source {source}"), LONGEST_PAUSE)),
        }
    }
}

impl Figures {
    /// Counts an error. `kind` must come from a closed set, such as the names of an error enum.
    pub fn error(&self, kind: &str) {
        self.errors.with_label_values(&[self.source.as_str(), kind]).inc();
    }
}
