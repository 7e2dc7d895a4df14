//! The Kafka source against a real Apache Kafka broker.

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

use std::time::{Duration, Instant};

use rdkafka::producer::Producer;
use support::{
    kafka::{KafkaBroker, KafkaProducer},
    source::{DEADLINE, Running, assert_complete},
};
use tickmesh::source::{ReadError, Record};

#[tokio::test(flavor = "multi_thread")]
async fn every_record_comes_once_in_order_and_can_be_read_again() {
    let broker = KafkaBroker::shared();
    broker.create_topic("all", 4).await;
    let producer = broker.producer();
    for partition in 0..4 {
        producer.send("all", partition, Some("before the source is up"));
    }
    producer.flush();
    let mut source = Running::start(&broker.bootstrap(), &["all"], "");
    source.partitions(4).await;
    source.ready().await;
    let before_us = tickmesh::ops::metrics::now_us() / 1000 * 1000;
    for number in 0..5000 {
        producer.send("all", number % 4, Some(&number.to_string()));
    }
    producer.send("all", 0, None);
    producer.flush();
    source.records(5001).await;

    assert!(source.begins.iter().all(|(_, position)| *position == 1), "reading begins at the end");
    assert_complete(&source.records, 1);
    for partition in 0..4_u32 {
        let mut values = source.values("all", partition);
        if partition == 0 {
            assert_eq!(values.pop().as_deref(), Some(""), "a tombstone is an empty value");
        }
        let sent: Vec<String> = (0..1250).map(|n| (n * 4 + partition).to_string()).collect();
        assert_eq!(values, sent, "values of partition {partition}");
    }
    let mut epochs: Vec<u64> = source.begins.iter().map(|(epoch, _)| epoch.as_u64()).collect();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), 4, "each partition has an epoch of its own");
    let times = source.records.iter().map(|record| record.engine_time_us);
    assert!(
        times.clone().all(|time| time >= before_us && time % 1000 == 0),
        "engine time is Kafka's: {times:?}"
    );
    source.metric("tickmesh_source_records_total{source=\"engine\"} 5001").await;
    source.metric("tickmesh_source_lag{source=\"engine\"} 0").await;
    source.metric("tickmesh_source_brokers_up{source=\"engine\"} 1").await;
    source.metric("tickmesh_source_partitions{source=\"engine\"} 4").await;

    let again = source.reader.read("all", 2, 500, 700).await.unwrap().records;
    let first: Vec<&Record> =
        source.records.iter().filter(|r| r.partition == 2 && (500..700).contains(&r.position)).collect();
    assert_eq!(format!("{again:?}"), format!("{first:?}"), "the same records are read again");
    let tail = source.reader.read("all", 2, 1250, 9999).await.unwrap();
    assert_eq!((tail.records.len(), tail.until), (1, 1251), "a range beyond the end gives what is there");
    let beyond = source.reader.read("all", 2, 1251, 1260).await.unwrap();
    assert!(beyond.records.is_empty() && beyond.until == 1251, "{beyond:?}");
    let unknown = source.reader.read("all", 9, 0, 10).await.unwrap_err();
    assert_eq!(unknown, ReadError::UnknownPartition { topic: "all".into(), partition: 9 });
    let unknown = source.reader.read("none", 0, 0, 10).await.unwrap_err();
    assert_eq!(unknown, ReadError::UnknownPartition { topic: "none".into(), partition: 0 });
    let both = tokio::join!(source.reader.read("all", 0, 0, 300), source.reader.read("all", 1, 0, 300));
    assert_eq!(
        (both.0.unwrap().records.len(), both.1.unwrap().records.len()),
        (300, 300),
        "two readers at once"
    );
    broker.delete_records("all", 3, 100).await;
    let trimmed = source.reader.read("all", 3, 50, 200).await.unwrap_err();
    assert_eq!(trimmed, ReadError::Trimmed { topic: "all".into(), partition: 3, from: 50, oldest: 100 });
    assert_eq!(source.stop().await.len(), 5001);
}

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
        for part in ["a", "b"] {
            producer.send("bank", 0, Some(&format!("{number}{part}")));
        }
        if number % 2 == 0 {
            native.commit_transaction(DEADLINE).unwrap();
        } else {
            producer.flush();
            native.abort_transaction(DEADLINE).unwrap();
        }
    }
    source.records(6).await;
    let committed = ["0a", "0b", "2a", "2b", "4a", "4b"];
    assert_eq!(source.values("bank", 0), committed);
    // The last thing in the log is the marker of an aborted transaction: reading again must not wait for a record.
    let again = source.reader.read("bank", 0, 0, 1000).await.unwrap().records;
    assert_eq!(again.iter().map(|record| record.value.clone()).collect::<Vec<_>>(), committed);
    source.metric("tickmesh_source_lag{source=\"engine\"} 0").await;
    assert_eq!(source.stop().await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_created_again_is_another_epoch() {
    let broker = KafkaBroker::shared();
    broker.create_topic("phoenix", 1).await;
    let mut source = Running::start(&broker.bootstrap(), &["phoenix"], "");
    source.partitions(1).await;
    let producer = broker.producer();
    for number in 0..10 {
        producer.send("phoenix", 0, Some(&number.to_string()));
    }
    producer.flush();
    source.records(10).await;
    broker.delete_topic("phoenix").await;
    broker.create_topic("phoenix", 1).await;
    source.partitions(2).await;
    // A producer that has seen the old topic may still hold its id.
    let producer = broker.producer();
    for number in 100..120 {
        producer.send("phoenix", 0, Some(&number.to_string()));
    }
    producer.flush();
    source.records(30).await;
    let (old, new) = (source.begins[0], source.begins[1]);
    assert_ne!(old.0, new.0, "the epoch is another");
    assert_eq!(new.1, 0, "read from the beginning");
    let reread = source.reader.read("phoenix", 0, 0, 5).await.unwrap().records;
    assert!(reread.len() == 5 && reread.iter().all(|record| record.epoch == new.0), "{reread:?}");
    let records = source.stop().await;
    assert_eq!(records.len(), 30);
    assert!(records[..10].iter().all(|record| record.epoch == old.0));
    assert!(records[10..].iter().all(|record| record.epoch == new.0));
    assert_complete(&records[..10], 0);
    assert_complete(&records[10..], 0);
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
    // Nobody takes events, so the source stands still with a few records fetched ahead; the rest is deleted.
    write(400);
    broker.delete_records("short", 0, 390).await;
    source.until("the last record", |running| running.records.iter().any(|r| r.position == 400)).await;
    source.metric("tickmesh_source_positions_lost_total{source=\"engine\"} 1").await;
    let (_, position) = source.begins[source.begins.len() - 1];
    assert_eq!(position, 390, "reading goes on at the oldest record, and says so");
    let records = source.stop().await;
    let mut positions: Vec<u64> = records.iter().map(|record| record.position).collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "no record twice");
    positions.retain(|position| *position >= 390);
    assert_eq!(positions, (390..=400).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_it_while_ingest_takes_nothing() {
    let broker = KafkaBroker::shared();
    broker.create_topic("flood", 1).await;
    let producer = broker.producer();
    for number in 0..20_000 {
        producer.send("flood", 0, Some(&number.to_string()));
    }
    producer.flush();
    let mut source = Running::start(&broker.bootstrap(), &["flood"], "start = 'beginning'");
    let deadline = Instant::now() + DEADLINE;
    while source.events.len() < source.events.max_capacity() {
        assert!(Instant::now() < deadline, "waited in vain for a full channel: {}", source.events.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    source.stop.cancel();
    let ended = tokio::time::timeout(DEADLINE, &mut source.task).await;
    ended.expect("the source ends though its channel is full").unwrap();
    let records = source.stop().await;
    assert!(records.len() < 20_000, "the source waited");
    assert_complete(&records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_then_up_then_killed_loses_nothing() {
    let mut broker = KafkaBroker::prepare();
    let mut source = Running::start(&broker.bootstrap(), &["market"], "start = 'beginning'");
    source.waiting(&format!("kafka {}", broker.bootstrap())).await;
    broker.restart();
    source.waiting("no topic matches market").await;
    broker.create_topic("market", 4).await;
    source.partitions(4).await;
    source.ready().await;

    let producer = broker.producer();
    for number in 0..2000 {
        producer.send("market", number % 4, Some(&number.to_string()));
    }
    producer.flush();
    source.records(700).await;
    broker.kill();
    source.waiting("kafka").await;
    // Written while the broker is down: the producer keeps them until it is back.
    for number in 2000..4000 {
        producer.send("market", number % 4, Some(&number.to_string()));
    }
    broker.restart();
    producer.flush();
    source.records(4000).await;
    source.ready().await;
    assert_complete(&source.records, 0);
    assert_eq!(source.begins.len(), 4, "a reconnect begins nothing anew: {:?}", source.begins);
    for partition in 0..4_u32 {
        let sent: Vec<String> = (0..1000).map(|n| (n * 4 + partition).to_string()).collect();
        assert_eq!(source.values("market", partition), sent);
    }
    assert!(source.registry.render().contains("tickmesh_source_errors_total{kind=\"AllBrokersDown\""));
    // With the broker gone a stop must not wait for it.
    broker.kill();
    source.waiting("kafka").await;
    assert_eq!(source.stop().await.len(), 4000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_is_told_and_a_stop_ends_it() {
    // Bound and not listened on for Kafka: connections are taken and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let source = Running::start(&address, &["market"], "");
    source.waiting(&format!("kafka {address}: cannot describe topics")).await;
    let unavailable = source.reader.read("market", 0, 0, 10).await.unwrap_err();
    assert!(matches!(unavailable, ReadError::Unavailable { .. }), "{unavailable}");
    assert!(source.stop().await.is_empty());
}
