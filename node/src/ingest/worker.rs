//! The ingest thread: takes what comes, in turn.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use prometheus::{Histogram, IntCounter, IntGauge};
use tickmesh_protocol::takeover::SourceId;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep_until,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Tiers, core::Core, overview::Overview, warmth::Warmth};
use crate::{
    ops::health::Condition,
    ports::IngestInput,
    source::SourceEvent,
    transform::{Operators, Transform},
};

pub(super) struct Worker {
    pub(super) lanes: Vec<Lane>,
    /// The lane that is asked first next time, so that a busy source does not starve the others.
    pub(super) next_lane: usize,
    pub(super) mesh: mpsc::Receiver<IngestInput>,
    pub(super) mesh_open: bool,
    /// Who asks how this peer sees the mesh.
    pub(super) overlooks: mpsc::Receiver<oneshot::Sender<Overview>>,
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
    pub(super) tiers: Tiers,
    pub(super) warmth: Warmth,
    pub(super) condition: Condition,
    /// Records behind the end of the log.
    pub(super) lag: IntGauge,
    pub(super) ingested: IntCounter,
    pub(super) latency: Histogram,
}

/// What woke the thread.
enum Wake {
    Source(usize, SourceEvent),
    SourceEnded(usize),
    Mesh(IngestInput),
    MeshEnded,
    Asked(oneshot::Sender<Overview>),
    Due { late: Duration },
    Stop,
}

impl Worker {
    /// Runs until `stop`, then publishes what is left.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            match self.wake(&stop).await {
                Wake::Source(lane, event) => self.core.take(&mut self.lanes[lane], event),
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
            self.core.tick(&self.lanes);
        }
        self.core.finish(&self.lanes).await;
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
            for step in 0..self.lanes.len() {
                let index = (self.next_lane + step) % self.lanes.len();
                let lane = &mut self.lanes[index];
                if lane.open
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
