//! The edge with real sockets and clients of another implementation; only the mesh is played.

#[cfg(test)]
#[path = "edge/auth.rs"]
mod auth;
#[cfg(test)]
#[path = "edge/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "edge/overload.rs"]
mod overload;
#[cfg(test)]
#[path = "edge/private.rs"]
mod private;
#[cfg(test)]
#[path = "edge/repairs.rs"]
mod repairs;
#[cfg(test)]
#[path = "edge/resume.rs"]
mod resume;
#[cfg(test)]
#[path = "edge/servers.rs"]
mod servers;
#[cfg(test)]
#[path = "edge/slow.rs"]
mod slow;
#[cfg(test)]
#[path = "edge/snapshots.rs"]
mod snapshots;
#[cfg(test)]
#[path = "edge/support.rs"]
mod support;

use std::{collections::BTreeMap, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use support::{Client, Edge, PATIENCE, config, metric, position, wait_until, wait_until_async, within};
use tickmesh::{
    auth::Permissions,
    edge::{self, Bounds, Config},
};
use tickmesh_protocol::head::Head;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

#[tokio::test]
async fn subscribe_is_confirmed_before_the_first_event() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    assert_eq!((&client.welcome["event"], &client.welcome["node"]), (&json!("welcome"), &json!("eu-1")));
    assert_eq!(client.welcome["limits"]["queue_frames"], 1024);
    edge.mesh.set_head("trades.btc_usdt", Head::At(position(7)));
    client.send(json!({"action": "subscribe", "id": 1, "streams": ["trades.btc_usdt"]})).await;
    assert_eq!(
        client.next().await,
        json!({"event": "subscribed", "id": 1, "streams": ["trades.btc_usdt"], "rejected": [],
            "positions": {"trades.btc_usdt": {"epoch": "0000000000000001", "sequence": 7}}})
    );
    edge.publish("trades.btc_usdt", 8..10).await;
    assert_eq!(
        client.next().await,
        json!({"stream": "trades.btc_usdt", "sequence": 8, "previous": 7, "data": {"n": 8}})
    );
    assert_eq!(client.sequences(1).await, [9]);
    // A second subscriber starts where the stream stands, without another question.
    let mut second = edge.connect().await;
    let confirmed = second.subscribe(&["trades.btc_usdt"]).await;
    assert_eq!(confirmed["positions"]["trades.btc_usdt"]["sequence"], 9);
    assert_eq!(edge.mesh.questions(), 1);
    edge.publish("trades.btc_usdt", 10..11).await;
    assert_eq!(client.sequences(1).await, [10]);
    assert_eq!(second.sequences(1).await, [10]);
    assert_eq!(edge.metric("subscriptions"), 2.0);
    assert_eq!(edge.metric(r#"events_delivered_total{channel="trades"}"#), 4.0);
    // The same stream again is confirmed again, and delivered once.
    client.subscribe(&["trades.btc_usdt"]).await;
    edge.publish("trades.btc_usdt", 11..13).await;
    assert_eq!(client.sequences(2).await, [11, 12]);
    assert_eq!(edge.metric("subscriptions"), 2.0);
    edge.stop().await;
}

#[tokio::test]
async fn events_that_come_during_the_join_are_held() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    let mut other = edge.connect().await;
    let held = edge.mesh.hold_answers();
    client.send(json!({"action": "subscribe", "streams": ["trades.a"]})).await;
    edge.mesh.wait_for_questions(1).await;
    other.send(json!({"action": "subscribe", "streams": ["trades.a"]})).await;
    other.ping().await;
    edge.publish("trades.a", 5..10).await;
    wait_until("the batches are taken", || edge.all_batches_taken()).await;
    edge.mesh.set_head("trades.a", Head::At(position(6)));
    drop(held);
    for client in [&mut client, &mut other] {
        assert_eq!(client.next().await["positions"]["trades.a"]["sequence"], 6);
        assert_eq!(client.sequences(3).await, [7, 8, 9]);
    }
    assert_eq!(edge.mesh.questions(), 1, "who comes later joins the waiting");
    assert_eq!(edge.metric("duplicates_total"), 0.0, "nothing was published twice");
    edge.stop().await;
}

#[tokio::test]
async fn a_request_of_live_and_new_streams_starts_each_where_it_is_told() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    client.subscribe(&["trades.live"]).await;
    edge.publish("trades.live", 1..4).await;
    assert_eq!(client.sequences(3).await, [1, 2, 3]);
    let mut second = edge.connect().await;
    let held = edge.mesh.hold_answers();
    second.send(json!({"action": "subscribe", "streams": ["trades.live", "depth.new"]})).await;
    edge.mesh.wait_for_questions(2).await;
    edge.publish("trades.live", 4..6).await;
    assert_eq!(client.sequences(2).await, [4, 5]);
    drop(held);
    let confirmed = second.next().await;
    assert_eq!(confirmed["positions"]["trades.live"]["sequence"], 5);
    assert_eq!(confirmed["positions"].as_object().unwrap().len(), 1, "the new stream has no event so far");
    edge.publish("trades.live", 6..7).await;
    assert_eq!(second.sequences(1).await, [6]);
    edge.publish("depth.new", 1..2).await;
    assert_eq!(second.next().await["stream"], "depth.new");
    edge.stop().await;
}

#[tokio::test]
async fn refused_streams_are_named_with_their_reason() {
    let config = Config { max_streams: 3, join_timeout: Duration::from_secs(2), ..config() };
    let edge = Edge::start(config).await;
    let mut client = edge.connect().await;
    edge.mesh.set_head("nothing.a", Head::UnknownChannel);
    edge.mesh.set_head("secret.a", Head::Private);
    let streams = ["Bad Name", "orders.alice", "nothing.a", "secret.a", "trades.a", "trades.b", "trades.a"];
    client.send(json!({"action": "subscribe", "id": "x", "streams": streams})).await;
    let reply = client.next().await;
    assert_eq!((&reply["id"], &reply["streams"]), (&json!("x"), &json!(["trades.a"])));
    let rejected: BTreeMap<_, _> = reply["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rejected| (rejected["stream"].as_str().unwrap(), rejected["code"].as_str().unwrap()))
        .collect();
    let expected = [
        ("Bad Name", "unknown_stream"),
        ("nothing.a", "unknown_stream"),
        ("orders.alice", "forbidden"),
        ("secret.a", "forbidden"),
        ("trades.b", "too_many_streams"),
    ];
    assert_eq!(rejected.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!((edge.mesh.joined(), edge.mesh.left()), (1, 2), "channels that do not exist are left at once");
    // Nobody answers: unavailable, and the next try asks anew.
    let held = edge.mesh.hold_answers();
    client.send(json!({"action": "subscribe", "streams": ["depth.a"]})).await;
    assert_eq!(client.next().await["rejected"][0]["code"], "unavailable");
    drop(held);
    client.subscribe(&["depth.a"]).await;
    edge.publish("depth.a", 1..2).await;
    assert_eq!(client.sequences(1).await, [1]);
    edge.stop().await;
}

#[tokio::test]
async fn unsubscribe_stops_the_stream() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    client.subscribe(&["trades.a", "trades.b"]).await;
    edge.publish("trades.a", 1..3).await;
    assert_eq!(client.sequences(2).await, [1, 2]);
    client.send(json!({"action": "streams", "id": 5})).await;
    assert_eq!(
        client.next().await,
        json!({"event": "streams", "id": 5, "streams": ["trades.a", "trades.b"],
            "positions": {"trades.a": {"epoch": "0000000000000001", "sequence": 2}}})
    );
    client.send(json!({"action": "unsubscribe", "id": 6, "streams": ["trades.a", "trades.c"]})).await;
    let reply = client.next().await;
    assert_eq!((&reply["event"], &reply["streams"]), (&json!("unsubscribed"), &json!(["trades.a"])));
    assert_eq!(reply["positions"]["trades.a"]["sequence"], 2);
    assert_eq!(reply["rejected"][0]["stream"], "trades.c");
    edge.publish("trades.a", 3..4).await;
    edge.publish("trades.b", 1..2).await;
    assert_eq!(client.next().await["stream"], "trades.b", "nothing of the stream that was unsubscribed");
    edge.stop().await;
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_requests() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    let held = edge.mesh.hold_answers();
    client.send(json!({"action": "subscribe", "id": 1, "streams": ["depth.x"]})).await;
    client.send(json!({"action": "unsubscribe", "id": 2, "streams": ["depth.x"]})).await;
    client.send(json!({"action": "subscribe", "id": 3, "streams": ["trades.b"]})).await;
    client.send(json!({"action": "streams", "id": 4})).await;
    client.send(json!({"action": "ping", "id": 5})).await;
    assert_eq!(client.next().await["event"], "pong", "a ping waits for nothing");
    // What a client can make the edge remember is bounded.
    for id in 100..160 {
        client.send(json!({"action": "streams", "id": id})).await;
    }
    client.send(json!({"action": "streams", "id": 160})).await;
    let refused = client.next().await;
    assert_eq!((&refused["code"], &refused["id"]), (&json!("rate_limited"), &json!(160)));
    drop(held);
    for (event, id, streams) in [
        ("subscribed", 1, json!(["depth.x"])),
        ("unsubscribed", 2, json!(["depth.x"])),
        ("subscribed", 3, json!(["trades.b"])),
        ("streams", 4, json!(["trades.b"])),
    ] {
        let reply = client.next().await;
        assert_eq!((&reply["event"], &reply["id"], &reply["streams"]), (&json!(event), &json!(id), &streams));
    }
    for id in 100..160 {
        assert_eq!(client.next().await["id"], id);
    }
    edge.stop().await;
}

#[tokio::test]
async fn bad_messages_are_errors_and_ten_in_a_row_close() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    for (text, code) in [
        ("{", "bad_request"),
        ("[]", "bad_request"),
        ("17", "bad_request"),
        (r#"{"action":"fly","id":3}"#, "unknown_action"),
        (r#"{"action":"subscribe","streams":[1]}"#, "bad_request"),
    ] {
        client.send_text(text).await;
        let reply = client.next().await;
        assert_eq!((&reply["event"], &reply["code"]), (&json!("error"), &json!(code)), "{text}");
    }
    client.socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(client.next().await["code"], "bad_request");
    // A good request, in fragments, ends the row.
    let (text, more) = (OpCode::Data(Data::Text), OpCode::Data(Data::Continue));
    for (opcode, part, last) in
        [(text, r#"{"action":"#, false), (more, r#""ping","id"#, false), (more, r#"":7}"#, true)]
    {
        client
            .socket
            .send(Message::Frame(Frame::message(part.as_bytes().to_vec(), opcode, last)))
            .await
            .unwrap();
    }
    assert_eq!(client.next().await["id"], 7);
    for _ in 0..10 {
        client.send_text("?").await;
    }
    for _ in 0..10 {
        assert_eq!(client.next().await["event"], "error");
    }
    assert_eq!(client.close_code(false).await, 1008);
    drop(client);
    let closed = r#"connections_closed_total{reason="policy"}"#;
    wait_until("the end is counted", || edge.metric(closed) == 1.0 && edge.metric("connections") == 0.0)
        .await;
    edge.stop().await;
}

#[tokio::test]
async fn oversized_messages_and_garbage_close_with_their_code() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    // Exactly the limit is taken, and is no request.
    client.send_text(&"x".repeat(64 * 1024)).await;
    assert_eq!(client.next().await["code"], "bad_request");
    client.send_text(&"x".repeat(64 * 1024 + 1)).await;
    assert_eq!(client.close_code(false).await, 1009);
    drop(client);
    for garbage in [&[0xFF; 2000][..], &[0x81, 1, b'x'], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = edge.connect().await;
        client.raw(garbage).await;
        assert_eq!(client.close_code(false).await, 1002);
    }
    wait_until("all are gone", || edge.metric("connections") == 0.0).await;
    edge.stop().await;
}

#[tokio::test]
async fn what_came_before_a_fault_is_answered_first() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    let request = br#"{"action":"ping"}"#;
    let header = [0x81, 0x80 | request.len() as u8, 0, 0, 0, 0];
    let reserved_bits = [0xF1, 0x80, 0, 0, 0, 0];
    client.raw(&[&header[..], request, &reserved_bits].concat()).await;
    assert_eq!(client.next().await["event"], "pong");
    assert_eq!(client.close_code(false).await, 1002);
    edge.stop().await;
}

#[tokio::test]
async fn a_slow_reader_is_closed_while_others_get_everything() {
    let config = Config { queue: Bounds { frames: 64, bytes: 64 * 1024 }, shards: 1, ..config() };
    let edge = Edge::start(config).await;
    let mut slow = edge.connect_with_small_buffers().await;
    let mut quick = edge.connect().await;
    slow.subscribe(&["trades.a"]).await;
    quick.subscribe(&["trades.a"]).await;
    let (mut next, deadline) = (1, Instant::now() + PATIENCE);
    while edge.metric("slow_client_disconnects_total") == 0.0 {
        assert!(Instant::now() < deadline, "the slow client was never closed");
        edge.publish_large("trades.a", next..next + 8, 4000).await;
        assert_eq!(quick.sequences(8).await, Vec::from_iter(next..next + 8));
        next += 8;
    }
    assert_eq!(slow.close_code(true).await, 4408);
    edge.publish("trades.a", next..next + 2).await;
    assert_eq!(quick.sequences(2).await, [next, next + 1]);
    drop(slow);
    wait_until("the slow one is gone", || edge.metric("connections") == 1.0).await;
    assert_eq!(edge.metric("subscriptions"), 1.0);
    assert_eq!(edge.metric(r#"lifecycle_events_total{event="onClientOverload"}"#), 1.0);
    assert_eq!(edge.metric(r#"connections_closed_total{reason="slow_client"}"#), 1.0);
    assert!(edge.metric(r#"events_dropped_total{reason="slow_client"}"#) > 0.0);
    edge.stop().await;
}

#[tokio::test]
async fn a_stalled_client_is_closed_after_the_write_timeout() {
    // The queue never fills.
    let queue = Bounds { frames: 100_000, bytes: 256 * 1024 * 1024 };
    let config = Config { queue, write_timeout: Duration::from_millis(300), shards: 1, ..config() };
    let edge = Edge::start(config).await;
    let mut stalled = edge.connect_with_small_buffers().await;
    stalled.subscribe(&["trades.a"]).await;
    // More than the kernel takes for a client that does not read.
    let mut next = 1;
    wait_until_async("the client is closed", async || {
        if edge.metric("client_queue_frames") == 0.0 {
            edge.publish_large("trades.a", next..next + 2, 100_000).await;
            next += 2;
        }
        edge.metric("slow_client_disconnects_total") == 1.0
    })
    .await;
    // It reads nothing at all, so it is cut in the end.
    wait_until("it is cut", || edge.metric("connections") == 0.0).await;
    edge.stop().await;
}

#[tokio::test]
async fn pongs_overtake_queued_data() {
    // Room enough until the gauge, which lags behind, shows that something is queued.
    let queue = Bounds { frames: 100_000, bytes: 256 * 1024 * 1024 };
    let edge = Edge::start(Config { queue, shards: 1, ..config() }).await;
    let mut client = edge.connect_with_small_buffers().await;
    let mut other = edge.connect().await;
    client.subscribe(&["trades.a"]).await;
    let mut last = 0;
    wait_until_async("something is queued", async || {
        last += 1;
        edge.publish_large("trades.a", last..last + 1, 60_000).await;
        edge.metric("client_queue_frames") >= 5.0
    })
    .await;
    client.socket.send(Message::Ping(b"alive?".to_vec().into())).await.unwrap();
    // The shard sees to one socket after the other: when it has answered this one, it has read the ping.
    other.ping().await;
    other.ping().await;
    let mut before_pong = 0;
    loop {
        match client.message().await {
            Message::Pong(payload) => break assert_eq!(&payload[..], b"alive?"),
            Message::Text(text) => before_pong += u64::from(text.starts_with(r#"{"stream""#)),
            _ => {}
        }
    }
    assert!(before_pong < last, "the pong came after all {last} events");
    assert_eq!(client.sequences((last - before_pong) as usize).await.last(), Some(&last));
    edge.stop().await;
}

#[tokio::test]
async fn clients_that_leave_leak_nothing() {
    let edge = Edge::start(config()).await;
    let held = edge.mesh.hold_answers();
    let mut clients = Vec::new();
    for index in 0..20 {
        let mut client = edge.connect().await;
        client.send(json!({"action": "subscribe", "streams": ["trades.a", format!("depth.s{index}")]})).await;
        client.ping().await;
        clients.push(client);
    }
    edge.mesh.wait_for_questions(21).await;
    // Half say goodbye, half just vanish, all while their request waits.
    for (index, client) in clients.iter_mut().enumerate() {
        if index % 2 == 0 {
            client.socket.close(None).await.unwrap();
        }
    }
    drop(clients);
    wait_until("all are gone", || edge.metric("connections") == 0.0).await;
    drop(held);
    let mut client = edge.connect().await;
    client.subscribe(&["trades.a"]).await;
    assert_eq!(edge.metric("subscriptions"), 1.0);
    drop(client);
    wait_until("the last is gone", || edge.metric("subscriptions") == 0.0).await;
    wait_until("all topics are left", || edge.mesh.joined() == 0).await;
    edge.stop().await;
}

#[tokio::test]
async fn topics_are_left_after_the_last_subscriber() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    assert_eq!(edge.mesh.joined(), 0, "nothing is joined that nobody wants");
    // Both are of one topic.
    client.subscribe(&["trades.a", "trades.a@x"]).await;
    assert_eq!(edge.mesh.joined(), 1);
    client.send(json!({"action": "unsubscribe", "streams": ["trades.a"]})).await;
    client.next().await;
    client.subscribe(&["depth.b"]).await;
    drop(client);
    wait_until("both topics are left", || edge.mesh.joined() == 0).await;
    assert_eq!(edge.mesh.left(), 2, "each once");
    edge.stop().await;
}

#[tokio::test]
async fn silence_brings_heartbeats_pings_and_an_end() {
    let config = Config {
        heartbeat: Duration::from_millis(100),
        ping_interval: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(2500),
        ..config()
    };
    let edge = Edge::start(config).await;
    let mut client = edge.connect().await;
    let heartbeat = client.next_text().await;
    assert_eq!(heartbeat["event"], "heartbeat");
    assert!(heartbeat["timestamp"].as_u64().unwrap() > 1_700_000_000_000);
    // The library answers pings while it is read: the connection lives on beyond the idle timeout.
    let (mut pings, deadline) = (0, Instant::now() + Duration::from_millis(3500));
    while let Ok(message) = timeout_at(deadline, client.socket.next()).await {
        pings += u32::from(matches!(message.unwrap().unwrap(), Message::Ping(_)));
    }
    assert!(pings >= 2);
    // One that is not read answers none.
    let closed = r#"connections_closed_total{reason="idle"}"#;
    wait_until("the silent client is closed", || edge.metric(closed) == 1.0).await;
    edge.stop().await;
}

#[tokio::test]
async fn stop_drains() {
    let edge = Edge::start(config()).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = edge.connect().await;
        client.subscribe(&["trades.a"]).await;
        clients.push(client);
    }
    let address = edge.address;
    let goodbyes = async {
        for client in &mut clients {
            let draining = client.next().await;
            assert_eq!(draining["event"], "draining");
            assert!(draining["reconnectAfter"].as_u64().unwrap() < 1000);
            assert_eq!(client.close_code(false).await, 1001);
        }
    };
    let (registry, ()) = tokio::join!(edge.stop_and_measure(), goodbyes);
    assert_eq!(metric(&registry, r#"connections_closed_total{reason="drain"}"#), 10.0);
    TcpStream::connect(address).await.expect_err("nobody listens any more");
}

#[tokio::test]
async fn http_is_served_beside_and_bad_handshakes_refused() {
    let config =
        Config { handshake_timeout: Duration::from_secs(2), max_connections: 4, shards: 1, ..config() };
    let edge = Edge::start(config).await;
    let get = |path| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(edge.http(&get("/page")).await.ends_with("a page"));
    assert!(edge.http(&get("/none")).await.starts_with("HTTP/1.1 404"));
    let refused = edge.http(&get("/ws")).await;
    assert!(refused.starts_with("HTTP/1.1 426") && refused.contains(r#""code":"bad_request""#), "{refused}");
    // Half a request, and nothing at all: cut after the handshake timeout.
    for text in ["GET /ws HT", ""] {
        let mut stream = TcpStream::connect(edge.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        within("the edge to cut", stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    // The subprotocol is answered if it is offered.
    let mut request = edge.url().into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "other, tickmesh.v1".parse().unwrap());
    let stream = TcpStream::connect(edge.address).await.unwrap();
    let (_socket, response) = client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "tickmesh.v1");
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..3 {
        clients.push(edge.connect().await);
    }
    let full = edge.http("").await;
    assert!(full.starts_with("HTTP/1.1 503"), "{full}");
    drop(clients);
    wait_until("places are free again", || edge.metric("connections") == 1.0).await;
    edge.connect().await;
    edge.stop().await;
}

#[tokio::test]
async fn an_edge_for_nobody_refuses_the_handshake() {
    let edge = Edge::start(Config {
        permissions: Permissions { anonymous: Some(Vec::new()), ..config().permissions },
        ..config()
    })
    .await;
    let stream = TcpStream::connect(edge.address).await.unwrap();
    let error = client_async(edge.url(), stream).await.unwrap_err().to_string();
    assert!(error.contains("401"), "{error}");
    edge.stop().await;
}

#[tokio::test]
async fn frames_sent_with_the_handshake_are_not_lost() {
    let edge = Edge::start(config()).await;
    let request = br#"{"action":"ping","id":9}"#;
    let mut bytes = b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    bytes.extend([0x81, 0x80 | request.len() as u8, 0, 0, 0, 0]);
    bytes.extend(request);
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains(r#""event":"pong","id":9"#) {
        assert!(within("the pong", stream.read_buf(&mut answer)).await.unwrap() > 0, "closed");
    }
    edge.stop().await;
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let first = edge::bind(config()).unwrap();
    let error = edge::bind(Config { listen: first.local_addr(), ..config() }).unwrap_err().to_string();
    assert!(error.contains(&first.local_addr().to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_connections_get_every_event_in_order() {
    const CONNECTIONS: usize = 500;
    const EVENTS: u64 = 100;
    let edge = Edge::start(config()).await;
    let mut readers = JoinSet::new();
    for index in 0..CONNECTIONS {
        let mut client = edge.connect().await;
        let own = format!("trades.s{}", index % 7);
        client.subscribe(&["ticker.global", &own]).await;
        readers.spawn(async move {
            let mut last = BTreeMap::new();
            for _ in 0..2 * EVENTS {
                let event = client.next().await;
                let sequence = event["sequence"].as_u64().unwrap();
                let previous = last.insert(event["stream"].as_str().unwrap().to_owned(), sequence);
                assert_eq!(sequence, previous.unwrap_or(0) + 1, "connection {index}: {event}");
            }
            assert_eq!(Vec::from_iter(last), [("ticker.global".into(), EVENTS), (own, EVENTS)]);
        });
    }
    assert_eq!(edge.metric("connections"), CONNECTIONS as f64);
    assert_eq!(edge.shards_used(), 2, "the system spreads connections over both listeners");
    for block in 0..EVENTS / 20 {
        let range = block * 20 + 1..block * 20 + 21;
        edge.publish("ticker.global", range.clone()).await;
        for stream in 0..7 {
            edge.publish(&format!("trades.s{stream}"), range.clone()).await;
        }
    }
    while let Some(reader) = within("a reader to finish", readers.join_next()).await {
        reader.unwrap();
    }
    let delivered = edge.metric(r#"events_delivered_total{channel="ticker"}"#);
    assert_eq!(delivered, (CONNECTIONS as u64 * EVENTS) as f64);
    assert!(edge.metric(r#"delivery_latency_seconds_count{channel="ticker"}"#) >= EVENTS as f64);
    edge.stop().await;
}
