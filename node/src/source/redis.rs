//! Redis Streams as a source.
//!
//! Each key is a topic of one partition, read by every ingest peer; no consumer group is joined and nothing is acknowledged. The
//! position of a record is made of its id, as `redis/id.rs` says; an entry whose id gives none is a dead letter, as one
//! is that lacks the field of the record. An epoch is made of the configured name, the key and how often the stream lost its
//! end; `redis/numbering.rs` tells what is noticed of that, and what cannot be.
//!
//! A server is asked for many streams at once (`XREAD BLOCK`), over connections of their own, so that waiting holds up nothing
//! else. A node of a cluster reads no two slots at once, so there each key has a connection; the library's client for
//! clusters would put what waits before everything else. Redirections are followed (`MOVED`, `ASK`).
//!
//! Redis bounds an answer by the number of entries alone. That number follows the size of the entries before, so a server
//! that suddenly has very large ones can answer with up to 512 of them.

mod answers;
mod config;
mod id;
mod keys;
mod link;
mod numbering;
mod reading;
mod reread;
mod status;
mod writing;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::{config::Config, writing::Writer};
use self::{keys::Keys, reread::Reader, status::Status};
use super::{LogReader, Source, SourceEvent, Starts, metrics::SourceMetrics};
use crate::ops::health::Condition;

/// Streams of a Redis server or cluster that are read live.
pub struct Redis {
    config: Arc<Config>,
    status: Arc<Status>,
    reader: Arc<Reader>,
}

impl Redis {
    /// Makes no connection yet; [`Source::run`] does. The condition is ready while servers answer and there are streams to
    /// read.
    pub fn new(name: &str, config: Config, metrics: &SourceMetrics, condition: Condition) -> Self {
        let words = (config.servers(), config.wanted());
        let status = Arc::new(Status::new(name.to_owned(), words, metrics.of(name), condition));
        let config = Arc::new(config);
        let reader = Arc::new(Reader::new(config.clone(), status.clone()));
        Self { config, status, reader }
    }
}

impl Source for Redis {
    fn run(
        self: Box<Self>,
        starts: Starts,
        output: mpsc::Sender<SourceEvent>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            *self.status.starts() = starts;
            let mut keys = Keys::new(self.config.clone(), self.status.clone(), output);
            // What was not handed on is read again.
            stop.run_until_cancelled(keys.run()).await;
            keys.end().await;
        })
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.reader.clone()
    }
}
