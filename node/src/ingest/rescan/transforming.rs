//! A thread that makes events of records: programs are bound to a thread, and need a deep stack.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tickmesh_protocol::{Epoch, Event, Position, Sequence, sequencer::Sequencer};
use tokio::sync::{mpsc, oneshot};

use crate::{
    signing::Signer,
    source::Record,
    transform::{Made, RouteTable, Transform, jq},
};

/// Chunks that may wait for the thread; as many as are read at the same time.
const WAITING: usize = super::READING;

/// What makes the records of one source events.
#[derive(Clone)]
pub(super) struct Programs {
    pub(super) routes: RouteTable,
    pub(super) channels: Option<&'static [&'static str]>,
}

/// The thread, which ends when this is dropped.
pub(super) struct Transforming {
    jobs: mpsc::Sender<Job>,
    programs: Arc<Mutex<Vec<Programs>>>,
}

struct Job {
    source: usize,
    epoch: Epoch,
    start: u64,
    records: Vec<Record>,
    answer: oneshot::Sender<Vec<Event>>,
}

impl Transforming {
    pub(super) fn start(private: Arc<HashSet<String>>, signer: Arc<Signer>) -> io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING);
        let programs = Arc::new(Mutex::new(Vec::<Programs>::new()));
        let current = Arc::clone(&programs);
        let run = move || {
            let mut compiled: Vec<(RouteTable, Transform)> = Vec::new();
            while let Some(job) = waiting.blocking_recv() {
                if job.answer.is_closed() {
                    continue;
                }
                let programs = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Err(error) = keep_up(&mut compiled, &programs, &private) {
                    // The configuration was checked with the same compiler.
                    tracing::error!(%error, "routes do not compile");
                    continue;
                }
                if let Some((_, transform)) = compiled.get(job.source) {
                    let events = events_of(transform, &signer, job.epoch, job.start, &job.records);
                    // Whoever asked may have gone.
                    let _ = job.answer.send(events);
                }
            }
        };
        thread::Builder::new().name("rescan".into()).stack_size(jq::STACK_BYTES).spawn(run)?;
        Ok(Self { jobs, programs })
    }

    /// Takes a source more.
    pub(super) fn add(&self, programs: Programs) {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).push(programs);
    }

    /// Takes other routes of a source, for all that is asked after this.
    pub(super) fn change(&self, source: usize, routes: RouteTable) {
        if let Some(of) = self.programs.lock().unwrap_or_else(PoisonError::into_inner).get_mut(source) {
            of.routes = routes;
        }
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
        self.jobs.send(Job { source, epoch, start, records, answer }).await.ok()?;
        events.await.ok()
    }
}

/// Compiles what is new.
fn keep_up(
    compiled: &mut Vec<(RouteTable, Transform)>,
    programs: &[Programs],
    private: &HashSet<String>,
) -> Result<(), jq::JqError> {
    for (source, Programs { routes, channels }) in programs.iter().enumerate() {
        match compiled.get_mut(source) {
            Some((known, _)) if Arc::ptr_eq(known, routes) => {}
            Some((known, transform)) => {
                transform.change(routes)?;
                *known = Arc::clone(routes);
            }
            None => compiled.push((Arc::clone(routes), Transform::of(routes, *channels, private)?)),
        }
    }
    Ok(())
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
        for made in transform.apply_in_place(record).into_iter().flatten() {
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
