//! Who subscribes to a stream that is retained begins with a snapshot, and gets everything after it.

use serde_json::{Value, json};
use tickmesh_protocol::{
    Event, Previous,
    book::Book,
    head::Head,
    policy::{OnSlow, Retain},
};
use tokio::task::JoinSet;

use super::{
    servers::Manner,
    support::{Client, Edge, config, events, position, position_in, wait_until},
};

const STREAM: &str = "depth.a";

/// A depth event: a price that moves with the number, and every hundredth the whole book.
pub fn depth(sequence: u64) -> String {
    let quantity = sequence % 3;
    match sequence % 100 {
        1 => json!({"asks": [["10", sequence.to_string()]], "bids": [], "snapshot": true}).to_string(),
        price => {
            json!({"asks": [[price.to_string(), quantity.to_string()]], "bids": [["1", sequence.to_string()]]})
                .to_string()
        }
    }
}

/// What one client has made of the messages of a stream: in every message it follows, or is a snapshot.
#[derive(Default)]
pub struct Follower {
    pub book: Book,
    pub last: u64,
    pub snapshots: usize,
}

impl Follower {
    pub fn take(&mut self, message: &Value) {
        let sequence = message["sequence"].as_u64().unwrap_or_else(|| panic!("{message} is no event"));
        if message["snapshot"] == true {
            self.snapshots += 1;
        } else {
            assert_eq!(message["previous"], self.last, "{message}");
        }
        // Only what begins may be older than what was told.
        assert!(sequence > self.last, "{message} after {}", self.last);
        self.last = sequence;
        self.book.apply(message["data"].to_string().as_bytes()).unwrap();
    }

    pub async fn until(&mut self, client: &mut Client, sequence: u64) {
        while self.last < sequence {
            self.take(&client.next().await);
        }
    }
}

/// The book of a log of [`depth`] events.
pub fn book_at(sequence: u64) -> Book {
    let mut book = Book::default();
    (1..=sequence).for_each(|sequence| book.apply(depth(sequence).as_bytes()).unwrap());
    book
}

impl Edge {
    /// Depth events that gossip loses.
    pub fn lose_depth(&self, stream: &str, sequences: std::ops::Range<u64>) -> Vec<Event> {
        self.log(events(1, stream, sequences, depth))
    }

    pub async fn publish_depth(&self, stream: &str, sequences: std::ops::Range<u64>) {
        let events = self.lose_depth(stream, sequences);
        self.send(events, Vec::new()).await;
    }
}

async fn edge_with_books(head: u64, on_slow: OnSlow) -> Edge {
    let edge = Edge::start(config()).await;
    edge.mesh.set_policy("depth", Retain::Book, on_slow);
    edge.mesh.set_head(STREAM, Head::At(position(head)));
    edge.lose_depth(STREAM, 1..head + 1);
    edge
}

#[tokio::test]
async fn a_new_subscriber_begins_with_the_book_wherever_that_stands() {
    // The server is where this edge is, behind it, or ahead of it.
    for (until, expected) in [(250, 250), (230, 230), (270, 270)] {
        let edge = edge_with_books(250, OnSlow::Disconnect).await;
        edge.mesh.servers.set_snapshots_until(until);
        let late = edge.lose_depth(STREAM, 251..281);
        let mut client = edge.connect().await;
        let confirmed = client.subscribe(&[STREAM]).await;
        assert_eq!(confirmed["positions"][STREAM]["sequence"], 250);
        let first = client.next().await;
        assert_eq!((&first["snapshot"], &first["sequence"]), (&json!(true), &json!(expected)));
        let mut follower = Follower::default();
        follower.take(&first);
        assert_eq!(follower.book, book_at(expected));
        edge.send(late, Vec::new()).await;
        edge.publish_depth(STREAM, 281..300).await;
        follower.until(&mut client, 299).await;
        assert_eq!((follower.book, follower.snapshots), (book_at(299), 1));
        edge.stop().await;
    }
}

#[tokio::test]
async fn a_storm_of_subscribers_costs_a_fetch_while_the_stream_goes_on() {
    const SUBSCRIBERS: usize = 500;
    let edge = edge_with_books(120, OnSlow::Disconnect).await;
    let mut readers = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        let mut client = edge.connect().await;
        readers.spawn(async move {
            client.subscribe(&[STREAM]).await;
            let mut follower = Follower::default();
            follower.until(&mut client, 299).await;
            assert_eq!((follower.book, follower.snapshots), (book_at(299), 1));
        });
    }
    for sequence in 121..300 {
        edge.publish_depth(STREAM, sequence..sequence + 1).await;
    }
    while let Some(read) = readers.join_next().await {
        read.unwrap();
    }
    // One; another if they come so slowly that the first is too old for the last of them.
    let asks = edge.mesh.servers.snapshot_asks();
    assert!((1..=5).contains(&asks), "{asks} fetches for {SUBSCRIBERS}");
    assert_eq!(edge.metric("snapshots_sent_total"), SUBSCRIBERS as f64);
    // When too much has come after it, a new one is fetched.
    edge.publish_depth(STREAM, 300..401).await;
    let mut client = edge.connect().await;
    client.subscribe(&[STREAM]).await;
    let first = client.next().await;
    assert_eq!((&first["snapshot"], &first["sequence"]), (&json!(true), &json!(400)));
    assert_eq!(edge.mesh.servers.snapshot_asks(), asks + 1);
    edge.stop().await;
}

#[tokio::test]
async fn the_last_event_is_a_snapshot_that_nobody_need_be_asked_for() {
    let edge = Edge::start(config()).await;
    edge.mesh.set_policy("ticker", Retain::Last, OnSlow::Disconnect);
    edge.mesh.set_head("ticker.a", Head::At(position(7)));
    edge.lose("ticker.a", 1..8);
    let mut first = edge.connect().await;
    first.subscribe(&["ticker.a"]).await;
    // This edge has seen no event so far.
    let snapshot =
        json!({"stream": "ticker.a", "sequence": 7, "previous": null, "snapshot": true, "data": {"n": 7}});
    assert_eq!(first.next().await, snapshot);
    edge.publish("ticker.a", 8..10).await;
    assert_eq!(first.sequences(2).await, [8, 9]);
    let mut second = edge.connect().await;
    second.subscribe(&["ticker.a"]).await;
    let snapshot =
        json!({"stream": "ticker.a", "sequence": 9, "previous": 8, "snapshot": true, "data": {"n": 9}});
    assert_eq!(second.next().await, snapshot);
    edge.publish("ticker.a", 10..11).await;
    assert_eq!(
        second.next().await,
        json!({"stream": "ticker.a", "sequence": 10, "previous": 9, "data": {"n": 10}})
    );
    assert_eq!(edge.mesh.servers.snapshot_asks(), 1);
    // A stream without an event has nothing to begin with, and a second subscription of the same stream begins nothing.
    second.subscribe(&["ticker.new", "ticker.a"]).await;
    edge.publish("ticker.new", 1..2).await;
    assert_eq!(second.next().await["stream"], "ticker.new");
    edge.stop().await;
}

#[tokio::test]
async fn where_no_server_knows_the_book_a_client_begins_without() {
    let edge = Edge::start(config()).await;
    edge.mesh.set_policy("depth", Retain::Book, OnSlow::Resync);
    edge.mesh.set_head(STREAM, Head::At(position(50)));
    // The log begins in the middle of a book.
    edge.lose_depth(STREAM, 40..51);
    edge.mesh.servers.open_gate(false);
    let mut client = edge.connect().await;
    assert_eq!(client.subscribe(&[STREAM]).await["positions"][STREAM]["sequence"], 50);
    wait_until("a server is asked", || edge.mesh.servers.snapshot_asks() == 1).await;
    edge.publish_depth(STREAM, 51..53).await;
    edge.mesh.servers.open_gate(true);
    assert_eq!(client.sequences(2).await, [51, 52], "nothing after the position that it was told is missing");
    edge.publish_depth(STREAM, 53..150).await;
    let mut follower = Follower { last: 52, ..Follower::default() };
    follower.until(&mut client, 149).await;
    assert_eq!(follower.book, book_at(149), "an event that holds all of it has come");
    edge.stop().await;
}

#[tokio::test]
async fn a_resume_that_fails_goes_on_with_a_snapshot() {
    let edge = edge_with_books(1000, OnSlow::Disconnect).await;
    edge.mesh.servers.set(0, Manner::Begins { at: 500 });
    let mut client = edge.connect().await;
    for (epoch, code) in [(1, "resume_gap"), (255, "epoch_changed")] {
        let from = json!({STREAM: {"epoch": format!("{epoch:016x}"), "sequence": 100}});
        client.send(json!({"action": "resume", "positions": from})).await;
        let answer = client.next().await;
        assert_eq!((&answer["event"], &answer["rejected"][0]["code"]), (&json!("resumed"), &json!(code)));
        let mut follower = Follower::default();
        follower.take(&client.next().await);
        assert_eq!((follower.last, follower.snapshots), (1000, 1), "the second time it is given out again");
        let next = answer["positions"][STREAM]["sequence"].as_u64().unwrap() + 1;
        edge.publish_depth(STREAM, next..next + 10).await;
        follower.until(&mut client, next + 9).await;
        assert_eq!((follower.book, follower.snapshots), (book_at(next + 9), 1));
        client.send(json!({"action": "unsubscribe", "streams": [STREAM]})).await;
        assert_eq!(client.next().await["event"], "unsubscribed");
    }
    assert_eq!(edge.mesh.servers.snapshot_asks(), 1);
    edge.stop().await;
}

#[tokio::test]
async fn a_snapshot_of_a_new_epoch_comes_after_a_reset() {
    let edge = edge_with_books(5, OnSlow::Disconnect).await;
    let mut second = events(2, STREAM, 1..4, depth);
    second[0] = Event { previous: Previous::Reset { after: position(5) }, ..second[0].clone() };
    edge.log(second.clone());
    let mut client = edge.connect().await;
    client.subscribe(&[STREAM]).await;
    assert_eq!(client.next().await["event"], "reset");
    let snapshot = client.next().await;
    assert_eq!((&snapshot["snapshot"], &snapshot["sequence"]), (&json!(true), &json!(3)));
    // This edge comes there later.
    second.extend(edge.log(events(2, STREAM, 4..6, depth)));
    edge.send(second, vec![(STREAM.parse().unwrap(), position_in(2, 5))]).await;
    assert_eq!(client.sequences(2).await, [4, 5]);
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_or_goes_away_meanwhile_leaves_nothing_behind() {
    let edge = edge_with_books(50, OnSlow::Disconnect).await;
    edge.mesh.servers.open_gate(false);
    let mut client = edge.connect().await;
    client.subscribe(&[STREAM]).await;
    let mut gone = edge.connect().await;
    gone.subscribe(&[STREAM]).await;
    drop(gone);
    client.send(json!({"action": "unsubscribe", "streams": [STREAM]})).await;
    assert_eq!(client.next().await["positions"][STREAM]["sequence"], 50);
    wait_until("nobody is subscribed", || edge.metric("subscriptions") == 0.0).await;
    client.subscribe(&[STREAM]).await;
    edge.mesh.servers.open_gate(true);
    let mut follower = Follower::default();
    edge.publish_depth(STREAM, 51..60).await;
    follower.until(&mut client, 59).await;
    assert_eq!((follower.book, follower.snapshots), (book_at(59), 1));
    edge.stop().await;
}
