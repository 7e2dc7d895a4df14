//! After a long outage everything must be fetched at once: what is live goes on, and clients that read are not slow.

use std::collections::HashMap;

use tickmesh::edge::{Bounds, Config};
use tickmesh_protocol::head::Head;

use super::support::{Edge, config, events, position, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_catch_up_while_others_go_on() {
    const STREAMS: usize = 1000;
    const MISSED: u64 = 100;
    const LIVE: u64 = 300;
    let edge = Edge::start(config()).await;
    let mut client = edge.connect().await;
    let names: Vec<_> = (0..STREAMS).map(|number| format!("trades.s{number}")).collect();
    for name in &names {
        edge.lose(name, 1..2);
        edge.mesh.set_head(name, Head::At(position(1)));
    }
    client.subscribe(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut live = edge.connect().await;
    live.subscribe(&["ticker.global"]).await;
    edge.mesh.servers.connect([]);
    for name in &names {
        edge.lose(name, 2..MISSED + 2);
    }
    edge.mesh.servers.connect([(0, 1)]);
    let catching_up = async {
        let mut last: HashMap<String, u64> = HashMap::new();
        for _ in 0..STREAMS as u64 * MISSED {
            let event = client.next().await;
            let last = last.entry(event["stream"].as_str().unwrap().to_owned()).or_insert(1);
            assert_eq!(event["sequence"], *last + 1, "{event}");
            *last += 1;
        }
        assert!(last.len() == STREAMS && last.values().all(|last| *last == MISSED + 1));
    };
    let going_on = async {
        for number in 1..=LIVE {
            edge.publish("ticker.global", number..number + 1).await;
            assert_eq!(live.sequences(1).await, [number]);
        }
    };
    tokio::join!(catching_up, going_on);
    wait_until("nothing is being repaired", || edge.metric("streams_repairing") == 0.0).await;
    let (_, most) = edge.mesh.servers.open_feeds();
    assert!((2..=16).contains(&most), "{most} fetches at a time");
    assert_eq!(edge.metric("events_refetched_total"), (STREAMS as u64 * MISSED) as f64);
    assert_eq!(edge.metric(r#"events_dropped_total{reason="shard_full"}"#), 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_is_not_made_slow_by_what_is_fetched() {
    /// Some 10 MB, in much less time than the client reads them.
    const MISSED: u64 = 5000;
    let queue = Bounds { frames: 64, bytes: 64 * 1024 };
    let edge = Edge::start(Config { queue, shards: 1, ..config() }).await;
    let mut client = edge.connect_with_small_buffers().await;
    edge.lose("trades.a", 1..2);
    edge.mesh.set_head("trades.a", Head::At(position(1)));
    client.subscribe(&["trades.a"]).await;
    edge.log(events(1, "trades.a", 2..MISSED + 2, |_| format!("\"{}\"", "x".repeat(2000))));
    edge.claim("trades.a", position(MISSED + 1)).await;
    assert_eq!(client.sequences(MISSED as usize).await, Vec::from_iter(2..MISSED + 2));
    assert_eq!(edge.metric("slow_client_disconnects_total"), 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_does_not_hold_up_the_others() {
    /// Some 12 MB: more than the kernel takes for one that does not read.
    const MISSED: u64 = 3000;
    let edge = Edge::start(Config { shards: 1, ..config() }).await;
    let mut stuck = edge.connect_with_small_buffers().await;
    let mut client = edge.connect().await;
    edge.lose("trades.a", 1..2);
    edge.mesh.set_head("trades.a", Head::At(position(1)));
    stuck.subscribe(&["trades.a"]).await;
    client.subscribe(&["trades.a"]).await;
    edge.log(events(1, "trades.a", 2..MISSED + 2, |_| format!("\"{}\"", "x".repeat(4000))));
    edge.claim("trades.a", position(MISSED + 1)).await;
    assert_eq!(client.sequences(MISSED as usize).await, Vec::from_iter(2..MISSED + 2));
    assert_eq!(stuck.close_code(true).await, 4408);
    edge.stop().await;
}
