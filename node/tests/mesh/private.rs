//! Private feeds between real nodes: who is given what, and who nothing.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{EncodingKey, Header};
use libp2p::{futures::AsyncWriteExt, identity::Keypair};
use serde_json::json;
use tickmesh::{
    auth::{self, Authenticator, JwtConfig, Permissions},
    mesh::{FeedError, Identity, PrivateAccess, PrivateFeed},
    ops::metrics::Registry,
};
use tickmesh_protocol::{
    Event, Position, StreamName, Topic,
    client::Credential,
    feed::{Denial, FeedFrame, FeedRequest, PrivateChange},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    cluster::{Network, Node, stream, wait_until, within},
    feeds::{ask, at, read_all, request},
    raw::{Raw, framed, refusal},
};

/// Of a listed edge that is no real one.
const ROGUE_SECRET: [u8; 32] = [9; 32];

const SECRET: &[u8] = b"a secret of thirty-two bytes or so";

fn token(user: &str, lives: i64) -> Credential {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let claims = json!({"sub": user, "exp": now + lives});
    let token = jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).unwrap();
    Credential::token(&token)
}

/// A network with a publisher that gives private streams to one edge.
async fn network() -> (Network, Node, Node) {
    let mut network = Network::new(1);
    let jwt = JwtConfig { leeway: Duration::ZERO, ..JwtConfig::with_secret(SECRET) };
    let auth = auth::Config { jwt: Some(jwt), ..auth::Config::default() };
    let authenticator = Authenticator::open(&auth, &Registry::new(), CancellationToken::new()).unwrap();
    let private = Arc::new(auth::default_private());
    let permissions = Permissions { private, ..Permissions::default() };
    network.private = Some(PrivateAccess { authenticator, permissions });
    let edge = Identity::generate().unwrap();
    network.edges = vec![edge.clone(), Identity::from_secret(ROGUE_SECRET).unwrap()];
    network.feeds.keep_alive = Duration::from_millis(50);
    let publisher = network.publisher(0, &[]).await;
    let edge = Node::start(&network, edge, "/ip4/127.0.0.1/tcp/0", &[publisher.address()], false).await;
    edge.connected_to_publishers(1).await;
    (network, publisher, edge)
}

/// An edge's private feed.
struct Feed {
    feed: PrivateFeed,
    changes: mpsc::Sender<PrivateChange>,
    to_server: mpsc::Receiver<PrivateChange>,
}

impl Feed {
    async fn open(edge: &Node, publisher: &Node) -> Self {
        let key = publisher.identity.publisher();
        let feed = within("a private feed", edge.mesh.private(key)).await.unwrap();
        let (changes, to_server) = mpsc::channel(16);
        Self { feed, changes, to_server }
    }

    async fn add(&self, credential: Credential, streams: &[&str], push: bool) {
        let streams = streams.iter().map(|name| stream(name)).collect();
        self.changes.send(PrivateChange::Add { credential, streams, push }).await.unwrap();
    }

    async fn next(&mut self) -> Result<FeedFrame, FeedError> {
        within("a frame", async {
            loop {
                match self.feed.next(&mut self.to_server).await {
                    Ok(FeedFrame::Working) => {}
                    other => return other,
                }
            }
        })
        .await
    }

    async fn heads(&mut self) -> Vec<(StreamName, Option<Position>)> {
        match self.next().await.unwrap() {
            FeedFrame::Heads(heads) => heads,
            other => panic!("{other:?} instead of heads"),
        }
    }

    async fn events(&mut self) -> Vec<(String, u64)> {
        match self.next().await.unwrap() {
            FeedFrame::Events(events) => {
                let of = |event: &Event| (event.stream.to_string(), event.sequence.get());
                events.iter().map(of).collect()
            }
            other => panic!("{other:?} instead of events"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_gets_the_streams_of_the_users_it_has_and_no_others() {
    let (_network, publisher, edge) = network().await;
    let (alice, bob) = (stream("orders.alice"), stream("orders.bob"));
    publisher.store.add(&alice, 3, 10);
    let mut feed = Feed::open(&edge, &publisher).await;
    feed.add(token("alice", 60), &["orders.alice"], true).await;
    assert_eq!(feed.heads().await, [(alice.clone(), Some(at(2)))]);
    publisher.store.add(&bob, 2, 10);
    publisher.store.add(&alice, 1, 10);
    assert_eq!(feed.events().await, [("orders.alice".to_owned(), 3)]);
    // Another edge pushes for this one; where its stream stands is told all the same.
    feed.add(token("bob", 60), &["orders.bob"], false).await;
    assert_eq!(feed.heads().await, [(bob.clone(), Some(at(1)))]);
    publisher.store.add(&bob, 1, 10);
    assert_eq!(feed.heads().await, [(bob.clone(), Some(at(2)))]);
    feed.changes.send(PrivateChange::Push { streams: vec![bob.clone()], push: true }).await.unwrap();
    assert_eq!(feed.heads().await, [(bob.clone(), Some(at(2)))]);
    publisher.store.add(&bob, 1, 10);
    assert_eq!(feed.events().await, [("orders.bob".to_owned(), 3)]);
    // What was granted can be fetched, and what was removed no more.
    let key = publisher.identity.publisher();
    let (missed, _) = read_all(&mut ask(&edge, key, request("orders.alice", Some(0), false)).await).await;
    assert_eq!(missed.len(), 3);
    feed.changes.send(PrivateChange::Remove { streams: vec![alice.clone()] }).await.unwrap();
    feed.changes.send(PrivateChange::Push { streams: vec![bob.clone()], push: true }).await.unwrap();
    feed.heads().await;
    publisher.store.add(&alice, 1, 10);
    publisher.store.add(&bob, 1, 10);
    assert_eq!(feed.events().await, [("orders.bob".to_owned(), 4)]);
    refused_range(&edge, &publisher, "orders.alice").await;
    assert_eq!(publisher.metric("private_events_total{direction=\"served\"}"), 3);
    assert_eq!(edge.metric("private_events_total{direction=\"received\"}"), 3);
    // Nothing is granted when the feed is gone.
    drop(feed);
    wait_until("the feed has ended", || publisher.metric("feeds_open{direction=\"served\"}") == 0).await;
    refused_range(&edge, &publisher, "orders.bob").await;
}

async fn refused_range(edge: &Node, publisher: &Node, name: &str) {
    let mut reader = ask(edge, publisher.identity.publisher(), request(name, None, false)).await;
    match within("a refusal", reader.next()).await {
        Err(FeedError::Refused(reason)) => assert_eq!(reason, "the streams are private"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_shown_is_not_granted() {
    let (_network, publisher, edge) = network().await;
    publisher.store.add(&stream("orders.bob"), 1, 10);
    let mut feed = Feed::open(&edge, &publisher).await;
    let forged = Credential::token("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJib2IifQ.AAAA");
    let cases = [
        (token("alice", 60), vec!["orders.bob"], Denial::Forbidden),
        (token("Bob", 60), vec!["orders.bob"], Denial::Forbidden),
        (token("bob", -60), vec!["orders.bob"], Denial::Expired),
        (forged, vec!["orders.bob"], Denial::Forbidden),
        (Credential::api_key("guessed"), vec!["orders.bob"], Denial::Forbidden),
        // What is not private comes by gossip.
        (token("bob", 60), vec!["trades.bob"], Denial::Forbidden),
    ];
    for (credential, streams, why) in cases {
        feed.add(credential, &streams, true).await;
        let streams = streams.iter().map(|name| stream(name)).collect();
        assert_eq!(feed.next().await.unwrap(), FeedFrame::Denied { streams, why });
    }
    feed.add(token("alice", 60), &["orders.bob", "orders.alice"], true).await;
    assert!(matches!(feed.next().await.unwrap(), FeedFrame::Denied { why: Denial::Forbidden, .. }));
    assert_eq!(feed.heads().await, [(stream("orders.alice"), None)]);
    // To push what was not granted does nothing.
    feed.changes.send(PrivateChange::Push { streams: vec![stream("orders.bob")], push: true }).await.unwrap();
    publisher.store.add(&stream("orders.bob"), 1, 10);
    publisher.store.add(&stream("orders.alice"), 1, 10);
    assert_eq!(feed.events().await, [("orders.alice".to_owned(), 0)]);
    refused_range(&edge, &publisher, "orders.bob").await;
    assert_eq!(publisher.metric("private_denied_total"), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_ends_with_its_token_unless_a_newer_one_is_shown() {
    let (_network, publisher, edge) = network().await;
    let mut feed = Feed::open(&edge, &publisher).await;
    feed.add(token("alice", 2), &["orders.alice"], true).await;
    feed.add(token("bob", 2), &["orders.bob"], true).await;
    feed.add(token("bob", 60), &["orders.bob"], true).await;
    for _ in 0..3 {
        feed.heads().await;
    }
    let denied = FeedFrame::Denied { streams: vec![stream("orders.alice")], why: Denial::Expired };
    assert_eq!(feed.next().await.unwrap(), denied);
    publisher.store.add(&stream("orders.alice"), 1, 10);
    publisher.store.add(&stream("orders.bob"), 1, 10);
    assert_eq!(feed.events().await, [("orders.bob".to_owned(), 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn others_with_the_network_key_get_nothing() {
    let (network, publisher, _edge) = network().await;
    publisher.store.add(&stream("orders.alice"), 1, 10);
    let other = network.edge(&[publisher.address()]).await;
    other.connected_to_publishers(1).await;
    let mut feed = Feed::open(&other, &publisher).await;
    match feed.next().await {
        Err(FeedError::Refused(reason)) => assert_eq!(reason, "this peer is not among mesh.edges"),
        frame => panic!("{frame:?}"),
    }
    let raw = Raw::connect(&network.key, publisher.address()).await;
    for request in [
        FeedRequest::Private,
        request("orders.alice", None, false),
        request("orders.alice", None, true),
        FeedRequest::Topic { topic: Topic::spanning(&stream("orders.alice")), after: vec![], live: false },
    ] {
        let reason = refusal(&mut raw.ask(&request).await).await.unwrap();
        assert!(reason.contains("private") || reason.contains("mesh.edges"), "{reason}");
    }
    // A listed edge that says what is no change is cut off.
    let listed = Keypair::ed25519_from_bytes(ROGUE_SECRET).unwrap();
    let (raw, _incoming) = Raw::connect_as(listed, &network.key, publisher.address()).await;
    let mut stream = raw.ask(&FeedRequest::Private).await;
    stream.write_all(&framed(&[3, 200, 1, 2])).await.unwrap();
    stream.flush().await.unwrap();
    let reason = refusal(&mut stream).await.unwrap();
    assert!(reason.contains("not the format of version 3"), "{reason}");
}
