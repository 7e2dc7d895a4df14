//! Reads live, on a thread of its own: librdkafka's poll blocks, and ingest may be slow.
//!
//! Order and completeness: librdkafka gives each partition's records in the order of their offsets, and this thread
//! knows for each partition the offset to come next. Whatever happens to the connection, the client or the assignment,
//! reading goes on from there: nothing is skipped, nothing is handed on twice.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc::SyncSender},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::{
    Message, Statistics, TopicPartitionList,
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
    discovery::{Asked, Checked, News, Placed},
    holding::Holding,
    numbering::{At, Extent, move_on},
    partitions::Partitions,
    term::term_of,
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

/// A message as a record. A tombstone is a record with an empty value; headers are not looked at.
pub(super) fn record_of(message: &BorrowedMessage<'_>, topic: Arc<str>, epoch: Epoch) -> Record {
    let milliseconds = message.timestamp().to_millis().unwrap_or(0);
    Record {
        topic,
        partition: message.partition().unsigned_abs(),
        position: message.offset().unsigned_abs(),
        epoch,
        term: term_of(message),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map_or_else(Bytes::new, Bytes::copy_from_slice),
        engine_time_us: u64::try_from(milliseconds).unwrap_or(0).saturating_mul(1000),
    }
}

/// The state of the reading thread.
pub(super) struct Reading {
    config: Config,
    status: Arc<Status>,
    consumer: BaseConsumer<Context>,
    partitions: Partitions,
    news: mpsc::Receiver<News>,
    questions: SyncSender<Asked>,
    question: Question,
    holding: Holding,
    /// Young partitions are not read until there is room for what is held.
    paused: bool,
    /// Numbers of partitions that ended, and nobody has been asked about yet.
    ended: BTreeSet<i32>,
    /// Not before this: where one topic is read live and another is far behind, ends are told all the time.
    probe_at: Instant,
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
        questions: SyncSender<Asked>,
    ) -> KafkaResult<Self> {
        let consumer = live_client(&config, &status)?;
        Ok(Self {
            config,
            status,
            consumer,
            partitions: Partitions::default(),
            news,
            questions,
            question: Question::None,
            holding: Holding::new(Instant::now()),
            paused: false,
            ended: BTreeSet::new(),
            probe_at: Instant::now(),
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
        if !records.is_empty() {
            self.hand_on(records, output)?;
        }
        if !self.holding.is_empty() {
            self.let_go(output)?;
        }
        for reached in self.partitions.reached() {
            output.send(reached)?;
        }
        Ok(())
    }

    fn hand_on(&self, records: Vec<Record>, output: &Output) -> Result<(), Stopped> {
        self.status.reading_up();
        self.status.figures.records.inc_by(records.len() as u64);
        let waited = output.send(SourceEvent::Records(records))?;
        if waited > LONG_STALL {
            let waited_seconds = waited.as_secs_f64();
            tracing::warn!(source = self.status.source, waited_seconds, "ingest is slower than the log");
        }
        Ok(())
    }

    /// Hands on what was held back, once older partitions are read up to where they ended since.
    fn let_go(&mut self, output: &Output) -> Result<(), Stopped> {
        let now = Instant::now();
        if self.holding.asks(now) {
            match self.questions.try_send(Asked::Ends(self.partitions.elder_places())) {
                Ok(()) => self.holding.asked(),
                Err(_) => self.holding.failed(now),
            }
        }
        let released = self.holding.release(self.partitions.elders_ended(), now);
        self.hand_on_held(&released, output)?;
        let pause = self.holding.is_full();
        if pause != self.paused && (pause || self.holding.is_empty()) {
            self.pause_young(pause);
        }
        Ok(())
    }

    /// What it waits for will not come.
    fn let_all_go(&mut self, output: &Output) -> Result<(), Stopped> {
        let all = self.holding.take_all(Instant::now());
        self.hand_on_held(&all, output)?;
        if self.paused {
            self.pause_young(false);
        }
        Ok(())
    }

    fn hand_on_held(&mut self, records: &[Record], output: &Output) -> Result<(), Stopped> {
        self.partitions.let_go(records);
        for records in records.chunks(MAX_BATCH_RECORDS) {
            self.hand_on(records.to_vec(), output)?;
        }
        Ok(())
    }

    fn pause_young(&mut self, pause: bool) {
        self.paused = pause;
        let list = self.partitions.list_young();
        let done = list.and_then(|list| match pause {
            true => self.consumer.pause(&list),
            false => self.consumer.resume(&list),
        });
        if let Err(error) = done {
            self.status.error("live", &error, "cannot pause young partitions, or go on with them");
        }
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
                    if let Some((record, held)) = self.partitions.take(&message) {
                        bytes += record.bytes();
                        if held {
                            self.holding.hold(record);
                            if self.holding.is_full() {
                                break;
                            }
                        } else {
                            records.push(record);
                        }
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.ended.insert(partition);
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
            News::Assign { topic, log, partitions } => self.add(&topic, &log, &partitions, output)?,
            News::Revoke { topic, forget } => {
                self.let_all_go(output)?;
                self.unassign(&topic);
                if forget {
                    self.status.forgotten(self.partitions.forget(&topic));
                }
            }
            News::Restore { topic } => {
                self.partitions.come_back(&topic);
                self.assign_more(self.partitions.list_of(&topic));
            }
            News::Checked { checked, complete } => {
                self.let_all_go(output)?;
                self.repair(checked, complete, output)?;
            }
            News::Ends { ends: Some(ends) } => {
                self.partitions.set_goals(&ends);
                self.holding.answered();
            }
            News::Ends { ends: None } => self.holding.failed(Instant::now()),
            News::Probed { empty, unknown } => {
                for probe in &empty {
                    self.partitions.emptied(probe);
                }
                for reached in self.partitions.reached() {
                    output.send(reached)?;
                }
                self.ended.extend(unknown.iter().map(|probe| probe.partition));
            }
        }
        self.status.figures.partitions.set(i64::try_from(self.partitions.count()).unwrap_or(i64::MAX));
        Ok(())
    }

    fn add(
        &mut self,
        topic: &Arc<str>,
        log: &Arc<str>,
        partitions: &[Placed],
        output: &Output,
    ) -> Result<(), Stopped> {
        for placed in partitions {
            self.status.set_generation(log, placed.partition, placed.at.generation);
            output.send(self.partitions.add(topic, log, *placed))?;
            let (partition, offset, generation) = (placed.partition, placed.at.next, placed.at.generation);
            tracing::info!(
                source = self.status.source,
                topic = &**topic,
                partition,
                offset,
                generation,
                "reading a partition"
            );
        }
        for reached in self.partitions.reached() {
            output.send(reached)?;
        }
        self.assign_more(self.partitions.list_some(topic, partitions));
        Ok(())
    }

    fn assign_more(&mut self, list: KafkaResult<TopicPartitionList>) {
        if let Err(error) = list.and_then(|list| self.consumer.incremental_assign(&list)) {
            self.status.error("live", &error, "cannot add partitions, assigning all anew");
            self.assign_all();
        }
    }

    fn unassign(&mut self, topic: &Arc<str>) {
        if !self.partitions.leave(topic) {
            return;
        }
        let list = self.partitions.list_of(topic);
        if let Err(error) = list.and_then(|list| self.consumer.incremental_unassign(&list)) {
            self.status.error("live", &error, "cannot take partitions away, assigning all anew");
            self.assign_all();
        }
    }

    /// Assigns every partition anew at the offset that comes next.
    fn assign_all(&mut self) {
        if let Err(error) = self.partitions.list().and_then(|list| self.consumer.assign(&list)) {
            self.status.error("live", &error, "cannot assign partitions");
            // Asking ends in another try.
            self.question = Question::Due(Instant::now() + ASK_AGAIN);
        }
    }

    /// Asks where the partitions begin and end, if one has lost its position; and whether those that may have come to
    /// their end have.
    fn ask(&mut self) {
        let now = Instant::now();
        if let Question::Due(when) = self.question
            && when <= now
        {
            self.question = match self.questions.try_send(Asked::Stuck(self.partitions.stuck())) {
                Ok(()) => Question::Asked,
                Err(_) => Question::Due(now + ASK_AGAIN),
            };
        }
        if self.ended.is_empty() || self.probe_at > now {
            return;
        }
        let probes = self.partitions.doubtful(&self.ended);
        if probes.is_empty() {
            // Those that ended are known to have.
            self.ended.clear();
            return;
        }
        if self.questions.try_send(Asked::Probe(probes)).is_ok() {
            self.ended.clear();
        }
        self.probe_at = now + ASK_AGAIN;
    }

    /// Moves partitions whose next offset is not in the log to where the log goes on, and says so.
    fn repair(&mut self, checked: Vec<Checked>, complete: bool, output: &Output) -> Result<(), Stopped> {
        self.question = if complete { Question::None } else { Question::Due(Instant::now() + ASK_AGAIN) };
        for Checked { stuck, extent, searched } in checked {
            let Some(at) = self.partitions.get(&stuck.topic, stuck.partition) else { continue };
            // One that moved meanwhile was not stuck.
            if at.next != stuck.next {
                continue;
            }
            let (log, partition) = (at.log.clone(), stuck.partition);
            let at = At {
                generation: at.generation,
                next: at.next,
                term: stuck.term,
                high: extent.high,
                first: false,
            };
            let Some(moved) = move_on(at, extent) else {
                if searched {
                    self.partitions.trust(&stuck.topic, partition);
                }
                continue;
            };
            tell_lost(&self.status, &stuck.topic, partition, at, extent, moved);
            self.status.set_generation(&log, partition, moved.generation);
            output.send(self.partitions.add(
                &stuck.topic,
                &log,
                Placed { partition, at: moved, young: false },
            ))?;
        }
        for reached in self.partitions.reached() {
            output.send(reached)?;
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
        figures.lag.set(self.partitions.lag(statistics));
    }
}

fn live_client(config: &Config, status: &Arc<Status>) -> KafkaResult<BaseConsumer<Context>> {
    config.client(Use::Live, &status.source).create_with_context(Context::new("live", status.clone(), true))
}

/// The alarm when a log no longer holds what was to be read next.
pub(super) fn tell_lost(status: &Status, topic: &str, partition: i32, at: At, extent: Extent, moved: At) {
    let (source, lost, next) = (&status.source, at.next, moved.next);
    let Extent { low: oldest, high: end, .. } = extent;
    if moved.generation == at.generation {
        tracing::error!(
            source,
            topic,
            partition,
            lost,
            oldest,
            end,
            next,
            "the log no longer holds the position to read next: records were deleted before they were read"
        );
    } else {
        tracing::error!(
            source,
            topic,
            partition,
            lost,
            oldest,
            end,
            next,
            "the log lost its end and gives the same offsets to other records: going on in another epoch"
        );
    }
    status.figures.moved.inc();
}
