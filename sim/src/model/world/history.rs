//! What an ingest peer has made of the log lately, stream by stream, bounded by the number of events: the same rules as the
//! history of the node.

use std::collections::VecDeque;

use tickmesh_protocol::{
    Event, Position, Previous,
    link::{Link, Verdict},
};

#[derive(Debug)]
pub(super) struct History {
    streams: Vec<Stream>,
    /// Streams of the events held, oldest first.
    order: VecDeque<usize>,
    limit: usize,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    events: VecDeque<Event>,
    /// The last event before those held: dropped, or of an earlier start of this peer.
    floor: Option<Position>,
}

/// What is held of a stream after a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// All of it, up to the head.
    All { head: Option<Position> },
    /// Not what comes directly after the position, but from here on.
    From(Position),
    /// Nothing of the stream.
    Unknown,
}

impl History {
    pub(super) fn new(streams: usize, limit: usize) -> Self {
        Self { streams: vec![Stream::default(); streams], order: VecDeque::new(), limit }
    }

    pub(super) fn keep(&mut self, stream: usize, event: Event) {
        self.streams[stream].events.push_back(event);
        self.order.push_back(stream);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
            && let Some(dropped) = self.streams[oldest].events.pop_front()
        {
            self.streams[oldest].floor = Some(dropped.position());
        }
    }

    /// A stream stands here, by what a checkpoint kept.
    pub(super) fn restore(&mut self, stream: usize, last: Position) {
        self.streams[stream].floor = Some(last);
    }

    pub(super) fn holds(&self, stream: usize, position: Position) -> bool {
        self.streams[stream].events.iter().any(|event| event.position() == position)
    }

    /// The events held after a position.
    pub(super) fn events_after(&self, stream: usize, after: Option<Position>) -> Vec<Event> {
        let stream = &self.streams[stream];
        stream.events.range(stream.index_after(after)..).cloned().collect()
    }

    /// Whether what follows a position is held; without one, what is the oldest.
    pub(super) fn after(&self, stream: usize, position: Option<Position>) -> After {
        let stream = &self.streams[stream];
        if stream.events.is_empty() && stream.floor.is_none() {
            return After::Unknown;
        }
        let head = stream.head();
        let Some(position) = position else {
            return match (stream.events.front(), stream.floor) {
                (Some(_), _) | (None, None) => After::All { head },
                (None, Some(floor)) => After::From(floor),
            };
        };
        match (stream.events.get(stream.index_after(Some(position))), head) {
            (Some(next), _) => match Link::at(Some(position)).judge(next) {
                Verdict::Next | Verdict::Reset { .. } => After::All { head },
                Verdict::Gap { .. } if begins_epoch_of(position, next) => After::All { head },
                Verdict::Gap { .. } | Verdict::Duplicate => After::From(next.position()),
            },
            (None, Some(last)) if last.epoch != position.epoch || last.sequence > position.sequence => {
                After::From(last)
            }
            (None, Some(_)) => After::All { head },
            (None, None) => After::Unknown,
        }
    }
}

/// Whether an event is the first of a position's epoch: nothing can be between.
fn begins_epoch_of(position: Position, event: &Event) -> bool {
    event.epoch == position.epoch && matches!(event.previous, Previous::Reset { .. })
}

impl Stream {
    fn head(&self) -> Option<Position> {
        self.events.back().map(Event::position).or(self.floor)
    }

    /// The index of the first held event after a position.
    fn index_after(&self, position: Option<Position>) -> usize {
        let Some(position) = position else { return 0 };
        let old = |event: &Event| event.epoch == position.epoch && event.sequence <= position.sequence;
        match self.events.iter().rposition(|event| event.epoch == position.epoch) {
            Some(last) => {
                self.events.iter().take(last + 1).rposition(old).map_or_else(
                    // Of this epoch all are newer; what is of epochs before it is not.
                    || self.events.iter().position(|event| event.epoch == position.epoch).unwrap_or(0),
                    |old| old + 1,
                )
            }
            None => 0,
        }
    }
}
