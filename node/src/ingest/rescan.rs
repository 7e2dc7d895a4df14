//! The log, read again: for those who need what is older than the history.
//!
//! Many edges lose the same events at the same moment, and then ask for the same range. So a range is read in aligned
//! chunks, each once however many wait for it, and kept for a while for those who come later:
//!
//! ```text
//! feed ─┐
//! feed ─┼─> chunk 7 of trades/0: being read ──> LogReader ──> thread "rescan": jq, numbers ──> kept
//! feed ─┘   chunk 8 of trades/0: kept
//! ```
//!
//! The events are those that were made when the log was read live, since both go through the same [`Transform`] and the
//! same [`Sequencer`], but for `previous`: of the first event of a stream in a chunk it is unknown what came before the
//! chunk, so it says [`Previous::Unknown`](tickmesh_protocol::Previous::Unknown) with the beginning of the chunk. Who
//! reads chunk after chunk knows better.
//!
//! A stream that moved to another partition and back is in both; which of its epochs count is not known here.

mod cache;
mod transforming;

use std::{
    collections::HashSet,
    io,
    ops::{Deref, Range},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use prometheus::{IntCounter, IntGauge};
use tickmesh_protocol::{Epoch, Event};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::{
    cache::{Cache, Chunk, Key, Look},
    transforming::{Programs, Transforming},
};
use crate::{
    ops::metrics::Registry,
    signing::Signer,
    source::{LogReader, ReadError, Record, Stretch},
    transform::RouteTable,
};

/// Most bytes of records in a chunk: eight of the largest, which is what the smallest step of a log holds at least. It must fit
/// the cache several times, or nobody would share it.
const MAX_CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Chunks that are read at the same time, over all sources. A source reads one at a time anyway; more than one, so that a
/// source that does not answer does not stop the others.
const READING: usize = 4;
/// Chunks that may wait for being read. Each is a page for somebody, and at a tenth of a second for each the last of
/// them waits for as long as anybody does.
const MAX_WAITING: usize = 256;
/// Longest wait for a chunk: some turns of a source that takes its ten seconds to give up.
const WAIT: Duration = Duration::from_secs(30);
/// Times a chunk is read again because retention took its beginning meanwhile.
const MAX_TRIMS: usize = 3;

/// One source, as far as it can be read again.
pub struct Log {
    pub source: String,
    pub reader: Arc<dyn LogReader>,
    pub routes: RouteTable,
    /// Channels of records that pass without a route, if the source knows them.
    pub channels: Option<&'static [&'static str]>,
}

/// A range of a partition of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    pub source: &'a str,
    pub epoch: Epoch,
    pub topic: &'a str,
    pub partition: u32,
    pub from: u64,
    pub until: u64,
}

/// Why a range cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RescanError {
    /// [`ReadError::Trimmed`] says what is the oldest that can be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the log is in epoch {now}; what it had in epoch {asked} is gone")]
    OtherEpoch { asked: Epoch, now: Epoch },
    #[error("no source {0:?} is read here")]
    UnknownSource(String),
    #[error("too many ranges are waited for")]
    Busy,
    #[error("the log did not answer in time")]
    Timeout,
    #[error("the peer is going down")]
    Ended,
}

/// Events of a range, in the order of the log: the first part of what was asked for. Shared with all who asked.
#[derive(Clone, Debug)]
pub struct Part {
    chunk: Arc<Chunk>,
    events: Range<usize>,
    /// Everything of the range before this position is here. At the end of the log it may be where the range began.
    pub next: u64,
}

impl Part {
    /// Everything from here on was looked at for the `previous` of these events.
    pub fn read_from(&self) -> u64 {
        self.chunk.start
    }
}

impl Deref for Part {
    type Target = [Event];

    fn deref(&self) -> &[Event] {
        &self.chunk.events[self.events.clone()]
    }
}

/// Reads logs again, once for all who wait. Cheap to clone; ends with its last clone.
#[derive(Clone)]
pub struct Rescan(Arc<Inner>);

struct Inner {
    /// Grows only: a source that is read no more keeps its place.
    logs: RwLock<Vec<Place>>,
    transforming: Transforming,
    cache: Cache,
    turns: Semaphore,
    stop: CancellationToken,
    metrics: Metrics,
}

/// A source, by its place.
#[derive(Clone)]
struct Place {
    source: String,
    reader: Arc<dyn LogReader>,
    /// How often its routes have changed: what was made by the former ones is not given out.
    changes: u64,
}

#[derive(Clone)]
struct Metrics {
    reads: IntCounter,
    records: IntCounter,
    shared: IntCounter,
    bytes: IntGauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Self {
            reads: registry.counter("log_rereads_total", "Ranges of logs that were read again."),
            records: registry.counter("log_reread_records_total", "Records of logs that were read again."),
            shared: registry.counter(
                "log_reread_shared_total",
                "Requests for a range of a log that was being read for others, or was still there.",
            ),
            bytes: registry.gauge("log_reread_bytes", "Bytes of ranges of logs that are kept for others."),
        }
    }
}

impl Rescan {
    /// Starts the thread that makes events; `bytes` is what is kept for others at most, a chunk at least. `stop` ends what
    /// is being read.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn new(
        logs: Vec<Log>,
        private: Arc<HashSet<String>>,
        signer: Arc<Signer>,
        bytes: usize,
        registry: &Registry,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let transforming = Transforming::start(private, signer)?;
        let turns = Semaphore::new(READING);
        let (cache, metrics) = (Cache::new(bytes, MAX_WAITING), Metrics::new(registry));
        let inner = Inner { logs: RwLock::default(), transforming, cache, turns, stop, metrics };
        let rescan = Self(Arc::new(inner));
        logs.into_iter().for_each(|log| rescan.add(log));
        Ok(rescan)
    }

    /// Takes a source more. One of the same name is forgotten.
    pub fn add(&self, log: Log) {
        let Log { source, reader, routes, channels } = log;
        // Whoever finds the log finds its programs.
        self.0.transforming.add(Programs { routes, channels });
        self.0.logs.write().unwrap_or_else(PoisonError::into_inner).push(Place {
            source,
            reader,
            changes: 0,
        });
    }

    /// Takes other routes of a source, for all that is asked after this.
    pub fn change(&self, source: &str, routes: RouteTable) {
        let mut logs = self.0.logs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((place, log)) = logs.iter_mut().enumerate().rfind(|(_, log)| log.source == source) {
            log.changes += 1;
            self.0.transforming.change(place, routes);
        }
    }

    fn place_of(&self, source: &str) -> Option<usize> {
        let logs = self.0.logs.read().unwrap_or_else(PoisonError::into_inner);
        logs.iter().rposition(|log| log.source == source)
    }

    fn place(&self, source: usize) -> Option<Place> {
        self.0.logs.read().unwrap_or_else(PoisonError::into_inner).get(source).cloned()
    }

    /// Gives the first part of a range; the rest is had by asking again from [`Part::next`] on.
    ///
    /// # Errors
    /// [`RescanError`] says why not. A range is never given with a hole in it.
    pub async fn read(&self, wanted: Wanted<'_>) -> Result<Part, RescanError> {
        let source = self.place_of(wanted.source);
        let source = source.ok_or_else(|| RescanError::UnknownSource(wanted.source.to_owned()))?;
        timeout(WAIT, self.read_of(source, wanted)).await.unwrap_or(Err(RescanError::Timeout))
    }

    async fn read_of(&self, source: usize, wanted: Wanted<'_>) -> Result<Part, RescanError> {
        let Wanted { epoch, topic, partition, from, until, .. } = wanted;
        let topic: Arc<str> = topic.into();
        let Place { reader, changes, .. } = self.place(source).ok_or(RescanError::Ended)?;
        for &size in reader.steps() {
            let start = from / size * size;
            let key = Key { source, changes, epoch, topic: topic.clone(), partition, start, size };
            let trimmed = |oldest| ReadError::Trimmed { topic: topic.to_string(), partition, from, oldest };
            match self.chunk(key, until).await {
                Ok(Some(chunk)) if chunk.start > from => return Err(trimmed(chunk.start).into()),
                Ok(Some(chunk)) => return Ok(part_of(chunk, from, until)),
                // Too many bytes; a smaller one.
                Ok(None) => {}
                // What was read began where the chunk does.
                Err(RescanError::Read(ReadError::Trimmed { oldest, .. })) => {
                    return Err(trimmed(oldest).into());
                }
                Err(error) => return Err(error),
            }
        }
        Err(ReadError::TooLarge { topic: topic.to_string() }.into())
    }

    /// The chunk of a key, read up to `until` or its own end. `None`: it has too many bytes.
    async fn chunk(&self, key: Key, until: u64) -> Result<Option<Arc<Chunk>>, RescanError> {
        let until = until.min(key.end());
        let mut joined = 0;
        loop {
            let (mut read, mine) = match self.0.cache.look(&key, until) {
                Look::Kept(chunk) => {
                    self.0.metrics.shared.inc_by(u64::from(joined == 0));
                    return Ok(chunk);
                }
                Look::Reading(read) => {
                    self.0.metrics.shared.inc_by(u64::from(joined == 0));
                    joined += 1;
                    (read, false)
                }
                Look::Yours(done) => {
                    let read = done.subscribe();
                    tokio::spawn(self.clone().read_chunk(key.clone(), done));
                    (read, true)
                }
                Look::Full => return Err(RescanError::Busy),
            };
            let outcome = read.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            // Nobody tells any more if the runtime ends.
            let chunk = outcome.unwrap_or(Err(RescanError::Ended))?;
            let enough = chunk.as_ref().is_none_or(|chunk| chunk.until >= until);
            // A read that had begun before this was asked may have met an earlier end of the log; one that began later
            // has not.
            if enough || mine || joined > 1 {
                return Ok(chunk);
            }
        }
    }

    /// Reads a chunk and tells all who wait.
    async fn read_chunk(self, key: Key, done: watch::Sender<Outcome>) {
        let stop = self.0.stop.clone();
        let outcome = stop.run_until_cancelled(self.try_read_chunk(&key)).await;
        let outcome = outcome.unwrap_or(Err(RescanError::Ended));
        self.0.cache.keep(&key, outcome.as_ref().ok());
        self.0.metrics.bytes.set(i64::try_from(self.0.cache.bytes()).unwrap_or(i64::MAX));
        done.send_replace(Some(outcome));
    }

    async fn try_read_chunk(&self, key: &Key) -> Result<Option<Arc<Chunk>>, RescanError> {
        let turn = self.0.turns.acquire().await.map_err(|_| RescanError::Ended)?;
        let Place { reader, .. } = self.place(key.source).ok_or(RescanError::Ended)?;
        let mut start = key.start;
        let mut trims = 0;
        let stretch = loop {
            self.0.metrics.reads.inc();
            match reader.read(&key.topic, key.partition, start, key.end()).await {
                Ok(stretch) => break stretch,
                Err(ReadError::TooLarge { .. }) => return Ok(None),
                // The oldest lies within this chunk; who asked for something older is told so.
                Err(ReadError::Trimmed { oldest, .. }) if oldest < key.end() && trims < MAX_TRIMS => {
                    start = oldest;
                    trims += 1;
                }
                Err(error) => return Err(error.into()),
            }
        };
        drop(turn);
        let Stretch { epoch, until, records } = stretch;
        self.0.metrics.records.inc_by(records.len() as u64);
        if epoch != key.epoch {
            return Err(RescanError::OtherEpoch { asked: key.epoch, now: epoch });
        }
        let bytes = records.iter().map(Record::bytes).sum();
        if bytes > MAX_CHUNK_BYTES {
            return Ok(None);
        }
        let events = self.0.transforming.events(key.source, epoch, start, records).await;
        let events = events.ok_or(RescanError::Ended)?;
        Ok(Some(Arc::new(Chunk::new(start, until, events, bytes))))
    }
}

/// What became of reading a chunk; `None` until that is known. A chunk that is `None` has too many bytes.
type Outcome = Option<Result<Option<Arc<Chunk>>, RescanError>>;

fn part_of(chunk: Arc<Chunk>, from: u64, until: u64) -> Part {
    let first = chunk.events.partition_point(|event| event.sequence.get() < from);
    let end = chunk.events.partition_point(|event| event.sequence.get() < until).max(first);
    let next = chunk.until.min(until).max(from);
    Part { chunk, events: first..end, next }
}

#[cfg(test)]
mod tests;
