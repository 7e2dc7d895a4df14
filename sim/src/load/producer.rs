//! Makes events at a rate, in a Kafka topic.

use std::time::Duration;

use anyhow::Context;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use tickmesh::ops::metrics::now_us;
use tokio::time::{Instant, sleep_until};

/// Events are made in groups, one each time this long has passed, as an engine makes several at once.
const TICK: Duration = Duration::from_millis(2);

/// How long the brokers may take to answer, and to make the topic.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a broker may take to acknowledge the last records.
const FLUSH: Duration = Duration::from_secs(10);

pub struct Producer {
    producer: BaseProducer,
    topic: String,
}

impl Producer {
    /// Connects, and has the topic made if it is not there and the brokers allow that.
    pub fn new(brokers: &str, topic: &str) -> anyhow::Result<Self> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            // As engines do: the records of one tick in one request. With one request for each, the broker is what is
            // measured.
            .set("linger.ms", "1")
            .set("enable.idempotence", "true")
            .create()
            .context("cannot make a Kafka producer")?;
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let metadata =
                producer.client().fetch_metadata(Some(topic), PATIENCE).context("no broker answers")?;
            if metadata.topics().iter().any(|topic| !topic.partitions().is_empty()) {
                break;
            }
            anyhow::ensure!(
                std::time::Instant::now() < end,
                "there is no topic {topic}, and the brokers make none"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(Self { producer, topic: topic.to_owned() })
    }

    /// Makes `rate` events per second over the streams in turn until `deadline`. Returns how many of each stream.
    pub async fn produce(
        &self,
        streams: &[String],
        rate: u32,
        deadline: Instant,
    ) -> anyhow::Result<Vec<u64>> {
        let mut counts = vec![0; streams.len()];
        let begun = Instant::now();
        let mut made = 0_u64;
        let mut tick = begun;
        while tick < deadline {
            let due = (tick - begun).as_secs_f64() * f64::from(rate);
            while (made as f64) < due {
                let index = (made % streams.len() as u64) as usize;
                self.send(&streams[index], made)?;
                counts[index] += 1;
                made += 1;
            }
            self.producer.poll(Duration::ZERO);
            tick += TICK;
            sleep_until(tick).await;
        }
        self.producer.flush(FLUSH).context("the broker did not take the last records")?;
        Ok(counts)
    }

    fn send(&self, stream: &str, number: u64) -> anyhow::Result<()> {
        let timestamp = now_us() as f64 / 1000.0;
        let record = format!(
            r#"{{"stream":"{stream}","data":{{"id":{number},"price":"36200.5","quantity":"1.25","side":"buy","timestamp":{timestamp:.3}}}}}"#
        );
        loop {
            // Keyed by stream, so that a stream stays in one partition.
            match self.producer.send(BaseRecord::to(&self.topic).key(stream).payload(&record)) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error).context("cannot produce"),
            }
        }
    }
}
