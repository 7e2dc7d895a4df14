//! A cursor: how far a client has got on a stream of which it does not get each frame as it comes. Pure.

use std::{sync::Arc, time::Duration};

use tickmesh_protocol::{
    Position, StreamName,
    client::{ErrorCode, Rejection},
    policy::OnSlow,
};
use tokio::time::Instant;

use super::{outbox::Bounds, queue::StreamId, recent::RecentFrame, replay::Replayed};
use crate::ops::metrics::now_us;

/// Pause before a server is asked again, that has not come to where this edge, or the client, already is.
pub const RETRY: Duration = Duration::from_millis(100);

/// How often it is asked before it is believed that nothing is there: a second at least, which a publisher may be behind
/// another.
const RETRIES: u32 = 10;

/// How far a client has got on one stream.
#[derive(Debug)]
pub struct Cursor {
    pub stream: StreamId,
    /// The serial of its resume request, if it is of one.
    pub request: Option<u64>,
    pub from: Option<Position>,
    pub at: Option<Position>,
    /// Events sent.
    pub replayed: u64,
    pub state: State,
    /// Answers in a row that brought nothing.
    pub vain: u32,
    pub snapshot: Snapshot,
    /// Of a client that does not keep up: events that have passed it by.
    pub passed: Option<u64>,
}

/// What a cursor knows of snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// It has none, or begins with one.
    First,
    /// The next one must be newer than where it stands, since the client has what is before. It had sent so many events when
    /// it began from here.
    Newer { since: u64 },
    /// Nobody has one.
    Nowhere,
}

#[derive(Debug)]
pub enum State {
    /// It is to go on from a snapshot, when its client has taken what it was sent.
    Wants {
        from: Instant,
    },
    /// A server was asked for one.
    AskedSnapshot,
    Snapshot(RecentFrame),
    Reads,
    /// A feed was asked.
    Asked,
    Page(Arc<[RecentFrame]>, usize),
    Pauses {
        until: Instant,
    },
    /// It stands where the stream will come to.
    Ahead,
}

/// What became of a cursor.
#[derive(Debug)]
pub enum Step {
    /// It has moved, and may move on.
    Moved,
    Waits,
    /// The client has everything.
    Live,
    Refused(Refused),
}

#[derive(Clone, Copy, Debug)]
pub enum Refused {
    Lost {
        oldest: Option<Position>,
    },
    TooMany,
    TooOld {
        oldest: Position,
    },
    /// The position is beyond everything that there is.
    Beyond,
    NoEvents,
}

impl Cursor {
    /// What a resume request leaves to be sent.
    pub fn resumed(stream: StreamId, request: u64, from: Option<Position>) -> Self {
        let (request, state) = (Some(request), State::Reads);
        Self {
            stream,
            request,
            from,
            at: from,
            replayed: 0,
            state,
            vain: 0,
            snapshot: Snapshot::First,
            passed: None,
        }
    }

    /// A client that begins with a snapshot, and has been told this position.
    pub fn beginning(stream: StreamId, at: Option<Position>) -> Self {
        Self { request: None, state: State::Wants { from: Instant::now() }, ..Self::resumed(stream, 0, at) }
    }

    /// A client that has everything up to a position and does not keep up; `passed`: events that it has not been sent.
    pub fn behind(stream: StreamId, at: Option<Position>, passed: u64) -> Self {
        let snapshot = Snapshot::Newer { since: 0 };
        Self { snapshot, passed: Some(passed), ..Self::beginning(stream, at) }
    }

    /// Goes on from another snapshot, a little later.
    pub fn start_over(&mut self) {
        self.snapshot = Snapshot::Newer { since: self.replayed };
        self.state = State::Wants { from: Instant::now() + RETRY };
    }

    /// Whether a snapshot gets the client further.
    pub fn takes(&self, position: Position) -> bool {
        self.snapshot == Snapshot::First
            || self.at.is_none_or(|at| at.epoch != position.epoch || at.sequence < position.sequence)
    }

    /// Whether another snapshot is to be sent instead of what it has not been sent. Not of a resume request: it has asked for
    /// every event.
    pub fn is_late(&self, on_slow: OnSlow, queue: &Bounds) -> bool {
        let since = match self.snapshot {
            Snapshot::Newer { since } => since,
            Snapshot::First => 0,
            Snapshot::Nowhere => return false,
        };
        self.request.is_none()
            && match on_slow {
                OnSlow::Disconnect => false,
                OnSlow::Conflate => true,
                // As much as it may be behind while it is live.
                OnSlow::Resync => self.replayed - since > queue.frames as u64,
            }
    }

    /// Events sent since it began from a snapshot, or from where the client was.
    pub fn replayed_in_a_row(&self) -> u64 {
        match self.snapshot {
            Snapshot::Newer { since } => self.replayed - since,
            Snapshot::First | Snapshot::Nowhere => self.replayed,
        }
    }

    /// Takes the answer of a feed; `live`: where this edge stands. Why the stream cannot be resumed, if it cannot.
    pub fn answered(&mut self, replayed: Replayed, live: Option<Position>, age: Duration) -> Option<Refused> {
        match replayed {
            Replayed::Frames(frames, index) => {
                if self.replayed == 0
                    && let Some(first) = frames.get(index).filter(|first| is_older(first, age))
                {
                    return Some(Refused::TooOld { oldest: first.position });
                }
                self.vain = 0;
                self.state = State::Page(frames, index);
                None
            }
            // The server has come to where the client is, and this edge will.
            Replayed::Nothing { head } if is_ahead(self.at, live) && covers(head, self.at) => {
                self.state = State::Ahead;
                None
            }
            Replayed::Nothing { .. } if self.vain >= RETRIES => Some(Refused::Beyond),
            Replayed::Nothing { .. } => {
                self.vain += 1;
                self.state = State::Pauses { until: Instant::now() + RETRY };
                None
            }
            Replayed::Lost { oldest } => Some(Refused::Lost { oldest }),
            Replayed::Snapshot(Some(frame)) if self.takes(frame.position) => {
                self.state = State::Snapshot(frame);
                None
            }
            // The client has what is in it.
            Replayed::Snapshot(Some(_)) => {
                self.snapshot = Snapshot::Newer { since: self.replayed };
                self.state = State::Reads;
                None
            }
            Replayed::Snapshot(None) => {
                self.snapshot = Snapshot::Nowhere;
                self.state = State::Reads;
                None
            }
        }
    }

    /// Whether the stream has come to where the cursor waits, now that a frame was handed out; and if so, whether the client
    /// misses that frame. `position`: the event's, if it is one; `before`: where the stream stood before it.
    pub fn is_reached(&self, position: Option<Position>, before: Option<Position>) -> Option<bool> {
        let at = self.at?;
        match position {
            // The stream is numbered anew: whoever is in the old epoch has all of it.
            None => before.filter(|before| before.epoch == at.epoch).map(|_| true),
            Some(position) if position == at => Some(false),
            Some(position) => {
                let passed = position.epoch == at.epoch && position.sequence > at.sequence;
                passed.then_some(true)
            }
        }
    }
}

impl Refused {
    pub fn rejection(self, stream: &StreamName, last: Option<Position>) -> Rejection {
        let (oldest, message) = match self {
            Self::Lost { oldest } => (oldest, "what follows the position is no longer kept"),
            Self::TooMany => (last, "more events were missed than are replayed"),
            Self::TooOld { oldest } => (Some(oldest), "what was missed is older than what is replayed"),
            Self::Beyond => (None, "the position is beyond the newest event"),
            Self::NoEvents => (None, "the stream has no event, so none with this sequence"),
        };
        Rejection { oldest, ..Rejection::new(stream.as_str(), ErrorCode::ResumeGap, message) }
    }
}

/// What may be queued of what was missed: so little that the client never counts as crowded, which would hold up others.
pub fn room(queue: &Bounds) -> Bounds {
    Bounds { frames: (queue.frames / 8).max(1), bytes: queue.bytes / 8 }
}

fn is_older(frame: &RecentFrame, age: Duration) -> bool {
    let now = Duration::from_micros(now_us());
    frame.engine_time_us > 0 && now.saturating_sub(Duration::from_micros(frame.engine_time_us)) > age
}

/// Whether a position is beyond another of the same epoch, or there is no other.
pub fn is_ahead(position: Option<Position>, other: Option<Position>) -> bool {
    match (position, other) {
        (Some(position), Some(other)) => position.epoch != other.epoch || position.sequence > other.sequence,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// Whether one who stands at `head` has come to a position.
fn covers(head: Option<Position>, position: Option<Position>) -> bool {
    match (head, position) {
        (Some(head), Some(position)) => head.epoch == position.epoch && head.sequence >= position.sequence,
        _ => false,
    }
}
