//! The question an edge asks when it joins a stream: where does it stand?
//!
//! An ingest peer answers only after it has seen the asking edge as a subscriber of the topic. It sends every later
//! batch to all subscribers directly, so the edge that got the answer "at 7" will receive everything after 7.

use crate::{Epoch, Position, StreamName, Topic, policy::ChannelPolicy};

/// Most streams in one question.
pub const MAX_HEAD_STREAMS: usize = 1024;

/// Most epochs of which an answer says how far they were read: more partitions than one ingest peer reads.
pub const MAX_HEAD_READ: usize = 4096;

/// Asks where streams of one topic stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadRequest {
    pub topic: Topic,
    /// At most [`MAX_HEAD_STREAMS`], all carried by the topic.
    pub streams: Vec<StreamName>,
}

/// Most epochs that an answer says streams have left.
pub const MAX_HEAD_LEFT: usize = 1024;

/// One answer per stream asked for, in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadReply {
    pub heads: Vec<Head>,
    /// Of a stream that is [`Head::Empty`] there is no event before these positions, one per epoch that the answerer reads. At
    /// most [`MAX_HEAD_READ`]; none, if it does not say.
    pub read: Vec<Position>,
    /// Epochs that streams have left, by the place of the stream in the question: what comes of them later is old. At most
    /// [`MAX_HEAD_LEFT`].
    pub left: Vec<(u32, Epoch)>,
    /// Of the topic's channel: edges know no routes.
    pub policy: ChannelPolicy,
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
