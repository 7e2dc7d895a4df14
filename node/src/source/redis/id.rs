//! The ids of entries, and the positions they give.
//!
//! An id is `ms-n`: a time in milliseconds, by Redis or by who wrote, and a number within it. Ids rise along a stream, so
//! `(ms − 1577836800000) << 12 | n` does, where both fit: from 2020 on, until 2089, and 4096 entries of one millisecond.

use std::{fmt, str::FromStr};

use tickmesh_protocol::position::MAX_SEQUENCE;

/// 2020-01-01 UTC in milliseconds since 1970: the first time that has a position.
const FIRST_MS: u64 = 1_577_836_800_000;
/// Bits of `n` in a position: 4096 entries of one millisecond, four million a second. 41 bits are left for the time.
const NUMBER_BITS: u32 = 12;
const MAX_NUMBER: u64 = (1 << NUMBER_BITS) - 1;

/// The id of an entry of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    pub(super) ms: u64,
    pub(super) n: u64,
}

impl Id {
    /// Before every entry: no entry has it.
    pub(super) const ZERO: Self = Self { ms: 0, n: 0 };

    /// The position; `None`, if there is none for this id.
    pub(super) fn position(self) -> Option<u64> {
        let ms = self.ms.checked_sub(FIRST_MS)?;
        if self.n > MAX_NUMBER || ms > MAX_SEQUENCE >> NUMBER_BITS {
            return None;
        }
        Some(ms << NUMBER_BITS | self.n)
    }

    /// The least position that an id after this one can have; the last there is, if none can.
    pub(super) fn next_position(self) -> u64 {
        let Some(ms) = self.ms.checked_sub(FIRST_MS) else { return 0 };
        let last = MAX_SEQUENCE;
        if ms > last >> NUMBER_BITS {
            return last;
        }
        let next =
            if self.n >= MAX_NUMBER { (ms + 1) << NUMBER_BITS } else { (ms << NUMBER_BITS | self.n) + 1 };
        next.min(last)
    }

    /// The id that has a position.
    pub(super) fn at(position: u64) -> Self {
        Self { ms: FIRST_MS + (position >> NUMBER_BITS), n: position & MAX_NUMBER }
    }

    /// The last id that has a position before this one: reading on after it gives the entry at the position.
    pub(super) fn before(position: u64) -> Self {
        position.checked_sub(1).map_or(Self::ZERO, Self::at)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

/// A text that is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoId;

impl FromStr for Id {
    type Err = NoId;

    fn from_str(text: &str) -> Result<Self, NoId> {
        let (ms, n) = text.split_once('-').ok_or(NoId)?;
        let number = |text: &str| {
            // No sign, as Rust would take one.
            if text.starts_with('+') { Err(NoId) } else { text.parse().map_err(|_| NoId) }
        };
        Ok(Self { ms: number(ms)?, n: number(n)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_id() -> impl Strategy<Value = Id> {
        let last = FIRST_MS + (1 << 41);
        let ms = prop_oneof![
            0..5_u64,
            FIRST_MS - 3..FIRST_MS + 3,
            last - 3..last + 3,
            any::<u64>(),
            FIRST_MS..last
        ];
        let n = prop_oneof![0..4_u64, 4094..4098_u64, any::<u64>()];
        (ms, n).prop_map(|(ms, n)| Id { ms, n })
    }

    #[test]
    fn a_position_is_the_time_since_2020_and_the_number() {
        assert_eq!(Id { ms: FIRST_MS, n: 0 }.position(), Some(0));
        assert_eq!(Id { ms: FIRST_MS + 2, n: 5 }.position(), Some(2 * 4096 + 5));
        assert_eq!(Id { ms: FIRST_MS - 1, n: 0 }.position(), None, "before 2020");
        assert_eq!(Id { ms: FIRST_MS, n: 4096 }.position(), None, "too many within a millisecond");
        assert_eq!(Id { ms: FIRST_MS + (1 << 41) - 1, n: 4095 }.position(), Some(MAX_SEQUENCE));
        assert_eq!(Id { ms: FIRST_MS + (1 << 41), n: 0 }.position(), None, "beyond any sequence");
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "-", "1", "1-", "-1", "1-2-3", "+1-2", "1-+2", " 1-2", "18446744073709551616-0"] {
            assert_eq!(text.parse::<Id>(), Err(NoId), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn ids_and_positions_have_one_order(a in any_id(), b in any_id()) {
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            if let Some(position) = a.position() {
                prop_assert_eq!(Id::at(position), a);
                prop_assert!(Id::before(position) < a);
                prop_assert!(Id::before(position).next_position() <= position);
            }
            if let (Some(first), Some(second)) = (a.position(), b.position()) {
                prop_assert_eq!(first.cmp(&second), a.cmp(&b));
            }
            // Whatever comes after an id has the next position or a later one.
            if let Some(second) = b.position().filter(|_| a < b) {
                prop_assert!(a.next_position() <= second, "{} then {}", a, b);
            }
        }
    }
}
