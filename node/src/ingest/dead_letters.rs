//! Records that could not become events. The last of them are kept for an operator to read; with `[dead_letters]` all go to a
//! sink as well, whole, from where they can be put back (`tickmesh dead-letters`).
//!
//! Nothing is lost on that way. A letter waits in an [`Outbox`] until its sink has it; no checkpoint is written that passes the
//! letter's record before that (`core`). So whatever is lost of the outbox with the process is read again after a restart, and
//! comes out as the same letter under the same id: readers drop by that. An outbox that is full pauses ingest of its source; the
//! log keeps the rest.

mod file;
mod journal;
mod letter;
mod outbox;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

pub use self::{
    file::{FileSink, LetterFile},
    journal::Journal,
    letter::Letter,
    outbox::{Carrier, Outbox, Sink, SinkMetrics, TopicSink},
};
use crate::{
    config::reader::{Section, Size},
    ops::metrics::now_us,
    source::Record,
};

/// Letters kept in memory; the oldest go first. Enough to see what is wrong with a route.
pub const MAX_LETTERS: usize = 1000;

/// Bytes of a record's value that are kept; with [`MAX_LETTERS`] at most 4 MiB in all.
pub const MAX_VALUE_BYTES: usize = 4096;

/// Size of the file at which another is begun, if nothing else is said: thousands of records, and little of any disk.
const FILE_BYTES: usize = 64 << 20;
/// The least that may be said: some of the largest records.
const LEAST_FILE_BYTES: usize = 1 << 20;
/// Longest name of a topic: Kafka's have at most 249.
const MAX_TOPIC_BYTES: usize = 249;

/// `[dead_letters]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub to: Destination,
    /// What has been put back is noted here, so that nothing is twice.
    pub journal: PathBuf,
}

/// Where dead letters go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    File {
        path: PathBuf,
        /// Beyond this the file is put aside, and what was put aside before is deleted.
        max_bytes: u64,
    },
    /// A topic of the log that the record came from: Kafka's name, a NATS subject, a key of Redis.
    Topic(String),
}

impl Config {
    /// Reads the section; files are relative to `folder`. `None` if a fault makes it useless; every fault is noted.
    pub fn read(section: &mut Section, folder: &Path, journal: PathBuf) -> Option<Self> {
        let (file, topic): (Option<PathBuf>, Option<String>) =
            (section.optional("file"), section.optional("topic"));
        let max_bytes: Option<Size> = section.optional("max_bytes");
        if max_bytes.is_some_and(|size| size.0 < LEAST_FILE_BYTES) {
            section.fault("max_bytes", "at least 1MiB: a record may have that much");
        }
        let to = match (file, topic) {
            (Some(file), None) => {
                let max_bytes = max_bytes.unwrap_or(Size(FILE_BYTES)).0 as u64;
                Destination::File { path: folder.join(file), max_bytes }
            }
            (None, Some(topic)) => {
                if max_bytes.is_some() {
                    section.fault("max_bytes", "is for a file; how much a topic keeps is for its log to say");
                }
                let legal =
                    |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
                if !(1..=MAX_TOPIC_BYTES).contains(&topic.len()) || !topic.bytes().all(legal) {
                    section.fault("topic", format!("{topic:?}: letters, digits, '.', '_', '-' and ':'"));
                }
                Destination::Topic(topic)
            }
            _ => {
                section.fault("file", "write file = \"data/dead-letters.jsonl\", or topic = \"tickmesh.dead-letters\"; not both");
                return None;
            }
        };
        Some(Self { to, journal })
    }
}

/// A dead letter as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// When it was refused: milliseconds since 1970 UTC.
    pub timestamp: u64,
    pub source: String,
    pub topic: String,
    pub partition: u32,
    pub position: u64,
    pub reason: String,
    /// The record's value, its beginning if it is long; bytes that are no UTF-8 are replaced.
    pub value: String,
    pub value_bytes: usize,
}

/// The last [`MAX_LETTERS`] dead letters of a peer. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct DeadLetters(Arc<Mutex<VecDeque<DeadLetter>>>);

impl DeadLetters {
    /// Keeps and logs a record. The log has where it is, not what it holds: that may be somebody's order.
    pub fn keep(&self, source: &str, record: &Record, reason: &str) {
        tracing::warn!(
            source,
            topic = &*record.topic,
            partition = record.partition,
            position = record.position,
            reason,
            "record refused"
        );
        let value = &record.value[..record.value.len().min(MAX_VALUE_BYTES)];
        let letter = DeadLetter {
            timestamp: now_us() / 1000,
            source: source.to_owned(),
            topic: record.topic.to_string(),
            partition: record.partition,
            position: record.position,
            reason: reason.to_owned(),
            value: String::from_utf8_lossy(value).into_owned(),
            value_bytes: record.value.len(),
        };
        let mut letters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if letters.len() == MAX_LETTERS {
            letters.pop_front();
        }
        letters.push_back(letter);
    }

    /// Oldest first.
    pub fn list(&self) -> Vec<DeadLetter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
