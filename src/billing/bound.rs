//! What a request may cost at most, before it is sent.
//!
//! The bound is a line: so much for everything but the answer, and so much for every token of the
//! answer. It holds for every usage that keeps to it: at most [`Bound::input_tokens`] of prompt, at
//! most as many tokens of answer as it is asked for, and no more images than were asked for, in the
//! size that was asked for. Within that it assumes the worst: of a prompt's token the dearest class
//! (uncached, written to or read from a cache), of a price that depends on the prompt's length the
//! dearest that can be reached, of several names the one that costs most.
//!
//! **Tokens of the prompt**: a token stands for at least one byte of text, so a body has at most as many
//! as it has bytes. An image in it may have more; each counts [`IMAGE_TOKENS`] besides. What the
//! provider adds itself (files, addresses, stored history and prompts, what its tools find) is known to
//! nobody: then it is as much as the model reads. A request never has more than that; where the price
//! map does not say how much it is, [`UNKNOWN_CONTEXT_TOKENS`] more than the body has bytes.
//!
//! **Tokens of the answer**: what the client allows, at most what the model can write, which is taken
//! for [`UNKNOWN_OUTPUT_TOKENS`] where nobody says.

use super::channel;
use super::image::ImageSize;
use super::pricing::{Exact, HALVES_PER_CHARGED_NANO, Rates, ServiceTier};
use super::quote::{self, Offer, Quote};
use crate::domain::price::ModelPrice;
use crate::domain::{ChannelPrice, Money, Multiplier};

/// Added to a body's bytes where a provider adds to the prompt and nobody knows how much the model
/// reads: the largest context that is common.
pub const UNKNOWN_CONTEXT_TOKENS: u64 = 1_000_000;
/// What an answer has at most where neither client nor price map says: the most that current models
/// write.
pub const UNKNOWN_OUTPUT_TOKENS: u64 = 128_000;
/// The most that one image of a prompt counts: gpt-4o-mini's 2,833 and eight tiles of 5,667.
/// <https://platform.openai.com/docs/guides/images-vision#calculating-costs>
pub const IMAGE_TOKENS: u64 = 50_000;

/// What is known of a request before it is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Demand {
    /// Bytes of its body.
    pub body_len: u64,
    /// Most output tokens that the client allows.
    pub max_output_tokens: Option<u64>,
    /// Of these, how many may be thinking; an answer is longer. 0 = it has no such part.
    pub thinking_tokens: u64,
    /// The provider adds to the prompt: files, addresses, stored things, tools of its own.
    pub hosted: bool,
    /// Images in the body itself.
    pub inline_images: u32,
    /// What images are asked for.
    pub images: Option<ImageDemand>,
}

/// Images asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageDemand {
    /// How many.
    pub count: u32,
    /// `None` = it cannot be told beforehand in which size.
    pub size: Option<ImageSize>,
}

/// What a request may cost the user at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bound {
    /// Everything but tokens of the answer, as charged, in parts of which a nano-dollar has
    /// [`HALVES_PER_CHARGED_NANO`].
    input: i128,
    /// One token of the answer, likewise.
    per_output_token: i128,
    /// Tokens of the prompt that it covers.
    pub input_tokens: u64,
    /// The most tokens that the answer can have.
    pub output_tokens: u64,
    /// See [`Demand::thinking_tokens`].
    pub thinking_tokens: u64,
    /// Whether any price is known. If not, the request is free of charge.
    pub priced: bool,
}

impl Bound {
    /// With an answer of so many tokens; rounded up to the nano-dollar.
    pub fn total(&self, output_tokens: u64) -> Money {
        let output = self
            .per_output_token
            .saturating_mul(i128::from(output_tokens));
        let sum = self.input.saturating_add(output);
        let nanos = sum / HALVES_PER_CHARGED_NANO + i128::from(sum % HALVES_PER_CHARGED_NANO > 0);
        Money(i64::try_from(nanos).unwrap_or(i64::MAX))
    }

    /// With the longest answer there can be.
    pub fn most(&self) -> Money {
        self.total(self.output_tokens)
    }

    /// How many tokens the answer may have so that [`total`](Self::total) is at most `money`.
    /// `None` when the request costs more than that without any.
    pub fn affordable(&self, money: Money) -> Option<u64> {
        let money = i128::from(money.0).saturating_mul(HALVES_PER_CHARGED_NANO);
        let left = money.checked_sub(self.input).filter(|left| *left >= 0)?;
        if self.per_output_token == 0 {
            return Some(u64::MAX);
        }
        Some(u64::try_from(left / self.per_output_token).unwrap_or(u64::MAX))
    }

    /// Whether a shorter answer costs less: not where requests or images are counted.
    pub fn depends_on_output(&self) -> bool {
        self.per_output_token > 0
    }
}

impl Quote {
    /// The most that the request may cost on any account that calls the model one of `upstream`.
    /// Without any, it is taken to keep its name. The same name given again costs next to nothing.
    pub fn bound<'u>(
        &self,
        upstream: impl IntoIterator<Item = &'u str>,
        demand: &Demand,
        tier: Option<ServiceTier>,
        multiplier: Multiplier,
    ) -> Bound {
        let mut seen: Vec<&str> = Vec::new();
        for name in upstream {
            if !seen.contains(&name) {
                seen.push(name);
            }
        }
        if seen.is_empty() {
            seen.push(self.mapped());
        }
        // Tokens first: the line holds for all of them together, on whichever account.
        let models = || seen.iter().map(|name| self.model(name));
        let input_tokens = models().map(|model| prompt_tokens(demand, model)).max();
        let output_tokens = models().map(|model| answer_tokens(demand, model)).max();
        let (input_tokens, output_tokens) = (
            input_tokens.unwrap_or_default(),
            output_tokens.unwrap_or_default(),
        );
        let mut most = Most::default();
        for name in &seen {
            self.most_on(name, input_tokens, demand, tier, &mut most);
        }
        Bound {
            input: most.input.charged(multiplier),
            per_output_token: most.per_output_token.charged(multiplier),
            input_tokens,
            output_tokens,
            thinking_tokens: demand.thinking_tokens,
            priced: most.priced,
        }
    }

    fn most_on(
        &self,
        upstream: &str,
        input_tokens: u64,
        demand: &Demand,
        tier: Option<ServiceTier>,
        most: &mut Most,
    ) {
        let mut certain = false;
        for offer in self.offers(upstream) {
            if most.take(&offer, input_tokens, demand, tier) {
                certain = true;
                break;
            }
        }
        // Images are paid for apart where no tokens are reported for them, or those have no price.
        let Some(images) = demand.images else { return };
        if certain && most.fixed_only {
            return;
        }
        let price = |size| self.image_price(upstream, size).times(images.count.into());
        let dearest = sizes(images).map(price).max();
        most.input = most.input.max(dearest.unwrap_or_default());
        most.priced = true;
    }
}

/// The worst case so far.
#[derive(Default)]
struct Most {
    input: Exact,
    per_output_token: Exact,
    priced: bool,
    /// The last offer had a fixed price, whatever is used.
    fixed_only: bool,
}

impl Most {
    /// Takes in what an offer may cost; `true` when it certainly has a price, so that no other is
    /// asked.
    fn take(
        &mut self,
        offer: &Offer<'_>,
        input_tokens: u64,
        demand: &Demand,
        tier: Option<ServiceTier>,
    ) -> bool {
        self.priced = true;
        if let Some(row) = offer.fixed_row() {
            let (dearest, always) = dearest_fixed(row, input_tokens, demand.images);
            self.input = self.input.max(dearest);
            self.fixed_only = always;
            if always {
                return true;
            }
        }
        self.fixed_only = false;
        if !offer.prices_tokens() {
            return false;
        }
        self.take_tokens(&offer.model(None), input_tokens, tier);
        for interval in offer.intervals() {
            if interval.min_tokens < input_tokens {
                self.take_tokens(&offer.model(Some(interval)), input_tokens, tier);
            }
        }
        true
    }

    fn take_tokens(&mut self, model: &ModelPrice, input_tokens: u64, tier: Option<ServiceTier>) {
        let can_be_long = model
            .long_context
            .is_some_and(|long| input_tokens > long.threshold_tokens);
        for is_long in [false, true].into_iter().take(1 + usize::from(can_be_long)) {
            let rates = Rates::of(model, tier, is_long);
            self.input = self.input.max(rates.dearest_input().times(input_tokens));
            self.per_output_token = self.per_output_token.max(rates.dearest_output());
        }
    }
}

/// The most a row can ask for a request or its images, and whether it has a price whatever is used.
fn dearest_fixed(
    row: &ChannelPrice,
    input_tokens: u64,
    images: Option<ImageDemand>,
) -> (Exact, bool) {
    let count = quote::count(row, images.map_or(0, |images| images.count));
    let of_size = images
        .into_iter()
        .flat_map(sizes)
        .filter_map(|size| channel::interval_of_size(row, size.as_str()));
    let reachable = channel::by_context(row).filter(|i| i.min_tokens < input_tokens);
    let dearest = of_size
        .chain(reachable)
        .filter_map(|interval| interval.prices.per_request)
        .chain(row.prices.per_request)
        .max()
        .unwrap_or_default();
    // An interval alone may not apply: the prompt may be of another length, the image not be made.
    (Exact::of(count, dearest), row.prices.per_request.is_some())
}

fn sizes(images: ImageDemand) -> impl Iterator<Item = ImageSize> {
    ImageSize::ALL
        .into_iter()
        .filter(move |size| images.size.is_none_or(|known| known == *size))
}

fn prompt_tokens(demand: &Demand, model: Option<&ModelPrice>) -> u64 {
    let limit = model.and_then(|model| model.max_input_tokens);
    let images = u64::from(demand.inline_images).saturating_mul(IMAGE_TOKENS);
    let body = demand.body_len.saturating_add(images);
    match (demand.hosted, limit) {
        (true, Some(limit)) => limit,
        (true, None) => body.saturating_add(UNKNOWN_CONTEXT_TOKENS),
        (false, limit) => body.min(limit.unwrap_or(u64::MAX)),
    }
}

fn answer_tokens(demand: &Demand, model: Option<&ModelPrice>) -> u64 {
    let limit = model.and_then(|model| model.max_output_tokens);
    match (demand.max_output_tokens, limit) {
        (Some(asked), Some(limit)) => asked.min(limit),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => UNKNOWN_OUTPUT_TOKENS,
    }
}

#[cfg(test)]
mod tests;
