//! Feeds between real nodes: what is served, to whom, in what order, and what happens to those who do not behave.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use tickmesh::mesh::{
    FeedError, FeedReader, Role,
    feeds::{MAX_ASKED_FEEDS, MAX_LIVE_FEEDS},
};
use tickmesh_protocol::{
    Position, PublisherKey, Sequence, StreamName, Topic,
    feed::{FeedEnd, FeedFrame, FeedRequest, SourceStatus, Status},
};

use super::cluster::{Network, Node, epoch, stream, wait_until, within};

pub fn at(sequence: u64) -> Position {
    Position { epoch: epoch(), sequence: Sequence::new(sequence).unwrap() }
}

pub fn request(name: &str, after: Option<u64>, live: bool) -> FeedRequest {
    let stream = stream(name);
    FeedRequest::Streams { topic: Topic::spanning(&stream), after: vec![(stream, after.map(at))], live }
}

/// A publisher and an edge that is connected to it.
pub async fn pair(network: &Network) -> (Node, Node) {
    let publisher = network.publisher(0, &[]).await;
    let edge = network.edge(&[publisher.address()]).await;
    edge.connected_to_publishers(1).await;
    (publisher, edge)
}

pub async fn ask(node: &Node, publisher: PublisherKey, request: FeedRequest) -> FeedReader {
    within("a feed", node.mesh.feed(publisher, request)).await.unwrap()
}

/// Everything up to the end of a feed: stream and sequence of each event, and the end.
pub async fn read_all(reader: &mut FeedReader) -> (Vec<(StreamName, u64)>, Vec<(StreamName, FeedEnd)>) {
    let mut events = Vec::new();
    loop {
        match within("the end of a feed", reader.next()).await.unwrap() {
            Some(FeedFrame::Page(page)) => {
                let of = page.batch().events.iter();
                events.extend(of.map(|event| (event.stream.clone(), event.sequence.get())));
            }
            Some(FeedFrame::End { streams }) => {
                assert!(within("nothing", reader.next()).await.unwrap().is_none(), "a frame after the last");
                break (events, streams);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_served_in_order_and_complete_by_others_and_by_oneself() {
    let network = Network::new(1);
    let (publisher, edge) = pair(&network).await;
    let key = publisher.identity.publisher();
    let btc = stream("trades.btc_usdt");
    // Several pages.
    publisher.store.add(&btc, 3000, 200);
    for node in [&edge, &publisher] {
        let mut reader = ask(node, key, request("trades.btc_usdt", Some(7), false)).await;
        let (events, end) = read_all(&mut reader).await;
        assert_eq!(events, (8..3000).map(|number| (btc.clone(), number)).collect::<Vec<_>>());
        assert_eq!(end, vec![(btc.clone(), FeedEnd::Complete { head: Some(at(2999)) })]);
        assert!(node.metric("feed_pages_total{direction=\"received\"}") > 1);
    }
    assert_eq!(publisher.metric("feed_requests_total{kind=\"streams\",outcome=\"served\"}"), 2);
    // Nobody knows an event of this one.
    let (events, end) = read_all(&mut ask(&edge, key, request("trades.eth_usdt", None, false)).await).await;
    assert_eq!((events, end), (vec![], vec![(stream("trades.eth_usdt"), FeedEnd::Complete { head: None })]));
    // What is gone is refused, and a position from the future is just the head.
    publisher.store.trim(&btc, 10);
    let (events, end) =
        read_all(&mut ask(&edge, key, request("trades.btc_usdt", Some(7), false)).await).await;
    assert_eq!((events, end), (vec![], vec![(btc.clone(), FeedEnd::Refused { oldest: Some(at(2990)) })]));
    let (events, end) =
        read_all(&mut ask(&edge, key, request("trades.btc_usdt", Some(9000), false)).await).await;
    assert_eq!((events, end), (vec![], vec![(btc, FeedEnd::Complete { head: Some(at(2999)) })]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_served_with_all_its_streams() {
    let network = Network::new(1);
    let (publisher, edge) = pair(&network).await;
    let names = ["candles.btc_usdt@1m", "candles.btc_usdt@5m", "candles.btc_usdt@1h"].map(stream);
    for name in &names {
        publisher.store.add(name, 100, 100);
    }
    let request = FeedRequest::Topic {
        topic: Topic::spanning(&names[0]),
        after: vec![(names[1].clone(), at(89))],
        live: false,
    };
    let (mut events, end) = read_all(&mut ask(&edge, publisher.identity.publisher(), request).await).await;
    assert_eq!(end, vec![(names[1].clone(), FeedEnd::Complete { head: Some(at(99)) })]);
    events.sort();
    let mut expected: Vec<_> = [(0, 0), (1, 90), (2, 0)]
        .iter()
        .flat_map(|&(name, from): &(usize, u64)| (from..100).map(move |number| (name, number)))
        .map(|(name, number)| (names[name].clone(), number))
        .collect();
    expected.sort();
    assert_eq!(events, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_feed_goes_on_and_tells_what_is_refused() {
    let network = Network::new(1);
    let (publisher, edge) = pair(&network).await;
    let names = ["candles.btc_usdt@1m", "candles.btc_usdt@5m"].map(stream);
    for name in &names {
        publisher.store.add(name, 10, 100);
    }
    publisher.store.trim(&names[1], 2);
    let after = names.iter().map(|name| (name.clone(), Some(at(5)))).collect();
    let request = FeedRequest::Streams { topic: Topic::spanning(&names[0]), after, live: true };
    let mut reader = ask(&edge, publisher.identity.publisher(), request).await;
    let mut next = 6;
    let mut refused = Vec::new();
    while next < 110 {
        match within("a frame of a live feed", reader.next()).await.unwrap().unwrap() {
            FeedFrame::Page(page) => {
                for event in &page.batch().events {
                    assert_eq!((&event.stream, event.sequence.get()), (&names[0], next));
                    next += 1;
                    // Each event begets the next.
                    if (10..110).contains(&next) {
                        publisher.store.add(&names[0], 1, 100);
                    }
                }
            }
            FeedFrame::End { streams } => refused.extend(streams),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, vec![(names[1].clone(), FeedEnd::Refused { oldest: Some(at(8)) })]);
    assert_eq!(publisher.metric("feeds_open{direction=\"served\"}"), 1);
    drop(reader);
    wait_until("the server to hear that the reader is gone", || {
        publisher.metric("feeds_open{direction=\"served\"}") == 0
    })
    .await;
    assert_eq!(publisher.metric("feed_requests_total{kind=\"streams\",outcome=\"gone\"}"), 1);
    assert_eq!(edge.metric("feeds_open{direction=\"received\"}"), 0);
}

fn status(boot: u64, warm: bool) -> Status {
    let source = SourceStatus { name: "engine".into(), warm, lag: 7 };
    Status { boot, region: "eu-west".into(), sources: vec![source], lag_us: 120 }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_hear_what_the_others_say_of_themselves() {
    let network = Network::new(2);
    let first = network.publisher(0, &[]).await;
    let second = network.publisher(1, &[first.address()]).await;
    let key = second.identity.publisher();
    let heard = |what: Status| first.ingest.heard(|heard| heard.statuses.last() == Some(&(key, what)));
    second.store.status.send_replace(status(1, false));
    wait_until("the first status", || heard(status(1, false))).await;
    second.store.status.send_replace(status(1, true));
    wait_until("the changed status", || heard(status(1, true))).await;
    // Said again and again, although nothing changes.
    let count = || first.ingest.heard(|heard| heard.statuses.len());
    let before = count();
    wait_until("the same status again", || count() > before + 1).await;
    second.stop().await;
    first.connected_to_publishers(0).await;
    let second = network.publisher(1, &[first.address()]).await;
    second.store.status.send_replace(status(2, true));
    wait_until("the status after a restart", || heard(status(2, true))).await;
    // Never outside of a connection, never that of an earlier one.
    first.ingest.heard(|heard| {
        assert_eq!(heard.publishers, vec![(key, true), (key, false), (key, true)]);
        assert!(heard.at_statuses.iter().all(|publishers| publishers % 2 == 1), "{:?}", heard.at_statuses);
        for ((_, status), publishers) in heard.statuses.iter().zip(&heard.at_statuses) {
            assert!(*publishers == 3 || status.boot < 2, "{status:?}");
            assert!(*publishers == 1 || status.boot != 1, "{status:?}");
        }
    });
    second.ingest.heard(|heard| {
        assert!(heard.statuses.iter().all(|(of, _)| *of == network.publishers[0].publisher()))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn only_publishers_are_told_status_and_state() {
    let network = Network::new(2);
    let (first, edge) = pair(&network).await;
    let second = network.publisher(1, &[first.address()]).await;
    second.connected_to_publishers(1).await;
    let key = first.identity.publisher();
    let state: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    first.store.set_state("engine", Bytes::from(state.clone()));
    first.store.set_state("empty", Bytes::new());
    let of = |source: &str| FeedRequest::State { source: source.into() };
    for (source, expected) in [("engine", state), ("empty", vec![])] {
        let mut reader = ask(&second, key, of(source)).await;
        let (mut got, mut ended) = (Vec::new(), false);
        while let Some(frame) = within("the state", reader.next()).await.unwrap() {
            let FeedFrame::State { chunk, last } = frame else { panic!("{frame:?}") };
            assert!(!ended);
            got.extend_from_slice(&chunk);
            ended = last;
        }
        assert!(ended && got == expected, "{source}: {} bytes", got.len());
    }
    for (node, request) in [(&second, of("other")), (&edge, of("engine")), (&edge, FeedRequest::Status)] {
        let refused = within("a refusal", ask(node, key, request).await.next()).await;
        assert!(matches!(refused, Err(FeedError::Refused(_))), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_waits_for_the_log_while_others_are_served() {
    for waits in [false, true] {
        let mut network = Network::new(1);
        network.feeds.keep_alive = Duration::from_millis(50);
        network.feeds.idle = Duration::from_secs(2);
        let (publisher, edge) = pair(&network).await;
        let key = publisher.identity.publisher();
        let [btc, eth] = ["trades.btc_usdt", "trades.eth_usdt"].map(stream);
        publisher.store.add(&btc, 10, 100);
        publisher.store.add(&eth, 10, 100);
        publisher.store.read_log(&Topic::spanning(&btc), waits);
        let mut readers = Vec::new();
        // More than may prepare a page at a time.
        for _ in 0..8 {
            let mut reader = ask(&edge, key, request("trades.btc_usdt", None, false)).await;
            readers.push(tokio::spawn(async move { read_all(&mut reader).await.0.len() }));
        }
        wait_until("all to be waiting", || publisher.store.calls.load(Ordering::SeqCst) >= 8).await;
        let (events, _) = read_all(&mut ask(&edge, key, request("trades.eth_usdt", None, false)).await).await;
        assert_eq!(events.len(), 10, "another topic is served meanwhile");
        // The readers are told that the server is at it for longer than they would wait for a dead one: a frame of two
        // bytes each time.
        let heard = || edge.metric("feed_bytes_total{direction=\"received\"}");
        let before = heard();
        wait_until("signs of life", || heard() > before + 8 * 2 * 50).await;
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        publisher.store.log_is_read(&Topic::spanning(&btc));
        for reader in readers {
            assert_eq!(within("a page from the log", reader).await.unwrap(), 10);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_never_read_and_a_private_topic_are_refused() {
    let mut network = Network::new(1);
    network.feeds.patience = Duration::from_millis(100);
    let (publisher, edge) = pair(&network).await;
    let key = publisher.identity.publisher();
    for waits in [false, true] {
        publisher.store.read_log(&Topic::spanning(&stream("trades.btc_usdt")), waits);
        let mut reader = ask(&edge, key, request("trades.btc_usdt", None, false)).await;
        let refused = within("a refusal", reader.next()).await;
        assert!(
            matches!(&refused, Err(FeedError::Refused(reason)) if reason.contains("nothing to serve")),
            "{refused:?}"
        );
        assert!(within("nothing more", reader.next()).await.unwrap().is_none());
    }
    let refused =
        within("a refusal", ask(&edge, key, request("orders.alice", None, true)).await.next()).await;
    assert!(
        matches!(&refused, Err(FeedError::Refused(reason)) if reason == "the streams are private"),
        "{refused:?}"
    );
    assert_eq!(edge.metric("feed_asked_total{kind=\"streams\",outcome=\"refused\"}"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_feeds_than_may_be_open_wait_for_one_another() {
    let network = Network::new(1);
    let (publisher, edge) = pair(&network).await;
    publisher.store.add(&stream("trades.btc_usdt"), 20, 100);
    let mut tasks = Vec::new();
    for _ in 0..5 * MAX_ASKED_FEEDS {
        let (mesh, key) = (edge.mesh.clone(), publisher.identity.publisher());
        tasks.push(tokio::spawn(async move {
            let mut reader = mesh.feed(key, request("trades.btc_usdt", Some(3), false)).await.unwrap();
            read_all(&mut reader).await.0.len()
        }));
    }
    for task in tasks {
        assert_eq!(within("a feed in its turn", task).await.unwrap(), 16);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn live_feeds_of_a_node_are_bounded_and_leave_room_for_ranges() {
    let network = Network::new(1);
    let (publisher, edge) = pair(&network).await;
    let key = publisher.identity.publisher();
    publisher.store.add(&stream("trades.btc_usdt"), 20, 100);
    let mut live = Vec::new();
    for _ in 0..MAX_LIVE_FEEDS {
        live.push(ask(&edge, key, request("trades.btc_usdt", None, true)).await);
    }
    let more = edge.mesh.feed(key, request("trades.btc_usdt", None, true)).await;
    assert!(matches!(more, Err(FeedError::TooManyLive)), "{more:?}");
    let (events, _) = read_all(&mut ask(&edge, key, request("trades.btc_usdt", None, false)).await).await;
    assert_eq!(events.len(), 20);
    for reader in &mut live {
        assert!(matches!(within("a page", reader.next()).await, Ok(Some(FeedFrame::Page(_)))));
    }
    live.pop();
    ask(&edge, key, request("trades.btc_usdt", None, true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_gets_on_is_asked_again_at_once() {
    let network = Network::new(1);
    let (publisher, edge) = pair(&network).await;
    let btc = stream("trades.btc_usdt");
    publisher.store.add(&btc, 10, 100);
    // It looks at twenty parts of the log without finding anything, and nobody says that anything changed.
    publisher.store.scan(&Topic::spanning(&btc), 20);
    let key = publisher.identity.publisher();
    let (events, _) = read_all(&mut ask(&edge, key, request("trades.btc_usdt", None, false)).await).await;
    assert_eq!(events.len(), 10);
    assert_eq!(publisher.store.calls.load(Ordering::SeqCst), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_be_asked_is_known_and_a_lost_connection_ends_its_feeds() {
    let network = Network::new(2);
    let (publisher, edge) = pair(&network).await;
    let [first, second] = [0, 1].map(|index: usize| network.publishers[index].publisher());
    let live = edge.mesh.live_publishers();
    let connection = live.borrow().get(&first).copied();
    assert!(connection.is_some() && !live.borrow().contains_key(&second));
    assert!(publisher.mesh.live_publishers().borrow().contains_key(&first), "itself");
    assert!(
        edge.mesh
            .feed(second, request("trades.btc_usdt", None, false))
            .await
            .is_err_and(|error| matches!(error, FeedError::NotConnected))
    );
    let stranger = edge.identity.publisher();
    assert!(
        edge.mesh
            .feed(stranger, request("trades.btc_usdt", None, false))
            .await
            .is_err_and(|error| matches!(error, FeedError::UnknownPublisher(key) if key == stranger))
    );
    let mut reader = ask(&edge, first, request("trades.btc_usdt", None, true)).await;
    let mut own = ask(&publisher, first, request("trades.btc_usdt", None, true)).await;
    wait_until("both feeds", || publisher.metric("feeds_open{direction=\"served\"}") == 2).await;
    let address = publisher.address().to_string();
    let listen = address.split("/p2p/").next().unwrap().to_owned();
    publisher.stop().await;
    for reader in [&mut reader, &mut own] {
        let cut = within("the end of a feed", reader.next()).await;
        assert!(matches!(cut, Err(FeedError::Cut(_))), "{cut:?}");
    }
    edge.connected_to_publishers(0).await;
    assert!(live.borrow().is_empty());
    let _publisher = network.publisher_at(0, &listen, &[]).await;
    wait_until("the publisher to be back", || live.borrow().contains_key(&first)).await;
    assert_ne!(live.borrow().get(&first).copied(), connection, "another connection");
    // What is joined has nothing to do with feeds.
    edge.mesh.join(&Topic::spanning(&stream("trades.btc_usdt")), Role::Edge);
    let (events, _) = read_all(&mut ask(&edge, first, request("trades.btc_usdt", None, false)).await).await;
    assert_eq!(events, vec![]);
}
