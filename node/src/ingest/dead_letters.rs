//! Records that could not become events, kept for an operator to read.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

use crate::{ops::metrics::now_us, source::Record};

/// Letters kept; the oldest go first. Enough to see what is wrong with a route; a sink for all of them comes later.
pub const MAX_LETTERS: usize = 1000;

/// Bytes of a record's value that are kept; with [`MAX_LETTERS`] at most 4 MiB in all.
pub const MAX_VALUE_BYTES: usize = 4096;

/// A record that could not become an event.
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
