//! Feeds: what a peer asks another for over a stream of its own, and the frames it is answered with.
//!
//! Gossip loses; a feed does not. It is ordered, resumable by position and flow-controlled: the one who asks reads as fast
//! as it likes. One request, then frames:
//!
//! ```text
//! edge   ─> Streams { trades/62, after: [(trades.btc_usdt, 7)], live: false }
//! ingest <─ Page [8, 9, 12]
//! ingest <─ End  [(trades.btc_usdt, Complete { head: 12 })]
//! ```
//!
//! Who asks for snapshots is given what is retained of streams, each at the position that it says:
//!
//! ```text
//! edge   ─> Snapshots { depth/15, [depth.eth_usdt] }
//! ingest <─ Snapshots [the book at 251]
//! ingest <─ End  [(depth.eth_usdt, Complete { head: 251 })]
//! ```
//!
//! A *private feed* carries the events of private streams from an ingest peer to the edges where their users are, and to nobody
//! else. After its request the edge says what it wants as its clients come and go ([`PrivateChange`]), each time with what the
//! client has shown, which the ingest peer checks again:
//!
//! ```text
//! edge   ─> Private
//! edge   ─> Add { credential of alice, [orders.alice], push }
//! ingest <─ Heads [(orders.alice, 7)]
//! ingest <─ Events [8]                         as they come about
//! edge   ─> Remove [orders.alice]
//! ```
//!
//! An edge has a private feed at each ingest peer. One of them pushes a stream; the others say now and then where it stands, and
//! push it when the first is gone. Events of a private feed are not signed: the connection is the publisher's own, and they are
//! handed on to nobody.
//!
//! A page is signed by the publisher that serves it, so what is in it may be believed. What [`FeedFrame::End`] and
//! [`FeedFrame::Status`] claim is not signed: it decides what is asked next, never what a client is told.

use bytes::Bytes;

use crate::{
    Event, Position, SignedBatch, StreamName, Topic,
    catalogue::{Answer, Ask},
    client::Credential,
    revocation::Revocation,
};

/// Most streams that one request names, and one [`FeedFrame::End`] answers for: what an edge of some thousand clients
/// misses of one topic after a long pause.
pub const MAX_FEED_STREAMS: usize = 1024;

/// Longest name of a source, in bytes: as in its configuration.
pub const MAX_SOURCE_NAME_BYTES: usize = 64;

/// Most sources in a [`Status`]: logs that one peer reads. A handful is usual.
pub const MAX_STATUS_SOURCES: usize = 256;

/// Most bytes of state in one frame, so that what else goes over the connection does not wait long.
pub const MAX_STATE_CHUNK_BYTES: usize = 128 * 1024;

/// Longest reason of a refusal, in bytes. It goes into a log line.
pub const MAX_REASON_BYTES: usize = 256;

/// Most streams in one [`PrivateChange`], and in one answer to it.
pub const MAX_CHANGE_STREAMS: usize = 256;

/// Most private streams of one feed: the users of one edge.
pub const MAX_PRIVATE_STREAMS: usize = 256 * 1024;

/// What a peer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedRequest {
    /// Events of some streams of a topic, after the positions; `None`: from the oldest there is.
    Streams {
        topic: Topic,
        /// 1 to [`MAX_FEED_STREAMS`], each once, all of the topic.
        after: Vec<(StreamName, Option<Position>)>,
        /// Go on for ever; otherwise until the server's head.
        live: bool,
    },
    /// Events of all streams of a topic; those not named from the oldest there is.
    Topic {
        topic: Topic,
        /// At most [`MAX_FEED_STREAMS`], each once, all of the topic.
        after: Vec<(StreamName, Position)>,
        live: bool,
    },
    /// What this ingest peer is and how far: at once, then whenever it changes, and twice a second. Only for publishers.
    Status,
    /// The state of a source, to start from. Only for publishers.
    State {
        /// At most [`MAX_SOURCE_NAME_BYTES`].
        source: String,
    },
    /// What is retained of some streams of a topic, at once, and no more.
    Snapshots {
        topic: Topic,
        /// 1 to [`MAX_FEED_STREAMS`], each once, all of the topic.
        streams: Vec<StreamName>,
    },
    /// Private streams, as [`PrivateChange`]s name them, and what was revoked. Only for publishers and the edges in `mesh.edges`.
    Private,
    /// What ingest peers say to one another about sources and routes that change. Only for publishers.
    Catalogue(Box<Ask>),
}

/// What an edge tells an ingest peer on a private feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrivateChange {
    /// A client who showed this wants these streams. It may be said again, with what the client has shown later.
    Add {
        /// At most [`crate::client::MAX_CREDENTIAL_BYTES`].
        credential: Credential,
        /// 1 to [`MAX_CHANGE_STREAMS`].
        streams: Vec<StreamName>,
        /// Send their events; otherwise where they stand, now and then.
        push: bool,
    },
    /// Begin, or cease, to send the events of streams that were added.
    Push { streams: Vec<StreamName>, push: bool },
    /// Nobody here wants them any more.
    Remove { streams: Vec<StreamName> },
}

/// Why an edge is not given a user's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// What the client showed is not accepted, or says that it is somebody else.
    Forbidden,
    /// It was accepted once, and has expired or was taken back.
    Expired,
    /// It cannot be checked at the moment.
    Unavailable,
}

/// One frame of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedFrame {
    /// Signed as a page, see [`SignedBatch::sign_page`].
    Page(SignedBatch),
    /// How it ended for each stream that the request named. The last frame, unless the feed is live: then it names only
    /// streams that were refused, as soon as they are, and the feed goes on with the others.
    End {
        streams: Vec<(StreamName, FeedEnd)>,
    },
    Status(Status),
    /// A part of what [`FeedRequest::State`] asked for, at most [`MAX_STATE_CHUNK_BYTES`].
    State {
        chunk: Bytes,
        last: bool,
    },
    /// Nothing (more) will come, and why, in words: busy, warming, private. The last frame.
    Refused {
        reason: String,
    },
    /// Where private streams stand: the answer to [`PrivateChange::Add`] and to the beginning of a push, whose events are those
    /// after it; and for others whatever has changed. At most [`MAX_CHANGE_STREAMS`].
    Heads(Vec<(StreamName, Option<Position>)>),
    /// These private streams are not, or no longer, sent. At most [`MAX_CHANGE_STREAMS`].
    Denied {
        streams: Vec<StreamName>,
        why: Denial,
    },
    /// Events of private streams, as many as a batch may have.
    Events(Vec<Event>),
    /// Credentials that are no longer accepted, whose ever they are. At most [`MAX_CHANGE_STREAMS`].
    Revoked(Vec<Revocation>),
    /// There is nothing to send yet, but the server is at it: it reads the log, or others are served first.
    Working,
    /// What is retained of streams: events whose `data` is all there is to know at their `sequence`. Signed as snapshots,
    /// see [`SignedBatch::sign_snapshots`].
    Snapshots(SignedBatch),
    /// The answer to [`FeedRequest::Catalogue`], and the last frame.
    Catalogue(Box<Answer>),
}

/// How a feed ended for one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedEnd {
    /// Everything after the position asked for was served, up to the server's head; `None`: it knows no event. Of a
    /// snapshot: where it stands.
    Complete { head: Option<Position> },
    /// The server no longer has, or never had, what follows the position; its oldest event is this. Of a snapshot: nothing
    /// is retained.
    Refused { oldest: Option<Position> },
}

/// What an ingest peer says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Of this start of the process, as in its batches.
    pub boot: u64,
    /// At most [`crate::topic::MAX_REGION_BYTES`].
    pub region: String,
    /// At most [`MAX_STATUS_SOURCES`].
    pub sources: Vec<SourceStatus>,
    /// How late its own loop runs: the 99th percentile of the last seconds, in microseconds.
    pub lag_us: u64,
}

/// What an ingest peer says of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// At most [`MAX_SOURCE_NAME_BYTES`].
    pub name: String,
    /// It has read the log to its end once, and may lead.
    pub warm: bool,
    /// Records behind the end of the log.
    pub lag: u64,
}

impl FeedRequest {
    /// The topic of a request for events.
    pub fn topic(&self) -> Option<&Topic> {
        match self {
            Self::Streams { topic, .. } | Self::Topic { topic, .. } | Self::Snapshots { topic, .. } => {
                Some(topic)
            }
            Self::Status | Self::State { .. } | Self::Private | Self::Catalogue(_) => None,
        }
    }

    /// Whether the feed goes on until one side ends it.
    pub fn is_live(&self) -> bool {
        match self {
            Self::Streams { live, .. } | Self::Topic { live, .. } => *live,
            Self::Status | Self::Private => true,
            Self::State { .. } | Self::Snapshots { .. } | Self::Catalogue(_) => false,
        }
    }
}

impl FeedFrame {
    /// A refusal; a longer reason is cut.
    pub fn refused(reason: impl Into<String>) -> Self {
        let mut reason: String = reason.into();
        if reason.len() > MAX_REASON_BYTES {
            let mut end = MAX_REASON_BYTES;
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            reason.truncate(end);
        }
        Self::Refused { reason }
    }
}
