//! Servers of feeds, played: all have the same log, each in its own manner.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tickmesh::edge::{Servers, Unavailable};
use tickmesh_protocol::{
    Batch, Event, Previous, PublisherKey, SignedBatch, StreamName, Topic,
    book::Book,
    feed::{Denial, FeedEnd, FeedFrame, PrivateChange},
    fetching::Ask,
};
use tokio::{
    sync::{mpsc, watch},
    time::interval,
};

use super::support::signing_key;

/// Events in one page.
const PAGE_EVENTS: usize = 100;

/// How a server behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    #[default]
    Serves,
    /// It goes away after so many pages.
    Fails { after: usize },
    /// It keeps the feed open and says nothing.
    Frozen,
    /// It has lost everything before this sequence.
    Begins { at: u64 },
}

pub struct Played {
    connected: watch::Sender<Servers>,
    state: Mutex<State>,
    /// Whether pages are given out now.
    gate: watch::Sender<bool>,
    private: Mutex<Private>,
}

/// What servers were told on private feeds.
#[derive(Default)]
struct Private {
    feeds: HashMap<PublisherKey, mpsc::Sender<FeedFrame>>,
    told: Vec<(PublisherKey, PrivateChange)>,
    pushing: HashMap<PublisherKey, BTreeSet<StreamName>>,
    denial: Option<Denial>,
}

#[derive(Default)]
struct State {
    /// By epoch, in the order of their numbers, and sequence.
    log: HashMap<StreamName, BTreeMap<(u64, u64), Event>>,
    manners: BTreeMap<PublisherKey, Manner>,
    asks: Vec<Ask>,
    snapshot_asks: usize,
    /// Snapshots are of this sequence at the latest.
    snapshots_until: Option<u64>,
    open: usize,
    most_open: usize,
}

impl Default for Played {
    fn default() -> Self {
        Self {
            connected: watch::Sender::new(Servers::from([(server(0), 0)])),
            state: Mutex::default(),
            gate: watch::Sender::new(true),
            private: Mutex::default(),
        }
    }
}

pub fn server(number: u8) -> PublisherKey {
    PublisherKey([number; 32])
}

/// Counts a feed as long as it is open.
struct Open(Arc<Played>);

impl Drop for Open {
    fn drop(&mut self) {
        // A test may just be failing.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).open -= 1;
    }
}

impl Played {
    pub fn connected(&self) -> watch::Receiver<Servers> {
        self.connected.subscribe()
    }

    /// These are connected now, each by the connection with this serial number.
    pub fn connect(&self, servers: impl IntoIterator<Item = (u8, u64)>) {
        let servers = servers.into_iter().map(|(number, serial)| (server(number), serial)).collect();
        self.connected.send_replace(servers);
    }

    pub fn set(&self, number: u8, manner: Manner) {
        self.state.lock().unwrap().manners.insert(server(number), manner);
    }

    /// Whether feeds give anything out.
    pub fn open_gate(&self, open: bool) {
        self.gate.send_replace(open);
    }

    pub fn log(&self, events: &[Event]) {
        let mut state = self.state.lock().unwrap();
        for event in events {
            let place = (event.epoch.as_u64(), event.sequence.get());
            state.log.entry(event.stream.clone()).or_default().insert(place, event.clone());
        }
    }

    /// How often servers have been asked.
    pub fn asks(&self) -> usize {
        self.state.lock().unwrap().asks.len()
    }

    /// How often servers have been asked for snapshots.
    pub fn snapshot_asks(&self) -> usize {
        self.state.lock().unwrap().snapshot_asks
    }

    /// Servers have come no further than this, as far as snapshots go.
    pub fn set_snapshots_until(&self, sequence: u64) {
        self.state.lock().unwrap().snapshots_until = Some(sequence);
    }

    /// Who has been asked, in order.
    pub fn asked(&self) -> Vec<PublisherKey> {
        self.state.lock().unwrap().asks.iter().map(|ask| ask.server).collect()
    }

    /// Feeds open now, and at most at the same time.
    pub fn open_feeds(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.open, state.most_open)
    }

    /// All private streams are denied, or granted again.
    pub fn deny_private(&self, denial: Option<Denial>) {
        self.private.lock().unwrap().denial = denial;
    }

    /// What servers were told on private feeds, in order.
    pub fn told(&self) -> Vec<(PublisherKey, PrivateChange)> {
        self.private.lock().unwrap().told.clone()
    }

    /// Who pushes a stream.
    pub fn pushers(&self, stream: &str) -> Vec<PublisherKey> {
        let private = self.private.lock().unwrap();
        let pushes =
            private.pushing.iter().filter(|(_, streams)| streams.iter().any(|of| of.as_str() == stream));
        pushes.map(|(server, _)| *server).collect()
    }

    /// Adds private events to the log, and pushes them where they are to be pushed. How many edges got them.
    pub async fn push(&self, events: &[Event]) -> usize {
        self.log(events);
        let feeds: Vec<_> = {
            let private = self.private.lock().unwrap();
            let wants = |server: &PublisherKey| {
                private.pushing.get(server).is_some_and(|streams| streams.contains(&events[0].stream))
            };
            private.feeds.iter().filter(|(server, _)| wants(server)).map(|(_, feed)| feed.clone()).collect()
        };
        for feed in &feeds {
            feed.send(FeedFrame::Events(events.to_vec())).await.unwrap();
        }
        feeds.len()
    }

    /// A server's private feed ends, and with it what it pushed.
    pub fn cut_private(&self, number: u8) {
        let mut private = self.private.lock().unwrap();
        private.feeds.remove(&server(number));
        private.pushing.remove(&server(number));
    }

    /// A private feed: everything is granted, unless it is denied, and what is to be pushed is pushed by [`Self::push`].
    pub fn private(
        self: &Arc<Self>,
        server: PublisherKey,
        mut changes: mpsc::Receiver<PrivateChange>,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        let (to_edge, frames) = mpsc::channel(1024);
        self.private.lock().unwrap().feeds.insert(server, to_edge.clone());
        let (played, to_edge) = (Arc::clone(self), to_edge.downgrade());
        tokio::spawn(async move {
            let mut signs = interval(Duration::from_millis(200));
            loop {
                let frame = tokio::select! {
                    _ = signs.tick() => FeedFrame::Working,
                    change = changes.recv() => match change {
                        Some(change) => played.change(server, change),
                        None => return,
                    },
                };
                let Some(to_edge) = to_edge.upgrade() else { return };
                let _ = to_edge.send(frame).await;
            }
        });
        stream::unfold(frames, async |mut frames| Some((Ok(frames.recv().await?), frames))).boxed()
    }

    fn change(&self, server: PublisherKey, change: PrivateChange) -> FeedFrame {
        let mut private = self.private.lock().unwrap();
        private.told.push((server, change.clone()));
        let (streams, push) = match change {
            PrivateChange::Add { streams, .. } if private.denial.is_some() => {
                return FeedFrame::Denied { streams, why: private.denial.unwrap() };
            }
            PrivateChange::Add { streams, push, .. } | PrivateChange::Push { streams, push } => {
                (streams, push)
            }
            PrivateChange::Remove { streams } => {
                let pushing = private.pushing.entry(server).or_default();
                streams.iter().for_each(|stream| _ = pushing.remove(stream));
                return FeedFrame::Working;
            }
        };
        let pushing = private.pushing.entry(server).or_default();
        for stream in &streams {
            if push {
                pushing.insert(stream.clone());
            } else {
                pushing.remove(stream);
            }
        }
        let state = self.state.lock().unwrap();
        let head = |stream: StreamName| {
            let last = state.log.get(&stream).and_then(|log| log.values().next_back());
            (stream, last.map(Event::position))
        };
        FeedFrame::Heads(streams.into_iter().map(head).collect())
    }

    pub fn serve(
        self: &Arc<Self>,
        topic: Topic,
        ask: Ask,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        let server = ask.server;
        let (manner, frames) = {
            let mut state = self.state.lock().unwrap();
            state.asks.push(ask.clone());
            state.open += 1;
            state.most_open = state.most_open.max(state.open);
            let manner = state.manners.get(&server).copied().unwrap_or_default();
            (manner, state.frames(&topic, &ask, manner))
        };
        let open = Open(Arc::clone(self));
        let gate = self.gate.subscribe();
        let frames = stream::iter(frames).then(move |frame| {
            let mut gate = gate.clone();
            async move {
                let _ = gate.wait_for(|open| *open).await;
                frame
            }
        });
        let guarded = frames.map(move |frame| {
            let _open = &open;
            frame
        });
        match manner {
            Manner::Frozen => stream::pending().boxed(),
            _ => guarded.boxed(),
        }
    }
}

impl Played {
    /// Of `depth` streams the book, if it is whole; of others the last event.
    pub fn serve_snapshots(
        self: &Arc<Self>,
        topic: Topic,
        ask: &Ask,
    ) -> BoxStream<'static, Result<FeedFrame, Unavailable>> {
        self.state.lock().unwrap().snapshot_asks += 1;
        let (played, mut gate) = (Arc::clone(self), self.gate.subscribe());
        let streams: Vec<_> = ask.streams.iter().map(|(stream, _)| stream.clone()).collect();
        let frames = stream::once(async move {
            let _ = gate.wait_for(|open| *open).await;
            let snapshots: Vec<_> =
                streams.into_iter().map(|stream| (played.snapshot(&stream), stream)).collect();
            let end = |(snapshot, stream): &(Option<Event>, StreamName)| {
                let end = match snapshot {
                    Some(event) => FeedEnd::Complete { head: Some(event.position()) },
                    None => FeedEnd::Refused { oldest: None },
                };
                (stream.clone(), end)
            };
            let ends = snapshots.iter().map(end).collect();
            let events: Vec<_> = snapshots.into_iter().filter_map(|(snapshot, _)| snapshot).collect();
            let key = signing_key();
            let page =
                (!events.is_empty()).then(|| SignedBatch::sign_snapshots(batch(&topic, &events), &key));
            let page = page.map(|page| Ok(FeedFrame::Snapshots(page.unwrap())));
            stream::iter(page.into_iter().chain([Ok(FeedFrame::End { streams: ends })]))
        });
        frames.flatten().boxed()
    }

    fn snapshot(&self, stream: &StreamName) -> Option<Event> {
        let state = self.state.lock().unwrap();
        let until = state.snapshots_until.unwrap_or(u64::MAX);
        let mut log = state.log.get(stream)?.values().filter(|event| event.sequence.get() <= until);
        let mut book = Book::default();
        let data = if stream.channel() == "depth" {
            log.clone().for_each(|event| book.apply(&event.data).unwrap());
            book.to_data()?.into()
        } else {
            log.clone().next_back()?.data.clone()
        };
        let last = log.next_back()?.clone();
        Some(Event { previous: Previous::Unknown { read_from: last.sequence }, data, ..last })
    }
}

impl State {
    fn frames(&self, topic: &Topic, ask: &Ask, manner: Manner) -> Vec<Result<FeedFrame, Unavailable>> {
        let (mut ends, mut events) = (Vec::new(), Vec::new());
        let begins = if let Manner::Begins { at } = manner { at } else { 0 };
        for (stream, after) in &ask.streams {
            let log: Vec<_> = self.log.get(stream).into_iter().flat_map(BTreeMap::values).collect();
            let has =
                log.iter().position(|event| event.sequence.get() >= begins).map_or(&[][..], |at| &log[at..]);
            // Just before its oldest is as good as at an event.
            let oldest = has.first().map(|event| event.position());
            let before_oldest = oldest.and_then(|oldest| Some((oldest.epoch, oldest.sequence.before()?)));
            let from = match after {
                None => Some(0),
                Some(after) if before_oldest == Some((after.epoch, after.sequence)) => Some(0),
                Some(after) => match has.iter().position(|event| event.position() == *after) {
                    Some(at) => Some(at + 1),
                    // It begins where it was told to, behind the head that was told when the stream was joined.
                    None if begins == 0 => Some(
                        has.iter()
                            .position(|event| event.epoch != after.epoch || event.sequence > after.sequence)
                            .unwrap_or(has.len()),
                    ),
                    None => None,
                },
            };
            match from {
                Some(from) => {
                    events.extend(has[from..].iter().map(|event| (*event).clone()));
                    let head = has.last().map(|event| event.position());
                    ends.push((stream.clone(), FeedEnd::Complete { head }));
                }
                None => ends.push((stream.clone(), FeedEnd::Refused { oldest })),
            }
        }
        let mut frames: Vec<_> = events.chunks(PAGE_EVENTS).map(|events| Ok(page(topic, events))).collect();
        match manner {
            Manner::Fails { after } => {
                frames.truncate(after);
                frames.push(Err(Unavailable { reason: "gone".into() }));
            }
            _ => frames.push(Ok(FeedFrame::End { streams: ends })),
        }
        frames
    }
}

fn page(topic: &Topic, events: &[Event]) -> FeedFrame {
    FeedFrame::Page(SignedBatch::sign_page(batch(topic, events), &signing_key()).unwrap())
}

fn batch(topic: &Topic, events: &[Event]) -> Batch {
    Batch {
        publisher: signing_key().publisher(),
        boot: 1,
        counter: 0,
        topic: topic.clone(),
        events: events.to_vec(),
        heads: Vec::new(),
    }
}
