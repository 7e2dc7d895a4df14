//! Reads ranges again, over a connection of its own that is made with the first request. One range at a time: who asks is
//! behind and can wait a moment.

use std::sync::Arc;

use async_nats::jetstream::consumer::{Consumer, DeliverPolicy, pull};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

use super::{
    Config, Status, extent_of, is_compacted,
    link::{Link, Trouble},
    log_of,
    numbering::epoch_of,
    place_of, record_of,
};
use crate::source::{
    LogReader, MAX_READ_BYTES, MAX_READ_POSITIONS, READ_DEADLINE, ReadError, Stretch, WAITING_READS,
};

/// The re-reading side of a NATS source.
pub(super) struct Reader {
    config: Config,
    status: Arc<Status>,
    waiting: Semaphore,
    link: Mutex<Option<Link>>,
}

impl Reader {
    pub(super) fn new(config: Config, status: Arc<Status>) -> Self {
        Self { config, status, waiting: Semaphore::new(WAITING_READS), link: Mutex::new(None) }
    }

    async fn read_range(&self, from: u64, until: u64) -> Result<Stretch, ReadError> {
        let Ok(_place) = self.waiting.try_acquire() else {
            return Err(self.unavailable("too many others are reading"));
        };
        let mut link = self.link.lock().await;
        let usable = link.take().filter(|link| link.lost().now_or_never().is_none());
        let reading = async {
            let link = match usable {
                Some(link) => link,
                None => Link::connect(&self.config.access, &self.status.source, "reread")
                    .await
                    .map_err(|t| self.trouble(&t))?,
            };
            let stretch = self.read_over(&link, from, until).await;
            Ok((link, stretch))
        };
        // A connection that did not answer is not used again.
        let (used, stretch) = timeout(READ_DEADLINE, reading)
            .await
            .unwrap_or_else(|_| Err(self.unavailable("no answer in time")))?;
        if !matches!(stretch, Err(ReadError::Unavailable { .. })) {
            *link = Some(used);
        }
        stretch
    }

    async fn read_over(&self, link: &Link, from: u64, until: u64) -> Result<Stretch, ReadError> {
        let stream = &*self.config.stream;
        let before = self.look(link).await?;
        let (log, extent) = (log_of(&before), extent_of(&before));
        let trimmed = |low: u64| low > from && !is_compacted(&before.config);
        if trimmed(extent.low) {
            return Err(self.gone(from, extent.low));
        }
        // Which of its epochs a stream is in is known to who reads live.
        let epoch = epoch_of(&log, self.status.generation(&log));
        let end = until.min(extent.end);
        let mut stretch = Stretch { epoch, until: end.max(from), records: Vec::new() };
        if from >= end {
            return Ok(stretch);
        }
        let policy = DeliverPolicy::ByStartSequence { start_sequence: from.max(1) };
        let consumer =
            link.consumer(stream, &self.config.subjects, policy).await.map_err(|t| self.trouble(&t))?;
        let collected = self.collect(link, &consumer, end, &mut stretch).await;
        // Should it not hear of it, it forgets by itself.
        let _ = link.jetstream.delete_consumer_from_stream(&consumer.cached_info().name, stream).await;
        collected?;
        // What was read is of one stream, whole, if that is still there with all of the range.
        let after = self.look(link).await?;
        if log_of(&after) != log {
            return Err(self.unavailable("the stream was created again meanwhile"));
        }
        let low = extent_of(&after).low;
        if trimmed(low) { Err(self.gone(from, low)) } else { Ok(stretch) }
    }

    /// Takes what the consumer gives up to `end`.
    async fn collect(
        &self,
        link: &Link,
        consumer: &Consumer<pull::Config>,
        end: u64,
        stretch: &mut Stretch,
    ) -> Result<(), ReadError> {
        let unread = |error: &dyn std::fmt::Display| self.unavailable(&error.to_string());
        let (mut bytes, mut consumes) = (0, 1);
        let mut pending = consumer.cached_info().num_pending;
        while pending > 0 {
            let mut messages = consumer
                .fetch()
                .max_messages(link.ahead())
                .messages()
                .await
                .map_err(|error| unread(&error))?;
            let mut some = false;
            while let Some(message) = messages.next().await {
                let message = message.map_err(|error| unread(&error))?;
                let place = place_of(&message).map_err(|trouble| self.trouble(&trouble))?;
                if place.consumed != consumes {
                    return Err(self.unavailable("a message got lost on its way"));
                }
                if place.position >= end {
                    return Ok(());
                }
                consumes += 1;
                some = true;
                pending = place.pending;
                let (message, _) = message.split();
                let topic = message.subject.as_str().into();
                let record =
                    record_of(message, &place, (topic, stretch.epoch), self.config.time_header.as_deref());
                bytes += record.bytes();
                if bytes > MAX_READ_BYTES {
                    return Err(ReadError::TooLarge { topic: self.config.stream.clone() });
                }
                stretch.records.push(record);
            }
            if !some {
                break;
            }
        }
        Ok(())
    }

    async fn look(&self, link: &Link) -> Result<async_nats::jetstream::stream::Info, ReadError> {
        let info = link.stream(&self.config.stream).await.map_err(|trouble| self.trouble(&trouble))?;
        info.ok_or_else(|| ReadError::UnknownPartition { topic: self.config.stream.clone(), partition: 0 })
    }

    fn gone(&self, from: u64, oldest: u64) -> ReadError {
        ReadError::Trimmed { topic: self.config.stream.clone(), partition: 0, from, oldest }
    }

    fn trouble(&self, trouble: &Trouble) -> ReadError {
        self.status.figures.error(trouble.kind);
        self.unavailable(&trouble.reason)
    }

    fn unavailable(&self, reason: &str) -> ReadError {
        ReadError::Unavailable { topic: self.config.stream.clone(), reason: reason.to_owned() }
    }
}

impl LogReader for Reader {
    fn read<'a>(
        &'a self,
        topic: &'a str,
        partition: u32,
        from: u64,
        until: u64,
    ) -> BoxFuture<'a, Result<Stretch, ReadError>> {
        Box::pin(async move {
            if topic != self.config.stream || partition != 0 {
                return Err(ReadError::UnknownPartition { topic: topic.to_owned(), partition });
            }
            if until.saturating_sub(from) > MAX_READ_POSITIONS {
                return Err(ReadError::TooLarge { topic: topic.to_owned() });
            }
            self.read_range(from, until).await
        })
    }
}
