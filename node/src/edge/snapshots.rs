//! What clients of a channel that retains begin with: snapshots, fetched from an ingest peer once for all who come within the
//! next events, and kept as long as recent frames reach back to them.
//!
//! A snapshot at S is sent, and its cursor (`resume`) stands at S: everything after it follows, whether this edge is before S,
//! at it or beyond it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tickmesh_protocol::{
    Event, StreamName, Topic,
    client::Mark,
    feed::FeedEnd,
    fetching::{Fetching, MAX_FETCH_STREAMS},
    repair::Fetched,
};
use tokio::sync::mpsc;

use super::{
    fetch::{self, Part},
    frame,
    recent::RecentFrame,
    replay::{Ask, GATHER, Parts, Replayed, Running, Waiter, gather, pause_after},
};

/// Bytes of snapshots that an edge keeps: some six hundred books of a thousand levels a side.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// Most events after a snapshot for which it is given out again; a client takes them in one go. Many clients that come at once
/// share a snapshot of the busiest stream, and a quiet stream is asked for once in minutes.
pub const FRESH_FRAMES: usize = 256;

/// Fetches of snapshots at a time, over all topics. They are short, and beside those of events.
pub const MAX_SNAPSHOT_FETCHES: usize = 8;

/// The newest snapshot of each stream that was fetched lately, as frames.
#[derive(Debug)]
pub struct Snapshots(Mutex<Cache>);

#[derive(Debug)]
struct Cache {
    max_bytes: usize,
    bytes: usize,
    /// Rises with every snapshot.
    serial: u64,
    /// By age.
    order: BTreeMap<u64, StreamName>,
    by_name: HashMap<StreamName, (u64, RecentFrame)>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self::bounded(MAX_BYTES)
    }
}

impl Snapshots {
    fn bounded(max_bytes: usize) -> Self {
        let (order, by_name) = (BTreeMap::new(), HashMap::new());
        Self(Mutex::new(Cache { max_bytes, bytes: 0, serial: 0, order, by_name }))
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // No code panics while it holds the lock; if it did, what is in the cache would still be true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, stream: &StreamName) -> Option<RecentFrame> {
        self.cache().by_name.get(stream).map(|(_, frame)| frame.clone())
    }

    /// Keeps a snapshot instead of the one before; of too many the oldest go.
    fn keep(&self, stream: StreamName, frame: RecentFrame) {
        let mut cache = self.cache();
        cache.forget(&stream);
        cache.serial += 1;
        let serial = cache.serial;
        cache.bytes += frame.bytes.len();
        cache.order.insert(serial, stream.clone());
        cache.by_name.insert(stream, (serial, frame));
        while cache.bytes > cache.max_bytes
            && let Some((_, oldest)) = cache.order.pop_first()
        {
            cache.forget(&oldest);
        }
    }
}

impl Cache {
    fn forget(&mut self, stream: &StreamName) {
        if let Some((serial, frame)) = self.by_name.remove(stream) {
            self.order.remove(&serial);
            self.bytes -= frame.bytes.len();
        }
    }
}

/// The task that fetches snapshots of one topic.
pub struct TopicSnapshots {
    pub topic: Topic,
    pub parts: Arc<Parts>,
    pub asks: mpsc::Receiver<Ask>,
    pub waiting: BTreeMap<StreamName, Vec<Waiter>>,
}

impl TopicSnapshots {
    pub async fn run(mut self) {
        let (mut failures, mut time) = (0, GATHER);
        loop {
            let waiting = &mut self.waiting;
            let nobody = waiting.is_empty();
            if !gather(&mut self.asks, nobody, time, |ask| add(waiting, ask)).await {
                return;
            }
            if self.fetch(failures).await {
                (failures, time) = (0, GATHER);
            } else {
                failures += 1;
                time = pause_after(failures);
            }
        }
    }

    /// Makes one fetch, for all who come before it ends; whether it did not fail.
    async fn fetch(&mut self, attempt: u32) -> bool {
        let parts = Arc::clone(&self.parts);
        // It is never closed.
        let _turn = parts.snapshot_fetches.acquire().await.ok();
        let servers: Vec<_> = parts.upstream.servers().borrow().keys().copied().collect();
        let streams = self.waiting.keys().take(MAX_FETCH_STREAMS).map(|name| (name.clone(), None));
        let fetching = Fetching::new(&self.topic, streams.collect(), servers, attempt);
        let (to, mut from) = mpsc::channel(1);
        let upstream = Arc::clone(&parts.upstream);
        let run = fetch::run(0, fetch::Kind::Snapshots, self.topic.clone(), fetching, upstream, to);
        let _running = Running(tokio::spawn(run).abort_handle());
        let mut given = HashMap::new();
        loop {
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => add(&mut self.waiting, ask),
                    None => return true,
                },
                part = from.recv() => match part {
                    Some((_, Part::Page(page))) => {
                        for event in &page.batch().events {
                            let frame = snapshot_of(event);
                            parts.snapshots.keep(event.stream.clone(), frame.clone());
                            self.answer(&event.stream, Some(&frame));
                            given.insert(event.stream.clone(), frame);
                        }
                    }
                    Some((_, Part::Slow(_))) => {}
                    Some((_, Part::Results(results))) => return self.ended(results, &given),
                    None => return false,
                },
            }
        }
    }

    /// Answers those whom the fetch leaves; whether it did not fail.
    fn ended(
        &mut self,
        results: Vec<(StreamName, Fetched)>,
        given: &HashMap<StreamName, RecentFrame>,
    ) -> bool {
        let mut failed = false;
        for (stream, fetched) in results {
            match (fetched, given.get(&stream)) {
                // Who asked when it had just come.
                (_, Some(frame)) => self.answer(&stream, Some(frame)),
                (Fetched::Ended(FeedEnd::Refused { .. }), None) => self.answer(&stream, None),
                (Fetched::Ended(FeedEnd::Complete { .. }) | Fetched::Failed, None) => failed = true,
            }
        }
        !failed
    }

    fn answer(&mut self, stream: &StreamName, frame: Option<&RecentFrame>) {
        for waiter in self.waiting.remove(stream).unwrap_or_default() {
            self.parts.tell(waiter, Replayed::Snapshot(frame.cloned()));
        }
    }
}

fn add(waiting: &mut BTreeMap<StreamName, Vec<Waiter>>, Ask { stream, waiter, .. }: Ask) {
    waiting.entry(stream).or_default().push(waiter);
}

/// Makes the frame of a snapshot.
fn snapshot_of(event: &Event) -> RecentFrame {
    RecentFrame {
        position: event.position(),
        engine_time_us: event.engine_time_us,
        reset: None,
        bytes: frame::marked(&frame::data(event), Mark::Snapshot),
    }
}

#[cfg(test)]
mod tests {
    use tickmesh_protocol::{Epoch, Position, Sequence};

    use super::*;

    #[test]
    fn the_newest_snapshots_are_kept_within_the_bound() {
        let snapshots = Snapshots::bounded(250);
        let name = |number: u64| -> StreamName { format!("depth.s{number}").parse().unwrap() };
        let frame = |sequence| RecentFrame {
            position: Position { epoch: Epoch::from_u64(1), sequence: Sequence::new(sequence).unwrap() },
            engine_time_us: 0,
            reset: None,
            bytes: vec![0; 100].into(),
        };
        let held = |number| snapshots.get(&name(number)).map(|frame| frame.position.sequence.get());
        snapshots.keep(name(1), frame(1));
        snapshots.keep(name(2), frame(2));
        snapshots.keep(name(1), frame(3));
        assert_eq!((held(1), held(2)), (Some(3), Some(2)), "one of each stream");
        snapshots.keep(name(3), frame(4));
        assert_eq!((held(1), held(2), held(3)), (Some(3), None, Some(4)), "the oldest goes");
        assert_eq!(snapshots.cache().order.len(), 2);
    }
}
