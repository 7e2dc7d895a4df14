//! The hand-over from the hub to a shard: frames and confirmations in one order.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tickmesh_protocol::{
    Event, Position, Sequence, StreamName,
    client::{Credential, LastSeen, Rejection, RequestId},
    policy::{ChannelPolicy, Retain},
};
use tokio::sync::Notify;

use super::{
    metrics::ChannelMetrics,
    outbox::Bounds,
    replay::{Replayed, Waiter},
};

/// Names a stream between the hub and the shards. It may name another one later, but not before the last subscription has
/// been released; and since a shard's queue keeps its order, no frame can reach the wrong stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub usize);

/// Names a connection within its shard: its place, and a serial number because places are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    pub key: usize,
    pub serial: u64,
}

/// What a shard asks the hub for.
#[derive(Debug)]
pub enum ToHub {
    Subscribe(Subscribe),
    /// One entry for each subscription that ended.
    Release {
        shard: usize,
        streams: Vec<StreamId>,
    },
    /// A client has shown something newer for private streams that it has.
    Renew {
        streams: Vec<StreamName>,
        credential: Arc<Credential>,
    },
}

/// A subscribe request whose streams may be had.
#[derive(Debug)]
pub struct Subscribe {
    pub shard: usize,
    pub connection: ConnectionId,
    pub ticket: Ticket,
    /// Without doubles.
    pub streams: Vec<StreamName>,
    /// What the client has shown, for private streams among them.
    pub credential: Option<Arc<Credential>>,
}

/// What of a request only its shard understands; it comes back with the confirmation.
#[derive(Debug)]
pub struct Ticket {
    pub id: Option<RequestId>,
    /// Streams that the shard has refused already.
    pub rejected: Vec<Rejection>,
    /// Streams that were passed on, for the connection's account.
    pub streams: usize,
    /// Bytes of the request, for the connection's account.
    pub bytes: usize,
    /// Of a resume request: where the client goes on.
    pub resume: Option<Resume>,
}

/// Where a client goes on.
#[derive(Debug)]
pub enum Resume {
    /// On all streams after this number of their one partition.
    Last(Sequence),
    Positions(HashMap<StreamName, LastSeen>),
}

/// What the hub tells a shard.
#[derive(Debug)]
pub enum ToShard {
    Frame(Frame),
    Confirm(Confirmation),
    /// What a client has missed, or that it cannot be had.
    Replayed(Waiter, Replayed),
}

/// One frame for all subscribers of a stream.
#[derive(Debug)]
pub struct Frame {
    pub stream: StreamId,
    pub bytes: Bytes,
    /// The event in it; `None` if it is a control message.
    pub event: Option<FrameEvent>,
}

/// The event in a frame.
#[derive(Clone, Debug)]
pub struct FrameEvent {
    pub position: Position,
    pub engine_time_us: u64,
    pub channel: Arc<ChannelMetrics>,
}

/// Answers a [`Subscribe`]. Everything later in the queue belongs to the granted streams.
#[derive(Debug)]
pub struct Confirmation {
    pub connection: ConnectionId,
    pub ticket: Ticket,
    /// Each counts as one subscription until it is released.
    pub granted: Vec<Grant>,
    pub rejected: Vec<Rejection>,
}

/// A stream that a connection has from now on.
#[derive(Clone, Debug)]
pub struct Grant {
    pub id: StreamId,
    pub name: StreamName,
    pub position: Option<Position>,
    pub policy: ChannelPolicy,
}

impl Grant {
    pub fn begins_with_snapshot(&self) -> bool {
        begins_with_snapshot(self.policy, self.position)
    }
}

/// Whether who comes to a stream is given a snapshot first: something is retained, and there was an event.
pub fn begins_with_snapshot(policy: ChannelPolicy, position: Option<Position>) -> bool {
    policy.retain != Retain::None && position.is_some()
}

/// Most fetched events that go to the shards at once; live batches have their turn between two portions.
const MAX_PORTION_EVENTS: usize = 256;

/// How much of what was fetched goes to the shards at once: never so much that it fills the queue of a client that reads
/// as fast as it comes. One for all shards.
#[derive(Debug)]
pub struct FeedRoom {
    portion: Bounds,
    /// What may be waiting for a shard already.
    waiting: Bounds,
    changed: Notify,
}

impl FeedRoom {
    /// For clients with these bounds: a portion is a quarter of a queue at most, and what may wait for a shard before it a
    /// sixteenth. So one portion that is being written, one that waits, and what makes a client count as crowded fill no
    /// queue.
    pub fn new(client: Bounds) -> Self {
        let frames = (client.frames / 4).clamp(1, MAX_PORTION_EVENTS);
        let portion = Bounds { frames, bytes: client.bytes / 4 };
        let waiting = Bounds { frames: client.frames / 16, bytes: client.bytes / 16 };
        Self { portion, waiting, changed: Notify::new() }
    }

    /// How many of these events are the next portion: at least one, if there is any.
    pub fn portion(&self, events: &[Event]) -> usize {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.bytes();
            bytes <= self.portion.bytes
        };
        events.iter().take(self.portion.frames).take_while(fits).count().max(1).min(events.len())
    }

    /// Resolves when a shard may have room that had none.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// What waits for one shard. Everything that has gathered is taken at once: the busier the shard, the more of it goes
/// out in one write per connection.
#[derive(Debug)]
pub struct ShardQueue {
    waiting: Mutex<Waiting>,
    ready: Notify,
    max_bytes: usize,
    feed_room: Arc<FeedRoom>,
    /// A client of the shard has not taken what it has been sent.
    crowded: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: Vec<ToShard>,
    bytes: usize,
}

impl ShardQueue {
    /// `max_bytes` bounds events. Confirmations and control frames always go in: there are no more of them than clients
    /// have requests outstanding, which their shard bounds, and streams have changed their epoch.
    pub fn new(max_bytes: usize, feed_room: Arc<FeedRoom>) -> Self {
        let (waiting, ready, crowded) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        Self { waiting, ready, max_bytes, feed_room, crowded }
    }

    /// Whether what was fetched may go in: the shard and all of its clients keep up.
    pub fn takes_feeds(&self) -> bool {
        if self.crowded.load(Ordering::Relaxed) {
            return false;
        }
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let most = self.feed_room.waiting;
        waiting.bytes <= most.bytes && waiting.messages.len() <= most.frames
    }

    /// The shard says whether a client has not taken what it has been sent.
    pub fn set_crowded(&self, crowded: bool) {
        self.crowded.store(crowded, Ordering::Relaxed);
        self.feed_room.changed.notify_one();
    }

    /// Moves messages in, in order, and returns how many events did not fit and were dropped.
    pub fn append(&self, messages: &mut Vec<ToShard>) -> u64 {
        if messages.is_empty() {
            return 0;
        }
        let mut dropped = 0;
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for message in messages.drain(..) {
                if let ToShard::Frame(Frame { bytes, event: Some(_), .. }) = &message {
                    if waiting.bytes + bytes.len() > self.max_bytes {
                        dropped += 1;
                        continue;
                    }
                    waiting.bytes += bytes.len();
                }
                waiting.messages.push(message);
            }
        }
        self.ready.notify_one();
        dropped
    }

    /// Takes everything, once there is something. `into` must be empty; its memory is used for what comes next.
    pub async fn take(&self, into: &mut Vec<ToShard>) {
        loop {
            {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if !waiting.messages.is_empty() {
                    mem::swap(&mut waiting.messages, into);
                    waiting.bytes = 0;
                    self.feed_room.changed.notify_one();
                    return;
                }
            }
            self.ready.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tickmesh_protocol::{Epoch, Sequence};

    use super::*;
    use crate::{
        edge::metrics::{Channels, EdgeMetrics},
        ops::metrics::Registry,
    };

    fn frame(event: Option<FrameEvent>) -> ToShard {
        ToShard::Frame(Frame { stream: StreamId(1), bytes: Bytes::from_static(&[0; 40]), event })
    }

    #[tokio::test]
    async fn events_are_bounded_and_control_frames_always_go_in() {
        let metrics = EdgeMetrics::new(&Registry::new());
        let event = || {
            Some(FrameEvent {
                position: Position { epoch: Epoch::from_u64(1), sequence: Sequence::ZERO },
                engine_time_us: 0,
                channel: metrics.channel(&mut Channels::default(), "trades"),
            })
        };
        let room = FeedRoom::new(Bounds { frames: 8, bytes: 16 * 40 });
        let queue = ShardQueue::new(100, Arc::new(room));
        let mut messages = vec![frame(event()), frame(event()), frame(event()), frame(None)];
        assert_eq!(queue.append(&mut messages), 1);
        assert!(messages.is_empty());
        assert_eq!(queue.append(&mut vec![frame(event())]), 1);
        let mut taken = Vec::new();
        queue.take(&mut taken).await;
        let events: Vec<bool> = taken
            .iter()
            .map(|message| matches!(message, ToShard::Frame(Frame { event: Some(_), .. })))
            .collect();
        assert_eq!(events, [true, true, false]);
        // What was taken makes room.
        assert_eq!(queue.append(&mut vec![frame(event()), frame(event())]), 0);
    }
}
