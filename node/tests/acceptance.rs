//! The use cases of an exchange's gateway, one test each, with processes: what clients see, and the lifecycle events by which
//! operators see it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

#[path = "support/client.rs"]
mod client;
#[path = "acceptance/engine.rs"]
mod engine;
#[path = "acceptance/gateway.rs"]
mod gateway;
#[path = "support/kafka.rs"]
mod kafka;
#[path = "support/node.rs"]
mod node;

use std::collections::BTreeMap;

use client::{Client, Received, assert_linked};
use engine::{
    DEPTH, ORDERS_OF_ALICE, TICKER, TRADES, assert_orders, assert_trades, depth, engine, market,
    produce_depth, produce_orders, produce_trades,
};
use futures_util::{SinkExt, StreamExt};
use gateway::{API_KEY, BOT, Gateway, assert_lifecycle, subscribed, times};
use node::{DEADLINE, Node, wait_until};
use serde_json::{Value, json};
use tickmesh_protocol::{
    Position, Sequence,
    client::{CloseCode, ControlMessage, ErrorCode, Rejection, Resumed},
};
use tokio::{net::TcpSocket, time::timeout};
use tokio_tungstenite::{
    client_async, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, handshake::client::Request},
};

type Streams = BTreeMap<String, Vec<Received>>;

fn count(events: &Streams, stream: &str) -> u64 {
    events.get(stream).map_or(0, Vec::len) as u64
}

fn codes(rejected: &[Rejection]) -> BTreeMap<&str, ErrorCode> {
    rejected.iter().map(|rejection| (rejection.stream.as_str(), rejection.code)).collect()
}

/// Who an edge says that a client is.
async fn user_of(client: &mut Client) -> Option<String> {
    match client.control().await {
        ControlMessage::Welcome { user, .. } => user,
        other => panic!("{other:?} instead of a welcome"),
    }
}

fn handshake(url: &str, header: Option<(&'static str, &str)>) -> Request {
    let mut request = url.into_client_request().unwrap();
    if let Some((name, value)) = header {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

/// The answer to a handshake that is no upgrade: status, header, and code.
async fn refusal(request: Request, header: &str) -> (u16, String, String) {
    let Err(Error::Http(answer)) = connect_async(request).await else { panic!("not refused") };
    let body: Value = serde_json::from_slice(answer.body().as_deref().unwrap()).unwrap();
    assert!(body["error"]["message"].is_string(), "{body}");
    let header = answer.headers()[header].to_str().unwrap();
    (answer.status().as_u16(), header.to_owned(), body["error"]["code"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshake_with_every_carrier_or_not_at_all() {
    let gateway = Gateway::start(&market());
    let token = gateway.token("Alice");
    let (bearer, protocols) = (format!("Bearer {token}"), format!("tickmesh.v1, bearer.{token}"));
    let mut clients = Vec::new();
    for (query, header, user) in [
        (String::new(), Some(("authorization", bearer.as_str())), Some("Alice")),
        (String::new(), Some(("sec-websocket-protocol", protocols.as_str())), Some("Alice")),
        (format!("?token={token}"), None, Some("Alice")),
        (String::new(), Some(("x-api-key", API_KEY)), Some(BOT)),
        (format!("?api_key={API_KEY}"), None, Some(BOT)),
        (String::new(), None, None),
    ] {
        let mut client = Client::connect(handshake(&(gateway.eu.url() + &query), header)).await;
        assert_eq!(user_of(&mut client).await.as_deref(), user);
        clients.push(client);
    }
    // Alice has as many connections as anybody may have.
    let fourth = refusal(handshake(&gateway.url(&gateway.eu, "Alice"), None), "retry-after").await;
    assert_eq!((fourth.0, fourth.2.as_str()), (429, "rate_limited"));
    assert_lifecycle(
        &gateway.eu,
        [
            ("onConnectionOpen", 7),
            ("onAuthValidate", 6),
            ("onConnectionAccepted", 6),
            ("onConnectionRejected", 1),
        ],
    );

    let cut = format!("Bearer {}", &token[..token.len() - 4]);
    for header in [("authorization", cut.as_str()), ("authorization", "Basic YTpi"), ("x-api-key", "guessed")]
    {
        let (status, scheme, code) =
            refusal(handshake(&gateway.us.url(), Some(header)), "www-authenticate").await;
        assert_eq!((status, code.as_str()), (401, "unauthorized"), "{header:?}");
        assert!(scheme.starts_with("Bearer"), "{scheme}");
    }
    assert_lifecycle(
        &gateway.us,
        [("onConnectionOpen", 3), ("onAuthValidate", 3), ("onConnectionRejected", 3)],
    );
    assert_lifecycle(&gateway.ap, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allowed_topics_are_granted_and_others_refused_in_one_request() {
    let gateway = Gateway::start(&market());
    let mut alice = gateway.client(&gateway.eu, "Alice").await;
    let wanted = [
        TRADES,            // by role and pair
        "ticker.eth_usdt", // for everybody
        ORDERS_OF_ALICE,   // her own
        "trades.eth_usdt", // not among her pairs
        "candles.btc_usdt@1m",
        "orders.alice",
        "Trades.btc_usdt",
    ];
    let rejected = alice.subscribe(&wanted).await;
    let forbidden = ["trades.eth_usdt", "candles.btc_usdt@1m", "orders.alice"];
    let mut expected = BTreeMap::from(forbidden.map(|stream| (stream, ErrorCode::Forbidden)));
    expected.insert("Trades.btc_usdt", ErrorCode::UnknownStream);
    assert_eq!(codes(&rejected), expected);
    let mut anonymous = Client::connect(gateway.eu.url()).await;
    let rejected = anonymous.subscribe(&[TICKER, TRADES]).await;
    assert_eq!(codes(&rejected), BTreeMap::from([(TRADES, ErrorCode::Forbidden)]));

    // The market goes on: each gets what was granted, and nothing else.
    let got = |streams: &'static [&str]| move |events: &Streams| streams.iter().all(|s| count(events, s) > 9);
    alice.receive_until("events of both", got(&[TRADES, "ticker.eth_usdt"])).await;
    assert!(alice.events.keys().eq(["ticker.eth_usdt", TRADES]), "{:?}", alice.events.keys());
    anonymous.receive_until("tickers", got(&[TICKER])).await;
    assert!(anonymous.events.keys().eq([TICKER]), "{:?}", anonymous.events.keys());
    assert_lifecycle(
        &gateway.eu,
        [
            ("onConnectionOpen", 2),
            ("onAuthValidate", 1),
            ("onConnectionAccepted", 2),
            ("onSubscribeRequest", 2),
            ("onTopicPermissionCheck", 2),
            ("onSubscriptionConfirmed", 2),
        ],
    );
    assert_eq!(times(&gateway.eu, "onUserStreamPush"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_clients_of_every_edge_exactly() {
    const BEFORE: u64 = 10;
    const RECORDS: u64 = 2_000;
    let (_broker, producer, source) = engine().await;
    produce_trades(&producer, 0..BEFORE);
    let gateway = Gateway::start(&source);
    let mut clients = Vec::new();
    for (edge, user) in [(&gateway.eu, "Alice"), (&gateway.us, "bob")] {
        let mut client = gateway.client(edge, user).await;
        assert_eq!(client.subscribe(&[TRADES, TICKER]).await, []);
        clients.push(client);
    }
    produce_trades(&producer, BEFORE..RECORDS);
    for client in &mut clients {
        let new = RECORDS - BEFORE;
        let done = |events: &Streams| count(events, TRADES) >= new && count(events, TICKER) >= new;
        client.receive_until("all records", done).await;
        // What was there before is not sent, but is what the first event follows.
        let trades = &client.events[TRADES];
        assert_eq!(trades[0].previous, Some(BEFORE - 1));
        assert_trades(trades, BEFORE..RECORDS);
        let ticker = &client.events[TICKER];
        assert!(ticker.iter().map(|event| event.sequence).eq(BEFORE..RECORDS));
        assert_eq!(ticker.last().unwrap().data, format!(r#"{{"price":"{}.50"}}"#, RECORDS - 1));
    }
    // Both ingest peers read all of the log; each edge had one client for each of two streams.
    for ingest in &gateway.ingest {
        wait_until("the log is read", || (times(ingest, "onKafkaMessage") == RECORDS).then_some(()));
        assert_eq!(times(ingest, "onMessageDispatch"), 0);
    }
    for edge in [&gateway.eu, &gateway.us] {
        assert_eq!(times(edge, "onMessageDispatch"), 2 * (RECORDS - BEFORE));
        assert_eq!(times(edge, "onKafkaMessage"), 0);
    }
    for edge in [&gateway.eu, &gateway.us] {
        assert_lifecycle(edge, subscribed(1));
    }
    assert_eq!(times(&gateway.ap, "onMessageDispatch"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsubscribe_ends_a_stream_and_its_topic_is_left() {
    let gateway = Gateway::start(&market());
    let mut client = gateway.client(&gateway.eu, "Alice").await;
    assert_eq!(client.subscribe(&[TRADES, TICKER]).await, []);
    client.receive_until("trades", |events| count(events, TRADES) > 0).await;
    let mut other = gateway.client(&gateway.us, "bob").await;
    assert_eq!(other.subscribe(&[TRADES]).await, []);
    let joined = || gateway.eu.metric("tickmesh_mesh_topics_joined", "");
    assert_eq!(joined(), 2.0);

    client.send(&json!({"action": "unsubscribe", "id": 2, "streams": [TRADES]}).to_string()).await;
    let position = loop {
        if let ControlMessage::Unsubscribed { positions, rejected, .. } = client.control().await {
            assert_eq!(rejected, []);
            break positions[TRADES].sequence.get();
        }
    };
    let received = client.events[TRADES].clone();
    assert_eq!(received.last().unwrap().sequence, position, "everything up to where the stream stood");
    wait_until("the topic is left", || (joined() == 1.0).then_some(()));
    // In time publishers know, and what the edge has left costs it nothing; meanwhile tickers come.
    let brought = || gateway.eu.metric("tickmesh_mesh_events_received_total", "channel=\"trades\"");
    loop {
        let (before, tickers) = (brought(), count(&client.events, TICKER));
        client.receive_until("more tickers", |events| count(events, TICKER) >= tickers + 20).await;
        if brought() == before {
            break;
        }
    }
    // The stream goes on, for the other one.
    let more =
        |events: &Streams| events[TRADES].iter().filter(|event| event.sequence > position).count() >= 20;
    other.receive_until("trades after that", |events| events.contains_key(TRADES) && more(events)).await;
    assert_linked(TRADES, &other.events[TRADES]);
    assert_eq!(client.events[TRADES], received, "nothing comes after the end");
    assert_lifecycle(&gateway.eu, subscribed(1).into_iter().chain([("onUnsubscribeRequest", 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backpressure_closes_who_does_not_read_and_nobody_else() {
    /// Less than the mebibyte that an edge keeps for a client: who reads is never too slow.
    const PORTION: u64 = 100;
    /// What no kernel takes for who does not read.
    const MOST: u64 = 10_000;
    let (_broker, producer, source) = engine().await;
    let gateway = Gateway::start(&source);
    let mut near = gateway.client(&gateway.eu, "Alice").await;
    let mut far = gateway.client(&gateway.us, "bob").await;
    for client in [&mut near, &mut far] {
        assert_eq!(client.subscribe(&[DEPTH]).await, []);
    }
    // Little room in the kernel, or this takes megabytes.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let stream = socket.connect(gateway.eu.edge.unwrap()).await.unwrap();
    let (mut slow, _) = client_async(gateway.url(&gateway.eu, "carol"), stream).await.unwrap();
    slow.send(Message::text(json!({"action": "subscribe", "streams": [DEPTH]}).to_string())).await.unwrap();
    let message = async |slow: &mut tokio_tungstenite::WebSocketStream<_>| {
        timeout(DEADLINE, slow.next()).await.unwrap().unwrap().unwrap()
    };
    while !message(&mut slow).await.to_text().unwrap().contains("\"subscribed\"") {}

    // From now on it reads nothing.
    let mut written = 0;
    while times(&gateway.eu, "onClientOverload") == 0 {
        assert!(written < MOST, "{written} events, and nobody is too slow");
        produce_depth(&producer, written..written + PORTION);
        written += PORTION;
        for client in [&mut near, &mut far] {
            client.receive_until("the portion", |events| count(events, DEPTH) >= written).await;
        }
    }
    // What was in the kernel is still there, and then why it was closed.
    let close = loop {
        if let Message::Close(close) = message(&mut slow).await {
            break close.unwrap();
        }
    };
    assert_eq!(u16::from(close.code), CloseCode::SlowClient.code());
    assert_eq!(close.reason.as_str(), CloseCode::SlowClient.reason());
    // The stream goes on for the others as if nothing were.
    produce_depth(&producer, written..written + PORTION);
    for client in [&mut near, &mut far] {
        client.receive_until("all", |events| count(events, DEPTH) >= written + PORTION).await;
        let events = &client.events[DEPTH];
        assert!(events.iter().map(|event| event.data.clone()).eq((0..written + PORTION).map(depth)));
        assert_linked(DEPTH, events);
    }
    assert_lifecycle(&gateway.eu, subscribed(2).into_iter().chain([("onClientOverload", 1)]));
    assert_lifecycle(&gateway.us, subscribed(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_streams_reach_their_user_everywhere_and_nobody_else() {
    const HALF: u64 = 300;
    const ALL: u64 = 2 * HALF;
    let (broker, producer, source) = engine().await;
    let mut gateway = Gateway::start(&source);
    let private = |node: &Node, direction: &str| {
        node.metric("tickmesh_private_events_total", &format!("direction={direction:?}"))
    };
    // Alice twice at one edge and once at another; bob at the third, where nobody else is.
    let mut alice_eu = gateway.client(&gateway.eu, "Alice").await;
    let mut alice_again = gateway.client(&gateway.eu, "Alice").await;
    let mut alice_us = gateway.client(&gateway.us, "Alice").await;
    let mut lower = gateway.client(&gateway.us, "alice").await;
    let mut user123 = gateway.client(&gateway.eu, "user123").await;
    let mut bob = gateway.client(&gateway.ap, "bob").await;
    for client in [&mut alice_eu, &mut alice_again, &mut alice_us] {
        assert_eq!(client.subscribe(&[ORDERS_OF_ALICE]).await, []);
    }
    assert_eq!(lower.subscribe(&["orders.alice"]).await, []);
    assert_eq!(user123.subscribe(&["orders.user123"]).await, []);
    let rejected = bob.subscribe(&["orders.bob", "orders.user123", ORDERS_OF_ALICE]).await;
    assert!(rejected.iter().all(|rejection| rejection.code == ErrorCode::Forbidden) && rejected.len() == 2);

    // A user's topic appears while everything runs.
    broker.create_topic("orders.user123", 1).await;
    produce_orders(&producer, 0..HALF);
    user123.receive_until("the first half", |events| count(events, "orders.user123") >= HALF).await;
    alice_eu.receive_until("the first half", |events| count(events, ORDERS_OF_ALICE) >= HALF / 2).await;
    // In the middle of the second, the peer that has pushed most is killed.
    produce_orders(&producer, HALF..HALF + HALF / 2);
    let [one, other] = &mut gateway.ingest;
    if private(one, "served") >= private(other, "served") {
        one.kill()
    } else {
        other.kill()
    }
    produce_orders(&producer, HALF + HALF / 2..ALL);
    for (client, stream, first, step) in [
        (&mut alice_eu, ORDERS_OF_ALICE, 0, 2),
        (&mut alice_again, ORDERS_OF_ALICE, 0, 2),
        (&mut alice_us, ORDERS_OF_ALICE, 0, 2),
        (&mut lower, "orders.alice", 1, 2),
        (&mut user123, "orders.user123", 0, 1),
    ] {
        let all = ALL / step as u64;
        client.receive_until("all of the user's orders", |events| count(events, stream) >= all).await;
        assert!(client.events.keys().eq([stream]), "{:?}", client.events.keys());
        assert_orders(&client.events[stream], (first..ALL).step_by(step));
    }
    assert_eq!(private(&gateway.ap, "received"), 0.0, "no order of others has come to bob's edge");
    assert_eq!(times(&gateway.ap, "onUserStreamPush"), 0);
    producer.send_keyed("orders", 0, Some("bob"), Some("{}"));
    bob.receive_until("bob's order", |events| count(events, "orders.bob") == 1).await;
    assert!(bob.events.keys().eq(["orders.bob"]), "{:?}", bob.events.keys());

    // Once for each connection.
    assert_eq!(times(&gateway.eu, "onUserStreamPush"), ALL / 2 + ALL / 2 + ALL);
    assert_eq!(times(&gateway.us, "onUserStreamPush"), ALL / 2 + ALL / 2);
    assert_eq!(times(&gateway.ap, "onUserStreamPush"), 1);
    for (edge, clients) in [(&gateway.eu, 3), (&gateway.us, 2), (&gateway.ap, 1)] {
        assert_lifecycle(edge, subscribed(clients));
    }
}

/// Resumes, and receives what was missed; after which number of each stream.
async fn resume(client: &mut Client, mut request: Value) -> BTreeMap<String, u64> {
    request["action"] = "resume".into();
    client.send(&request.to_string()).await;
    loop {
        if let ControlMessage::Resumed { streams, rejected, .. } = client.control().await {
            assert_eq!(rejected, []);
            // What is new may be there already as well.
            let complete =
                |resumed: &Resumed| count(&client.events, resumed.stream.as_str()) >= resumed.replayed;
            assert!(streams.iter().all(complete), "{streams:?}");
            let from = |resumed: &Resumed| (resumed.stream.to_string(), resumed.from.unwrap().sequence.get());
            return streams.iter().map(from).collect();
        }
    }
}

/// Where a client's streams stand, as its edge says.
async fn positions(client: &mut Client) -> BTreeMap<String, Position> {
    client.send(r#"{"action":"streams"}"#).await;
    loop {
        if let ControlMessage::Streams { positions, .. } = client.control().await {
            return positions.into_iter().map(|(stream, at)| (stream.to_string(), at)).collect();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resume_at_an_edge_of_another_region() {
    const EACH: u64 = 300;
    const ALL: u64 = 3 * EACH;
    let (broker, producer, source) = engine().await;
    broker.create_topic("orders.user123", 1).await;
    let mut gateway = Gateway::start(&source);
    let mut alice = gateway.client(&gateway.eu, "Alice").await;
    assert_eq!(alice.subscribe(&[TRADES, ORDERS_OF_ALICE]).await, []);
    let mut bob = gateway.client(&gateway.eu, "bob").await;
    assert_eq!(bob.subscribe(&[TRADES, TICKER]).await, []);
    let produce = |numbers: std::ops::Range<u64>| {
        produce_trades(&producer, numbers.clone());
        produce_orders(&producer, numbers);
    };
    produce(0..EACH);
    // The edge dies while its clients have got some of it.
    for (client, other) in [(&mut alice, ORDERS_OF_ALICE), (&mut bob, TICKER)] {
        let some = |events: &Streams| count(events, TRADES) > 20 && count(events, other) > 20;
        client.receive_until("some of both", some).await;
    }
    let mut positions = positions(&mut alice).await;
    gateway.eu.kill();
    let (mut of_alice, mut of_bob) = (alice.events, bob.events);
    produce(EACH..2 * EACH);

    let mut alice = gateway.client(&gateway.us, "Alice").await;
    let last = |events: &Streams, stream: &str| events[stream].last().unwrap().sequence;
    for (stream, position) in &mut positions {
        position.sequence = Sequence::new(last(&of_alice, stream)).unwrap();
    }
    let from = resume(&mut alice, json!({"positions": positions})).await;
    let stood = |stream: &str| (stream.to_owned(), last(&of_alice, stream));
    assert_eq!(from, [TRADES, ORDERS_OF_ALICE].map(stood).into());
    // One number for both streams: their records are of one partition.
    let mut bob = gateway.client(&gateway.us, "bob").await;
    let last = last(&of_bob, TRADES).min(last(&of_bob, TICKER));
    of_bob.values_mut().for_each(|events| events.retain(|event| event.sequence <= last));
    let from = resume(&mut bob, json!({"streams": [TRADES, TICKER], "lastSequence": last})).await;
    assert_eq!(from, [TRADES, TICKER].map(|stream| (stream.to_owned(), last)).into());

    produce(2 * EACH..ALL);
    let rest = |missing: BTreeMap<String, u64>| {
        move |events: &Streams| missing.iter().all(|(stream, missing)| count(events, stream) >= *missing)
    };
    let missing = [(TRADES, ALL), (ORDERS_OF_ALICE, ALL / 2)];
    let missing = missing.map(|(stream, all)| (stream.to_owned(), all - count(&of_alice, stream)));
    alice.receive_until("all", rest(missing.into())).await;
    let missing = [TRADES, TICKER].map(|stream| (stream.to_owned(), ALL - count(&of_bob, stream)));
    bob.receive_until("all", rest(missing.into())).await;
    for (before, after) in [(&mut of_alice, alice.events), (&mut of_bob, bob.events)] {
        for (stream, events) in after {
            before.get_mut(&stream).unwrap().extend(events);
        }
    }
    assert_trades(&of_alice[TRADES], 0..ALL);
    assert_orders(&of_alice[ORDERS_OF_ALICE], (0..ALL).step_by(2));
    assert_trades(&of_bob[TRADES], 0..ALL);
    assert!(of_bob[TICKER].iter().map(|event| event.sequence).eq(0..ALL));
    assert_lifecycle(
        &gateway.us,
        [
            ("onConnectionOpen", 2),
            ("onAuthValidate", 2),
            ("onConnectionAccepted", 2),
            ("onSubscribeRequest", 2),
            ("onTopicPermissionCheck", 2),
            ("onResumeStream", 2),
        ],
    );
    assert_lifecycle(&gateway.ap, []);
}
