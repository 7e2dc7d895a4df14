//! Real nodes on loopback: who receives what, who is believed, who finds whom.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests are tests, too"
)]

#[path = "mesh/cluster.rs"]
mod cluster;
#[path = "mesh/feeds.rs"]
mod feeds;
#[path = "mesh/feeds_bad.rs"]
mod feeds_bad;
#[path = "mesh/private.rs"]
mod private;
#[path = "mesh/raw.rs"]
mod raw;
#[path = "mesh/rogue.rs"]
mod rogue;
#[path = "mesh/snapshots.rs"]
mod snapshots;
#[path = "mesh/store.rs"]
mod store;

use std::{collections::HashSet, time::Duration};

use cluster::{Heard, Network, Node, batch, stream, wait_until, within};
use rogue::Rogue;
use tickmesh::mesh::{HeadError, Identity, NetworkKey, Role};
use tickmesh_protocol::{SignedBatch, Topic, codec::VERSION, head::HeadRequest};

/// Publishes events of a stream; gives their sequences.
async fn publish(node: &Node, name: &str, count: u64) -> Vec<u64> {
    let mut sequences = Vec::new();
    for _ in 0..count {
        sequences.push(node.ingest.publish(&stream(name)).await);
    }
    sequences
}

/// Joins a topic everywhere and publishes until what the first nodes publish reaches all of them.
async fn link(nodes: &mut [Node], publishers: usize, name: &str) {
    for node in nodes.iter() {
        node.join(&Topic::spanning(&stream(name)));
    }
    let linked = async {
        loop {
            let mut expected = HashSet::new();
            for node in &nodes[..publishers] {
                expected.insert((node.identity.publisher(), node.ingest.publish(&stream(name)).await));
            }
            let mut all = true;
            for node in nodes.iter_mut() {
                let mut missing = expected.clone();
                while !missing.is_empty()
                    && let Ok(next) = tokio::time::timeout(Duration::from_millis(200), node.edge.recv()).await
                {
                    let next = next.unwrap();
                    missing.remove(&(next.batch().publisher, next.batch().events[0].sequence.get()));
                }
                all &= missing.is_empty();
            }
            if all {
                break;
            }
        }
    };
    within("batches of all publishers at all nodes", linked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_go_both_ways_and_reach_their_own_edge() {
    let network = Network::new(2);
    let first = network.publisher(0, &[]).await;
    let second = network.publisher(1, &[first.address()]).await;
    let edge = network.edge(&[first.address()]).await;
    first.mesh.join(&Topic::spanning(&stream("trades.btc_usdt")), Role::Ingest);
    let mut nodes = [first, second, edge];
    link(&mut nodes, 2, "trades.btc_usdt").await;
    let keys = [nodes[0].identity.publisher(), nodes[1].identity.publisher()];
    let mut sent = (Vec::new(), Vec::new());
    // In rounds: what waits too long for a busy machine, gossip drops.
    for _ in 0..10 {
        let (one, other) = tokio::join!(
            publish(&nodes[0], "trades.btc_usdt", 30),
            publish(&nodes[1], "trades.btc_usdt", 30)
        );
        for node in &mut nodes {
            let mut received = [Vec::new(), Vec::new()];
            while received.iter().map(Vec::len).sum::<usize>() < 60 {
                let batch = node.next().await;
                let from = keys.iter().position(|key| *key == batch.batch().publisher).unwrap();
                received[from].push(batch.batch().events[0].sequence.get());
            }
            // Over a third node they may overtake one another.
            received.iter_mut().for_each(|sequences| sequences.sort_unstable());
            assert_eq!((&received[0], &received[1]), (&one, &other));
            assert!(node.edge.try_recv().is_err(), "each batch comes once");
        }
        sent = (one, other);
    }
    // Ingest hears the others, not itself.
    let last = |heard: &Heard| heard.batches.last().map(|batch| batch.batch().events[0].sequence.get());
    wait_until("batches at ingest", || nodes[0].ingest.heard(last) == sent.1.last().copied()).await;
    assert!(
        nodes[0].ingest.heard(|heard| heard.batches.iter().all(|batch| batch.batch().publisher == keys[1]))
    );
    assert_eq!(nodes[0].ingest.heard(|heard| heard.publishers.clone()), vec![(keys[1], true)]);
    // The second publisher is not in the edge's configuration as an address, and still it has a direct connection.
    nodes[2].connected_to_publishers(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_receives_nothing_of_a_topic_it_has_not_joined() {
    let network = Network::new(1);
    let publisher = network.publisher(0, &[]).await;
    let reader = network.edge(&[publisher.address()]).await;
    let other = network.edge(&[publisher.address(), reader.address()]).await;
    let mut nodes = [publisher, reader];
    link(&mut nodes, 1, "trades.btc_usdt").await;
    let mut all = Vec::from(nodes);
    all.push(other);
    // The other edge is as connected as the reader, but reads another channel.
    for node in &all {
        node.join(&Topic::spanning(&stream("ticker.global")));
    }
    assert_eq!(all[2].head(&stream("ticker.global")).await, None);
    let sent = publish(&all[0], "trades.btc_usdt", 200).await;
    publish(&all[0], "ticker.global", 1).await;
    let publisher = all[0].identity.publisher();
    all[1].until(publisher, sent[199]).await;
    // What was published last is there, so what was published before it would be, too.
    assert_eq!(all[2].next().await.batch().events[0].stream, stream("ticker.global"));
    assert!(all[2].edge.try_recv().is_err());
    assert_eq!(all[2].metric_sum("mesh_batches_received_total"), 1);
    assert_eq!(all[2].metric("mesh_events_received_total{channel=\"ticker\"}"), 1);
    assert_eq!(all[2].metric("mesh_events_received_total{channel=\"trades\"}"), 0);
    assert!(all[1].metric("mesh_events_received_total{channel=\"trades\"}") >= 200);
}

/// The promise edges build on: after the answer "at n", everything after n comes. Under continuous publishing, with
/// topics left and joined again as quickly as the test can.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_after_the_head_is_lost() {
    const ROUNDS: usize = 150;
    const FOLLOWED: u64 = 10;
    let network = Network::new(1);
    let publisher = network.publisher(0, &[]).await;
    let mut edges = [network.edge(&[publisher.address()]).await, network.edge(&[publisher.address()]).await];
    let btc = stream("trades.btc_usdt");
    let topic = Topic::spanning(&btc);
    let ingest = publisher.ingest.clone();
    let flow = tokio::spawn(async move {
        loop {
            ingest.publish(&stream("trades.btc_usdt")).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut out_of_order = 0;
    for edge in &edges {
        edge.join(&topic);
    }
    for round in 0..ROUNDS {
        for edge in &mut edges {
            // Left and joined again at once: the publisher may still see the old subscription when the question comes.
            edge.leave(&topic);
            while edge.metric("mesh_topics_joined") > 0 {
                tokio::task::yield_now().await;
            }
            while edge.edge.try_recv().is_ok() {}
            edge.join(&topic);
            let next = edge.head(&btc).await.map_or(0, |head| head + 1);
            let mut missing: HashSet<u64> = (next..next + FOLLOWED).collect();
            let mut last = None;
            while !missing.is_empty() {
                let batch = edge.next().await;
                let sequence = batch.batch().events[0].sequence.get();
                let lost = sequence > next + 100 * FOLLOWED;
                assert!(!lost, "round {round}: at {next} asked, at {sequence} still without {missing:?}");
                missing.remove(&sequence);
                out_of_order += usize::from(sequence >= next && last > Some(sequence));
                last = last.max(Some(sequence));
            }
        }
    }
    flow.abort();
    eprintln!("{out_of_order} of {} out of order", ROUNDS * edges.len() * FOLLOWED as usize);
}

/// What the promise rests on, step by step, with a peer that asks before it is subscribed.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_is_told_only_to_who_is_seen_to_be_subscribed() {
    let network = Network::new(1);
    let publisher = network.publisher(0, &[]).await;
    let btc = stream("trades.btc_usdt");
    let request = HeadRequest { topic: Topic::spanning(&btc), streams: vec![btc.clone()] };
    let mut rogue = Rogue::connect(&network.key, publisher.address()).await;
    rogue.ask(0, &request);
    rogue.run_until("the refusal", |rogue| rogue.answers == [false]).await;
    rogue.join(&request.topic);
    rogue.ask(0, &request);
    rogue.run_until("the answer", |rogue| rogue.answers == [false, true]).await;
    // It says that it has left once, so the subscription that is seen is not the one it means.
    rogue.ask(1, &request);
    rogue.run_until("the refusal", |rogue| rogue.answers == [false, true, false]).await;
    rogue.ask(1, &request);
    rogue.leave(&request.topic);
    rogue.join(&request.topic);
    rogue.run_until("the answer", |rogue| rogue.answers == [false, true, false, true]).await;
    rogue.ask(2, &request);
    rogue.leave(&request.topic);
    rogue.run_until("the refusal", |rogue| rogue.answers == [false, true, false, true, false]).await;
    assert_eq!(publisher.metric("mesh_heads_answered_total{outcome=\"answered\"}"), 2);
    assert_eq!(publisher.metric("mesh_heads_answered_total{outcome=\"refused\"}"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_says_how_often_its_asker_has_left() {
    let keypair = libp2p::identity::Keypair::generate_ed25519();
    let secret: [u8; 32] = keypair.clone().try_into_ed25519().unwrap().secret().as_ref().try_into().unwrap();
    let mut network = Network::new(0);
    network.publishers.push(Identity::from_secret(secret).unwrap());
    let edge = network.edge(&[]).await;
    let btc = stream("trades.btc_usdt");
    let request = HeadRequest { topic: Topic::spanning(&btc), streams: vec![btc] };
    let leave_and_join = async || {
        edge.leave(&request.topic);
        wait_until("leaving", || edge.metric("mesh_topics_joined") == 0).await;
        edge.join(&request.topic);
        wait_until("joining", || edge.metric("mesh_topics_joined") == 1).await;
    };
    edge.join(&request.topic);
    leave_and_join().await;
    // What was left before the connection was never said on it.
    let mut rogue = Rogue::connect_as(keypair, &network.key, edge.address()).await;
    edge.connected_to_publishers(1).await;
    for left in 0..3u64 {
        let ask = tokio::spawn({
            let (mesh, request) = (edge.mesh.clone(), request.clone());
            async move { mesh.heads(request).await }
        });
        // A question of the round before may have been asked once more in its last moment.
        let said = |question: &Vec<u8>| u64::from_le_bytes(question[..8].try_into().unwrap());
        rogue
            .run_until("the question", |rogue| rogue.asked.iter().any(|question| said(question) == left))
            .await;
        assert!(rogue.asked.iter().all(|question| said(question) <= left));
        assert_eq!(rogue.run_for(ask).await.unwrap(), Err(HeadError::Timeout));
        leave_and_join().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_need_a_joined_topic_and_somebody_who_knows() {
    let network = Network::new(1);
    let lonely = network.edge(&[]).await;
    let btc = stream("trades.btc_usdt");
    let request = HeadRequest { topic: Topic::spanning(&btc), streams: vec![btc.clone()] };
    let not_joined = HeadError::NotJoined(request.topic.clone());
    assert_eq!(lonely.mesh.heads(request.clone()).await, Err(not_joined));
    lonely.join(&request.topic);
    assert_eq!(lonely.mesh.heads(request.clone()).await, Err(HeadError::Timeout));
    // A publisher that appears while the question waits answers it.
    let waiting = tokio::spawn({
        let mesh = lonely.mesh.clone();
        let request = request.clone();
        async move { mesh.heads(request).await }
    });
    let publisher = network.publisher(0, &[lonely.address()]).await;
    assert!(within("an answer", waiting).await.unwrap().is_ok());
    // A publisher asks itself.
    publisher.join(&request.topic);
    publisher.ingest.publish(&btc).await;
    assert_eq!(publisher.head(&btc).await, Some(0));
    lonely.stop().await;
    let mesh = publisher.mesh.clone();
    publisher.stop().await;
    assert_eq!(mesh.heads(request).await, Err(HeadError::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_started_before_its_ingest_joins_by_itself() {
    let network = Network::new(1);
    // A port that is free now.
    let port = {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        probe.local_addr().unwrap().port()
    };
    let listen = format!("/ip4/127.0.0.1/tcp/{port}");
    // An address that does not say who is there.
    let edge = network.edge(&[listen.parse().unwrap()]).await;
    let btc = stream("trades.btc_usdt");
    edge.join(&Topic::spanning(&btc));
    // Not waited for by anything: it only gives the first dials time to fail.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let publisher = network.publisher_at(0, &listen, &[]).await;
    let mut nodes = [publisher, edge];
    link(&mut nodes, 1, "trades.btc_usdt").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_starts_again_elsewhere_is_found_and_heard() {
    let network = Network::new(1);
    let seed = network.edge(&[]).await;
    let mut edge = network.edge(&[seed.address()]).await;
    let mut last = None;
    let btc = stream("trades.btc_usdt");
    for _ in 0..3 {
        // The same key, another port, another boot, counters from the beginning.
        let publisher = network.publisher(0, &[seed.address()]).await;
        if let Some(last) = last {
            publisher.ingest.resume(&btc, last).await;
        }
        edge.connected_to_publishers(1).await;
        let mut nodes = [publisher, edge];
        link(&mut nodes, 1, "trades.btc_usdt").await;
        let sent = publish(&nodes[0], "trades.btc_usdt", 50).await;
        let [publisher, back] = nodes;
        edge = back;
        assert_eq!(edge.until(publisher.identity.publisher(), sent[49]).await, sent);
        last = sent.last().copied();
        publisher.stop().await;
        edge.connected_to_publishers(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_topics_are_joined_at_once() {
    const TOPICS: usize = 400;
    let network = Network::new(1);
    let publisher = network.publisher(0, &[]).await;
    let mut edge = network.edge(&[publisher.address()]).await;
    edge.connected_to_publishers(1).await;
    let streams: Vec<_> = (0..64 * TOPICS)
        .scan(HashSet::new(), |seen, n| {
            let stream = stream(&format!("channel{}.key{n}", n % 16));
            Some(seen.insert(Topic::spanning(&stream)).then_some(stream))
        })
        .flatten()
        .take(TOPICS)
        .collect();
    assert_eq!(streams.len(), TOPICS);
    for stream in &streams {
        edge.join(&Topic::spanning(stream));
    }
    let heads = streams.iter().map(|stream| edge.head(stream));
    let heads = libp2p::futures::future::join_all(heads).await;
    assert!(heads.iter().all(Option::is_none));
    for stream in &streams {
        publisher.ingest.publish(stream).await;
    }
    let mut missing: HashSet<_> = streams.into_iter().collect();
    while !missing.is_empty() {
        missing.remove(&edge.next().await.batch().events[0].stream);
    }
    assert_eq!(edge.metric("mesh_topics_joined"), TOPICS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_network_key_nobody_connects() {
    let network = Network::new(1);
    let node = network.publisher(0, &[]).await;
    let stranger = NetworkKey::generate().unwrap();
    assert!(!Rogue::can_connect(&stranger, node.address()).await);
    assert_eq!(node.metric("mesh_peers"), 0);
    // The test itself works: with the key it can.
    assert!(Rogue::can_connect(&network.key, node.address()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_publisher_cannot_make_an_event() {
    let network = Network::new(1);
    let publisher = network.publisher(0, &[]).await;
    let edge = network.edge(&[publisher.address()]).await;
    let (btc, eth) = (stream("trades.btc_usdt"), stream("trades.eth_usdt"));
    let (topic, other) = (Topic::spanning(&btc), Topic::spanning(&eth));
    assert_ne!(topic, other);
    let key = publisher.identity.publisher();
    let mut nodes = [publisher, edge];
    link(&mut nodes, 1, "trades.eth_usdt").await;
    link(&mut nodes, 1, "trades.btc_usdt").await;

    // A node with our own code, the network key and a signature of its own.
    let liar = Identity::generate().unwrap();
    let outsider = Node::start(
        &network,
        liar.clone(),
        "/ip4/127.0.0.1/tcp/0",
        &[nodes[0].address(), nodes[1].address()],
        false,
    )
    .await;
    outsider.join(&topic);
    outsider.head(&btc).await;
    outsider.ingest.publish(&btc).await;
    let rejected = |node: &Node, reason: &str| {
        node.metric(&format!("mesh_batches_rejected_total{{reason=\"{reason}\"}}"))
    };
    wait_until("the publisher's reject", || rejected(&nodes[0], "publisher") == 1).await;

    // A peer that keeps to no rule. It sends each lie to both nodes.
    for lie in ["forged", "replayed", "elsewhere", "garbage"] {
        let mut rogue = Rogue::connect(&network.key, nodes[1].address()).await;
        rogue.join(&topic);
        let real = {
            let heard = rogue.heard.len();
            nodes[0].ingest.publish(&btc).await;
            // Again until its subscription is known.
            while rogue.heard.len() == heard {
                nodes[0].ingest.publish(&btc).await;
                rogue.run(Duration::from_millis(50)).await;
            }
            rogue.heard[heard].1.clone()
        };
        match lie {
            "forged" => {
                let forged =
                    SignedBatch::sign(batch(&liar, 1, 1, &btc, 1_000_000), &liar.signing_key()).unwrap();
                let mut forged = forged.envelope().to_vec();
                let at = forged.windows(32).position(|bytes| bytes == liar.publisher().0).unwrap();
                forged[at..at + 32].copy_from_slice(&key.0);
                rogue.send(&topic, &forged).await;
                rogue.run_until("the reject", |_| rejected(&nodes[1], "signature") == 1).await;
            }
            // On its own topic gossipsub itself knows it; this node's edge must not get it twice, see below.
            "replayed" => {
                rogue.send(&topic, &real).await;
                rogue.run(Duration::from_millis(200)).await;
            }
            "elsewhere" => {
                rogue.send(&other, &real).await;
                rogue.run_until("the reject", |_| rejected(&nodes[1], "topic") == 1).await;
            }
            _ => {
                for n in 0..20 {
                    // The right version, then nothing of it; and no version known here.
                    rogue.send(&topic, &[&[VERSION][..], &[n; 300]].concat()).await;
                    rogue.send(&topic, &[VERSION + 1 + n; 300]).await;
                }
                rogue.run_until("the rejects", |_| nodes[1].metric("mesh_peers_muted") == 1).await;
                assert!(rejected(&nodes[1], "malformed") >= 3);
            }
        }
    }

    // Good traffic goes on, and all there ever was at the ports is what the publisher published, once.
    let sent = publish(&nodes[0], "trades.btc_usdt", 100).await;
    for node in &mut nodes {
        let mut seen = HashSet::new();
        loop {
            let batch = node.next().await;
            let sequence = batch.batch().events[0].sequence.get();
            assert_eq!(batch.batch().publisher, key);
            assert_eq!(batch.batch().events[0].stream, btc);
            assert!(seen.insert(sequence), "{sequence} came twice");
            if sequence == sent[99] {
                break;
            }
        }
        assert!(seen.len() >= 100 && !seen.contains(&1_000_000));
        assert!(node.edge.try_recv().is_err());
    }
}
