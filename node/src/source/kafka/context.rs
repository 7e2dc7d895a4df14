//! What librdkafka says, made visible: its log lines, errors and statistics.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use rdkafka::{
    ClientContext, Statistics, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError,
    types::RDKafkaErrorCode,
};

use crate::{ops::health::Condition, source::metrics::Figures};

/// What the clients of one source share.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) source: String,
    pub(super) brokers: String,
    pub(super) figures: Figures,
    condition: Condition,
    /// The reading client said that it has no broker, and has not got one since.
    reading_down: AtomicBool,
}

impl Status {
    pub(super) fn new(source: String, brokers: String, figures: Figures, condition: Condition) -> Self {
        Self { source, brokers, figures, condition, reading_down: AtomicBool::new(false) }
    }

    pub(super) fn waiting(&self, reason: &str) {
        self.condition.waiting(format!("kafka {}: {reason}", self.brokers));
    }

    /// A broker answered and partitions are assigned; the source is ready unless the reading client has no broker.
    pub(super) fn answered(&self) {
        if !self.reading_down.load(Ordering::Relaxed) {
            self.condition.ready();
        }
    }

    pub(super) fn reading_up(&self) {
        self.reading_down.store(false, Ordering::Relaxed);
    }

    pub(super) fn error(&self, client: &'static str, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        self.figures.error(&kind_of(code));
        tracing::warn!(source = self.source, client, %error, reason, "kafka error");
    }
}

/// The label of an error; the enum of librdkafka's codes is closed.
pub(super) fn kind_of(code: Option<RDKafkaErrorCode>) -> String {
    code.map_or_else(|| "client".to_owned(), |code| format!("{code:?}"))
}

/// The callbacks of one client.
pub(super) struct Context {
    client: &'static str,
    status: Arc<Status>,
    /// Whether this is the client that reads live: its word about brokers counts for readiness.
    reads: bool,
    /// The newest statistics that nobody has looked at.
    statistics: Mutex<Option<Statistics>>,
}

impl Context {
    pub(super) fn new(client: &'static str, status: Arc<Status>, reads: bool) -> Self {
        Self { client, status, reads, statistics: Mutex::new(None) }
    }

    pub(super) fn take_statistics(&self) -> Option<Statistics> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let (source, client) = (self.status.source.as_str(), self.client);
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::error!(target: "librdkafka", source, client, facility, "{message}");
            }
            RDKafkaLogLevel::Warning => {
                tracing::warn!(target: "librdkafka", source, client, facility, "{message}");
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", source, client, facility, "{message}");
            }
            RDKafkaLogLevel::Debug => {
                tracing::debug!(target: "librdkafka", source, client, facility, "{message}");
            }
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice(statistics) {
            Ok(statistics) => {
                *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics);
            }
            Err(error) => {
                tracing::warn!(source = self.status.source, %error, "kafka statistics cannot be read");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition is no error; the reader asks to be told of it.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        self.status.error(self.client, &error, reason);
        if self.reads && error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.status.reading_down.store(true, Ordering::Relaxed);
            self.status.waiting(&format!("all brokers down ({reason})"));
        }
    }
}

impl ConsumerContext for Context {}
