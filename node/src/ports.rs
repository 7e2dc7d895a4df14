//! What the stages hand one another where both sides must know the type. Stages import this and `protocol`, never one
//! another; [`crate::app`] connects them.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tickmesh_protocol::{
    Event, Position, PublisherKey, Sequence, SignedBatch, StreamName, Topic,
    catalogue::{Answer, Ask},
    feed::{FeedEnd, Status},
    head::{HeadReply, HeadRequest},
};
use tokio::sync::{oneshot, watch};

/// What the mesh tells an ingest peer.
#[derive(Debug)]
pub enum IngestInput {
    /// Another publisher's batch, validated, on a topic that ingest has joined.
    Batch(Arc<SignedBatch>),
    /// An edge asks where streams stand. It is subscribed to the topic by now: everything handed to the mesh after the
    /// answer was given will reach it. Dropping `answer` refuses.
    Head { request: HeadRequest, answer: oneshot::Sender<HeadReply> },
    /// A configured publisher got connected.
    PublisherUp(PublisherKey),
    /// What a connected publisher says of itself: always after its [`Self::PublisherUp`] and before the
    /// [`Self::PublisherDown`] that ends it. The latest; older ones may be left out.
    Status(PublisherKey, Status),
    /// The last connection to it closed.
    PublisherDown(PublisherKey),
}

/// About how many bytes one [`FeedStore::next`] gives: what each of a thousand feeds may hold in memory while its reader
/// is slow, and what goes over a connection at once while gossip waits.
pub const PAGE_BYTES: usize = 128 * 1024;

/// Where feeds come from: the history of an ingest peer. Many feeds call it at once.
pub trait FeedStore: Send + Sync + 'static {
    /// What comes next on a feed: pages of about [`PAGE_BYTES`] together, signed as pages, and the cursor moved behind
    /// them. It should not wait for a log: where that is read, it gives nothing, `at_head` false. It is then called again
    /// at once if it has changed the cursor, else after [`Self::changed`].
    fn next<'a>(&'a self, cursor: &'a mut FeedCursor) -> BoxFuture<'a, Result<FeedStep, Refusal>>;

    /// What is retained of the first of these streams, as many as make about [`PAGE_BYTES`]; the caller asks again for
    /// the others. There is at least one stream, each is of the topic.
    fn snapshots(&self, topic: &Topic, streams: &[StreamName]) -> Result<Snapshots, Refusal>;

    /// Resolves when [`Self::next`] may have something new for a topic: new events, or what was read from a log. What
    /// comes about after this *call* counts, even if the future has not been polled by then, so that nothing is missed
    /// between `next` and waiting.
    fn changed(&self, topic: &Topic) -> BoxFuture<'_, ()>;

    /// Whether the events of a topic are private: they are given only to edges of their users.
    fn is_private(&self, topic: &Topic) -> bool;

    /// Follows private streams from now on; nothing, while this peer has not read its logs to the end.
    fn follow(&self) -> Option<Box<dyn Follow>>;

    /// What this peer says of itself.
    fn status(&self) -> watch::Receiver<Status>;

    /// Answers another ingest peer's question about the catalogue.
    fn catalogue(&self, ask: Ask) -> BoxFuture<'_, Answer>;

    /// The state of a source, as bytes for a peer that starts; `None` if there is no such source, or it is not warm.
    fn state(&self, source: &str) -> BoxFuture<'_, Option<Bytes>>;
}

/// Private streams as one reader follows them. Nothing is queued for it but which of its streams have something new.
pub trait Follow: Send {
    /// Follows a stream, or changes how. Where it stands: with `push`, events after this come from [`Self::next`].
    fn add(&mut self, stream: &StreamName, push: bool) -> Option<Position>;

    fn remove(&mut self, stream: &StreamName);

    /// Events of pushed streams as they come about, about [`PAGE_BYTES`] at most; heads of those that this peer no longer has
    /// everything of. To give up waiting loses nothing.
    fn next(&mut self) -> BoxFuture<'_, Followed>;

    /// Where streams that are not pushed stand now, of those that have changed: so many at most.
    fn heads(&mut self, most: usize) -> Vec<(StreamName, Option<Position>)>;
}

/// What has come about on followed streams.
#[derive(Debug, Default)]
pub struct Followed {
    pub events: Vec<Event>,
    pub heads: Vec<(StreamName, Option<Position>)>,
}

/// How far a feed has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedCursor {
    pub topic: Topic,
    /// Those that were asked for; with `all`, the store adds the others of the topic as it meets them.
    pub streams: Vec<CursorStream>,
    /// All streams of the topic, those not named from the oldest there is.
    pub all: bool,
}

/// How far a feed has got on one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorStream {
    pub name: StreamName,
    /// The last event that was served, or where the reader stood; `None`: nothing yet, begin with the oldest.
    pub after: Option<Position>,
    /// Set by the store: refused, for good; or complete whenever it is at the head.
    pub end: Option<FeedEnd>,
    /// Set by the store: everything before this in its log, after `after`, has been looked at; nothing of it is the stream's.
    pub scanned: Option<Sequence>,
}

impl CursorStream {
    /// A stream whose reader stands at a position, or nowhere yet.
    pub fn new(name: StreamName, after: Option<Position>) -> Self {
        Self { name, after, end: None, scanned: None }
    }
}

/// What one call of [`FeedStore::next`] gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedStep {
    pub pages: Vec<SignedBatch>,
    /// Behind these pages there is nothing more now. Every stream of the cursor has its `end`.
    pub at_head: bool,
}

/// What one call of [`FeedStore::snapshots`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// Signed as snapshots, of those of which something is retained; none, if of none is.
    pub page: Option<SignedBatch>,
    /// For each of the first streams, at least for one, whether something is retained, and where that stands.
    pub ends: Vec<FeedEnd>,
}

/// Why a feed is not served, in words for the one who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub Cow<'static, str>);
