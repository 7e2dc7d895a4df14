//! Clients that do not keep up: what they get is newest, or whole, and hurts nobody else.

use std::{ops::Range, time::Duration};

use serde_json::json;
use tickmesh::edge::Config;
use tickmesh_protocol::{
    head::Head,
    policy::{OnSlow, Retain},
};

use super::{
    snapshots::Follower,
    support::{Client, Edge, config, events, position, wait_until},
};

/// Bytes of a large event: a socket takes some hundred of them from an edge whose client does not read.
const LARGE: usize = 8000;

/// Most events that are published until a client that does not read is found slow: more than any socket takes.
const MOST: u64 = 20_000;

async fn edge_with(channel: &str, retain: Retain, on_slow: OnSlow, config: Config) -> Edge {
    let edge = Edge::start(Config { shards: 1, ..config }).await;
    edge.mesh.set_policy(channel, retain, on_slow);
    edge
}

/// Publishes large events after a number, which a client reads, until a metric says that another is slow. Returns the last.
async fn publish_until_slow(edge: &Edge, stream: &str, after: u64, quick: &mut Client, metric: &str) -> u64 {
    let before = edge.metric(metric);
    let mut last = after;
    while edge.metric(metric) == before {
        assert!(last < after + MOST, "{metric} stays {before}");
        edge.publish_large(stream, last + 1..last + 11, LARGE).await;
        assert_eq!(quick.sequences(10).await, Vec::from_iter(last + 1..last + 11));
        last += 10;
    }
    last
}

/// A depth event of any size, by a seed.
fn random_depth(seed: u64, sequence: u64) -> String {
    let mut state = seed * 1_000_003 + sequence * 7919 + 1;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut side = || -> Vec<[String; 2]> {
        (0..random(4)).map(|_| [random(60).to_string(), random(3).to_string()]).collect()
    };
    let (asks, bids) = (side(), side());
    let padding = "x".repeat(random(2 * LARGE as u64) as usize);
    json!({"asks": asks, "bids": bids, "snapshot": sequence == 1, "padding": padding}).to_string()
}

async fn publish_random(edge: &Edge, seed: u64, sequences: Range<u64>) {
    let events = edge.log(events(1, "depth.a", sequences, |sequence| random_depth(seed, sequence)));
    edge.send(events, Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_differences_ends_with_the_book_of_a_fast_one() {
    for seed in 0..3 {
        let edge = edge_with("depth", Retain::Book, OnSlow::Resync, config()).await;
        edge.log(events(1, "depth.a", 1..2, |sequence| random_depth(seed, sequence)));
        edge.mesh.set_head("depth.a", Head::At(position(1)));
        let (mut slow, mut fast) = (edge.connect_with_small_buffers().await, edge.connect().await);
        let (mut behind, mut ahead) = (Follower::default(), Follower::default());
        slow.subscribe(&["depth.a"]).await;
        fast.subscribe(&["depth.a"]).await;
        ahead.until(&mut fast, 1).await;
        let mut last = 1;
        // It reads nothing, then a little, then nothing, and at last everything.
        for resyncs in 1..=2 {
            while edge.metric("slow_client_resyncs_total") < f64::from(resyncs) {
                assert!(last < MOST, "the client that does not read is not found slow");
                publish_random(&edge, seed, last + 1..last + 11).await;
                last += 10;
                ahead.until(&mut fast, last).await;
            }
            let before = behind.snapshots;
            while behind.snapshots <= before + usize::from(resyncs == 1) {
                behind.take(&slow.next().await);
            }
        }
        publish_random(&edge, seed, last + 1..last + 101).await;
        last += 100;
        ahead.until(&mut fast, last).await;
        behind.until(&mut slow, last).await;
        assert_eq!(behind.book, ahead.book);
        assert!(behind.snapshots >= 3 && ahead.snapshots == 1, "{} {}", behind.snapshots, ahead.snapshots);
        assert!(edge.metric(r#"events_dropped_total{reason="resynced"}"#) > 0.0);
        assert_eq!(edge.metric("slow_client_disconnects_total"), 0.0);
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflated_client_gets_the_newest_event_and_then_every_one() {
    let edge = edge_with("ticker", Retain::Last, OnSlow::Conflate, config()).await;
    let (mut slow, mut quick) = (edge.connect_with_small_buffers().await, edge.connect().await);
    slow.subscribe(&["ticker.a"]).await;
    quick.subscribe(&["ticker.a"]).await;
    let last = publish_until_slow(&edge, "ticker.a", 0, &mut quick, "slow_client_conflations_total").await;
    // A client whose queue is full may still ask.
    slow.send(json!({"action": "ping", "id": 1})).await;
    edge.publish_large("ticker.a", last + 1..last + 101, LARGE).await;
    let last = last + 100;
    assert_eq!(quick.sequences(100).await.last(), Some(&last));
    let overloads = r#"lifecycle_events_total{event="onClientOverload"}"#;
    assert_eq!(edge.metric(overloads), 1.0, "once for all that does not fit");
    let (mut newest, mut received, mut conflated, mut answered) = (0, 0, 0, false);
    while newest < last {
        let message = slow.next().await;
        if message["event"] == "pong" {
            answered = true;
            continue;
        }
        let sequence = message["sequence"].as_u64().unwrap();
        assert!(sequence > newest, "{sequence} after {newest}");
        if message["conflated"] == true {
            conflated += 1;
        } else {
            assert_eq!(sequence, newest + 1);
        }
        (newest, received) = (sequence, received + 1);
    }
    assert!(answered && conflated == 1, "{answered} {conflated}");
    let dropped = r#"events_dropped_total{reason="conflated"}"#;
    wait_until("it is live", || edge.metric(dropped) > 0.0).await;
    assert_eq!(edge.metric(dropped), (last - received) as f64);
    edge.publish("ticker.a", last + 1..last + 3).await;
    let message = slow.next().await;
    assert_eq!((&message["sequence"], &message["conflated"]), (&json!(last + 1), &json!(null)));
    assert_eq!(slow.sequences(1).await, [last + 2]);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflated_client_that_takes_nothing_at_all_is_closed() {
    let config = Config { write_timeout: Duration::from_millis(500), ..config() };
    let edge = edge_with("ticker", Retain::Last, OnSlow::Conflate, config).await;
    let (mut stuck, mut quick) = (edge.connect_with_small_buffers().await, edge.connect().await);
    stuck.subscribe(&["ticker.a"]).await;
    quick.subscribe(&["ticker.a"]).await;
    publish_until_slow(&edge, "ticker.a", 0, &mut quick, "slow_client_disconnects_total").await;
    assert_eq!(stuck.close_code(true).await, 4408);
    assert_eq!(edge.metric("subscriptions"), 1.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_channels_of_a_conflated_client_are_never_left_out() {
    let edge = edge_with("ticker", Retain::Last, OnSlow::Conflate, config()).await;
    // A policy that could not be kept is none.
    edge.mesh.set_policy("trades", Retain::None, OnSlow::Conflate);
    let (mut slow, mut quick) = (edge.connect_with_small_buffers().await, edge.connect().await);
    slow.subscribe(&["ticker.a", "trades.a"]).await;
    quick.subscribe(&["ticker.a", "trades.a"]).await;
    publish_until_slow(&edge, "ticker.a", 0, &mut quick, "slow_client_conflations_total").await;
    publish_until_slow(&edge, "trades.a", 0, &mut quick, "slow_client_disconnects_total").await;
    assert_eq!(slow.close_code(true).await, 4408);
    edge.stop().await;
}
