//! Events that came before one that belongs in front of them: pure, in virtual time.
//!
//! gossip keeps no order between its ways: a batch that a neighbour forwards may overtake the one before it on its way
//! from the publisher. So an event after a hole waits for what is missing, in the order of its sequence, and follows it
//! when it comes. What does not come in time is a gap.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tickmesh_protocol::{
    Epoch, Event, Sequence,
    link::{Link, Verdict},
};
use tokio::time::Instant;

/// Most events held for one stream, while it is being joined or after a hole: two seconds at 500 events/s.
pub const MAX_HELD_EVENTS: usize = 1024;

/// Most bytes held for one stream.
pub const MAX_HELD_BYTES: usize = 2 * 1024 * 1024;

/// How long an event waits for what is missing before it. A batch that was overtaken comes within milliseconds, on a
/// machine without a free core within some hundred; a client of an exchange waits no longer than this for a lost one.
pub const WAIT: Duration = Duration::from_secs(1);

/// Events of one epoch that wait, each with the time when it came.
#[derive(Debug)]
pub struct Early {
    epoch: Epoch,
    events: BTreeMap<Sequence, (Instant, Event)>,
    bytes: usize,
}

impl Early {
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, events: BTreeMap::new(), bytes: 0 }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Keeps an event; whether it is new here.
    pub fn keep(&mut self, event: &Event, now: Instant) -> bool {
        if self.events.contains_key(&event.sequence) {
            return false;
        }
        // A slice would keep the whole envelope it was cut from.
        let event = Event { data: Bytes::copy_from_slice(&event.data), ..event.clone() };
        self.bytes += event.data.len();
        self.events.insert(event.sequence, (now, event));
        true
    }

    /// The next event that need not wait any longer, and what it is to the stream: linked, because what it waited for
    /// has come, or after a gap, because it waited too long or there is no more room. With `all` none waits.
    pub fn next(&mut self, link: &mut Link, now: Instant, all: bool) -> Option<(Event, Verdict)> {
        let (_, (came, event)) = self.events.first_key_value()?;
        let full = self.events.len() > MAX_HELD_EVENTS || self.bytes > MAX_HELD_BYTES;
        let waits = matches!(link.judge(event), Verdict::Gap { .. });
        if waits && !all && !full && now < *came + WAIT {
            return None;
        }
        let (_, (_, event)) = self.events.pop_first()?;
        self.bytes -= event.data.len();
        let mut verdict = link.advance(&event);
        if let Verdict::Gap { after } = verdict {
            link.jump(event.position());
            if after.is_some_and(|after| after.epoch != event.epoch) {
                verdict = Verdict::Reset { epoch: event.epoch };
            }
        }
        Some((event, verdict))
    }
}
