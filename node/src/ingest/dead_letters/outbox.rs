//! Dead letters of one source on their way to the sink: a bounded queue, which the ingest thread fills and a task empties.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Context,
    time::Duration,
};

use futures_util::{future::BoxFuture, task::AtomicWaker};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Letter;
use crate::{
    ops::{
        backoff::{Backoff, chance},
        breaker::Circuit,
        health::Condition,
        metrics::Registry,
    },
    source::writing::{LogWriter, Message, WRITE_TIMEOUT, WriteError},
};

/// Letters that may wait; then ingest of the source does. So many are a route that is broken altogether, and little memory.
const MAX_WAITING: usize = 1000;
/// And their bytes. A group of records that is being taken may go beyond both.
const MAX_WAITING_BYTES: usize = 16 << 20;
/// Letters that are written at once, so that one flush of a disk serves many.
const MAX_BATCH: usize = 256;
/// And their bytes, the last letter not counted: far below what a server takes in one go.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Longest wait for a sink: longer than it waits itself, so that its own words arrive.
const SINK_TIMEOUT: Duration = Duration::from_secs(20);
/// The first pause after a failure, doubled up to the longest. Ingest may be waiting, so a sink that is back is found soon.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The same trouble is told once in this time.
const ALARM_EVERY: Duration = Duration::from_secs(60);

const _: () = assert!(SINK_TIMEOUT.as_millis() > 3 * WRITE_TIMEOUT.as_millis());

/// What takes letters for good.
pub trait Sink: Send {
    /// Writes letters; when it returns, they are as safe as they get. After an error any of them may be there.
    fn write<'a>(&'a mut self, letters: &'a [Arc<Letter>]) -> BoxFuture<'a, Result<(), WriteError>>;
}

/// A topic of the source's own log as a sink.
pub struct TopicSink {
    pub writer: Box<dyn LogWriter>,
    pub topic: String,
}

impl Sink for TopicSink {
    fn write<'a>(&'a mut self, letters: &'a [Arc<Letter>]) -> BoxFuture<'a, Result<(), WriteError>> {
        let messages: Vec<Message> = letters.iter().map(|letter| letter.to_message(&self.topic)).collect();
        Box::pin(async move { self.writer.append(&messages).await })
    }
}

/// The metric families of all sinks of a node.
#[derive(Clone)]
pub struct SinkMetrics {
    waiting: IntGaugeVec,
    written: IntCounterVec,
    failures: IntCounterVec,
    /// Letters that a file had no room for any more.
    pub deleted: IntCounter,
}

impl SinkMetrics {
    pub fn new(registry: &Registry) -> Self {
        Self {
            waiting: registry.gauges(
                "dead_letters_waiting",
                "Dead letters that their sink does not have yet.",
                &["source"],
            ),
            written: registry.counters(
                "dead_letters_written_total",
                "Dead letters that their sink has taken; those that were read again after a restart count again.",
                &["source"],
            ),
            failures: registry.counters(
                "dead_letters_failures_total",
                "Times that a sink did not take dead letters.",
                &["source"],
            ),
            deleted: registry.counter(
                "dead_letters_deleted_total",
                "Dead letters that were deleted because their file was full, put back or not.",
            ),
        }
    }
}

/// Where the ingest thread puts letters. Cheap to clone.
#[derive(Clone)]
pub struct Outbox(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    /// The ingest thread, while it waits for room.
    room: AtomicWaker,
    /// Something was put, or taken.
    changed: Notify,
    /// Records of this topic are letters themselves.
    own_topic: Option<String>,
    shown: IntGauge,
}

#[derive(Default)]
struct Waiting {
    letters: VecDeque<Arc<Letter>>,
    bytes: usize,
    /// Letters that were ever put here, and those of them that the sink has.
    put: u64,
    kept: u64,
}

impl Waiting {
    fn is_full(&self) -> bool {
        self.letters.len() >= MAX_WAITING || self.bytes >= MAX_WAITING_BYTES
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox {
    /// Whether a record of this topic is a letter already: one that is refused again would go in circles.
    pub(in crate::ingest) fn takes(&self, topic: &str) -> bool {
        self.0.own_topic.as_deref() != Some(topic)
    }

    /// Takes a letter, whether there is room or not: who puts looks at [`Self::has_room`] before he takes records.
    pub(in crate::ingest) fn put(&self, letter: Letter) {
        let mut waiting = self.0.waiting();
        waiting.bytes += letter.bytes();
        waiting.letters.push_back(Arc::new(letter));
        waiting.put += 1;
        self.0.shown.set(i64::try_from(waiting.letters.len()).unwrap_or(i64::MAX));
        drop(waiting);
        self.0.changed.notify_waiters();
    }

    /// Whether there is room; if not, the task is woken when there is.
    pub(in crate::ingest) fn has_room(&self, context: &Context<'_>) -> bool {
        if !self.0.waiting().is_full() {
            return true;
        }
        self.0.room.register(context.waker());
        // It may have become so before anybody was registered.
        !self.0.waiting().is_full()
    }

    /// How many letters were put here so far: once as many are [kept](Self::kept), all until now are.
    pub(in crate::ingest) fn put_so_far(&self) -> u64 {
        self.0.waiting().put
    }

    /// How many of them the sink has.
    pub(in crate::ingest) fn kept(&self) -> u64 {
        self.0.waiting().kept
    }

    /// Waits until the sink has all that were put here.
    pub(in crate::ingest) async fn emptied(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.waiting().letters.is_empty() {
                return;
            }
            changed.await;
        }
    }
}

/// Carries letters from an outbox to a sink.
pub struct Carrier {
    shared: Arc<Shared>,
    source: String,
    sink: Box<dyn Sink>,
    circuit: Arc<Circuit>,
    condition: Condition,
    written: IntCounter,
    failures: IntCounter,
    /// Since the first failure after a success: when it was told last.
    failing: Option<Instant>,
}

impl Carrier {
    /// An outbox for the letters of a source, and who empties it. The condition is ready unless ingest waits for the sink.
    pub fn new(
        source: &str,
        sink: Box<dyn Sink>,
        own_topic: Option<String>,
        metrics: &SinkMetrics,
        circuit: Arc<Circuit>,
        condition: Condition,
    ) -> (Outbox, Self) {
        condition.ready();
        let shown = metrics.waiting.with_label_values(&[source]);
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            room: AtomicWaker::new(),
            changed: Notify::new(),
            own_topic,
            shown,
        });
        let carrier = Self {
            shared: shared.clone(),
            source: source.to_owned(),
            sink,
            circuit,
            condition,
            written: metrics.written.with_label_values(&[source]),
            failures: metrics.failures.with_label_values(&[source]),
            failing: None,
        };
        (Outbox(shared), carrier)
    }

    /// How long a circuit towards a sink stays open.
    pub const PAUSE: Duration = LONGEST_PAUSE;

    /// Carries until `stop`. What is left then comes again after the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.carry()).await;
        let left = self.shared.waiting().letters.len();
        if left > 0 {
            tracing::warn!(
                source = self.source,
                letters = left,
                "dead letters that were not written: their records are read again at the next start"
            );
        }
    }

    async fn carry(&mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        // After one that was too large for the sink, until all that came with it are through.
        let mut singly = 0;
        loop {
            let batch = batch(&self.shared, if singly > 0 { 1 } else { MAX_BATCH }).await;
            self.circuit.tries();
            let written = timeout(SINK_TIMEOUT, self.sink.write(&batch)).await;
            let written = written.unwrap_or_else(|_| Err(WriteError::Failed("no answer in time".to_owned())));
            match written {
                Ok(()) => {
                    self.succeeded(&batch);
                    backoff.succeeded();
                    singly = usize::saturating_sub(singly, 1);
                }
                Err(WriteError::TooLarge(_)) if batch.len() > 1 => singly = batch.len(),
                Err(WriteError::TooLarge(reason)) if batch.iter().all(|letter| letter.bytes() > 0) => {
                    self.leave_out(&reason);
                }
                Err(error) => {
                    self.failed(&error);
                    sleep(backoff.failed(chance())).await;
                }
            }
        }
    }

    fn succeeded(&mut self, batch: &[Arc<Letter>]) {
        let mut waiting = self.shared.waiting();
        for _ in batch {
            let letter = waiting.letters.pop_front();
            waiting.bytes -= letter.map_or(0, |letter| letter.bytes());
        }
        waiting.kept += batch.len() as u64;
        self.shared.shown.set(i64::try_from(waiting.letters.len()).unwrap_or(i64::MAX));
        let full = waiting.is_full();
        drop(waiting);
        self.written.inc_by(batch.len() as u64);
        self.circuit.note(true);
        if !full {
            self.condition.ready();
            self.shared.room.wake();
        }
        self.shared.changed.notify_waiters();
        if self.failing.take().is_some() {
            tracing::info!(source = self.source, "dead letters are written again");
        }
    }

    /// The sink will never take the first letter as it is. That it was refused, where and why is worth more than nothing.
    fn leave_out(&self, reason: &str) {
        let mut waiting = self.shared.waiting();
        let Some(letter) = waiting.letters.front_mut() else { return };
        let bytes = letter.bytes();
        tracing::error!(
            source = self.source,
            id = letter.id,
            bytes,
            reason,
            "a dead letter is too large for its sink and goes there without its record, which the log has"
        );
        *letter = Arc::new(letter.without_value());
        waiting.bytes -= bytes;
    }

    fn failed(&mut self, error: &WriteError) {
        self.failures.inc();
        self.circuit.note(false);
        let (waiting, full) = {
            let waiting = self.shared.waiting();
            (waiting.letters.len(), waiting.is_full())
        };
        if full {
            self.condition.waiting(format!("ingest waits: its dead letters cannot be written: {error}"));
        }
        let now = Instant::now();
        if self.failing.is_none_or(|told| now.duration_since(told) >= ALARM_EVERY) {
            self.failing = Some(now);
            tracing::error!(source = self.source, %error, waiting, full,
                "dead letters cannot be written; no checkpoint passes them, and with too many of them ingest waits");
        }
    }
}

/// Waits for letters; they stay where they are until the sink has them.
async fn batch(shared: &Shared, most: usize) -> Vec<Arc<Letter>> {
    loop {
        let changed = shared.changed.notified();
        let batch: Vec<_> = {
            let (waiting, mut bytes) = (shared.waiting(), 0);
            let fits = |letter: &&Arc<Letter>| {
                let fits = bytes < MAX_BATCH_BYTES;
                bytes += letter.bytes();
                fits
            };
            waiting.letters.iter().take(most).take_while(fits).cloned().collect()
        };
        if !batch.is_empty() {
            return batch;
        }
        changed.await;
    }
}
