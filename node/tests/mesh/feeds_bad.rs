//! Peers that ask for too much, say what is no request, or serve what is not to be believed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use libp2p::{
    PeerId, Stream,
    futures::{AsyncReadExt, AsyncWriteExt, StreamExt},
    identity::Keypair,
};
use libp2p_stream::IncomingStreams;
use tickmesh::mesh::{FeedError, Identity};
use tickmesh_protocol::{
    SignedBatch, Topic,
    codec::{MAX_FEED_FRAME_BYTES, MAX_FEED_REQUEST_BYTES, VERSION, encode_feed_frame, encode_feed_request},
    feed::{FeedFrame, FeedRequest, Status},
};

use super::{
    cluster::{Network, Node, batch, stream, wait_until, within},
    feeds::{ask, pair, read_all, request},
    raw::{Raw, framed, next_frame, refusal},
};

fn everything(name: &str) -> FeedRequest {
    FeedRequest::Topic { topic: Topic::spanning(&stream(name)), after: vec![], live: false }
}

fn served(node: &Node) -> u64 {
    node.metric("feeds_open{direction=\"served\"}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_for_everything_do_not_keep_others_from_being_served() {
    const PEERS: usize = 5;
    const EACH: usize = 200;
    // Fewer than usual: 256 KiB that Yamux takes for each cost a debug build dearly.
    const OPEN: usize = 4;
    let mut network = Network::new(1);
    network.feeds.per_peer = OPEN;
    let (publisher, edge) = pair(&network).await;
    let key = publisher.identity.publisher();
    // Two MiB.
    publisher.store.add(&stream("trades.btc_usdt"), 500, 4_096);
    publisher.store.add(&stream("trades.eth_usdt"), 100, 100);
    let (mut peers, mut asking) = (Vec::new(), Vec::new());
    for _ in 0..PEERS {
        let peer = Arc::new(Raw::connect(&network.key, publisher.address()).await);
        for _ in 0..EACH {
            let peer = peer.clone();
            asking.push(tokio::spawn(async move {
                let mut stream = peer.ask(&everything("trades.btc_usdt")).await;
                (next_frame(&mut stream).await, stream)
            }));
        }
        peers.push(peer);
    }
    wait_until("as many feeds as may be", || served(&publisher) == (PEERS * OPEN) as u64).await;
    // In the middle of all that:
    let (events, _) = read_all(&mut ask(&edge, key, request("trades.eth_usdt", Some(89), false)).await).await;
    assert_eq!(events.len(), 10);
    assert_eq!(served(&publisher), (PEERS * OPEN) as u64, "the others are still at it");
    let (mut pages, mut busy, mut reset, mut kept) = (0, 0, 0, Vec::new());
    for task in asking {
        let (first, stream) = within("an answer of some kind", task).await.unwrap();
        match first {
            Some(FeedFrame::Page(_)) => {
                pages += 1;
                kept.push(stream);
            }
            Some(FeedFrame::Refused { reason }) => busy += usize::from(reason.contains("busy")),
            None => reset += 1,
            other => panic!("{other:?}"),
        }
    }
    println!("{pages} served, {busy} told that it is busy, {reset} reset");
    assert_eq!((pages, pages + busy + reset), (PEERS * OPEN, PEERS * EACH));
    assert!(publisher.store.most_preparing.load(Ordering::SeqCst) <= 4);
    // Those that take no more were given no more than fits on the way to them.
    let calls = publisher.store.calls.load(Ordering::SeqCst);
    assert!(calls <= 1 + PEERS * OPEN * 5, "{calls} pages prepared");
    // One that goes on reading gets all there is.
    let mut last = None;
    while let Some(frame) = next_frame(&mut kept[0]).await {
        last = Some(frame);
    }
    assert_eq!(last, Some(FeedFrame::End { streams: vec![] }));
    drop((kept, peers));
    wait_until("the end of all feeds", || served(&publisher) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn feeds_are_bounded_in_all_but_not_for_publishers() {
    let mut network = Network::new(2);
    network.feeds.in_all = 6;
    network.feeds.per_peer = 4;
    let publisher = network.publisher(0, &[]).await;
    let live = request("trades.btc_usdt", None, true);
    let (mut peers, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let peer = Raw::connect(&network.key, publisher.address()).await;
        for _ in 0..4 {
            streams.push(peer.ask(&live).await);
        }
        peers.push(peer);
    }
    wait_until("as many feeds as may be", || served(&publisher) == 6).await;
    let mut busy = Vec::new();
    for mut stream in [peers[0].ask(&live).await, peers[1].ask(&live).await] {
        busy.push(refusal(&mut stream).await.unwrap());
    }
    assert_eq!(busy, ["busy: this peer has too many feeds open", "busy: too many feeds are open"]);
    let second = network.publisher(1, &[publisher.address()]).await;
    publisher.store.status.send_replace(Status { boot: 9, ..Status::default() });
    wait_until("the status, although it is busy", || {
        second.ingest.heard(|heard| heard.statuses.iter().any(|(_, status)| status.boot == 9))
    })
    .await;
    // A place that is left is a place for the next.
    drop(streams.swap_remove(0));
    wait_until("a place", || publisher.metric("feed_requests_total{kind=\"streams\",outcome=\"gone\"}") > 0)
        .await;
    publisher.store.add(&stream("trades.btc_usdt"), 1, 100);
    let mut stream = peers[0].ask(&live).await;
    assert!(matches!(next_frame(&mut stream).await, Some(FeedFrame::Page(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_forgotten() {
    let mut network = Network::new(1);
    network.feeds.request = Duration::from_secs(2);
    let (publisher, edge) = pair(&network).await;
    publisher.store.add(&stream("trades.btc_usdt"), 10, 100);
    let peer = Raw::connect(&network.key, publisher.address()).await;
    let good = encode_feed_request(&request("trades.btc_usdt", None, true)).unwrap();
    let version = [&[77], &good[1..]].concat();
    let trailing = [&good[..], &[0]].concat();
    let most = u32::try_from(MAX_FEED_REQUEST_BYTES).unwrap();
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("garbage", framed(&[VERSION, 200, 200, 200, 200]), "not the format of version 3"),
        ("nothing", framed(&[]), "a frame of 0 bytes"),
        ("oversized", (most + 1).to_le_bytes().to_vec(), "allowed"),
        ("all of memory", u32::MAX.to_le_bytes().to_vec(), "allowed"),
        ("another version", framed(&version), "version 77 of the mesh protocol is not known here"),
        ("trailing", framed(&trailing), "1 bytes are left over"),
    ];
    for (name, bytes, reason) in &cases {
        let refused = refusal(&mut peer.say(bytes).await).await;
        assert!(refused.as_ref().is_some_and(|why| why.contains(reason)), "{name}: {refused:?}");
    }
    let count = |outcome: &str| {
        publisher.metric(&format!("feed_requests_total{{kind=\"unknown\",outcome=\"{outcome}\"}}"))
    };
    wait_until("all to be counted", || count("invalid") == cases.len() as u64).await;
    // Cut short by its end, and by silence.
    let cut = &framed(&good)[..20];
    let mut ended = peer.say(cut).await;
    ended.close().await.unwrap();
    assert_eq!(next_frame(&mut ended).await, None);
    let mut silent = peer.say(cut).await;
    assert_eq!(next_frame(&mut silent).await, None);
    wait_until("both to be counted", || count("gone") + count("slow") == 2 && count("slow") > 0).await;
    // A live feed whose reader says more than its request.
    let mut talking = peer.ask(&request("trades.btc_usdt", None, true)).await;
    assert!(matches!(next_frame(&mut talking).await, Some(FeedFrame::Page(_))));
    talking.write_all(&framed(&good)).await.unwrap();
    talking.flush().await.unwrap();
    assert_eq!(next_frame(&mut talking).await, None);
    let key = publisher.identity.publisher();
    let (events, _) = read_all(&mut ask(&edge, key, request("trades.btc_usdt", None, false)).await).await;
    assert_eq!(events.len(), 10);
    wait_until("the end of all feeds", || served(&publisher) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_is_cut_off_and_holds_little() {
    let mut network = Network::new(1);
    network.feeds.write = Duration::from_millis(500);
    let (publisher, edge) = pair(&network).await;
    // Forty MiB.
    publisher.store.add(&stream("trades.btc_usdt"), 10_000, 4_096);
    publisher.store.add(&stream("trades.eth_usdt"), 10, 100);
    let peer = Raw::connect(&network.key, publisher.address()).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(peer.ask(&everything("trades.btc_usdt")).await);
    }
    wait_until("all to be served", || publisher.store.calls.load(Ordering::SeqCst) >= 8).await;
    let key = publisher.identity.publisher();
    let (events, _) = read_all(&mut ask(&edge, key, request("trades.eth_usdt", None, false)).await).await;
    assert_eq!(events.len(), 10);
    wait_until("those that take nothing to be cut off", || {
        publisher.metric("feed_requests_total{kind=\"topic\",outcome=\"slow\"}") == 8
    })
    .await;
    // What Yamux takes without a reader is 256 KiB, two pages.
    let calls = publisher.store.calls.load(Ordering::SeqCst);
    assert!(calls <= 8 * 4 + 1, "{calls} pages prepared");
    assert_eq!(served(&publisher), 0);
    // What was on its way is still read, then it ends.
    while next_frame_or_end(&mut streams[0]).await {}
}

/// Whether there was a whole frame.
async fn next_frame_or_end(stream: &mut Stream) -> bool {
    next_frame(stream).await.is_some()
}

/// Answers one stream with bytes as they are, after the request came.
async fn answer(incoming: &mut IncomingStreams, bytes: &[u8]) -> Stream {
    let (_, mut stream): (PeerId, Stream) = within("a request", incoming.next()).await.unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.unwrap();
    let mut request = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut request).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_publisher_serves_is_checked() {
    let mut network = Network::new(0);
    network.feeds.idle = Duration::from_secs(1);
    // A publisher gone bad: it has the key.
    let secret = [9; 32];
    let publisher = Identity::from_secret(secret).unwrap();
    network.publishers.push(publisher.clone());
    let edge = network.edge(&[]).await;
    let keypair = Keypair::ed25519_from_bytes(secret).unwrap();
    let (raw, mut incoming) = Raw::connect_as(keypair, &network.key, edge.address()).await;
    edge.connected_to_publishers(1).await;
    let btc = stream("trades.btc_usdt");
    let page = |identity: &Identity, name: &str| {
        SignedBatch::sign_page(batch(identity, 1, 1, &stream(name), 3), &identity.signing_key()).unwrap()
    };
    let frame = |page: &SignedBatch| encode_feed_frame(&FeedFrame::Page(page.clone())).unwrap();
    let good = page(&publisher, "trades.btc_usdt");
    let flipped = {
        let mut bytes = frame(&good);
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let gossip = SignedBatch::sign(batch(&publisher, 1, 1, &btc, 3), &publisher.signing_key()).unwrap();
    let status = encode_feed_frame(&FeedFrame::Status(Status::default())).unwrap();
    let too_long = u32::try_from(MAX_FEED_FRAME_BYTES + 1).unwrap().to_le_bytes().to_vec();
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("bad signature", framed(&flipped), "signature"),
        ("a batch of gossip as a page", framed(&frame(&gossip)), "signature"),
        (
            "an unknown publisher",
            framed(&frame(&page(&edge.identity, "trades.btc_usdt"))),
            "unknown publisher",
        ),
        ("another topic", framed(&frame(&page(&publisher, "trades.eth_usdt"))), "another topic"),
        ("unknown version", framed(&[77, 5]), "version 77"),
        ("garbage", framed(&[VERSION, 99, 1, 2, 3]), "not the format"),
        ("too long", too_long, "allowed"),
        ("a status to a request for events", framed(&status), "does not belong"),
        ("an empty frame", framed(&[]), "a frame of 0 bytes"),
    ];
    let key = publisher.publisher();
    for (name, bytes, reason) in &cases {
        let mut reader = ask(&edge, key, request("trades.btc_usdt", None, false)).await;
        let _stream = answer(&mut incoming, bytes).await;
        let got = within("an error", reader.next()).await;
        assert!(matches!(&got, Err(FeedError::Invalid(why)) if why.contains(reason)), "{name}: {got:?}");
        assert!(within("nothing more", reader.next()).await.unwrap().is_none(), "{name}");
    }
    let asked =
        |outcome: &str| edge.metric(&format!("feed_asked_total{{kind=\"streams\",outcome=\"{outcome}\"}}"));
    assert_eq!(asked("invalid"), cases.len() as u64);
    // Snapshots are not pages, and nobody is given what was not asked for.
    let snapshots = SignedBatch::sign_snapshots(batch(&publisher, 1, 1, &btc, 3), &publisher.signing_key());
    let snapshots = encode_feed_frame(&FeedFrame::Snapshots(snapshots.unwrap())).unwrap();
    let ask_snapshots = FeedRequest::Snapshots { topic: Topic::spanning(&btc), streams: vec![btc.clone()] };
    for (asked, answered, reason) in [
        (request("trades.btc_usdt", None, false), &snapshots, "does not belong"),
        (ask_snapshots.clone(), &frame(&good), "does not belong"),
        (
            ask_snapshots.clone(),
            &encode_feed_frame(&FeedFrame::Snapshots(good.clone())).unwrap(),
            "signature",
        ),
        (ask_snapshots, &encode_feed_frame(&FeedFrame::Snapshots(gossip)).unwrap(), "signature"),
    ] {
        let mut reader = ask(&edge, key, asked).await;
        let _stream = answer(&mut incoming, &framed(answered)).await;
        let got = within("an error", reader.next()).await;
        assert!(matches!(&got, Err(FeedError::Invalid(why)) if why.contains(reason)), "{got:?}");
    }
    // A good page, and then one that stops in the middle.
    let whole = framed(&frame(&good));
    let start = [&whole[..], &whole[..whole.len() / 2]].concat();
    for ends in [false, true] {
        let mut reader = ask(&edge, key, request("trades.btc_usdt", None, false)).await;
        let mut stream = answer(&mut incoming, &start).await;
        let got = within("the page", reader.next()).await.unwrap();
        assert_eq!(got, Some(FeedFrame::Page(good.clone())));
        if ends {
            stream.close().await.unwrap();
        }
        match within("the end", reader.next()).await {
            Err(FeedError::Timeout) if !ends => {}
            Err(FeedError::Cut(_)) if ends => {}
            other => panic!("{other:?}"),
        }
    }
    // It no longer speaks the protocol, and then it is gone.
    drop(incoming);
    let refused = edge.mesh.feed(key, request("trades.btc_usdt", None, false)).await;
    assert!(matches!(refused, Err(FeedError::Unsupported | FeedError::Cut(_))), "{refused:?}");
    drop(raw);
    edge.connected_to_publishers(0).await;
}
