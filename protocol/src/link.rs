//! Received events are linked into streams: what is delivered, what is a duplicate, what is missing.
//!
//! A worked example, after `trades.btc_usdt` stands at 7: `{8, previous 7}` is delivered; `{8, previous 7}` again is a
//! duplicate; `{12, previous 11}` shows that at least 11 is missing.

use crate::{Epoch, Event, Position, Previous, Sequence};

/// Epochs a stream has left: a late event of one of them is old, not new. As in [`crate::sequencer`].
const LEFT_EPOCHS: usize = 8;

/// Where one stream stands at an edge.
#[derive(Clone, Debug, Default)]
pub struct Link {
    last: Option<Position>,
    left: Vec<Epoch>,
}

/// What a received event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It follows the last one.
    Next,
    /// Already delivered, or of an epoch that was left: drop it.
    Duplicate,
    /// It is newer, but something between `after` and it is missing, or may be: everything before it if there is no
    /// `after`.
    Gap { after: Option<Sequence> },
    /// The first of a new epoch: tell the clients before delivering it.
    Reset { epoch: Epoch },
}

impl Link {
    /// A stream that stands at a known position; `None` if it has had no event so far.
    pub fn at(last: Option<Position>) -> Self {
        Self { last, left: Vec::new() }
    }

    pub fn last(&self) -> Option<Position> {
        self.last
    }

    /// Judges an event and, unless it is a duplicate, moves to it.
    pub fn advance(&mut self, event: &Event) -> Verdict {
        let verdict = self.judge(event);
        match verdict {
            Verdict::Duplicate => return verdict,
            Verdict::Reset { .. } => {
                if let Some(last) = self.last {
                    if self.left.len() == LEFT_EPOCHS {
                        self.left.remove(0);
                    }
                    self.left.push(last.epoch);
                }
            }
            Verdict::Next | Verdict::Gap { .. } => {}
        }
        self.last = Some(event.position());
        verdict
    }

    /// Judges an event without moving.
    pub fn judge(&self, event: &Event) -> Verdict {
        let Some(last) = self.last else {
            return match event.previous {
                // The stream was empty, and its publisher knows an event before this one: that one was lost.
                Previous::At(_) => Verdict::Gap { after: None },
                Previous::Unknown { .. } => Verdict::Next,
            };
        };
        if event.epoch != last.epoch {
            return if self.left.contains(&event.epoch) {
                Verdict::Duplicate
            } else {
                Verdict::Reset { epoch: event.epoch }
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
        };
        if linked { Verdict::Next } else { Verdict::Gap { after: Some(last.sequence) } }
    }
}
