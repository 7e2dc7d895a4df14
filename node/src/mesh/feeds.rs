//! Feeds: ordered, resumable streams of events between two peers, beside gossip. The messages and their bytes are in
//! [`tickmesh_protocol::feed`]; here they go over libp2p streams.
//!
//! | module | holds |
//! |---|---|
//! | `streams` | the swarm's part: opens streams and takes those that others open |
//! | `wire` | frames on a stream |
//! | `server` | who is served: at most so many feeds, in turn |
//! | `serving` | one feed being served |
//! | `client` | asking: [`FeedReader`] |
//! | `private` | private streams, both sides: [`PrivateFeed`] |
//! | `statuses` | what publishers say of themselves, for ingest |
//!
//! The swarm's task only opens and takes streams. Reading, verifying, preparing and writing pages is done in tasks of
//! their own, so that a slow reader or a long answer never holds up gossip. Each feed holds the pages of one step at
//! most; they are written as fast as the reader reads, and a reader that takes nothing for a while is cut off.

mod client;
mod private;
mod server;
mod serving;
mod statuses;
mod streams;
mod wire;

use std::{collections::BTreeMap, time::Duration};

use libp2p::StreamProtocol;
use tickmesh_protocol::PublisherKey;

pub(super) use client::{ClientParts, FeedClient};
pub use client::{FeedError, FeedReader};
pub(super) use private::Gate;
pub use private::{PrivateAccess, PrivateFeed};
pub(super) use server::Server;
pub(super) use statuses::{Statuses, exchange};
pub(super) use streams::{FeedStreams, Incoming, Open};

/// Name of the protocol.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/tickmesh/feed/1");

/// Feeds that one peer may have open at a publisher. Yamux ends the whole connection at 512 streams, so this stays far
/// below, and a node keeps to it by itself.
pub const MAX_FEEDS_PER_PEER: usize = 64;

/// Feeds for a range of events that one node asks one publisher for at a time; the rest waits here. Leaves half of
/// [`MAX_FEEDS_PER_PEER`] to others.
pub const MAX_ASKED_FEEDS: usize = MAX_FEEDS_PER_PEER / 2;

/// Live feeds that one node has open at one publisher; more are refused here. Leaves two for its status and state.
pub const MAX_LIVE_FEEDS: usize = MAX_FEEDS_PER_PEER - MAX_ASKED_FEEDS - 2;

/// Feeds that all peers but publishers may have open at a publisher. Each holds [`crate::ports::PAGE_BYTES`] while its
/// reader is slow: 128 MiB.
const MAX_FEEDS: usize = 1024;

/// Who can be asked: the connected configured publishers, this node included if it serves feeds. The number is another
/// for each connection, so that a publisher that went and came back is seen to have done so.
pub type LivePublishers = BTreeMap<PublisherKey, u64>;

/// Limits and times of feeds. Not configurable for users; tests make them short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Within this, whoever opened a stream has sent its request. Five round trips of the longest line.
    pub request: Duration,
    /// A reader that takes not one byte for this long is cut off.
    pub write: Duration,
    /// Within this, a server sends at least one byte; it sends [`tickmesh_protocol::feed::FeedFrame::Working`] when there
    /// is nothing else. Many times [`Self::keep_alive`].
    pub idle: Duration,
    /// How often it says that it works: before an asker takes it for frozen and asks another.
    pub keep_alive: Duration,
    /// How long a request for a range may wait for its next page, most of all for a log.
    pub patience: Duration,
    /// At least this often a peer says how it is.
    pub status_every: Duration,
    /// Feeds of one peer.
    pub per_peer: usize,
    /// Feeds of all peers but publishers.
    pub in_all: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(5),
            write: Duration::from_secs(30),
            idle: Duration::from_secs(5),
            keep_alive: Duration::from_millis(400),
            patience: Duration::from_secs(60),
            status_every: Duration::from_millis(500),
            per_peer: MAX_FEEDS_PER_PEER,
            in_all: MAX_FEEDS,
        }
    }
}
