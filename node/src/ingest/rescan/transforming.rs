//! A thread that makes events of records: programs are bound to a thread, and need a deep stack.

use std::{collections::HashSet, io, sync::Arc, thread};

use tickmesh_protocol::{Epoch, Event, Position, Sequence, sequencer::Sequencer};
use tokio::sync::{mpsc, oneshot};

use crate::{
    signing::Signer,
    source::Record,
    transform::{Made, Routes, Transform, jq},
};

/// Chunks that may wait for the thread; as many as are read at the same time.
const WAITING: usize = super::READING;

/// What makes the records of one source events.
pub(super) type Programs = (Routes, Option<&'static [&'static str]>);

/// The thread, which ends when this is dropped.
pub(super) struct Transforming(mpsc::Sender<Job>);

struct Job {
    source: usize,
    epoch: Epoch,
    start: u64,
    records: Vec<Record>,
    answer: oneshot::Sender<Vec<Event>>,
}

impl Transforming {
    pub(super) fn start(
        programs: Vec<Programs>,
        private: Arc<HashSet<String>>,
        signer: Arc<Signer>,
    ) -> io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING);
        let run = move || {
            let compile = |(routes, passing): &Programs| Transform::new(routes, *passing, &private);
            let transforms: Vec<Transform> = match programs.iter().map(compile).collect() {
                Ok(transforms) => transforms,
                // The configuration was checked with the same compiler. Without the thread nothing is read again.
                Err(error) => return tracing::error!(%error, "routes do not compile"),
            };
            while let Some(job) = waiting.blocking_recv() {
                if let Some(transform) = transforms.get(job.source).filter(|_| !job.answer.is_closed()) {
                    let events = events_of(transform, &signer, job.epoch, job.start, &job.records);
                    // Whoever asked may have gone.
                    let _ = job.answer.send(events);
                }
            }
        };
        thread::Builder::new().name("rescan".into()).stack_size(jq::STACK_BYTES).spawn(run)?;
        Ok(Self(jobs))
    }

    /// The events that records of a source become. `None` if the thread is gone.
    pub(super) async fn events(
        &self,
        source: usize,
        epoch: Epoch,
        start: u64,
        records: Vec<Record>,
    ) -> Option<Vec<Event>> {
        let (answer, events) = oneshot::channel();
        self.0.send(Job { source, epoch, start, records, answer }).await.ok()?;
        events.await.ok()
    }
}

/// What the ingest thread made of the same records, but for what it knew of earlier ones. What became no event is a dead
/// letter since then.
fn events_of(
    transform: &Transform,
    signer: &Signer,
    epoch: Epoch,
    start: u64,
    records: &[Record],
) -> Vec<Event> {
    let mut sequencer = Sequencer::default();
    if let Ok(start) = Sequence::new(start) {
        sequencer.begin(epoch, start, false);
    }
    let mut events = Vec::with_capacity(records.len());
    for record in records {
        for made in transform.apply(record.into()).into_iter().flatten() {
            // What operators make is not made again: they know what was before.
            let Made::Event(made) = made else { continue };
            let Ok((sequence, previous)) = sequencer.next(&made.stream, epoch, record.position) else {
                continue;
            };
            let signature = signer.sign(&made.stream, Position { epoch, sequence }, &made.data);
            events.push(Event {
                stream: made.stream,
                epoch,
                sequence,
                previous,
                engine_time_us: record.engine_time_us,
                data: made.data,
                signature,
            });
        }
    }
    events
}
