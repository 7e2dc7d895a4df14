//! The log, read again for feeds that ask for more than the history holds. One scan serves all who wait for the same
//! chunk, and the last chunks are kept for those who come a moment later.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use prometheus::IntCounter;
use tickmesh_protocol::{Epoch, Event, sequencer::Sequencer};
use tokio::sync::{mpsc, oneshot};

use super::{Lane, store::CHUNK};
use crate::{
    ops::metrics::Registry,
    source::{LogReader, ReadError, Record},
    transform::{Transform, jq},
};

/// Chunks that wait to be made into events, each already read.
const WAITING_CHUNKS: usize = 16;

/// What is kept of read chunks, in bytes of events.
const KEPT_BYTES: usize = 64 * 1024 * 1024;

/// How long a chunk that the log was still growing in is given out without looking again: what fifty waiters share.
const GROWING_FOR: Duration = Duration::from_millis(100);

/// How often a read that the log's server did not answer is left before it is tried again.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// The events of a chunk, or why there are none.
pub(super) type Chunk = Result<Arc<[Event]>, ReadError>;
type Reading = Shared<BoxFuture<'static, Chunk>>;

/// A part of a partition: from a position to the end of its chunk.
type Key = (Epoch, u64);

pub(super) struct Rescan {
    readers: Vec<Arc<dyn LogReader>>,
    to_transform: mpsc::Sender<Work>,
    kept: Arc<Mutex<Kept>>,
    scans: IntCounter,
    records: IntCounter,
    shared: IntCounter,
}

/// Records on their way to events.
struct Work {
    lane: usize,
    records: Vec<Record>,
    answer: oneshot::Sender<Arc<[Event]>>,
}

/// Chunks that are being read or were, by when they were asked for first.
#[derive(Default)]
struct Kept {
    chunks: HashMap<Key, Reading>,
    /// What is complete, its size and until when it may be given out; the oldest first.
    order: VecDeque<(Key, usize, Option<Instant>)>,
    bytes: usize,
}

impl Rescan {
    /// Starts the thread that makes events of what was read: filters need its large stack.
    pub(super) fn start(
        lanes: &[Lane],
        private: &Arc<HashSet<String>>,
        registry: &Registry,
    ) -> io::Result<Self> {
        let (to_transform, work) = mpsc::channel(WAITING_CHUNKS);
        let mut makers = Vec::new();
        for lane in lanes {
            makers.push((lane.routes.clone(), lane.channels));
        }
        let theirs = Arc::clone(private);
        thread::Builder::new().name("rescan".into()).stack_size(jq::STACK_BYTES).spawn(move || {
            let transforms: Result<Vec<_>, _> = makers
                .into_iter()
                .map(|(routes, channels)| Transform::new(&routes, channels, &theirs))
                .collect();
            match transforms {
                Ok(transforms) => make_events(&transforms, &theirs, work),
                // The configuration was checked with the same compiler.
                Err(error) => tracing::error!(%error, "routes do not compile"),
            }
        })?;
        Ok(Self {
            readers: lanes.iter().map(|lane| Arc::clone(&lane.reader)).collect(),
            to_transform,
            kept: Arc::default(),
            scans: registry.counter("log_rereads_total", "Chunks of a log that were read again for feeds."),
            records: registry.counter("log_reread_records_total", "Records that were read again for feeds."),
            shared: registry.counter(
                "log_rereads_shared_total",
                "Times a chunk was had from a read that others asked for.",
            ),
        })
    }

    /// The events from `begin` to the end of its chunk, each linked to the one before it in this range. Ready at once if it
    /// was read lately. To drop what waits does not end the read for others.
    pub(super) fn read(
        &self,
        source: usize,
        epoch: Epoch,
        topic: &Arc<str>,
        partition: u32,
        begin: u64,
    ) -> Reading {
        let key = (epoch, begin);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.drop_outdated();
        if let Some(reading) = kept.chunks.get(&key) {
            self.shared.inc();
            return reading.clone();
        }
        self.scans.inc();
        let reader = self.readers.get(source).cloned();
        let (to_transform, topic, records) = (self.to_transform.clone(), topic.clone(), self.records.clone());
        let until = (begin / CHUNK + 1) * CHUNK;
        let shelf = Arc::clone(&self.kept);
        let reading: BoxFuture<'static, Chunk> = Box::pin(async move {
            let chunk = async {
                let unavailable =
                    |reason: &str| ReadError::Unavailable { topic: topic.to_string(), reason: reason.into() };
                let reader = reader.ok_or_else(|| unavailable("no such source"))?;
                let read = reader.read(&topic, partition, begin, until).await?;
                records.inc_by(read.len() as u64);
                // Of another epoch: the log was made anew meanwhile.
                if read.iter().any(|record| record.epoch != epoch) {
                    return Err(ReadError::UnknownPartition { topic: topic.to_string(), partition });
                }
                let grows = read.last().is_none_or(|last| last.position + 1 < until);
                let (answer, answered) = oneshot::channel();
                let work = Work { lane: source, records: read, answer };
                to_transform.send(work).await.map_err(|_| unavailable("this peer ends"))?;
                let events = answered.await.map_err(|_| unavailable("this peer ends"))?;
                Ok((events, grows))
            };
            let (chunk, size, until) = match chunk.await {
                Ok((events, grows)) => {
                    let size = events.iter().map(|event| event.data.len() + size_of::<Event>()).sum();
                    (Ok(events), size, grows.then(|| Instant::now() + GROWING_FOR))
                }
                Err(error) => (Err(error), 0, Some(Instant::now() + FAILED_FOR)),
            };
            shelf.lock().unwrap_or_else(PoisonError::into_inner).completed(key, size, until);
            chunk
        });
        let reading = reading.shared();
        kept.chunks.insert(key, reading.clone());
        reading
    }
}

impl Kept {
    fn completed(&mut self, key: Key, size: usize, until: Option<Instant>) {
        self.bytes += size;
        self.order.push_back((key, size, until));
        while self.bytes > KEPT_BYTES {
            let Some((key, size, _)) = self.order.pop_front() else { break };
            self.bytes -= size;
            self.chunks.remove(&key);
        }
    }

    fn drop_outdated(&mut self) {
        let now = Instant::now();
        let Self { chunks, order, bytes } = self;
        order.retain(|(key, size, until)| {
            let outdated = until.is_some_and(|until| until <= now);
            if outdated {
                chunks.remove(key);
                *bytes -= size;
            }
            !outdated
        });
    }
}

fn make_events(transforms: &[Transform], private: &HashSet<String>, mut work: mpsc::Receiver<Work>) {
    while let Some(Work { lane, records, answer }) = work.blocking_recv() {
        let Some(transform) = transforms.get(lane) else { continue };
        // Whoever asked may have gone.
        let _ = answer.send(events_of(transform, private, &records).into());
    }
}

/// What ingest made of these records when it read them first. Records that became dead letters then do so again, unsaid.
fn events_of(transform: &Transform, private: &HashSet<String>, records: &[Record]) -> Vec<Event> {
    let mut sequencer = Sequencer::default();
    let mut events = Vec::new();
    for record in records {
        for made in transform.apply(&record.topic, &record.value).into_iter().flatten() {
            let Ok((sequence, previous)) = sequencer.next(&made.stream, record.epoch, record.position) else {
                continue;
            };
            if private.contains(made.stream.channel()) {
                continue;
            }
            events.push(Event {
                stream: made.stream,
                epoch: record.epoch,
                sequence,
                previous,
                engine_time_us: record.engine_time_us,
                data: made.data,
            });
        }
    }
    events
}
