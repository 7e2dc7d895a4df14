//! An exchange's gateway as processes: two ingest peers beside the engine's log, an edge in each of three regions.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use tickmesh::auth::hash_of;

use crate::{
    client::Client,
    node::{DEADLINE, Network, Node},
};

/// What the exchange gave a bot of [`BOT`].
pub const API_KEY: &str = "tk_live_0123456789";
pub const BOT: &str = "bot-7";

const AUTH: &str = r#"
[auth.jwt]
secret_file = "jwt.secret"
[auth.api_keys]
file = "api-keys.toml"
"#;

/// A trader may have trades and depth, everybody the tickers.
const EDGE: &str = r#"
[edge]
listen = "127.0.0.1:0"
shards = 2
anonymous = ["ticker.*"]
max_connections_per_user = 3
leave_after = "500ms"
[[auth.role]]
name = "trader"
streams = ["trades.*", "depth.*"]
"#;

pub struct Gateway {
    network: Network,
    pub ingest: [Node; 2],
    pub eu: Node,
    pub us: Node,
    pub ap: Node,
}

impl Gateway {
    /// Starts all peers and waits until they are ready.
    pub fn start(source: &str) -> Self {
        let network = Network::new();
        let write = |file: &str, text: String| fs::write(network.folder().join(file), text).unwrap();
        write("jwt.secret", "a secret of this test, 32 bytes at least".into());
        write(
            "api-keys.toml",
            format!("[[key]]\nid = \"bot\"\nhash = {:?}\nuser = {BOT:?}\n", hash_of(API_KEY)),
        );
        let publishers = ["ingest-1", "ingest-2"].map(|name| network.key(name));
        let edges = ["eu", "us", "ap"].map(|name| network.key(name));
        let start = |name: &str, region: &str, role: &str, bootstrap: &[&Node], more: &str| {
            let bootstrap: Vec<&str> = bootstrap.iter().map(|node| node.mesh.as_str()).collect();
            let text = format!(
                "[node]\nname = {name:?}\nregion = {region:?}\nroles = [{role:?}]\ndata_dir = \"{name}.data\"\n\
                 [ops]\nlisten = \"127.0.0.1:0\"\nlog_format = \"json\"\n\
                 [mesh]\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\nkey_file = \"{name}.key\"\n\
                 publishers = {publishers:?}\nedges = {edges:?}\nbootstrap = {bootstrap:?}\n{AUTH}{more}"
            );
            network.run(name, &text)
        };
        let first = start("ingest-1", "eu-west", "ingest", &[], source);
        let second = start("ingest-2", "eu-west", "ingest", &[&first], source);
        let both = [&first, &second];
        let eu = start("eu", "eu-west", "edge", &both, EDGE);
        let us = start("us", "us-east", "edge", &both, EDGE);
        let ap = start("ap", "ap-northeast", "edge", &both, EDGE);
        let gateway = Self { network, ingest: [first, second], eu, us, ap };
        gateway.ingest.iter().chain([&gateway.eu, &gateway.us, &gateway.ap]).for_each(Node::wait_ready);
        gateway
    }

    /// A token as the exchange gives one to a trader of BTC pairs.
    pub fn token(&self, user: &str) -> String {
        let trader = ["token", "--sub", user, "--roles", "trader", "--pairs", "btc_*"];
        self.network.tickmesh(&[&trader[..], &["--secret-file", "jwt.secret"]].concat())
    }

    /// Where such a trader connects.
    pub fn url(&self, edge: &Node, user: &str) -> String {
        format!("{}?token={}", edge.url(), self.token(user))
    }

    /// A client that has signed in.
    pub async fn client(&self, edge: &Node, user: &str) -> Client {
        Client::connect(self.url(edge, user)).await
    }
}

/// How often a lifecycle event happened at a peer.
pub fn times(node: &Node, event: &str) -> u64 {
    node.metric("tickmesh_lifecycle_events_total", &format!("event={event:?}")) as u64
}

/// Of clients that sign in and then subscribe once each.
pub fn subscribed(clients: u64) -> [(&'static str, u64); 6] {
    [
        "onConnectionOpen",
        "onAuthValidate",
        "onConnectionAccepted",
        "onSubscribeRequest",
        "onTopicPermissionCheck",
        "onSubscriptionConfirmed",
    ]
    .map(|event| (event, clients))
}

/// Fails unless exactly these lifecycle events happen at a peer; those of each message are not looked at.
pub fn assert_lifecycle(node: &Node, expected: impl IntoIterator<Item = (&'static str, u64)>) {
    let expected: BTreeMap<_, _> =
        expected.into_iter().map(|(event, count)| (event.to_owned(), count)).collect();
    let end = Instant::now() + DEADLINE;
    while lifecycle(node) != expected && Instant::now() < end {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(lifecycle(node), expected);
}

fn lifecycle(node: &Node) -> BTreeMap<String, u64> {
    let (_, metrics) = node.get("/metrics");
    let events = metrics.lines().filter_map(|line| {
        let line = line.strip_prefix("tickmesh_lifecycle_events_total{event=\"")?;
        let (event, count) = line.split_once("\"} ")?;
        Some((event.to_owned(), count.parse().unwrap()))
    });
    let of_messages = ["onKafkaMessage", "onMessageDispatch", "onUserStreamPush"];
    events.filter(|(event, count)| *count > 0 && !of_messages.contains(&event.as_str())).collect()
}
