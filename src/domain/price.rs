//! Prices per model, as data. How a request is priced is the billing room's matter.
//!
//! [`parse_entry`] reads one entry of a LiteLLM-style price map; the price map file and the
//! `prices:` of the resources are both read with it.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::money::{DecimalError, Money, format_decimal, parse_decimal};

/// Decimal digits of a dollar that [`Price`] holds.
const PRICE_DIGITS: u32 = 15;
/// Digits read of a price that is finer than that, before it is rounded.
const FINE_DIGITS: u32 = 33;

/// A price per token (or image) in femto-dollars (10⁻¹⁵ USD): every price of the published maps is
/// a whole number of them.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Price(pub i64);

impl Price {
    /// What a million of them cost, exactly: a femto-dollar a million times is a nano-dollar.
    pub const fn per_million(self) -> Money {
        Money(self.0)
    }
}

impl fmt::Display for Price {
    /// As a decimal number of dollars.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        format_decimal(i128::from(self.0), PRICE_DIGITS, f)
    }
}

/// What every input and output token of a request costs once its context (input + cache read) is
/// longer than a threshold. `None` = as below the threshold. Cache prices do not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LongContext {
    /// The last context, in tokens, that is still priced normally.
    pub threshold_tokens: u64,
    /// Uncached input token.
    pub input: Option<Price>,
    /// Output token.
    pub output: Option<Price>,
    /// `priority` tier.
    pub input_priority: Option<Price>,
    /// `priority` tier.
    pub output_priority: Option<Price>,
}

/// Prices of one model. `None` = the price map says nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelPrice {
    /// Uncached input token.
    pub input: Option<Price>,
    /// Output token.
    pub output: Option<Price>,
    /// Token written to the 5-minute cache.
    pub cache_creation: Option<Price>,
    /// Token written to the 1-hour cache.
    pub cache_creation_1h: Option<Price>,
    /// Token read from the cache.
    pub cache_read: Option<Price>,
    /// `priority` tier.
    pub input_priority: Option<Price>,
    /// `priority` tier.
    pub output_priority: Option<Price>,
    /// `priority` tier.
    pub cache_read_priority: Option<Price>,
    /// One image.
    pub output_image: Option<Price>,
    /// One token of an image.
    pub output_image_token: Option<Price>,
    /// Prices of long requests.
    pub long_context: Option<LongContext>,
    /// Most tokens the model reads, where the price map says so; never zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_input_tokens: Option<u64>,
    /// Most tokens the model writes, where the price map says so; never zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
}

/// Fields of an entry that say nothing of its price but are in the price map; conf/update-prices.py
/// keeps the same.
const OTHER_FIELDS: [&str; 7] = [
    "supports_service_tier",
    "supports_prompt_caching",
    "litellm_provider",
    "mode",
    "max_tokens",
    "max_input_tokens",
    "max_output_tokens",
];
/// Prices of an entry, but for those above a threshold.
const PRICE_FIELDS: [&str; 10] = [
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_creation_input_token_cost",
    "cache_creation_input_token_cost_above_1hr",
    "cache_read_input_token_cost",
    "input_cost_per_token_priority",
    "output_cost_per_token_priority",
    "cache_read_input_token_cost_priority",
    "output_cost_per_image",
    "output_cost_per_image_token",
];

/// What becomes of a field of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldUse {
    /// [`parse_entry`] reads it, or it is no price.
    Known,
    /// A price above a threshold that no request is charged.
    Unused,
    /// Nobody knows it.
    Unknown,
}

/// What [`parse_entry`] makes of a field of that name.
pub fn field_use(field: &str) -> FieldUse {
    if known_fields().any(|known| known == field) || threshold_thousands(field).is_some() {
        return FieldUse::Known;
    }
    // Such as cache_read_input_token_cost_above_200k_tokens of the published map.
    let above = field.split_once("_above_").filter(|(price, above)| {
        let above = above.strip_suffix("_priority").unwrap_or(above);
        let thousands = above.strip_suffix("k_tokens").unwrap_or_default();
        let is_number = !thousands.is_empty() && thousands.bytes().all(|b| b.is_ascii_digit());
        is_number && PRICE_FIELDS.contains(price)
    });
    above.map_or(FieldUse::Unknown, |_| FieldUse::Unused)
}

/// The fields an entry may have, but for prices above a threshold.
pub fn known_fields() -> impl Iterator<Item = &'static str> {
    PRICE_FIELDS.into_iter().chain(OTHER_FIELDS)
}

/// Model name → prices.
pub type PriceMap = HashMap<String, ModelPrice>;

/// Reads the prices of one model from an entry in LiteLLM's format.
///
/// `Ok(None)`: the entry has neither an input nor an output price, so it prices no tokens. A price
/// is a number or a decimal string in US dollars, read through its text; what is finer than a
/// femto-dollar is rounded to the nearest. `null` is the same as leaving the field out, and fields
/// that are no prices of ours are passed over. A limit that is no positive whole number is unknown.
///
/// # Errors
/// Names the first field whose price is no number, negative or out of range, and why.
pub fn parse_entry(entry: &Map<String, Value>) -> Result<Option<ModelPrice>, String> {
    let price = |field: &str| match entry.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => parse_price(value)
            .map(Some)
            .map_err(|why| format!("{field}: {why}")),
    };
    let model = ModelPrice {
        input: price("input_cost_per_token")?,
        output: price("output_cost_per_token")?,
        cache_creation: price("cache_creation_input_token_cost")?,
        cache_creation_1h: price("cache_creation_input_token_cost_above_1hr")?,
        cache_read: price("cache_read_input_token_cost")?,
        input_priority: price("input_cost_per_token_priority")?,
        output_priority: price("output_cost_per_token_priority")?,
        cache_read_priority: price("cache_read_input_token_cost_priority")?,
        output_image: price("output_cost_per_image")?,
        output_image_token: price("output_cost_per_image_token")?,
        long_context: None,
        max_input_tokens: limit(entry, "max_input_tokens"),
        max_output_tokens: limit(entry, "max_output_tokens"),
    };
    // The lowest threshold counts, should an entry ever carry several.
    let Some(thousands) = entry
        .iter()
        .filter(|(_, value)| !value.is_null())
        .filter_map(|(field, _)| threshold_thousands(field))
        .min()
    else {
        return Ok((model.input.is_some() || model.output.is_some()).then_some(model));
    };
    let above = |class: &str, tier: &str| {
        price(&format!(
            "{class}_cost_per_token_above_{thousands}k_tokens{tier}"
        ))
    };
    let (input, output) = (above("input", "")?, above("output", "")?);
    let long_context = LongContext {
        threshold_tokens: thousands * 1000,
        input,
        output,
        input_priority: above("input", "_priority")?
            // None of its own: the surcharge stacks with the tier.
            .or_else(|| in_proportion(model.input_priority, model.input, input)),
        output_priority: above("output", "_priority")?
            .or_else(|| in_proportion(model.output_priority, model.output, output)),
    };
    let model = ModelPrice {
        long_context: Some(long_context),
        ..model
    };
    Ok((model.input.is_some() || model.output.is_some()).then_some(model))
}

/// A number of tokens; the published maps write some as text.
fn limit(entry: &Map<String, Value>, field: &str) -> Option<u64> {
    let tokens = match entry.get(field)? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    tokens.filter(|tokens| *tokens > 0)
}

/// `272` of `input_cost_per_token_above_272k_tokens`.
fn threshold_thousands(field: &str) -> Option<u64> {
    let (class, rest) = field.split_once("_cost_per_token_above_")?;
    let (thousands, tier) = rest.split_once("k_tokens")?;
    let known = matches!(class, "input" | "output") && matches!(tier, "" | "_priority");
    // Bounded, so that × 1000 cannot overflow; and written the one way it is looked up again.
    thousands
        .parse()
        .ok()
        .filter(|n: &u64| known && *n <= 1_000_000_000 && n.to_string() == thousands)
}

/// What `tier` becomes when `normal` becomes `normal_above`: a surcharge grows as the price it is laid
/// on does. Rounded to the nearest femto-dollar. `None` where a price is missing or the normal one is
/// zero.
pub fn in_proportion(
    tier: Option<Price>,
    normal: Option<Price>,
    normal_above: Option<Price>,
) -> Option<Price> {
    let (tier, normal, above) = (tier?.0, normal?.0, normal_above?.0);
    if normal == 0 {
        return None;
    }
    let product = i128::from(tier) * i128::from(above);
    let scaled = (product + i128::from(normal) / 2) / i128::from(normal);
    Some(Price(i64::try_from(scaled).unwrap_or(i64::MAX)))
}

/// Whether [`parse_entry`] reads a price from a field of that name.
pub fn is_price(field: &str) -> bool {
    PRICE_FIELDS.contains(&field) || threshold_thousands(field).is_some()
}

/// A price as an entry has it: a number or a decimal string in US dollars.
///
/// # Errors
/// When it is no number, negative or out of range.
pub fn parse_price(value: &Value) -> Result<Price, DecimalError> {
    let (text, is_number) = match value {
        Value::Number(number) => (number.to_string(), true),
        Value::String(text) => (text.clone(), false),
        _ => return Err(DecimalError::Malformed),
    };
    let femtos = match parse_decimal(&text, PRICE_DIGITS) {
        Err(DecimalError::TooPrecise(_)) if text.starts_with('-') => {
            return Err(DecimalError::Negative);
        }
        Err(DecimalError::TooPrecise(_)) => {
            let unit = 10i128.pow(FINE_DIGITS - PRICE_DIGITS);
            match parse_decimal(&text, FINE_DIGITS) {
                // A number has at most 17 digits: with the last beyond the 33rd place it is next
                // to nothing.
                Err(DecimalError::TooPrecise(_)) if is_number => 0,
                fine => (fine? + unit / 2) / unit,
            }
        }
        exact => exact?,
    };
    if femtos < 0 {
        return Err(DecimalError::Negative);
    }
    i64::try_from(femtos)
        .map(Price)
        .map_err(|_| DecimalError::OutOfRange)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Option<ModelPrice>, String> {
        parse_entry(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn an_entry_is_read_to_the_femto_dollar() {
        let model = parse(
            r#"{"input_cost_per_token": 2.5e-06, "output_cost_per_token": 0.000015,
                "cache_creation_input_token_cost": "0.00000375",
                "cache_creation_input_token_cost_above_1hr": 6e-6,
                "cache_read_input_token_cost": 2.5E-07,
                "input_cost_per_token_priority": 5e-06, "output_cost_per_token_priority": 3e-05,
                "cache_read_input_token_cost_priority": 5e-07,
                "output_cost_per_image": 0.134, "output_cost_per_image_token": 0,
                "mode": "chat", "max_tokens": 128000, "max_input_tokens": 200000,
                "max_output_tokens": "64000", "supports_vision": true}"#,
        );
        let price = |femtos| Some(Price(femtos));
        assert_eq!(
            model,
            Ok(Some(ModelPrice {
                input: price(2_500_000_000),
                output: price(15_000_000_000),
                cache_creation: price(3_750_000_000),
                cache_creation_1h: price(6_000_000_000),
                cache_read: price(250_000_000),
                input_priority: price(5_000_000_000),
                output_priority: price(30_000_000_000),
                cache_read_priority: price(500_000_000),
                output_image: price(134_000_000_000_000),
                output_image_token: price(0),
                long_context: None,
                max_input_tokens: Some(200_000),
                max_output_tokens: Some(64_000),
            }))
        );
    }

    #[test]
    fn a_limit_that_is_no_number_of_tokens_is_unknown() {
        for (text, limit) in [
            ("1", Some(1)),
            ("\"8192\"", Some(8192)),
            ("0", None),
            ("-1", None),
            ("1.5", None),
            ("null", None),
            ("\"many\"", None),
        ] {
            let json = format!(r#"{{"input_cost_per_token": 1, "max_output_tokens": {text}}}"#);
            let model = parse(&json).unwrap().unwrap();
            assert_eq!(model.max_output_tokens, limit, "{text}");
        }
    }

    #[test]
    fn an_entry_without_token_prices_is_none() {
        for json in [
            "{}",
            r#"{"output_cost_per_image": 0.04}"#,
            r#"{"input_cost_per_token": null, "output_cost_per_token": null}"#,
            r#"{"input_cost_per_token_above_200k_tokens": 1e-6}"#,
        ] {
            assert_eq!(parse(json), Ok(None), "{json}");
        }
        for json in [
            r#"{"input_cost_per_token": 0}"#,
            r#"{"output_cost_per_token": 1e-6}"#,
        ] {
            assert!(parse(json).unwrap().is_some(), "{json}");
        }
    }

    #[test]
    fn what_is_finer_than_a_femto_dollar_is_rounded_to_the_nearest() {
        for (text, femtos) in [
            ("1e-15", 1),
            ("1.4e-15", 1),
            ("1.5e-15", 2),
            ("4e-16", 0),
            ("5e-16", 1),
            ("1.2500000000000001e-07", 125_000_000),
            ("0.00000000000000000000000000000001", 0),
            ("1e-300", 0),
            (r#""1.5e-15""#, 2),
            (r#""0.0000024999999999999999999999999""#, 2_500_000_000),
        ] {
            let model = parse(&format!(r#"{{"input_cost_per_token": {text}}}"#));
            let input = model.unwrap().unwrap().input;
            assert_eq!(input, Some(Price(femtos)), "{text}");
        }
    }

    #[test]
    fn a_bad_price_is_an_error_that_names_the_field() {
        for (value, why) in [
            ("true", DecimalError::Malformed),
            ("[1]", DecimalError::Malformed),
            (r#""cheap""#, DecimalError::Malformed),
            (r#""""#, DecimalError::Malformed),
            ("-1e-6", DecimalError::Negative),
            ("-1e-16", DecimalError::Negative),
            ("-1e-40", DecimalError::Negative),
            ("10000", DecimalError::OutOfRange),
            ("1e300", DecimalError::OutOfRange),
            (r#""1e-40""#, DecimalError::TooPrecise(33)),
        ] {
            for field in [
                "cache_read_input_token_cost",
                "input_cost_per_token_above_9k_tokens",
            ] {
                let error = parse(&format!(r#"{{"{field}": {value}}}"#)).unwrap_err();
                assert_eq!(error, format!("{field}: {why}"), "{value}");
            }
        }
    }

    #[test]
    fn the_use_of_a_field_is_known() {
        for (field, what) in [
            ("input_cost_per_token", FieldUse::Known),
            ("mode", FieldUse::Known),
            ("input_cost_per_token_above_200k_tokens", FieldUse::Known),
            (
                "output_cost_per_token_above_9k_tokens_priority",
                FieldUse::Known,
            ),
            (
                "cache_read_input_token_cost_above_200k_tokens",
                FieldUse::Unused,
            ),
            (
                "cache_read_input_token_cost_above_200k_tokens_priority",
                FieldUse::Unused,
            ),
            ("input_cost_per_token_above_0200k_tokens", FieldUse::Unused),
            ("cache_creation_input_token_cost_above_1hr", FieldUse::Known),
            ("input_cost_per_token_above_k_tokens", FieldUse::Unknown),
            ("input_cost_per_token_above_200k", FieldUse::Unknown),
            ("imput_cost_per_token_above_200k_tokens", FieldUse::Unknown),
            ("input_cost_per_tokn", FieldUse::Unknown),
            ("supports_vision", FieldUse::Unknown),
            ("", FieldUse::Unknown),
        ] {
            assert_eq!(field_use(field), what, "{field}");
        }
    }

    #[test]
    fn the_fields_are_those_of_the_built_in_map() {
        let map: Map<String, Value> =
            serde_json::from_str(include_str!("../../conf/prices.json")).unwrap();
        let fields = map
            .values()
            .flat_map(|entry| entry.as_object().unwrap().keys());
        for field in fields {
            assert_eq!(field_use(field), FieldUse::Known, "{field}");
        }
        let script = include_str!("../../conf/update-prices.py");
        for field in known_fields() {
            assert!(script.contains(&format!("    \"{field}\",\n")), "{field}");
        }
    }

    #[test]
    fn prices_above_a_threshold_are_read_with_their_tiers() {
        let long = |more: &str| {
            parse(&format!(
                r#"{{"input_cost_per_token": 2e-06, "output_cost_per_token": 1.2e-05,
                    "input_cost_per_token_priority": 3.6e-06, {more}}}"#
            ))
            .unwrap()
            .unwrap()
            .long_context
        };
        assert_eq!(
            long(
                r#""input_cost_per_token_above_200k_tokens": 4e-06,
                   "output_cost_per_token_above_200k_tokens": 1.8e-05,
                   "input_cost_per_token_above_200k_tokens_priority": 7.1e-06,
                   "output_cost_per_token_above_200k_tokens_priority": 3.24e-05"#
            ),
            Some(LongContext {
                threshold_tokens: 200_000,
                input: Some(Price(4_000_000_000)),
                output: Some(Price(18_000_000_000)),
                input_priority: Some(Price(7_100_000_000)),
                output_priority: Some(Price(32_400_000_000)),
            })
        );
        // No priority price of its own above the threshold: in proportion to the normal price.
        assert_eq!(
            long(r#""input_cost_per_token_above_272k_tokens": 4e-06"#),
            Some(LongContext {
                threshold_tokens: 272_000,
                input: Some(Price(4_000_000_000)),
                output: None,
                input_priority: Some(Price(7_200_000_000)),
                output_priority: None,
            })
        );
        let two = long(
            r#""input_cost_per_token_above_200k_tokens": 4e-06,
               "input_cost_per_token_above_128k_tokens": 3e-06"#,
        )
        .unwrap();
        assert_eq!(
            (two.threshold_tokens, two.input),
            (128_000, Some(Price(3_000_000_000)))
        );
        for other in [
            r#""input_cost_per_token_above_200k_tokens": null"#,
            r#""input_cost_per_token_above_200k_tokens_batches": 1e-6"#,
            r#""input_cost_per_token_above_0200k_tokens": 1e-6"#,
            r#""input_cost_per_token_above_k_tokens": 1e-6"#,
            r#""cache_read_input_token_cost_above_200k_tokens": 1e-6"#,
        ] {
            assert_eq!(long(other), None, "{other}");
        }
    }
}
