//! What an ingest peer has made of the log: its newest events, stream by stream. A feed is served from here, and beyond that
//! from the log.

use std::collections::VecDeque;

use tickmesh_protocol::{
    Event, Position,
    link::{Link, Verdict},
};

/// Bounded by the number of events.
#[derive(Debug)]
pub(super) struct History {
    streams: Vec<VecDeque<Event>>,
    /// Streams of the events held, oldest first.
    order: VecDeque<usize>,
    limit: usize,
}

impl History {
    pub(super) fn new(streams: usize, limit: usize) -> Self {
        Self { streams: vec![VecDeque::new(); streams], order: VecDeque::new(), limit }
    }

    pub(super) fn keep(&mut self, stream: usize, event: Event) {
        self.streams[stream].push_back(event);
        self.order.push_back(stream);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.streams[oldest].pop_front();
        }
    }

    pub(super) fn holds(&self, stream: usize, position: Position) -> bool {
        self.streams[stream].iter().any(|event| event.position() == position)
    }

    pub(super) fn oldest(&self, stream: usize) -> Option<Position> {
        self.streams[stream].front().map(Event::position)
    }

    /// The events after a position, if all of them are here; `None` if some may be missing.
    pub(super) fn after(&self, stream: usize, after: Position) -> Option<Vec<Event>> {
        let events = &self.streams[stream];
        let link = Link::at(Some(after));
        let known = |event: &Event| event.epoch == after.epoch && event.sequence <= after.sequence;
        let start = match events.iter().rposition(known) {
            Some(last) => last + 1,
            // Perhaps the position is just before what is held, or before an epoch that begins in it.
            None => events
                .iter()
                .position(|event| matches!(link.judge(event), Verdict::Next | Verdict::Reset { .. }))?,
        };
        let linked = events
            .get(start)
            .is_none_or(|event| matches!(link.judge(event), Verdict::Next | Verdict::Reset { .. }));
        linked.then(|| events.range(start..).cloned().collect())
    }
}
