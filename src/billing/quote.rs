//! What one request is billed for: which model, and at which prices.
//!
//! A [`Quote`] is made when a request is admitted, of what is known then: the operator's prices, the
//! group, its channel and the model the client asked for. It maps and restricts the model, says what the
//! request may cost at most ([`Quote::bound`], for every account that may be chosen), and at the end,
//! when the account's name for the model is known, what it does cost ([`Quote::price`]). So bound,
//! charge and record always speak of the same prices, whatever is applied meanwhile.
//!
//! **Which name is billed** (SPEC 4.7): the channel's `billing_model_source`. `channel_mapped`, which
//! holds without a channel too, is the name in the body as the channel leaves it; `requested` what the
//! client wrote; `upstream` what the account that served the request calls the model, which an operator
//! chooses to bill what the provider bills. Where that name has no price at all, the request's other
//! names are tried before it counts as unpriced: first the ones nearer to the provider.

use std::sync::Arc;

use tollgate_filters::usage::TokenUsage;

use super::channel::{self, Gate};
use super::image::{self, ImageSize};
use super::price_map::Prices;
use super::pricing::{self, Exact, Priced, ServiceTier};
use crate::domain::price::ModelPrice;
use crate::domain::{
    BillingModelSource, Channel, ChannelPrice, Group, Multiplier, PriceInterval, PricingMode,
};

/// What a request used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// Tokens by class.
    pub tokens: TokenUsage,
    /// Images produced.
    pub image_count: u32,
    /// The size that was asked for.
    pub image_size: ImageSize,
}

impl Used {
    fn is_nothing(&self) -> bool {
        self.image_count == 0 && self.tokens == TokenUsage::default()
    }
}

/// One request's prices. Cheap to make and to clone.
#[derive(Clone, Debug)]
pub struct Quote {
    prices: Arc<Prices>,
    group: Arc<Group>,
    channel: Option<Arc<Channel>>,
    requested: Box<str>,
    /// As the channel leaves it, where it changes it.
    mapped: Option<Box<str>>,
}

impl Quote {
    /// Of a request for `requested` in `group`, whose channel, if it has one that is enabled, is
    /// `channel`.
    pub fn new(
        prices: Arc<Prices>,
        group: Arc<Group>,
        channel: Option<Arc<Channel>>,
        requested: &str,
    ) -> Quote {
        let mapped = channel
            .as_deref()
            .and_then(|channel| channel::mapped(channel, group.platform, requested))
            .filter(|mapped| *mapped != requested)
            .map(Box::from);
        Quote {
            prices,
            group,
            channel,
            requested: requested.into(),
            mapped,
        }
    }

    /// The model the client asked for.
    pub fn requested(&self) -> &str {
        &self.requested
    }

    /// The model after the channel's mapping: what accounts are chosen for, and map on.
    pub fn mapped(&self) -> &str {
        self.mapped.as_deref().unwrap_or(&self.requested)
    }

    /// The channel that applies, whether or not it changes anything.
    pub fn channel(&self) -> Option<&Channel> {
        self.channel.as_deref()
    }

    /// Whether the channel's restriction of models lets the request through.
    pub fn gate(&self) -> Gate {
        self.channel().map_or(Gate::Open, |channel| {
            channel::gate(channel, self.group.platform, &self.requested, self.mapped())
        })
    }

    /// Where [`Quote::gate`] says `PerAccount`: whether an account may serve the request that calls the
    /// model `upstream`.
    pub fn allows(&self, upstream: &str) -> bool {
        self.channel()
            .is_none_or(|channel| channel::allows(channel, self.group.platform, upstream))
    }

    /// Whether what the request costs may depend on what the account that serves it calls the model.
    pub fn depends_on_account(&self) -> bool {
        let source = self.channel().map(|channel| channel.billing_model_source);
        source == Some(BillingModelSource::Upstream)
            || self
                .offer(self.billed(""))
                .is_none_or(|offer| !offer.prices_tokens())
    }

    /// The model that is billed where the account calls it `upstream`: the record's `model`.
    pub fn billed<'q>(&'q self, upstream: &'q str) -> &'q str {
        self.names(upstream)[0]
    }

    /// The record's `model_mapping_chain` where the account calls the model `upstream`.
    pub fn chain(&self, upstream: &str) -> Option<String> {
        channel::mapping_chain(&self.requested, self.mapped(), upstream)
    }

    /// What the request costs that used this, sent to an account that calls the model `upstream`.
    ///
    /// Nothing used is nothing paid, also where requests are counted: a request that a provider
    /// refused. Images count where no tokens were reported for them, or where the tokens have no price.
    pub fn price(
        &self,
        upstream: &str,
        used: &Used,
        tier: Option<ServiceTier>,
        multiplier: Multiplier,
    ) -> Priced {
        let (amount, mode, billing_tier) = if used.is_nothing() {
            let Some(offer) = self.offers(upstream).next() else {
                return Priced::default();
            };
            (Exact::ZERO, offer.mode(), None)
        } else if let Some(price) = self.find(upstream, used, tier) {
            price
        } else if used.image_count > 0 {
            let unit = self.image_price(upstream, used.image_size);
            let name = used.image_size.as_str().to_owned();
            let amount = unit.times(u64::from(used.image_count));
            (amount, PricingMode::Image, Some(name))
        } else {
            return Priced::default();
        };
        Priced {
            cost: amount.cost(),
            charge: amount.charge(multiplier),
            priced: true,
            mode,
            billing_tier,
        }
    }

    /// The price of the first name that has one for what was used. A name with prices for tokens ends the
    /// search: images without tokens are then paid for as such, not by another name.
    fn find(
        &self,
        upstream: &str,
        used: &Used,
        tier: Option<ServiceTier>,
    ) -> Option<(Exact, PricingMode, Option<String>)> {
        for offer in self.offers(upstream) {
            let price = offer.price(used, tier);
            if price.is_some() || offer.prices_tokens() {
                return price;
            }
        }
        None
    }

    /// One image at list price, where the channel has none for it.
    pub(super) fn image_price(&self, upstream: &str, size: ImageSize) -> Exact {
        let names = self.names(upstream);
        let mut models = names.iter().filter_map(|name| self.prices.lookup(name));
        let model = models.find(|model| model.output_image.is_some());
        image::unit_price(&self.group, model, size)
    }

    /// What the names that may be billed cost, the first that has a price first.
    pub(super) fn offers<'q>(&'q self, upstream: &'q str) -> impl Iterator<Item = Offer<'q>> {
        let names = self.names(upstream);
        let distinct = move |at: &usize| !names[..*at].contains(&names[*at]);
        (0..names.len())
            .filter(distinct)
            .filter_map(move |at| self.offer(names[at]))
    }

    /// The model's entry in the price map, for its limits. Where the account's own name for it says
    /// nothing, it is taken for the model that was asked for.
    pub(super) fn model<'q>(&'q self, upstream: &'q str) -> Option<&'q ModelPrice> {
        self.prices
            .lookup(upstream)
            .or_else(|| self.prices.lookup(self.mapped()))
            .or_else(|| self.prices.lookup(&self.requested))
    }

    fn offer<'q>(&'q self, name: &str) -> Option<Offer<'q>> {
        let row = self
            .channel()
            .and_then(|channel| channel::price_row(channel, self.group.platform, name));
        let base = self.prices.lookup(name);
        Offer::new(row, base)
    }

    /// The names to bill by, the one that counts first.
    fn names<'q>(&'q self, upstream: &'q str) -> [&'q str; 3] {
        let (requested, mapped) = (&*self.requested, self.mapped());
        match self.channel().map(|channel| channel.billing_model_source) {
            Some(BillingModelSource::Requested) => [requested, mapped, upstream],
            None | Some(BillingModelSource::ChannelMapped) => [mapped, upstream, requested],
            Some(BillingModelSource::Upstream) => [upstream, mapped, requested],
        }
    }
}

/// What one name of a model costs: the channel's prices over the model's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer<'q> {
    row: Option<&'q ChannelPrice>,
    base: Option<&'q ModelPrice>,
}

impl<'q> Offer<'q> {
    /// `None` when neither has a price.
    fn new(row: Option<&'q ChannelPrice>, base: Option<&'q ModelPrice>) -> Option<Offer<'q>> {
        let offer = Offer { row, base };
        let fixed = |row: &ChannelPrice| {
            let of_intervals = row.intervals.iter().map(|interval| interval.prices);
            let mut prices = of_intervals.chain([row.prices]);
            prices.any(|prices| prices.per_request.is_some())
        };
        (offer.prices_tokens() || offer.fixed_row().is_some_and(fixed)).then_some(offer)
    }

    /// What is counted as a rule.
    fn mode(&self) -> PricingMode {
        self.row.map_or(PricingMode::Token, |row| row.billing_mode)
    }

    /// The channel's row, where it counts requests or images.
    pub(super) fn fixed_row(&self) -> Option<&'q ChannelPrice> {
        self.row
            .filter(|row| row.billing_mode != PricingMode::Token)
    }

    /// Whether tokens have a price.
    pub(super) fn prices_tokens(&self) -> bool {
        self.base.is_some() || self.row.is_some_and(channel::prices_tokens)
    }

    /// `None` where this name has no price for what was used.
    fn price(
        &self,
        used: &Used,
        tier: Option<ServiceTier>,
    ) -> Option<(Exact, PricingMode, Option<String>)> {
        let context = pricing::context(&used.tokens);
        if let Some(row) = self.fixed_row()
            && let Some((unit, interval)) = fixed_price(
                row,
                context,
                (used.image_count > 0).then_some(used.image_size),
            )
        {
            let amount = unit.times(count(row, used.image_count));
            return Some((amount, row.billing_mode, interval.map(channel::name_of)));
        }
        let only_images = used.image_count > 0 && used.tokens == TokenUsage::default();
        if only_images || !self.prices_tokens() {
            return None;
        }
        let interval = self.row.and_then(|row| channel::interval_of(row, context));
        let amount = match (self.row, self.base) {
            (None, Some(base)) => pricing::tokens(&used.tokens, base, tier),
            _ => pricing::tokens(&used.tokens, &self.model(interval), tier),
        };
        Some((amount, PricingMode::Token, interval.map(channel::name_of)))
    }

    /// Token prices, of the channel's row those of an interval or outside of them.
    pub(super) fn model(&self, interval: Option<&PriceInterval>) -> ModelPrice {
        match self.row {
            Some(row) => channel::overlay(self.base, row, interval),
            None => self.base.cloned().unwrap_or_default(),
        }
    }

    /// The intervals by which tokens may be priced.
    pub(super) fn intervals(&self) -> impl Iterator<Item = &'q PriceInterval> {
        self.row.into_iter().flat_map(channel::by_context)
    }
}

/// One request or one image by a row that counts them, and the interval it is from: the one labelled
/// with the size, else the one of the context, else the row itself. Without an image there is no size.
/// `None` = the row has no such price.
fn fixed_price(
    row: &ChannelPrice,
    context: u64,
    size: Option<ImageSize>,
) -> Option<(Exact, Option<&PriceInterval>)> {
    let of_size = size.and_then(|size| channel::interval_of_size(row, size.as_str()));
    let by_context = channel::interval_of(row, context);
    [of_size, by_context]
        .into_iter()
        .flatten()
        .find_map(|interval| Some((interval.prices.per_request?, Some(interval))))
        .or_else(|| Some((row.prices.per_request?, None)))
        .map(|(price, interval)| (Exact::of(1, price), interval))
}

/// How often a fixed price is paid: for every image; once for a request, also one to an image model
/// that made none.
pub(super) fn count(row: &ChannelPrice, images: u32) -> u64 {
    match row.billing_mode {
        PricingMode::Image => u64::from(images.max(1)),
        PricingMode::PerRequest | PricingMode::Token => 1,
    }
}

#[cfg(test)]
pub(super) mod fixtures;
#[cfg(test)]
mod tests;
