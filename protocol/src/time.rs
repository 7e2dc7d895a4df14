//! Time as the state machines see it: a number that only rises, from any beginning.

use std::{
    fmt,
    ops::{Add, AddAssign},
    time::Duration,
};

/// A moment of a monotonic clock: microseconds since some start that only its process knows. Moments of two processes
/// must not be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The start of the clock.
    pub const START: Self = Self(0);

    /// So much after the start.
    pub fn after(since_start: Duration) -> Self {
        Self::START + since_start
    }

    /// Time that has passed since an earlier moment; none, if that is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// So much earlier, but not before the start.
    pub fn before(self, duration: Duration) -> Self {
        Self::after(self.since_start().saturating_sub(duration))
    }

    /// Time since the start.
    pub fn since_start(self) -> Duration {
        Duration::from_micros(self.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}ms", self.0 / 1000, self.0 % 1000)
    }
}
