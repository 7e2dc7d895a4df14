//! The use cases of an exchange's gateway, one test each, with processes: what clients see, and the lifecycle events by which
//! operators see it.

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

use std::{collections::BTreeMap, fs};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use support::{
    client::{Client, Received, assert_linked},
    kafka::{KafkaBroker, KafkaProducer},
    node::{DEADLINE, Network, Node, get, metric_in, wait_until},
};
use tickmesh_protocol::client::{CloseCode, ControlMessage, ErrorCode};
use tokio::time::timeout;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Error, Message},
};

/// Counts lifecycle events.
const LIFECYCLE: &str = "tickmesh_lifecycle_events_total";

const TRADES: &str = "trades.btc_usdt";

/// A market without a broker.
const MARKET: &str = "[[source]]\nname = \"market\"\nkind = \"embedded\"\n";

/// An ingest peer and two edges in other regions.
struct Gateway {
    network: Network,
    ingest: Node,
    eu: Node,
    us: Node,
}

impl Gateway {
    fn start(sources: &str) -> Self {
        let network = Network::new();
        fs::write(network.folder().join("jwt.secret"), "a secret of this test, 32 bytes at least").unwrap();
        let publisher = network.key("ingest");
        let edges = ["eu-1", "us-1"].map(|edge| network.key(edge));
        let start = |name: &str, region: &str, role: &str, bootstrap: &[String], more: &str| {
            let text = format!(
                "[node]\nname = {name:?}\nregion = {region:?}\nroles = [{role:?}]\n\
                 [ops]\nlisten = \"127.0.0.1:0\"\nlog_format = \"json\"\n\
                 [mesh]\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\nkey_file = \"{name}.key\"\n\
                 publishers = [{publisher:?}]\nedges = {edges:?}\nbootstrap = {bootstrap:?}\n\
                 [auth.jwt]\nalgorithm = \"HS256\"\nsecret_file = \"jwt.secret\"\n{more}"
            );
            network.run(name, &text)
        };
        let edge = "[edge]\nlisten = \"127.0.0.1:0\"\nshards = 1\nanonymous = [\"ticker.*\"]\n\
             [[auth.role]]\nname = \"trader\"\nstreams = [\"trades.*\"]\n";
        let ingest = start("ingest", "eu-west", "ingest", &[], sources);
        let bootstrap = [ingest.mesh.clone()];
        let eu = start("eu-1", "eu-west", "edge", &bootstrap, edge);
        let us = start("us-1", "us-east", "edge", &bootstrap, edge);
        Self { network, ingest, eu, us }
    }

    /// An address with the token of a trader who may have BTC pairs.
    fn url_of(&self, user: &str, edge: &Node) -> String {
        let arguments = ["token", "--sub", user, "--roles", "trader", "--pairs", "btc_*"];
        let token = self.network.tickmesh(&[&arguments[..], &["--secret-file", "jwt.secret"]].concat());
        format!("{}?token={token}", edge.url())
    }

    async fn trader(&self, user: &str, edge: &Node) -> Client {
        let mut client = Client::connect(&self.url_of(user, edge)).await;
        let welcome = client.control().await;
        let ControlMessage::Welcome { user: Some(who), .. } = welcome else { panic!("{welcome:?}") };
        assert_eq!(who, user);
        client
    }
}

/// The lifecycle events of a peer, but for those of each message.
fn lifecycle(node: &Node) -> BTreeMap<String, u64> {
    let (_, metrics) = node.get("/metrics");
    let events = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("tickmesh_lifecycle_events_total{event=\"")?;
        let (event, count) = rest.split_once("\"} ")?;
        Some((event.to_owned(), count.parse().unwrap()))
    });
    let of_messages = ["onKafkaMessage", "onMessageDispatch"];
    events.filter(|(event, count)| *count > 0 && !of_messages.contains(&event.as_str())).collect()
}

/// The next thing that an edge says because it was asked.
async fn answer(client: &mut Client) -> ControlMessage {
    loop {
        match client.control().await {
            ControlMessage::Heartbeat { .. } => {}
            answer => return answer,
        }
    }
}

fn expected(events: &[(&str, u64)]) -> BTreeMap<String, u64> {
    events.iter().map(|(event, count)| ((*event).to_owned(), *count)).collect()
}

fn messages(node: &Node, event: &str) -> f64 {
    node.metric(LIFECYCLE, &format!("event={event:?}"))
}

/// What a client gets of each record.
fn data_of(number: u64) -> String {
    format!(r#"{{"price":"{number}.50","quantity":"0.1"}}"#)
}

/// Records as an engine writes them, for the route of [`kafka_source`].
fn produce(producer: &KafkaProducer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let record = json!({"s": "BTC_USDT", "p": format!("{number}.50"), "q": "0.1"}).to_string();
        producer.send("market.trades", 0, Some(&record));
    }
    producer.flush();
}

async fn kafka_source(broker: &KafkaBroker) -> String {
    broker.create_topic("market.trades", 1).await;
    format!(
        "[[source]]\nname = \"engine\"\nkind = \"kafka\"\nbrokers = {:?}\ntopics = [\"market.trades\"]\n\
         start = \"beginning\"\n[[route]]\nsource = \"engine\"\ntopic = \"market.trades\"\nchannel = \"trades\"\n\
         key = '.s | ascii_downcase'\ndata = '{{price: .p, quantity: .q}}'\n",
        broker.bootstrap()
    )
}

fn count(events: &BTreeMap<String, Vec<Received>>, stream: &str) -> u64 {
    events.get(stream).map_or(0, Vec::len) as u64
}

/// That events are those of the log, from a number on.
fn assert_log(events: &[Received], from: u64) {
    for (event, number) in events.iter().zip(from..) {
        assert_eq!((event.sequence, event.data.as_str()), (number, data_of(number).as_str()));
    }
    assert_linked(TRADES, events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshake_with_authorization() {
    let gateway = Gateway::start(MARKET);
    let good = gateway.trader("alice", &gateway.eu).await;
    let accepted = [("onConnectionOpen", 1), ("onAuthValidate", 1), ("onConnectionAccepted", 1)];
    assert_eq!(lifecycle(&gateway.eu), expected(&accepted));

    let bad = format!("{}x", gateway.url_of("alice", &gateway.us));
    let Err(Error::Http(refused)) = connect_async(bad).await else { panic!("let in with a bad token") };
    assert_eq!(refused.status(), 401);
    let body: serde_json::Value = serde_json::from_slice(refused.body().as_deref().unwrap()).unwrap();
    assert_eq!(body["error"]["code"], "unauthorized");
    let rejected = [("onConnectionOpen", 1), ("onAuthValidate", 1), ("onConnectionRejected", 1)];
    assert_eq!(lifecycle(&gateway.us), expected(&rejected));
    drop(good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribing_to_what_is_allowed() {
    let gateway = Gateway::start(MARKET);
    let mut client = gateway.trader("alice", &gateway.eu).await;
    // While the mesh still forms, nobody knows which channels there are.
    client.subscribe_until_confirmed(&["ticker.eth_usdt"]).await;
    let before = lifecycle(&gateway.eu);
    let refused = ["trades.eth_usdt", "depth.btc_usdt", "orders.bob", "Trades.btc_usdt"];
    let rejected = client.subscribe(&[&[TRADES, "ticker.btc_usdt"], &refused[..]].concat()).await;
    let codes: BTreeMap<_, _> =
        rejected.iter().map(|rejection| (rejection.stream.as_str(), rejection.code)).collect();
    assert_eq!(
        codes,
        BTreeMap::from([
            ("trades.eth_usdt", ErrorCode::Forbidden),
            ("depth.btc_usdt", ErrorCode::Forbidden),
            ("orders.bob", ErrorCode::Forbidden),
            ("Trades.btc_usdt", ErrorCode::UnknownStream),
        ])
    );
    client
        .receive_until("both streams", |events| {
            events.contains_key(TRADES) && events.contains_key("ticker.btc_usdt")
        })
        .await;
    assert!(refused.iter().all(|stream| !client.events.contains_key(*stream)));

    let mut after = lifecycle(&gateway.eu);
    for (event, count) in before {
        *after.get_mut(&event).unwrap() -= count;
    }
    after.retain(|_, count| *count > 0);
    let steps = [("onSubscribeRequest", 1), ("onTopicPermissionCheck", 1), ("onSubscriptionConfirmed", 1)];
    assert_eq!(after, expected(&steps));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_clients() {
    const RECORDS: u64 = 2_000;
    let broker = KafkaBroker::start();
    let gateway = Gateway::start(&kafka_source(&broker).await);
    let (mut near, mut far) =
        (gateway.trader("alice", &gateway.eu).await, gateway.trader("bob", &gateway.us).await);
    for client in [&mut near, &mut far] {
        client.subscribe_until_confirmed(&[TRADES]).await;
    }
    produce(&broker.producer(), 0..RECORDS);
    for client in [&mut near, &mut far] {
        client.receive_until("all records", |events| count(events, TRADES) >= RECORDS).await;
        assert_log(&client.events[TRADES], 0);
    }
    assert_eq!(messages(&gateway.ingest, "onKafkaMessage"), RECORDS as f64);
    for edge in [&gateway.eu, &gateway.us] {
        assert_eq!(messages(edge, "onMessageDispatch"), RECORDS as f64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsubscribing() {
    const MORE: u64 = 20;
    let gateway = Gateway::start(MARKET);
    let mut client = gateway.trader("alice", &gateway.eu).await;
    let mut other = gateway.trader("bob", &gateway.eu).await;
    for client in [&mut client, &mut other] {
        client.subscribe_until_confirmed(&[TRADES]).await;
        client.receive_until("an event", |events| count(events, TRADES) > 0).await;
    }
    client.send(&json!({"action": "unsubscribe", "id": 2, "streams": [TRADES]}).to_string()).await;
    let unsubscribed = answer(&mut client).await;
    let ControlMessage::Unsubscribed { streams, positions, rejected, .. } = unsubscribed else {
        panic!("{unsubscribed:?}")
    };
    assert_eq!((streams.len(), rejected), (1, vec![]));
    let received = client.events[TRADES].clone();
    let stood = positions.values().next().unwrap().sequence.get();
    assert_eq!(received.last().unwrap().sequence, stood, "everything up to the position was delivered");
    // The stream goes on, for the other one.
    other
        .receive_until("more events", |events| {
            events[TRADES].iter().filter(|event| event.sequence > stood).count() as u64 >= MORE
        })
        .await;
    client.send(&json!({"action": "ping", "id": 3}).to_string()).await;
    assert!(matches!(answer(&mut client).await, ControlMessage::Pong { .. }));
    assert_eq!(client.events[TRADES], received, "nothing comes after the end");
    assert_eq!(lifecycle(&gateway.eu)["onUnsubscribeRequest"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backpressure() {
    /// Fewer than an edge keeps for a client: the one that reads is never too slow.
    const PORTION: u64 = 1_000;
    let broker = KafkaBroker::start();
    let gateway = Gateway::start(&kafka_source(&broker).await);
    let mut client = gateway.trader("alice", &gateway.eu).await;
    client.subscribe_until_confirmed(&[TRADES]).await;
    let (mut slow, _) = connect_async(gateway.url_of("bob", &gateway.eu)).await.unwrap();
    slow.send(Message::text(json!({"action": "subscribe", "streams": [TRADES]}).to_string())).await.unwrap();
    // It reads that it has the stream, and then nothing more.
    loop {
        let message = timeout(DEADLINE, slow.next()).await.unwrap().unwrap().unwrap();
        if message.to_text().unwrap().contains("\"subscribed\"") {
            break;
        }
    }
    let ops = gateway.eu.ops;
    let slow = tokio::spawn(async move {
        let noticed = move || {
            let (_, metrics) = get(ops, "/metrics");
            (metric_in(&metrics, LIFECYCLE, "onClientOverload") > 0.0).then_some(())
        };
        tokio::task::spawn_blocking(move || wait_until("somebody is too slow", noticed)).await.unwrap();
        // What it had not read is lost to it; that it was too slow is not.
        loop {
            let message = timeout(DEADLINE, slow.next()).await.unwrap().unwrap().unwrap();
            if let Message::Close(close) = message {
                return close.unwrap();
            }
        }
    });
    let producer = broker.producer();
    let mut written = 0;
    while !slow.is_finished() {
        produce(&producer, written..written + PORTION);
        written += PORTION;
        client.receive_until("what was written", |events| count(events, TRADES) >= written).await;
    }
    let close = slow.await.unwrap();
    assert_eq!(lifecycle(&gateway.eu)["onClientOverload"], 1);
    assert_eq!(u16::from(close.code), CloseCode::SlowClient.code());
    assert_eq!(close.reason.as_str(), CloseCode::SlowClient.reason());
    assert_log(&client.events[TRADES], 0);
    assert_eq!(gateway.eu.metric("tickmesh_slow_client_disconnects_total", ""), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_stream() {
    const EACH: u64 = 200;
    let users = ["alice", "bob"];
    let broker = KafkaBroker::start();
    broker.create_topic("orders", 1).await;
    let gateway = Gateway::start(&format!(
        "[[source]]\nname = \"engine\"\nkind = \"kafka\"\nbrokers = {:?}\ntopics = [\"orders\"]\nstart = \"beginning\"\n",
        broker.bootstrap()
    ));
    let mut clients = Vec::new();
    // Two connections of one user at one edge, one at another, where the other user is as well.
    for (user, edge) in
        [("alice", &gateway.eu), ("alice", &gateway.eu), ("alice", &gateway.us), ("bob", &gateway.us)]
    {
        let mut client = gateway.trader(user, edge).await;
        let own = format!("orders.{user}");
        client.subscribe_until_confirmed(&[&own]).await;
        let other = if user == "alice" { "orders.bob" } else { "orders.alice" };
        let rejected = client.subscribe(&[other]).await;
        assert_eq!(
            rejected.iter().map(|rejection| rejection.code).collect::<Vec<_>>(),
            [ErrorCode::Forbidden]
        );
        clients.push((own, client));
    }
    let producer = broker.producer();
    for number in 0..EACH {
        for user in users {
            let record = json!({"stream": format!("orders.{user}"), "data": {"id": number}}).to_string();
            producer.send("orders", 0, Some(&record));
        }
    }
    producer.flush();
    for (own, client) in &mut clients {
        client.receive_until("all orders of the user", |events| count(events, own) >= EACH).await;
        assert_eq!(client.events.len(), 1, "somebody else's events");
        let numbers: Vec<_> = client.events[own.as_str()].iter().map(|event| event.data.clone()).collect();
        assert_eq!(numbers, (0..EACH).map(|number| format!(r#"{{"id":{number}}}"#)).collect::<Vec<_>>());
        assert_linked(own, &client.events[own.as_str()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resume_at_another_edge() {
    const EACH: u64 = 500;
    let broker = KafkaBroker::start();
    let gateway = Gateway::start(&kafka_source(&broker).await);
    let mut client = gateway.trader("alice", &gateway.eu).await;
    client.subscribe_until_confirmed(&[TRADES]).await;
    let producer = broker.producer();
    produce(&producer, 0..EACH);
    client.receive_until("the first events", |events| count(events, TRADES) >= EACH).await;
    client.send(&json!({"action": "streams", "id": 2}).to_string()).await;
    let listed = answer(&mut client).await;
    let ControlMessage::Streams { positions, .. } = listed else { panic!("{listed:?}") };
    let mut received = std::mem::take(&mut client.events).remove(TRADES).unwrap();
    drop(client);

    produce(&producer, EACH..2 * EACH);
    let mut client = gateway.trader("alice", &gateway.us).await;
    client.send(&json!({"action": "resume", "id": 1, "positions": positions}).to_string()).await;
    let resumed = answer(&mut client).await;
    let ControlMessage::Resumed { streams, rejected, .. } = resumed else { panic!("{resumed:?}") };
    assert_eq!(rejected, []);
    assert_eq!(count(&client.events, TRADES), streams[0].replayed);
    assert_eq!(streams[0].from, positions.values().next().copied());
    produce(&producer, 2 * EACH..3 * EACH);
    client.receive_until("the last events", |events| count(events, TRADES) >= 2 * EACH).await;
    received.append(client.events.get_mut(TRADES).unwrap());
    assert_eq!(received.len() as u64, 3 * EACH);
    assert_log(&received, 0);
    let steps = [
        "onConnectionOpen",
        "onAuthValidate",
        "onConnectionAccepted",
        "onSubscribeRequest",
        "onTopicPermissionCheck",
        "onResumeStream",
    ];
    assert_eq!(lifecycle(&gateway.us), expected(&steps.map(|step| (step, 1))));
}
