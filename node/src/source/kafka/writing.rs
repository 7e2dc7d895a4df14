//! Writes to topics of the cluster that a source reads, and reads them with their headers.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rdkafka::{
    ClientContext, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, DeliveryResult, Header, Headers, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
    types::RDKafkaErrorCode,
};
use tokio::sync::mpsc;

use super::config::{Config, Use};
use crate::source::writing::{LogWriter, Message, WRITE_TIMEOUT, WriteError};

/// How long one poll waits: for room in the producer's queue, and for messages that are read.
const POLL_WAIT: std::time::Duration = std::time::Duration::from_millis(20);

/// Writes by a producer of its own, and waits until all replicas that are in sync have it.
pub struct Writer {
    config: Config,
    source: String,
    producer: Arc<Mutex<Option<BaseProducer<Said>>>>,
}

/// What librdkafka says meanwhile.
#[derive(Default)]
struct Said {
    /// The first message that was not taken.
    refused: Mutex<Option<KafkaError>>,
    /// The last trouble with a broker: why nothing comes of it.
    trouble: Mutex<Option<String>>,
}

impl Said {
    fn explain(&self, error: &KafkaError) -> WriteError {
        if let Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) =
            error.rdkafka_error_code()
        {
            return WriteError::TooLarge(error.to_string());
        }
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        WriteError::Failed(trouble.map_or_else(|| error.to_string(), |trouble| format!("{error}; {trouble}")))
    }
}

impl ClientContext for Said {
    fn error(&self, _: KafkaError, reason: &str) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ConsumerContext for Said {}

impl ProducerContext for Said {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
    }
}

impl Writer {
    pub fn new(config: Config, source: &str) -> Self {
        Self { config, source: source.to_owned(), producer: Arc::default() }
    }
}

impl LogWriter for Writer {
    fn append<'a>(&'a mut self, messages: &'a [Message]) -> BoxFuture<'a, Result<(), WriteError>> {
        let (config, source, place) = (self.config.clone(), self.source.clone(), self.producer.clone());
        let messages = messages.to_vec();
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || {
                let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
                let producer = match place.take() {
                    Some(producer) => producer,
                    None => config
                        .client(Use::Write, &source)
                        .create_with_context(Said::default())
                        .map_err(|error| WriteError::Failed(error.to_string()))?,
                };
                let written = append(&producer, &messages);
                // One that failed may still hold messages, which are written again.
                if matches!(written, Ok(()) | Err(WriteError::TooLarge(_))) {
                    *place = Some(producer);
                } else {
                    producer.purge(PurgeConfig::default().queue().inflight());
                }
                written
            });
            written.await.unwrap_or_else(|error| Err(WriteError::Failed(error.to_string())))
        })
    }

    fn read_all<'a>(
        &'a mut self,
        topic: &'a str,
        output: mpsc::Sender<Message>,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        let (config, source, topic) = (self.config.clone(), self.source.clone(), topic.to_owned());
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || {
                let consumer: BaseConsumer<Said> = config
                    .client(Use::Letters, &source)
                    .create_with_context(Said::default())
                    .map_err(|error| WriteError::Failed(error.to_string()))?;
                read_all(&consumer, &topic, &output).map_err(|error| consumer.context().explain(&error))
            });
            read.await.unwrap_or_else(|error| Err(WriteError::Failed(error.to_string())))
        })
    }
}

fn append(producer: &BaseProducer<Said>, messages: &[Message]) -> Result<(), WriteError> {
    let said = producer.context();
    *said.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let deadline = Instant::now() + WRITE_TIMEOUT;
    for message in messages {
        let mut record = record_of(message);
        while let Err((error, back)) = producer.send(record) {
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !full || Instant::now() > deadline {
                return Err(said.explain(&error));
            }
            record = back;
            producer.poll(POLL_WAIT);
        }
    }
    // Longer than a message may take, so that its own error arrives.
    producer.flush(WRITE_TIMEOUT * 2).map_err(|error| said.explain(&error))?;
    let refused = said.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
    refused.map_or(Ok(()), |error| Err(said.explain(&error)))
}

fn record_of(message: &Message) -> BaseRecord<'_, [u8], [u8]> {
    let mut record = BaseRecord::to(&message.topic).payload(&*message.value);
    record.key = message.key.as_deref();
    record.partition = message.partition.and_then(|partition| i32::try_from(partition).ok());
    record.timestamp = i64::try_from(message.time_us / 1000).ok().filter(|time| *time > 0);
    let headers = OwnedHeaders::new_with_capacity(message.headers.len());
    record.headers = Some(message.headers.iter().fold(headers, |headers, (name, value)| {
        headers.insert(Header { key: name, value: Some(value.as_str()) })
    }));
    record
}

/// Reads each partition up to where it ends now. A topic that is not there holds nothing.
fn read_all(consumer: &BaseConsumer<Said>, topic: &str, output: &mpsc::Sender<Message>) -> KafkaResult<()> {
    let metadata = consumer.fetch_metadata(Some(topic), WRITE_TIMEOUT)?;
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    for partition in partitions.map(|partition| partition.id()) {
        let (low, end) = consumer.fetch_watermarks(topic, partition, WRITE_TIMEOUT)?;
        if low >= end {
            continue;
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(low))?;
        consumer.assign(&list)?;
        let mut heard = Instant::now();
        loop {
            match consumer.poll(POLL_WAIT) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let last = message.offset() + 1 >= end;
                    if output.blocking_send(message_of(&message)).is_err() {
                        return Ok(());
                    }
                    if last {
                        break;
                    }
                }
                // What is left before the end are markers of transactions.
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => return Err(error),
                None if heard.elapsed() > WRITE_TIMEOUT => {
                    return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut));
                }
                None => {}
            }
        }
    }
    Ok(())
}

fn message_of(message: &BorrowedMessage<'_>) -> Message {
    let header = |header: Header<'_, &[u8]>| {
        (header.key.to_owned(), String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
    };
    let time_ms = message.timestamp().to_millis().and_then(|time| u64::try_from(time).ok());
    Message {
        topic: message.topic().to_owned(),
        partition: Some(message.partition().unsigned_abs()),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map_or_else(Bytes::new, Bytes::copy_from_slice),
        headers: message.headers().map(|headers| headers.iter().map(header).collect()).unwrap_or_default(),
        time_us: time_ms.unwrap_or(0).saturating_mul(1000),
        id: None,
    }
}
