//! Which of the live ingest peers leads a topic: rendezvous hashing (Thaler and Ravishankar, 1996).
//!
//! Every peer ranks the same live set in the same order without talking about it, topics spread evenly over the
//! peers, and a peer that goes moves only the topics it led.

use crate::{PublisherKey, Topic};

/// The peers in the order in which they may lead a topic, best first.
pub fn ranked(topic: &Topic, peers: impl IntoIterator<Item = PublisherKey>) -> Vec<PublisherKey> {
    let topic = topic.to_string();
    let mut scored: Vec<_> = peers.into_iter().map(|peer| (score(&topic, peer), peer)).collect();
    scored.sort_unstable_by(|a, b| b.cmp(a));
    scored.into_iter().map(|(_, peer)| peer).collect()
}

fn score(topic: &str, peer: PublisherKey) -> [u8; 32] {
    *blake3::Hasher::new().update(&peer.0).update(topic.as_bytes()).finalize().as_bytes()
}
