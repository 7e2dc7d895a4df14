//! Looks into a partition, record by record, with a client of its own that lives as long as the questions of one moment.

use std::time::{Duration, Instant};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode,
};

use super::{
    config::{Config, Use},
    context::{Context, Status},
    numbering::{Found, find_cut},
    term::term_of,
};

/// Longest wait for one record. The leader may have to be found first.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one poll waits: how late a stop is noticed.
const POLL_WAIT: Duration = Duration::from_millis(50);

/// A client that looks at single records.
pub(super) struct Scanner<'a> {
    client: BaseConsumer<Context>,
    /// Whether nobody waits for the answer any more.
    stopped: &'a dyn Fn() -> bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(
        config: &Config,
        status: &std::sync::Arc<Status>,
        stopped: &'a dyn Fn() -> bool,
    ) -> KafkaResult<Self> {
        let context = Context::new("scan", status.clone(), false);
        let client = config.client(Use::Scan, &status.source).create_with_context(context)?;
        Ok(Self { client, stopped })
    }

    /// The first record at or after an offset; none, if there is none before the end of the partition.
    ///
    /// # Errors
    /// If no broker answers in time, or `from` is not in the log.
    pub(super) fn first_after(&self, topic: &str, partition: i32, from: i64) -> KafkaResult<Option<Found>> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(from))?;
        self.client.assign(&list)?;
        let found = self.wait(topic, partition, from);
        // Nothing of it may be left in the queue when the next is looked at.
        self.client.unassign()?;
        found
    }

    fn wait(&self, topic: &str, partition: i32, from: i64) -> KafkaResult<Option<Found>> {
        let deadline = Instant::now() + RECORD_TIMEOUT;
        while Instant::now() < deadline && !(self.stopped)() {
            match self.client.poll(POLL_WAIT) {
                Some(Ok(message)) => {
                    let ours = message.topic() == topic && message.partition() == partition;
                    if ours && message.offset() >= from {
                        return Ok(Some(Found { offset: message.offset(), term: term_of(&message) }));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(ended))) if ended == partition => return Ok(None),
                Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                    return Err(error);
                }
                // Told and counted by the context; librdkafka goes on by itself.
                Some(Err(_)) | None => {}
            }
        }
        Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))
    }

    /// Where the log was cut that was read up to `next`, its last record under `term`; see [`super::numbering`].
    pub(super) fn cut(
        &self,
        topic: &str,
        partition: i32,
        (next, term): (i64, u32),
        (low, high): (i64, i64),
    ) -> KafkaResult<Option<i64>> {
        find_cut(next, term, low..=high, |from| {
            // At the end there is no record; asking would wait for the broker to say so.
            if from >= high { Ok(None) } else { self.first_after(topic, partition, from) }
        })
    }
}
