//! What feeds are served from: the history, and behind it the log.
//!
//! A page is made of events as this peer has them and signed when it is asked for. Where the history does not begin early
//! enough, the log is read again, in parts that all who wait share ([`super::rescan`]). What is found there is linked
//! anew: this peer has looked at everything between the reader's position and the next event, so it may say that the one
//! comes before the other, which the part alone does not tell.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tickmesh_protocol::{
    Batch, Epoch, Event, Position, Previous, Sequence, SignedBatch, SigningKey, StreamName, Topic,
    batch::MAX_BATCH_EVENTS,
    catalogue::{Answer, Ask},
    checkpoint::{SourceState, State},
    codec::{CodecError, encode_state},
    feed::{FeedEnd, Status},
    history::{self, Found, Look, linked_to},
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{
    history::History,
    rescan::{Log, Rescan, RescanError, Wanted},
    retained::RetainedStreams,
};
use crate::{
    ports::{
        CursorStream, FeedCursor, FeedStep, FeedStore, Follow, Followed, PAGE_BYTES, Refusal, Snapshots,
    },
    signing::Signer,
    source::ReadError,
    transform::RouteTable,
};

/// A question about the catalogue, and where its answer goes.
pub type Asked = (Ask, oneshot::Sender<Answer>);

/// The history of an ingest peer and what is behind it, shared by the ingest thread and all feeds.
pub(super) struct Store {
    pub(super) history: History,
    pub(super) retained: RetainedStreams,
    key: SigningKey,
    /// Signs snapshots for clients.
    signer: Arc<Signer>,
    boot: u64,
    private: Arc<HashSet<String>>,
    /// Channels that operators make: the log does not say again what was told.
    computed: Mutex<HashSet<String>>,
    /// Who answers about the catalogue.
    catalogue: mpsc::Sender<Asked>,
    status: watch::Sender<Status>,
    partitions: Mutex<HashMap<Epoch, Partition>>,
    /// What a sibling that starts is given: as old as the last checkpoint.
    state: Mutex<Arc<State>>,
    rescan: Rescan,
}

/// What a store is made of.
pub(super) struct StoreParts {
    pub(super) history: History,
    pub(super) retained: RetainedStreams,
    pub(super) key: SigningKey,
    pub(super) signer: Arc<Signer>,
    pub(super) boot: u64,
    pub(super) private: Arc<HashSet<String>>,
    pub(super) computed: HashSet<String>,
    pub(super) catalogue: mpsc::Sender<Asked>,
    pub(super) status: Status,
    pub(super) rescan: Rescan,
}

/// Where the records of an epoch are, and which of them became events of this peer.
#[derive(Clone, Debug)]
pub(super) struct Partition {
    pub(super) source: Arc<str>,
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    /// Everything from here on was sequenced.
    pub(super) read_from: Sequence,
}

/// A part of the log that has to be looked at for one stream of a feed: its place in the cursor.
type StreamLook = (usize, Look);

impl Store {
    pub(super) fn new(parts: StoreParts) -> Self {
        let StoreParts { history, retained, key, signer, boot, private, computed, catalogue, status, rescan } =
            parts;
        Self {
            history,
            retained,
            key,
            signer,
            boot,
            private,
            computed: Mutex::new(computed),
            catalogue,
            status: watch::Sender::new(status),
            partitions: Mutex::default(),
            state: Mutex::default(),
            rescan,
        }
    }

    /// Notes where the records of an epoch are, and from where on they were read.
    pub(super) fn set_partition(&self, epoch: Epoch, partition: Partition) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).insert(epoch, partition);
    }

    pub(super) fn set_state(&self, state: Arc<State>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// What this peer says of itself.
    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(super) fn update_status(&self, update: impl FnOnce(&mut Status)) {
        self.status.send_modify(update);
    }

    fn partition(&self, epoch: Epoch) -> Option<Partition> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).get(&epoch).cloned()
    }

    fn is_warm(&self) -> bool {
        self.status.borrow().sources.iter().all(|source| source.warm)
    }

    fn is_computed(&self, channel: &str) -> bool {
        self.computed.lock().unwrap_or_else(PoisonError::into_inner).contains(channel)
    }

    /// Takes note of channels that operators make. What one has made once the log does not say again.
    pub(super) fn add_computed(&self, channels: impl IntoIterator<Item = String>) {
        self.computed.lock().unwrap_or_else(PoisonError::into_inner).extend(channels);
    }

    /// Takes a source more, to be read again.
    pub(super) fn add_log(&self, log: Log) {
        self.rescan.add(log);
    }

    /// Takes other routes of a source.
    pub(super) fn change_routes(&self, source: &str, routes: RouteTable) {
        self.rescan.change(source, routes);
    }

    fn find(&self, stream: &CursorStream) -> Found {
        let after = self.history.after(&stream.name, stream.after);
        let read_from = |epoch| self.partition(epoch).map(|partition| partition.read_from);
        match history::find(after, stream.after, stream.scanned, read_from) {
            Found::Look(look) if self.is_computed(stream.name.channel()) => {
                Found::Lost { oldest: look.oldest }
            }
            found => found,
        }
    }

    fn next(self: &Arc<Self>, cursor: &mut FeedCursor) -> Result<FeedStep, Refusal> {
        if cursor.all {
            for name in self.history.streams(&cursor.topic) {
                if cursor.streams.iter().all(|stream| stream.name != name) {
                    cursor.streams.push(CursorStream::new(name, None));
                }
            }
        }
        let (mut held, mut looks) = (Vec::new(), Vec::new());
        for index in 0..cursor.streams.len() {
            let stream = &mut cursor.streams[index];
            if matches!(stream.end, Some(FeedEnd::Refused { .. })) {
                continue;
            }
            stream.end = None;
            match self.find(stream) {
                Found::Held { head } => held.push((index, head)),
                Found::Nothing => stream.end = Some(FeedEnd::Complete { head: None }),
                Found::Look(look) => looks.push((index, look)),
                Found::Lost { oldest } => stream.end = Some(FeedEnd::Refused { oldest }),
            }
        }
        if held.len() < cursor.streams.len() && !self.is_warm() {
            return Err(not_warm());
        }
        if let Some(step) = self.step_of_history(cursor, &held)? {
            return Ok(step);
        }
        if looks.is_empty() {
            return Ok(FeedStep { pages: Vec::new(), at_head: true });
        }
        self.step_of_log(cursor, &looks)
    }

    /// Gives what is held; `None` if there is nothing.
    fn step_of_history(
        &self,
        cursor: &mut FeedCursor,
        held: &[(usize, Option<Position>)],
    ) -> Result<Option<FeedStep>, Refusal> {
        let wanted: Vec<_> = held
            .iter()
            .map(|(index, _)| (cursor.streams[*index].name.clone(), cursor.streams[*index].after))
            .collect();
        let page = self.history.page(&wanted, PAGE_BYTES);
        if page.events.is_empty() {
            for (index, head) in held {
                cursor.streams[*index].end = Some(FeedEnd::Complete { head: *head });
            }
            return Ok(None);
        }
        self.give(cursor, page.events).map(Some)
    }

    /// Signs events, and moves the cursor behind them.
    fn give(&self, cursor: &mut FeedCursor, events: Vec<Event>) -> Result<FeedStep, Refusal> {
        let mut last: HashMap<&StreamName, Position> = HashMap::new();
        for event in &events {
            last.insert(&event.stream, event.position());
        }
        for stream in &mut cursor.streams {
            if let Some(position) = last.get(&stream.name) {
                stream.after = Some(*position);
            }
        }
        drop(last);
        let page = SignedBatch::sign_page(self.page(&cursor.topic, events), &self.key);
        Ok(FeedStep { pages: vec![signed(page, &cursor.topic)?], at_head: false })
    }

    fn page(&self, topic: &Topic, events: Vec<Event>) -> Batch {
        Batch {
            publisher: self.key.publisher(),
            boot: self.boot,
            counter: 0,
            topic: topic.clone(),
            events,
            heads: Vec::new(),
        }
    }

    /// With [`PAGE_BYTES`] at most before the last one, which is at most as large as an event may be, they fit one batch.
    fn snapshots(&self, topic: &Topic, streams: &[StreamName]) -> Result<Snapshots, Refusal> {
        if !self.is_warm() {
            return Err(not_warm());
        }
        let (mut events, mut ends, mut bytes) = (Vec::new(), Vec::new(), 0);
        for stream in streams {
            if bytes >= PAGE_BYTES || events.len() == MAX_BATCH_EVENTS {
                break;
            }
            let Some((at, retained)) = self.retained.of(stream) else {
                ends.push(FeedEnd::Refused { oldest: None });
                continue;
            };
            // A book is written out here, while nothing is locked.
            let Some(data) = retained.data() else {
                ends.push(FeedEnd::Refused { oldest: None });
                continue;
            };
            bytes += data.len();
            ends.push(FeedEnd::Complete { head: Some(at) });
            events.push(Event {
                stream: stream.clone(),
                epoch: at.epoch,
                sequence: at.sequence,
                // It stands for everything before it.
                previous: Previous::Unknown { read_from: at.sequence },
                engine_time_us: retained.engine_time_us,
                signature: self.signer.sign(stream, at, &data),
                data,
            });
        }
        if events.is_empty() {
            return Ok(Snapshots { page: None, ends });
        }
        let page = SignedBatch::sign_snapshots(self.page(topic, events), &self.key);
        Ok(Snapshots { page: Some(signed(page, topic)?), ends })
    }

    /// Looks at the next part of the log, for all streams that need it.
    fn step_of_log(
        self: &Arc<Self>,
        cursor: &mut FeedCursor,
        looks: &[StreamLook],
    ) -> Result<FeedStep, Refusal> {
        let waiting = Ok(FeedStep::default());
        let Some((_, first)) = looks.iter().min_by_key(|(_, look)| (look.epoch.as_u64(), look.from)) else {
            return waiting;
        };
        let mut here: Vec<_> = looks.iter().filter(|(_, look)| look.epoch == first.epoch).copied().collect();
        let (epoch, from) = (first.epoch, first.from);
        let until = here.iter().map(|(_, look)| look.until).max().unwrap_or(from);
        let Some(Partition { source, topic, partition, .. }) = self.partition(epoch) else {
            return refuse(cursor, &here);
        };
        let rescan = self.rescan.clone();
        let mut read: BoxFuture<'static, _> = Box::pin(async move {
            let wanted = Wanted { source: &source, epoch, topic: &topic, partition, from, until };
            rescan.read(wanted).await
        });
        let Some(read) = (&mut read).now_or_never() else {
            let (store, topic) = (Arc::clone(self), cursor.topic.clone());
            tokio::spawn(async move {
                // Whoever waits asks again, and then finds it.
                let _ = read.await;
                store.history.wake(&topic);
            });
            return waiting;
        };
        match read {
            Ok(part) => {
                // At the end of the log there is no more, whatever was expected.
                let end = if part.next > from { part.next } else { until };
                here.retain(|(_, look)| look.from < end);
                self.give_part(cursor, &here, &part, end)
            }
            Err(RescanError::Read(ReadError::Trimmed { oldest, .. })) => {
                for (stream, look) in here.iter().filter(|(_, look)| look.from < oldest) {
                    cursor.streams[*stream].end = Some(FeedEnd::Refused { oldest: look.left_by(oldest) });
                }
                waiting
            }
            Err(RescanError::OtherEpoch { .. } | RescanError::Read(ReadError::UnknownPartition { .. })) => {
                refuse(cursor, &here)
            }
            Err(error) => Err(Refusal(error.to_string().into())),
        }
    }

    fn give_part(
        &self,
        cursor: &mut FeedCursor,
        looks: &[StreamLook],
        events: &[Event],
        end: u64,
    ) -> Result<FeedStep, Refusal> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for (stream, look) in looks {
            let stream = &mut cursor.streams[*stream];
            let mut after = stream.after;
            let mut until = look.until.min(end);
            let in_reach = |event: &&Event| {
                event.epoch == look.epoch && (look.from..until).contains(&event.sequence.get())
            };
            for event in events.iter().filter(|event| event.stream == stream.name).filter(in_reach) {
                if bytes >= PAGE_BYTES || found.len() >= MAX_BATCH_EVENTS {
                    // The rest is looked at again.
                    until = event.sequence.get();
                    break;
                }
                bytes += event.bytes();
                found.push(Event { previous: linked_to(after, event.position()), ..event.clone() });
                after = Some(event.position());
            }
            stream.scanned = Sequence::new(until).ok();
        }
        if found.is_empty() {
            return Ok(FeedStep::default());
        }
        self.give(cursor, found)
    }
}

fn not_warm() -> Refusal {
    Refusal("this peer has not read its logs to the end yet".into())
}

fn signed(page: Result<SignedBatch, CodecError>, topic: &Topic) -> Result<SignedBatch, Refusal> {
    page.map_err(|error| {
        tracing::error!(%topic, %error, "page cannot be encoded");
        Refusal("the page cannot be encoded".into())
    })
}

/// Refuses streams for good: their log is not here any more.
fn refuse(cursor: &mut FeedCursor, looks: &[StreamLook]) -> Result<FeedStep, Refusal> {
    for (stream, look) in looks {
        cursor.streams[*stream].end = Some(FeedEnd::Refused { oldest: look.oldest });
    }
    Ok(FeedStep::default())
}

/// What feeds ask, with the [`Arc`] that reading the log needs.
pub(super) struct Feeds(pub(super) Arc<Store>);

impl FeedStore for Feeds {
    fn next<'a>(&'a self, cursor: &'a mut FeedCursor) -> BoxFuture<'a, Result<FeedStep, Refusal>> {
        Box::pin(async move { self.0.next(cursor) })
    }

    fn snapshots(&self, topic: &Topic, streams: &[StreamName]) -> Result<Snapshots, Refusal> {
        self.0.snapshots(topic, streams)
    }

    fn changed(&self, topic: &Topic) -> BoxFuture<'_, ()> {
        let notified = self.0.history.notify(topic).notified_owned();
        Box::pin(notified)
    }

    fn is_private(&self, topic: &Topic) -> bool {
        self.0.private.contains(topic.channel())
    }

    fn follow(&self) -> Option<Box<dyn Follow>> {
        let (id, notify) = self.0.is_warm().then(|| self.0.history.begin_following())?;
        Some(Box::new(Follower { store: Arc::clone(&self.0), id, notify }))
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    fn catalogue(&self, ask: Ask) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let refused =
                || Answer::Refused { reason: "this peer is starting, or ending".into(), busy: true };
            match self.0.catalogue.send((ask, answer)).await {
                Ok(()) => answered.await.unwrap_or_else(|_| refused()),
                Err(_) => refused(),
            }
        })
    }

    fn state(&self, source: &str) -> BoxFuture<'_, Option<Bytes>> {
        let warm = self.0.status.borrow().sources.iter().any(|known| known.name == source && known.warm);
        if !warm {
            return Box::pin(std::future::ready(None));
        }
        let state = Arc::clone(&self.0.state.lock().unwrap_or_else(PoisonError::into_inner));
        let state = state.source(source).map(|source: &SourceState| State { sources: vec![source.clone()] });
        let bytes = state.and_then(|state| encode_state(&state).ok()).map(Bytes::from);
        Box::pin(std::future::ready(bytes))
    }
}

/// Follows private streams; what is kept for it is in the history.
struct Follower {
    store: Arc<Store>,
    id: usize,
    notify: Arc<Notify>,
}

impl Follow for Follower {
    fn add(&mut self, stream: &StreamName, push: bool) -> Option<Position> {
        self.store.history.follow(self.id, stream, push)
    }

    fn remove(&mut self, stream: &StreamName) {
        self.store.history.unfollow(self.id, stream);
    }

    fn next(&mut self) -> BoxFuture<'_, Followed> {
        Box::pin(async move {
            loop {
                let followed = self.store.history.take_followed(self.id, PAGE_BYTES);
                if !followed.events.is_empty() || !followed.heads.is_empty() {
                    return followed;
                }
                // It keeps one notification that comes before this.
                self.notify.notified().await;
            }
        })
    }

    fn heads(&mut self, most: usize) -> Vec<(StreamName, Option<Position>)> {
        self.store.history.take_heads(self.id, most)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.store.history.end_following(self.id);
    }
}
