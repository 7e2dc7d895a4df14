//! One registry per node, so that several nodes in one process (the demo, the tests) do not mix their figures.
//!
//! Every module declares its metrics beside the code that moves them, in a struct made from this [`Registry`]. The
//! prefix `tickmesh_` is set here and nowhere else. Labels never hold a user, a connection or an address.

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    TextEncoder, core::Collector,
};

use super::breaker::CircuitState;

/// Bounds of latency histograms in seconds: from a loopback hop to what no client should ever wait.
const LATENCY_BUCKETS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 10.0,
];

/// The metrics of one node.
#[derive(Clone, Debug)]
pub struct Registry {
    families: prometheus::Registry,
    /// The families that several stages move.
    dropped: IntCounterVec,
    circuits: IntGaugeVec,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    pub fn new() -> Self {
        let families = prometheus::Registry::new_custom(Some("tickmesh".into()), None).unwrap_or_default();
        let dropped = IntCounterVec::new(
            Opts::new("events_dropped_total", "Events that were dropped, by the reason."),
            &["reason"],
        );
        let dropped = Self::register(&families, dropped);
        let circuits = IntGaugeVec::new(
            Opts::new(
                "circuit_state",
                "Whether a target works (0), or failed too often and is tried once (1) or left alone (2).",
            ),
            &["target"],
        );
        let circuits = Self::register(&families, circuits);
        Self { families, dropped, circuits }
    }

    /// Events that a stage drops for one reason: every drop is counted, in one family.
    pub fn dropped_events(&self, reason: &'static str) -> IntCounter {
        self.dropped.with_label_values(&[reason])
    }

    /// How the circuit breaker towards a target is.
    pub(super) fn circuit(&self, target: &str) -> IntGauge {
        self.circuits.with_label_values(&[target])
    }

    /// All circuit breakers of the node, by their targets.
    pub fn circuits(&self) -> impl Iterator<Item = (String, CircuitState)> {
        let families = self.circuits.collect();
        families.into_iter().flat_map(|family| family.get_metric().to_vec()).filter_map(|metric| {
            let target = metric.get_label().first()?.value().to_owned();
            Some((target, CircuitState::of(metric.get_gauge().get_value() as i64)))
        })
    }

    /// Says which build this is, and of which node: `tickmesh_build_info`, always 1.
    pub fn build_info(&self, node: &str, region: &str) {
        let info =
            self.gauges("build_info", "This build and node; always 1.", &["version", "node", "region"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), node, region]).set(1);
    }

    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A histogram of seconds.
    pub fn latency(&self, name: &str, help: &str) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec())))
    }

    /// Histograms of seconds.
    pub fn latencies(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec()), labels))
    }

    /// The exposition format of Prometheus, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.families.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// Names are constants of this crate, so a bad or doubled one is a mistake in it that every start shows.
    fn add<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        Self::register(&self.families, metric)
    }

    #[expect(clippy::expect_used, reason = "metric names are constants; no input reaches this")]
    fn register<M>(families: &prometheus::Registry, metric: prometheus::Result<M>) -> M
    where
        M: Collector + Clone + 'static,
    {
        let metric = metric.expect("metric names are valid");
        families.register(Box::new(metric.clone())).expect("metric names are unique in a node");
        metric
    }
}

/// Microseconds since 1970 UTC, by this machine's clock; zero before that.
pub fn now_us() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Time since an engine's clock said `engine_time_us`; nothing where the engine said nothing, zero where clocks differ
/// so that it lies in the future.
pub fn since_engine(engine_time_us: u64, now_us: u64) -> Option<Duration> {
    (engine_time_us != 0).then(|| Duration::from_micros(now_us.saturating_sub(engine_time_us)))
}
