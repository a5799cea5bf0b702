//! What a request costs: token counts × prices, in integers.
//!
//! [`tokens`] is what a [`Quote`](super::quote::Quote) adds up a request with, [`Rates`] what its bound
//! is made of; the two share every rule. All sums are in half femto-dollars (the halves
//! belong to the `flex` tier) and are exact; they are rounded once, half up, to the nano-dollars of
//! [`Money`]: the cost from the sum, the charge from the sum × the multiplier (not from the rounded
//! cost). Amounts beyond the range stop at its end; nothing is ever negative.
//!
//! Where the price map says nothing about a class: tokens written to or read from a cache and not
//! priced apart are input tokens like others; image tokens are output tokens. A price of zero is a
//! price for the caches, and means "not priced apart" for images and for the `priority` tier.

use tollgate_filters::usage::TokenUsage;

use crate::domain::price::{ModelPrice, Price};
use crate::domain::{Money, Multiplier, PricingMode};

/// Half femto-dollars in a nano-dollar.
const HALVES_PER_NANO: i128 = 2_000_000;
/// Half femto-dollars × multiplier millionths in a nano-dollar.
pub(super) const HALVES_PER_CHARGED_NANO: i128 = HALVES_PER_NANO * 1_000_000;

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

/// An amount that is exact: half femto-dollars at list price. Never negative; stops at the end of its
/// range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Exact(i128);

impl Exact {
    /// Nothing.
    pub const ZERO: Exact = Exact(0);

    /// So many half femto-dollars.
    pub fn halves(halves: i128) -> Exact {
        Exact(halves.max(0))
    }

    /// `count` things at a price.
    pub fn of(count: u64, price: Price) -> Exact {
        Exact(2 * i128::from(price.0.max(0))).times(count)
    }

    /// So many times this.
    pub fn times(self, count: u64) -> Exact {
        Exact(self.0.saturating_mul(i128::from(count)))
    }

    /// Both together.
    pub fn plus(self, other: Exact) -> Exact {
        Exact(self.0.saturating_add(other.0))
    }

    /// At list price, rounded half up.
    pub fn cost(self) -> Money {
        rounded(self.0, HALVES_PER_NANO)
    }

    /// What the user pays: × the multiplier, rounded half up.
    pub fn charge(self, multiplier: Multiplier) -> Money {
        rounded(self.charged(multiplier), HALVES_PER_CHARGED_NANO)
    }

    /// × the multiplier, in units of which a nano-dollar has [`HALVES_PER_CHARGED_NANO`].
    pub(super) fn charged(self, multiplier: Multiplier) -> i128 {
        self.0.saturating_mul(i128::from(multiplier.0))
    }
}

/// What a request costs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Priced {
    /// At list price.
    pub cost: Money,
    /// What the user pays: list price × multiplier.
    pub charge: Money,
    /// Whether a price was known. If not, both amounts are zero.
    pub priced: bool,
    /// What was counted.
    pub mode: PricingMode,
    /// The size or interval whose price applied, where there are several.
    pub billing_tier: Option<String>,
}

/// Prices the tokens of one request, or its images where no tokens were reported and the model has
/// a price per image. `model: None` is a model nobody knows a price of.
///
/// This knows one model and nothing of channels and groups; a request is priced by a
/// [`Quote`](super::quote::Quote).
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
    let amount = match model.output_image {
        Some(per_image) if *usage == TokenUsage::default() => {
            Exact::of(u64::from(image_count), per_image)
        }
        _ => tokens(usage, model, tier),
    };
    Priced {
        cost: amount.cost(),
        charge: amount.charge(multiplier),
        priced: true,
        ..Priced::default()
    }
}

/// What the tokens of one request cost at list price.
pub fn tokens(usage: &TokenUsage, model: &ModelPrice, tier: Option<ServiceTier>) -> Exact {
    let is_long = model
        .long_context
        .is_some_and(|long| context(usage) > long.threshold_tokens);
    Rates::of(model, tier, is_long).sum(usage)
}

/// The tokens that decide whether a request is a long one: all of its prompt (SPEC 4.6, 4.7).
pub fn context(usage: &TokenUsage) -> u64 {
    usage.input.saturating_add(usage.cache_read)
}

/// What one token of each class costs in one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rates {
    input: Exact,
    output: Exact,
    cache_creation: Exact,
    /// As `cache_creation`, where longer keeping is not a surcharge on it.
    cache_creation_1h: Exact,
    cache_read: Exact,
    image_output: Exact,
}

impl Rates {
    /// The rates of a model in a tier, below or above the threshold of its long-context prices.
    pub fn of(model: &ModelPrice, tier: Option<ServiceTier>, is_long: bool) -> Rates {
        // Halves in a price: × 2 as it is, × 4 twice the price, × 1 half of it.
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
        let long = model.long_context.filter(|_| is_long);
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
        let cache_creation = model.cache_creation.unwrap_or(input);
        let cache_creation_1h = match (model.cache_creation, model.cache_creation_1h) {
            (Some(base), Some(hour)) if hour > base && base.0 > 0 => hour,
            _ => cache_creation,
        };
        let image_output = model
            .output_image_token
            .filter(|price| price.0 > 0)
            .unwrap_or(output);
        let rate = |price: Price| Exact(factor * i128::from(price.0.max(0)));
        Rates {
            input: rate(input),
            output: rate(output),
            cache_creation: rate(cache_creation),
            cache_creation_1h: rate(cache_creation_1h),
            cache_read: rate(at_tier(model.cache_read, model.cache_read_priority).unwrap_or(input)),
            image_output: rate(image_output),
        }
    }

    /// What these tokens cost. Tokens written to a cache of which the provider does not say how long
    /// they are kept are at the base price.
    pub fn sum(&self, usage: &TokenUsage) -> Exact {
        let hour = usage.cache_creation_1h;
        let created = usage
            .cache_creation
            .max(usage.cache_creation_5m.saturating_add(hour));
        self.input
            .times(usage.input)
            .plus(self.output.times(usage.output))
            .plus(self.cache_creation.times(created - hour))
            .plus(self.cache_creation_1h.times(hour))
            .plus(self.cache_read.times(usage.cache_read))
            .plus(self.image_output.times(usage.image_output))
    }

    /// The most that a token of the prompt can cost, whatever class it turns out to be of.
    pub fn dearest_input(&self) -> Exact {
        self.input
            .max(self.cache_creation)
            .max(self.cache_creation_1h)
            .max(self.cache_read)
    }

    /// The most that a token of the answer can cost.
    pub fn dearest_output(&self) -> Exact {
        self.output.max(self.image_output)
    }
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

/// Rounds half up.
fn rounded(amount: i128, per_nano: i128) -> Money {
    let nanos = amount.saturating_add(per_nano / 2) / per_nano;
    Money(i64::try_from(nanos).unwrap_or(i64::MAX))
}

#[cfg(test)]
pub(super) mod tests;
