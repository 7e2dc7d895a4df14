//! Snapshots between real nodes: what is given out, in which portions, and what is refused.

use tickmesh::mesh::FeedError;
use tickmesh_protocol::{
    Event, StreamName, Topic,
    codec::{VERSION, encode_feed_request},
    event::MAX_EVENT_DATA_BYTES,
    feed::{FeedEnd, FeedFrame, FeedRequest, MAX_FEED_STREAMS},
};

use super::{
    cluster::{Network, stream, within},
    feeds::{ask, at, pair},
    raw::{Raw, framed, refusal},
};

fn request(streams: &[StreamName]) -> FeedRequest {
    FeedRequest::Snapshots { topic: Topic::spanning(&streams[0]), streams: streams.to_vec() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_retained_is_given_out_in_portions_to_others_and_to_oneself() {
    let network = Network::new(1);
    let (publisher, edge) = pair(&network).await;
    let key = publisher.identity.publisher();
    let names: Vec<_> = (0..MAX_FEED_STREAMS).map(|n| stream(&format!("depth.btc_usdt@{n}"))).collect();
    // Every second one has something; the largest take one event's most.
    let sizes = [MAX_EVENT_DATA_BYTES, 100, 60_000, 2_000];
    for (name, size) in names.iter().step_by(2).zip(sizes.iter().cycle().take(12)) {
        publisher.store.add(name, 7, *size);
    }
    for node in [&edge, &publisher] {
        let mut reader = ask(node, key, request(&names)).await;
        let (mut given, mut frames) = (Vec::new(), 0);
        let ends = loop {
            match within("snapshots", reader.next()).await.unwrap().unwrap() {
                FeedFrame::Snapshots(page) => {
                    frames += 1;
                    given.extend(page.batch().events.clone());
                }
                FeedFrame::End { streams } => break streams,
                other => panic!("{other:?}"),
            }
        };
        assert!(within("nothing more", reader.next()).await.unwrap().is_none());
        assert!(frames > 3, "{frames} frames");
        let of = |events: &[Event]| -> Vec<_> {
            events.iter().map(|event| (event.stream.clone(), event.position(), event.data.len())).collect()
        };
        let expected: Vec<_> = names
            .iter()
            .step_by(2)
            .zip(sizes.iter().cycle().take(12))
            .map(|(name, size)| (name.clone(), at(6), *size))
            .collect();
        assert_eq!(of(&given), expected);
        let end = |name: &StreamName| match given.iter().find(|event| event.stream == *name) {
            Some(event) => FeedEnd::Complete { head: Some(event.position()) },
            None => FeedEnd::Refused { oldest: None },
        };
        assert_eq!(ends, names.iter().map(|name| (name.clone(), end(name))).collect::<Vec<_>>());
    }
    assert_eq!(publisher.metric("feed_requests_total{kind=\"snapshots\",outcome=\"served\"}"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn private_foreign_and_too_many_streams_are_refused() {
    let network = Network::new(1);
    let (publisher, edge) = pair(&network).await;
    let key = publisher.identity.publisher();
    let orders = stream("orders.alice");
    publisher.store.add(&orders, 1, 100);
    let refused = within("a refusal", ask(&edge, key, request(&[orders])).await.next()).await;
    assert!(
        matches!(&refused, Err(FeedError::Refused(reason)) if reason == "the streams are private"),
        "{refused:?}"
    );

    // What this node would not even send.
    let names: Vec<_> = (0..=MAX_FEED_STREAMS).map(|n| stream(&format!("depth.btc_usdt@{n}"))).collect();
    let asked = edge.mesh.feed(key, request(&names)).await;
    assert!(matches!(asked, Err(FeedError::Request(_))), "{asked:?}");
    let good = encode_feed_request(&request(&names[..2])).unwrap();
    let swapped = |from: &str, to: &str| {
        let at = good.windows(from.len()).rposition(|bytes| bytes == from.as_bytes()).unwrap();
        [&good[..at], to.as_bytes(), &good[at + from.len()..]].concat()
    };
    let topic = Topic::spanning(&names[0]).to_string();
    let length = u8::try_from(topic.len()).unwrap();
    let none = [&[VERSION, 4, length], topic.as_bytes(), &[0]].concat();
    let claim = [&[VERSION, 4, length], topic.as_bytes(), &[0xfd], &u64::MAX.to_le_bytes()].concat();
    let peer = Raw::connect(&network.key, publisher.address()).await;
    for (name, bytes, reason) in [
        ("foreign", swapped("btc_usdt@1", "eth_usdt@1"), "not of the batch's topic"),
        ("twice", swapped("btc_usdt@1", "btc_usdt@0"), "named twice"),
        ("no name", swapped("btc_usdt@1", "BTC_usdt@1"), "may hold only"),
        ("none", none, "0 streams"),
        ("all of memory", claim, "not the format"),
    ] {
        let refused = refusal(&mut peer.say(&framed(&bytes)).await).await;
        assert!(refused.as_ref().is_some_and(|why| why.contains(reason)), "{name}: {refused:?}");
    }
}
