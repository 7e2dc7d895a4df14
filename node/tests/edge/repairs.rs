//! What gossip loses, an edge fetches.

use serde_json::json;
use tickmesh_protocol::{Event, Previous, head::Head, position::MAX_SEQUENCE, repair::MAX_HELD_EVENTS};

use super::{
    servers::{Manner, server},
    support::{Client, Edge, config, events, position, position_in, wait_until},
};

const GAPS_TOLD: &str = r#"gaps_total{repaired="no"}"#;
const GAPS_REPAIRED: &str = r#"gaps_total{repaired="yes"}"#;

/// An edge with a client of a stream that stands at 1.
async fn start() -> (Edge, Client) {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    edge.lose("trades.a", 1..2);
    edge.mesh.set_head("trades.a", Head::At(position(1)));
    client.subscribe(&["trades.a"]).await;
    (edge, client)
}

async fn wait_until_repaired(edge: &Edge) {
    wait_until("nothing is being repaired", || edge.metric("streams_repairing") == 0.0).await;
}

#[tokio::test]
async fn a_hole_is_fetched_and_everything_comes_in_order() {
    let (edge, mut client) = start().await;
    edge.publish("trades.a", 2..4).await;
    edge.lose("trades.a", 4..6);
    edge.publish("trades.a", 6..8).await;
    edge.publish("trades.a", 6..8).await;
    assert_eq!(client.sequences(6).await, [2, 3, 4, 5, 6, 7]);
    wait_until_repaired(&edge).await;
    assert_eq!((edge.metric(GAPS_REPAIRED), edge.metric(GAPS_TOLD)), (1.0, 0.0));
    assert!(edge.metric("events_refetched_total") >= 2.0);
    assert_eq!(edge.metric("duplicates_total"), 2.0);
    // A lost batch that comes after all is not said to have been published twice.
    edge.send(edge.lose("trades.a", 4..6), Vec::new()).await;
    edge.publish("trades.a", 8..9).await;
    assert_eq!(client.sequences(1).await, [8]);
    assert_eq!(edge.metric("duplicates_total"), 2.0);
    assert!(edge.metric("refetched_duplicates_total") >= 2.0);
    assert_eq!(edge.mesh.servers.asks(), 1);
    edge.stop().await;
}

#[tokio::test]
async fn what_was_only_overtaken_is_not_fetched() {
    let (edge, mut client) = start().await;
    edge.publish("trades.a", 3..5).await;
    edge.publish("trades.a", 2..3).await;
    assert_eq!(client.sequences(3).await, [2, 3, 4]);
    assert_eq!(edge.metric("events_early_total"), 2.0);
    assert_eq!((edge.metric(GAPS_REPAIRED), edge.metric(GAPS_TOLD)), (0.0, 0.0));
    edge.stop().await;
}

#[tokio::test]
async fn a_fetch_that_fails_is_made_again() {
    let (edge, mut client) = start().await;
    edge.mesh.servers.set(0, Manner::Fails { after: 0 });
    edge.lose("trades.a", 2..5);
    edge.publish("trades.a", 5..6).await;
    wait_until("it was tried three times", || edge.mesh.servers.asks() >= 3).await;
    edge.mesh.servers.set(0, Manner::Serves);
    assert_eq!(client.sequences(4).await, [2, 3, 4, 5]);
    // One that goes away in the middle is followed by another, which need not send everything again.
    edge.mesh.servers.connect([(0, 0), (1, 0)]);
    edge.mesh.servers.set(0, Manner::Fails { after: 1 });
    edge.mesh.servers.set(1, Manner::Fails { after: 1 });
    edge.lose("trades.a", 6..4000);
    edge.publish("trades.a", 4000..4001).await;
    assert_eq!(client.sequences(3995).await, Vec::from_iter(6..=4000));
    assert_eq!(edge.metric(GAPS_TOLD), 0.0);
    // As long as nobody gives everything, something may be missing.
    assert_eq!(edge.metric("streams_repairing"), 1.0);
    edge.mesh.servers.set(1, Manner::Serves);
    wait_until_repaired(&edge).await;
    edge.stop().await;
}

#[tokio::test]
async fn without_servers_a_hole_waits_for_one() {
    let (edge, mut client) = start().await;
    edge.mesh.servers.connect([]);
    edge.lose("trades.a", 2..3);
    edge.publish("trades.a", 3..4).await;
    wait_until("the hole is known", || edge.metric("streams_repairing") == 1.0).await;
    edge.mesh.servers.connect([(3, 9)]);
    assert_eq!(client.sequences(2).await, [2, 3]);
    assert_eq!(edge.mesh.servers.asked()[0], server(3));
    edge.stop().await;
}

#[tokio::test]
async fn a_frozen_server_is_left_for_another_one_and_asked_last() {
    let (edge, mut client) = start().await;
    edge.mesh.servers.connect([(0, 0), (1, 0)]);
    wait_until("the new server has been noticed", || edge.mesh.servers.asks() >= 1).await;
    wait_until_repaired(&edge).await;
    let first = edge.mesh.servers.asked()[0];
    edge.mesh.servers.set(first.0[0], Manner::Frozen);
    let before = edge.mesh.servers.asks();
    for hole in 0..3 {
        let lost = 2 + 2 * hole;
        edge.lose("trades.a", lost..lost + 1);
        edge.publish("trades.a", lost + 1..lost + 2).await;
        assert_eq!(client.sequences(2).await, [lost, lost + 1]);
    }
    let asked = edge.mesh.servers.asked();
    assert_eq!(asked[before..].iter().filter(|asked| **asked == first).count(), 1, "{asked:?}");
    edge.stop().await;
}

#[tokio::test]
async fn what_all_refuse_is_a_told_gap() {
    let (edge, mut client) = start().await;
    edge.mesh.servers.connect([(0, 0), (1, 0)]);
    for number in 0..2 {
        edge.mesh.servers.set(number, Manner::Begins { at: 6 });
    }
    edge.publish("trades.a", 2..4).await;
    edge.lose("trades.a", 4..8);
    edge.publish("trades.a", 8..9).await;
    assert_eq!(client.sequences(2).await, [2, 3]);
    let after_gap = client.next().await;
    assert_eq!((&after_gap["sequence"], &after_gap["previous"]), (&json!(6), &json!(5)));
    assert_eq!(client.sequences(2).await, [7, 8]);
    wait_until_repaired(&edge).await;
    assert_eq!((edge.metric(GAPS_TOLD), edge.metric(GAPS_REPAIRED)), (1.0, 0.0));
    edge.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_far_behind_catches_up() {
    let (edge, mut client) = start().await;
    edge.mesh.servers.open_gate(false);
    edge.lose("trades.a", 2..3);
    let last = MAX_HELD_EVENTS as u64 + 3000;
    for first in (3..last).step_by(500) {
        edge.publish("trades.a", first..last.min(first + 500)).await;
    }
    wait_until("it is catching up", || edge.metric("streams_catching_up") == 1.0).await;
    assert!(edge.metric(r#"events_dropped_total{reason="hold_full"}"#) > 0.0);
    edge.mesh.servers.open_gate(true);
    // While it does, the stream goes on.
    let (published, received) =
        tokio::join!(edge.publish("trades.a", last..last + 100), client.sequences(last as usize + 98));
    let () = published;
    assert_eq!(received, Vec::from_iter(2..last + 100));
    wait_until_repaired(&edge).await;
    assert_eq!(edge.metric("streams_catching_up"), 0.0);
    assert_eq!((edge.metric(GAPS_TOLD), edge.metric(GAPS_REPAIRED)), (0.0, 1.0));
    edge.stop().await;
}

#[tokio::test]
async fn a_head_message_reveals_a_lost_tail() {
    let (edge, mut client) = start().await;
    edge.lose("trades.a", 2..5);
    edge.claim("trades.a", position(4)).await;
    assert_eq!(client.sequences(3).await, [2, 3, 4]);
    wait_until_repaired(&edge).await;
    // What is known already, and streams that nobody has, cause nothing.
    let asks = edge.mesh.servers.asks();
    edge.claim("trades.a", position(4)).await;
    edge.claim("trades.a", position(3)).await;
    edge.claim("trades.nobody", position(3)).await;
    edge.publish("trades.a", 5..6).await;
    assert_eq!(client.sequences(1).await, [5]);
    assert_eq!((edge.metric("streams_repairing"), edge.mesh.servers.asks()), (0.0, asks));
    edge.stop().await;
}

#[tokio::test]
async fn a_claim_from_the_future_changes_nothing() {
    let (edge, mut client) = start().await;
    edge.claim("trades.a", position(MAX_SEQUENCE)).await;
    wait_until("it is looked for", || edge.mesh.servers.asks() >= 1).await;
    let mut next = 2;
    while edge.metric("streams_repairing") > 0.0 {
        edge.publish("trades.a", next..next + 1).await;
        assert_eq!(client.sequences(1).await, [next]);
        // A real hole meanwhile is mended as ever.
        edge.lose("trades.a", next + 1..next + 2);
        edge.publish("trades.a", next + 2..next + 3).await;
        assert_eq!(client.sequences(2).await, [next + 1, next + 2]);
        next += 3;
    }
    assert!(edge.mesh.servers.asks() as u64 <= next + 10);
    assert_eq!(edge.metric(GAPS_TOLD), 0.0);
    edge.stop().await;
}

#[tokio::test]
async fn what_was_missed_while_cut_off_is_found_when_a_server_comes_back() {
    let (edge, mut client) = start().await;
    client.subscribe(&["trades.a", "depth.b"]).await;
    edge.mesh.servers.connect([]);
    edge.lose("trades.a", 2..5);
    edge.lose("depth.b", 0..2);
    // The same peer by another connection, though the edge may never have seen it gone.
    edge.mesh.servers.connect([(0, 1)]);
    let mut seen = Vec::new();
    for _ in 0..5 {
        let event = client.next().await;
        seen.push((event["stream"].as_str().unwrap().to_owned(), event["sequence"].as_u64().unwrap()));
    }
    seen.sort_by(|(a, _), (b, _)| a.cmp(b));
    let expected = [("depth.b", 0), ("depth.b", 1), ("trades.a", 2), ("trades.a", 3), ("trades.a", 4)];
    assert_eq!(seen, expected.map(|(stream, sequence)| (stream.to_owned(), sequence)));
    wait_until_repaired(&edge).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_new_epoch_is_told_where_it_begins_even_if_its_first_event_was_lost() {
    let (edge, mut client) = start().await;
    edge.publish("trades.a", 2..3).await;
    edge.lose("trades.a", 3..4);
    let mut first = events(2, "trades.a", 0..1, |_| "0".into());
    first[0].previous = Previous::Reset { after: position(3) };
    edge.log(first);
    let second: Vec<Event> = edge.log(events(2, "trades.a", 1..2, |_| "1".into()));
    edge.send(second, Vec::new()).await;
    assert_eq!(client.sequences(2).await, [2, 3]);
    let reset = json!({"event": "reset", "stream": "trades.a", "epoch": "0000000000000002"});
    assert_eq!(client.next().await, reset);
    assert_eq!(client.sequences(2).await, [0, 1]);
    // Late ones of the old epoch are dropped, and claims of it as well.
    edge.publish("trades.a", 4..5).await;
    edge.claim("trades.a", position(9)).await;
    edge.claim("trades.a", position_in(2, 1)).await;
    edge.send(edge.log(events(2, "trades.a", 2..3, |_| "2".into())), Vec::new()).await;
    assert_eq!(client.sequences(1).await, [2]);
    assert_eq!(edge.metric("streams_repairing"), 0.0);
    edge.stop().await;
}

#[tokio::test]
async fn pages_of_a_stream_that_was_left_reach_nobody() {
    let (edge, mut client) = start().await;
    edge.mesh.servers.open_gate(false);
    edge.lose("trades.a", 2..3);
    edge.publish("trades.a", 3..4).await;
    wait_until("a feed is open", || edge.mesh.servers.open_feeds().0 == 1).await;
    client.send(json!({"action": "unsubscribe", "streams": ["trades.a"]})).await;
    assert_eq!(client.next().await["event"], "unsubscribed");
    // Still joined: what it brings now moves the stream, and nobody is told.
    edge.mesh.servers.open_gate(true);
    wait_until_repaired(&edge).await;
    edge.mesh.servers.open_gate(false);
    edge.lose("trades.a", 4..5);
    edge.publish("trades.a", 5..6).await;
    wait_until("the topic is left, and with it the feed", || {
        edge.mesh.joined() == 0 && edge.mesh.servers.open_feeds().0 == 0
    })
    .await;
    assert_eq!(edge.metric("streams_repairing"), 0.0);
    // Whoever comes later begins at the head, whatever an old feed brings.
    edge.mesh.set_head("trades.a", Head::At(position(5)));
    let confirmed = client.subscribe(&["trades.a"]).await;
    assert_eq!(confirmed["positions"]["trades.a"]["sequence"], 5);
    edge.mesh.servers.open_gate(true);
    edge.publish("trades.a", 6..7).await;
    assert_eq!(client.sequences(1).await, [6]);
    edge.stop().await;
}

#[tokio::test]
async fn a_subscriber_of_a_stream_under_repair_begins_where_it_stands() {
    let (edge, mut client) = start().await;
    edge.mesh.servers.open_gate(false);
    edge.lose("trades.a", 2..4);
    edge.publish("trades.a", 4..5).await;
    wait_until("a feed is open", || edge.mesh.servers.open_feeds().0 == 1).await;
    let mut second = edge.connect().await;
    let confirmed = second.subscribe(&["trades.a"]).await;
    assert_eq!(confirmed["positions"]["trades.a"]["sequence"], 1);
    edge.mesh.servers.open_gate(true);
    for client in [&mut client, &mut second] {
        assert_eq!(client.sequences(3).await, [2, 3, 4]);
    }
    edge.stop().await;
}

#[tokio::test]
async fn what_could_not_be_held_while_joining_is_fetched() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    let held = edge.mesh.hold_answers();
    client.send(json!({"action": "subscribe", "streams": ["trades.a"]})).await;
    edge.mesh.wait_for_questions(1).await;
    let last = MAX_HELD_EVENTS as u64 + 500;
    edge.publish("trades.a", 1..last).await;
    wait_until("the batches are taken", || edge.all_batches_taken()).await;
    edge.mesh.set_head("trades.a", Head::At(position(3)));
    drop(held);
    assert_eq!(client.next().await["positions"]["trades.a"]["sequence"], 3);
    assert_eq!(client.sequences(last as usize - 4).await, Vec::from_iter(4..last));
    assert!(edge.metric(r#"events_dropped_total{reason="join_full"}"#) > 0.0);
    edge.stop().await;
}

#[tokio::test]
async fn a_stop_ends_open_fetches() {
    let (edge, _client) = start().await;
    edge.mesh.servers.open_gate(false);
    edge.lose("trades.a", 2..3);
    edge.publish("trades.a", 3..4).await;
    wait_until("a feed is open", || edge.mesh.servers.open_feeds().0 == 1).await;
    let servers = std::sync::Arc::clone(&edge.mesh.servers);
    edge.stop().await;
    wait_until("the feed is closed", || servers.open_feeds().0 == 0).await;
}
