//! `prices:` of a channel as checked: USD per million tokens, per request or per image, to
//! femto-dollars for one.

use std::str::FromStr;

use super::accounts::check_pattern;
use super::groups::platform;
use crate::config::field::{Field, Table};
use crate::domain::money::{DecimalError, parse_decimal};
use crate::domain::price::Price;
use crate::domain::{ChannelPrice, ClassPrices, Platform, PriceInterval, PricingMode};

const KEYS: &[&str] = &[
    "platform",
    "models",
    "billing_mode",
    "input_per_million",
    "output_per_million",
    "cache_write_per_million",
    "cache_read_per_million",
    "image_output_per_million",
    "per_request",
    "intervals",
];
const INTERVAL_KEYS: &[&str] = &[
    "min_tokens",
    "max_tokens",
    "tier_label",
    "input_per_million",
    "output_per_million",
    "cache_write_per_million",
    "cache_read_per_million",
    "image_output_per_million",
    "per_request",
];
const TOKEN_PRICES: [&str; 5] = [
    "input_per_million",
    "output_per_million",
    "cache_write_per_million",
    "cache_read_per_million",
    "image_output_per_million",
];
/// Sizes of images that an interval may be for.
const SIZES: [(&str, &str); 6] = [
    ("1K", "1K"),
    ("2K", "2K"),
    ("4K", "4K"),
    ("1k", "1K"),
    ("2k", "2K"),
    ("4k", "4K"),
];
/// The dearest token, request or image, in femto-dollars: a thousand dollars. What is more is a slip.
const DEAREST: i128 = 1_000_000_000_000_000_000;

/// The price rows of a channel.
pub(super) fn prices(field: &Field<'_>, restricts: bool) -> Option<Vec<ChannelPrice>> {
    let mut seen: Vec<(Platform, String)> = Vec::new();
    let rows = field.items("prices")?;
    let rows = rows
        .iter()
        .filter_map(|item| price(item, restricts, &mut seen));
    Some(rows.collect())
}

fn price(
    item: &Field<'_>,
    restricts: bool,
    seen: &mut Vec<(Platform, String)>,
) -> Option<ChannelPrice> {
    let table = item.table(KEYS)?;
    let platform = platform(&table).unwrap_or(Platform::OpenAi);
    let mode = table.or("billing_mode", PricingMode::Token, |f| {
        let modes = [
            PricingMode::Token,
            PricingMode::PerRequest,
            PricingMode::Image,
        ];
        f.choice(&modes.map(|mode| (mode.as_str(), mode)))
    });
    let price = ChannelPrice {
        platform,
        models: models(&table, platform, seen),
        billing_mode: mode,
        prices: classes(&table, mode),
        intervals: table.or("intervals", Vec::new(), |f| intervals(f, mode)),
    };
    // Intervals that are mistakes have been complained about already.
    let bare = price.prices == ClassPrices::default()
        && table.get("intervals").is_none_or(|f| f.is_empty());
    if bare && mode != PricingMode::Token {
        table.required("per_request", "USD for one, such as \"0.04\", or intervals");
    } else if bare && !restricts && !TOKEN_PRICES.iter().any(|key| table.given(key).is_some()) {
        item.warn("without a price, and the channel does not restrict models: it changes nothing");
    }
    Some(price)
}

/// Models in lower case; a model that an earlier row names would never come to this one.
fn models(
    table: &Table<'_>,
    platform: Platform,
    seen: &mut Vec<(Platform, String)>,
) -> Vec<String> {
    const MODELS: &str = "a list of models, such as [\"gpt-5*\"]";
    let Some(field) = table.required("models", MODELS) else {
        return Vec::new();
    };
    if field.is_empty() {
        field.bad("no model", MODELS);
    }
    let mut models = Vec::new();
    for item in field.items("models").unwrap_or_default() {
        let Some(name) = item.name() else { continue };
        check_pattern(name, &item);
        let model = (platform, name.to_lowercase());
        if seen.contains(&model) {
            item.bad(
                format!("has a price on {platform} already"),
                "each model of a platform once in a channel, in whatever case",
            );
            continue;
        }
        models.push(model.1.clone());
        seen.push(model);
    }
    models
}

/// The prices that fit the mode; any other is a mistake.
fn classes(table: &Table<'_>, mode: PricingMode) -> ClassPrices {
    let by_token = mode == PricingMode::Token;
    let token = |key| {
        let field = table.given(key)?;
        if !by_token {
            let mode = mode.as_str();
            field.bad(
                format!("a price of tokens where billing_mode is {mode}"),
                "per_request",
            );
            return None;
        }
        let PerMillion(price) = field.decimal("USD per million tokens, such as \"1.25\"")?;
        Some(price)
    };
    let [input, output, cache_write, cache_read, image_output] = TOKEN_PRICES.map(token);
    let per_request = table.given("per_request").and_then(|field| {
        if by_token {
            field.bad(
                "a price of requests where billing_mode is token",
                "prices per million tokens, or billing_mode: per_request",
            );
            return None;
        }
        let Each(price) = field.decimal("USD for one, such as \"0.04\"")?;
        Some(price)
    });
    ClassPrices {
        input,
        output,
        cache_write,
        cache_read,
        image_output,
        per_request,
    }
}

fn intervals(field: &Field<'_>, mode: PricingMode) -> Option<Vec<PriceInterval>> {
    let mut read: Vec<PriceInterval> = Vec::new();
    for item in field.items("intervals")? {
        let Some(interval) = interval(&item, mode) else {
            continue;
        };
        match &interval.tier_label {
            Some(label) if read.iter().any(|i| i.tier_label.as_ref() == Some(label)) => {
                item.bad(
                    format!("a second interval for the size {label}"),
                    "each size once",
                );
            }
            None if read.iter().any(|other| overlap(other, &interval)) => {
                item.bad(
                    "overlaps with an interval before it",
                    "intervals that have no length in common: min_tokens is outside, max_tokens inside",
                );
            }
            _ => read.push(interval),
        }
    }
    Some(read)
}

fn interval(item: &Field<'_>, mode: PricingMode) -> Option<PriceInterval> {
    const TOKENS: &str = "a number of tokens";
    let table = item.table(INTERVAL_KEYS)?;
    let tokens = |f: &Field<'_>| f.whole(0..=i128::from(i64::MAX), TOKENS);
    let min_tokens = table.or_null("min_tokens", tokens).unwrap_or(0);
    let max_tokens = table.or_null("max_tokens", tokens);
    if let (Some(field), Some(max)) = (table.given("max_tokens"), max_tokens)
        && max <= min_tokens
    {
        field.bad(
            "not above min_tokens",
            "the last length that is in it, or null for no end",
        );
    }
    let label = table.given("tier_label");
    let tier_label = label.as_ref().and_then(|f| f.choice(&SIZES));
    if let Some(field) = &label {
        if mode == PricingMode::Token {
            field.bad(
                "a size where billing_mode is token",
                "min_tokens and max_tokens",
            );
        } else if min_tokens != 0 || max_tokens.is_some() {
            field.bad(
                "beside a length of the context",
                "an interval is for a size or for a length",
            );
        }
    }
    let prices = classes(&table, mode);
    if mode != PricingMode::Token {
        table.required("per_request", "USD for one, such as \"0.04\"");
    } else if !TOKEN_PRICES
        .iter()
        .chain(&["per_request"])
        .any(|key| table.given(key).is_some())
    {
        item.bad(
            "an interval without a price",
            "at least one price per million",
        );
    }
    Some(PriceInterval {
        min_tokens,
        max_tokens,
        tier_label: tier_label.map(str::to_string),
        prices,
    })
}

/// Whether some length is in both. Of a size there is one interval, whatever the length.
fn overlap(one: &PriceInterval, other: &PriceInterval) -> bool {
    let begins_before_end_of =
        |a: &PriceInterval, b: &PriceInterval| b.max_tokens.is_none_or(|max| a.min_tokens < max);
    one.tier_label.is_none() && begins_before_end_of(one, other) && begins_before_end_of(other, one)
}

/// USD for a million of something: with nine digits behind the point a whole number of femto-dollars
/// for one.
struct PerMillion(Price);

impl FromStr for PerMillion {
    type Err = DecimalError;
    fn from_str(text: &str) -> Result<PerMillion, DecimalError> {
        femtos(text, 9).map(PerMillion)
    }
}

/// USD for one of something.
struct Each(Price);

impl FromStr for Each {
    type Err = DecimalError;
    fn from_str(text: &str) -> Result<Each, DecimalError> {
        femtos(text, 15).map(Each)
    }
}

fn femtos(text: &str, digits: u32) -> Result<Price, DecimalError> {
    let femtos = parse_decimal(text, digits)?;
    if femtos < 0 {
        return Err(DecimalError::Negative);
    }
    i64::try_from(femtos)
        .ok()
        .filter(|femtos| i128::from(*femtos) <= DEAREST)
        .map(Price)
        .ok_or(DecimalError::OutOfRange)
}
