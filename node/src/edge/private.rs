//! Private streams of this edge's users: which ingest peer is told what, and which of them pushes a stream.
//!
//! ```text
//! hub ─> wanted streams ─> a private feed at each ingest peer ─> events, heads ─> hub
//!        (state, no queue)  one pushes a stream, the others say where it stands
//! ```
//!
//! Every ingest peer is told of every user, so that another one goes on at once when the one that pushes is lost. What was
//! missed meanwhile is seen by where the next one stands, and is fetched like any other hole. The same holds for one that pushes
//! but does not keep up: the others' heads show it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use tickmesh_protocol::{
    Event, Position, PublisherKey, StreamName, Topic,
    client::Credential,
    feed::{Denial, FeedFrame, PrivateChange},
    rank::ranked,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::Upstream;
use crate::auth::Authenticator;

/// Changes on their way to one ingest peer; what is beyond is told when there is room.
const CHANGES: usize = 1024;

/// How soon it is looked whether there is room.
const PUMP: Duration = Duration::from_millis(5);

/// Frames on their way from the feeds to the hub.
const FRAMES: usize = 64;

/// An ingest peer says something at least every 400 ms. One that has said nothing for this long is frozen or cut off.
const SILENCE: Duration = Duration::from_millis(1500);

/// Pause before a feed that has ended is opened again, as long as its peer is connected.
const REOPEN: Duration = Duration::from_millis(500);

/// Where a private stream stands, or why its user may not have it.
pub type Joined = Result<Option<Position>, Denial>;

/// What the hub is told.
#[derive(Debug)]
pub enum FromPrivate {
    Events(Vec<Event>),
    /// Where streams stand, by what one ingest peer says.
    Heads(Vec<(StreamName, Option<Position>)>),
}

/// The private streams that are wanted here, and what each ingest peer has been told of them.
#[derive(Debug, Default)]
pub struct PrivateStreams {
    streams: Mutex<Streams>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Streams {
    by_name: HashMap<StreamName, Private>,
    /// Feeds that are open, and the streams each has to be told something of.
    feeds: BTreeMap<PublisherKey, BTreeSet<StreamName>>,
}

#[derive(Debug)]
struct Private {
    topic: Topic,
    credential: Arc<Credential>,
    /// Rises with each credential.
    version: u64,
    wanted: bool,
    /// Who is to send its events.
    pusher: Option<PublisherKey>,
    told: BTreeMap<PublisherKey, Told>,
    waiting: Vec<oneshot::Sender<Joined>>,
}

/// What an ingest peer has been told of a stream.
#[derive(Clone, Copy, Debug)]
struct Told {
    version: u64,
    push: bool,
    granted: bool,
}

impl PrivateStreams {
    fn streams(&self) -> MutexGuard<'_, Streams> {
        // No code panics while it holds the lock; if it did, what is in it would still be true.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client who showed this wants a stream. Answered when an ingest peer has said where it stands; everything after
    /// that will come.
    pub fn want(&self, stream: &StreamName, credential: Arc<Credential>) -> oneshot::Receiver<Joined> {
        let (answer, joined) = oneshot::channel();
        self.streams().want(stream, credential, Some(answer));
        self.changed.notify_one();
        joined
    }

    /// The client has shown something newer for a stream that is wanted already.
    pub fn renew(&self, stream: &StreamName, credential: Arc<Credential>) {
        self.streams().want(stream, credential, None);
        self.changed.notify_one();
    }

    /// Nobody wants the stream any more.
    pub fn leave(&self, stream: &StreamName) {
        self.streams().leave(stream);
        self.changed.notify_one();
    }
}

impl Streams {
    fn want(
        &mut self,
        name: &StreamName,
        credential: Arc<Credential>,
        answer: Option<oneshot::Sender<Joined>>,
    ) {
        let stream = self.by_name.entry(name.clone()).or_insert_with(|| Private {
            topic: Topic::spanning(name),
            credential: Arc::clone(&credential),
            version: 0,
            wanted: true,
            pusher: None,
            told: BTreeMap::new(),
            waiting: Vec::new(),
        });
        // Asked again even with the same credential: whoever joins anew must hear where the stream stands.
        stream.version += 1;
        stream.credential = credential;
        stream.wanted = true;
        stream.waiting.extend(answer);
        if stream.pusher.is_none() {
            stream.pusher = ranked(&stream.topic, self.feeds.keys().copied()).first().copied();
        }
        self.feeds.values_mut().for_each(|untold| _ = untold.insert(name.clone()));
    }

    fn leave(&mut self, name: &StreamName) {
        let Some(stream) = self.by_name.get_mut(name) else { return };
        stream.wanted = false;
        stream.waiting.clear();
        stream.pusher = None;
        if stream.told.is_empty() {
            self.by_name.remove(name);
        }
        self.feeds.values_mut().for_each(|untold| _ = untold.insert(name.clone()));
    }

    /// The feed of a server is open: it is told of everything.
    fn opened(&mut self, server: PublisherKey) {
        for stream in self.by_name.values_mut().filter(|stream| stream.wanted) {
            stream.told.remove(&server);
            stream.pusher.get_or_insert(server);
        }
        self.feeds.insert(server, self.by_name.keys().cloned().collect());
    }

    /// The feed of a server has ended: what it pushed others push, the best ranked first.
    fn closed(&mut self, server: PublisherKey) {
        self.feeds.remove(&server);
        let names: Vec<_> = self.by_name.keys().cloned().collect();
        for name in names {
            let Some(stream) = self.by_name.get_mut(&name) else { continue };
            stream.told.remove(&server);
            if !stream.wanted && stream.told.is_empty() {
                self.by_name.remove(&name);
            } else if stream.pusher == Some(server) {
                self.choose_pusher(&name);
            }
        }
    }

    /// Of those who have granted it, or of all, the best ranked.
    fn choose_pusher(&mut self, name: &StreamName) {
        let Some(stream) = self.by_name.get_mut(name) else { return };
        let granted = stream.told.iter().filter(|(_, told)| told.granted).map(|(server, _)| *server);
        let granted: Vec<_> = granted.collect();
        let among = if granted.is_empty() { self.feeds.keys().copied().collect() } else { granted };
        stream.pusher = ranked(&stream.topic, among).first().copied();
        if let Some(untold) = stream.pusher.and_then(|pusher| self.feeds.get_mut(&pusher)) {
            untold.insert(name.clone());
        }
    }

    /// What a server is to be told next.
    fn next_change(&mut self, server: PublisherKey) -> Option<PrivateChange> {
        loop {
            let name = self.feeds.get_mut(&server)?.pop_first()?;
            let Some(stream) = self.by_name.get_mut(&name) else { continue };
            if !stream.wanted {
                if stream.told.remove(&server).is_none() {
                    continue;
                }
                if stream.told.is_empty() {
                    self.by_name.remove(&name);
                }
                return Some(PrivateChange::Remove { streams: vec![name] });
            }
            let (version, push) = (stream.version, stream.pusher == Some(server));
            match stream.told.get_mut(&server) {
                Some(told) if told.version == version && told.push == push => {}
                Some(told) if told.version == version => {
                    told.push = push;
                    return Some(PrivateChange::Push { streams: vec![name], push });
                }
                _ => {
                    stream.told.insert(server, Told { version, push, granted: false });
                    let credential = stream.credential.as_ref().clone();
                    return Some(PrivateChange::Add { credential, streams: vec![name], push });
                }
            }
        }
    }

    fn is_untold(&self) -> bool {
        self.feeds.values().any(|untold| !untold.is_empty())
    }

    /// Takes where streams stand by what a server says; whoever waits is answered by the one that pushes.
    fn heads(&mut self, server: PublisherKey, heads: &[(StreamName, Option<Position>)]) {
        for (name, head) in heads {
            let Some(stream) = self.by_name.get_mut(name) else { continue };
            if let Some(told) = stream.told.get_mut(&server) {
                told.granted = true;
            }
            if stream.pusher == Some(server) {
                for answer in stream.waiting.drain(..) {
                    // Who waited may have gone.
                    let _ = answer.send(Ok(*head));
                }
            }
        }
    }

    fn denied(&mut self, server: PublisherKey, names: &[StreamName], why: Denial) {
        for name in names {
            let Some(stream) = self.by_name.get_mut(name) else { continue };
            if let Some(told) = stream.told.get_mut(&server) {
                told.granted = false;
            }
            for answer in stream.waiting.drain(..) {
                let _ = answer.send(Err(why));
            }
            if stream.pusher == Some(server) && stream.told.values().any(|told| told.granted) {
                self.choose_pusher(name);
            }
        }
    }
}

/// What the task of a feed says.
enum Said {
    Frame(FeedFrame),
    Ended,
}

/// Keeps a private feed open at each ingest peer that is connected, for ever.
pub async fn run(
    private: Arc<PrivateStreams>,
    upstream: Arc<dyn Upstream>,
    authenticator: Arc<Authenticator>,
    hub: mpsc::Sender<FromPrivate>,
) {
    let mut servers = upstream.servers();
    let (to_here, mut said) = mpsc::channel(FRAMES);
    let mut tasks = JoinSet::new();
    let mut feeds: HashMap<PublisherKey, Option<mpsc::Sender<PrivateChange>>> = HashMap::new();
    let mut reopen: BTreeMap<Instant, PublisherKey> = BTreeMap::new();
    loop {
        let now = Instant::now();
        while let Some(server) = reopen.first_entry().filter(|entry| *entry.key() <= now) {
            feeds.remove(&server.remove());
        }
        for server in servers.borrow_and_update().keys() {
            feeds.entry(*server).or_insert_with(|| {
                let (changes, to_server) = mpsc::channel(CHANGES);
                tasks.spawn(follow(*server, Arc::clone(&upstream), to_server, to_here.clone()));
                Some(changes)
            });
        }
        pump(&private, &feeds);
        let untold = private.streams().is_untold();
        tokio::select! {
            () = private.changed.notified() => {}
            changed = servers.changed() => if changed.is_err() { return },
            () = sleep(PUMP), if untold => {}
            () = until(reopen.keys().next().copied()) => {}
            Some(_) = tasks.join_next() => {}
            Some((server, said)) = said.recv() => match said {
                Said::Frame(FeedFrame::Revoked(revocations)) => {
                    if let Err(error) = authenticator.revocations().add(&revocations) {
                        tracing::error!(%error, "not everything that was revoked is refused here");
                    }
                }
                Said::Frame(frame) => {
                    if let Some(to_hub) = take(&private, server, frame)
                        && hub.send(to_hub).await.is_err()
                    {
                        return;
                    }
                }
                Said::Ended => {
                    private.streams().closed(server);
                    feeds.insert(server, None);
                    reopen.insert(Instant::now() + REOPEN, server);
                }
            }
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Tells each server what it is to be told, as far as there is room.
fn pump(private: &PrivateStreams, feeds: &HashMap<PublisherKey, Option<mpsc::Sender<PrivateChange>>>) {
    let mut streams = private.streams();
    for (server, changes) in feeds {
        let Some(changes) = changes else { continue };
        while let Ok(place) = changes.try_reserve()
            && let Some(change) = streams.next_change(*server)
        {
            place.send(change);
        }
    }
}

/// Takes a frame, and gives what the hub must know.
fn take(private: &PrivateStreams, server: PublisherKey, frame: FeedFrame) -> Option<FromPrivate> {
    let mut streams = private.streams();
    if !streams.feeds.contains_key(&server) {
        // The first frame says that the feed is served.
        streams.opened(server);
        private.changed.notify_one();
    }
    match frame {
        FeedFrame::Heads(heads) => {
            streams.heads(server, &heads);
            Some(FromPrivate::Heads(heads))
        }
        FeedFrame::Denied { streams: names, why } => {
            tracing::debug!(?server, streams = names.len(), ?why, "private streams are denied");
            streams.denied(server, &names, why);
            private.changed.notify_one();
            None
        }
        FeedFrame::Events(events) => Some(FromPrivate::Events(events)),
        _ => None,
    }
}

/// Follows one feed to its end.
async fn follow(
    server: PublisherKey,
    upstream: Arc<dyn Upstream>,
    changes: mpsc::Receiver<PrivateChange>,
    said: mpsc::Sender<(PublisherKey, Said)>,
) {
    let mut frames = upstream.private(server, changes);
    let reason = loop {
        match timeout(SILENCE, frames.next()).await {
            Ok(Some(Ok(frame))) => {
                if said.send((server, Said::Frame(frame))).await.is_err() {
                    return;
                }
            }
            Ok(Some(Err(unavailable))) => break unavailable.reason,
            Ok(None) => break "it has ended".into(),
            Err(_) => break "the peer says nothing".into(),
        }
    };
    tracing::debug!(?server, reason, "private feed ended");
    // The manager may have ended as well.
    let _ = said.send((server, Said::Ended)).await;
}

#[cfg(test)]
mod tests;
