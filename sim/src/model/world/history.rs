//! What an ingest peer has made of the log lately: the histories of its streams, bounded by the number of events.

use std::collections::VecDeque;

use tickmesh_protocol::{
    Event, Position,
    history::{After, StreamHistory},
};

#[derive(Debug)]
pub(super) struct History {
    streams: Vec<StreamHistory>,
    /// Streams of the events held, oldest first.
    order: VecDeque<usize>,
    arrived: u64,
    limit: usize,
}

impl History {
    pub(super) fn new(streams: usize, limit: usize) -> Self {
        let streams = vec![StreamHistory::default(); streams];
        Self { streams, order: VecDeque::new(), arrived: 0, limit }
    }

    pub(super) fn keep(&mut self, stream: usize, event: Event) {
        self.arrived += 1;
        self.streams[stream].keep(self.arrived, event);
        self.order.push_back(stream);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.streams[oldest].drop_oldest();
        }
    }

    /// A stream stands here, by what a checkpoint kept.
    pub(super) fn restore(&mut self, stream: usize, last: Position) {
        self.streams[stream].restore(last);
    }

    pub(super) fn holds(&self, stream: usize, position: Position) -> bool {
        self.streams[stream].events_after(None).any(|event| event.position() == position)
    }

    /// The events held after a position.
    pub(super) fn events_after(&self, stream: usize, after: Option<Position>) -> Vec<Event> {
        self.streams[stream].events_after(after).cloned().collect()
    }

    /// Whether what follows a position is held; without one, what is the oldest.
    pub(super) fn after(&self, stream: usize, position: Option<Position>) -> After {
        self.streams[stream].after(position)
    }
}
