//! What is still to be written to one client: bounded, and the order in which it goes out.
//!
//! Order: the rest of a begun frame, then pongs and pings, then the queue, then Close. Nothing ever comes between the
//! bytes of one frame. Pongs and pings overtake what is queued, so a client under backpressure still shows that it lives.

use std::{collections::VecDeque, io};

use bytes::{Buf, Bytes};

/// Frames are copied together up to so many bytes, to be written with one system call. Beyond it one more call costs
/// little in proportion.
const WRITE_BYTES: usize = 64 * 1024;

/// A frame at least this large is written from where it is: copying it would cost more than the call saved.
const LARGE_FRAME_BYTES: usize = 16 * 1024;

/// Capacity of the queue that a connection may keep while nothing is queued.
const IDLE_CAPACITY_FRAMES: usize = 4;

/// Pings that are answered each, though they come faster than the answers go out; of more, the newest. Only the last needs
/// an answer (RFC 6455 §5.5.3), but a client that sends some at once may count.
const MAX_PONGS: usize = 16;

/// How much an [`Outbox`] may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub frames: usize,
    pub bytes: usize,
}

/// What became of a frame that should be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    Queued,
    /// Over the bounds; the frame is not in the queue.
    Full,
    /// The connection is being closed: no frame goes out any more.
    Closed,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing is left.
    All,
    /// The socket takes no more for now. Whether it took anything.
    Blocked { progress: bool },
}

/// The bytes one client has not taken yet.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Rest of the frame whose first bytes are out.
    begun: Bytes,
    pongs: VecDeque<Bytes>,
    ping: Option<Bytes>,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    close: Option<Bytes>,
    closed: bool,
}

impl Outbox {
    /// Queues a frame. Into an empty queue a frame of any size goes.
    pub fn push(&mut self, frame: Bytes, bounds: Bounds) -> Pushed {
        if self.closed {
            return Pushed::Closed;
        }
        let fits = self.queue.len() < bounds.frames && self.queued_bytes + frame.len() <= bounds.bytes;
        if !fits && !self.queue.is_empty() {
            return Pushed::Full;
        }
        self.queued_bytes += frame.len();
        self.queue.push_back(frame);
        Pushed::Queued
    }

    /// Answers a ping, instead of the oldest that is not answered yet if there are too many.
    pub fn pong(&mut self, frame: Bytes) {
        if self.closed {
            return;
        }
        if self.pongs.len() >= MAX_PONGS {
            self.pongs.pop_front();
        }
        self.pongs.push_back(frame);
    }

    pub fn ping(&mut self, frame: Bytes) {
        if !self.closed {
            self.ping = Some(frame);
        }
    }

    /// Ends with a Close frame after everything that is queued.
    pub fn close_after_queue(&mut self, frame: Bytes) {
        if !self.closed {
            self.closed = true;
            self.close = Some(frame);
        }
    }

    /// Ends with a Close frame as soon as the begun frame is out; what is queued is dropped. Returns how many frames.
    pub fn close_now(&mut self, frame: Bytes) -> usize {
        if self.close.is_some() || !self.closed {
            self.close = Some(frame);
        }
        self.closed = true;
        (self.pongs, self.ping, self.queued_bytes) = (VecDeque::new(), None, 0);
        let dropped = self.queue.len();
        self.queue = VecDeque::new();
        dropped
    }

    pub fn is_empty(&self) -> bool {
        self.begun.is_empty()
            && self.queue.is_empty()
            && self.pongs.is_empty()
            && self.ping.is_none()
            && self.close.is_none()
    }

    /// Frames in the queue.
    pub fn queued_frames(&self) -> usize {
        self.queue.len()
    }

    /// Whether the queue is within these bounds.
    pub fn has_room(&self, bounds: Bounds) -> bool {
        self.queue.len() < bounds.frames && self.queued_bytes < bounds.bytes
    }

    /// Whether a quarter of the bounds is used: the client does not take what it is sent as fast as it comes.
    pub fn is_crowded(&self, bounds: Bounds) -> bool {
        self.queue.len() > bounds.frames / 4 || self.queued_bytes > bounds.bytes / 4
    }

    /// Gives memory back that a burst has left behind.
    pub fn shrink(&mut self) {
        if self.pongs.is_empty() {
            self.pongs = VecDeque::new();
        }
        if self.queue.is_empty() && self.queue.capacity() > IDLE_CAPACITY_FRAMES {
            self.queue = VecDeque::new();
        }
    }

    /// Writes until nothing is left or the socket takes no more. `scratch` is overwritten.
    ///
    /// # Errors
    /// Any of `write`'s but `WouldBlock`.
    pub fn write(
        &mut self,
        scratch: &mut Vec<u8>,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<Written> {
        let mut progress = false;
        while !self.is_empty() {
            let result = match self.single() {
                Some(frame) => write(frame),
                None => {
                    self.gather(scratch);
                    write(scratch)
                }
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Written::Blocked { progress });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            progress = true;
        }
        Ok(Written::All)
    }

    /// Everything to be written, in order.
    fn frames(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.begun)
            .filter(|begun| !begun.is_empty())
            .chain(&self.pongs)
            .chain(&self.ping)
            .chain(&self.queue)
            .chain(&self.close)
    }

    /// The first frame, if it is alone or large.
    fn single(&self) -> Option<&Bytes> {
        let mut frames = self.frames();
        let first = frames.next()?;
        (first.len() >= LARGE_FRAME_BYTES || frames.next().is_none()).then_some(first)
    }

    /// Copies the first frames together.
    fn gather(&self, scratch: &mut Vec<u8>) {
        scratch.clear();
        for frame in self.frames() {
            if scratch.len() + frame.len() > WRITE_BYTES && !scratch.is_empty() {
                break;
            }
            scratch.extend_from_slice(frame);
        }
    }

    /// Takes away what was written, in the order of [`Outbox::frames`].
    fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            if self.begun.is_empty() {
                let Some(next) = self.next_frame() else {
                    return;
                };
                self.begun = next;
            }
            let taken = bytes.min(self.begun.len());
            self.begun.advance(taken);
            bytes -= taken;
        }
        if self.begun.is_empty() {
            // An empty rest would keep its whole frame alive.
            self.begun = Bytes::new();
        }
    }

    fn next_frame(&mut self) -> Option<Bytes> {
        if let Some(frame) = self.pongs.pop_front().or_else(|| self.ping.take()) {
            return Some(frame);
        }
        if let Some(frame) = self.queue.pop_front() {
            self.queued_bytes -= frame.len();
            return Some(frame);
        }
        self.close.take()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { frames: 8, bytes: 100_000 };

    fn blocked() -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    #[test]
    fn bounds_hold_but_an_empty_queue_takes_any_frame() {
        let mut outbox = Outbox::default();
        let bounds = Bounds { frames: 2, bytes: 10 };
        assert_eq!(outbox.push(vec![1; 50].into(), bounds), Pushed::Queued);
        assert_eq!(outbox.push(vec![1].into(), bounds), Pushed::Full);
        assert_eq!(outbox.write(&mut Vec::new(), |bytes| Ok(bytes.len())).unwrap(), Written::All);
        assert_eq!(outbox.push(vec![1; 4].into(), bounds), Pushed::Queued);
        assert_eq!(outbox.push(vec![1; 4].into(), bounds), Pushed::Queued);
        assert_eq!(outbox.push(vec![1; 1].into(), bounds), Pushed::Full, "two frames");
        assert_eq!(outbox.close_now(vec![9].into()), 2);
        assert_eq!(outbox.push(vec![1].into(), bounds), Pushed::Closed);
        assert_eq!(outbox.queued_frames(), 0);
    }

    #[test]
    fn the_begun_frame_is_finished_before_close() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.push(vec![1; 5].into(), BOUNDS), Pushed::Queued);
        assert_eq!(outbox.push(vec![2; 5].into(), BOUNDS), Pushed::Queued);
        let mut room = 3;
        let written = outbox.write(&mut Vec::new(), |bytes| {
            let taken = bytes.len().min(std::mem::take(&mut room));
            if taken == 0 { blocked() } else { Ok(taken) }
        });
        assert_eq!(written.unwrap(), Written::Blocked { progress: true });
        outbox.close_now(vec![9].into());
        let mut out = Vec::new();
        let written = outbox.write(&mut Vec::new(), |bytes| {
            out.extend_from_slice(bytes);
            Ok(bytes.len())
        });
        assert_eq!(written.unwrap(), Written::All);
        assert_eq!(out, [1, 1, 9]);
    }

    #[test]
    fn every_ping_is_answered_or_of_too_many_the_newest() {
        for (pings, answered) in [(10, 0..10), (MAX_PONGS as u8 + 3, 3..MAX_PONGS as u8 + 3)] {
            let mut outbox = Outbox::default();
            (0..pings).for_each(|ping| outbox.pong(vec![ping].into()));
            let mut out = Vec::new();
            let written = outbox.write(&mut Vec::new(), |bytes| {
                out.extend_from_slice(bytes);
                Ok(bytes.len())
            });
            assert_eq!(written.unwrap(), Written::All);
            assert!(out.iter().copied().eq(answered), "{out:?}");
        }
    }

    #[test]
    fn errors_are_told_and_a_closed_socket_is_one() {
        let mut outbox = Outbox::default();
        outbox.push(vec![1; 5].into(), BOUNDS);
        let error = outbox.write(&mut Vec::new(), |_| Ok(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push {
            length: usize,
        },
        Pong {
            length: usize,
        },
        Ping,
        /// Sizes the socket takes before it blocks.
        Write(Vec<usize>),
        CloseAfterQueue,
        CloseNow,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => prop_oneof![4 => 3_usize..300, 1 => 10_000_usize..40_000].prop_map(|length| Step::Push { length }),
            2 => (3_usize..100).prop_map(|length| Step::Pong { length }),
            1 => Just(Step::Ping),
            6 => proptest::collection::vec(1_usize..30_000, 0..4).prop_map(Step::Write),
            3 => proptest::collection::vec(1_usize..40, 0..4).prop_map(Step::Write),
            1 => Just(Step::CloseAfterQueue),
            1 => Just(Step::CloseNow),
        ]
    }

    const QUEUED: u8 = 1;
    const PONG: u8 = 2;
    const PING: u8 = 3;
    const CLOSE: u8 = 4;

    /// A frame that can be recognized in a byte stream: kind, number, filling, end mark.
    fn marked(kind: u8, number: usize, length: usize) -> Bytes {
        let mut frame = vec![kind, (number >> 8) as u8, number as u8];
        frame.extend((length as u32).to_be_bytes());
        frame.resize(frame.len() + length, kind);
        frame.push(0xEE);
        frame.into()
    }

    /// Cuts a byte stream into whole frames: kind and number of each. Panics if one is torn.
    fn recognized(mut stream: &[u8]) -> Vec<(u8, usize)> {
        let mut frames = Vec::new();
        while let [kind, high, low, l1, l2, l3, l4, rest @ ..] = stream {
            let length = u32::from_be_bytes([*l1, *l2, *l3, *l4]) as usize;
            assert!(rest[..length].iter().all(|byte| byte == kind), "the filling is whole");
            assert_eq!(rest[length], 0xEE, "the end mark is there");
            frames.push((*kind, usize::from(*high) << 8 | usize::from(*low)));
            stream = &rest[length + 1..];
        }
        assert!(stream.is_empty(), "nothing is left over");
        frames
    }

    proptest! {
        /// Whatever the socket takes at a time, whole frames come out: the queued ones in order and without a hole
        /// (until a close drops the rest), Close last.
        #[test]
        fn the_byte_stream_is_exact(steps in proptest::collection::vec(step(), 1..60)) {
            let mut outbox = Outbox::default();
            let mut scratch = Vec::new();
            let (mut out, mut queued, mut pongs) = (Vec::new(), 0, 0);
            let (mut closed, mut dropped) = (false, 0);
            for step in steps {
                match step {
                    Step::Push { length } => {
                        if outbox.push(marked(QUEUED, queued, length), BOUNDS) == Pushed::Queued {
                            prop_assert!(!closed);
                            queued += 1;
                        }
                        prop_assert!(outbox.queued_frames() <= BOUNDS.frames);
                    }
                    Step::Pong { length } => {
                        outbox.pong(marked(PONG, pongs, length));
                        pongs += 1;
                    }
                    Step::Ping => outbox.ping(marked(PING, 0, 0)),
                    Step::Write(sizes) => {
                        let mut sizes = sizes.into_iter();
                        outbox.write(&mut scratch, |bytes| {
                            let Some(size) = sizes.next() else { return blocked() };
                            let taken = size.min(bytes.len());
                            out.extend_from_slice(&bytes[..taken]);
                            Ok(taken)
                        }).unwrap();
                    }
                    Step::CloseAfterQueue => {
                        outbox.close_after_queue(marked(CLOSE, 0, 0));
                        closed = true;
                    }
                    Step::CloseNow => {
                        dropped += outbox.close_now(marked(CLOSE, 1, 0));
                        closed = true;
                    }
                }
            }
            outbox.write(&mut scratch, |bytes| {
                out.extend_from_slice(bytes);
                Ok(bytes.len())
            }).unwrap();
            prop_assert!(outbox.is_empty());
            let frames = recognized(&out);
            let of_kind = |kind| frames.iter().filter(move |frame| frame.0 == kind).map(|frame| frame.1);
            prop_assert!(of_kind(QUEUED).eq(0..queued - dropped));
            prop_assert!(of_kind(PONG).is_sorted());
            prop_assert_eq!(of_kind(CLOSE).count(), usize::from(closed));
            prop_assert!(!closed || frames.last().unwrap().0 == CLOSE);
        }
    }
}
