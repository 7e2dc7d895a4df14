//! Many signed-in clients with a private stream each, over three edges: each gets its own events and no others, and an edge
//! gets just the events of its users. 10,000 users, or as many as `TICKMESH_CROWD` says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

#[path = "support/kafka.rs"]
mod kafka;
#[path = "support/node.rs"]
mod node;

use std::{env, sync::Arc, time::Instant};

use futures_util::{SinkExt, StreamExt};
use jsonwebtoken::{EncodingKey, Header};
use kafka::{KafkaBroker, KafkaProducer};
use node::{DEADLINE, Network, Node, Ports, Role, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

const SECRET: &str = "a secret of thirty-two bytes or so";
const TOPIC: &str = "crowd";
const PARTITIONS: i32 = 4;
const EDGES: usize = 3;
/// Events of each user.
const EACH: u64 = 3;
/// Handshakes under way at a time.
const AT_ONCE: usize = 64;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// As many open files as this process, and those it starts, may have.
fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn token(user: &str) -> String {
    let claims = json!({"sub": user, "exp": 4_000_000_000_u64});
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn user(number: usize) -> String {
    format!("user{number}")
}

fn role<'a>(name: &'a str, region: &'a str, roles: &'a str, more: &'a str) -> Role<'a> {
    Role { name, region, roles, ports: Ports::default(), node: "", ops: "", more }
}

/// Two ingest peers that read the orders, and three edges in three regions.
fn start(network: &Network, brokers: &str) -> (Vec<Node>, Vec<Node>) {
    let publishers = ["ingest-1", "ingest-2"].map(|name| network.key(name));
    let edges: Vec<_> = (0..EDGES).map(|edge| network.key(&format!("edge-{edge}"))).collect();
    let auth = format!("[auth.jwt]\nsecret = {SECRET:?}\n");
    let source = format!(
        "edges = {edges:?}\n{auth}[[source]]\nname = \"engine\"\nkind = \"kafka\"\nbrokers = {brokers:?}\n\
         topics = [{TOPIC:?}]\nstart = \"beginning\"\n"
    );
    let (mut ingest, mut bootstrap) = (Vec::new(), Vec::new());
    for name in ["ingest-1", "ingest-2"] {
        let node = network.start(&role(name, "eu-west", "[\"ingest\"]", &source), &publishers, &bootstrap);
        bootstrap.push(node.mesh.clone());
        ingest.push(node);
    }
    let regions = ["eu-west", "us-east", "ap-northeast"];
    let edges = regions.iter().enumerate().map(|(edge, region)| {
        let name = format!("edge-{edge}");
        network.start(&role(&name, region, "[\"edge\"]", &auth), &publishers, &bootstrap)
    });
    let edges: Vec<_> = edges.collect();
    for node in ingest.iter().chain(&edges) {
        node.wait_ready();
    }
    (ingest, edges)
}

/// A client of a user with its private stream, confirmed.
async fn connect(url: String, user: String) -> Socket {
    let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0);
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {}", token(&user)).parse().unwrap());
    let (mut socket, _) = connect_async_with_config(request, Some(config), true).await.unwrap();
    let stream = format!("orders.{user}");
    loop {
        socket
            .send(Message::text(json!({"action": "subscribe", "streams": [stream]}).to_string()))
            .await
            .unwrap();
        let reply = next(&mut socket, "subscribed").await;
        match reply["rejected"].as_array().unwrap().as_slice() {
            [] => return socket,
            // Many come at once; a client asks again.
            [rejection] if rejection["code"] == "unavailable" => {}
            rejected => panic!("{rejected:?}"),
        }
    }
}

/// The next message of a kind, `data` for an event; heartbeats and the welcome are passed over.
async fn next(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let message = timeout(DEADLINE, socket.next()).await.expect("a message in time").unwrap().unwrap();
        let Message::Text(text) = message else { continue };
        let value: Value = serde_json::from_str(&text).unwrap();
        match value["event"].as_str().unwrap_or("data") {
            found if found == kind => return value,
            "welcome" | "heartbeat" => {}
            _ => panic!("{value} instead of {kind}"),
        }
    }
}

/// Takes exactly the events of a user, in order, each linked to the one before it.
async fn take(mut socket: Socket, user: String) {
    let mut last = None;
    for number in 0..EACH {
        let event = next(&mut socket, "data").await;
        assert_eq!(event["stream"], format!("orders.{user}"));
        assert_eq!((&event["data"]["user"], &event["data"]["n"]), (&json!(user), &json!(number)));
        assert_eq!(event["previous"].as_u64(), last, "{event}");
        last = event["sequence"].as_u64();
    }
}

#[test]
fn each_of_many_users_gets_its_own_events_and_edges_get_those_of_their_users() {
    let users: usize = env::var("TICKMESH_CROWD").map_or(10_000, |users| users.parse().expect("a number"));
    allow_files();
    let broker = KafkaBroker::shared();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(broker.create_topic(TOPIC, PARTITIONS));
    let network = Network::new();
    let (ingest, edges) = start(&network, &broker.bootstrap());
    let urls: Vec<_> = edges.iter().map(Node::url).collect();

    let begun = Instant::now();
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let sockets = runtime.block_on(async {
        let mut connecting = JoinSet::new();
        for number in 0..users {
            let (at_once, url) = (at_once.clone(), urls[number % EDGES].clone());
            connecting.spawn(async move {
                let _turn = at_once.acquire().await.unwrap();
                (number, connect(url, user(number)).await)
            });
        }
        connecting.join_all().await
    });
    println!("{users} clients signed in and subscribed in {:.1} s", begun.elapsed().as_secs_f64());

    let begun = Instant::now();
    let producer = KafkaProducer::new(&broker.client());
    for number in 0..EACH {
        for (user_number, user) in (0..users).map(user).enumerate() {
            let record =
                json!({"stream": format!("orders.{user}"), "data": {"user": user, "n": number}}).to_string();
            producer.send(TOPIC, (user_number % PARTITIONS as usize) as i32, Some(&record));
        }
    }
    producer.flush();
    runtime.block_on(async {
        let mut taking = JoinSet::new();
        for (number, socket) in sockets {
            taking.spawn(take(socket, user(number)));
        }
        taking.join_all().await
    });
    let events = (users as u64 * EACH) as f64;
    println!("{events} private events in {:.1} s", begun.elapsed().as_secs_f64());

    // Each edge got each event of its users once, from the one ingest peer that pushes it, and nothing else.
    for (edge, node) in edges.iter().enumerate() {
        let theirs = (0..users).filter(|user| user % EDGES == edge).count() as f64 * EACH as f64;
        let received = node.metric("tickmesh_private_events_total", "direction=\"received\"");
        assert_eq!(received, theirs, "edge {edge}");
        assert_eq!(node.metric("tickmesh_mesh_events_received_total", ""), 0.0, "by gossip");
        wait_until("deliveries are counted", || {
            (node.metric("tickmesh_events_delivered_total", "channel=\"orders\"") == theirs).then_some(())
        });
    }
    let served: f64 =
        ingest.iter().map(|node| node.metric("tickmesh_private_events_total", "direction=\"served\"")).sum();
    assert_eq!(served, events);
    for node in &ingest {
        assert_eq!(node.metric("tickmesh_events_published_total", ""), 0.0, "nothing was gossiped");
    }
}
