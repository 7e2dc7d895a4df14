//! The ingest thread: takes what comes, in turn.

use std::{collections::HashSet, future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};
use tickmesh_protocol::{checkpoint::State, takeover::SourceId};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep_until,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Tiers,
    control::{Change, NewLane, Request},
    core::Core,
    dead_letters::{Letter, Outbox},
    hold::Hold,
    overview::Overview,
    rescan::Log,
    warmth::Warmth,
};
use crate::{
    ops::health::Condition,
    ports::IngestInput,
    source::SourceEvent,
    transform::{Operators, Transform, jq::JqError},
};

pub(super) struct Worker {
    pub(super) lanes: Vec<Lane>,
    /// The lane that is asked first next time, so that a busy source does not starve the others.
    pub(super) next_lane: usize,
    pub(super) mesh: mpsc::Receiver<IngestInput>,
    pub(super) mesh_open: bool,
    /// Who asks how this peer sees the mesh.
    pub(super) overlooks: mpsc::Receiver<oneshot::Sender<Overview>>,
    /// What the catalogue asks.
    pub(super) control: mpsc::Receiver<Request>,
    /// What no record may pass for now.
    pub(super) hold: Option<Hold>,
    /// What new lanes are made of.
    pub(super) maker: LaneMaker,
    pub(super) core: Core,
    pub(super) _ended: DropGuard,
}

/// One source, its records on their way to events.
pub(super) struct Lane {
    pub(super) id: SourceId,
    pub(super) source: String,
    pub(super) transform: Transform,
    pub(super) operators: Operators,
    pub(super) events: mpsc::Receiver<SourceEvent>,
    pub(super) open: bool,
    /// What has come and has to wait for the end of a hold.
    pub(super) waiting: Option<SourceEvent>,
    /// It was taken out of the catalogue: whatever still comes is no event, and no dead letter.
    pub(super) removed: bool,
    pub(super) tiers: Tiers,
    pub(super) warmth: Warmth,
    pub(super) condition: Condition,
    /// Records behind the end of the log.
    pub(super) lag: IntGauge,
    pub(super) ingested: IntCounter,
    pub(super) latency: Histogram,
    /// Its dead letters on their way to a sink, if they have one.
    pub(super) outbox: Option<Outbox>,
}

impl Lane {
    /// Hands a dead letter to the sink.
    pub(super) fn post(&self, topic: &str, letter: impl FnOnce() -> Letter) {
        if let Some(outbox) = self.outbox.as_ref().filter(|outbox| outbox.takes(topic)) {
            outbox.put(letter());
        }
    }
}

/// What woke the thread.
enum Wake {
    Source(usize, SourceEvent),
    SourceEnded(usize),
    Mesh(IngestInput),
    MeshEnded,
    Asked(oneshot::Sender<Overview>),
    Control(Request),
    Due { late: Duration },
    Stop,
}

impl Worker {
    /// Runs until `stop`, then publishes what is left.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            match self.wake(&stop).await {
                Wake::Source(lane, event) => self.take(lane, event),
                Wake::Control(request) => self.control(request),
                Wake::SourceEnded(lane) => self.lanes[lane].open = false,
                Wake::Mesh(input) => self.take_mesh(input),
                Wake::MeshEnded => self.mesh_open = false,
                Wake::Asked(answer) => {
                    // The asker may be gone.
                    let _ = answer.send(self.core.overview());
                }
                Wake::Due { late } => self.core.woken(late),
                Wake::Stop => break,
            }
            // What others published need not be published again: look before deciding.
            for _ in 0..self.mesh.len() {
                if let Ok(input) = self.mesh.try_recv() {
                    self.take_mesh(input);
                }
            }
            self.core.settle(&self.lanes);
            self.core.publish_due().await;
            self.core.tick(&mut self.lanes);
        }
        self.core.finish(&mut self.lanes).await;
    }

    /// Waits for whatever comes first. The mesh goes before the sources: what others published need not be published
    /// again.
    async fn wake(&mut self, stop: &CancellationToken) -> Wake {
        let due = self.core.next_due();
        let mut timer = pin!(sleep_until(due));
        let mut stopped = pin!(stop.cancelled());
        poll_fn(|context| {
            if stopped.as_mut().poll(context).is_ready() {
                return Poll::Ready(Wake::Stop);
            }
            if timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(Wake::Due { late: due.elapsed() });
            }
            if self.mesh_open
                && let Poll::Ready(input) = self.mesh.poll_recv(context)
            {
                return Poll::Ready(input.map_or(Wake::MeshEnded, Wake::Mesh));
            }
            // Nobody may ask any more; then this is never ready with a question.
            if let Poll::Ready(Some(answer)) = self.overlooks.poll_recv(context) {
                return Poll::Ready(Wake::Asked(answer));
            }
            if let Poll::Ready(Some(request)) = self.control.poll_recv(context) {
                return Poll::Ready(Wake::Control(request));
            }
            for step in 0..self.lanes.len() {
                let index = (self.next_lane + step) % self.lanes.len();
                let lane = &mut self.lanes[index];
                if lane.waiting.is_some() {
                    if self.hold.is_some() {
                        continue;
                    }
                    if let Some(event) = lane.waiting.take() {
                        return Poll::Ready(Wake::Source(index, event));
                    }
                }
                if lane.open
                    && lane.outbox.as_ref().is_none_or(|outbox| outbox.has_room(context))
                    && let Poll::Ready(event) = lane.events.poll_recv(context)
                {
                    self.next_lane = index + 1;
                    return Poll::Ready(
                        event.map_or(Wake::SourceEnded(index), |event| Wake::Source(index, event)),
                    );
                }
            }
            Poll::Pending
        })
        .await
    }

    fn take(&mut self, index: usize, event: SourceEvent) {
        let lane = &mut self.lanes[index];
        let event = match &self.hold {
            Some(hold) if hold.holds(&lane.source) => {
                let (event, waiting) = hold.split(event);
                lane.waiting = waiting;
                event
            }
            _ => Some(event),
        };
        if let Some(event) = event {
            self.core.take(lane, event);
        }
    }

    fn control(&mut self, request: Request) {
        // Who asks may be gone; then nobody needs the answer.
        match request {
            Request::Standing(answer) => {
                let _ = answer.send(self.core.standing(&self.lanes));
            }
            Request::Hold { at, sources, answer } => {
                let hold = Hold::new(&at, sources);
                let past = self.core.past(&hold, &self.lanes);
                if past.is_none() {
                    self.hold = Some(hold);
                }
                let _ = answer.send(past.map_or(Ok(()), Err));
            }
            Request::Release => self.hold = None,
            Request::Change { change, done } => {
                let changed = self.change(*change).map_err(|error| error.to_string());
                self.hold = None;
                let _ = done.send(changed);
            }
        }
    }

    /// What does not compile was refused when it was planned; should it come here all the same, the sources before it have changed.
    fn change(&mut self, change: Change) -> Result<(), JqError> {
        let Change { routes, policies, added, removed } = change;
        let mut new = Vec::new();
        for NewLane { lane, events, state } in added {
            let id = SourceId(u16::try_from(self.lanes.len() + new.len()).unwrap_or(u16::MAX));
            new.push((self.maker.lane(id, lane, events)?, state));
        }
        for lane in &mut self.lanes {
            let table = routes.iter().find(|(source, _)| *source == lane.source && !lane.removed);
            if let Some((_, table)) = table {
                lane.transform.change(table)?;
                self.core.change_routes(lane, table);
            }
        }
        for lane in self.lanes.iter_mut().filter(|lane| removed.contains(&lane.source)) {
            lane.removed = true;
            self.core.removed(lane);
        }
        self.core.policies = policies;
        for ((lane, log), state) in new {
            self.core.added(&lane, log);
            self.lanes.push(lane);
            if let (Some(state), Some(lane)) = (state, self.lanes.last_mut()) {
                self.core.restore(&State { sources: vec![state] }, std::slice::from_mut(lane));
            }
        }
        Ok(())
    }

    fn take_mesh(&mut self, input: IngestInput) {
        match input {
            IngestInput::Batch(batch) => self.core.seen(&batch),
            IngestInput::Head { request, answer } => {
                // The asker may be gone; then nobody needs the answer. None is given by who cannot know.
                if let Some(heads) = self.core.heads(&request, &self.lanes) {
                    let _ = answer.send(heads);
                }
            }
            // Connected is not enough to be ranked: what it says of itself comes next.
            IngestInput::PublisherUp(_) => {}
            IngestInput::Status(publisher, status) => self.core.status(publisher, &status, &self.lanes),
            IngestInput::PublisherDown(publisher) => self.core.publisher_down(publisher),
        }
    }
}

/// Makes lanes, at the start and later.
pub(super) struct LaneMaker {
    pub(super) private: Arc<HashSet<String>>,
    pub(super) ingested: IntCounterVec,
    pub(super) latency: HistogramVec,
}

impl LaneMaker {
    /// A lane, and what its log is read again by.
    ///
    /// # Errors
    /// If a route does not compile.
    pub(super) fn lane(
        &self,
        id: SourceId,
        lane: super::Lane,
        events: mpsc::Receiver<SourceEvent>,
    ) -> Result<(Lane, Log), JqError> {
        let log = lane.log();
        let super::Lane { source, routes, channels, tiers, condition, lag, outbox, .. } = lane;
        let lane = Lane {
            id,
            ingested: self.ingested.with_label_values(&[&source]),
            latency: self.latency.with_label_values(&[&source]),
            transform: Transform::of(&routes, channels, &self.private)?,
            operators: Operators::of(&routes),
            source,
            events,
            open: true,
            waiting: None,
            removed: false,
            tiers,
            warmth: Warmth::default(),
            condition,
            lag,
            outbox,
        };
        Ok((lane, log))
    }
}
