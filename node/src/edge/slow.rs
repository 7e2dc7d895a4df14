//! Clients that do not keep up with a channel that is conflated or resynced, and clients that begin with a snapshot: the steps of
//! their cursors (`resume`) that others do not make.
//!
//! A frame that does not fit the queue of a client turns its subscription from a live one into a cursor where the client is.
//! What is queued goes out; what comes passes by. When the queue has drained, the newest event, or a snapshot, is sent, and from
//! there the cursor goes on until it is live again. Frames of other channels that do not fit close the connection, and so
//! does a socket that takes nothing for the write timeout.

use tickmesh_protocol::{
    Position,
    client::{ControlMessage, Mark},
    policy::{OnSlow, Retain},
};
use tokio::time::Instant;

use super::{
    cursor::{Cursor, Snapshot, State, Step, room},
    fetch::Kind,
    frame,
    outbox::Pushed,
    queue::{Frame, StreamId},
    recent::RecentFrame,
    shard::Shard,
    snapshots::FRESH_FRAMES,
};
use crate::{lifecycle, ops::lifecycle::Lifecycle};

impl Shard {
    /// Gives a client snapshots of the streams that it has just been granted.
    pub fn begin_with_snapshots(&mut self, key: usize, streams: Vec<(StreamId, Option<Position>)>) {
        let Some(connection) = self.connections.get_mut(key).filter(|_| !streams.is_empty()) else { return };
        let cursors = streams.into_iter().map(|(stream, at)| Cursor::beginning(stream, at));
        connection.replaying.get_or_insert_default().cursors.extend(cursors);
        self.replay(key);
    }

    /// A frame did not fit the queue of a client, which has everything up to `at`.
    pub fn fall_behind(&mut self, key: usize, frame: &Frame, on_slow: OnSlow, at: Option<Position>) {
        match on_slow {
            OnSlow::Disconnect => return self.overload(key, "its queue is full"),
            OnSlow::Conflate => self.metrics.conflations.inc(),
            OnSlow::Resync => self.metrics.resyncs.inc(),
        }
        let Some(connection) = self.connections.get_mut(key).filter(|connection| connection.is_open()) else {
            return;
        };
        let (id, queued) = (connection.id, connection.outbox.queued_frames());
        let replaying = connection.replaying.get_or_insert_default();
        let first = !replaying.is_behind();
        replaying.cursors.push(Cursor::behind(frame.stream, at, u64::from(frame.event.is_some())));
        self.subscriptions.set_live(key, frame.stream, false);
        if first {
            let why = on_slow.to_string();
            lifecycle!(self.lifecycle, Lifecycle::ClientOverload, connection = self.name_of(id), queued, why);
        }
    }

    /// The step of a cursor that is to go on from a snapshot.
    pub fn step_to_snapshot(
        &mut self,
        key: usize,
        cursor: &mut Cursor,
        live: Option<Position>,
        now: Instant,
    ) -> Step {
        let room = room(&self.config.queue);
        if !self.connections.get(key).is_some_and(|connection| connection.outbox.has_room(room)) {
            return Step::Waits;
        }
        match &cursor.state {
            State::Wants { from } if now >= *from => match self.snapshot_at_hand(cursor, live) {
                Some(frame) => {
                    cursor.state = State::Snapshot(frame);
                    Step::Moved
                }
                None => self.ask(key, cursor, Kind::Snapshots),
            },
            State::Snapshot(frame) => {
                let frame = frame.clone();
                self.send_snapshot(key, cursor, &frame, live, now)
            }
            _ => Step::Waits,
        }
    }

    /// The newest event, if it says everything, or a snapshot that was fetched and that recent frames reach back to.
    fn snapshot_at_hand(&self, cursor: &Cursor, live: Option<Position>) -> Option<RecentFrame> {
        let members = self.subscriptions.members(cursor.stream)?;
        let takes = |frame: &RecentFrame| cursor.takes(frame.position);
        if members.policy.retain == Retain::Last
            && let Some(newest) = self.recent.newest(cursor.stream).filter(takes)
        {
            let conflated = cursor.passed.is_some() && members.policy.on_slow == OnSlow::Conflate;
            let mark = if conflated { Mark::Conflated } else { Mark::Snapshot };
            return Some(RecentFrame { bytes: frame::marked(&newest.bytes, mark), reset: None, ..newest });
        }
        let is_fresh = |frame: &RecentFrame| {
            let follow = self.recent.count_after(cursor.stream, frame.position);
            live.is_none_or(|live| live.epoch == frame.position.epoch)
                && follow.is_some_and(|frames| frames <= FRESH_FRAMES)
        };
        self.snapshots.get(&members.name).filter(takes).filter(is_fresh)
    }

    /// Sends a snapshot when it fits: a large one may have to wait until nothing else is queued.
    fn send_snapshot(
        &mut self,
        key: usize,
        cursor: &mut Cursor,
        snapshot: &RecentFrame,
        live: Option<Position>,
        now: Instant,
    ) -> Step {
        let (Some(connection), Some(members)) =
            (self.connections.get_mut(key), self.subscriptions.members(cursor.stream))
        else {
            return Step::Waits;
        };
        let (RecentFrame { position, bytes, .. }, retain) = (snapshot, members.policy.retain);
        let reset = cursor.at.filter(|at| at.epoch != position.epoch).map(|_| {
            let (stream, epoch) = (members.name.clone(), position.epoch);
            frame::control(&ControlMessage::Reset { stream, epoch })
        });
        let bytes = frame::after_reset(reset.as_ref(), bytes);
        if connection.push(bytes, self.config.queue, &mut self.output, now) != Pushed::Queued {
            return Step::Waits;
        }
        self.metrics.snapshots_sent.inc();
        cursor.at = Some(*position);
        // The last event is sent as it is, with a mark.
        cursor.replayed += u64::from(retain == Retain::Last);
        cursor.snapshot = Snapshot::Newer { since: cursor.replayed };
        let ahead = live.is_none_or(|live| live.epoch == position.epoch && live.sequence < position.sequence);
        cursor.state = if ahead { State::Ahead } else { State::Reads };
        Step::Moved
    }

    /// Counts what a slow client has not been sent.
    pub fn count_left_out(&self, cursor: &Cursor) {
        let (Some(passed), Some(members)) = (cursor.passed, self.subscriptions.members(cursor.stream)) else {
            return;
        };
        let dropped = match members.policy.on_slow {
            OnSlow::Conflate => &self.metrics.dropped_conflated,
            OnSlow::Resync | OnSlow::Disconnect => &self.metrics.dropped_resynced,
        };
        dropped.inc_by(passed.saturating_sub(cursor.replayed));
    }
}
