//! Private feeds: the events of private streams, from an ingest peer to the edges where their users are. Both sides.
//!
//! An edge that is not in `mesh.edges` is refused, and one that is gets a stream only with something that its user has shown,
//! which is checked here as if the user had come here. What was granted on a private feed may be fetched by the same peer on
//! other feeds, as long as the private feed is open.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p::{
    PeerId,
    futures::{
        AsyncReadExt, StreamExt,
        future::BoxFuture,
        io::{ReadHalf, WriteHalf},
        stream::FuturesUnordered,
    },
};
use tickmesh_protocol::{
    StreamName, Topic,
    codec::{self, MAX_FEED_FRAME_BYTES, MAX_PRIVATE_CHANGE_BYTES},
    feed::{Denial, FeedFrame, FeedRequest, MAX_CHANGE_STREAMS, MAX_PRIVATE_STREAMS, PrivateChange},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{
    FeedError,
    server::Server,
    serving::{Ended, Serving},
    wire::{FrameReader, FrameWriter, Io},
};
use crate::{
    auth::{Authenticator, Identity, Permissions, Refusal},
    mesh::metrics::{FeedMetrics, FeedOutcome},
    ops::metrics::now_us,
    ports::Follow,
};

/// Credentials that are checked at the same time for one edge; some are asked about elsewhere.
const MAX_CHECKS: usize = 64;

/// An edge says nothing for as long as no client comes or goes.
const FOR_EVER: Duration = Duration::from_secs(1 << 40);

/// Who may have private streams.
#[derive(Clone, Debug)]
pub struct PrivateAccess {
    pub authenticator: Arc<Authenticator>,
    pub permissions: Permissions,
}

/// What peers have been granted on private feeds that are open: by how many of them.
#[derive(Debug, Default)]
pub(super) struct Granted(Mutex<HashMap<PeerId, HashMap<StreamName, usize>>>);

impl Granted {
    fn peers(&self) -> MutexGuard<'_, HashMap<PeerId, HashMap<StreamName, usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_all<'a>(
        &self,
        peer: PeerId,
        mut streams: impl Iterator<Item = &'a StreamName>,
    ) -> bool {
        let peers = self.peers();
        let granted = peers.get(&peer);
        streams.all(|stream| granted.is_some_and(|granted| granted.contains_key(stream)))
    }

    fn add(&self, peer: PeerId, stream: &StreamName) {
        *self.peers().entry(peer).or_default().entry(stream.clone()).or_default() += 1;
    }

    fn remove(&self, peer: PeerId, stream: &StreamName) {
        let mut peers = self.peers();
        let Some(granted) = peers.get_mut(&peer) else { return };
        if let Some(feeds) = granted.get_mut(stream) {
            *feeds -= 1;
            if *feeds == 0 {
                granted.remove(stream);
            }
        }
        if granted.is_empty() {
            peers.remove(&peer);
        }
    }
}

/// Credentials that were checked, and for what.
struct Checked {
    streams: Vec<StreamName>,
    push: bool,
    who: Result<Arc<Identity>, Refusal>,
}

/// What one feed has been granted.
struct Grants<'a> {
    server: &'a Server,
    access: &'a PrivateAccess,
    peer: PeerId,
    follow: Box<dyn Follow>,
    streams: HashMap<StreamName, Arc<Identity>>,
    /// The authenticator's generation when all were last looked at.
    generation: u64,
}

impl<T: Io> Serving<'_, T> {
    /// Serves a private feed until its edge ends it.
    pub(super) async fn private(&mut self, peer: PeerId) -> Result<(), Ended> {
        let server = self.server;
        let Some(access) = server.access_of(&peer) else {
            return Err(Ended::Refused("this peer is not among mesh.edges".into()));
        };
        let Some(follow) = server.store.follow() else {
            return Err(Ended::Refused("this peer has not read its logs to the end yet".into()));
        };
        let generation = access.authenticator.generation();
        let mut grants = Grants { server, access, peer, follow, streams: HashMap::new(), generation };
        let revocations = access.authenticator.revocations();
        let mut revoked = revocations.serial();
        // All of them first.
        revoked.mark_changed();
        let mut told = 0;
        let mut changes = FrameReader::new(MAX_PRIVATE_CHANGE_BYTES);
        let mut checks: FuturesUnordered<BoxFuture<'_, Checked>> = FuturesUnordered::new();
        let mut tick = interval(self.settings.keep_alive);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // What was said before is written before anything else is looked at: the edge's pace is the feed's.
            let idle = !self.write.is_pending();
            let mut frames = Vec::new();
            tokio::select! {
                written = self.write.flush(), if !idle => written?,
                change = changes.next(&mut self.read, FOR_EVER), if idle && checks.len() < MAX_CHECKS => {
                    let change = codec::decode_private_change(&change.map_err(of_change)?)
                        .map_err(|error| Ended::Refused(error.to_string()))?;
                    if let Some(check) = grants.change(change, &mut frames)? {
                        checks.push(check);
                    }
                }
                Some(checked) = checks.next(), if idle => grants.checked(checked, &mut frames),
                followed = grants.follow.next(), if idle => {
                    let (events, heads) = (followed.events, followed.heads);
                    server.metrics.private_served.inc_by(events.len() as u64);
                    frames.extend((!events.is_empty()).then_some(FeedFrame::Events(events)));
                    frames.extend(in_frames(heads).map(FeedFrame::Heads));
                }
                Ok(()) = revoked.changed(), if idle => {
                    let new = revocations.since(std::mem::replace(&mut told, *revoked.borrow_and_update()));
                    frames.extend(in_frames(new).map(FeedFrame::Revoked));
                }
                _ = tick.tick() => if idle {
                    grants.look_again(&mut frames);
                    let heads = grants.follow.heads(MAX_CHANGE_STREAMS);
                    frames.push(if heads.is_empty() { FeedFrame::Working } else { FeedFrame::Heads(heads) });
                },
            }
            for frame in &frames {
                self.put(frame)?;
            }
        }
    }
}

/// A change that cannot be read.
fn of_change(error: io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::InvalidData => Ended::Refused(error.to_string()),
        _ => Ended::Cut(FeedOutcome::Gone),
    }
}

impl<'a> Grants<'a> {
    /// Does what an edge says, as far as nothing has to be checked.
    fn change(
        &mut self,
        change: PrivateChange,
        frames: &mut Vec<FeedFrame>,
    ) -> Result<Option<BoxFuture<'a, Checked>>, Ended> {
        match change {
            PrivateChange::Add { credential, streams, push } => {
                if self.streams.len() + streams.len() > MAX_PRIVATE_STREAMS {
                    return Err(Ended::Refused(format!("more than {MAX_PRIVATE_STREAMS} private streams")));
                }
                let authenticator = &self.access.authenticator;
                return Ok(Some(Box::pin(async move {
                    let who = authenticator.authenticate(&credential).await;
                    Checked { streams, push, who }
                })));
            }
            PrivateChange::Push { streams, push } => {
                let known: Vec<_> =
                    streams.into_iter().filter(|stream| self.streams.contains_key(stream)).collect();
                self.follow_all(known, push, frames);
            }
            PrivateChange::Remove { streams } => streams.iter().for_each(|stream| self.remove(stream)),
        }
        Ok(None)
    }

    /// Grants the streams of who was found to be their user.
    fn checked(&mut self, checked: Checked, frames: &mut Vec<FeedFrame>) {
        let Checked { streams, push, who } = checked;
        let who = match who {
            Ok(who) => who,
            Err(refusal) => {
                self.server.metrics.private_denied.inc();
                tracing::warn!(peer = %self.peer, refusal = refusal.label(), "private streams not granted");
                let why = match refusal {
                    Refusal::Unavailable => Denial::Unavailable,
                    Refusal::Expired => Denial::Expired,
                    _ => Denial::Forbidden,
                };
                return frames.push(FeedFrame::Denied { streams, why });
            }
        };
        let (own, others): (Vec<_>, Vec<_>) = streams.into_iter().partition(|stream| {
            self.server.store.is_private(&Topic::spanning(stream))
                && self.access.permissions.decide(Some(&who), stream).is_ok()
        });
        if !others.is_empty() {
            self.server.metrics.private_denied.inc();
            tracing::warn!(peer = %self.peer, streams = others.len(), "an edge asked for streams of another user");
            frames.push(FeedFrame::Denied { streams: others, why: Denial::Forbidden });
        }
        for stream in &own {
            let longer = self.streams.get(stream).is_none_or(|known| ends_later(&who, known));
            if longer && self.streams.insert(stream.clone(), Arc::clone(&who)).is_none() {
                self.server.granted.add(self.peer, stream);
            }
        }
        self.follow_all(own, push, frames);
    }

    fn follow_all(&mut self, streams: Vec<StreamName>, push: bool, frames: &mut Vec<FeedFrame>) {
        let heads = streams.into_iter().map(|stream| {
            let head = self.follow.add(&stream, push);
            (stream, head)
        });
        let heads: Vec<_> = heads.collect();
        frames.extend(in_frames(heads).map(FeedFrame::Heads));
    }

    fn remove(&mut self, stream: &StreamName) {
        if self.streams.remove(stream).is_some() {
            self.server.granted.remove(self.peer, stream);
            self.follow.remove(stream);
        }
    }

    /// Takes back what was granted to who has expired or was revoked.
    fn look_again(&mut self, frames: &mut Vec<FeedFrame>) {
        let now = Duration::from_micros(now_us());
        let generation = self.access.authenticator.generation();
        let changed = std::mem::replace(&mut self.generation, generation) != generation;
        let authenticator = &self.access.authenticator;
        let ended = |who: &Identity| {
            who.expires_at.is_some_and(|at| at <= now) || (changed && !authenticator.still_accepts(who))
        };
        let ended: Vec<_> =
            self.streams.iter().filter(|(_, who)| ended(who)).map(|(stream, _)| stream.clone()).collect();
        ended.iter().for_each(|stream| self.remove(stream));
        let denied = |streams| FeedFrame::Denied { streams, why: Denial::Expired };
        frames.extend(in_frames(ended).map(denied));
    }
}

impl Drop for Grants<'_> {
    fn drop(&mut self) {
        for stream in self.streams.keys() {
            self.server.granted.remove(self.peer, stream);
        }
    }
}

/// Whether one who signed in is accepted for longer than another.
fn ends_later(who: &Identity, other: &Identity) -> bool {
    match (who.expires_at, other.expires_at) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(at), Some(other)) => at >= other,
    }
}

/// In groups that fit a frame.
fn in_frames<T>(all: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut rest = all.into_iter();
    std::iter::from_fn(move || {
        let group: Vec<_> = rest.by_ref().take(MAX_CHANGE_STREAMS).collect();
        (!group.is_empty()).then_some(group)
    })
}

/// Who may ask for private feeds, and what they must show.
#[derive(Debug)]
pub(in crate::mesh) struct Gate {
    pub(in crate::mesh) access: PrivateAccess,
    pub(in crate::mesh) edges: HashSet<PeerId>,
}

/// A private feed as the edge has it. Dropping it closes the feed.
pub struct PrivateFeed {
    read: ReadHalf<Box<dyn Io>>,
    write: FrameWriter<WriteHalf<Box<dyn Io>>>,
    frames: FrameReader,
    idle: Duration,
    metrics: Arc<FeedMetrics>,
}

impl PrivateFeed {
    /// Sends the request on a stream that was opened.
    pub(super) async fn begin(
        io: Box<dyn Io>,
        idle: Duration,
        metrics: Arc<FeedMetrics>,
    ) -> Result<Self, FeedError> {
        let (read, write) = io.split();
        let mut write = FrameWriter::new(write, idle);
        let request = codec::encode_feed_request(&FeedRequest::Private).map_err(FeedError::Request)?;
        write.send(&request).await?;
        metrics.reading.inc();
        Ok(Self { read, write, frames: FrameReader::new(MAX_FEED_FRAME_BYTES), idle, metrics })
    }

    /// Sends what the edge wants, and returns the next frame: heads, denials, events, or a sign of life.
    ///
    /// # Errors
    /// If the peer refuses, says nothing for five seconds, or sends what does not belong here. The feed then has ended.
    pub async fn next(
        &mut self,
        changes: &mut mpsc::Receiver<PrivateChange>,
    ) -> Result<FeedFrame, FeedError> {
        loop {
            tokio::select! {
                frame = self.frames.next(&mut self.read, self.idle) => {
                    let bytes = frame?;
                    self.metrics.received(bytes.len());
                    return match codec::decode_feed_frame(&bytes)? {
                        FeedFrame::Refused { reason } => Err(FeedError::Refused(reason)),
                        FeedFrame::Events(events) => {
                            self.metrics.private_received.inc_by(events.len() as u64);
                            Ok(FeedFrame::Events(events))
                        }
                        frame @ (FeedFrame::Heads(_)
                        | FeedFrame::Denied { .. }
                        | FeedFrame::Revoked(_)
                        | FeedFrame::Working) => Ok(frame),
                        _ => Err(FeedError::Invalid("a frame that does not belong to a private feed".into())),
                    };
                }
                change = changes.recv(), if !self.write.is_pending() => {
                    let change = change.ok_or(FeedError::Stopped)?;
                    self.write.put(&codec::encode_private_change(&change).map_err(FeedError::Request)?);
                }
                written = self.write.flush(), if self.write.is_pending() => written?,
            }
        }
    }
}

impl Drop for PrivateFeed {
    fn drop(&mut self) {
        self.metrics.reading.dec();
    }
}
