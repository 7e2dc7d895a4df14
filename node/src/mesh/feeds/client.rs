//! Asking a publisher for a feed, and reading it.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    sync::Arc,
};

use libp2p::PeerId;
use tickmesh_protocol::{
    PublisherKey, Topic,
    batch::InvalidBatch,
    checkpoint::MAX_STATE_BYTES,
    codec::{self, CodecError, MAX_FEED_FRAME_BYTES},
    feed::{FeedFrame, FeedRequest},
};
use tokio::{
    io::duplex,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::{
    LivePublishers, MAX_ASKED_FEEDS, MAX_LIVE_FEEDS, Open, PrivateFeed, Server, Settings,
    serving::kind,
    streams::OpenError,
    wire::{FrameReader, FrameWriter, Io},
};
use crate::mesh::{identity::peer_of, metrics::FeedMetrics};

/// Bytes on their way between a node's edge and its own store; as little as between two nodes.
const LOCAL_BUFFER: usize = 64 * 1024;

/// Why a feed could not be had, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("{0:?} is not among mesh.publishers")]
    UnknownPublisher(PublisherKey),
    #[error("the publisher is not connected")]
    NotConnected,
    #[error("{MAX_LIVE_FEEDS} live feeds are open at this publisher")]
    TooManyLive,
    #[error("the peer does not serve feeds")]
    Unsupported,
    #[error("refused: {0}")]
    Refused(String),
    #[error("the peer sent nothing in time")]
    Timeout,
    #[error("the feed was cut: {0}")]
    Cut(io::Error),
    /// The peer does not keep to the protocol, or sent what is not to be believed.
    #[error("not believed: {0}")]
    Invalid(String),
    #[error("the request breaks a limit: {0}")]
    Request(CodecError),
    #[error("the mesh has stopped")]
    Stopped,
}

impl From<io::Error> for FeedError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::InvalidData => Self::Invalid(error.to_string()),
            _ => Self::Cut(error),
        }
    }
}

impl From<InvalidBatch> for FeedError {
    fn from(error: InvalidBatch) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// A publisher that may be asked, and for how many feeds more.
#[derive(Clone)]
struct Publisher {
    peer: PeerId,
    ranges: Arc<Semaphore>,
    live: Arc<Semaphore>,
}

/// Asks for feeds. Cheap to clone.
#[derive(Clone)]
pub(in crate::mesh) struct FeedClient {
    me: PublisherKey,
    peer_id: PeerId,
    /// What this node itself serves.
    local: Option<Arc<Server>>,
    open: mpsc::Sender<Open>,
    settings: Settings,
    believed: Arc<HashSet<PublisherKey>>,
    publishers: Arc<HashMap<PublisherKey, Publisher>>,
    live: watch::Receiver<LivePublishers>,
    metrics: Arc<FeedMetrics>,
}

/// What a client is made of.
pub(in crate::mesh) struct ClientParts {
    pub(in crate::mesh) me: PublisherKey,
    pub(in crate::mesh) peer_id: PeerId,
    pub(in crate::mesh) local: Option<Arc<Server>>,
    pub(in crate::mesh) open: mpsc::Sender<Open>,
    pub(in crate::mesh) settings: Settings,
    pub(in crate::mesh) believed: Arc<HashSet<PublisherKey>>,
    pub(in crate::mesh) live: watch::Receiver<LivePublishers>,
    pub(in crate::mesh) metrics: Arc<FeedMetrics>,
}

impl fmt::Debug for FeedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedClient").field("peer_id", &self.peer_id).finish_non_exhaustive()
    }
}

impl FeedClient {
    pub(in crate::mesh) fn new(parts: ClientParts) -> Self {
        let ClientParts { me, peer_id, local, open, settings, believed, live, metrics } = parts;
        let publisher = |key: &PublisherKey| {
            let [ranges, live] = [MAX_ASKED_FEEDS, MAX_LIVE_FEEDS].map(|most| Arc::new(Semaphore::new(most)));
            Some((*key, Publisher { peer: peer_of(key)?, ranges, live }))
        };
        let publishers = Arc::new(believed.iter().filter_map(publisher).collect());
        Self { me, peer_id, local, open, settings, believed, publishers, live, metrics }
    }

    pub(in crate::mesh) fn live_publishers(&self) -> watch::Receiver<LivePublishers> {
        self.live.clone()
    }

    /// See [`crate::mesh::MeshHandle::feed`].
    pub(in crate::mesh) async fn feed(
        &self,
        publisher: PublisherKey,
        request: FeedRequest,
    ) -> Result<FeedReader, FeedError> {
        let kind = kind(&request);
        let opened = async {
            let bytes = codec::encode_feed_request(&request).map_err(FeedError::Request)?;
            Ok((self.open(publisher, &request).await?, bytes))
        };
        match opened.await {
            Ok((mut reader, bytes)) => {
                reader.request(&bytes).await?;
                Ok(reader)
            }
            Err(error) => {
                self.metrics.asked(kind, "failed");
                Err(error)
            }
        }
    }

    /// See [`crate::mesh::MeshHandle::private`].
    pub(in crate::mesh) async fn private(&self, publisher: PublisherKey) -> Result<PrivateFeed, FeedError> {
        let Publisher { peer, .. } =
            self.publishers.get(&publisher).ok_or(FeedError::UnknownPublisher(publisher))?.clone();
        let io = self.open_io(peer, publisher).await?;
        PrivateFeed::begin(io, self.settings.idle, self.metrics.clone()).await
    }

    async fn open_io(&self, peer: PeerId, publisher: PublisherKey) -> Result<Box<dyn Io>, FeedError> {
        if publisher == self.me { self.open_local() } else { self.open_stream(peer, publisher).await }
    }

    async fn open(&self, publisher: PublisherKey, request: &FeedRequest) -> Result<FeedReader, FeedError> {
        let Publisher { peer, ranges, live } =
            self.publishers.get(&publisher).ok_or(FeedError::UnknownPublisher(publisher))?.clone();
        let place = match (request.topic(), request.is_live()) {
            (None, _) => None,
            (Some(_), true) => Some(live.try_acquire_owned().map_err(|_| FeedError::TooManyLive)?),
            // It is never closed.
            (Some(_), false) => ranges.acquire_owned().await.ok(),
        };
        let io = self.open_io(peer, publisher).await?;
        self.metrics.reading.inc();
        Ok(FeedReader {
            topic: request.topic().cloned(),
            kind: kind(request),
            live: request.is_live(),
            state_bytes: 0,
            frames: FrameReader::new(MAX_FEED_FRAME_BYTES),
            settings: self.settings,
            believed: self.believed.clone(),
            metrics: self.metrics.clone(),
            open: Some((io, place)),
        })
    }

    async fn open_stream(&self, peer: PeerId, publisher: PublisherKey) -> Result<Box<dyn Io>, FeedError> {
        if !self.live.borrow().contains_key(&publisher) {
            return Err(FeedError::NotConnected);
        }
        let (opened, stream) = oneshot::channel();
        let opening = async {
            self.open.send((peer, opened)).await.map_err(|_| FeedError::Stopped)?;
            // The swarm drops it with the connection.
            stream.await.map_err(|_| FeedError::NotConnected)?.map_err(|error| match error {
                OpenError::NotConnected => FeedError::NotConnected,
                OpenError::Unsupported => FeedError::Unsupported,
                OpenError::Failed(reason) => FeedError::Cut(io::Error::other(reason)),
            })
        };
        let stream = timeout(self.settings.idle, opening).await.unwrap_or(Err(FeedError::Timeout))?;
        Ok(Box::new(stream))
    }

    /// A node asks itself like any other, but without the network.
    fn open_local(&self) -> Result<Box<dyn Io>, FeedError> {
        let server = self.local.as_ref().ok_or(FeedError::Unsupported)?;
        let (mine, theirs) = duplex(LOCAL_BUFFER);
        server.clone().accept(self.peer_id, theirs.compat());
        Ok(Box::new(mine.compat()))
    }
}

/// Reads one feed. Dropping it closes the feed.
pub struct FeedReader {
    topic: Option<Topic>,
    kind: &'static str,
    live: bool,
    state_bytes: usize,
    frames: FrameReader,
    settings: Settings,
    believed: Arc<HashSet<PublisherKey>>,
    metrics: Arc<FeedMetrics>,
    /// The stream, until the last frame.
    open: Option<(Box<dyn Io>, Option<OwnedSemaphorePermit>)>,
}

impl fmt::Debug for FeedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedReader")
            .field("kind", &self.kind)
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl FeedReader {
    /// The next frame; nothing after the last one. A page, or snapshots, are some that a configured publisher has signed, of the topic
    /// asked for. [`FeedFrame::Working`] and [`FeedFrame::Refused`] are not given out. To give up waiting loses nothing.
    ///
    /// # Errors
    /// If the peer refuses, says nothing for five seconds, or sends what is not to be believed. The feed then has ended.
    pub async fn next(&mut self) -> Result<Option<FeedFrame>, FeedError> {
        loop {
            match self.next_or_working().await {
                Ok(Some(FeedFrame::Working)) => {}
                other => return other,
            }
        }
    }

    /// As [`Self::next`], and [`FeedFrame::Working`] as well: for who would rather ask another peer than wait for one that
    /// does not even say that it works.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_or_working(&mut self) -> Result<Option<FeedFrame>, FeedError> {
        let Some((io, _)) = &mut self.open else {
            return Ok(None);
        };
        let read = self.frames.next(io, self.settings.idle).await.map_err(FeedError::from);
        let frame = read.and_then(|bytes| {
            self.metrics.received(bytes.len());
            self.check(codec::decode_feed_frame(&bytes)?)
        });
        match &frame {
            Ok(frame) if self.is_last(frame) => self.close("complete"),
            Ok(_) => {}
            Err(FeedError::Refused(_)) => self.close("refused"),
            Err(FeedError::Invalid(_)) => self.close("invalid"),
            Err(_) => self.close("failed"),
        }
        frame.map(Some)
    }

    async fn request(&mut self, bytes: &[u8]) -> Result<(), FeedError> {
        let Some((io, _)) = &mut self.open else {
            return Ok(());
        };
        // If this fails because the peer has refused already, its refusal says more than the failure.
        let sent = FrameWriter::new(io, self.settings.idle).send(bytes).await;
        match sent {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.close("failed");
                Err(FeedError::Timeout)
            }
            _ => Ok(()),
        }
    }

    /// Whether a frame belongs to what was asked for, and may be believed.
    fn check(&mut self, frame: FeedFrame) -> Result<FeedFrame, FeedError> {
        let invalid = |what: &str| Err(FeedError::Invalid(what.into()));
        match (&frame, self.kind, &self.topic) {
            (FeedFrame::Working, ..) => {}
            (FeedFrame::Refused { reason }, ..) => return Err(FeedError::Refused(reason.clone())),
            (FeedFrame::Page(page), "streams" | "topic", Some(topic))
            | (FeedFrame::Snapshots(page), "snapshots", Some(topic)) => {
                if page.batch().topic != *topic {
                    return invalid("a page of another topic");
                }
                if !self.believed.contains(&page.batch().publisher) {
                    return invalid("a page of an unknown publisher");
                }
                self.metrics.pages_received.inc();
            }
            (FeedFrame::End { .. }, _, Some(_))
            | (FeedFrame::Status(_), "status", None)
            | (FeedFrame::Catalogue(_), "catalogue", None) => {}
            (FeedFrame::State { chunk, .. }, "state", None) => {
                self.state_bytes = self.state_bytes.saturating_add(chunk.len());
                if self.state_bytes > MAX_STATE_BYTES {
                    return invalid("a state that is too large");
                }
            }
            _ => return invalid("a frame that does not belong to the request"),
        }
        Ok(frame)
    }

    fn is_last(&self, frame: &FeedFrame) -> bool {
        match frame {
            FeedFrame::End { .. } => !self.live,
            FeedFrame::State { last, .. } => *last,
            FeedFrame::Catalogue(_) => true,
            _ => false,
        }
    }

    fn close(&mut self, outcome: &'static str) {
        if self.open.take().is_some() {
            self.metrics.reading.dec();
            self.metrics.asked(self.kind, outcome);
        }
    }
}

impl Drop for FeedReader {
    fn drop(&mut self) {
        self.close("dropped");
    }
}
