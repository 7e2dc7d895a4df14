//! A small history in memory, served by feeds.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tickmesh::ports::{
    CursorStream, FeedCursor, FeedStep, FeedStore, Follow, Followed, PAGE_BYTES, Refusal, Snapshots,
};
use tickmesh_protocol::{
    Batch, Event, Position, Previous, Sequence, SignedBatch, SigningKey, StreamName, Topic,
    catalogue::{Answer, Ask, Catalogue},
    feed::{FeedEnd, Status},
};
use tokio::sync::{Notify, watch};

use super::cluster::epoch;

pub struct Store {
    key: SigningKey,
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
    pub status: watch::Sender<Status>,
    preparing: AtomicUsize,
    /// The most that prepared a page at the same time.
    pub most_preparing: AtomicUsize,
    /// Calls of `next`.
    pub calls: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    streams: BTreeMap<StreamName, Vec<Event>>,
    /// Streams of which something before their oldest event is gone.
    trimmed: HashSet<StreamName>,
    /// Topics whose log is being read: nothing to serve yet, and how: `next` waits, or gives nothing.
    reading: HashMap<Topic, bool>,
    /// Parts of a log that are looked at before there is something to serve.
    scanning: HashMap<Topic, u64>,
    states: HashMap<String, Bytes>,
}

impl Store {
    pub fn new(key: SigningKey) -> Self {
        Self {
            key,
            inner: Arc::default(),
            changed: Arc::default(),
            status: watch::Sender::default(),
            preparing: AtomicUsize::new(0),
            most_preparing: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        }
    }

    /// Adds events of a stream with data of so many bytes.
    pub fn add(&self, stream: &StreamName, count: u64, bytes: usize) {
        let mut inner = self.inner.lock().unwrap();
        let events = inner.streams.entry(stream.clone()).or_default();
        for _ in 0..count {
            let number = events.last().map_or(0, |last| last.sequence.get() + 1);
            let sequence = Sequence::new(number).unwrap();
            let previous = match events.last() {
                Some(last) => Previous::At(last.sequence),
                None => Previous::Unknown { read_from: Sequence::ZERO },
            };
            let mut data = String::with_capacity(bytes);
            write!(data, "\"{number}").unwrap();
            while data.len() + 1 < bytes {
                data.push('x');
            }
            data.push('"');
            let (stream, data) = (stream.clone(), Bytes::from(data));
            events.push(Event {
                stream,
                epoch: epoch(),
                sequence,
                previous,
                engine_time_us: 1,
                data,
                signature: None,
            });
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Forgets all but the newest events of a stream.
    pub fn trim(&self, stream: &StreamName, keep: usize) {
        let mut inner = self.inner.lock().unwrap();
        let events = inner.streams.get_mut(stream).unwrap();
        let gone = events.len() - keep;
        events.drain(..gone);
        inner.trimmed.insert(stream.clone());
    }

    /// Serves nothing of a topic for now, as if a log were read. `wait`: `next` waits instead of giving nothing.
    pub fn read_log(&self, topic: &Topic, wait: bool) {
        self.inner.lock().unwrap().reading.insert(topic.clone(), wait);
    }

    /// Looks at so many parts of a log before it serves a topic, one at each call.
    pub fn scan(&self, topic: &Topic, parts: u64) {
        self.inner.lock().unwrap().scanning.insert(topic.clone(), parts);
    }

    pub fn log_is_read(&self, topic: &Topic) {
        self.inner.lock().unwrap().reading.remove(topic);
        self.changed.notify_waiters();
    }

    pub fn set_state(&self, source: &str, state: Bytes) {
        self.inner.lock().unwrap().states.insert(source.to_owned(), state);
    }

    fn page(&self, cursor: &mut FeedCursor) -> FeedStep {
        let inner = self.inner.lock().unwrap();
        if cursor.all {
            for name in inner.streams.keys().filter(|name| cursor.topic.carries(name)) {
                if !cursor.streams.iter().any(|of| of.name == *name) {
                    cursor.streams.push(CursorStream {
                        name: name.clone(),
                        after: None,
                        end: None,
                        scanned: None,
                    });
                }
            }
        }
        let (mut events, mut bytes, mut at_head) = (Vec::new(), 0, true);
        for of in &mut cursor.streams {
            if matches!(of.end, Some(FeedEnd::Refused { .. })) {
                continue;
            }
            let kept = inner.streams.get(&of.name).map_or(&[][..], Vec::as_slice);
            let first = kept.first().map(Event::position);
            let trimmed = inner.trimmed.contains(&of.name);
            let gone = |after: Position| {
                after.epoch != epoch() || first.is_none_or(|first| after.sequence < first.sequence)
            };
            if trimmed && of.after.is_some_and(gone) {
                of.end = Some(FeedEnd::Refused { oldest: first });
                continue;
            }
            let from =
                of.after.map_or(0, |after| kept.partition_point(|event| event.sequence <= after.sequence));
            for event in &kept[from..] {
                if bytes >= PAGE_BYTES {
                    at_head = false;
                    break;
                }
                bytes += event.data.len() + 64;
                events.push(event.clone());
                of.after = Some(event.position());
            }
            of.end = Some(FeedEnd::Complete { head: kept.last().map(Event::position) });
        }
        drop(inner);
        let pages = if events.is_empty() { vec![] } else { vec![self.sign(&cursor.topic, events)] };
        FeedStep { pages, at_head }
    }

    pub fn sign(&self, topic: &Topic, events: Vec<Event>) -> SignedBatch {
        SignedBatch::sign_page(self.batch(topic, events), &self.key).unwrap()
    }

    fn batch(&self, topic: &Topic, events: Vec<Event>) -> Batch {
        Batch {
            publisher: self.key.publisher(),
            boot: 1,
            counter: 0,
            topic: topic.clone(),
            events,
            heads: vec![],
        }
    }
}

/// Private streams by how many of their events were given, and whether any are to be.
struct Follower {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
    streams: BTreeMap<StreamName, (usize, bool)>,
}

impl Follow for Follower {
    fn add(&mut self, stream: &StreamName, push: bool) -> Option<Position> {
        let inner = self.inner.lock().unwrap();
        let events = inner.streams.get(stream).map_or(&[][..], Vec::as_slice);
        self.streams.insert(stream.clone(), (events.len(), push));
        events.last().map(Event::position)
    }

    fn remove(&mut self, stream: &StreamName) {
        self.streams.remove(stream);
    }

    fn next(&mut self) -> BoxFuture<'_, Followed> {
        Box::pin(async {
            loop {
                let changed = Arc::clone(&self.changed).notified_owned();
                let mut followed = Followed::default();
                for (stream, (given, _)) in self.streams.iter_mut().filter(|(_, (_, push))| *push) {
                    let inner = self.inner.lock().unwrap();
                    let events = inner.streams.get(stream).map_or(&[][..], Vec::as_slice);
                    followed.events.extend_from_slice(&events[*given..]);
                    *given = events.len();
                }
                if !followed.events.is_empty() {
                    return followed;
                }
                changed.await;
            }
        })
    }

    fn heads(&mut self, _: usize) -> Vec<(StreamName, Option<Position>)> {
        let inner = self.inner.lock().unwrap();
        let mut heads = Vec::new();
        for (stream, (given, _)) in self.streams.iter_mut().filter(|(_, (_, push))| !push) {
            let events = inner.streams.get(stream).map_or(&[][..], Vec::as_slice);
            if events.len() > *given {
                *given = events.len();
                heads.push((stream.clone(), events.last().map(Event::position)));
            }
        }
        heads
    }
}

impl FeedStore for Store {
    fn catalogue(&self, ask: Ask) -> BoxFuture<'_, Answer> {
        let answer = match ask {
            Ask::Whole => Answer::Whole(Catalogue::default()),
            _ => Answer::Done,
        };
        Box::pin(std::future::ready(answer))
    }

    fn is_private(&self, topic: &Topic) -> bool {
        topic.channel() == "orders"
    }

    fn follow(&self) -> Option<Box<dyn Follow>> {
        let (inner, changed) = (Arc::clone(&self.inner), Arc::clone(&self.changed));
        Some(Box::new(Follower { inner, changed, streams: BTreeMap::new() }))
    }

    fn next<'a>(&'a self, cursor: &'a mut FeedCursor) -> BoxFuture<'a, Result<FeedStep, Refusal>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            loop {
                let changed = self.changed.notified();
                let reading = {
                    let mut inner = self.inner.lock().unwrap();
                    if let Some(parts) = inner.scanning.get_mut(&cursor.topic).filter(|parts| **parts > 0) {
                        *parts -= 1;
                        cursor.streams[0].scanned = Some(Sequence::new(1000 - *parts).unwrap());
                        return Ok(FeedStep::default());
                    }
                    inner.reading.get(&cursor.topic).copied()
                };
                match reading {
                    None => break,
                    Some(false) => return Ok(FeedStep::default()),
                    Some(true) => changed.await,
                }
            }
            let preparing = self.preparing.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_preparing.fetch_max(preparing, Ordering::SeqCst);
            let step = self.page(cursor);
            // Others get a chance to show that they prepare at the same time.
            tokio::task::yield_now().await;
            self.preparing.fetch_sub(1, Ordering::SeqCst);
            Ok(step)
        })
    }

    /// What is retained is the last event.
    fn snapshots(&self, topic: &Topic, streams: &[StreamName]) -> Result<Snapshots, Refusal> {
        let inner = self.inner.lock().unwrap();
        let (mut events, mut ends, mut bytes) = (Vec::new(), Vec::new(), 0);
        for stream in streams {
            if bytes >= PAGE_BYTES {
                break;
            }
            let last = inner.streams.get(stream).and_then(|events| events.last());
            ends.push(match last {
                Some(last) => FeedEnd::Complete { head: Some(last.position()) },
                None => FeedEnd::Refused { oldest: None },
            });
            bytes += last.map_or(0, |last| last.data.len());
            events.extend(last.cloned());
        }
        let page = (!events.is_empty())
            .then(|| SignedBatch::sign_snapshots(self.batch(topic, events), &self.key).unwrap());
        Ok(Snapshots { page, ends })
    }

    fn changed(&self, _: &Topic) -> BoxFuture<'_, ()> {
        // Registered by this call.
        Box::pin(self.changed.notified())
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    fn state(&self, source: &str) -> BoxFuture<'_, Option<Bytes>> {
        let state = self.inner.lock().unwrap().states.get(source).cloned();
        Box::pin(async move { state })
    }
}
