//! Peers that have been losing messages for so long that a new connection may be better. Pure: no I/O, no clock.
//!
//! A connection whose gossip handler is disabled (after five streams) loses all messages from then on, and only a new one helps.
//! A machine that has too much to do loses messages as well, and there a new connection only adds to it: handshakes, subscriptions,
//! what was missed once more. Nothing tells the two apart but whether it helped: each time it did not, the next is later.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use crate::ops::backoff::Backoff;

/// How long a peer may lose messages in each heartbeat: longer than its repair would notice as a hiccup. Half of the first is the
/// least, as chance has it, so that not all give up the same peer together.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);
const LONGEST_PATIENCE: Duration = Duration::from_secs(600);

/// Losses further apart than this are separate hiccups: two heartbeats and a half.
const PAUSE: Duration = Duration::from_millis(2500);

/// Who has lost nothing for so long is as good as any other.
const MEMORY: Duration = Duration::from_secs(1200);

/// Peers remembered; those whose losses are the oldest are forgotten first. More than there are connections.
const MAX_PEERS: usize = 4096;

/// What peers have lost lately.
#[derive(Debug)]
pub(super) struct Slowness<P>(HashMap<P, Slow>);

#[derive(Debug)]
struct Slow {
    since: Instant,
    last: Instant,
    patience: Duration,
    backoff: Backoff,
}

impl<P> Default for Slowness<P> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<P: Copy + Eq + Hash> Slowness<P> {
    /// A peer has lost messages. Whether its connection is to be closed. `chance` is 0.0 to 1.0, random.
    pub(super) fn lost(&mut self, peer: P, now: Instant, chance: f64) -> bool {
        let slow = self.0.entry(peer).or_insert_with(|| {
            let mut backoff = Backoff::new(FIRST_PATIENCE, LONGEST_PATIENCE);
            let patience = backoff.failed(chance);
            Slow { since: now, last: now, patience, backoff }
        });
        if now.duration_since(slow.last) > PAUSE {
            slow.since = now;
        }
        slow.last = now;
        let closes = now.duration_since(slow.since) >= slow.patience;
        if closes {
            slow.since = now;
            slow.patience = slow.backoff.failed(chance);
        }
        closes
    }

    /// Its connection is closed, by whomever.
    pub(super) fn disconnected(&mut self, peer: &P, now: Instant) {
        if let Some(slow) = self.0.get_mut(peer) {
            slow.since = now;
        }
    }

    /// Forgets what is long over.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.0.retain(|_, slow| now.duration_since(slow.last) < MEMORY);
        while self.0.len() > MAX_PEERS {
            let Some((oldest, _)) = self.0.iter().min_by_key(|(_, slow)| slow.last) else { break };
            let oldest = *oldest;
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When connections are closed, in seconds, if a peer loses messages in each second of these.
    fn closed(slowness: &mut Slowness<u8>, begun: Instant, seconds: impl Iterator<Item = u64>) -> Vec<u64> {
        seconds.filter(|second| slowness.lost(1, begun + Duration::from_secs(*second), 1.0)).collect()
    }

    #[test]
    fn each_new_connection_that_did_not_help_makes_the_next_later() {
        let (mut slowness, begun) = (Slowness::default(), Instant::now());
        assert_eq!(closed(&mut slowness, begun, 0..300), [20, 60, 140]);
        slowness.tidy(begun + Duration::from_secs(400));
        assert_eq!(closed(&mut slowness, begun, 400..600), [560], "nothing is forgotten so soon");
        slowness.tidy(begun + Duration::from_secs(2000));
        assert_eq!(closed(&mut slowness, begun, 2000..2030), [2020]);
    }

    #[test]
    fn a_hiccup_now_and_then_closes_nothing() {
        let (mut slowness, begun) = (Slowness::default(), Instant::now());
        assert_eq!(closed(&mut slowness, begun, (0..600).filter(|second| second % 20 < 15)), [0_u64; 0]);
        // Nor does what was lost over another connection count.
        assert_eq!(closed(&mut slowness, begun, 1000..1018), [0_u64; 0]);
        slowness.disconnected(&1, begun + Duration::from_secs(1018));
        assert_eq!(closed(&mut slowness, begun, 1019..1039), [1038]);
    }

    #[test]
    fn it_remembers_no_more_than_it_may() {
        let (mut slowness, begun) = (Slowness::default(), Instant::now());
        for peer in 0..=MAX_PEERS as u32 {
            slowness.lost(peer, begun + Duration::from_micros(peer.into()), 0.5);
        }
        slowness.tidy(begun + Duration::from_secs(1));
        assert!(slowness.0.len() == MAX_PEERS && !slowness.0.contains_key(&0));
    }
}
