//! Reads live, on a thread of its own: librdkafka's poll blocks, and ingest may be slow.
//!
//! Order and completeness: librdkafka gives each partition's records in the order of their offsets, and this thread
//! knows for each partition the offset to come next. Whatever happens to the connection, the client or the assignment,
//! reading goes on from there: nothing is skipped, nothing is handed on twice.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, mpsc::SyncSender},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::{
    Message, Offset, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
    types::RDKafkaErrorCode,
};
use tickmesh_protocol::Epoch;
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    config::{Config, Use},
    context::{Context, Status},
    discovery::{Checked, News, Stuck},
};
use crate::source::{Record, SourceEvent};

/// How long one poll waits when there is nothing: how late a stop or a new partition is noticed, at a cost of twenty
/// wake-ups a second.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// Most records handed on at once. What is there is handed on at once, so this only bounds memory.
const MAX_BATCH_RECORDS: usize = 512;
/// Most bytes handed on at once, the last record not counted.
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Pause before stuck partitions are asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// From here on waiting for ingest is worth a line in the log.
const LONG_STALL: Duration = Duration::from_secs(1);

/// How a sequence is made of a position; part of the epoch.
const RULE: &str = "offset";

/// The epoch of a partition. `log` is cluster id, topic and topic id.
pub(super) fn epoch_of(log: &str, partition: i32) -> Epoch {
    Epoch::of(log, partition.unsigned_abs(), RULE)
}

/// A message as a record. A tombstone is a record with an empty value; headers and key are not looked at.
pub(super) fn record_of(message: &BorrowedMessage<'_>, topic: Arc<str>, epoch: Epoch) -> Record {
    let milliseconds = message.timestamp().to_millis().unwrap_or(0);
    Record {
        topic,
        partition: message.partition().unsigned_abs(),
        position: message.offset().unsigned_abs(),
        epoch,
        value: message.payload().map_or_else(Bytes::new, Bytes::copy_from_slice),
        engine_time_us: u64::try_from(milliseconds).unwrap_or(0).saturating_mul(1000),
    }
}

/// The state of the reading thread.
pub(super) struct Reading {
    config: Config,
    status: Arc<Status>,
    consumer: BaseConsumer<Context>,
    topics: HashMap<Arc<str>, Topic>,
    news: mpsc::Receiver<News>,
    questions: SyncSender<Vec<Stuck>>,
    question: Question,
}

struct Topic {
    /// Not there at the moment; its partitions are not assigned.
    gone: bool,
    partitions: BTreeMap<i32, Partition>,
}

struct Partition {
    epoch: Epoch,
    /// The offset that comes next.
    next: i64,
}

/// Whether discovery is asked which partitions have lost their position. librdkafka tells that one has, not which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    None,
    Due(Instant),
    Asked,
}

/// Nobody listens any more, or the source is told to stop.
struct Stopped;

/// Where records go, and how to wait there.
pub(super) struct Output {
    pub(super) events: mpsc::Sender<SourceEvent>,
    pub(super) stop: CancellationToken,
    pub(super) runtime: Handle,
}

impl Output {
    pub(super) fn stopped(&self) -> bool {
        self.stop.is_cancelled() || self.events.is_closed()
    }

    /// Hands an event on, waiting for room. Gives the time waited.
    fn send(&self, event: SourceEvent) -> Result<Duration, Stopped> {
        let event = match self.events.try_send(event) {
            Ok(()) => return Ok(Duration::ZERO),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Stopped),
            Err(mpsc::error::TrySendError::Full(event)) => event,
        };
        let began = Instant::now();
        self.runtime.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => Err(Stopped),
                sent = self.events.send(event) => sent.map_err(|_| Stopped),
            }
        })?;
        Ok(began.elapsed())
    }
}

impl Reading {
    pub(super) fn new(
        config: Config,
        status: Arc<Status>,
        news: mpsc::Receiver<News>,
        questions: SyncSender<Vec<Stuck>>,
    ) -> KafkaResult<Self> {
        let consumer = live_client(&config, &status)?;
        Ok(Self {
            config,
            status,
            consumer,
            topics: HashMap::new(),
            news,
            questions,
            question: Question::None,
        })
    }

    pub(super) fn run(mut self, output: &Output) {
        while !output.stopped() {
            if self.step(output).is_err() {
                return;
            }
        }
    }

    fn step(&mut self, output: &Output) -> Result<(), Stopped> {
        while let Ok(news) = self.news.try_recv() {
            self.apply(news, output)?;
        }
        self.ask();
        let records = self.poll_batch();
        if let Some(statistics) = self.consumer.context().take_statistics() {
            self.show(&statistics);
        }
        if records.is_empty() {
            return Ok(());
        }
        self.status.reading_up();
        self.status.figures.records.inc_by(records.len() as u64);
        let waited = output.send(SourceEvent::Records(records))?;
        if waited > LONG_STALL {
            let waited_seconds = waited.as_secs_f64();
            tracing::warn!(source = self.status.source, waited_seconds, "ingest is slower than the log");
        }
        Ok(())
    }

    /// Waits for a record, then takes all that are there.
    fn poll_batch(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        let mut errors = Vec::new();
        let mut bytes = 0;
        let mut wait = POLL_WAIT;
        while records.len() + errors.len() < MAX_BATCH_RECORDS && bytes < MAX_BATCH_BYTES {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    if let Some(record) = take(&mut self.topics, &message) {
                        bytes += record.value.len();
                        records.push(record);
                    }
                }
                Some(Err(error)) => errors.push(error),
            }
            wait = Duration::ZERO;
        }
        for error in errors {
            self.on_error(&error);
        }
        records
    }

    /// The context has counted and logged the error already.
    fn on_error(&mut self, error: &KafkaError) {
        if let KafkaError::MessageConsumptionFatal(code) = error {
            tracing::error!(source = self.status.source, %code, "kafka client is beyond repair, making another");
            match live_client(&self.config, &self.status) {
                Ok(consumer) => {
                    self.consumer = consumer;
                    self.assign_all();
                }
                Err(error) => self.status.error("live", &error, "no new client"),
            }
            return;
        }
        let lost = [
            RDKafkaErrorCode::AutoOffsetReset,
            RDKafkaErrorCode::LogTruncation,
            RDKafkaErrorCode::OffsetOutOfRange,
        ];
        if error.rdkafka_error_code().is_some_and(|code| lost.contains(&code))
            && self.question == Question::None
        {
            self.question = Question::Due(Instant::now());
        }
    }

    fn apply(&mut self, news: News, output: &Output) -> Result<(), Stopped> {
        match news {
            News::Assign { topic, log, partitions } => self.add(topic, &log, &partitions, output)?,
            News::Revoke { topic, forget } => {
                self.unassign(&topic);
                if forget {
                    self.topics.remove(&topic);
                }
            }
            News::Restore { topic } => {
                if let Some(state) = self.topics.get_mut(&topic) {
                    state.gone = false;
                    let list = list_of([(&topic, &*state)]);
                    self.assign_more(list);
                }
            }
            News::Checked { checked, complete } => self.repair(checked, complete, output)?,
        }
        let there = self.topics.values().filter(|topic| !topic.gone);
        let partitions: usize = there.map(|topic| topic.partitions.len()).sum();
        self.status.figures.partitions.set(i64::try_from(partitions).unwrap_or(i64::MAX));
        Ok(())
    }

    fn add(
        &mut self,
        topic: Arc<str>,
        log: &str,
        partitions: &[(i32, i64)],
        output: &Output,
    ) -> Result<(), Stopped> {
        let state = self
            .topics
            .entry(topic.clone())
            .or_insert_with(|| Topic { gone: false, partitions: BTreeMap::new() });
        let mut added = Topic { gone: false, partitions: BTreeMap::new() };
        for (partition, next) in partitions.iter().copied() {
            let epoch = epoch_of(log, partition);
            tracing::info!(source = self.status.source, topic = &*topic, partition, offset = next, %epoch, "reading a partition");
            state.partitions.insert(partition, Partition { epoch, next });
            added.partitions.insert(partition, Partition { epoch, next });
            output.send(SourceEvent::Begin { epoch, position: next.unsigned_abs() })?;
        }
        self.assign_more(list_of([(&topic, &added)]));
        Ok(())
    }

    fn assign_more(&mut self, list: KafkaResult<TopicPartitionList>) {
        if let Err(error) = list.and_then(|list| self.consumer.incremental_assign(&list)) {
            self.status.error("live", &error, "cannot add partitions, assigning all anew");
            self.assign_all();
        }
    }

    fn unassign(&mut self, topic: &Arc<str>) {
        let Some(state) = self.topics.get_mut(topic) else { return };
        let was_gone = std::mem::replace(&mut state.gone, true);
        if was_gone {
            return;
        }
        let list = list_of([(topic, &*state)]);
        if let Err(error) = list.and_then(|list| self.consumer.incremental_unassign(&list)) {
            self.status.error("live", &error, "cannot take partitions away, assigning all anew");
            self.assign_all();
        }
    }

    /// Assigns every partition anew at the offset that comes next.
    fn assign_all(&mut self) {
        let there = self.topics.iter().filter(|(_, topic)| !topic.gone);
        if let Err(error) = list_of(there).and_then(|list| self.consumer.assign(&list)) {
            self.status.error("live", &error, "cannot assign partitions");
            // Asking ends in another try.
            self.question = Question::Due(Instant::now() + ASK_AGAIN);
        }
    }

    /// Asks where the partitions begin and end, if one has lost its position.
    fn ask(&mut self) {
        let Question::Due(when) = self.question else { return };
        if when > Instant::now() {
            return;
        }
        let mut all = Vec::new();
        for (topic, state) in self.topics.iter().filter(|(_, topic)| !topic.gone) {
            all.extend(state.partitions.iter().map(|(partition, at)| Stuck {
                topic: topic.clone(),
                partition: *partition,
                next: at.next,
            }));
        }
        self.question = match self.questions.try_send(all) {
            Ok(()) => Question::Asked,
            Err(_) => Question::Due(Instant::now() + ASK_AGAIN),
        };
    }

    /// Moves partitions whose next offset is not in the log to where the log goes on, and says so.
    fn repair(&mut self, checked: Vec<Checked>, complete: bool, output: &Output) -> Result<(), Stopped> {
        self.question = if complete { Question::None } else { Question::Due(Instant::now() + ASK_AGAIN) };
        for Checked { stuck, low, high } in checked {
            let Some(topic) = self.topics.get_mut(&stuck.topic) else { continue };
            let Some(at) = topic.partitions.get_mut(&stuck.partition) else { continue };
            // One that moved meanwhile was not stuck.
            if at.next != stuck.next || (low..=high).contains(&at.next) {
                continue;
            }
            // Before the log: retention was faster than we, go on at the oldest record. Beyond it: the log lost its
            // end; what it writes now has numbers that clients have seen, so go on where it ends.
            let next = if at.next < low { low } else { high };
            tracing::error!(
                source = self.status.source,
                topic = &*stuck.topic,
                partition = stuck.partition,
                lost = at.next,
                oldest = low,
                end = high,
                next,
                "the log no longer holds the position to read next"
            );
            self.status.figures.moved.inc();
            at.next = next;
            output.send(SourceEvent::Begin { epoch: at.epoch, position: next.unsigned_abs() })?;
        }
        // All of them: fetching has ended for the stuck ones, and which those were is not known.
        self.assign_all();
        Ok(())
    }

    fn show(&self, statistics: &Statistics) {
        let figures = &self.status.figures;
        let up: Vec<_> =
            statistics.brokers.values().filter(|broker| broker.nodeid >= 0 && broker.state == "UP").collect();
        if !up.is_empty() {
            self.status.reading_up();
        }
        figures.brokers_up.set(i64::try_from(up.len()).unwrap_or(i64::MAX));
        if let Some(slowest) = up.iter().filter_map(|broker| broker.rtt.as_ref()).map(|rtt| rtt.avg).max() {
            figures.broker_rtt.set(slowest);
        }
        figures.lag.set(self.lag(statistics));
    }

    fn lag(&self, statistics: &Statistics) -> i64 {
        let mut lag = 0_i64;
        for (topic, state) in &self.topics {
            let Some(seen) = statistics.topics.get(&**topic) else { continue };
            for (partition, at) in &state.partitions {
                let Some(seen) = seen.partitions.get(partition).filter(|seen| seen.hi_offset >= 0) else {
                    continue;
                };
                // With nothing fetched ahead the fetch offset counts: transaction markers are behind it, and no record
                // that we are ever given has their offsets.
                let read = if seen.fetchq_cnt == 0 { at.next.max(seen.next_offset) } else { at.next };
                lag = lag.saturating_add((seen.hi_offset - read).max(0));
            }
        }
        lag
    }
}

fn live_client(config: &Config, status: &Arc<Status>) -> KafkaResult<BaseConsumer<Context>> {
    config.client(Use::Live, &status.source).create_with_context(Context::new("live", status.clone(), true))
}

/// Makes a record of a message, unless it is one that came before.
fn take(topics: &mut HashMap<Arc<str>, Topic>, message: &BorrowedMessage<'_>) -> Option<Record> {
    let (topic, _) = topics.get_key_value(message.topic())?;
    let topic = topic.clone();
    let at = topics.get_mut(&topic)?.partitions.get_mut(&message.partition())?;
    if message.offset() < at.next {
        return None;
    }
    at.next = message.offset().saturating_add(1);
    Some(record_of(message, topic, at.epoch))
}

fn list_of<'a>(
    topics: impl IntoIterator<Item = (&'a Arc<str>, &'a Topic)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (topic, state) in topics {
        for (partition, at) in &state.partitions {
            list.add_partition_offset(topic, *partition, Offset::Offset(at.next))?;
        }
    }
    Ok(list)
}
