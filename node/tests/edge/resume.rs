//! Clients that come back get what they have missed, each event once, and then what is new.

use std::time::Duration;

use serde_json::{Value, json};
use tickmesh::edge::{Config, ResumeLimits};
use tickmesh_protocol::{Event, Previous, StreamName, head::Head, position::MAX_SEQUENCE};
use tokio::task::JoinSet;

use super::{
    servers::Manner,
    support::{Client, Edge, config, events, position, position_in, wait_until},
};

const STREAM: &str = "trades.a";

/// An edge whose stream stands at a number, as does the log of its servers.
async fn edge_at(head: u64, config: Config) -> Edge {
    let edge = Edge::start(config).await;
    edge.lose(STREAM, 1..head + 1);
    edge.mesh.set_head(STREAM, Head::At(position(head)));
    edge
}

fn at(sequence: u64) -> Value {
    json!({"epoch": "0000000000000001", "sequence": sequence})
}

impl Client {
    async fn resume(&mut self, positions: Value) {
        self.send(json!({"action": "resume", "positions": positions})).await;
    }

    /// Events up to the answer of a resume request, and the answer.
    async fn resumed(&mut self) -> (Vec<u64>, Value) {
        let mut sequences = Vec::new();
        loop {
            let message = self.next().await;
            match message["sequence"].as_u64() {
                Some(sequence) => sequences.push(sequence),
                None if message["event"] == "resumed" => return (sequences, message),
                None => panic!("{message} instead of an event or resumed"),
            }
        }
    }
}

#[tokio::test]
async fn recent_events_are_replayed_without_asking_anybody() {
    let edge = edge_at(1, config()).await;
    let mut here = edge.connect().await;
    here.subscribe(&[STREAM]).await;
    edge.publish(STREAM, 2..11).await;
    here.sequences(9).await;
    let mut back = edge.connect().await;
    back.send(json!({"action": "resume", "id": 7, "positions": {STREAM: at(4)}})).await;
    let (missed, answer) = back.resumed().await;
    assert_eq!(missed, Vec::from_iter(5..=10));
    let resumed = json!([{"stream": STREAM, "from": at(4), "replayed": 6}]);
    assert_eq!(
        answer,
        json!({"event": "resumed", "id": 7, "streams": resumed, "positions": {}, "rejected": []})
    );
    edge.publish(STREAM, 11..13).await;
    assert_eq!(back.sequences(2).await, [11, 12]);
    assert_eq!(here.sequences(2).await, [11, 12]);
    assert_eq!(edge.mesh.servers.asks(), 0);
    assert_eq!(edge.metric("events_replayed_total"), 6.0);
    assert_eq!(edge.metric(r#"streams_resumed_total{complete="yes"}"#), 1.0);
    // A client that has missed nothing is told just that.
    let mut current = edge.connect().await;
    current.resume(json!({STREAM: 12})).await;
    let (missed, answer) = current.resumed().await;
    assert_eq!((missed, &answer["streams"][0]["replayed"]), (vec![], &json!(0)));
    edge.publish(STREAM, 13..14).await;
    assert_eq!(current.sequences(1).await, [13]);
    edge.stop().await;
}

#[tokio::test]
async fn older_events_come_from_a_server_page_by_page() {
    let edge = edge_at(5000, config()).await;
    let mut client = edge.connect().await;
    client.send(json!({"action": "resume", "streams": [STREAM], "lastSequence": 100})).await;
    wait_until("the stream is joined", || edge.metric("subscriptions") == 1.0).await;
    // Meanwhile the stream goes on.
    edge.publish(STREAM, 5001..5200).await;
    let (mut missed, answer) = client.resumed().await;
    assert_eq!(answer["rejected"], json!([]));
    missed.extend(client.sequences(5199 - 100 - missed.len()).await);
    assert_eq!(missed, Vec::from_iter(101..5200));
    edge.stop().await;
}

#[tokio::test]
async fn a_storm_of_clients_is_served_by_a_few_fetches() {
    const CLIENTS: u64 = 200;
    let edge = edge_at(3000, config()).await;
    edge.mesh.servers.open_gate(false);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = edge.connect().await;
        client.resume(json!({STREAM: at(2500 + number)})).await;
        clients.push((2500 + number, client));
    }
    wait_until("a server was asked", || edge.mesh.servers.asks() > 0).await;
    edge.mesh.servers.open_gate(true);
    let mut reading = JoinSet::new();
    for (from, mut client) in clients {
        reading.spawn(async move {
            let (mut missed, _) = client.resumed().await;
            missed.extend(client.sequences((3100 - from) as usize - missed.len()).await);
            assert_eq!(missed, Vec::from_iter(from + 1..=3100));
        });
    }
    edge.publish(STREAM, 3001..3101).await;
    while let Some(read) = reading.join_next().await {
        read.unwrap();
    }
    let asks = edge.mesh.servers.asks();
    assert!(asks < 40, "{asks} fetches for {CLIENTS} clients");
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_is_ahead_of_this_edge_gets_nothing_twice() {
    let edge = edge_at(10, config()).await;
    let mut here = edge.connect().await;
    here.subscribe(&[STREAM]).await;
    // The servers are further than this edge has heard.
    let late = edge.lose(STREAM, 11..18);
    let mut ahead = edge.connect().await;
    ahead.resume(json!({STREAM: at(15)})).await;
    wait_until("a server was asked", || edge.mesh.servers.asks() > 0).await;
    edge.send(late, Vec::new()).await;
    let (mut got, answer) = ahead.resumed().await;
    assert_eq!(answer["rejected"], json!([]));
    got.extend(ahead.sequences(2 - got.len()).await);
    assert_eq!(got, [16, 17]);
    edge.publish(STREAM, 18..20).await;
    assert_eq!(ahead.sequences(2).await, [18, 19]);
    edge.stop().await;
}

#[tokio::test]
async fn what_cannot_be_resumed_is_told_before_the_stream_goes_on() {
    let edge = edge_at(1000, config()).await;
    let cases = [
        (at(100), "resume_gap", "what follows the position is no longer kept", at(500)),
        (at(5000), "resume_gap", "the position is beyond the newest event", Value::Null),
        (json!(MAX_SEQUENCE), "resume_gap", "the position is beyond the newest event", Value::Null),
        (
            json!({"epoch": "00000000000000ff", "sequence": 100}),
            "epoch_changed",
            "what follows the position is no longer kept",
            at(500),
        ),
    ];
    for (next, (position, code, message, oldest)) in (1001..).zip(cases) {
        let begins = if oldest.is_null() { Manner::Serves } else { Manner::Begins { at: 500 } };
        edge.mesh.servers.set(0, begins);
        let mut client = edge.connect().await;
        client.resume(json!({STREAM: position})).await;
        let (missed, answer) = client.resumed().await;
        assert_eq!(missed, Vec::<u64>::new(), "{position}");
        let rejection = &answer["rejected"][0];
        assert_eq!((&rejection["code"], &rejection["message"]), (&json!(code), &json!(message)), "{answer}");
        assert_eq!(rejection["oldest"], oldest, "{answer}");
        assert_eq!(answer["positions"], json!({STREAM: at(next - 1)}), "{answer}");
        edge.publish(STREAM, next..next + 1).await;
        assert_eq!(client.sequences(1).await, [next]);
    }
    assert_eq!(edge.metric(r#"streams_resumed_total{complete="no"}"#), 4.0);
    // Others of the same request are not held up.
    edge.mesh.servers.set(0, Manner::Begins { at: 5 });
    edge.lose("trades.b", 1..10);
    edge.mesh.set_head("trades.b", Head::At(position(9)));
    let mut client = edge.connect().await;
    client.resume(json!({STREAM: at(2), "trades.b": at(6), "no.STREAM": 3})).await;
    let (missed, answer) = client.resumed().await;
    assert_eq!(missed, [7, 8, 9]);
    assert_eq!(answer["streams"][0]["stream"], "trades.b");
    let codes: Vec<_> =
        answer["rejected"].as_array().unwrap().iter().map(|rejection| &rejection["code"]).collect();
    assert_eq!(codes, ["unknown_stream", "resume_gap"]);
    edge.stop().await;
}

#[tokio::test]
async fn too_many_or_too_old_events_are_not_replayed() {
    let resume = ResumeLimits { events: 200, ..ResumeLimits::default() };
    let edge = edge_at(1000, Config { resume, ..config() }).await;
    let mut client = edge.connect().await;
    client.resume(json!({STREAM: at(900)})).await;
    assert_eq!(client.resumed().await.0, Vec::from_iter(901..=1000));
    let mut client = edge.connect().await;
    client.resume(json!({STREAM: at(10)})).await;
    let (missed, answer) = client.resumed().await;
    assert_eq!(missed, Vec::from_iter(11..11 + missed.len() as u64), "what is given is without a hole");
    assert!(missed.len() < 500, "{}", missed.len());
    assert_eq!(answer["rejected"][0]["message"], "more events were missed than are replayed");
    edge.stop().await;

    let resume = ResumeLimits { age: Duration::from_millis(1), ..ResumeLimits::default() };
    let edge = edge_at(10, Config { resume, ..config() }).await;
    let mut client = edge.connect().await;
    client.ping().await;
    client.resume(json!({STREAM: at(5)})).await;
    let (_, answer) = client.resumed().await;
    assert_eq!(answer["rejected"][0]["message"], "what was missed is older than what is replayed");
    assert_eq!(answer["rejected"][0]["oldest"], at(6));
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_everything_and_holds_up_nobody() {
    const EVENTS: u64 = 3000;
    let edge = edge_at(1, config()).await;
    edge.log(events(1, STREAM, 2..EVENTS + 1, |_| format!("\"{}\"", "x".repeat(2000))));
    edge.mesh.set_head(STREAM, Head::At(position(EVENTS)));
    let mut slow = edge.connect_with_small_buffers().await;
    slow.resume(json!({STREAM: at(1)})).await;
    let mut quick = edge.connect().await;
    quick.resume(json!({STREAM: at(1)})).await;
    let (missed, _) = quick.resumed().await;
    assert_eq!(missed, Vec::from_iter(2..=EVENTS));
    // What waits for the slow one is a part of its queue.
    wait_until("the gauge is up to date", || edge.metric("client_queue_frames") > 0.0).await;
    assert!(edge.metric("client_queue_frames") <= 128.0);
    edge.publish(STREAM, EVENTS + 1..EVENTS + 2).await;
    assert_eq!(quick.sequences(1).await, [EVENTS + 1]);
    let (mut missed, _) = slow.resumed().await;
    missed.extend(slow.sequences(EVENTS as usize - missed.len()).await);
    assert_eq!(missed, Vec::from_iter(2..=EVENTS + 1));
    assert_eq!(edge.metric("slow_client_disconnects_total"), 0.0);
    edge.stop().await;
}

#[tokio::test]
async fn a_stream_that_was_empty_is_resumed_from_its_first_event() {
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    assert_eq!(client.subscribe(&[STREAM]).await["positions"], json!({}));
    edge.publish(STREAM, 1..4).await;
    let mut back = edge.connect().await;
    back.resume(json!({STREAM: null})).await;
    assert_eq!(back.resumed().await.0, [1, 2, 3]);
    // Its first event is not the first that there ever was.
    edge.lose("trades.b", 1..10);
    edge.mesh.set_head("trades.b", Head::At(position(9)));
    edge.mesh.servers.set(0, Manner::Begins { at: 5 });
    back.resume(json!({"trades.b": null})).await;
    let (missed, answer) = back.resumed().await;
    assert_eq!((missed, &answer["rejected"][0]["oldest"]), (vec![], &at(5)));
    edge.stop().await;
}

#[tokio::test]
async fn epochs_are_crossed_with_a_reset() {
    let edge = edge_at(5, config()).await;
    let name: StreamName = STREAM.parse().unwrap();
    let mut second = events(2, STREAM, 0..3, |_| "{}".into());
    second[0] = Event { previous: Previous::Reset { after: position(5) }, ..second[0].clone() };
    let mut here = edge.connect().await;
    here.subscribe(&[STREAM]).await;
    edge.send(edge.log(second), Vec::new()).await;
    assert_eq!(here.next().await["event"], "reset");
    here.sequences(3).await;
    for from_server in [false, true] {
        // Of recent events for one, of a server for the other: nobody here had the stream before.
        let other = Edge::start(config()).await;
        let edge = if from_server { &other } else { &edge };
        if from_server {
            other.lose(STREAM, 1..6);
            let mut second = events(2, STREAM, 0..3, |_| "{}".into());
            second[0] = Event { previous: Previous::Reset { after: position(5) }, ..second[0].clone() };
            other.log(second);
            other.mesh.set_head(STREAM, Head::At(position_in(2, 2)));
        }
        let mut back = edge.connect().await;
        back.resume(json!({STREAM: at(if from_server { 3 } else { 5 })})).await;
        if from_server {
            assert_eq!(back.sequences(2).await, [4, 5]);
        }
        let reset = back.next().await;
        assert_eq!(reset, json!({"event": "reset", "stream": name, "epoch": "0000000000000002"}));
        assert_eq!(back.resumed().await.0, [0, 1, 2]);
        if from_server {
            other.stop().await;
            break;
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_and_the_connection_lives() {
    let edge = edge_at(5, config()).await;
    edge.lose("trades.b", 1..4);
    edge.mesh.set_head("trades.b", Head::At(position_in(9, 3)));
    let mut client = edge.connect().await;
    for position in [json!(-1), json!(1.5), json!(1_u64 << 60), json!("7"), json!({"epoch": "1"})] {
        client.resume(json!({STREAM: position})).await;
        assert_eq!(client.next().await["code"], "bad_request");
    }
    client.send(json!({"action": "resume", "streams": [STREAM, "trades.b"], "lastSequence": 2})).await;
    let (_, answer) = client.resumed().await;
    assert_eq!(answer["rejected"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(answer["rejected"][0]["code"], "bad_request");
    assert_eq!(edge.metric("subscriptions"), 0.0);
    client.subscribe(&[STREAM]).await;
    client.resume(json!({STREAM: 2})).await;
    let (missed, answer) = client.resumed().await;
    assert_eq!((missed, &answer["rejected"][0]["code"]), (vec![], &json!("bad_request")));
    assert_eq!(edge.metric("subscriptions"), 1.0);
    edge.publish(STREAM, 6..7).await;
    assert_eq!(client.sequences(1).await, [6]);
    edge.stop().await;
}

#[tokio::test]
async fn a_client_may_give_up_or_go_away_in_the_middle() {
    let edge = edge_at(1000, config()).await;
    edge.mesh.servers.open_gate(false);
    let mut client = edge.connect().await;
    let mut gone = edge.connect().await;
    gone.resume(json!({STREAM: 10})).await;
    client.resume(json!({STREAM: 10})).await;
    wait_until("both wait", || edge.metric("subscriptions") == 2.0).await;
    drop(gone);
    client.send(json!({"action": "streams"})).await;
    let streams = client.next().await;
    assert_eq!(streams["positions"], json!({STREAM: at(10)}), "where the client is, not the edge");
    client.send(json!({"action": "unsubscribe", "streams": [STREAM]})).await;
    let (_, answer) = client.resumed().await;
    assert_eq!((&answer["streams"], &answer["rejected"]), (&json!([]), &json!([])));
    assert_eq!(client.next().await["positions"], json!({STREAM: at(10)}));
    wait_until("nobody is subscribed", || edge.metric("subscriptions") == 0.0).await;
    // The answer to what was asked before must not be taken for the answer to this.
    edge.mesh.servers.open_gate(true);
    client.resume(json!({STREAM: 990})).await;
    assert_eq!(client.resumed().await.0, Vec::from_iter(991..=1000));
    edge.stop().await;
}
