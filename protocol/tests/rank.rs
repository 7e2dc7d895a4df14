//! Who leads a topic: all peers say the same, and only the topics of a peer that goes find a new leader.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::collections::HashMap;

use proptest::{prelude::*, sample::Index};
use tickmesh_protocol::{PublisherKey, StreamName, Topic, rank::ranked};

fn topic(key: &str) -> Topic {
    Topic::spanning(&StreamName::new("trades", key, None).unwrap())
}

fn any_peers() -> impl Strategy<Value = Vec<PublisherKey>> {
    prop::collection::btree_set(any::<[u8; 32]>(), 1..12)
        .prop_map(|keys| keys.into_iter().map(PublisherKey).collect())
}

proptest! {
    #[test]
    fn all_peers_agree(
        (peers, shuffled) in any_peers().prop_flat_map(|peers| (Just(peers.clone()), Just(peers).prop_shuffle())),
        key in "[a-z0-9]{1,10}",
    ) {
        let ranking = ranked(&topic(&key), peers.iter().copied());
        prop_assert_eq!(&ranked(&topic(&key), shuffled), &ranking);
        let mut sorted = ranking;
        sorted.sort_unstable();
        prop_assert_eq!(sorted, peers, "everyone is ranked, once");
    }

    #[test]
    fn a_peer_that_goes_leaves_the_order_of_the_others(
        peers in any_peers(), gone in any::<Index>(), key in "[a-z0-9]{1,10}",
    ) {
        let gone = peers[gone.index(peers.len())];
        let mut expected = ranked(&topic(&key), peers.iter().copied());
        expected.retain(|peer| *peer != gone);
        let remaining = peers.into_iter().filter(|peer| *peer != gone);
        prop_assert_eq!(ranked(&topic(&key), remaining), expected);
    }
}

#[test]
fn topics_spread_over_the_peers() {
    let peers: Vec<_> = (0..4).map(|number| PublisherKey([number; 32])).collect();
    let mut leads: HashMap<PublisherKey, u32> = HashMap::new();
    let topics: Vec<_> = (0..10)
        .flat_map(|channel| {
            (0..64).map(move |bucket| format!("/tickmesh/1/all/channel{channel}/{bucket}").parse().unwrap())
        })
        .collect();
    for topic in &topics {
        *leads.entry(ranked(topic, peers.iter().copied())[0]).or_default() += 1;
    }
    // 160 each on average, standard deviation 11.
    assert!(leads.len() == 4 && leads.values().all(|count| (100..=220).contains(count)), "{leads:?}");
}
