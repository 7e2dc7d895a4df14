//! A circuit breaker: what fails again and again is left alone for a while. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which nothing is asked any more.
const FAILURES: u32 = 5;

/// How long nothing is asked. Then one question shows whether it works again.
const PAUSE: Duration = Duration::from_secs(5);

/// The state towards one target.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Whether the target may be asked now. Of those who ask after a pause only the first may.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        match self.open_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + PAUSE);
                true
            }
            None => true,
        }
    }

    /// Notes how a question ended. Whether the breaker has opened, or closed, by that.
    pub(super) fn note(&mut self, answered: bool, now: Instant) -> bool {
        let was_open = self.open_until.is_some();
        if answered {
            *self = Self::default();
        } else {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= FAILURES {
                self.open_until = Some(now + PAUSE);
            }
        }
        was_open != self.open_until.is_some()
    }

    pub(super) fn is_open(&self) -> bool {
        self.open_until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_with_the_first_answer() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES - 1 {
            assert!(breaker.allows(now) && !breaker.note(false, now));
        }
        // One that is answered begins the row anew.
        breaker.note(true, now);
        for n in 1..=FAILURES {
            assert_eq!((breaker.allows(now), breaker.note(false, now)), (true, n == FAILURES));
        }
        assert!(breaker.is_open() && !breaker.allows(now));
        let later = now + PAUSE;
        assert_eq!((breaker.allows(later), breaker.allows(later)), (true, false), "one tries");
        assert!(!breaker.note(false, later) && !breaker.allows(later), "in vain");
        let later = later + PAUSE;
        assert!(breaker.allows(later) && breaker.note(true, later));
        assert!(breaker.allows(later) && breaker.allows(later) && !breaker.is_open());
    }
}
