//! What Kafka does to topics that a client could not make up for: it compacts them, and gives them more partitions. Against a real
//! broker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests, outside test functions"
)]

mod support {
    pub mod client;
    pub mod kafka;
    pub mod node;
    pub mod source;
}

use std::collections::BTreeMap;

use rdkafka::producer::BaseRecord;
use support::{
    client::Client,
    kafka::{KafkaBroker, KafkaProducer},
    node::{Network, Ports, Role},
    source::Running,
};
use tickmesh::{
    ops::metrics::now_us,
    source::{Record, Starts},
};

fn open(broker: &KafkaBroker, retains_last: bool, topics: &[&str], starts: Starts) -> Running {
    let brokers = broker.bootstrap();
    let keys = format!("kind = 'kafka'\nbrokers = {brokers:?}\ntopics = {topics:?}\nstart = 'beginning'\n");
    Running::open(starts, retains_last, &keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn compacted_topics_are_refused_unless_all_routes_retain_the_last_event() {
    let broker = KafkaBroker::shared();
    for topic in ["compact.instruments", "compact.trades"] {
        broker.create_topic(topic, 1).await;
    }
    broker.set_cleanup("compact.instruments", "compact,delete").await;
    let producer = broker.producer();
    for topic in ["compact.instruments", "compact.trades"] {
        (0..5).for_each(|value| producer.send_keyed(topic, 0, Some("btc"), Some(&value.to_string())));
    }
    producer.flush();
    let topics = ["^compact\\."];
    let mut retaining = open(&broker, true, &topics, Starts::default());
    retaining.ends(2).await;
    retaining.ready().await;
    assert_eq!(retaining.values("compact.instruments", 0).len(), 5);
    retaining.stop().await;

    let mut source = open(&broker, false, &topics, Starts::default());
    source.waiting("topic compact.instruments is compacted (cleanup.policy = compact)").await;
    source.waiting("set retain = \"last\" in all routes").await;
    source.records(5).await;
    assert!(source.records.iter().all(|record| &*record.topic == "compact.trades"), "the others are read");
    // Mended without a restart: it is read from its beginning, as a topic that appears.
    broker.set_cleanup("compact.instruments", "delete").await;
    source.records(10).await;
    source.ready().await;
    // And what becomes compacted while it is read is let alone.
    broker.set_cleanup("compact.trades", "compact").await;
    source.waiting("topic compact.trades is compacted").await;
    broker.set_cleanup("compact.trades", "delete").await;
    source.ready().await;
    producer.send("compact.trades", 0, Some("5"));
    producer.flush();
    source.records(11).await;
    assert_eq!(source.begins.len(), 2, "it goes on where it was");
    assert_eq!(source.values("compact.trades", 0).len(), 6);
    source.stop().await;
}

const KEYS: u32 = 12;

/// Where a producer puts a key: any hash will do that sends some keys elsewhere when there are more partitions.
fn partition_of(key: u32, partitions: u32) -> i32 {
    (key.wrapping_mul(2_654_435_761) >> 8).rem_euclid(partitions) as i32
}

fn write(producer: &KafkaProducer, topic: &str, numbers: std::ops::Range<u32>, partitions: u32) {
    write_at(producer, topic, numbers, partitions, now_us() / 1000);
}

/// By a producer whose clock says so.
fn write_at(
    producer: &KafkaProducer,
    topic: &str,
    numbers: std::ops::Range<u32>,
    partitions: u32,
    time_ms: u64,
) {
    for number in numbers {
        for key in 0..KEYS {
            let value = format!(r#"{{"stream":"trades.k{key}","data":{number}}}"#);
            let (to, key) = (partition_of(key, partitions), key.to_string());
            let record = BaseRecord::to(topic).partition(to).key(&key).payload(&value);
            let record = record.timestamp(i64::try_from(time_ms).unwrap());
            assert!(producer.native().send(record).is_ok(), "there is room for a few");
        }
        if number % 50 == 0 {
            producer.flush();
        }
    }
    producer.flush();
}

/// Of each key all numbers, in the order in which they were written.
fn assert_in_order(records: &[Record], numbers: u32) {
    let mut next: BTreeMap<String, u32> = BTreeMap::new();
    for record in records {
        let key = String::from_utf8(record.key.clone().unwrap().to_vec()).unwrap();
        let next = next.entry(key.clone()).or_default();
        let value = format!(r#"{{"stream":"trades.k{key}","data":{next}}}"#);
        assert_eq!(record.value, value.as_bytes(), "of key {key}, partition {}", record.partition);
        *next += 1;
    }
    assert!(next.len() == KEYS as usize && next.values().all(|next| *next == numbers), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_grew_while_nobody_read_keeps_the_order_of_its_keys() {
    const NUMBERS: u32 = 1000;
    let broker = KafkaBroker::shared();
    broker.create_topic("grown.down", 2).await;
    let mut before = open(&broker, false, &["grown.down"], Starts::default());
    before.ends(2).await;
    let starts = before.starts();
    before.stop().await;
    let producer = broker.producer();
    // The topic is older than its new partitions.
    write_at(&producer, "grown.down", 0..1, 2, now_us() / 1000 - 3_600_000);
    write(&producer, "grown.down", 1..NUMBERS, 2);
    broker.add_partitions("grown.down", 4).await;
    let producer = broker.producer();
    write(&producer, "grown.down", NUMBERS..2 * NUMBERS, 4);
    // As a peer that was down finds it, and as one that meets the topic for the first time.
    for starts in [starts, Starts::default()] {
        let known = !starts.is_empty();
        let mut source = open(&broker, false, &["grown.down"], starts);
        source.records((2 * NUMBERS * KEYS) as usize).await;
        source
            .metric(&format!("tickmesh_source_topics_grown_total{{source=\"engine\"}} {}", u32::from(known)))
            .await;
        assert_in_order(&source.stop().await, 2 * NUMBERS);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_topic_that_grows_under_load_miss_nothing() {
    const NUMBERS: u32 = 400;
    let broker = KafkaBroker::shared();
    broker.create_topic("grown.live", 2).await;
    let network = Network::new();
    let names = ["ingest-1", "ingest-2", "edge-1"];
    let publishers: Vec<_> = names.iter().map(|name| network.key(name)).collect();
    let source = format!(
        "[[source]]\nname = \"engine\"\nkind = \"kafka\"\nbrokers = {:?}\ntopics = [\"grown.live\"]\n",
        broker.bootstrap()
    );
    let mut bootstrap = Vec::new();
    let peers: Vec<_> = names
        .iter()
        .map(|name| {
            let (roles, more) =
                if name.starts_with("edge") { ("[\"edge\"]", "") } else { ("[\"ingest\"]", source.as_str()) };
            let role =
                Role { name, region: "eu-west", roles, ports: Ports::default(), node: "", ops: "", more };
            let node = network.start(&role, &publishers[..2], &bootstrap);
            bootstrap.push(node.mesh.clone());
            node
        })
        .collect();
    for peer in &peers[..2] {
        peer.wait_ready();
    }
    let mut client = Client::connect(&peers[2].url()).await;
    let streams: Vec<String> = (0..KEYS).map(|key| format!("trades.k{key}")).collect();
    let streams: Vec<&str> = streams.iter().map(String::as_str).collect();
    client.subscribe_until_confirmed(&streams).await;

    let writer = broker.producer();
    let (shared, growing) = (broker.clone(), tokio::runtime::Handle::current());
    let writing = tokio::task::spawn_blocking(move || {
        write(&writer, "grown.live", 0..NUMBERS, 2);
        growing.block_on(shared.add_partitions("grown.live", 4));
        // One that has seen the topic before knows two partitions yet.
        write(&shared.producer(), "grown.live", NUMBERS..2 * NUMBERS, 4);
    });
    let all = (2 * NUMBERS * KEYS) as usize;
    client.receive_until("all have come", |events| events.values().map(Vec::len).sum::<usize>() >= all).await;
    writing.await.unwrap();
    let expected: Vec<String> = (0..2 * NUMBERS).map(|number| number.to_string()).collect();
    for stream in streams {
        let received: Vec<_> = client.events[stream].iter().map(|event| event.data.as_str()).collect();
        assert!(received == expected, "{stream}: {} received", received.len());
    }
    assert_eq!(peers[2].metric("tickmesh_gaps_total", "repaired=\"no\""), 0.0);
    for peer in &peers[..2] {
        assert_eq!(peer.metric("tickmesh_source_topics_grown_total", ""), 1.0);
        assert_eq!(peer.metric("tickmesh_dead_letters_total", ""), 0.0);
    }
    for peer in peers {
        assert!(peer.terminate().success());
    }
}
