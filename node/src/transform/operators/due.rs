//! What is due at which event time.

use std::collections::BTreeSet;

/// Keys by the time at which something is to be done about them; each at most once.
#[derive(Debug)]
pub(super) struct Due<K>(BTreeSet<(u64, K)>);

impl<K: Ord + Clone> Due<K> {
    pub(super) const fn new() -> Self {
        Self(BTreeSet::new())
    }

    pub(super) fn set(&mut self, at_ms: u64, key: K) {
        self.0.insert((at_ms, key));
    }

    pub(super) fn unset(&mut self, at_ms: u64, key: &K) {
        self.0.remove(&(at_ms, key.clone()));
    }

    /// The next key that is due by `now_ms`, and no longer after this.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<K> {
        let first = self.0.first()?;
        if first.0 > now_ms {
            return None;
        }
        self.0.pop_first().map(|(_, key)| key)
    }
}
