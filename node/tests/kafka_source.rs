//! What only Kafka has of its source's behaviour, against a real broker; the rest is in `sources.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]

mod support {
    pub mod kafka;
    pub mod source;
}

use std::{fs, path::Path, time::Instant};

use rdkafka::producer::Producer;
use support::{
    kafka::{KafkaBroker, KafkaProducer, SASL_USER},
    source::{DEADLINE, Running, assert_complete},
};

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_partitions_made_later_are_read_from_their_beginning() {
    let broker = KafkaBroker::shared();
    broker.create_topic("later.one", 1).await;
    let mut source = Running::start(&broker.bootstrap(), &["^later\\.", "named"], "");
    source.partitions(1).await;
    broker.create_topic("later.two", 2).await;
    broker.create_topic("unrelated.later.three", 1).await;
    broker.create_topic("named", 1).await;
    broker.add_partitions("later.one", 2).await;
    let producer = broker.producer();
    for (topic, partition) in [
        ("later.one", 0),
        ("later.one", 1),
        ("later.two", 0),
        ("later.two", 1),
        ("unrelated.later.three", 0),
        ("named", 0),
    ] {
        producer.send(topic, partition, Some(topic));
    }
    producer.flush();
    source.partitions(5).await;
    source.records(5).await;
    assert!(
        source.begins.iter().all(|(_, position)| *position == 0),
        "from the beginning: {:?}",
        source.begins
    );
    let records = source.stop().await;
    assert_complete(&records, 0);
    assert!(records.iter().all(|record| &*record.topic != "unrelated.later.three"));
    assert_eq!(records.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_transactions_are_never_seen() {
    let broker = KafkaBroker::shared();
    broker.create_topic("bank", 1).await;
    let mut source = Running::start(&broker.bootstrap(), &["bank"], "start = 'beginning'");
    source.partitions(1).await;
    let producer = KafkaProducer::new(broker.client().set("transactional.id", "teller"));
    let native = producer.native();
    native.init_transactions(DEADLINE).unwrap();
    for number in 0..6 {
        native.begin_transaction().unwrap();
        producer.send("bank", 0, Some(&format!("{number}a")));
        producer.send("bank", 0, None);
        if number % 2 == 0 {
            native.commit_transaction(DEADLINE).unwrap();
        } else {
            producer.flush();
            native.abort_transaction(DEADLINE).unwrap();
        }
    }
    source.records(6).await;
    // A tombstone is an empty value.
    let committed = ["0a", "", "2a", "", "4a", ""];
    assert_eq!(source.values("bank", 0), committed);
    // The last thing in the log is the marker of an aborted transaction: reading again must not wait for a record.
    let again = source.reader.read("bank", 0, 0, 1000).await.unwrap().records;
    assert_eq!(again.iter().map(|record| record.value.clone()).collect::<Vec<_>>(), committed);
    source.metric("tickmesh_source_lag{source=\"engine\"} 0").await;
    assert_eq!(source.stop().await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_retention_took_is_noticed() {
    let broker = KafkaBroker::shared();
    broker.create_topic("short", 1).await;
    let more =
        "start = 'beginning'\n[properties]\n'queued.min.messages' = 1\n'queued.max.messages.kbytes' = 1";
    // Each record is fetched by itself.
    let mut client = broker.client();
    client.set("batch.num.messages", "1");
    let producer = KafkaProducer::new(&client);
    let value = "x".repeat(10_000);
    let write = |count| {
        (0..count).for_each(|_| producer.send("short", 0, Some(&value)));
        producer.flush();
    };
    write(1);
    let mut source = Running::start(&broker.bootstrap(), &["short"], more);
    source.records(1).await;
    // Nobody takes events, so the source stands still with a few records fetched ahead; of those after them most are deleted.
    let deadline = Instant::now() + DEADLINE;
    let mut written: u64 = 1;
    while source.events.len() < source.events.max_capacity() {
        assert!(Instant::now() < deadline, "waited in vain for a full channel: {}", source.events.len());
        write(50);
        written += 50;
    }
    write(400);
    let last = written + 400 - 1;
    let oldest = last - 10;
    broker.delete_records("short", 0, oldest as i64).await;
    source.until("the last record", |running| running.records.iter().any(|r| r.position == last)).await;
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    let (_, position) = source.begins[source.begins.len() - 1];
    assert_eq!(position, oldest, "reading goes on at the oldest record, and says so");
    let records = source.stop().await;
    let mut positions: Vec<u64> = records.iter().map(|record| record.position).collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "no record twice");
    positions.retain(|position| *position >= oldest);
    assert_eq!(positions, (oldest..=last).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_is_read() {
    let broker = KafkaBroker::shared();
    broker.create_topic("squeezed", 1).await;
    let values: Vec<String> = (0..200).map(|number| format!("{number} {}", "a".repeat(200))).collect();
    let mut written = Vec::new();
    for codec in ["gzip", "lz4", "snappy", "zstd"] {
        let producer = KafkaProducer::new(broker.client().set("compression.type", codec));
        values.iter().for_each(|value| producer.send("squeezed", 0, Some(value)));
        producer.flush();
        written.extend(values.clone());
    }
    let mut source = Running::start(&broker.bootstrap(), &["squeezed"], "start = 'beginning'");
    source.records(written.len()).await;
    assert_eq!(source.values("squeezed", 0), written);
    source.stop().await;
}

/// TLS and SCRAM as a source's table has them, with what a folder of the test holds.
fn secured(folder: &Path, password: &str) -> String {
    fs::write(folder.join("kafka.password"), format!("{password}\n")).unwrap();
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/ca.pem"), folder.join("ca.pem")).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    format!(
        "start = 'beginning'\nca_file = {:?}\npassword_file = {:?}\n[properties]\n'security.protocol' = 'SASL_SSL'\n\
         'sasl.mechanism' = 'SCRAM-SHA-512'\n'sasl.username' = {SASL_USER:?}\n",
        file("ca.pem"),
        file("kafka.password")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_scram_are_spoken_and_what_is_wrong_with_them_is_told() {
    let broker = KafkaBroker::shared();
    broker.create_topic("secured", 1).await;
    let producer = broker.producer();
    (0..50).for_each(|number| producer.send("secured", 0, Some(&number.to_string())));
    producer.flush();
    let folder = tempfile::tempdir().unwrap();
    let good = secured(folder.path(), SASL_USER);
    let mut source = Running::start(&broker.tls_bootstrap(), &["secured"], &good);
    source.records(50).await;
    assert_complete(&source.records, 0);
    let again = source.reader.read("secured", 0, 10, 20).await.unwrap();
    assert_eq!(again.records.len(), 10);
    source.stop().await;
    let source = Running::start(&broker.tls_bootstrap(), &["secured"], &secured(folder.path(), "wrong"));
    source.waiting("the broker refuses the credentials: ").await;
    assert!(source.stop().await.is_empty());
    // Without the authority that signed it, the broker might be anybody.
    let good = secured(folder.path(), SASL_USER);
    let stranger = good.lines().filter(|line| !line.starts_with("ca_file")).collect::<Vec<_>>().join("\n");
    let source = Running::start(&broker.tls_bootstrap(), &["secured"], &stranger);
    source.waiting("certificate verify failed").await;
    assert!(source.stop().await.is_empty());
}
