//! Chunks that are kept or being read: who asks for one learns which, and nobody reads what somebody else is reading.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tickmesh_protocol::{Epoch, Event};
use tokio::sync::watch;

use super::Outcome;

/// Most chunks that are kept, however small: looking for the one that is missed least goes through all.
const MAX_KEPT: usize = 4096;
/// What an event takes beside its data and the record it is made of: its fields, its name, its place in the chunk.
const EVENT_BYTES: usize = 256;
/// What a chunk takes without events, with its key.
const CHUNK_BYTES: usize = 512;

/// Which chunk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) source: usize,
    /// How often the routes had changed by then.
    pub(super) changes: u64,
    pub(super) epoch: Epoch,
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    /// A multiple of `size`.
    pub(super) start: u64,
    pub(super) size: u64,
}

impl Key {
    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// Events of a stretch of the log.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Everything from here...
    pub(super) start: u64,
    /// ...to before here is in it.
    pub(super) until: u64,
    /// In the order of their sequences.
    pub(super) events: Vec<Event>,
    bytes: usize,
}

impl Chunk {
    /// `record_bytes`: what the records take, of which events may be slices.
    pub(super) fn new(start: u64, until: u64, events: Vec<Event>, record_bytes: usize) -> Self {
        let of_events: usize = events.iter().map(|event| event.bytes() + EVENT_BYTES).sum();
        Self { start, until, events, bytes: CHUNK_BYTES + record_bytes + of_events }
    }
}

/// What there is of a chunk.
pub(super) enum Look {
    /// It is there; or, without one, known to have too many bytes.
    Kept(Option<Arc<Chunk>>),
    Reading(watch::Receiver<Outcome>),
    /// Nobody reads it: whoever asked must, and tell the others.
    Yours(watch::Sender<Outcome>),
    /// Too many are being read.
    Full,
}

/// Chunks, bounded by bytes.
pub(super) struct Cache {
    max_bytes: usize,
    max_reading: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: HashMap<Key, Kept>,
    reading: HashMap<Key, watch::Receiver<Outcome>>,
    bytes: usize,
    /// Counts looks, so that the chunk that was not looked at for the longest time is known.
    looks: u64,
}

struct Kept {
    chunk: Option<Arc<Chunk>>,
    looked: u64,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.chunk.as_ref().map_or(CHUNK_BYTES, |chunk| chunk.bytes)
    }
}

impl Cache {
    pub(super) fn new(max_bytes: usize, max_reading: usize) -> Self {
        Self { max_bytes, max_reading, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for a chunk that goes up to `until`.
    pub(super) fn look(&self, key: &Key, until: u64) -> Look {
        let mut state = self.state();
        state.looks += 1;
        let looks = state.looks;
        if let Some(kept) = state.kept.get_mut(key)
            && kept.chunk.as_ref().is_none_or(|chunk| chunk.until >= until)
        {
            kept.looked = looks;
            return Look::Kept(kept.chunk.clone());
        }
        // One whose reader is gone without a word is read anew.
        let reading = state.reading.get(key).filter(|reading| reading.has_changed().is_ok());
        if let Some(reading) = reading {
            return Look::Reading(reading.clone());
        }
        if state.reading.len() >= self.max_reading && !state.reading.contains_key(key) {
            return Look::Full;
        }
        let (done, reading) = watch::channel(None);
        state.reading.insert(key.clone(), reading);
        Look::Yours(done)
    }

    /// Keeps what has been read, if it could be.
    pub(super) fn keep(&self, key: &Key, read: Option<&Option<Arc<Chunk>>>) {
        let mut state = self.state();
        state.reading.remove(key);
        let Some(chunk) = read else { return };
        state.looks += 1;
        let kept = Kept { chunk: chunk.clone(), looked: state.looks };
        state.bytes += kept.bytes();
        if let Some(before) = state.kept.insert(key.clone(), kept) {
            state.bytes -= before.bytes();
        }
        while state.kept.len() > 1 && (state.bytes > self.max_bytes || state.kept.len() > MAX_KEPT) {
            let others = state.kept.iter().filter(|(other, _)| *other != key);
            let Some(least) = others.min_by_key(|(_, kept)| kept.looked).map(|(key, _)| key.clone()) else {
                break;
            };
            if let Some(gone) = state.kept.remove(&least) {
                state.bytes -= gone.bytes();
            }
        }
    }

    /// What is kept.
    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(start: u64) -> Key {
        Key {
            source: 0,
            changes: 0,
            epoch: Epoch::from_u64(1),
            topic: "t".into(),
            partition: 0,
            start,
            size: 8,
        }
    }

    fn chunk(start: u64, until: u64, bytes: usize) -> Option<Arc<Chunk>> {
        Some(Arc::new(Chunk::new(start, until, Vec::new(), bytes)))
    }

    fn is_kept(cache: &Cache, start: u64, until: u64) -> bool {
        matches!(cache.look(&key(start), until), Look::Kept(_))
    }

    #[test]
    fn one_reads_and_the_others_wait() {
        let cache = Cache::new(1 << 20, 2);
        let Look::Yours(done) = cache.look(&key(0), 8) else { panic!("the first reads") };
        assert!(matches!(cache.look(&key(0), 8), Look::Reading(_)));
        let Look::Yours(gone) = cache.look(&key(8), 16) else { panic!("another chunk, another read") };
        assert!(matches!(cache.look(&key(16), 24), Look::Full));
        // Whoever was to read it is gone.
        drop(gone);
        let Look::Yours(failed) = cache.look(&key(8), 16) else { panic!("read anew") };
        cache.keep(&key(8), None);
        drop(failed);
        assert!(matches!(cache.look(&key(8), 16), Look::Yours(_)), "a failure is not kept");
        cache.keep(&key(0), Some(&chunk(0, 5, 0)));
        drop(done);
        assert!(is_kept(&cache, 0, 5));
        assert!(matches!(cache.look(&key(0), 6), Look::Yours(_)), "it ends before");
    }

    #[test]
    fn it_stays_within_its_bytes_and_keeps_what_is_used() {
        let cache = Cache::new(10_000, 1);
        for start in [0, 8, 16] {
            cache.keep(&key(start), Some(&chunk(start, start + 8, 2_500)));
        }
        assert!(cache.bytes() <= 10_000);
        assert!(is_kept(&cache, 0, 8));
        cache.keep(&key(24), Some(&chunk(24, 32, 2_500)));
        assert!(cache.bytes() <= 10_000);
        assert!(is_kept(&cache, 0, 8) && is_kept(&cache, 24, 32) && is_kept(&cache, 16, 24));
        assert!(!is_kept(&cache, 8, 16), "the one that nobody looked at");
        // Larger than everything: kept alone, for those who wait.
        cache.keep(&key(32), Some(&chunk(32, 40, 50_000)));
        assert!(is_kept(&cache, 32, 40) && !is_kept(&cache, 0, 8));
        cache.keep(&key(40), Some(&None));
        assert!(matches!(cache.look(&key(40), 48), Look::Kept(None)));
        assert_eq!(cache.bytes(), CHUNK_BYTES);
    }

    #[test]
    fn a_chunk_that_is_read_again_counts_once() {
        let cache = Cache::new(10_000, 1);
        for until in 1..8 {
            cache.keep(&key(0), Some(&chunk(0, until, 1_000)));
            assert_eq!(cache.bytes(), CHUNK_BYTES + 1_000);
        }
    }
}
