//! Apache Kafka as a source.
//!
//! Every partition of the configured topics is read by every ingest peer: partitions are assigned, no consumer group is
//! joined and nothing is committed. The position of a record is its offset. An epoch is made of the cluster's id, the
//! topic's name, its id and the partition, so a topic that is deleted and created again begins new epochs; it is noticed
//! within two seconds, and what is read from it until then under an offset beyond the old end still carries the old epoch.
//! Brokers older than 2.8 have no topic ids: there a topic created again is not told apart from the one before.
//! What becomes of a partition that lost its end is told in `kafka/numbering.rs`.
//!
//! That the end of a partition is reached is known when the offset is where the log ended as reading began. Where the last
//! offsets hold nothing to read (markers of transactions, what compaction took), librdkafka tells the number of the
//! partition that ended, without its topic; then discovery looks whether there is anything left before that offset.
//!
//! A topic that is compacted is refused, unless all routes of the source retain the last event (`kafka/cleanup.rs`). What becomes
//! of keys that move because a topic has got more partitions is told in `kafka/holding.rs`.
//!
//! Three threads with a client each: one reads live, one finds topics and partitions, one reads ranges again. Looking at
//! single records takes a fourth client for that moment.

mod cleanup;
mod config;
mod context;
mod describe;
mod discovery;
mod holding;
mod numbering;
mod partitions;
mod reading;
mod reread;
mod scan;
mod term;
mod writing;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{runtime::Handle, sync::mpsc, sync::oneshot};
use tokio_util::sync::CancellationToken;

use self::{
    cleanup::Cleanup,
    context::Status,
    discovery::Discovery,
    reading::{Output, Reading},
    reread::Reader,
};
pub use self::{
    config::{Config, TopicPattern},
    writing::Writer,
};
use super::{LogReader, Source, SourceEvent, Starts, metrics::SourceMetrics};
use crate::ops::health::Condition;

/// News that may wait for the reading thread. Discovery waits when it is full; it loses nothing by that.
const WAITING_NEWS: usize = 64;
/// Pause before the clients are made again, if librdkafka refused: a missing certificate, say.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How late a stop is noticed within that pause.
const RETRY_STEP: Duration = Duration::from_millis(100);

/// A Kafka cluster that is read live.
pub struct Kafka {
    config: Config,
    retains_last: bool,
    status: Arc<Status>,
    reader: Arc<Reader>,
}

impl Kafka {
    /// Makes no connection yet; [`Source::run`] does. `retains_last`: all routes retain the last event, so compacted topics may be
    /// read. The condition is ready while a broker answers and there are partitions to read.
    pub fn new(
        name: &str,
        config: Config,
        retains_last: bool,
        metrics: &SourceMetrics,
        condition: Condition,
    ) -> Self {
        let status = Status::new(name.to_owned(), config.brokers.clone(), metrics.of(name), condition);
        let status = Arc::new(status);
        let reader = Arc::new(Reader::new(config.clone(), status.clone()));
        Self { config, retains_last, status, reader }
    }
}

impl Source for Kafka {
    fn run(
        self: Box<Self>,
        starts: Starts,
        output: mpsc::Sender<SourceEvent>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            *self.status.starts() = starts;
            let output = Output { events: output, stop, runtime: Handle::current() };
            let (ended, wait) = oneshot::channel::<()>();
            let source = self.status.source.clone();
            let thread = std::thread::Builder::new().name(format!("kafka-{source}")).spawn(move || {
                run_threads(&self.config, self.retains_last, &self.status, &output);
                // Dropped when everything the thread owned is gone.
                drop(ended);
            });
            match thread {
                Ok(_) => {
                    // The sender is never used, only dropped.
                    let _ = wait.await;
                }
                Err(error) => tracing::error!(source, %error, "cannot start a thread"),
            }
        })
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.reader.clone()
    }
}

/// Reads on this thread and discovers on another, until the output says stop.
fn run_threads(config: &Config, retains_last: bool, status: &Arc<Status>, output: &Output) {
    while !output.stopped() {
        let (news, newsreader) = mpsc::channel(WAITING_NEWS);
        // One question of each kind at a time; more are asked when it is answered.
        let (questions, asked) = std::sync::mpsc::sync_channel(3);
        let cleanup = Cleanup::new(retains_last, output.runtime.clone());
        let clients = Discovery::new(config.clone(), cleanup, status.clone(), news).and_then(|discovery| {
            Ok((discovery, Reading::new(config.clone(), status.clone(), newsreader, questions)?))
        });
        match clients {
            Ok((discovery, reading)) => {
                let name = format!("kafka-find-{}", status.source);
                match std::thread::Builder::new().name(name).spawn(move || discovery.run(&asked)) {
                    Ok(discovering) => {
                        // Ends with the output; its end of the channels goes with it, which ends discovery.
                        reading.run(output);
                        if discovering.join().is_err() {
                            tracing::error!(source = status.source, "discovery panicked");
                        }
                        return;
                    }
                    Err(error) => status.waiting(&format!("cannot start a thread: {error}")),
                }
            }
            Err(error) => {
                status.error("live", &error, "cannot make a client");
                status.waiting(&format!("cannot make a client: {error}"));
            }
        }
        let mut left = RETRY_PAUSE;
        while !left.is_zero() && !output.stopped() {
            std::thread::sleep(RETRY_STEP);
            left = left.saturating_sub(RETRY_STEP);
        }
    }
}
