//! Peers that send what no honest peer sends are not listened to for a while. Pure: no I/O, no clock.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Invalid messages after which a peer is muted. One may be a broken packet of a broken peer; five are a habit.
const STRIKES: u32 = 5;

/// Strikes are forgotten, and a muted peer is heard again, when this has passed since the last: long enough that
/// checking its messages costs nothing, short enough that a peer that was repaired is soon back.
const MEMORY: Duration = Duration::from_secs(30);

/// Peers remembered. Whoever has the network key can make new peer ids at will; the oldest strikes are then forgotten.
const MAX_PEERS: usize = 4096;

/// What peers have done lately.
#[derive(Debug)]
pub(super) struct Penalties<P>(HashMap<P, Strikes>);

#[derive(Clone, Copy, Debug)]
struct Strikes {
    count: u32,
    last: Instant,
}

impl<P> Default for Penalties<P> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<P: Copy + Eq + Hash> Penalties<P> {
    /// A peer sent an invalid message. Whether it is to be muted from now on.
    pub(super) fn strike(&mut self, peer: P, now: Instant) -> bool {
        let strikes = self.0.entry(peer).or_insert(Strikes { count: 0, last: now });
        strikes.count = strikes.count.saturating_add(1);
        strikes.last = now;
        strikes.count == STRIKES
    }

    /// Takes out peers whose time is over; those among them that were muted are to be heard again.
    pub(super) fn forgiven(&mut self, now: Instant) -> Vec<P> {
        let mut over: Vec<(P, Strikes)> =
            self.0.extract_if(|_, strikes| now.duration_since(strikes.last) >= MEMORY).collect();
        while self.0.len() > MAX_PEERS {
            let Some((oldest, _)) = self.0.iter().min_by_key(|(_, strikes)| strikes.last) else { break };
            let oldest = *oldest;
            over.extend(self.0.remove(&oldest).map(|strikes| (oldest, strikes)));
        }
        over.into_iter().filter(|(_, strikes)| strikes.count >= STRIKES).map(|(peer, _)| peer).collect()
    }

    /// How many peers are muted.
    pub(super) fn muted(&self) -> usize {
        self.0.values().filter(|strikes| strikes.count >= STRIKES).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_muted_once_and_heard_again_later() {
        let mut penalties = Penalties::default();
        let start = Instant::now();
        let muted: Vec<_> = (0..STRIKES + 3).map(|_| penalties.strike(1, start)).collect();
        assert_eq!(muted.iter().filter(|muted| **muted).count(), 1);
        assert!(muted[STRIKES as usize - 1]);
        assert!(!penalties.strike(2, start));
        assert_eq!(penalties.muted(), 1);
        assert!(penalties.forgiven(start + MEMORY / 2).is_empty());
        penalties.strike(1, start + MEMORY / 2);
        assert!(penalties.forgiven(start + MEMORY).is_empty(), "it went on");
        assert_eq!(penalties.forgiven(start + MEMORY * 2), vec![1]);
        assert!(penalties.0.is_empty());
    }

    #[test]
    fn peers_are_remembered_within_a_bound() {
        let mut penalties = Penalties::default();
        let now = Instant::now();
        for peer in 0..MAX_PEERS + 10 {
            penalties.strike(peer, now);
        }
        penalties.forgiven(now);
        assert_eq!(penalties.0.len(), MAX_PEERS);
    }
}
