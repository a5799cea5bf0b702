//! What a channel means for a model's name: mapping, restriction, and which of its prices apply
//! (SPEC 4.7, 9.0, Change 14). Names are compared in lower case.

use std::borrow::Cow;

use crate::domain::price::{ModelPrice, Price, in_proportion};
use crate::domain::{
    BillingModelSource, Channel, ChannelPrice, ClassPrices, Platform, PriceInterval, PricingMode,
};

/// What the channel makes of the model a client asked for; `None` = it stays as it is. Only the
/// mapping of the group's own platform counts: an exact key first, then the longest prefix.
pub fn mapped<'c>(channel: &'c Channel, platform: Platform, client_model: &str) -> Option<&'c str> {
    let mapping = channel.model_mapping.get(&platform)?;
    mapping.lookup(&lower(client_model))
}

/// The prices the channel has for a model: a row that names it, else the first row in the order of
/// the resources with a prefix of it.
pub fn price_row<'c>(
    channel: &'c Channel,
    platform: Platform,
    model: &str,
) -> Option<&'c ChannelPrice> {
    let model = lower(model);
    let rows = || channel.prices.iter().filter(|row| row.platform == platform);
    let names = |row: &&ChannelPrice| row.models.iter().any(|name| *name == model);
    let begins = |row: &&ChannelPrice| {
        let mut prefixes = row.models.iter().filter_map(|name| name.strip_suffix('*'));
        prefixes.any(|prefix| model.starts_with(prefix))
    };
    rows().find(names).or_else(|| rows().find(begins))
}

/// Whether a channel that restricts models lets one through: it has prices for it.
pub fn allows(channel: &Channel, platform: Platform, model: &str) -> bool {
    !channel.restrict_models || price_row(channel, platform, model).is_some()
}

/// Whether a restriction of models lets a request through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// It does, whichever account is chosen.
    Open,
    /// It does not: no account is available (503).
    Closed,
    /// It depends on what the account calls the model: ask [`allows`] with that name, for each.
    PerAccount,
}

/// What is known before an account is chosen, of the model a client asked for and what the channel
/// made of it.
pub fn gate(channel: &Channel, platform: Platform, requested: &str, mapped: &str) -> Gate {
    if !channel.restrict_models {
        return Gate::Open;
    }
    let decides = match channel.billing_model_source {
        BillingModelSource::Requested => requested,
        BillingModelSource::ChannelMapped => mapped,
        BillingModelSource::Upstream => return Gate::PerAccount,
    };
    match price_row(channel, platform, decides) {
        Some(_) => Gate::Open,
        None => Gate::Closed,
    }
}

/// The interval of a row that a prompt of so many tokens falls into.
pub fn interval_of(row: &ChannelPrice, context_tokens: u64) -> Option<&PriceInterval> {
    by_context(row).find(|interval| interval.contains(context_tokens))
}

/// The intervals of a row that are chosen by the length of the prompt. Where requests or images are
/// counted, one with a label is for images of that size only.
pub fn by_context(row: &ChannelPrice) -> impl Iterator<Item = &PriceInterval> {
    let of_tokens = row.billing_mode == PricingMode::Token;
    row.intervals
        .iter()
        .filter(move |interval| of_tokens || interval.tier_label.is_none())
}

/// The interval of a row for images of a size such as `2K`.
pub fn interval_of_size<'c>(row: &'c ChannelPrice, size: &str) -> Option<&'c PriceInterval> {
    let is_of_size = |label: &str| label.eq_ignore_ascii_case(size);
    row.intervals
        .iter()
        .find(|interval| interval.tier_label.as_deref().is_some_and(is_of_size))
}

/// How a record names an interval: its label, else its bounds.
pub fn name_of(interval: &PriceInterval) -> String {
    match (&interval.tier_label, interval.max_tokens) {
        (Some(label), _) => label.clone(),
        (None, Some(max)) => format!("({},{max}]", interval.min_tokens),
        (None, None) => format!("({},∞)", interval.min_tokens),
    }
}

/// Whether a row says anything of what tokens cost.
pub fn prices_tokens(row: &ChannelPrice) -> bool {
    let any = |p: &ClassPrices| {
        let classes = [
            p.input,
            p.output,
            p.cache_write,
            p.cache_read,
            p.image_output,
        ];
        classes.iter().any(Option::is_some)
    };
    any(&row.prices) || row.intervals.iter().any(|interval| any(&interval.prices))
}

/// A model's token prices under a row and, of the row, an interval: what the interval leaves out is
/// the row's, what that leaves out the model's own. A class with a price of the channel's keeps the
/// model's surcharges for the `priority` tier and for long contexts in proportion. A price for cache
/// writes holds however long they are kept. A row with intervals has no long-context prices besides.
pub fn overlay(
    base: Option<&ModelPrice>,
    row: &ChannelPrice,
    interval: Option<&PriceInterval>,
) -> ModelPrice {
    let mut model = base.cloned().unwrap_or_default();
    if !row.intervals.is_empty() {
        model.long_context = None;
    }
    let mut price = row.prices;
    if let Some(ClassPrices {
        input,
        output,
        cache_write,
        cache_read,
        image_output,
        per_request: _,
    }) = interval.map(|interval| interval.prices)
    {
        price.input = input.or(price.input);
        price.output = output.or(price.output);
        price.cache_write = cache_write.or(price.cache_write);
        price.cache_read = cache_read.or(price.cache_read);
        price.image_output = image_output.or(price.image_output);
    }
    let replace = |normal: &mut Option<Price>, priority: &mut Option<Price>, price| {
        *priority = in_proportion(*priority, *normal, price);
        *normal = price;
    };
    if price.input.is_some() {
        if let Some(long) = &mut model.long_context {
            long.input_priority = in_proportion(long.input_priority, model.input, price.input);
            long.input = in_proportion(long.input, model.input, price.input);
        }
        replace(&mut model.input, &mut model.input_priority, price.input);
    }
    if price.output.is_some() {
        if let Some(long) = &mut model.long_context {
            long.output_priority = in_proportion(long.output_priority, model.output, price.output);
            long.output = in_proportion(long.output, model.output, price.output);
        }
        replace(&mut model.output, &mut model.output_priority, price.output);
    }
    if price.cache_read.is_some() {
        replace(
            &mut model.cache_read,
            &mut model.cache_read_priority,
            price.cache_read,
        );
    }
    if price.cache_write.is_some() {
        model.cache_creation = price.cache_write;
        model.cache_creation_1h = None;
    }
    if price.image_output.is_some() {
        model.output_image_token = price.image_output;
    }
    model
}

/// The distinct names a model had on its way, joined with `→`; `None` when it kept its name.
pub fn mapping_chain(requested: &str, mapped: &str, upstream: &str) -> Option<String> {
    let mut steps = vec![requested, mapped, upstream];
    steps.dedup();
    (steps.len() > 1).then(|| steps.join("→"))
}

fn lower(name: &str) -> Cow<'_, str> {
    if name.chars().any(char::is_uppercase) {
        Cow::Owned(name.to_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests;
