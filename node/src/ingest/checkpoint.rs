//! How far this peer is, on disk: written whole beside the old file, then put in its place, so that a crash at any moment
//! leaves one of the two. A disk that is full or broken is an alarm, never a stop: the log can be read again.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge};
use tickmesh_protocol::{
    checkpoint::{MAX_STATE_BYTES, State},
    codec::{decode_state, encode_state},
};

use crate::ops::metrics::Registry;

/// A disk that stays full is said once a minute.
const ALARM_EVERY: Duration = Duration::from_secs(60);

/// Writes checkpoints, on a thread of its own: a sync may take seconds. Dropping it writes the last one and waits.
pub(super) struct Checkpoints {
    slot: Arc<Slot>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What is to be written next; a newer state takes the place of one that has not been.
#[derive(Default)]
struct Slot {
    next: Mutex<Next>,
    changed: Condvar,
}

#[derive(Default)]
struct Next {
    state: Option<Arc<State>>,
    ended: bool,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer {
    file: PathBuf,
    written: IntCounter,
    failures: IntCounter,
    bytes: IntGauge,
    alarmed: Option<Instant>,
}

impl Checkpoints {
    pub(super) fn start(file: PathBuf, registry: &Registry) -> io::Result<Self> {
        let mut writer = Writer {
            file,
            written: registry.counter("checkpoints_total", "Checkpoints written to disk."),
            failures: registry
                .counter("checkpoint_failures_total", "Checkpoints that could not be written to disk."),
            bytes: registry.gauge("checkpoint_bytes", "Size of the last checkpoint."),
            alarmed: None,
        };
        let slot = Arc::new(Slot::default());
        let theirs = Arc::clone(&slot);
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || {
            loop {
                let mut next = theirs.lock();
                let state = loop {
                    match next.state.take() {
                        Some(state) => break state,
                        None if next.ended => return,
                        None => next = theirs.changed.wait(next).unwrap_or_else(PoisonError::into_inner),
                    }
                };
                drop(next);
                writer.keep(&state);
            }
        })?;
        Ok(Self { slot, thread: Some(thread) })
    }

    /// Has a state written soon, unless a newer one comes first.
    pub(super) fn write(&self, state: Arc<State>) {
        self.slot.lock().state = Some(state);
        self.slot.changed.notify_one();
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.slot.lock().ended = true;
        self.slot.changed.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the checkpoint thread failed");
        }
    }
}

impl Writer {
    fn keep(&mut self, state: &State) {
        match encode_state(state).map_err(io::Error::other).and_then(|bytes| self.replace(&bytes)) {
            Ok(bytes) => {
                self.written.inc();
                self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
                if self.alarmed.take().is_some() {
                    tracing::info!(file = %self.file.display(), "checkpoints are written again");
                }
            }
            Err(error) => {
                self.failures.inc();
                if self.alarmed.is_none_or(|at| at.elapsed() >= ALARM_EVERY) {
                    self.alarmed = Some(Instant::now());
                    tracing::error!(file = %self.file.display(), %error, "checkpoint not written");
                }
            }
        }
    }

    /// Puts a whole file in the place of the old one.
    fn replace(&self, bytes: &[u8]) -> io::Result<usize> {
        let folder =
            self.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut beside = self.file.clone().into_os_string();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &self.file)?;
        // The name is in the folder, and that must be on disk as well.
        File::open(folder)?.sync_all()?;
        Ok(bytes.len())
    }
}

/// Reads the last checkpoint. Without a good one the peer goes on without, and the log says why.
pub fn load(file: &Path) -> Option<State> {
    let shown = file.display();
    let size = match fs::metadata(file) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::info!(file = %shown, "no checkpoint yet");
            return None;
        }
        Err(error) => {
            tracing::error!(file = %shown, %error, "checkpoint cannot be read, going on without it");
            return None;
        }
    };
    if size > MAX_STATE_BYTES as u64 {
        tracing::error!(file = %shown, size, "no checkpoint is that large, going on without it");
        return None;
    }
    let state = fs::read(file).map_err(|error| error.to_string());
    match state.and_then(|bytes| decode_state(&bytes).map_err(|error| error.to_string())) {
        Ok(state) => Some(state),
        Err(error) => {
            tracing::error!(file = %shown, error, "checkpoint is not usable, going on without it");
            None
        }
    }
}
