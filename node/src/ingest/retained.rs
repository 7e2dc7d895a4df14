//! What is kept of streams whose channel retains: the last event, or the order book. Snapshots are served from it.
//!
//! A snapshot is what the events of its stream add up to, up to its sequence: whoever takes it and then every later event
//! has what somebody has who took all of them. So a book is only whole from an event that holds all of it, and as long as
//! each event names the one before it.
//!
//! The ingest thread writes, feeds and the checkpoint read. A book is shared with who reads it and copied by the next event,
//! so that the thread waits for nobody while it is written out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::{IntCounter, IntGauge};
use tickmesh_protocol::{
    Event, Position, Previous, StreamName,
    checkpoint::{Retained, RetainedData},
    policy::Retain,
};

use crate::ops::metrics::Registry;

/// Most memory for what is retained: as much as the history takes, or a thousand books of two thousand levels. A stream
/// that would take more is forgotten until its next event; a book until the next that is whole.
const MAX_RETAINED_BYTES: usize = 256 << 20;

/// What a stream costs beside its data.
const STREAM_BYTES: usize = 256;

/// How much more a book takes in memory than as a text: a level of 25 bytes has a key of 32, and two places in the heap.
const BOOK_FACTOR: usize = 4;

pub(super) struct RetainedStreams {
    streams: Mutex<Streams>,
    broken: IntCounter,
    bytes: IntGauge,
}

struct Streams {
    by_name: HashMap<StreamName, Kept>,
    bytes: usize,
    max_bytes: usize,
    /// It was said that there is not enough memory for all.
    told_full: bool,
}

struct Kept {
    /// Of the last event.
    at: Position,
    retained: Retained,
    /// It was said that this book broke; it may do so again and again.
    told_broken: bool,
}

impl RetainedStreams {
    pub(super) fn new(registry: &Registry) -> Self {
        Self::bounded(registry, MAX_RETAINED_BYTES)
    }

    fn bounded(registry: &Registry, max_bytes: usize) -> Self {
        Self {
            streams: Mutex::new(Streams { by_name: HashMap::new(), bytes: 0, max_bytes, told_full: false }),
            broken: registry.counter(
                "books_broken_total",
                "Order books that were whole until an event was no depth message, was missed, said so, or made them too large.",
            ),
            bytes: registry.gauge("retained_bytes", "Memory taken by last events and order books, about."),
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        // No code panics while it holds the lock; if it did, what is in it would still be true.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in an event that was just sequenced.
    pub(super) fn keep(&self, event: &Event, retain: Retain) {
        let empty = match retain {
            Retain::None => return,
            Retain::Last => RetainedData::Last(event.data.clone()),
            Retain::Book => RetainedData::Book(Arc::default()),
        };
        let mut streams = self.streams();
        let (before, kept) = match streams.by_name.remove(&event.stream) {
            Some(kept) => (kept.cost(), kept),
            None => (0, Kept::new(event.position(), Retained { engine_time_us: 0, what: empty })),
        };
        let kept = self.with_event(kept, event);
        streams.put(&event.stream, kept, before);
        self.bytes.set(i64::try_from(streams.bytes).unwrap_or(i64::MAX));
    }

    /// Takes up what a checkpoint kept, if it is what the channel retains now.
    pub(super) fn restore(&self, stream: &StreamName, at: Position, retained: &Retained, retain: Retain) {
        let fits = match retained.what {
            RetainedData::Last(_) => retain == Retain::Last,
            RetainedData::Book(_) => retain == Retain::Book,
        };
        if fits {
            self.streams().put(stream, Kept::new(at, retained.clone()), 0);
        }
    }

    /// What is retained of a stream, and at which position.
    pub(super) fn of(&self, stream: &StreamName) -> Option<(Position, Retained)> {
        let streams = self.streams();
        let Kept { at, retained, .. } = streams.by_name.get(stream)?;
        let whole = !matches!(&retained.what, RetainedData::Book(book) if !book.is_whole());
        whole.then(|| (*at, retained.clone()))
    }

    fn with_event(&self, mut kept: Kept, event: &Event) -> Kept {
        match &mut kept.retained.what {
            RetainedData::Last(data) => *data = event.data.clone(),
            RetainedData::Book(shared) => {
                let was_whole = shared.is_whole();
                let book = Arc::make_mut(shared);
                let follows =
                    event.epoch == kept.at.epoch && event.previous == Previous::At(kept.at.sequence);
                if !follows {
                    book.clear();
                }
                let applied = book.apply(&event.data);
                if was_whole && !book.is_whole() {
                    self.broken.inc();
                    let reason = match applied {
                        Err(broken) => broken.to_string(),
                        Ok(()) if follows => "its event says that it is incomplete".to_owned(),
                        Ok(()) => "an event was missed, or the stream is numbered anew".to_owned(),
                    };
                    kept.tell_broken(event, &reason);
                }
            }
        }
        kept.at = event.position();
        kept.retained.engine_time_us = event.engine_time_us;
        kept
    }
}

impl Streams {
    fn put(&mut self, stream: &StreamName, kept: Kept, before: usize) {
        self.bytes = self.bytes - before + kept.cost();
        if self.bytes <= self.max_bytes {
            self.by_name.insert(stream.clone(), kept);
            return;
        }
        self.bytes -= kept.cost();
        self.by_name.remove(stream);
        if !self.told_full {
            self.told_full = true;
            tracing::warn!(%stream, max_bytes = self.max_bytes, "too much to retain; some streams have no snapshots");
        }
    }
}

impl Kept {
    fn new(at: Position, retained: Retained) -> Self {
        Self { at, retained, told_broken: false }
    }

    fn cost(&self) -> usize {
        STREAM_BYTES
            + match &self.retained.what {
                RetainedData::Last(data) => data.len(),
                RetainedData::Book(book) => BOOK_FACTOR * book.data_bytes(),
            }
    }

    /// Says it once for each stream where operators see it.
    fn tell_broken(&mut self, event: &Event, reason: &str) {
        let (stream, sequence) = (&event.stream, event.sequence.get());
        if self.told_broken {
            tracing::debug!(%stream, sequence, reason, "order book is broken, no snapshots until the next whole one");
        } else {
            self.told_broken = true;
            tracing::warn!(%stream, sequence, reason, "order book is broken, no snapshots until the next whole one");
        }
    }
}

#[cfg(test)]
mod tests;
