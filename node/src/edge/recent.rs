//! What the hub gave out lately: the frames of each stream, in order and without a hole, for clients that come back.
//!
//! The hub writes, shards read; the lock is held for one frame, or for a few to be read. Bounded by bytes over all streams; the
//! oldest go first. A frame is shared with the clients that it was sent to, so it costs its bytes once.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tickmesh_protocol::Position;

use super::queue::StreamId;

/// What a frame costs beside its bytes.
const FRAME_BYTES: usize = 128;

/// One event as it goes to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentFrame {
    pub position: Position,
    /// As the event has it; zero if it says nothing.
    pub engine_time_us: u64,
    /// Goes before it: the stream is numbered anew.
    pub reset: Option<Bytes>,
    pub bytes: Bytes,
}

/// What follows a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The next frames, at least one.
    Frames(Vec<RecentFrame>),
    /// Nothing: the position is the newest, or beyond it.
    Nothing { newest: Option<Position> },
    /// It is not held here, or not any more.
    NotHeld,
}

#[derive(Debug)]
pub struct Recent(Mutex<Ring>);

#[derive(Debug)]
struct Ring {
    max_bytes: usize,
    bytes: usize,
    /// Rises with every frame.
    serial: u64,
    /// The stream of each frame, in the order in which they came, with frames that were forgotten with their stream.
    order: VecDeque<(StreamId, u64)>,
    streams: HashMap<StreamId, Stream>,
}

#[derive(Debug)]
struct Stream {
    /// Where it stood before its first frame here.
    before: Option<Position>,
    frames: VecDeque<(u64, RecentFrame)>,
}

impl Recent {
    pub fn new(max_bytes: usize) -> Self {
        let (order, streams) = (VecDeque::new(), HashMap::new());
        Self(Mutex::new(Ring { max_bytes, bytes: 0, serial: 0, order, streams }))
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // No code panics while it holds the lock; if it did, what is in the ring would still be true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream goes on from here, whatever was kept under its id before.
    pub fn begin(&self, stream: StreamId, before: Option<Position>) {
        let mut ring = self.ring();
        ring.forget(stream);
        ring.streams.insert(stream, Stream { before, frames: VecDeque::new() });
    }

    /// Keeps the frame that follows the last one of the stream, if it was begun.
    pub fn keep(&self, stream: StreamId, frame: RecentFrame) {
        let mut ring = self.ring();
        ring.serial += 1;
        let serial = ring.serial;
        let Some(kept) = ring.streams.get_mut(&stream) else { return };
        let cost = cost(&frame);
        kept.frames.push_back((serial, frame));
        ring.order.push_back((stream, serial));
        ring.bytes += cost;
        ring.drop_oldest();
    }

    pub fn forget(&self, stream: StreamId) {
        self.ring().forget(stream);
    }

    /// What follows a position, at most so many frames and about so many bytes. A position that is no event's, but lies between
    /// two, is as good as the one before it.
    pub fn after(&self, stream: StreamId, position: Option<Position>, frames: usize, bytes: usize) -> Found {
        let ring = self.ring();
        ring.streams.get(&stream).map_or(Found::NotHeld, |stream| stream.after(position, frames, bytes))
    }

    /// How many frames follow a position; `None` if it is not held here.
    pub fn count_after(&self, stream: StreamId, position: Position) -> Option<usize> {
        let ring = self.ring();
        let stream = ring.streams.get(&stream)?;
        Some(stream.frames.len() - stream.index_after(Some(position))?)
    }

    pub fn newest(&self, stream: StreamId) -> Option<RecentFrame> {
        Some(self.ring().streams.get(&stream)?.frames.back()?.1.clone())
    }
}

impl Ring {
    fn forget(&mut self, stream: StreamId) {
        if let Some(stream) = self.streams.remove(&stream) {
            self.bytes -= stream.frames.iter().map(|(_, frame)| cost(frame)).sum::<usize>();
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        // What is left of forgotten streams goes as well, once there is more of it than of anything else.
        while self.bytes > self.max_bytes || self.order.len() > 2 * (self.bytes / FRAME_BYTES + 1) {
            let Some((stream, serial)) = self.order.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&stream) else { continue };
            if stream.frames.front().is_some_and(|(first, _)| *first == serial)
                && let Some((_, frame)) = stream.frames.pop_front()
            {
                stream.before = Some(frame.position);
                self.bytes -= cost(&frame);
            }
        }
    }
}

impl Stream {
    fn after(&self, position: Option<Position>, most: usize, bytes: usize) -> Found {
        let Some(index) = self.index_after(position) else { return Found::NotHeld };
        let mut size = 0;
        let fits = |frame: &&(u64, RecentFrame)| {
            let first = size == 0;
            size += frame.1.bytes.len();
            first || size <= bytes
        };
        let frames: Vec<_> =
            self.frames.range(index..).take(most).take_while(fits).map(|(_, frame)| frame.clone()).collect();
        if frames.is_empty() { Found::Nothing { newest: self.newest() } } else { Found::Frames(frames) }
    }

    fn newest(&self) -> Option<Position> {
        self.frames.back().map(|(_, frame)| frame.position).or(self.before)
    }

    /// The index of the first frame after a position; `None` if it is not held.
    fn index_after(&self, position: Option<Position>) -> Option<usize> {
        let Some(position) = position else { return self.before.is_none().then_some(0) };
        // Events of one epoch are together; the newest epoch is nearly always the one asked for.
        let last = self.frames.iter().rev().find(|(_, frame)| frame.position.epoch == position.epoch);
        let last = last.map_or(0, |(serial, _)| *serial);
        let index = self.frames.partition_point(|(serial, frame)| {
            *serial <= last
                && (frame.position.epoch != position.epoch || frame.position.sequence <= position.sequence)
        });
        let before = match index.checked_sub(1) {
            Some(before) => self.frames.get(before).map(|(_, frame)| frame.position),
            None => self.before,
        };
        let follows = before
            .is_some_and(|before| before.epoch == position.epoch && before.sequence <= position.sequence);
        follows.then_some(index)
    }
}

fn cost(frame: &RecentFrame) -> usize {
    FRAME_BYTES + frame.bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tickmesh_protocol::{Epoch, Sequence};

    use super::*;

    const STREAM: StreamId = StreamId(3);

    fn at(epoch: u64, sequence: u64) -> Position {
        Position { epoch: Epoch::from_u64(epoch), sequence: Sequence::new(sequence).unwrap() }
    }

    fn frame(epoch: u64, sequence: u64) -> RecentFrame {
        RecentFrame {
            position: at(epoch, sequence),
            engine_time_us: 0,
            reset: None,
            bytes: vec![0; 100].into(),
        }
    }

    fn sequences(recent: &Recent, after: Option<Position>) -> Option<Vec<u64>> {
        match recent.after(STREAM, after, 100, 1 << 20) {
            Found::Frames(frames) => Some(frames.iter().map(|frame| frame.position.sequence.get()).collect()),
            Found::Nothing { .. } => Some(vec![]),
            Found::NotHeld => None,
        }
    }

    #[test]
    fn what_follows_a_position_is_given_without_a_hole_or_not_at_all() {
        let recent = Recent::new(1 << 20);
        assert_eq!(sequences(&recent, Some(at(1, 5))), None, "a stream that was not begun");
        recent.begin(STREAM, Some(at(1, 5)));
        assert_eq!(sequences(&recent, Some(at(1, 5))), Some(vec![]));
        for sequence in [7, 8, 12] {
            recent.keep(STREAM, frame(1, sequence));
        }
        recent.keep(STREAM, frame(2, 0));
        recent.keep(STREAM, frame(2, 4));
        assert_eq!(sequences(&recent, Some(at(1, 4))), None);
        assert_eq!(sequences(&recent, Some(at(1, 5))), Some(vec![7, 8, 12, 0, 4]));
        assert_eq!(sequences(&recent, Some(at(1, 9))), Some(vec![12, 0, 4]), "between two events");
        assert_eq!(sequences(&recent, Some(at(1, 12))), Some(vec![0, 4]));
        assert_eq!(sequences(&recent, Some(at(2, 0))), Some(vec![4]));
        assert_eq!(sequences(&recent, Some(at(2, 9))), Some(vec![]), "beyond the newest");
        assert_eq!(sequences(&recent, Some(at(3, 1))), None);
        let counts = [at(1, 4), at(1, 8), at(2, 9)].map(|position| recent.count_after(STREAM, position));
        assert_eq!(counts, [None, Some(3), Some(0)]);
        assert_eq!(recent.newest(STREAM).map(|frame| frame.position), Some(at(2, 4)));
        assert_eq!(sequences(&recent, None), None, "what was before its first frame is not known here");
        recent.begin(STREAM, None);
        recent.keep(STREAM, frame(1, 7));
        assert_eq!(sequences(&recent, None), Some(vec![7]), "from its first event");
    }

    #[test]
    fn frames_are_given_in_portions() {
        let recent = Recent::new(1 << 20);
        recent.begin(STREAM, None);
        (1..=9).for_each(|sequence| recent.keep(STREAM, frame(1, sequence)));
        let portion = |frames, bytes| match recent.after(STREAM, None, frames, bytes) {
            Found::Frames(frames) => frames.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!((portion(4, 10_000), portion(100, 350), portion(100, 1)), (4, 3, 1));
    }

    proptest! {
        /// Whatever is begun, kept and forgotten: memory is bounded, and what is given is what was kept.
        #[test]
        fn what_is_given_is_what_was_kept(
            steps in proptest::collection::vec((0_usize..4, 0_u8..12), 0..400),
            max_bytes in 0_usize..5_000,
        ) {
            let recent = Recent::new(max_bytes);
            let mut kept: HashMap<usize, (u64, Vec<u64>)> = HashMap::new();
            for (next, (stream, action)) in (1..).zip(steps) {
                let id = StreamId(stream);
                match action {
                    0 => { recent.begin(id, Some(at(1, next))); kept.insert(stream, (next, vec![])); }
                    1 => { recent.forget(id); kept.remove(&stream); }
                    _ => {
                        recent.keep(id, frame(1, next));
                        if let Some((_, kept)) = kept.get_mut(&stream) { kept.push(next); }
                    }
                }
                for (stream, (from, kept)) in &kept {
                    let after = from + u64::from(action) % 7;
                    let expected: Vec<_> = kept.iter().copied().filter(|sequence| *sequence > after).collect();
                    match recent.after(StreamId(*stream), Some(at(1, after)), 1000, 1 << 20) {
                        Found::Frames(frames) => {
                            let got: Vec<_> = frames.iter().map(|frame| frame.position.sequence.get()).collect();
                            prop_assert_eq!(got, expected);
                        }
                        Found::Nothing { .. } => prop_assert_eq!(expected, Vec::<u64>::new()),
                        Found::NotHeld => prop_assert!(kept.first().is_some_and(|first| after < *first + 400)),
                    }
                }
                let ring = recent.ring();
                let held: usize = ring.streams.values().flat_map(|stream| &stream.frames).map(|(_, frame)| cost(frame)).sum();
                prop_assert_eq!(ring.bytes, held);
                prop_assert!(held <= max_bytes);
                prop_assert!(ring.order.len() <= 2 * (held / FRAME_BYTES + 1));
            }
        }
    }
}
