//! What librdkafka says, made visible: its log lines, errors and statistics.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Statistics, config::RDKafkaLogLevel, consumer::ConsumerContext, error::KafkaError,
    types::RDKafkaErrorCode,
};
use tickmesh_protocol::Epoch;

use crate::{
    ops::health::Condition,
    source::{Place, Starts, metrics::Figures},
};

/// The same error of the same client is logged once in this time, and counted each time: while a broker is down there are
/// up to forty a second.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// The facility of librdkafka's log under which it tells of lost connections, each of which it also tells as an error.
const CONNECTION_FACILITY: &str = "FAIL";

/// What the clients of one source share.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) source: String,
    pub(super) brokers: String,
    pub(super) figures: Figures,
    condition: Condition,
    /// The reading client said that it has no broker, and has not got one since.
    reading_down: AtomicBool,
    /// Why brokers let nobody in, until one answers: a better reason than that nobody does.
    refused: Mutex<Option<String>>,
    /// When an error of a client was logged last; as many as there are clients and error codes.
    logged: Mutex<HashMap<(&'static str, String), Instant>>,
    /// Partitions that have lost their end, by log and number, and how often; nearly always empty.
    generations: Mutex<HashMap<(Arc<str>, i32), u32>>,
    /// Where reading begins: at first as [`super::Kafka`] was told, later also topics that went away for long.
    starts: Mutex<Starts>,
}

impl Status {
    pub(super) fn new(source: String, brokers: String, figures: Figures, condition: Condition) -> Self {
        let (reading_down, logged) = (AtomicBool::new(false), Mutex::default());
        let (generations, starts, refused) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { source, brokers, figures, condition, reading_down, refused, logged, generations, starts }
    }

    /// Where reading is to begin.
    pub(super) fn starts(&self) -> MutexGuard<'_, Starts> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A topic went away; should the same come back, it goes on there.
    pub(super) fn forgotten(&self, places: Vec<(Epoch, Place)>) {
        let mut starts = self.starts();
        for (epoch, place) in places {
            starts.replace(epoch, place);
        }
    }

    /// How often a partition has lost its end.
    pub(super) fn generation(&self, log: &str, partition: i32) -> u32 {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.is_empty() {
            return 0;
        }
        generations.get(&(log.into(), partition)).copied().unwrap_or(0)
    }

    pub(super) fn set_generation(&self, log: &Arc<str>, partition: i32, generation: u32) {
        if generation > 0 {
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            generations.insert((log.clone(), partition), generation);
        }
    }

    /// Not ready, for this reason; but a reading client without a broker is the better reason.
    pub(super) fn waiting(&self, reason: &str) {
        if !self.reading_down.load(Ordering::Relaxed) {
            self.tell(reason);
        }
    }

    fn all_down(&self) {
        self.reading_down.store(true, Ordering::Relaxed);
        self.tell("all brokers down");
    }

    fn tell(&self, reason: &str) {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = refused.as_deref().unwrap_or(reason);
        self.condition.waiting(format!("kafka {}: {reason}", self.brokers));
    }

    /// A broker answers that it lets nobody in as whom it was shown, or is not who it should be.
    fn refused(&self, words: &str, reason: &str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{words}: {reason}"));
        self.tell(words);
    }

    /// A broker let the client in.
    pub(super) fn let_in(&self) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        let kind = kind_of(error.rdkafka_error_code());
        self.figures.error(&kind);
        if self.is_news(client, kind) {
            tracing::warn!(source = self.source, client, %error, reason, "kafka error");
        }
    }

    fn is_news(&self, client: &'static str, kind: String) -> bool {
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let last = logged.entry((client, kind)).or_insert(now);
        let news = *last == now || now.duration_since(*last) >= LOG_EVERY;
        if news {
            *last = now;
        }
        news
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
        if facility == CONNECTION_FACILITY {
            tracing::debug!(target: "librdkafka", source, client, facility, "{message}");
            return;
        }
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
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication) => {
                self.status.refused("the broker refuses the credentials", reason);
            }
            Some(RDKafkaErrorCode::SSL) => self.status.refused("no TLS connection to the broker", reason),
            _ => {}
        }
        if self.reads && error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.status.all_down();
        }
    }
}

impl ConsumerContext for Context {}
