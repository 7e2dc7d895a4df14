//! The question an edge asks when it joins a stream: where does it stand?
//!
//! An ingest peer answers only after it has seen the asking edge as a subscriber of the topic. It sends every later
//! batch to all subscribers directly, so the edge that got the answer "at 7" will receive everything after 7.

use crate::{Position, StreamName, Topic};

/// Most streams in one question.
pub const MAX_HEAD_STREAMS: usize = 1024;

/// Asks where streams of one topic stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadRequest {
    pub topic: Topic,
    /// At most [`MAX_HEAD_STREAMS`], all carried by the topic.
    pub streams: Vec<StreamName>,
}

/// Most places in one answer. An ingest peer that reads more partitions leaves them out.
pub const MAX_HEAD_READ: usize = 1024;

/// One answer per stream asked for, in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadReply {
    pub heads: Vec<Head>,
    /// For streams that are [`Head::Empty`]: what comes next in each partition that was read, one per epoch. None of these
    /// streams has an event before. Without it, nobody could tell whether their first event is the first: it may have been
    /// lost, and all who published it gone. At most [`MAX_HEAD_READ`]; nothing, if none is empty or they are too many.
    pub read: Vec<Position>,
}

/// Where one stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The last event published has this position.
    At(Position),
    /// The channel exists; no event of this stream has been published yet.
    Empty,
    /// No route makes events of this channel.
    UnknownChannel,
    /// The channel is private: its events never enter gossip.
    Private,
}
