//! What the tasks of one source know together: how it is, where streams begin, and which generation they are in.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{id::Id, link::Trouble};
use crate::{
    ops::health::Condition,
    source::{Starts, metrics::Figures},
};

/// What the tasks of one source share.
pub(super) struct Status {
    pub(super) source: String,
    servers: String,
    wanted: String,
    pub(super) figures: Figures,
    condition: Condition,
    /// What each task says of itself.
    tasks: Mutex<BTreeMap<usize, Task>>,
    /// Streams that are read or were, by key.
    streams: Mutex<HashMap<Arc<str>, Known>>,
    /// Keys that a task has.
    taken: Mutex<BTreeSet<Arc<str>>>,
    /// Where reading begins: at first as [`super::Redis`] was told, later also keys that went away for long.
    starts: Mutex<Starts>,
}

/// How a task is.
#[derive(Clone, Debug, Default)]
pub(super) struct Task {
    /// What keeps it from its work.
    pub(super) trouble: Option<String>,
    /// The server that it is connected to.
    pub(super) server: Option<String>,
    /// Streams that it reads.
    pub(super) streams: usize,
    /// Entries that are there and not read.
    pub(super) lag: u64,
    /// How long the server took to answer.
    pub(super) answer_us: i64,
}

/// What re-reading must know of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub(super) generation: u32,
    /// Where that generation began, as far as it is known.
    pub(super) begun: u64,
    /// The last entry that was read.
    pub(super) read: Id,
}

impl Status {
    pub(super) fn new(
        source: String,
        (servers, wanted): (String, String),
        figures: Figures,
        condition: Condition,
    ) -> Self {
        let (tasks, streams, taken, starts) =
            (Mutex::default(), Mutex::default(), Mutex::default(), Mutex::default());
        Self { source, servers, wanted, figures, condition, tasks, streams, taken, starts }
    }

    pub(super) fn starts(&self) -> MutexGuard<'_, Starts> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys that a task has.
    pub(super) fn taken(&self) -> MutexGuard<'_, BTreeSet<Arc<str>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known(&self, key: &str) -> Option<Known> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    pub(super) fn know(&self, key: &Arc<str>, known: Known) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), known);
    }

    /// A task says how it is.
    pub(super) fn tell(&self, task: usize, change: impl FnOnce(&mut Task)) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        change(tasks.entry(task).or_default());
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let streams = tasks.values().map(|task| task.streams).sum::<usize>();
        let servers: BTreeSet<&String> = tasks.values().filter_map(|task| task.server.as_ref()).collect();
        let lag = tasks.values().fold(0_u64, |sum, task| sum.saturating_add(task.lag));
        self.figures.partitions.set(gauge(streams));
        self.figures.brokers_up.set(gauge(servers.len()));
        self.figures.lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
        if let Some(slowest) = tasks.values().map(|task| task.answer_us).max() {
            self.figures.broker_rtt.set(slowest);
        }
        let waiting = |reason: &str| self.condition.waiting(format!("redis {}: {reason}", self.servers));
        if let Some(trouble) = tasks.values().find_map(|task| task.trouble.as_ref()) {
            return waiting(trouble);
        }
        if streams > 0 {
            return self.condition.ready();
        }
        // Until somebody has looked, nothing is known to be missing.
        if servers.is_empty() {
            return;
        }
        waiting(&format!("no stream to read; no key is there of {}", self.wanted));
    }

    /// A task got into trouble.
    pub(super) fn trouble(&self, task: usize, trouble: &Trouble) {
        self.figures.error(trouble.kind());
        self.figures.circuit.note(false);
        self.tell(task, |task| {
            task.trouble = Some(trouble.to_string());
            task.server = None;
        });
    }
}
