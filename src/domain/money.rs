//! Money as integers: nano-dollars for amounts, millionths for multipliers.
//!
//! Amounts are written and read as decimal strings in USD. Nothing here uses floating point.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

/// Nano-dollars in a dollar.
pub const NANOS_PER_USD: i64 = 1_000_000_000;

/// Decimal digits of a dollar that [`Money`] holds.
const MONEY_DIGITS: u32 = 9;
/// Decimal digits that [`Multiplier`] holds.
const MULTIPLIER_DIGITS: u32 = 6;

/// An amount in nano-dollars (10⁻⁹ USD). May be negative: a charge is a negative ledger entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Money(pub i64);

/// A factor in millionths: `1.0` is 1 000 000. Never negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Multiplier(pub u64);

/// Why a decimal text was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecimalError {
    /// Not digits with at most one point and an optional sign.
    #[error("not a decimal number")]
    Malformed,
    /// More digits behind the point than the unit can hold.
    #[error("more than {0} digits after the decimal point")]
    TooPrecise(u32),
    /// Too large for the unit.
    #[error("out of range")]
    OutOfRange,
    /// A sign where none is allowed.
    #[error("must not be negative")]
    Negative,
}

/// Parses a decimal text (optional sign, digits, optional point and exponent) into an integer of
/// `10^-digits` units, exactly.
pub fn parse_decimal(text: &str, digits: u32) -> Result<i128, DecimalError> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match rest.find(['e', 'E']) {
        Some(at) => {
            let exponent: i32 = rest[at + 1..]
                .parse()
                .map_err(|_| DecimalError::Malformed)?;
            (&rest[..at], exponent)
        }
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return Err(DecimalError::Malformed);
    }
    let mut value: i128 = 0;
    for b in whole.bytes().chain(fraction.bytes()) {
        value = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(i128::from(b - b'0')))
            .ok_or(DecimalError::OutOfRange)?;
    }
    // value × 10^(exponent − len(fraction)) in units of 10^-digits
    let shift = i64::from(exponent) - fraction.len() as i64 + i64::from(digits);
    if value == 0 {
        return Ok(0);
    }
    if shift >= 0 {
        let factor = u32::try_from(shift)
            .ok()
            .and_then(|s| 10i128.checked_pow(s))
            .ok_or(DecimalError::OutOfRange)?;
        value = value.checked_mul(factor).ok_or(DecimalError::OutOfRange)?;
    } else {
        for _ in 0..-shift {
            if value % 10 != 0 {
                return Err(DecimalError::TooPrecise(digits));
            }
            value /= 10;
            if value == 0 {
                break;
            }
        }
    }
    Ok(if negative { -value } else { value })
}

/// A whole number of `10^-digits` units, displayed as the shortest decimal: the inverse of
/// [`parse_decimal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decimal {
    value: i128,
    digits: u32,
}

impl Decimal {
    /// `value` units of `10^-digits`; at most 38 digits.
    pub const fn new(value: i128, digits: u32) -> Decimal {
        Decimal { value, digits }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        format_decimal(self.value, self.digits, f)
    }
}

/// Writes an integer of `10^-digits` units as a decimal text.
pub(super) fn format_decimal(value: i128, digits: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // A sign, a point and the 39 digits of the largest number.
    let mut text = [0; 41];
    let mut at = text.len();
    let mut put = |byte| {
        at -= 1;
        text[at] = byte;
    };
    let mut rest = value.unsigned_abs();
    let mut has_fraction = false;
    let mut place = 0;
    while rest > 0 || place <= digits {
        if place == digits && has_fraction {
            put(b'.');
        }
        let digit;
        (rest, digit) = tenth(rest);
        has_fraction |= place < digits && digit > 0;
        if place >= digits || has_fraction {
            put(b'0' + digit);
        }
        place += 1;
    }
    if value < 0 {
        put(b'-');
    }
    f.write_str(std::str::from_utf8(&text[at..]).unwrap_or_default())
}

/// A number without its last digit, and that digit. Nearly all fit into a register.
fn tenth(number: u128) -> (u128, u8) {
    match u64::try_from(number) {
        Ok(small) => (u128::from(small / 10), (small % 10) as u8),
        Err(_) => (number / 10, (number % 10) as u8),
    }
}

impl Money {
    /// Nothing.
    pub const ZERO: Money = Money(0);

    /// Whole dollars.
    pub const fn from_usd(usd: i64) -> Money {
        Money(usd * NANOS_PER_USD)
    }

    /// Whether there is anything left to spend.
    pub const fn is_positive(self) -> bool {
        self.0 > 0
    }

    /// The amount in dollars for a metric, where a float is the format. Never used in arithmetic.
    pub fn as_usd_f64(self) -> f64 {
        self.0 as f64 / NANOS_PER_USD as f64
    }

    /// `self + other`, stopping at the ends of the range rather than wrapping.
    pub const fn saturating_add(self, other: Money) -> Money {
        Money(self.0.saturating_add(other.0))
    }
}

impl FromStr for Money {
    type Err = DecimalError;
    fn from_str(text: &str) -> Result<Money, DecimalError> {
        let value = parse_decimal(text, MONEY_DIGITS)?;
        i64::try_from(value)
            .map(Money)
            .map_err(|_| DecimalError::OutOfRange)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        format_decimal(i128::from(self.0), MONEY_DIGITS, f)
    }
}

impl serde::Serialize for Money {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Add for Money {
    type Output = Money;
    fn add(self, other: Money) -> Money {
        self.saturating_add(other)
    }
}

impl Sub for Money {
    type Output = Money;
    fn sub(self, other: Money) -> Money {
        Money(self.0.saturating_sub(other.0))
    }
}

impl AddAssign for Money {
    fn add_assign(&mut self, other: Money) {
        *self = *self + other;
    }
}

impl SubAssign for Money {
    fn sub_assign(&mut self, other: Money) {
        *self = *self - other;
    }
}

impl Neg for Money {
    type Output = Money;
    fn neg(self) -> Money {
        Money(self.0.saturating_neg())
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Money>>(items: I) -> Money {
        items.fold(Money::ZERO, Add::add)
    }
}

impl Multiplier {
    /// × 1.
    pub const ONE: Multiplier = Multiplier(1_000_000);

    /// `amount` × this, rounded half up to the nano-dollar; stops at the end of the range.
    pub fn of(self, amount: Money) -> Money {
        let product = i128::from(amount.0) * i128::from(self.0);
        let rounded = (product + 500_000).div_euclid(1_000_000);
        Money(i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX }))
    }
}

impl Default for Multiplier {
    fn default() -> Multiplier {
        Multiplier::ONE
    }
}

impl FromStr for Multiplier {
    type Err = DecimalError;
    fn from_str(text: &str) -> Result<Multiplier, DecimalError> {
        let value = parse_decimal(text, MULTIPLIER_DIGITS)?;
        if value < 0 {
            return Err(DecimalError::Negative);
        }
        // A million-fold is beyond any sane price and keeps cost × multiplier far inside i128.
        u64::try_from(value)
            .ok()
            .filter(|v| *v <= 1_000_000_000_000)
            .map(Multiplier)
            .ok_or(DecimalError::OutOfRange)
    }
}

impl fmt::Display for Multiplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        format_decimal(i128::from(self.0), MULTIPLIER_DIGITS, f)
    }
}

impl serde::Serialize for Multiplier {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_exactly() {
        for (text, nanos, back) in [
            ("0", 0, "0"),
            ("10.00", 10_000_000_000, "10"),
            ("0.000000001", 1, "0.000000001"),
            ("-1.5", -1_500_000_000, "-1.5"),
            (".5", 500_000_000, "0.5"),
            ("2.5e-6", 2_500, "0.0000025"),
            ("1e3", 1_000_000_000_000, "1000"),
        ] {
            let money: Money = text.parse().unwrap();
            assert_eq!(money.0, nanos, "{text}");
            assert_eq!(money.to_string(), back);
        }
    }

    #[test]
    fn bad_amounts_are_refused() {
        for (text, why) in [
            ("", DecimalError::Malformed),
            (".", DecimalError::Malformed),
            ("1,5", DecimalError::Malformed),
            ("0x10", DecimalError::Malformed),
            ("1.0.0", DecimalError::Malformed),
            ("NaN", DecimalError::Malformed),
            ("0.0000000001", DecimalError::TooPrecise(9)),
            ("99999999999", DecimalError::OutOfRange),
            ("1e400", DecimalError::OutOfRange),
        ] {
            assert_eq!(text.parse::<Money>(), Err(why), "{text}");
        }
    }

    #[test]
    fn multipliers_are_never_negative() {
        assert_eq!("1.0".parse(), Ok(Multiplier::ONE));
        assert_eq!("0.85".parse(), Ok(Multiplier(850_000)));
        assert_eq!("-1".parse::<Multiplier>(), Err(DecimalError::Negative));
        assert_eq!(Multiplier(1_250_000).to_string(), "1.25");
        assert_eq!(Multiplier(1_500_000).of(Money(3)), Money(5), "half up");
        assert_eq!(Multiplier(1_500_000).of(Money(-3)), Money(-4));
        assert_eq!(Multiplier(0).of(Money(i64::MAX)), Money(0));
        assert_eq!(Multiplier(u64::MAX).of(Money(i64::MAX)), Money(i64::MAX));
    }

    #[test]
    fn decimals_of_any_size_are_the_shortest_and_come_back() {
        for (value, digits, text) in [
            (0, 0, "0"),
            (0, 9, "0"),
            (-1, 0, "-1"),
            (7, 9, "0.000000007"),
            (-1_500_000_000, 9, "-1.5"),
            (10_000_000_000, 9, "10"),
            (i128::from(u64::MAX) + 1, 3, "18446744073709551.616"),
            (i128::MAX, 38, "1.70141183460469231731687303715884105727"),
            (i128::MIN, 38, "-1.70141183460469231731687303715884105728"),
            (i128::MIN, 0, "-170141183460469231731687303715884105728"),
            (-1, 38, "-0.00000000000000000000000000000000000001"),
        ] {
            assert_eq!(Decimal::new(value, digits).to_string(), text);
            if value > i128::MIN {
                assert_eq!(parse_decimal(text, digits), Ok(value), "{text}");
            }
        }
    }
}
