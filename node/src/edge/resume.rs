//! Clients that come back: each is given what it missed, at its own pace, and then what is new.
//!
//! ```text
//! resume ─> hub joins the stream ─> a cursor at the client's position ─> recent frames of this edge,
//!                                       │  as the socket drains          or a feed (`replay`)
//!                                       └─> where the live stream stands: the subscription is live
//! ```
//!
//! Hand-over: a cursor's subscription *waits*; frames that the shard hands out meanwhile pass it by, and are in [`Recent`]. When
//! the cursor stands exactly where the stream stood when the last frame was handed out, the next frame is the one that follows,
//! so the subscription is made live and nothing is missed or doubled. A cursor that is ahead of this edge, because its client was
//! at a quicker one, waits until the stream has come there.
//!
//! Nothing is queued for a client that does not read: a cursor is a position. What is sent never makes it a slow client, since a
//! part of its queue only is used.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use tickmesh_protocol::{
    Position, StreamName,
    client::{ControlMessage, ErrorCode, LastSeen, Rejection, RequestId, Resumed},
};
use tokio::time::Instant;

use super::{
    cursor::{Cursor, RETRY, Refused, Snapshot, State, Step, room},
    fetch::Kind,
    frame,
    outbox::Pushed,
    queue::{Frame, Grant, Resume, StreamId, Ticket},
    recent::{Found, RecentFrame},
    replay::{Ask, Replayed, Waiter},
    shard::Shard,
};
use crate::{lifecycle, ops::lifecycle::Lifecycle};

/// Cursors of one client that move at the same time; each may hold a page of a feed while the client takes it.
const MOVING: usize = 4;

/// Frames taken from the recent ones at once.
const PORTION_FRAMES: usize = 64;

/// How much may be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeLimits {
    /// Events of one stream that one client may have missed.
    pub events: u64,
    /// How old the first of them may be.
    pub age: Duration,
    /// Bytes of frames that the edge keeps of all streams together.
    pub memory: usize,
}

impl Default for ResumeLimits {
    fn default() -> Self {
        Self { events: 100_000, age: Duration::from_secs(3600), memory: 64 * 1024 * 1024 }
    }
}

/// What one connection is still being given.
#[derive(Debug, Default)]
pub struct Replaying {
    pub cursors: Vec<Cursor>,
    requests: Vec<Request>,
    next_request: u64,
}

/// A resume request that is not answered yet.
#[derive(Debug)]
struct Request {
    serial: u64,
    id: Option<RequestId>,
    /// Cursors that are not done.
    undone: usize,
    resumed: Vec<Resumed>,
    rejected: Vec<Rejection>,
    /// Streams that begin when their clients have been told that something is missing.
    begin: Vec<StreamId>,
}

impl Replaying {
    fn is_done(&self) -> bool {
        self.cursors.is_empty() && self.requests.is_empty()
    }

    fn request(&mut self, serial: Option<u64>) -> Option<&mut Request> {
        self.requests.iter_mut().find(|request| Some(request.serial) == serial)
    }

    /// Whether the client does not keep up with a stream.
    pub fn is_behind(&self) -> bool {
        self.cursors.iter().any(|cursor| cursor.passed.is_some())
    }
}

impl Shard {
    /// Begins to give a client what it missed of the streams that were granted.
    pub fn begin_resume(
        &mut self,
        key: usize,
        ticket: Ticket,
        resume: &Resume,
        granted: Vec<Grant>,
        rejected: Vec<Rejection>,
    ) {
        let Ticket { id, rejected: mut all_rejected, .. } = ticket;
        all_rejected.extend(rejected);
        let one_epoch = {
            let mut epochs = granted.iter().filter_map(|grant| Some(grant.position?.epoch));
            let first = epochs.next();
            epochs.all(|epoch| Some(epoch) == first)
        };
        let mut cursors = Vec::new();
        for grant in granted {
            if matches!(resume, Resume::Last(_)) && !one_epoch {
                self.release([grant.id]);
                let message = "the streams are not numbered by one partition; name a position for each";
                all_rejected.push(Rejection::new(grant.name.as_str(), ErrorCode::BadRequest, message));
            } else if self.subscriptions.add(key, &grant, false) {
                self.metrics.subscriptions.inc();
                cursors.push((grant.id, start_of(resume, &grant)));
            } else {
                self.release([grant.id]);
                let message = "the connection has the stream already; unsubscribe first";
                all_rejected.push(Rejection::new(grant.name.as_str(), ErrorCode::BadRequest, message));
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        lifecycle!(
            self.lifecycle,
            Lifecycle::ResumeStream,
            connection = format!("{}-{}", self.index, connection.id.serial),
            streams = cursors.len(),
            refused = all_rejected.len()
        );
        let replaying = connection.replaying.get_or_insert_default();
        let serial = replaying.next_request;
        replaying.next_request += 1;
        replaying.requests.push(Request {
            serial,
            id,
            undone: cursors.len(),
            resumed: Vec::new(),
            rejected: all_rejected,
            begin: Vec::new(),
        });
        let mut refused = Vec::new();
        for (stream, start) in cursors {
            match start {
                Ok(from) => replaying.cursors.push(Cursor::resumed(stream, serial, from)),
                Err(why) => refused.push((stream, why)),
            }
        }
        let Some(mut replaying) = connection.replaying.take() else { return };
        for (stream, why) in refused {
            self.refuse_stream(&mut replaying, serial, stream, None, why);
        }
        self.answer_resumed(key, &mut replaying);
        self.keep_replaying(key, replaying);
        self.replay(key);
    }

    /// Gives a client more of what it missed, as far as it takes it.
    pub fn replay(&mut self, key: usize) {
        let now = Instant::now();
        while let Some(connection) = self.connections.get_mut(key).filter(|connection| connection.is_open())
            && let Some(mut replaying) = connection.replaying.take()
        {
            let moved = self.move_cursors(key, &mut replaying, now);
            self.answer_resumed(key, &mut replaying);
            self.keep_replaying(key, replaying);
            if !moved {
                return;
            }
            if let Some(connection) = self.connections.get_mut(key)
                && connection.blocked_since.is_none()
            {
                connection.flush(&mut self.output, now);
            }
        }
    }

    pub fn keep_replaying(&mut self, key: usize, replaying: Box<Replaying>) {
        if let Some(connection) = self.connections.get_mut(key).filter(|_| !replaying.is_done()) {
            connection.replaying = Some(replaying);
        }
    }

    /// Moves the first cursors a step each; whether any has moved. Those that only wait for their stream hold up no others.
    fn move_cursors(&mut self, key: usize, replaying: &mut Replaying, now: Instant) -> bool {
        let (mut moved, mut index, mut moving) = (false, 0, 0);
        while moving < MOVING
            && let Some(cursor) = replaying.cursors.get_mut(index)
        {
            let step = self.step(key, cursor, now);
            match step {
                Step::Moved | Step::Waits => {
                    moved |= matches!(step, Step::Moved);
                    moving += usize::from(!matches!(cursor.state, State::Ahead));
                    index += 1;
                }
                Step::Live => {
                    let cursor = replaying.cursors.remove(index);
                    self.go_live(key, replaying, cursor);
                    moved = true;
                }
                Step::Refused(why) => {
                    let cursor = replaying.cursors.remove(index);
                    self.refuse_cursor(key, replaying, cursor, why);
                    moved = true;
                }
            }
        }
        moved
    }

    fn step(&mut self, key: usize, cursor: &mut Cursor, now: Instant) -> Step {
        let Some((live, on_slow)) =
            self.subscriptions.members(cursor.stream).map(|members| (members.last, members.policy.on_slow))
        else {
            return Step::Waits;
        };
        if matches!(cursor.state, State::Wants { .. } | State::AskedSnapshot | State::Snapshot(_)) {
            return self.step_to_snapshot(key, cursor, live, now);
        }
        if cursor.at == live {
            return Step::Live;
        }
        if cursor.replayed_in_a_row() > self.config.resume.events {
            return Step::Refused(Refused::TooMany);
        }
        if matches!(cursor.state, State::Reads) && cursor.is_late(on_slow, &self.config.queue) {
            cursor.start_over();
            return Step::Waits;
        }
        match &mut cursor.state {
            State::Wants { .. } | State::AskedSnapshot | State::Snapshot(_) => Step::Waits,
            State::Asked | State::Ahead => Step::Waits,
            State::Pauses { until } if now < *until => Step::Waits,
            State::Pauses { .. } => self.ask(key, cursor, Kind::Events),
            State::Page(frames, index) => {
                let frames = Arc::clone(frames);
                let sent = self.send_missed(key, cursor.stream, &frames[*index..]);
                if sent == 0 {
                    return Step::Waits;
                }
                *index += sent;
                let at = frames[*index - 1].position;
                if *index == frames.len() {
                    let ahead =
                        live.is_some_and(|live| live.epoch == at.epoch && live.sequence < at.sequence);
                    cursor.state = if ahead { State::Ahead } else { State::Reads };
                }
                cursor.at = Some(at);
                cursor.replayed += sent as u64;
                Step::Moved
            }
            State::Reads => {
                let room = room(&self.config.queue);
                match self.recent.after(cursor.stream, cursor.at, PORTION_FRAMES, room.bytes) {
                    Found::Frames(frames) => {
                        cursor.state = State::Page(frames.into(), 0);
                        Step::Moved
                    }
                    Found::Nothing { newest } if newest == cursor.at => {
                        cursor.state = State::Ahead;
                        Step::Waits
                    }
                    Found::Nothing { .. } | Found::NotHeld => self.ask(key, cursor, Kind::Events),
                }
            }
        }
    }

    /// Sends as much as may be queued of what a client missed; how many frames that was.
    fn send_missed(&mut self, key: usize, stream: StreamId, frames: &[RecentFrame]) -> usize {
        let Some(connection) = self.connections.get_mut(key) else { return 0 };
        let (room, now) = (room(&self.config.queue), Instant::now());
        let mut sent = 0;
        for frame in frames {
            if !connection.outbox.has_room(room) {
                break;
            }
            // A large one may have to wait until nothing else is queued.
            let bytes = frame::after_reset(frame.reset.as_ref(), &frame.bytes);
            if connection.push(bytes, self.config.queue, &mut self.output, now) != Pushed::Queued {
                break;
            }
            sent += 1;
        }
        self.metrics.replayed.inc_by(sent as u64);
        if let Some(members) = self.subscriptions.members(stream) {
            tracing::trace!(stream = %members.name, sent, "missed events sent");
        }
        sent
    }

    /// Asks for what follows, or for a snapshot; later, if too many wait for that.
    pub fn ask(&mut self, key: usize, cursor: &mut Cursor, what: Kind) -> Step {
        let (Some(connection), Some(members)) =
            (self.connections.get(key), self.subscriptions.members(cursor.stream))
        else {
            return Step::Waits;
        };
        let (connection, Cursor { stream, at: after, .. }) = (connection.id, &*cursor);
        let waiter = Waiter { shard: self.index, connection, stream: *stream, after: *after };
        let ask = Ask { stream: members.name.clone(), what, waiter };
        let later = Instant::now() + RETRY;
        cursor.state = match (self.asks.try_send(ask), what) {
            (Ok(()), Kind::Events) => State::Asked,
            (Ok(()), Kind::Snapshots) => State::AskedSnapshot,
            (Err(_), Kind::Events) => State::Pauses { until: later },
            (Err(_), Kind::Snapshots) => State::Wants { from: later },
        };
        Step::Waits
    }

    /// A feed has answered.
    pub fn replayed(&mut self, waiter: Waiter, replayed: Replayed) {
        let Waiter { connection: id, stream, after, .. } = waiter;
        let live = self.subscriptions.members(stream).and_then(|members| members.last);
        let Some(mut replaying) = self
            .connections
            .get_mut(id.key)
            .filter(|connection| connection.id == id && connection.is_open())
            .and_then(|connection| connection.replaying.take())
        else {
            return;
        };
        // The stream may have been left, and resumed from elsewhere, since it was asked.
        let snapshot = matches!(replayed, Replayed::Snapshot(_));
        let asked = |cursor: &Cursor| {
            let asked = match cursor.state {
                State::Asked => !snapshot,
                State::AskedSnapshot => snapshot,
                _ => false,
            };
            asked && cursor.stream == stream && cursor.at == after
        };
        if let Some(index) = replaying.cursors.iter().position(asked) {
            let cursor = &mut replaying.cursors[index];
            if let Some(why) = cursor.answered(replayed, live, self.config.resume.age) {
                let cursor = replaying.cursors.remove(index);
                self.refuse_cursor(id.key, &mut replaying, cursor, why);
            }
        }
        self.answer_resumed(id.key, &mut replaying);
        self.keep_replaying(id.key, replaying);
    }

    fn go_live(&mut self, key: usize, replaying: &mut Replaying, cursor: Cursor) {
        self.subscriptions.set_live(key, cursor.stream, true);
        self.count_left_out(&cursor);
        let name = self.name_of_stream(cursor.stream);
        if let (Some(request), Some(stream)) = (replaying.request(cursor.request), name) {
            request.undone -= 1;
            request.resumed.push(Resumed { stream, from: cursor.from, replayed: cursor.replayed });
        }
    }

    /// What follows a cursor is not to be had: that is told, or the client goes on from a snapshot. Where there is none, it goes
    /// on where the stream stands, and `previous` shows what is missing.
    fn refuse_cursor(&mut self, key: usize, replaying: &mut Replaying, mut cursor: Cursor, why: Refused) {
        match cursor.request {
            Some(request) => self.refuse_stream(replaying, request, cursor.stream, cursor.at, why),
            None if cursor.snapshot == Snapshot::Nowhere => self.go_live(key, replaying, cursor),
            None => {
                cursor.start_over();
                replaying.cursors.push(cursor);
            }
        }
    }

    fn refuse_stream(
        &mut self,
        replaying: &mut Replaying,
        request: u64,
        stream: StreamId,
        at: Option<Position>,
        why: Refused,
    ) {
        let Some(members) = self.subscriptions.members(stream) else { return };
        let mut rejection = why.rejection(&members.name, members.last);
        if let (Some(at), Some(last)) = (at, members.last)
            && at.epoch != last.epoch
        {
            rejection.code = ErrorCode::EpochChanged;
        }
        if let Some(request) = replaying.request(Some(request)) {
            request.undone -= 1;
            request.rejected.push(rejection);
            request.begin.push(stream);
        }
    }

    /// Answers the requests whose cursors are all done, and lets begin what could not be resumed.
    fn answer_resumed(&mut self, key: usize, replaying: &mut Replaying) {
        let (done, undone) =
            mem::take(&mut replaying.requests).into_iter().partition(|request: &Request| request.undone == 0);
        replaying.requests = undone;
        let done: Vec<Request> = done;
        for Request { id, resumed, rejected, begin, .. } in done {
            let mut positions = BTreeMap::new();
            for stream in begin {
                let Some(members) = self.subscriptions.members(stream) else { continue };
                positions.extend(members.last.map(|at| (members.name.clone(), at)));
                if members.begins_with_snapshot() {
                    replaying.cursors.push(Cursor::beginning(stream, members.last));
                } else {
                    self.subscriptions.set_live(key, stream, true);
                }
            }
            self.metrics.count_resumed(resumed.len(), &rejected);
            self.say(key, &ControlMessage::Resumed { id, streams: resumed, positions, rejected });
        }
    }

    /// A frame was handed out to those who are live: whoever waited for just that is live from now on.
    pub fn pass_waiting(&mut self, frame: &Frame, waiting: Vec<usize>, before: Option<Position>) {
        let position = frame.event.as_ref().map(|event| event.position);
        for key in waiting {
            let Some(mut replaying) =
                self.connections.get_mut(key).and_then(|connection| connection.replaying.take())
            else {
                continue;
            };
            if let Some(index) = replaying.cursors.iter().position(|cursor| cursor.stream == frame.stream) {
                let cursor = &mut replaying.cursors[index];
                cursor.passed = cursor.passed.map(|passed| passed + u64::from(position.is_some()));
                if matches!(cursor.state, State::Ahead)
                    && let Some(misses) = cursor.is_reached(position, before)
                {
                    if misses && !self.send_passing(key, cursor, frame) {
                        // It goes on from recent frames, when there is room.
                        cursor.state = State::Reads;
                    } else {
                        let cursor = replaying.cursors.remove(index);
                        self.go_live(key, &mut replaying, cursor);
                        self.answer_resumed(key, &mut replaying);
                    }
                    self.mark(key);
                }
            }
            self.keep_replaying(key, replaying);
        }
    }

    /// Sends a frame that is just handed out to a client that has come to it; whether it fits.
    fn send_passing(&mut self, key: usize, cursor: &mut Cursor, frame: &Frame) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let pushed =
            connection.push(frame.bytes.clone(), self.config.queue, &mut self.output, Instant::now());
        cursor.replayed += u64::from(frame.event.is_some());
        pushed == Pushed::Queued
    }

    /// Where a client stands on a stream that it is still being given.
    pub fn behind(&self, key: usize, stream: StreamId) -> Option<Option<Position>> {
        let replaying = self.connections.get(key)?.replaying.as_ref()?;
        replaying.cursors.iter().find(|cursor| cursor.stream == stream).map(|cursor| cursor.at)
    }

    /// A client no longer wants a stream. Where it stood, if it was still being given what it missed.
    pub fn end_replay(&mut self, key: usize, stream: StreamId) -> Option<Option<Position>> {
        let behind = self.behind(key, stream);
        let mut replaying =
            self.connections.get_mut(key).and_then(|connection| connection.replaying.take())?;
        if let Some(index) = replaying.cursors.iter().position(|cursor| cursor.stream == stream) {
            let cursor = replaying.cursors.remove(index);
            self.count_left_out(&cursor);
            if let Some(request) = replaying.request(cursor.request) {
                request.undone -= 1;
            }
        }
        for request in &mut replaying.requests {
            request.begin.retain(|begin| *begin != stream);
        }
        self.answer_resumed(key, &mut replaying);
        self.keep_replaying(key, replaying);
        behind
    }

    fn name_of_stream(&self, stream: StreamId) -> Option<StreamName> {
        self.subscriptions.members(stream).map(|members| members.name.clone())
    }
}

/// Where a client goes on: its own position, or its number in the stream's epoch.
fn start_of(resume: &Resume, grant: &Grant) -> Result<Option<Position>, Refused> {
    let seen = match resume {
        Resume::Last(sequence) => LastSeen::Sequence(*sequence),
        Resume::Positions(positions) => positions.get(&grant.name).copied().unwrap_or(LastSeen::Nothing),
    };
    match seen {
        LastSeen::Nothing => Ok(None),
        LastSeen::At(position) => Ok(Some(position)),
        LastSeen::Sequence(sequence) => {
            let epoch = grant.position.ok_or(Refused::NoEvents)?.epoch;
            Ok(Some(Position { epoch, sequence }))
        }
    }
}
