//! Received events are linked into streams: what follows, what is a duplicate, what is missing.
//!
//! A worked example, after `trades.btc_usdt` stands at 7: `{8, previous 7}` follows; `{8, previous 7}` again is a duplicate;
//! `{12, previous 11}` shows that at least 11 is missing. `{0 of another epoch, reset after 8}` follows and begins the new
//! epoch; `{3 of another epoch, previous 0}` does not tell what came before it, so something may be missing.
//!
//! A stream without any event stands nowhere. But whoever said that it has none had read its partitions up to some place each
//! ([`Link::empty`]), so the first event can be judged as well: at "none before 20", `{25, unknown, read from 18}` follows, and
//! `{25, unknown, read from 23}` does not.

use std::sync::Arc;

use crate::{Epoch, Event, Position, Previous, position::LeftEpochs};

/// Where one stream stands at an edge.
#[derive(Clone, Debug, Default)]
pub struct Link {
    last: Option<Position>,
    left: LeftEpochs,
    /// While there is no last event: none is before these, one per epoch.
    read: Arc<[Position]>,
}

/// What a received event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It follows the last one.
    Next,
    /// It follows the last one and is the first of a new epoch: tell the clients before delivering it.
    Reset { epoch: Epoch },
    /// Already delivered, or of an epoch that was left: drop it.
    Duplicate,
    /// It is newer, or of an epoch that is not known here, and something between `after` and it is missing, or may be:
    /// everything before it if there is no `after`.
    Gap { after: Option<Position> },
}

impl Link {
    /// A stream that stands at a known position; `None` if it has had no event so far.
    pub fn at(last: Option<Position>) -> Self {
        Self { last, ..Self::default() }
    }

    /// A stream that has had no event so far: whoever says so has read everything before these positions, one per epoch.
    pub fn empty(read: Arc<[Position]>) -> Self {
        Self { read, ..Self::default() }
    }

    /// Before which position of an epoch the stream has no event, if it has had none at all.
    pub fn empty_before(&self, epoch: Epoch) -> Option<Position> {
        self.read.iter().find(|read| read.epoch == epoch).copied()
    }

    /// Whether an empty stream may have events of an epoch, by what is known.
    pub fn may_hold(&self, epoch: Epoch) -> bool {
        self.read.is_empty() || self.empty_before(epoch).is_some()
    }

    pub fn last(&self) -> Option<Position> {
        self.last
    }

    /// Notes epochs that the stream left before it stood here.
    pub fn note_left(&mut self, epochs: &[Epoch]) {
        self.left.note(epochs);
    }

    /// Whether the stream has left an epoch for another one.
    pub fn has_left(&self, epoch: Epoch) -> bool {
        self.left.contains(epoch)
    }

    /// Judges an event and, if it follows, moves to it.
    pub fn advance(&mut self, event: &Event) -> Verdict {
        let verdict = self.judge(event);
        if matches!(verdict, Verdict::Next | Verdict::Reset { .. }) {
            self.jump(event.position());
        }
        verdict
    }

    /// Moves to a position, whatever is missing before it.
    pub fn jump(&mut self, to: Position) {
        if let Some(last) = self.last
            && last.epoch != to.epoch
        {
            self.left.leave(last.epoch);
        }
        self.last = Some(to);
        self.read = Arc::default();
    }

    /// Judges an event without moving.
    pub fn judge(&self, event: &Event) -> Verdict {
        let gap = Verdict::Gap { after: self.last };
        let Some(last) = self.last else { return self.judge_first(event) };
        if event.epoch != last.epoch {
            return match event.previous {
                _ if self.has_left(event.epoch) => Verdict::Duplicate,
                Previous::Reset { after } if after.epoch == last.epoch && after.sequence <= last.sequence => {
                    Verdict::Reset { epoch: event.epoch }
                }
                _ => gap,
            };
        }
        if event.sequence <= last.sequence {
            return Verdict::Duplicate;
        }
        let linked = match event.previous {
            // A publisher that knows an event between the two says so; one that names an older `previous` knows none.
            Previous::At(previous) => previous <= last.sequence,
            // Sequences are integers: between `last` and `read_from` there is room for a lost event only if a number
            // lies between them. A publisher that starts at the end of a log has `read_from` = last + 1.
            Previous::Unknown { read_from } => read_from.get() <= last.sequence.get() + 1,
            // It has missed at least the one known here.
            Previous::Reset { .. } => false,
        };
        if linked { Verdict::Next } else { gap }
    }

    /// Judges an event of a stream that has had none.
    fn judge_first(&self, event: &Event) -> Verdict {
        let gap = Verdict::Gap { after: None };
        let before =
            |at: Position| self.empty_before(at.epoch).is_some_and(|read| at.sequence < read.sequence);
        let linked = match (self.empty_before(event.epoch), event.previous) {
            (Some(read), _) if event.sequence < read.sequence => return Verdict::Duplicate,
            (Some(read), Previous::At(previous)) => previous < read.sequence,
            (Some(read), Previous::Unknown { read_from }) => read_from <= read.sequence,
            (Some(_), Previous::Reset { .. }) => true,
            // An epoch that nobody had read. Its publisher knows an event before this one: that one was lost.
            (None, Previous::At(_)) => false,
            (None, Previous::Reset { after }) => before(after),
            (None, Previous::Unknown { read_from }) => {
                self.read.is_empty() || read_from == crate::Sequence::ZERO
            }
        };
        if linked { Verdict::Next } else { gap }
    }
}
