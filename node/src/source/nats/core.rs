//! Core NATS as a source: a subject, and no log behind it.
//!
//! What is published while nobody listens is gone, so this promises less than any other source. Nothing is read again. Each run
//! of the process numbers what it hears from zero, in an epoch of its own; so exactly one ingest peer may read such a source. What
//! may have been missed while the connection was lost, or since ingest was too slow, is told: numbering goes on behind a gap, as
//! if a log had lost the records there.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tickmesh_protocol::Epoch;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    CoreConfig, Status,
    link::{Ended, Link, Trouble},
};
use crate::{
    ops::{
        backoff::{Backoff, chance},
        health::Condition,
        metrics::now_us,
    },
    source::{
        LogReader, ReadError, Record, Source, SourceEvent, Starts, Stretch,
        metrics::{LONGEST_PAUSE, SourceMetrics},
    },
};

/// How a sequence is made of a position; part of the epoch.
const RULE: &str = "count";
/// Pause before a lost connection is made again, in which everything is missed; it doubles while the server refuses it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Most records handed on at once.
const MAX_BATCH_RECORDS: usize = 512;
/// Messages that may wait for ingest; what is above ends the connection, and is told. A fast market's tenth of a second.
const MAX_WAITING: u64 = 16_384;
/// How often is looked how many wait while ingest takes nothing; so much more may.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A subject that is listened to.
pub struct Core {
    config: CoreConfig,
    status: Status,
    heard: Arc<Heard>,
}

/// The numbers that were given so far.
struct Heard {
    subject: Arc<str>,
    epoch: Epoch,
    next: AtomicU64,
    /// What was next when it was said last that reading begins.
    begun: AtomicU64,
}

impl Core {
    /// Makes no connection yet; [`Source::run`] does. The condition is ready while the server has the subscription.
    pub fn new(name: &str, config: CoreConfig, metrics: &SourceMetrics, condition: Condition) -> Self {
        // No other run has the same.
        let log = format!("nats-core/{name}/{}/{}", std::process::id(), now_us());
        let (subject, epoch) = (config.subject.as_str().into(), Epoch::of(&log, 0, RULE));
        let heard =
            Arc::new(Heard { subject, epoch, next: AtomicU64::new(0), begun: AtomicU64::new(u64::MAX) });
        let status = Status::new(name, &config.access, metrics, condition);
        Self { config, status, heard }
    }

    async fn listen(&self, output: &mpsc::Sender<SourceEvent>) -> Result<(), Ended> {
        self.status.figures.circuit.tries();
        let link = Link::connect(&self.config.access, &self.status.source, "core").await?;
        // Before anything comes, so that nothing piles up while ingest takes nothing.
        self.begin(output).await?;
        let unheard = |error: &dyn std::fmt::Display| Trouble::request("subscribe", error);
        let mut messages =
            link.client.subscribe(self.config.subject.clone()).await.map_err(|error| unheard(&error))?;
        link.client.flush().await.map_err(|error| unheard(&error))?;
        self.status.reading();
        let mut taken = 0;
        loop {
            tokio::select! {
                trouble = link.lost() => return Err(trouble.into()),
                trouble = link.complained() => return Err(trouble.into()),
                () = output.closed() => return Err(Ended::Stopped),
                message = messages.next() => {
                    let Some(message) = message else { return Err(link.lost().await.into()) };
                    let mut records = vec![self.number(&message)];
                    while records.len() < MAX_BATCH_RECORDS
                        && let Some(Some(message)) = messages.next().now_or_never()
                    {
                        records.push(self.number(&message));
                    }
                    // The client connects again by itself, and what it hears then is behind a gap.
                    if link.client.statistics().connects.load(Ordering::Relaxed) != 1 {
                        return Err(link.lost().await.into());
                    }
                    let count = records.len() as u64;
                    taken += count;
                    hand_on(&link, taken, output, records).await?;
                    self.status.figures.records.inc_by(count);
                }
            }
        }
    }

    /// Begins, or goes on behind a gap, if anything was heard since that was said last. There is never anything to be read first.
    async fn begin(&self, output: &mpsc::Sender<SourceEvent>) -> Result<(), Ended> {
        let Heard { subject, epoch, next, begun } = &*self.heard;
        let before = next.load(Ordering::Relaxed);
        if begun.load(Ordering::Relaxed) == before {
            return Ok(());
        }
        let position = if before == 0 { 0 } else { before + 1 };
        next.store(position, Ordering::Relaxed);
        begun.store(position, Ordering::Relaxed);
        if position > 0 {
            self.status.figures.moved.inc();
            tracing::error!(
                source = self.status.source,
                lost = before,
                next = position,
                "what was published meanwhile is lost"
            );
        }
        let (topic, epoch) = (subject.clone(), *epoch);
        // Clients that stand elsewhere may have missed something: it is not the first of anything.
        send(output, SourceEvent::Begin { topic, partition: 0, epoch, position, first: false, term: None })
            .await?;
        send(output, SourceEvent::Reached { epoch, position }).await
    }

    fn number(&self, message: &async_nats::Message) -> Record {
        Record {
            topic: message.subject.as_str().into(),
            partition: 0,
            position: self.heard.next.fetch_add(1, Ordering::Relaxed),
            epoch: self.heard.epoch,
            term: None,
            key: None,
            // A copy: a few records that are kept must not keep all that came over the socket with them.
            value: Bytes::copy_from_slice(&message.payload),
            engine_time_us: now_us(),
        }
    }
}

/// Waits for ingest, unless too many messages wait with it: then these are lost like those. The client counts what comes, and this is its only subscription.
async fn hand_on(
    link: &Link,
    taken: u64,
    output: &mpsc::Sender<SourceEvent>,
    records: Vec<Record>,
) -> Result<(), Ended> {
    let statistics = link.client.statistics();
    let mut sending = pin!(send(output, SourceEvent::Records(records)));
    loop {
        tokio::select! {
            sent = &mut sending => return sent,
            () = sleep(LOOK_INTERVAL) => {
                if statistics.in_messages.load(Ordering::Relaxed).saturating_sub(taken) > MAX_WAITING {
                    return Err(Trouble::new("slow", "ingest is slower than what is published; what waited is dropped").into());
                }
            }
        }
    }
}

async fn send(output: &mpsc::Sender<SourceEvent>, event: SourceEvent) -> Result<(), Ended> {
    output.send(event).await.map_err(|_| Ended::Stopped)
}

impl Source for Core {
    fn run(
        self: Box<Self>,
        _starts: Starts,
        output: mpsc::Sender<SourceEvent>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tracing::warn!(
                source = self.status.source,
                subject = self.config.subject,
                "core NATS keeps nothing: what is missed is lost, nothing can be read again, and only one ingest peer may read it"
            );
            let listening = async {
                let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                while let Err(Ended::Trouble(trouble)) = self.listen(&output).await {
                    self.status.trouble(&trouble);
                    if matches!(trouble.kind, "lost" | "slow") {
                        backoff.succeeded();
                    }
                    sleep(backoff.failed(chance())).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = listening => {}
            }
        })
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.heard.clone()
    }
}

impl LogReader for Heard {
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        from: u64,
        _until: u64,
    ) -> BoxFuture<'a, Result<Stretch, ReadError>> {
        let oldest = self.next.load(Ordering::Relaxed);
        let read = if topic != &*self.subject || partition != 0 {
            Err(ReadError::UnknownPartition { topic: topic.to_owned(), partition })
        } else if from < oldest {
            Err(ReadError::Trimmed { topic: topic.to_owned(), partition, from, oldest })
        } else {
            Ok(Stretch { epoch: self.epoch, until: from, records: Vec::new() })
        };
        std::future::ready(read).boxed()
    }
}
