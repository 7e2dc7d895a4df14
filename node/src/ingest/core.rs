//! What ingest does with what comes: number records, keep and publish events, and remember how far it is. Everything that
//! is decided here is decided by the pure parts; this holds them together.

mod changing;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tickmesh_protocol::{
    Batch, Epoch, Event, Moment, Position, PublisherKey, Sequence, SignedBatch, SigningKey, StreamName,
    checkpoint::{PartitionState, SourceState, State, StreamState},
    feed::Status,
    head::{Head, HeadReply, HeadRequest, MAX_HEAD_LEFT, MAX_HEAD_READ},
    policy::Retain,
    sequencer::{Sequencer, Unsequenced},
    takeover::{Publisher, SourceId},
};
use tokio::time::{Instant, timeout};

use super::{
    DeadLetters, Outlet,
    checkpoint::Writer,
    dead_letters::{Letter, Outbox},
    metrics::Metrics,
    overview::Overview,
    store::{Partition, Store},
    worker::Lane,
};
use crate::{
    lifecycle,
    ops::{
        lifecycle::{Lifecycle, LifecycleEvents},
        metrics::{now_us, since_engine},
    },
    signing::Signer,
    source::{Record, SourceEvent},
    transform::{Policies, Transformed},
};

/// The longest rest after publishing: a user should not notice it.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// How often the thread wakes at least: how late it notices that it was frozen, and how old what it says of itself may be.
const TICK: Duration = Duration::from_millis(250);

/// How long a peer that ends waits for the sink of its dead letters. Those that it does not take then are read again.
const LETTERS_WAIT: Duration = Duration::from_millis(400);

pub(super) struct Core {
    pub(super) region: String,
    /// Names of the sources, by their ids.
    pub(super) sources: Vec<Arc<str>>,
    pub(super) private: Arc<HashSet<String>>,
    pub(super) policies: Policies,
    /// It was said that a checkpoint does not hold all that is retained.
    pub(super) told_unfit: bool,
    pub(super) key: SigningKey,
    pub(super) signer: Arc<Signer>,
    pub(super) began: Instant,
    pub(super) sequencer: Sequencer,
    /// Of which source an epoch is, where its records are, and the term of the last one.
    pub(super) partitions: HashMap<Epoch, ReadPartition>,
    pub(super) publisher: Publisher,
    /// What the other publishers said of themselves last.
    pub(super) siblings: BTreeMap<PublisherKey, Status>,
    /// Nothing is published before this.
    pub(super) rest_until: Moment,
    pub(super) store: Arc<Store>,
    pub(super) checkpoints: Option<Writer>,
    pub(super) checkpoint_every: Duration,
    pub(super) next_checkpoint: Moment,
    /// A state that waits until its dead letters are kept.
    pub(super) held: Option<Held>,
    pub(super) next_tick: Moment,
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) dead_letters: DeadLetters,
    pub(super) lifecycle: LifecycleEvents,
    pub(super) metrics: Metrics,
}

/// A state, and how many dead letters of each source it has passed.
pub(super) struct Held {
    state: Arc<State>,
    letters: Vec<(u64, Outbox)>,
}

/// A partition that is read.
pub(super) struct ReadPartition {
    source: SourceId,
    topic: Arc<str>,
    partition: u32,
    /// Of the last record.
    term: Option<u32>,
}

impl Core {
    fn now(&self) -> Moment {
        Moment::after(self.began.elapsed())
    }

    /// Takes up where this peer, or a sibling, was.
    pub(super) fn restore(&mut self, state: &State, lanes: &mut [Lane]) {
        let now = self.now();
        for lane in lanes {
            let Some(source) = state.source(&lane.source) else { continue };
            for partition in &source.partitions {
                let PartitionState { epoch, next, read_from, term, .. } = *partition;
                self.sequencer.restore_partition(epoch, read_from, next);
                let topic = partition.topic.clone();
                self.note_partition(lane.id, epoch, topic, partition.partition, term);
            }
            for stream in &source.streams {
                self.sequencer.restore_stream(stream.name.clone(), stream.last, &stream.left);
                self.store.history.restore(&stream.name, stream.last);
                if !self.private.contains(stream.name.channel()) {
                    if let Some(retained) = &stream.retained {
                        let retain = self.policies.of(stream.name.channel()).retain;
                        self.store.retained.restore(&stream.name, stream.last, retained, retain);
                    }
                    self.replayed(lane.id, &stream.name, stream.last, now);
                }
            }
            lane.operators.restore(&source.operators);
            tracing::info!(
                source = lane.source,
                partitions = source.partitions.len(),
                streams = source.streams.len(),
                "goes on from a checkpoint"
            );
        }
    }

    fn note_partition(
        &mut self,
        source: SourceId,
        epoch: Epoch,
        topic: Arc<str>,
        partition: u32,
        term: Option<u32>,
    ) {
        if let Some(reading) = self.sequencer.reading(epoch) {
            let place = Partition {
                source: self.sources.get(usize::from(source.0)).cloned().unwrap_or_default(),
                topic: topic.clone(),
                partition,
                read_from: reading.read_from,
            };
            self.store.set_partition(epoch, place);
        }
        let known = self.partitions.remove(&epoch).and_then(|known| known.term);
        self.partitions.insert(epoch, ReadPartition { source, topic, partition, term: term.or(known) });
    }

    pub(super) fn take(&mut self, lane: &mut Lane, event: SourceEvent) {
        match event {
            SourceEvent::Begin { topic, partition, epoch, position, first, term } => {
                // Operators go on only where they stand; in another epoch, or after a hole, they begin anew.
                if self.sequencer.reading(epoch).is_none_or(|reading| reading.next != position) {
                    let former = |at: &ReadPartition| {
                        at.source == lane.id && at.topic == topic && at.partition == partition
                    };
                    let former = self.partitions.iter().filter(|(_, at)| former(at)).map(|(epoch, _)| *epoch);
                    former.for_each(|epoch| lane.operators.end(epoch));
                    lane.operators.begin(epoch, partition, first);
                } else {
                    lane.operators.go_on(epoch, partition);
                }
                match Sequence::new(position) {
                    Ok(position) => self.sequencer.begin(epoch, position, first),
                    Err(error) => {
                        tracing::error!(source = lane.source, %error, "partition begins beyond any sequence");
                    }
                }
                self.note_partition(lane.id, epoch, topic, partition, term);
                lane.warmth.begun(epoch);
            }
            SourceEvent::Reached { epoch, position } => {
                self.sequencer.passed(epoch, position);
                if lane.warmth.reached(epoch) {
                    let tier = lane.tiers.of(&self.region).unwrap_or(u8::MAX);
                    self.publisher.read_up(lane.id, tier, self.now());
                    lane.condition.waiting("warming: letting edges connect before it leads");
                }
            }
            SourceEvent::Records(records) => {
                let now = self.now();
                let oldest = records.first().and_then(|record| since_engine(record.engine_time_us, now_us()));
                if let Some(latency) = oldest.filter(|_| lane.warmth.is_warm()) {
                    lane.latency.observe(latency.as_secs_f64());
                }
                for record in &records {
                    self.take_record(lane, record, now);
                }
                self.store.history.tell();
            }
            SourceEvent::Refused { record, reason, next } => {
                self.metrics.dead_letters.inc();
                self.dead_letters.keep(&lane.source, &record, &reason);
                lane.post(&record.topic, || match record.term {
                    Some(_) => Letter::new(&lane.source, &record, std::slice::from_ref(&reason), 0),
                    None => Letter::unplaced(&lane.source, &record, &reason),
                });
                self.passed(&record, next);
            }
        }
    }

    /// From now on this peer ranks for those sources for which it has settled.
    pub(super) fn settle(&mut self, lanes: &[Lane]) {
        let now = self.now();
        for source in self.publisher.settled(now) {
            let Some(lane) = lanes.get(usize::from(source.0)) else { continue };
            lane.condition.ready();
            self.metrics.warm.with_label_values(&[&*lane.source]).set(1);
            self.store.update_status(|status| {
                for source in status.sources.iter_mut().filter(|source| source.name == lane.source) {
                    source.warm = true;
                }
            });
            // A sibling that starts now need not wait for the next.
            self.next_checkpoint = now;
        }
    }

    fn take_record(&mut self, lane: &mut Lane, record: &Record, now: Moment) {
        lifecycle!(
            self.lifecycle,
            Lifecycle::KafkaMessage,
            source = lane.source,
            topic = &*record.topic,
            partition = record.partition,
            position = record.position
        );
        let (before, mut refused) = (lane.ingested.get(), Vec::new());
        let making = lane.operators.make_in_place(&lane.transform, record);
        self.metrics.count_making(&lane.source, record, &making);
        for outcome in making.outcomes {
            let taken = outcome.and_then(|events| self.take_made(lane, record, events, now));
            if let Err(reason) = taken
                && !lane.removed
            {
                self.metrics.dead_letters.inc();
                self.dead_letters.keep(&lane.source, record, &reason);
                refused.push(reason);
            }
        }
        if !refused.is_empty() {
            let events = lane.ingested.get() - before;
            lane.post(&record.topic, || Letter::new(&lane.source, record, &refused, events));
        }
        // Whatever became of it.
        self.passed(record, record.position.saturating_add(1));
    }

    fn passed(&mut self, record: &Record, next: u64) {
        self.sequencer.passed(record.epoch, next);
        if let Some(partition) = self.partitions.get_mut(&record.epoch) {
            partition.term = record.term.or(partition.term);
        }
    }

    /// # Errors
    /// Why the record is a dead letter.
    fn take_made(
        &mut self,
        lane: &Lane,
        record: &Record,
        events: Vec<Transformed>,
        now: Moment,
    ) -> Result<(), String> {
        for event in events {
            self.sequence(lane, record, event, now).map_err(|refused| refused.to_string())?;
            lane.ingested.inc();
        }
        Ok(())
    }

    fn sequence(
        &mut self,
        lane: &Lane,
        record: &Record,
        made: Transformed,
        now: Moment,
    ) -> Result<(), Unsequenced> {
        let (sequence, previous) = self.sequencer.next(&made.stream, record.epoch, record.position)?;
        let at = Position { epoch: record.epoch, sequence };
        let signature = self.signer.sign(&made.stream, at, &made.data);
        self.metrics.signed.inc_by(u64::from(signature.is_some()));
        let event = Event {
            stream: made.stream,
            epoch: record.epoch,
            sequence,
            previous,
            engine_time_us: record.engine_time_us,
            data: made.data,
            signature,
        };
        self.store.history.keep(event.clone(), now);
        self.store.retained.keep(&event, self.policies.of(event.stream.channel()).retain);
        if self.private.contains(event.stream.channel()) {
            // It goes to the edges of its user alone, from the history.
            self.metrics.private.inc();
        } else if lane.warmth.replays(record.epoch) {
            self.metrics.replayed.inc();
            self.replayed(lane.id, &event.stream, event.position(), now);
        } else if let Some(topic) = self.publisher.offer(lane.id, event, now) {
            self.outlet.join(&topic);
        }
        Ok(())
    }

    fn replayed(&mut self, source: SourceId, stream: &StreamName, at: Position, now: Moment) {
        if let Some(topic) = self.publisher.replayed(source, stream, at, now) {
            self.outlet.join(&topic);
        }
    }

    pub(super) fn seen(&mut self, batch: &SignedBatch) {
        let now = self.now();
        self.publisher.seen(batch.batch(), now);
    }

    /// What another publisher says of itself.
    pub(super) fn status(&mut self, publisher: PublisherKey, status: &Status, lanes: &[Lane]) {
        let now = self.now();
        for lane in lanes.iter().filter(|lane| !lane.removed) {
            let warm = status.sources.iter().any(|source| source.name == lane.source && source.warm);
            let tier = lane.tiers.of(&status.region).filter(|_| warm);
            self.publisher.peer(publisher, lane.id, tier, now);
        }
        self.siblings.insert(publisher, status.clone());
    }

    /// How this peer sees the mesh.
    pub(super) fn overview(&self) -> Overview {
        let topics = self.publisher.standings().collect();
        Overview { me: self.store.status(), siblings: self.siblings.clone(), topics }
    }

    pub(super) fn publisher_down(&mut self, publisher: PublisherKey) {
        let now = self.now();
        self.publisher.peer_down(publisher, now);
        self.siblings.remove(&publisher);
    }

    /// Where streams stand; nothing, if this peer cannot know it yet.
    pub(super) fn heads(&self, request: &HeadRequest, lanes: &[Lane]) -> Option<HeadReply> {
        let head = |stream: &StreamName| {
            if self.private.contains(stream.channel()) {
                return Some(Head::Private);
            }
            if let Some(position) = self.publisher.head(stream) {
                return Some(Head::At(position));
            }
            // Its first event is about to be published, and then the answer is better.
            if self.sequencer.last(stream).is_some() {
                return None;
            }
            let makes = |lane: &&Lane| !lane.removed && lane.transform.makes(stream.channel());
            let mut makers = lanes.iter().filter(makes).peekable();
            if makers.peek().is_none() {
                return Some(Head::UnknownChannel);
            }
            // Who has not read to the end does not know that there is nothing.
            makers.all(|lane| lane.warmth.is_warm()).then_some(Head::Empty)
        };
        let heads = request.streams.iter().map(head).collect::<Option<Vec<_>>>()?;
        let mut read = Vec::new();
        if heads.contains(&Head::Empty) {
            let next = self.sequencer.partitions().filter_map(|(epoch, reading)| {
                Some(Position { epoch, sequence: Sequence::new(reading.next).ok()? })
            });
            read.extend(next.take(MAX_HEAD_READ + 1));
            if read.len() > MAX_HEAD_READ {
                // Half of it would say that the others are not read.
                read.clear();
            }
        }
        let left = request
            .streams
            .iter()
            .zip(0..)
            .flat_map(|(stream, at)| self.left(stream).map(move |epoch| (at, epoch)));
        let policy = self.policies.of(request.topic.channel());
        Some(HeadReply { heads, read, left: left.take(MAX_HEAD_LEFT).collect(), policy })
    }

    /// Epochs that a stream has left, as far as this peer knows; where it stands is none of them, whoever is ahead of whom.
    fn left(&self, stream: &StreamName) -> impl Iterator<Item = Epoch> {
        let head = self.publisher.head(stream).map(|head| head.epoch);
        let left = self.publisher.left(stream).iter().chain(self.sequencer.left(stream));
        left.copied().filter(move |epoch| Some(*epoch) != head)
    }

    pub(super) fn woken(&mut self, late: Duration) {
        let now = self.now();
        self.publisher.woken(late, now);
    }

    pub(super) fn next_due(&self) -> Instant {
        let due = self.publisher.next_due().map(|due| due.max(self.rest_until));
        let due = due.map_or(self.next_tick, |due| due.min(self.next_tick));
        self.began + due.since_start()
    }

    /// Publishes what is due. Then it rests for as long as that took: handing batches over may take half of the time at
    /// most. When the mesh or the machine is behind, batches so become fewer and larger by themselves.
    pub(super) async fn publish_due(&mut self) {
        let begun = self.now();
        if begun < self.rest_until {
            return;
        }
        let batches = self.publisher.take_due(begun);
        if !batches.is_empty() {
            self.send(batches).await;
            let now = self.now();
            self.rest_until = now + now.since(begun).min(LONGEST_REST);
        }
    }

    async fn send(&mut self, batches: Vec<Batch>) {
        for batch in batches {
            let (events, heads) = (batch.events.len() as u64, batch.heads.len() as u64);
            match SignedBatch::sign(batch, &self.key) {
                Ok(batch) => {
                    self.outlet.publish(batch).await;
                    self.metrics.published.inc_by(events);
                    self.metrics.heads.inc_by(heads);
                    self.metrics.batches.inc();
                }
                // The limits of a batch are kept when it is put together.
                Err(error) => tracing::error!(%error, events, heads, "batch cannot be encoded"),
            }
        }
    }

    /// What is done now and then.
    pub(super) fn tick(&mut self, lanes: &mut [Lane]) {
        let now = self.now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let (bytes, events) = self.store.history.size();
        self.metrics.history_bytes.set(gauge(bytes));
        self.metrics.history_events.set(gauge(events));
        self.metrics.leading.set(gauge(self.publisher.leading()));
        self.metrics.count(self.publisher.counts());
        self.metrics.books_incomplete.set(gauge(lanes.iter().map(|lane| lane.operators.incomplete()).sum()));
        let lag_us = u64::try_from(self.publisher.lateness(now).as_micros()).unwrap_or(u64::MAX);
        self.store.update_status(|status| {
            status.lag_us = lag_us;
            for source in &mut status.sources {
                if let Some(lane) = lanes.iter().rfind(|lane| lane.source == source.name) {
                    source.lag = u64::try_from(lane.lag.get()).unwrap_or(0);
                }
            }
        });
        self.release();
        if now >= self.next_checkpoint {
            self.next_checkpoint = now + self.checkpoint_every;
            self.checkpoint(lanes);
        }
    }

    fn checkpoint(&mut self, lanes: &mut [Lane]) {
        for lane in &mut *lanes {
            lane.operators
                .forget_over(|epoch| self.sequencer.reading(epoch).map_or(0, |reading| reading.next));
        }
        let mut state = self.state(lanes);
        let left_out = state.fit();
        if left_out > 0 && !std::mem::replace(&mut self.told_unfit, true) {
            tracing::warn!(
                streams = left_out,
                "a checkpoint cannot hold all that is retained; after a restart some streams have no snapshots at first"
            );
        }
        let state = Arc::new(state);
        // One that waits for its letters goes first: a newer one would wait longer.
        let outboxes = || lanes.iter().filter_map(|lane| lane.outbox.clone());
        let letters = || outboxes().map(|outbox| (outbox.put_so_far(), outbox)).collect();
        self.held.get_or_insert_with(|| Held { state, letters: letters() });
        self.release();
    }

    /// Lets the state be written, and siblings start from it, whose dead letters are kept: what it has passed is not read again.
    fn release(&mut self) {
        let Some(Held { state, .. }) =
            self.held.take_if(|held| held.letters.iter().all(|(put, outbox)| outbox.kept() >= *put))
        else {
            return;
        };
        self.store.set_state(Arc::clone(&state));
        if let Some(checkpoints) = &self.checkpoints {
            checkpoints.offer(state);
        }
    }

    /// What has to be known to go on from here.
    fn state(&self, lanes: &[Lane]) -> State {
        let mut sources: Vec<_> = lanes
            .iter()
            .map(|lane| SourceState {
                name: lane.source.clone(),
                operators: lane.operators.save(),
                ..SourceState::default()
            })
            .collect();
        for (epoch, reading) in self.sequencer.partitions() {
            let Some(at) = self.partitions.get(&epoch) else { continue };
            let Some(source) = sources.get_mut(usize::from(at.source.0)) else { continue };
            source.partitions.push(PartitionState {
                epoch,
                topic: at.topic.clone(),
                partition: at.partition,
                next: reading.next,
                read_from: reading.read_from,
                term: at.term,
            });
        }
        for (name, last, left) in self.sequencer.streams() {
            let Some(at) = self.partitions.get(&last.epoch) else { continue };
            let Some(source) = sources.get_mut(usize::from(at.source.0)) else { continue };
            let retained = match self.policies.of(name.channel()).retain {
                Retain::None => None,
                Retain::Last | Retain::Book => self.store.retained.of(name),
            };
            let retained = retained.filter(|(at, _)| *at == last).map(|(_, retained)| retained);
            source.streams.push(StreamState { name: name.clone(), last, left: left.to_vec(), retained });
        }
        // A lane that was taken away keeps its place, but not its state.
        let kept = sources.into_iter().zip(lanes).filter(|(_, lane)| !lane.removed);
        State { sources: kept.map(|(source, _)| source).collect() }
    }

    /// Publishes what is left, and keeps how far this peer came.
    pub(super) async fn finish(&mut self, lanes: &mut [Lane]) {
        let batches = self.publisher.take_all(self.now());
        self.send(batches).await;
        let outboxes = lanes.iter().filter_map(|lane| lane.outbox.as_ref());
        if timeout(LETTERS_WAIT, join_all(outboxes.map(Outbox::emptied))).await.is_ok() {
            // Nothing keeps the newest.
            self.held = None;
        }
        self.checkpoint(lanes);
        if let Some(checkpoints) = self.checkpoints.take() {
            checkpoints.end();
        }
    }
}
