//! Decimal numbers compared exactly: never through binary floating point, and whatever way they are spelled.

use std::cmp::Ordering;

/// Longest text of a number, in bytes: [`MAX_DIGITS`] with sign, point, zeros before and after, and an exponent.
pub const MAX_DECIMAL_BYTES: usize = 64;

/// Most significant digits: as many as a `u128` holds. Twenty before the point and eighteen after it are more than any
/// exchange quotes.
pub const MAX_DIGITS: u32 = 38;

/// `sign` × 0.`mantissa` × 10^`exponent`, the mantissa's first digit not zero, so that each number is spelled in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    sign: i8,
    exponent: i32,
    mantissa: u128,
}

impl Decimal {
    const ZERO: Self = Self { sign: 0, exponent: 0, mantissa: 0 };

    /// Digits with an optional sign, point and exponent, as JSON writes numbers; zeros may lead.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_DECIMAL_BYTES {
            return None;
        }
        let (sign, number) = text.strip_prefix('-').map_or((1, text), |number| (-1, number));
        let (number, exponent) = match number.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, exponent.parse::<i16>().ok()?),
            None => (number, 0),
        };
        let (whole, part) = match number.split_once('.') {
            Some((_, "")) => return None,
            Some(halves) => halves,
            None => (number, ""),
        };
        if whole.is_empty() || !whole.bytes().chain(part.bytes()).all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (mut mantissa, mut digits, mut leading) = (0_u128, 0, 0);
        for byte in whole.bytes().chain(part.bytes()) {
            let digit = u128::from(byte - b'0');
            if digits == 0 && digit == 0 {
                leading += 1;
            } else if digits < MAX_DIGITS {
                mantissa = mantissa * 10 + digit;
                digits += 1;
            } else if digit > 0 {
                return None;
            }
        }
        if digits == 0 {
            return Some(Self::ZERO);
        }
        let exponent = i32::from(exponent) + i32::try_from(whole.len()).ok()? - leading;
        Some(Self { sign, exponent, mantissa: mantissa * 10_u128.pow(MAX_DIGITS - digits) })
    }

    pub(super) fn is_zero(self) -> bool {
        self.sign == 0
    }

    pub(super) fn is_negative(self) -> bool {
        self.sign < 0
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_size = || (self.exponent, self.mantissa).cmp(&(other.exponent, other.mantissa));
        self.sign.cmp(&other.sign).then_with(|| if self.sign < 0 { by_size().reverse() } else { by_size() })
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap_or_else(|| panic!("{text:?} is a number"))
    }

    #[test]
    fn one_number_has_many_spellings() {
        for spelled in [
            "1.1",
            "1.10",
            "01.1",
            "11e-1",
            "0.11e1",
            "0.0011E+3",
            "1.1000000000000000000000000000000000000000000",
        ] {
            assert_eq!(decimal(spelled), decimal("1.1"), "{spelled}");
        }
        for zero in ["0", "0.00", "-0", "0e5", "000"] {
            assert!(decimal(zero).is_zero(), "{zero}");
            assert_eq!(decimal(zero), decimal("0"));
        }
    }

    #[test]
    fn what_doubles_confuse_is_told_apart() {
        assert!(decimal("0.1") < decimal("0.10000000000000000000000000000000001"));
        assert!(decimal("9007199254740993") > decimal("9007199254740992"));
        assert!(decimal("99999999999999999999.999999999999999999") < decimal("1e20"));
        assert!(decimal("1e-9999") > decimal("0"));
    }

    #[test]
    fn what_is_no_number_or_too_long_is_refused() {
        let digits = "1".repeat(MAX_DIGITS as usize + 1);
        let long = format!("1.{}", "0".repeat(MAX_DECIMAL_BYTES));
        for text in [
            "", "-", ".5", "5.", "+1", "--1", "1e", "1e99999", "1.2.3", "1,5", "NaN", "inf", "0x1", " 1",
            "١", &digits, &long,
        ] {
            assert_eq!(Decimal::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        /// Integers of ten decimals, spelled in different ways, are ordered like the integers.
        #[test]
        fn order_is_that_of_the_numbers(one in -1_000_000_i64..1_000_000, other: i64, zeros in 0..9_usize) {
            let fixed = |value: i64| {
                let sign = if value < 0 { "-" } else { "" };
                let (whole, part) = (value.unsigned_abs() / 10_000, value.unsigned_abs() % 10_000);
                format!("{sign}{}{whole}.{part:04}{}", "0".repeat(zeros), "0".repeat(zeros))
            };
            let scientific = |value: i64| format!("{value}e-4");
            for (one, other) in [(one, other), (one, one), (one, one + 1)] {
                prop_assert_eq!(decimal(&fixed(one)).cmp(&decimal(&scientific(other))), one.cmp(&other));
            }
        }
    }
}
