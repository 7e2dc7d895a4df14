//! Kafka → ingest peers → mesh → edge peers in three regions → WebSocket clients, with processes and a real broker.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod support {
    pub mod client;
    pub mod kafka;
    pub mod node;
}

use std::collections::BTreeMap;

use rdkafka::{
    Message as _, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use support::{
    client::{Client, assert_linked},
    kafka::KafkaBroker,
    node::{DEADLINE, Network, Node, Ports, Role, wait_until},
};

const PARTITIONS: i32 = 4;

/// Two ingest peers and three edges around a broker.
struct Cluster {
    ingest: Vec<Node>,
    edges: Vec<Node>,
}

impl Cluster {
    fn start(network: &Network, broker: &str, topics: &str, routes: &str) -> Self {
        let publishers = [network.key("ingest-1"), network.key("ingest-2")];
        for edge in ["eu-1", "us-1", "ap-1"] {
            network.key(edge);
        }
        let more = format!(
            "[[source]]\nname = \"engine\"\nkind = \"kafka\"\nbrokers = {broker:?}\ntopics = {topics}\n\
             start = \"beginning\"\n{routes}"
        );
        let mut bootstrap = Vec::new();
        let mut start = |name, region, roles, more: &str| {
            let role = Role { name, region, roles, ports: Ports::default(), node: "", ops: "", more };
            let node = network.start(&role, &publishers, &bootstrap);
            bootstrap.push(node.mesh.clone());
            node
        };
        let ingest = vec![
            start("ingest-1", "eu-west", "[\"ingest\"]", &more),
            start("ingest-2", "eu-west", "[\"ingest\"]", &more),
        ];
        let edges = [("eu-1", "eu-west"), ("us-1", "us-east"), ("ap-1", "ap-northeast")]
            .map(|(name, region)| start(name, region, "[\"edge\"]", ""))
            .into();
        Self { ingest, edges }
    }
}

impl Cluster {
    /// What any peer says it dropped or missed.
    fn drops(&self) -> String {
        let nodes = self.ingest.iter().chain(&self.edges);
        let told = nodes.map(|node| {
            let (_, metrics) = node.get("/metrics");
            let lines = metrics.lines().filter(|line| {
                !line.starts_with('#')
                    && ["drop", "gap", "late", "duplicate", "slow"].iter().any(|word| line.contains(word))
            });
            lines.map(|line| format!("\n  {line}")).collect::<String>()
        });
        told.collect::<Vec<_>>().join("\n")
    }
}

/// What a topic holds, read by another way than ours: stream → (offset, data), in order.
fn log_of(broker: &KafkaBroker, topic: &str) -> BTreeMap<String, Vec<(u64, String)>> {
    let consumer: BaseConsumer = broker.client().set("group.id", "check").create().unwrap();
    let mut assignment = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(topic, partition, DEADLINE).unwrap();
        assert_eq!(low, 0);
        left += high;
        assignment.add_partition_offset(topic, partition, rdkafka::Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut streams: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    while left > 0 {
        let message = consumer.poll(DEADLINE).expect("the log goes on").unwrap();
        let value: BTreeMap<String, &serde_json::value::RawValue> =
            serde_json::from_slice(message.payload().unwrap()).unwrap();
        let stream = value["stream"].get().trim_matches('"').to_owned();
        let offset = u64::try_from(message.offset()).unwrap();
        streams.entry(stream).or_default().push((offset, value["data"].get().to_owned()));
        left -= 1;
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_reaches_clients_in_three_regions_once_and_in_order() {
    const RECORDS: u64 = 20_000;
    const STREAMS: usize = 8;
    let broker = KafkaBroker::shared();
    broker.create_topic("events", PARTITIONS).await;
    let network = Network::new();
    let cluster = Cluster::start(&network, &broker.bootstrap(), "[\"events\"]", "");

    let names: Vec<String> = (0..STREAMS).map(|n| format!("trades.s{n}_usdt")).collect();
    let streams: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut clients = Vec::new();
    for edge in &cluster.edges {
        let mut client = Client::connect(&edge.url()).await;
        client.subscribe_until_confirmed(&streams).await;
        clients.push(client);
    }

    let producer = broker.producer();
    for n in 0..RECORDS {
        let index = (n.wrapping_mul(2_654_435_761) >> 7) as usize % STREAMS;
        let record = format!(r#"{{"stream":"{}","data":{{"id":{n},"price":"1.{n}"}}}}"#, names[index]);
        producer.send("events", index as i32 % PARTITIONS, Some(&record));
    }
    producer.flush();

    let log = log_of(&broker, "events");
    assert_eq!(log.len(), STREAMS);
    for (client, edge) in clients.iter_mut().zip(&cluster.edges) {
        let complete = client
            .try_receive_until(|events| events.values().map(Vec::len).sum::<usize>() as u64 >= RECORDS)
            .await;
        assert!(complete, "records are missing; what was dropped: {}", cluster.drops());
        for (stream, expected) in &log {
            let events = &client.events[stream];
            let received: Vec<_> = events.iter().map(|event| (event.sequence, event.data.clone())).collect();
            assert_eq!(received.len(), expected.len(), "{stream} at {}", edge.url());
            assert!(received == *expected, "{stream} at {}: not the log", edge.url());
            assert_linked(stream, events);
        }
        // What gossip dropped was fetched.
        assert_eq!(edge.metric("tickmesh_gaps_total", "repaired=\"no\""), 0.0);
    }
    for node in cluster.ingest.into_iter().chain(cluster.edges) {
        assert!(node.terminate().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_receives_nothing_of_a_topic_it_has_not_joined() {
    let broker = KafkaBroker::shared();
    broker.create_topic("some", PARTITIONS).await;
    let network = Network::new();
    let cluster = Cluster::start(&network, &broker.bootstrap(), "[\"some\"]", "");
    let mut trades = Client::connect(&cluster.edges[0].url()).await;
    trades.subscribe_until_confirmed(&["trades.btc_usdt"]).await;
    let mut ticker = Client::connect(&cluster.edges[1].url()).await;
    ticker.subscribe_until_confirmed(&["ticker.btc_usdt"]).await;

    let producer = broker.producer();
    for n in 0..200 {
        for channel in ["trades", "ticker"] {
            let record = format!(r#"{{"stream":"{channel}.btc_usdt","data":{n}}}"#);
            producer.send("some", 0, Some(&record));
        }
    }
    producer.flush();
    for (client, stream) in [(&mut trades, "trades.btc_usdt"), (&mut ticker, "ticker.btc_usdt")] {
        client
            .receive_until("its 200 events have come", |events| events.get(stream).map_or(0, Vec::len) == 200)
            .await;
        assert_eq!(client.events.len(), 1);
    }

    let received = |edge: usize, channel: &str| {
        cluster.edges[edge].metric("tickmesh_mesh_events_received_total", &format!("channel=\"{channel}\""))
    };
    assert!(received(0, "trades") >= 200.0);
    assert_eq!(received(0, "ticker"), 0.0);
    assert!(received(1, "ticker") >= 200.0);
    assert_eq!(received(1, "trades"), 0.0);
    // The third edge has no clients: nothing of anything.
    assert_eq!(cluster.edges[2].metric("tickmesh_mesh_events_received_total", ""), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_records_are_kept_for_the_operator_and_the_stream_goes_on() {
    let broker = KafkaBroker::shared();
    broker.create_topic("raw", PARTITIONS).await;
    let network = Network::new();
    let route = "[[route]]\nsource = \"engine\"\ntopic = \"raw\"\nchannel = \"trades\"\n\
                 key = \".s | ascii_downcase\"\ndata = \"{price: .p, quantity: (.q | tostring)}\"\n\
                 [[route]]\nsource = \"engine\"\ntopic = \"raw_orders\"\nchannel = \"orders\"\nkey = \".user\"\n";
    let cluster = Cluster::start(&network, &broker.bootstrap(), "[\"raw\"]", route);
    let mut client = Client::connect(&cluster.edges[0].url()).await;
    client.subscribe_until_confirmed(&["trades.btc"]).await;
    let refused = client.subscribe(&["orders.alice", "nothing.btc", "Trades.btc"]).await;
    let codes: Vec<String> = refused.iter().map(|r| serde_json::to_string(&r.code).unwrap()).collect();
    assert_eq!(codes, ["\"forbidden\"", "\"unknown_stream\"", "\"unknown_stream\""], "{refused:?}");

    let producer = broker.producer();
    let good = r#"{"s":"BTC","p":"1","q":2}"#;
    for value in [good, "{", r#"{"s":7}"#, "", r#"{"s":"no good key","p":1}"#, good] {
        producer.send("raw", 1, Some(value));
    }
    producer.flush();
    client
        .receive_until("both good records have come", |events| {
            events.get("trades.btc").map_or(0, Vec::len) == 2
        })
        .await;
    let events = &client.events["trades.btc"];
    assert_eq!(events.iter().map(|event| event.sequence).collect::<Vec<_>>(), [0, 5]);
    assert_eq!(events[1].data, r#"{"price":"1","quantity":"2"}"#);
    assert_linked("trades.btc", events);

    for ingest in &cluster.ingest {
        let letters = wait_until("four dead letters are kept", || {
            let (status, body) = ingest.get("/dead-letters");
            assert_eq!(status, 200);
            let letters: serde_json::Value = serde_json::from_str(&body).unwrap();
            let letters = letters["dead_letters"].as_array().unwrap().clone();
            (letters.len() == 4).then_some(letters)
        });
        for (letter, position) in letters.iter().zip(1..) {
            assert_eq!(letter["topic"], "raw");
            assert_eq!(letter["partition"], 1);
            assert_eq!(letter["position"], position);
            assert!(!letter["reason"].as_str().unwrap().is_empty());
        }
        assert_eq!(ingest.metric("tickmesh_dead_letters_total", ""), 4.0);
    }
}
