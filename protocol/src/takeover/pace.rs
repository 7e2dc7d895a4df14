//! How many batches may leave: a token bucket in virtual time, slower while the machine is behind.
//!
//! A machine without free CPU wakes this peer late. To send as many batches as before would then keep it behind, with
//! queues that grow until something is dropped; half as many, each twice as large, carry the same events.

use std::time::Duration;

use crate::Moment;

/// What may leave at once after a pause: the budget of this long. Short, so that even a burst leaves the queues of the
/// mesh nearly empty.
const BURST: Duration = Duration::from_millis(20);

/// Lateness that halves the pace. A free machine wakes a thread within tenths of a millisecond, and the timer of the
/// runtime rounds up to whole ones.
const LATE: Duration = Duration::from_millis(2);

/// The least that is left of the pace.
const SLOWEST: f64 = 0.1;

/// How much the last lateness counts in the average: about the last twenty count.
const NEWEST: f64 = 0.05;

/// Allows so many batches per second.
#[derive(Debug)]
pub(super) struct Pace {
    /// On a machine that is not behind.
    most_per_second: f64,
    per_second: f64,
    late_seconds: f64,
    allowed: f64,
    at: Option<Moment>,
}

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        let allowed = Self::burst(per_second);
        Self { most_per_second: per_second, per_second, late_seconds: 0.0, allowed, at: None }
    }

    /// Notes how late this peer was woken.
    pub(super) fn woken(&mut self, late: Duration) {
        self.late_seconds += NEWEST * (late.as_secs_f64() - self.late_seconds);
        let share = 1.0 / (1.0 + self.late_seconds / LATE.as_secs_f64());
        self.per_second = self.most_per_second * share.max(SLOWEST);
    }

    /// Takes one, if one is allowed by `now`.
    pub(super) fn take(&mut self, now: Moment) -> bool {
        let since = self.at.map_or(Duration::ZERO, |at| now.since(at));
        self.allowed =
            (self.allowed + since.as_secs_f64() * self.per_second).min(Self::burst(self.per_second));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        let taken = self.allowed >= 1.0;
        if taken {
            self.allowed -= 1.0;
        }
        taken
    }

    /// When one will be allowed.
    pub(super) fn next(&self) -> Option<Moment> {
        let missing = (1.0 - self.allowed).max(0.0);
        // Rounded up, so that what is due then is allowed then.
        let wait = Duration::from_secs_f64(missing / self.per_second) + Duration::from_micros(1);
        self.at.filter(|_| missing > 0.0).map(|at| at + wait)
    }

    fn burst(per_second: f64) -> f64 {
        (per_second * BURST.as_secs_f64()).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let begun = Moment::START;
        let mut pace = Pace::new(1000);
        let burst = (0..1000).filter(|_| pace.take(begun)).count();
        assert_eq!(burst, 20);
        let mut now = begun;
        for _ in 0..1000 {
            now = pace.next().unwrap();
            assert!(pace.take(now));
            assert!(!pace.take(now));
        }
        let took = now.since(begun).as_secs_f64();
        assert!((0.99..1.02).contains(&took), "1000 took {took} s of virtual time");
    }

    #[test]
    fn it_slows_down_while_woken_late_and_recovers() {
        let mut pace = Pace::new(1000);
        for _ in 0..200 {
            pace.woken(LATE);
        }
        assert!((499.0..501.0).contains(&pace.per_second), "{}", pace.per_second);
        pace.woken(Duration::from_secs(3600));
        assert!(pace.per_second >= 1000.0 * SLOWEST);
        for _ in 0..1000 {
            pace.woken(Duration::ZERO);
        }
        assert!(pace.per_second > 999.0);
    }

    #[test]
    fn time_that_stands_still_or_goes_back_allows_nothing() {
        let begun = Moment::START + Duration::from_secs(10);
        let mut pace = Pace::new(100);
        while pace.take(begun) {}
        assert!(!pace.take(begun) && !pace.take(begun.before(Duration::from_secs(5))) && !pace.take(begun));
    }
}
