//! Apache Kafka as one of the logs.

use std::{fmt::Write, sync::Arc};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};

use crate::{
    kafka::{KafkaBroker, SASL_USER},
    log::Log,
    source::DEADLINE,
};

pub struct Kafka(Arc<KafkaBroker>);

impl Log for Kafka {
    const KIND: &'static str = "kafka";
    const PARTITIONS: u32 = 2;
    const KILLS: u32 = 1;
    const REFUSED: &'static str = "the broker refuses the credentials: ";
    const MISSING: &'static str = "no topic matches";

    async fn prepare() -> Self {
        Self(Arc::new(KafkaBroker::prepare()))
    }

    async fn shared() -> Self {
        Self(KafkaBroker::shared())
    }

    async fn start(&mut self) {
        self.own().restart();
    }

    fn kill(&mut self) {
        self.own().kill();
    }

    async fn create(&self, name: &str) {
        self.0.create_topic(name, Self::PARTITIONS as i32).await;
    }

    async fn delete(&self, name: &str) {
        self.0.delete_topic(name).await;
    }

    async fn append(&self, name: &str, partition: u32, values: &[String]) {
        // One that has seen a topic before it was made again may still hold its id.
        let producer = self.0.producer();
        values.iter().for_each(|value| producer.send(name, partition as i32, Some(value)));
        producer.flush();
    }

    async fn keep_last(&self, name: &str, partition: u32, keep: usize) {
        let (_, end) = self.reader().fetch_watermarks(name, partition as i32, DEADLINE).unwrap();
        self.0.delete_records(name, partition as i32, end - keep as i64).await;
    }

    async fn contents(&self, name: &str, partition: u32) -> Vec<(u64, String)> {
        let (consumer, partition) = (self.reader(), partition as i32);
        let (low, end) = consumer.fetch_watermarks(name, partition, DEADLINE).unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(name, partition, Offset::Offset(low)).unwrap();
        consumer.assign(&list).unwrap();
        let mut all = Vec::new();
        while (all.len() as i64) < end - low {
            let message = consumer.poll(DEADLINE).expect("the log goes on").unwrap();
            let value = String::from_utf8(message.payload().unwrap_or_default().to_vec()).unwrap();
            all.push((message.offset().unsigned_abs(), value));
        }
        all
    }

    async fn take_letters(&self, topic: &str) {
        self.0.create_topic(topic, 1).await;
    }

    fn keys_at(&self, name: &str, address: Option<&str>) -> String {
        let brokers = address.map_or_else(|| self.0.bootstrap(), str::to_owned);
        format!("brokers = {brokers:?}\ntopics = [{name:?}]\n")
    }

    fn wrong_keys(&self, name: &str) -> String {
        let mut keys = self.keys_at(name, Some(&self.0.sasl_bootstrap()));
        let properties = [
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", SASL_USER),
            ("sasl.password", "wrong"),
        ];
        keys.push_str("[properties]\n");
        for (key, value) in properties {
            writeln!(keys, "{key:?} = {value:?}").unwrap();
        }
        keys
    }
}

impl Kafka {
    fn own(&mut self) -> &mut KafkaBroker {
        Arc::get_mut(&mut self.0).expect("it serves nobody else")
    }

    fn reader(&self) -> BaseConsumer {
        self.0.client().set("group.id", "contents").create().unwrap()
    }
}
