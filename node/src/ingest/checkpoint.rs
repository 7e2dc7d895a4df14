//! What ingest goes on from after a restart, on local disk.
//!
//! The file is replaced as a whole: written beside its place, flushed, renamed, and the folder flushed. Whenever the
//! process or the machine ends, the file is there in whole, the new one or the one before. A disk that is full or
//! read-only never stops ingest: that is an alarm in the log and in `checkpoint_failures_total`, and the next try follows.
//! A file that cannot be used is told and put aside; the peer then asks a sibling, or starts as configured.
//!
//! A thread of its own writes, since flushing a disk may take seconds.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use prometheus::{Histogram, IntCounter, IntGauge};
use tickmesh_protocol::{
    checkpoint::{MAX_STATE_BYTES, State},
    codec::{StateError, decode_state, encode_state},
};

use crate::{
    durable::{beside, replace},
    ops::metrics::Registry,
};

/// The same trouble is told once in this time.
const ALARM_EVERY: Duration = Duration::from_secs(60);
/// How often the thread wakes to show the age of the last checkpoint.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    State(#[from] StateError),
}

/// Reads a checkpoint; `None` if there is none.
///
/// # Errors
/// If it cannot be read or used.
pub fn read(path: &Path) -> Result<Option<State>, LoadError> {
    let bytes = match fs::metadata(path) {
        Ok(file) if file.len() > MAX_STATE_BYTES as u64 => return Err(StateError::TooLarge.into()),
        Ok(_) => fs::read(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(decode_state(&bytes)?))
}

/// Reads a checkpoint. One that cannot be used is told, put aside, and done without.
pub fn load(path: &Path) -> Option<State> {
    match read(path) {
        Ok(Some(state)) => {
            let partitions: usize = state.sources.iter().map(|source| source.partitions.len()).sum();
            let streams: usize = state.sources.iter().map(|source| source.streams.len()).sum();
            tracing::info!(path = %path.display(), partitions, streams, "going on from a checkpoint");
            Some(state)
        }
        Ok(None) => {
            tracing::info!(path = %path.display(), "no checkpoint to go on from");
            None
        }
        Err(error) => {
            // A newer version may want it back, and somebody may want to know what happened to it.
            let aside = beside(path, "refused");
            let kept = fs::rename(path, &aside).is_ok();
            tracing::error!(path = %path.display(), %error, aside = %aside.display(), kept, "checkpoint cannot be used, going on without it");
            None
        }
    }
}

#[derive(Clone)]
struct Metrics {
    failures: IntCounter,
    age: IntGauge,
    bytes: IntGauge,
    seconds: Histogram,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Self {
            failures: registry.counter("checkpoint_failures_total", "Checkpoints that could not be written."),
            age: registry.gauge(
                "checkpoint_age_seconds",
                "Time since a checkpoint was written, or since the start if none was.",
            ),
            bytes: registry.gauge("checkpoint_bytes", "Size of the checkpoint that was written last."),
            seconds: registry
                .latency("checkpoint_seconds", "Time to write a checkpoint and flush it to disk."),
        }
    }
}

/// Writes checkpoints, on a thread of its own that ends with [`Writer::end`] or when this is dropped.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    woken: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// The newest state that has not been written.
    state: Option<Arc<State>>,
    ended: bool,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Starts to write to `path`, at most once in `every`.
    ///
    /// # Errors
    /// If the thread cannot be started. A path that cannot be written to is no error: it may come to be.
    pub fn spawn(path: PathBuf, every: Duration, registry: &Registry) -> io::Result<Self> {
        let shared = Arc::new(Shared { waiting: Mutex::default(), woken: Condvar::new() });
        let now = Instant::now();
        let mut job = Job {
            path,
            every,
            metrics: Metrics::new(registry),
            next: now + every,
            written: now,
            failing: None,
        };
        let of_thread = shared.clone();
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || job.run(&of_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes a state to be written when it is time. One that waits is replaced. Never waits for the disk.
    pub fn offer(&self, state: Arc<State>) {
        let before = self.shared.waiting().state.replace(state);
        self.shared.woken.notify_one();
        // Not under the lock: it may hold a million names.
        drop(before);
    }

    /// Writes what was offered last, now, and ends.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.shared.waiting().ended = true;
        self.shared.woken.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("writing checkpoints panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The state of the thread.
struct Job {
    path: PathBuf,
    every: Duration,
    metrics: Metrics,
    /// Not before this.
    next: Instant,
    /// When one was written last.
    written: Instant,
    /// Since the first failure after a success: when it was told last.
    failing: Option<Instant>,
}

impl Job {
    fn run(&mut self, shared: &Shared) {
        loop {
            let (state, ended) = self.wait(shared);
            if let Some(state) = state
                && !self.write(&state)
                && !ended
            {
                // Nothing newer may come for long.
                let mut waiting = shared.waiting();
                waiting.state.get_or_insert(state);
            }
            if ended {
                return;
            }
        }
    }

    /// Waits until there is something to write and it is time, or the end.
    fn wait(&self, shared: &Shared) -> (Option<Arc<State>>, bool) {
        let mut waiting = shared.waiting();
        loop {
            let now = Instant::now();
            self.show_age(now);
            if waiting.ended || (now >= self.next && waiting.state.is_some()) {
                return (waiting.state.take(), waiting.ended);
            }
            let left = self.next.saturating_duration_since(now);
            let longest = if left.is_zero() { SHOW_EVERY } else { left.min(SHOW_EVERY) };
            waiting = shared.woken.wait_timeout(waiting, longest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn show_age(&self, now: Instant) {
        let age = now.saturating_duration_since(self.written).as_secs();
        self.metrics.age.set(i64::try_from(age).unwrap_or(i64::MAX));
    }

    /// Whether it was written.
    fn write(&mut self, state: &State) -> bool {
        let began = Instant::now();
        let written = encode_state(state).map_err(LoadError::from).and_then(|bytes| {
            replace(&self.path, &bytes)?;
            Ok(bytes.len())
        });
        let now = Instant::now();
        self.next = now + self.every;
        match written {
            Ok(bytes) => {
                self.metrics.seconds.observe((now - began).as_secs_f64());
                self.metrics.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
                self.written = now;
                if self.failing.take().is_some() {
                    tracing::info!(path = %self.path.display(), "checkpoints are written again");
                }
                true
            }
            Err(error) => {
                self.metrics.failures.inc();
                if self.failing.is_none_or(|told| now.duration_since(told) >= ALARM_EVERY) {
                    self.failing = Some(now);
                    let age_seconds = now.saturating_duration_since(self.written).as_secs();
                    tracing::error!(path = %self.path.display(), %error, age_seconds,
                        "checkpoint cannot be written; after a restart more of the log is read again");
                }
                false
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
