//! Writing to a log: dead letters, and records that are put back. Nothing of this is on the way of events.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

/// Longest wait until a server has what it was handed. It is asked again after that, by who cannot do without it.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What is written to a log, or was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// A Kafka topic, a NATS subject, a key of Redis.
    pub topic: String,
    /// Of a Kafka topic; left out, the key decides.
    pub partition: Option<u32>,
    /// NATS has none.
    pub key: Option<Bytes>,
    pub value: Bytes,
    /// Names and values: headers, of Redis further fields.
    pub headers: Vec<(String, String)>,
    /// Microseconds since 1970 UTC, where the source takes the engine's time from the message; zero: now.
    pub time_us: u64,
    /// The same for what is the same: JetStream drops what has one that it has seen lately.
    pub id: Option<String>,
}

/// Writes to the log of a source, as its configuration says how to reach it. Connects with the first message, and again after
/// a failure.
pub trait LogWriter: Send {
    /// Appends messages in their order, and returns when the server has confirmed all of them. After an error it may have any
    /// of them.
    fn append<'a>(&'a mut self, messages: &'a [Message]) -> BoxFuture<'a, Result<(), WriteError>>;

    /// Reads a topic from its beginning up to where it ends now.
    fn read_all<'a>(
        &'a mut self,
        topic: &'a str,
        output: mpsc::Sender<Message>,
    ) -> BoxFuture<'a, Result<(), WriteError>>;
}

/// Why a log has not got what it was to get.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// One of the messages is too large for this log, now and later.
    #[error("the log takes no message as large as that: {0}")]
    TooLarge(String),
    #[error("{0}")]
    Failed(String),
}
