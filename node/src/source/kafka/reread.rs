//! Reads ranges again, on a thread and a client of its own. Requests are served one after the other: who asks is behind
//! and can wait a moment, and one client costs one set of connections.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use tickmesh_protocol::Epoch;
use tokio::sync::{mpsc, oneshot};

use super::{
    config::{Config, Use},
    context::{Context, Status},
    describe::describe_topics,
    discovery::RPC_TIMEOUT,
    numbering::epoch_of,
    reading::record_of,
};
use crate::source::{
    LogReader, MAX_READ_BYTES, MAX_READ_POSITIONS, READ_DEADLINE, ReadError, Record, Stretch, WAITING_READS,
};

/// How long one poll waits; how late a deadline or the end of the reader is noticed.
const POLL_WAIT: Duration = Duration::from_millis(50);

/// The re-reading side of a Kafka source.
pub(super) struct Reader {
    config: Config,
    status: Arc<Status>,
    /// Made with the first request: most peers never re-read.
    requests: OnceLock<mpsc::Sender<Request>>,
}

struct Request {
    topic: String,
    partition: u32,
    from: u64,
    until: u64,
    answer: oneshot::Sender<Result<Stretch, ReadError>>,
}

impl Reader {
    pub(super) fn new(config: Config, status: Arc<Status>) -> Self {
        Self { config, status, requests: OnceLock::new() }
    }

    /// The queue of the thread, which ends when this reader is dropped.
    fn requests(&self) -> &mpsc::Sender<Request> {
        self.requests.get_or_init(|| {
            let (sender, mut requests) = mpsc::channel::<Request>(WAITING_READS);
            let (config, status) = (self.config.clone(), self.status.clone());
            let serve = move || {
                let mut server = Server { config, status, client: None, cluster: None };
                while let Some(request) = requests.blocking_recv() {
                    let result = server.read(&request);
                    // Whoever asked may have gone.
                    let _ = request.answer.send(result);
                }
            };
            let name = format!("kafka-reread-{}", self.status.source);
            if let Err(error) = std::thread::Builder::new().name(name).spawn(serve) {
                // The receiver is gone with the closure, so every request is answered as unavailable.
                tracing::error!(source = self.status.source, %error, "cannot start a thread");
            }
            sender
        })
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
            let unavailable =
                |reason: &str| ReadError::Unavailable { topic: topic.to_owned(), reason: reason.to_owned() };
            if until.saturating_sub(from) > MAX_READ_POSITIONS {
                return Err(ReadError::TooLarge { topic: topic.to_owned() });
            }
            let (answer, answered) = oneshot::channel();
            let request = Request { topic: topic.to_owned(), partition, from, until, answer };
            self.requests().try_send(request).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => unavailable("too many others are reading"),
                mpsc::error::TrySendError::Closed(_) => unavailable("the reader has ended"),
            })?;
            answered.await.unwrap_or_else(|_| Err(unavailable("the reader has ended")))
        })
    }
}

/// The state of the thread.
struct Server {
    config: Config,
    status: Arc<Status>,
    client: Option<BaseConsumer<Context>>,
    cluster: Option<String>,
}

/// What a request is about, as the brokers see it.
struct Range {
    topic: Arc<str>,
    partition: i32,
    epoch: Epoch,
    from: i64,
    until: i64,
}

impl Range {
    fn stretch(&self, records: Vec<Record>) -> Stretch {
        let until = self.until.max(self.from).unsigned_abs();
        Stretch { epoch: self.epoch, until, records }
    }
}

impl Server {
    fn read(&mut self, request: &Request) -> Result<Stretch, ReadError> {
        let result = self.try_read(request);
        if let Some(client) = &self.client {
            // An empty assignment, so that nothing more of this range is fetched.
            if let Err(error) = client.unassign() {
                self.status.error("reread", &error, "cannot end an assignment");
                self.client = None;
            }
        }
        result
    }

    fn try_read(&mut self, request: &Request) -> Result<Stretch, ReadError> {
        let unavailable = |reason: String| ReadError::Unavailable { topic: request.topic.clone(), reason };
        if request.answer.is_closed() {
            return Err(unavailable("nobody waits for it".to_owned()));
        }
        let client = match self.client.take() {
            Some(client) => client,
            None => self
                .config
                .client(Use::Reread, &self.status.source)
                .create_with_context(Context::new("reread", self.status.clone(), false))
                .map_err(|error| unavailable(error.to_string()))?,
        };
        let client = self.client.insert(client);
        let range = locate(client, &self.status, &mut self.cluster, request)?;
        if range.from >= range.until {
            return Ok(range.stretch(Vec::new()));
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&range.topic, range.partition, Offset::Offset(range.from))
            .and_then(|()| client.assign(&list))
            .map_err(|error| unavailable(error.to_string()))?;
        collect(client, &range)
    }
}

/// Finds out which log it is, and what of the range it holds.
fn locate(
    client: &BaseConsumer<Context>,
    status: &Status,
    cluster: &mut Option<String>,
    request: &Request,
) -> Result<Range, ReadError> {
    let topic = request.topic.clone();
    let unavailable = |reason: String| ReadError::Unavailable { topic: topic.clone(), reason };
    let unknown = || ReadError::UnknownPartition { topic: topic.clone(), partition: request.partition };
    let descriptions = describe_topics(client.client(), &[&topic], RPC_TIMEOUT)
        .map_err(|error| unavailable(error.to_string()))?;
    if cluster.is_none() {
        *cluster = client.client().fetch_cluster_id(RPC_TIMEOUT);
    }
    let cluster = cluster.as_ref().ok_or_else(|| unavailable("no cluster id".to_owned()))?;
    let found = match descriptions.into_iter().next().map(|description| description.found) {
        Some(Ok(found)) => found,
        Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition)) | None => return Err(unknown()),
        Some(Err(code)) => return Err(unavailable(code.to_string())),
    };
    let partition = i32::try_from(request.partition)
        .ok()
        .filter(|partition| found.partitions.contains(partition))
        .ok_or_else(unknown)?;
    let (low, high) = client
        .fetch_watermarks(&topic, partition, RPC_TIMEOUT)
        .map_err(|error| unavailable(error.to_string()))?;
    let from = i64::try_from(request.from).unwrap_or(i64::MAX);
    if from < low {
        let oldest = low.unsigned_abs();
        return Err(ReadError::Trimmed { topic, partition: request.partition, from: request.from, oldest });
    }
    let log = format!("{cluster}/{topic}/{}", found.id);
    Ok(Range {
        // Which of its epochs a partition is in is known to who reads live.
        epoch: epoch_of(&log, partition, status.generation(&log, partition)),
        topic: topic.into(),
        partition,
        from,
        until: i64::try_from(request.until).unwrap_or(i64::MAX).min(high),
    })
}

/// Polls until the range or the partition ends.
fn collect(client: &BaseConsumer<Context>, range: &Range) -> Result<Stretch, ReadError> {
    let unavailable =
        |reason: &str| ReadError::Unavailable { topic: range.topic.to_string(), reason: reason.to_owned() };
    let deadline = Instant::now() + READ_DEADLINE;
    let mut records = Vec::new();
    let mut bytes = 0;
    while Instant::now() < deadline {
        match client.poll(POLL_WAIT) {
            None => {}
            Some(Ok(message)) => {
                // What an earlier assignment left in the queue.
                let ours = message.topic() == &*range.topic && message.partition() == range.partition;
                if !ours || message.offset() < range.from {
                    continue;
                }
                if message.offset() < range.until {
                    bytes += message.key_len() + message.payload_len();
                    if bytes > MAX_READ_BYTES {
                        return Err(ReadError::TooLarge { topic: range.topic.to_string() });
                    }
                    records.push(record_of(&message, range.topic.clone(), range.epoch));
                }
                if message.offset().saturating_add(1) >= range.until {
                    return Ok(range.stretch(records));
                }
            }
            // Behind the last record there may be markers of transactions, which are never delivered.
            Some(Err(KafkaError::PartitionEOF(partition))) if partition == range.partition => {
                return Ok(range.stretch(records));
            }
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AutoOffsetReset) => {
                    return Err(unavailable("the log was trimmed meanwhile"));
                }
                // Told and counted by the context; librdkafka goes on by itself.
                _ => tracing::debug!(%error, "while reading again"),
            },
        }
    }
    Err(unavailable("no answer in time"))
}
