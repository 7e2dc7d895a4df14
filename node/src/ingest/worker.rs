//! The ingest thread: takes what comes, in turn, and drives the pure parts.

use std::{collections::HashSet, future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};
use tickmesh_protocol::{
    Epoch, Event, Sequence, SignedBatch, SigningKey, StreamName,
    head::{Head, HeadReply, HeadRequest},
    sequencer::Sequencer,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{DeadLetters, Outlet, Parts, history::History, publisher::Publisher};
use crate::{
    lifecycle,
    ops::{
        lifecycle::{Lifecycle, LifecycleEvents},
        metrics::{Registry, now_us, since_engine},
    },
    ports::IngestInput,
    source::{Record, SourceEvent},
    transform::{Transform, Transformed, jq::JqError},
};

/// The longest rest after publishing: a user should not notice it.
const LONGEST_REST: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    lanes: Vec<Lane>,
    /// The lane that is asked first next time, so that a busy source does not starve the others.
    next_lane: usize,
    mesh: mpsc::Receiver<IngestInput>,
    mesh_open: bool,
    core: Core,
}

struct Lane {
    source: String,
    transform: Transform,
    events: mpsc::Receiver<SourceEvent>,
    open: bool,
    ingested: IntCounter,
    latency: Histogram,
}

/// Everything but the inputs.
struct Core {
    private: Arc<HashSet<String>>,
    key: SigningKey,
    sequencer: Sequencer,
    publisher: Publisher,
    /// Nothing is published before this.
    rest_until: Instant,
    history: History,
    outlet: Arc<dyn Outlet>,
    dead_letters: DeadLetters,
    lifecycle: LifecycleEvents,
    metrics: Metrics,
}

#[derive(Clone)]
struct Metrics {
    /// Events handed to the mesh by this peer.
    published: IntCounter,
    batches: IntCounter,
    dead_letters: IntCounter,
    private: IntCounter,
    leading: IntGauge,
    history_bytes: IntGauge,
    history_batches: IntGauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Self {
            published: registry
                .counter("events_published_total", "Events that this peer published on the mesh."),
            batches: registry.counter("batches_published_total", "Signed batches that this peer published."),
            dead_letters: registry.counter("dead_letters_total", "Records that could not become events."),
            private: registry.counter(
                "events_private_total",
                "Events of private channels: sequenced, never published by gossip.",
            ),
            leading: registry.gauge("topics_led", "Topics that this peer leads."),
            history_bytes: registry.gauge("history_bytes", "Bytes of published batches in the history."),
            history_batches: registry.gauge("history_batches", "Published batches in the history."),
        }
    }
}

/// What woke the thread.
enum Wake {
    Source(usize, SourceEvent),
    SourceEnded(usize),
    Mesh(IngestInput),
    MeshEnded,
    Due { late: Duration },
    Stop,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Result<Self, JqError> {
        let ingested: IntCounterVec = parts.registry.counters(
            "events_ingested_total",
            "Events made of records, by their source.",
            &["source"],
        );
        let latency = parts.registry.latencies(
            "source_latency_seconds",
            "From the engine's timestamp to ingest, once per group of records, by source.",
            &["source"],
        );
        let lanes = parts
            .lanes
            .into_iter()
            .map(|lane| {
                Ok(Lane {
                    ingested: ingested.with_label_values(&[&lane.source]),
                    latency: latency.with_label_values(&[&lane.source]),
                    transform: Transform::new(&lane.routes, lane.channels, &parts.private)?,
                    source: lane.source,
                    events: lane.events,
                    open: true,
                })
            })
            .collect::<Result<_, JqError>>()?;
        let me = parts.key.publisher();
        Ok(Self {
            lanes,
            next_lane: 0,
            mesh: parts.mesh,
            mesh_open: true,
            core: Core {
                private: parts.private,
                sequencer: Sequencer::default(),
                publisher: Publisher::new(me, boot_id(&parts.key), parts.config),
                rest_until: Instant::now(),
                history: History::new(parts.config.history_bytes, parts.config.history_age),
                key: parts.key,
                outlet: parts.outlet,
                dead_letters: parts.dead_letters,
                lifecycle: parts.lifecycle,
                metrics: Metrics::new(&parts.registry),
            },
        })
    }

    /// Runs until `stop`, then publishes what is left.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            match self.wake(&stop).await {
                Wake::Source(lane, event) => self.core.take(&mut self.lanes[lane], event),
                Wake::SourceEnded(lane) => self.lanes[lane].open = false,
                Wake::Mesh(input) => self.take_mesh(input),
                Wake::MeshEnded => self.mesh_open = false,
                Wake::Due { late } => self.core.publisher.woken(late),
                Wake::Stop => break,
            }
            // What others published need not be published again: look before deciding.
            for _ in 0..self.mesh.len() {
                if let Ok(input) = self.mesh.try_recv() {
                    self.take_mesh(input);
                }
            }
            self.core.publish_due().await;
        }
        self.core.publish_rest().await;
    }

    /// Waits for whatever comes first. The mesh goes before the sources: what others published need not be published
    /// again.
    async fn wake(&mut self, stop: &CancellationToken) -> Wake {
        let due = self.core.next_due();
        let mut timer = pin!(async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        });
        let mut stopped = pin!(stop.cancelled());
        poll_fn(|context| {
            if stopped.as_mut().poll(context).is_ready() {
                return Poll::Ready(Wake::Stop);
            }
            if timer.as_mut().poll(context).is_ready() {
                let late = due.map_or(Duration::ZERO, |due| due.elapsed());
                return Poll::Ready(Wake::Due { late });
            }
            if self.mesh_open
                && let Poll::Ready(input) = self.mesh.poll_recv(context)
            {
                return Poll::Ready(input.map_or(Wake::MeshEnded, Wake::Mesh));
            }
            for step in 0..self.lanes.len() {
                let index = (self.next_lane + step) % self.lanes.len();
                let lane = &mut self.lanes[index];
                if lane.open
                    && let Poll::Ready(event) = lane.events.poll_recv(context)
                {
                    self.next_lane = index + 1;
                    return Poll::Ready(
                        event.map_or(Wake::SourceEnded(index), |event| Wake::Source(index, event)),
                    );
                }
            }
            Poll::Pending
        })
        .await
    }

    fn take_mesh(&mut self, input: IngestInput) {
        match input {
            IngestInput::Batch(batch) => {
                let now = Instant::now();
                self.core.publisher.seen(batch.batch(), now);
                self.core.keep(SignedBatch::clone(&batch), now);
            }
            IngestInput::Head { request, answer } => {
                let makes = |channel: &str| self.lanes.iter().any(|lane| lane.transform.makes(channel));
                // The asker may be gone; then nobody needs the answer.
                let _ = answer.send(self.core.heads(&request, makes));
            }
            IngestInput::PublisherUp(publisher) => {
                self.core.publisher.publisher_up(publisher);
                self.core.note_leading();
            }
            IngestInput::PublisherDown(publisher) => {
                self.core.publisher.publisher_down(publisher);
                self.core.note_leading();
            }
        }
    }
}

impl Core {
    fn take(&mut self, lane: &mut Lane, event: SourceEvent) {
        match event {
            SourceEvent::Begin { epoch, position, .. } => match Sequence::new(position) {
                Ok(position) => self.sequencer.begin(epoch, position),
                Err(error) => {
                    tracing::error!(source = lane.source, %error, "partition begins beyond any sequence")
                }
            },
            SourceEvent::Reached { epoch, position } => self.sequencer.passed(epoch, position),
            SourceEvent::Records(records) => {
                let now = Instant::now();
                let oldest = records.first().and_then(|record| since_engine(record.engine_time_us, now_us()));
                if let Some(latency) = oldest {
                    lane.latency.observe(latency.as_secs_f64());
                }
                for record in &records {
                    self.take_record(lane, record, now);
                }
            }
        }
    }

    fn take_record(&mut self, lane: &Lane, record: &Record, now: Instant) {
        lifecycle!(
            self.lifecycle,
            Lifecycle::KafkaMessage,
            source = lane.source,
            topic = &*record.topic,
            partition = record.partition,
            position = record.position
        );
        for outcome in lane.transform.apply(&record.topic, &record.value) {
            let outcome = outcome
                .map_err(|rejected| rejected.to_string())
                .and_then(|made| self.sequence(record, made, now).map_err(|refused| refused.to_string()));
            match outcome {
                Ok(()) => lane.ingested.inc(),
                Err(reason) => {
                    self.metrics.dead_letters.inc();
                    self.dead_letters.keep(&lane.source, record, &reason);
                }
            }
        }
    }

    fn sequence(
        &mut self,
        record: &Record,
        made: Transformed,
        now: Instant,
    ) -> Result<(), tickmesh_protocol::sequencer::Unsequenced> {
        let (sequence, previous) = self.sequencer.next(&made.stream, record.epoch, record.position)?;
        if self.private.contains(made.stream.channel()) {
            self.metrics.private.inc();
            return Ok(());
        }
        let event = Event {
            stream: made.stream,
            epoch: record.epoch,
            sequence,
            previous,
            engine_time_us: record.engine_time_us,
            data: made.data,
        };
        if let Some(topic) = self.publisher.offer(event, now) {
            self.outlet.join(&topic);
            self.note_leading();
        }
        Ok(())
    }

    fn note_leading(&self) {
        self.metrics.leading.set(i64::try_from(self.publisher.leading()).unwrap_or(i64::MAX));
    }

    fn next_due(&self) -> Option<Instant> {
        self.publisher.next_due().map(|due| due.max(self.rest_until))
    }

    /// Publishes what is due. Then it rests for as long as that took: handing batches over may take half of the time at
    /// most. When the mesh or the machine is behind, batches so become fewer and larger by themselves.
    async fn publish_due(&mut self) {
        let begun = Instant::now();
        if begun < self.rest_until {
            return;
        }
        let batches = self.publisher.take_due(begun);
        if !batches.is_empty() {
            self.send(batches).await;
            let now = Instant::now();
            self.rest_until = now + (now - begun).min(LONGEST_REST);
        }
    }

    async fn publish_rest(&mut self) {
        let batches = self.publisher.take_all(Instant::now());
        self.send(batches).await;
    }

    async fn send(&mut self, batches: Vec<tickmesh_protocol::Batch>) {
        for batch in batches {
            let events = batch.events.len() as u64;
            match SignedBatch::sign(batch, &self.key) {
                Ok(batch) => {
                    self.keep(batch.clone(), Instant::now());
                    self.outlet.publish(batch).await;
                    self.metrics.published.inc_by(events);
                    self.metrics.batches.inc();
                }
                // The limits of a batch are kept when it is put together.
                Err(error) => tracing::error!(%error, events, "batch cannot be encoded"),
            }
        }
    }

    fn keep(&mut self, batch: SignedBatch, now: Instant) {
        self.history.keep(batch, now);
        self.metrics.history_bytes.set(i64::try_from(self.history.bytes()).unwrap_or(i64::MAX));
        self.metrics.history_batches.set(i64::try_from(self.history.len()).unwrap_or(i64::MAX));
    }

    fn heads(&self, request: &HeadRequest, makes: impl Fn(&str) -> bool) -> HeadReply {
        let head = |stream: &StreamName| {
            if self.private.contains(stream.channel()) {
                Head::Private
            } else if let Some(position) = self.history.head(stream) {
                Head::At(position)
            } else if makes(stream.channel()) {
                Head::Empty
            } else {
                Head::UnknownChannel
            }
        };
        HeadReply { heads: request.streams.iter().map(head).collect() }
    }
}

/// Differs between two starts of one peer: its key and the time. It need not rise, so a clock set back does no harm.
fn boot_id(key: &SigningKey) -> u64 {
    let publisher = key.publisher();
    let seed = format!("{publisher:?} {} {}", crate::ops::metrics::now_us(), std::process::id());
    Epoch::of(&seed, 0, "boot").as_u64()
}
