//! States of a market from which its log is written again, so that re-reading does not begin at the opening.

use std::sync::{Mutex, PoisonError};

use super::market::Market;

/// Ticks from one kept state to the next: 10 s, some thousand records at usual rates.
const KEEP_TICKS: u64 = 2_000;
/// States that are kept; one is some hundred kilobytes. Recent ones are close together, older ones ever farther apart.
const MAX_KEPT: usize = 48;

/// Kept states, oldest first; the first is the opening and stays for ever.
#[derive(Debug)]
pub(super) struct History(Mutex<Vec<Market>>);

impl History {
    pub(super) fn new(opening: Market) -> Self {
        Self(Mutex::new(vec![opening]))
    }

    /// Keeps a copy of a state, if it is time for one and it is newer than all.
    pub(super) fn offer(&self, market: &Market) {
        if !market.tick().is_multiple_of(KEEP_TICKS) {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.last().is_some_and(|last| last.tick() >= market.tick()) {
            return;
        }
        kept.push(market.clone());
        if kept.len() > MAX_KEPT {
            let ticks: Vec<u64> = kept.iter().map(Market::tick).collect();
            kept.remove(least_missed(&ticks));
        }
    }

    /// The newest kept state.
    pub(super) fn latest(&self) -> Option<Market> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    /// The newest kept state that has not written this position yet.
    pub(super) fn before(&self, partition: usize, position: u64) -> Option<Market> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_not =
            |market: &&Market| market.positions().get(partition).is_some_and(|next| *next <= position);
        kept.iter().rev().find(has_not).cloned()
    }
}

/// Which state is missed least: the one whose neighbours are close, as seen from its age. Never the first nor the last.
fn least_missed(ticks: &[u64]) -> usize {
    let now = ticks.last().copied().unwrap_or(0);
    let cost = |window: &[u64]| {
        let (gap, age) = (window[2] - window[0], now - window[1]);
        // Scaled up, so that small quotients differ.
        u128::from(gap) * 1_000_000 / u128::from(age.max(1))
    };
    ticks.windows(3).enumerate().min_by_key(|(_, window)| cost(window)).map_or(1, |(index, _)| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_recent_states_stay() {
        let mut ticks = vec![0];
        for tick in 1..20_000_u64 {
            ticks.push(tick * KEEP_TICKS);
            if ticks.len() > MAX_KEPT {
                ticks.remove(least_missed(&ticks));
            }
        }
        assert_eq!(ticks.len(), MAX_KEPT);
        assert_eq!(ticks[0], 0);
        let now = ticks[MAX_KEPT - 1];
        for pair in ticks.windows(2) {
            let (gap, age) = (pair[1] - pair[0], now - pair[0]);
            assert!(gap <= (age / 2).max(2 * KEEP_TICKS), "from {} to {} of {now}", pair[0], pair[1]);
        }
        assert!(ticks.is_sorted_by(|a, b| a < b));
    }
}
