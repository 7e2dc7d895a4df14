//! Decimal numbers as exchanges write them: exact, and as long as they are written.
//!
//! Prices and quantities are texts of decimal digits. Binary floating point holds most of them only nearly, and sums and products
//! of those show it. Here every sum, difference and product is exact, with the digits that Python's `decimal` gives as well:
//! a sum has as many decimal places as its longer part, a product as many as both together. Only a quotient may have no
//! end; it has at most 34 significant digits then, as IEEE 754 decimal128 has, the last one rounded half to even.

use std::{fmt, num::NonZeroU64, str::FromStr};

use bigdecimal::{
    BigDecimal, RoundingMode, Zero,
    num_bigint::{BigInt, Sign},
};
use bincode::{
    BorrowDecode, Decode, Encode,
    de::{BorrowDecoder, Decoder},
    enc::Encoder,
    error::{DecodeError, EncodeError},
};

/// Most digits of a number that is calculated with, and most places that its point may be away from them: more than any price has
/// in any currency. It bounds what one step of a program can cost.
pub const MAX_DIGITS: u64 = 100;

/// Significant digits of a quotient without end.
const QUOTIENT_DIGITS: NonZeroU64 = match NonZeroU64::new(34) {
    Some(digits) => digits,
    None => NonZeroU64::MIN,
};

/// A decimal number.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(BigDecimal);

/// Why a text or a result is no number to calculate with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    #[error("no decimal number")]
    Syntax,
    #[error("a number of more than {MAX_DIGITS} digits")]
    TooLong,
    #[error("division by zero")]
    DivisionByZero,
}

impl Decimal {
    /// The quotient; without zeros at its end, since nobody wrote any.
    ///
    /// # Errors
    /// If the divisor is zero, or the result too long.
    pub fn divide(&self, divisor: &Self) -> Result<Self, DecimalError> {
        if divisor.0.is_zero() {
            return Err(DecimalError::DivisionByZero);
        }
        let quotient = &self.0 / &divisor.0;
        let quotient = if quotient.digits() > QUOTIENT_DIGITS.get() {
            quotient.with_precision_round(QUOTIENT_DIGITS, RoundingMode::HalfEven)
        } else {
            quotient
        };
        Self(quotient.normalized()).bounded()
    }

    /// The remainder of a division that rounds to zero: it has the sign of the dividend.
    ///
    /// # Errors
    /// If the divisor is zero, or the result too long.
    pub fn remainder(&self, divisor: &Self) -> Result<Self, DecimalError> {
        if divisor.0.is_zero() {
            return Err(DecimalError::DivisionByZero);
        }
        Self(&self.0 % &divisor.0).bounded()
    }

    /// # Errors
    /// If the result is too long.
    pub fn plus(&self, other: &Self) -> Result<Self, DecimalError> {
        self.sum(other).bounded()
    }

    /// # Errors
    /// If the result is too long.
    pub fn minus(&self, other: &Self) -> Result<Self, DecimalError> {
        self.difference(other).bounded()
    }

    /// # Errors
    /// If the result is too long.
    pub fn times(&self, other: &Self) -> Result<Self, DecimalError> {
        self.product(other).bounded()
    }

    /// The sum of numbers that are known to be short enough ([`Self::fits`]): it is exact, however long.
    #[must_use]
    pub fn sum(&self, other: &Self) -> Self {
        Self(&self.0 + &other.0)
    }

    /// As [`Self::sum`].
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// As [`Self::sum`].
    #[must_use]
    pub fn product(&self, other: &Self) -> Self {
        Self(&self.0 * &other.0)
    }

    /// The number with its point moved to the right.
    #[must_use]
    pub fn times_ten_to(&self, places: i64) -> Self {
        Self(&self.0 * BigDecimal::new(1.into(), -places))
    }

    /// The nearest number with so many decimal places, in a direction.
    #[must_use]
    pub fn rounded_to(&self, places: i64, mode: RoundingMode) -> Self {
        Self(self.0.with_scale_round(places, mode))
    }

    pub fn is_negative(&self) -> bool {
        self.0.sign() == Sign::Minus
    }

    /// Whether it has at most so many digits, none of them further from the point.
    pub fn fits(&self, digits: u64) -> bool {
        let places = self.0.fractional_digit_count();
        // What stands before the point, with the zeros of an exponent.
        let whole = self.0.digits().cast_signed() - places;
        self.0.digits() <= digits && places.max(whole) <= digits.cast_signed()
    }

    #[must_use]
    pub fn negated(&self) -> Self {
        Self(-&self.0)
    }

    fn bounded(self) -> Result<Self, DecimalError> {
        let in_reach = self.0.fractional_digit_count().unsigned_abs() <= MAX_DIGITS;
        if in_reach && self.0.digits() <= MAX_DIGITS { Ok(self) } else { Err(DecimalError::TooLong) }
    }

    /// Whether it has decimal places, zeros as well.
    pub fn has_places(&self) -> bool {
        self.0.fractional_digit_count() > 0
    }
}

impl From<BigInt> for Decimal {
    fn from(integer: BigInt) -> Self {
        Self(BigDecimal::from_bigint(integer, 0))
    }
}

impl FromStr for Decimal {
    type Err = DecimalError;

    /// Reads a number as JSON writes it (RFC 8259): nothing before or behind, no `+` in front, no `_` between.
    fn from_str(text: &str) -> Result<Self, DecimalError> {
        // Its exponent could be of any size, and its digits of any number.
        if text.len() > 4 * MAX_DIGITS as usize {
            return Err(DecimalError::TooLong);
        }
        let digits = text.strip_prefix('-').unwrap_or(text);
        let written = digits.starts_with(|first: char| first.is_ascii_digit())
            && digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
        if !written {
            return Err(DecimalError::Syntax);
        }
        Self(BigDecimal::from_str(text).map_err(|_| DecimalError::Syntax)?).bounded()
    }
}

impl fmt::Display for Decimal {
    /// Digits and a point, never an exponent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write_plain_string(f)
    }
}

/// As its text.
impl Encode for Decimal {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.to_string().encode(encoder)
    }
}

impl<C> Decode<C> for Decimal {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        String::decode(decoder)?
            .parse()
            .map_err(|error: DecimalError| DecodeError::OtherString(error.to_string()))
    }
}

impl<'de, C> BorrowDecode<'de, C> for Decimal {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    #[test]
    fn digits_are_kept_and_results_are_exact() {
        let (a, b) = (decimal("0.10"), decimal("0.2"));
        assert_eq!(a.to_string(), "0.10");
        assert_eq!(a.plus(&b).unwrap().to_string(), "0.30");
        assert_eq!(a.minus(&b).unwrap().to_string(), "-0.10");
        assert_eq!(a.times(&b).unwrap().to_string(), "0.020");
        assert_eq!(a.divide(&b).unwrap().to_string(), "0.5");
        assert_eq!(decimal("-7.5").remainder(&decimal("2")).unwrap().to_string(), "-1.5");
        assert_eq!(decimal("1e-7").to_string(), "0.0000001");
        assert_eq!(decimal("1.5E+3").to_string(), "1500");
        assert!(decimal("36200.50") > decimal("36200.499999999999999999999999999999"));
    }

    #[test]
    fn a_quotient_without_end_has_34_digits() {
        let third = decimal("1").divide(&decimal("3")).unwrap();
        assert_eq!(third.to_string(), format!("0.{}", "3".repeat(34)));
        let two_thirds = decimal("200").divide(&decimal("3")).unwrap();
        assert_eq!(two_thirds.to_string(), format!("66.{}7", "6".repeat(31)));
        assert_eq!(decimal("1").divide(&decimal("0.0")), Err(DecimalError::DivisionByZero));
    }

    #[test]
    fn what_is_no_number_or_too_long_is_refused() {
        for text in ["", "-", "+1", "1_000", " 1", "1 ", "0x10", "NaN", "inf", "--1", ".5"] {
            assert_eq!(text.parse::<Decimal>(), Err(DecimalError::Syntax), "{text}");
        }
        let long = "9".repeat(101);
        for text in
            [long.as_str(), "1e101", "1e-101", "1e999999999", "-1e-9999999999", &"1".repeat(1_000_000)]
        {
            assert!(text.parse::<Decimal>().is_err(), "{text}");
        }
        let most = decimal(&"9".repeat(100));
        assert_eq!(most.times(&most), Err(DecimalError::TooLong));
    }

    proptest! {
        #[test]
        fn sums_can_be_undone(a in "-?[0-9]{1,20}(\\.[0-9]{1,12})?", b in "-?[0-9]{1,20}(\\.[0-9]{1,12})?") {
            let (a, b) = (decimal(&a), decimal(&b));
            prop_assert_eq!(a.plus(&b).unwrap().minus(&b).unwrap(), a);
        }

        #[test]
        fn any_text_has_an_outcome(text in "[-+0-9.eE]{0,40}") {
            if let Ok(number) = text.parse::<Decimal>() {
                prop_assert_eq!(number.to_string().parse::<Decimal>().unwrap(), number);
            }
        }
    }
}
