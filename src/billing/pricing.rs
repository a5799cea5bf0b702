//! What a request costs: token counts × prices, in integers.
//!
//! Use [`price`] once, where a usage record is made. All sums are in half femto-dollars (the halves
//! belong to the `flex` tier) and are exact; they are rounded once, half up, to the nano-dollars of
//! [`Money`]: the cost from the sum, the charge from the sum × the multiplier (not from the rounded
//! cost). Amounts beyond the range stop at its end; nothing is ever negative.
//!
//! Where the price map says nothing about a class: tokens written to or read from a cache and not
//! priced apart are input tokens like others; image tokens are output tokens. A price of zero is a
//! price for the caches, and means "not priced apart" for images and for the `priority` tier.

use tollgate_filters::usage::TokenUsage;

use crate::domain::price::{ModelPrice, Price};
use crate::domain::{Money, Multiplier};

/// Half femto-dollars in a nano-dollar.
const HALVES_PER_NANO: i128 = 2_000_000;
/// Half femto-dollars × multiplier millionths in a nano-dollar.
const HALVES_PER_CHARGED_NANO: i128 = HALVES_PER_NANO * 1_000_000;

/// A tier that changes what a request costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceTier {
    /// Served first, at the model's priority prices or else twice the price.
    Priority,
    /// Served when there is room, at half the price.
    Flex,
}

impl ServiceTier {
    /// Reads the tier a request asked for or an answer reports. `fast` is another name of
    /// `priority`; every other name leaves the price as it is (`None`).
    pub fn parse(name: &str) -> Option<ServiceTier> {
        let name = name.trim();
        let is = |tier: &str| name.eq_ignore_ascii_case(tier);
        if is("priority") || is("fast") {
            Some(ServiceTier::Priority)
        } else if is("flex") {
            Some(ServiceTier::Flex)
        } else {
            None
        }
    }

    /// The name in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            ServiceTier::Priority => "priority",
            ServiceTier::Flex => "flex",
        }
    }
}

/// What a request costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Priced {
    /// At list price.
    pub cost: Money,
    /// What the user pays: list price × multiplier.
    pub charge: Money,
    /// Whether a price was known. If not, both amounts are zero.
    pub priced: bool,
}

/// Prices one request.
///
/// `image_count` counts only where no tokens were reported and the model has a price per image:
/// image models report tokens as a rule, and those must not be paid for twice. `model: None` is a
/// model nobody knows a price of.
pub fn price(
    usage: &TokenUsage,
    image_count: u32,
    model: Option<&ModelPrice>,
    tier: Option<ServiceTier>,
    multiplier: Multiplier,
) -> Priced {
    let Some(model) = model else {
        return Priced::default();
    };
    let halves = match model.output_image {
        Some(per_image) if *usage == TokenUsage::default() => {
            times(u64::from(image_count), per_image).saturating_mul(2)
        }
        _ => token_halves(usage, model, tier),
    };
    Priced {
        cost: rounded(halves, HALVES_PER_NANO),
        charge: rounded(
            halves.saturating_mul(i128::from(multiplier.0)),
            HALVES_PER_CHARGED_NANO,
        ),
        priced: true,
    }
}

/// The sum over the token classes in half femto-dollars.
fn token_halves(usage: &TokenUsage, model: &ModelPrice, tier: Option<ServiceTier>) -> i128 {
    let (own_priority_prices, factor) = match tier {
        Some(ServiceTier::Priority) if has_priority_prices(model) => (true, 2),
        Some(ServiceTier::Priority) => (false, 4),
        Some(ServiceTier::Flex) => (false, 1),
        None => (false, 2),
    };
    let at_tier = |normal: Option<Price>, priority: Option<Price>| {
        priority
            .filter(|price| own_priority_prices && price.0 > 0)
            .or(normal)
    };
    let context = usage.input.saturating_add(usage.cache_read);
    let long = model
        .long_context
        .filter(|long| context > long.threshold_tokens);

    let input = at_tier(
        long.and_then(|long| long.input).or(model.input),
        long.and_then(|long| long.input_priority)
            .or(model.input_priority),
    )
    .unwrap_or_default();
    let output = at_tier(
        long.and_then(|long| long.output).or(model.output),
        long.and_then(|long| long.output_priority)
            .or(model.output_priority),
    )
    .unwrap_or_default();
    let cache_read = at_tier(model.cache_read, model.cache_read_priority).unwrap_or(input);
    let cache_creation = model.cache_creation.unwrap_or(input);
    let image = model
        .output_image_token
        .filter(|price| price.0 > 0)
        .unwrap_or(output);

    let (created, created_1h) = cache_creation_split(usage, model);
    [
        times(usage.input, input),
        times(usage.output, output),
        times(created, cache_creation),
        times(created_1h, model.cache_creation_1h.unwrap_or_default()),
        times(usage.cache_read, cache_read),
        times(usage.image_output, image),
    ]
    .into_iter()
    .fold(0i128, i128::saturating_add)
    .saturating_mul(factor)
}

fn has_priority_prices(model: &ModelPrice) -> bool {
    [
        model.input_priority,
        model.output_priority,
        model.cache_read_priority,
    ]
    .into_iter()
    .flatten()
    .any(|price| price.0 > 0)
}

/// Tokens written to a cache at the base price and at the 1-hour price. The latter only where it is
/// a surcharge on a known base price; tokens of which the provider does not say how long they are
/// kept are at the base price.
fn cache_creation_split(usage: &TokenUsage, model: &ModelPrice) -> (u64, u64) {
    let (base, hour) = (usage.cache_creation_5m, usage.cache_creation_1h);
    let total = usage.cache_creation.max(base.saturating_add(hour));
    match (model.cache_creation, model.cache_creation_1h) {
        (Some(p5m), Some(p1h)) if p1h > p5m && p5m.0 > 0 => (total - hour, hour),
        _ => (total, 0),
    }
}

/// Femto-dollars.
fn times(count: u64, price: Price) -> i128 {
    i128::from(count).saturating_mul(i128::from(price.0.max(0)))
}

/// Rounds half up.
fn rounded(amount: i128, per_nano: i128) -> Money {
    let nanos = amount.saturating_add(per_nano / 2) / per_nano;
    Money(i64::try_from(nanos).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
