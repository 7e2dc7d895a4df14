//! How long to wait before the next attempt, and at which edge it is made.

use std::time::Duration;

use tickmesh::ops::backoff::chance;
use tickmesh_protocol::client::CloseCode;

/// What the first wait may be, doubled with each failure up to the last. Each is drawn between nothing and that (full jitter), so
/// that the clients of a lost edge do not come back all at once.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

/// A connection that lived shorter than this did not really succeed: the waits go on where they were.
const STABLE: Duration = Duration::from_secs(5);

/// What an edge at least wants that has a fault, or too many clients.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A connection was lost, or there was none. `lived`: how long it did.
    pub(super) fn failed(&mut self, lived: Duration, closed_with: Option<u16>) -> Duration {
        if lived >= STABLE {
            self.failures = 0;
        }
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let patient = [CloseCode::Internal, CloseCode::Rate].map(CloseCode::code);
        let least = closed_with.filter(|code| patient.contains(code)).map_or(Duration::ZERO, |_| PAUSE);
        least + ceiling.mul_f64(chance())
    }
}

/// Whether coming back without a change is useless after a close code.
pub(super) fn is_final(code: u16) -> bool {
    [CloseCode::Protocol, CloseCode::NotUtf8, CloseCode::Policy, CloseCode::TooBig]
        .map(CloseCode::code)
        .contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_again_after_a_connection_that_lived() {
        let mut backoff = Backoff::default();
        for failure in 0..100 {
            let ceiling = FIRST.saturating_mul(1 << failure.min(10)).min(LONGEST);
            let wait = backoff.failed(Duration::ZERO, None);
            assert!(wait <= ceiling, "{wait:?} after {failure} failures");
        }
        assert!(backoff.failed(STABLE, None) <= FIRST);
        for code in [1011, 4429] {
            assert!(backoff.failed(STABLE, Some(code)) >= PAUSE);
        }
    }

    #[test]
    fn close_codes_that_say_so_are_final() {
        for code in [1002, 1007, 1008, 1009] {
            assert!(is_final(code), "{code}");
        }
        for code in [1000, 1001, 1006, 1011, 4401, 4408, 4429] {
            assert!(!is_final(code), "{code}");
        }
    }
}
