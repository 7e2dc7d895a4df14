//! How long to wait before what failed is tried again: a time that doubles with each failure up to a longest one. Half of it is
//! left to chance, so that all who lost the same server at the same moment do not come back at the same moment. Pure.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Doublings that are counted: more than any first wait needs to become any longest one, and far from an overflow.
const MOST_DOUBLINGS: u32 = 16;

/// The waits towards one target.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// It worked: the next wait is the first again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It failed. How long to wait: between half of the time it has come to and all of it; `chance` is 0.0 to 1.0, random.
    pub fn failed(&mut self, chance: f64) -> Duration {
        let most = self.first.saturating_mul(1 << self.failures.min(MOST_DOUBLINGS)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        most.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

/// From 0.0 up to 1.0, different each time and on each node. The standard library seeds each `RandomState` from the system's
/// randomness; nothing secret hangs on it.
pub fn chance() -> f64 {
    (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_double_up_to_a_bound_and_begin_again_after_a_success(
            first in 1_u64..1000,
            factor in 1_u64..10_000,
            chances in prop::collection::vec(0.0_f64..=1.0, 1..80),
        ) {
            let (first, longest) = (Duration::from_millis(first), Duration::from_millis(first * factor));
            let mut backoff = Backoff::new(first, longest);
            let mut most = first;
            for (failures, chance) in (0..).zip(&chances) {
                prop_assert_eq!(backoff.failures(), failures);
                let wait = backoff.failed(*chance);
                prop_assert!(wait >= most.mul_f64(0.5) && wait <= most, "{:?} of {:?}", wait, most);
                // Sixteen doublings are counted.
                most = (most * 2).min(longest).min(first * (1 << MOST_DOUBLINGS));
            }
            backoff.succeeded();
            prop_assert!(backoff.failed(1.0) == first);
        }
    }

    #[test]
    fn chance_is_a_part_of_one_and_not_always_the_same() {
        let drawn: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(drawn.iter().all(|chance| (0.0..1.0).contains(chance)), "{drawn:?}");
        assert!(drawn.windows(2).any(|two| two[0].to_bits() != two[1].to_bits()));
    }
}
