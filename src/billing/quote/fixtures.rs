//! Objects for the tests of what prices are made of.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Quote;
use crate::billing::price_map::Prices;
use crate::domain::price::Price;
use crate::domain::{
    BillingModelSource, Channel, ChannelId, ChannelPrice, ClassPrices, Group, GroupId,
    ModelMapping, Multiplier, Platform, PriceInterval, PricingMode, SubscriptionType,
};

/// A group of OpenAI accounts.
pub fn group() -> Group {
    Group {
        id: GroupId(1),
        name: "g".into(),
        enabled: true,
        platform: Platform::OpenAi,
        rate_multiplier: Multiplier::ONE,
        subscription_type: SubscriptionType::Standard,
        daily_limit: None,
        weekly_limit: None,
        monthly_limit: None,
        rpm_limit: 0,
        options: serde_json::Map::new(),
    }
}

/// A channel that maps what `mapping` says and has these prices.
pub fn channel(mapping: &[(&str, &str)], prices: Vec<ChannelPrice>) -> Channel {
    let rules = mapping.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    Channel {
        id: ChannelId(1),
        name: "c".into(),
        enabled: true,
        groups: vec![GroupId(1)],
        model_mapping: BTreeMap::from([(Platform::OpenAi, ModelMapping::new(rules.collect()))]),
        restrict_models: false,
        billing_model_source: BillingModelSource::default(),
        prices,
    }
}

/// A row for OpenAI models that has no price yet.
pub fn row(models: &[&str], billing_mode: PricingMode) -> ChannelPrice {
    ChannelPrice {
        platform: Platform::OpenAi,
        models: models.iter().map(|model| model.to_string()).collect(),
        billing_mode,
        prices: ClassPrices::default(),
        intervals: Vec::new(),
    }
}

/// An interval `(min, max]`.
pub fn interval(min_tokens: u64, max_tokens: Option<u64>, prices: ClassPrices) -> PriceInterval {
    PriceInterval {
        min_tokens,
        max_tokens,
        tier_label: None,
        prices,
    }
}

/// Input and output, in USD per million tokens.
pub fn per_million(input: i64, output: i64) -> ClassPrices {
    ClassPrices {
        input: Some(Price(input * 1_000_000_000)),
        output: Some(Price(output * 1_000_000_000)),
        ..ClassPrices::default()
    }
}

/// One request or image, in thousandths of a dollar.
pub fn per_request(thousandths: i64) -> ClassPrices {
    ClassPrices {
        per_request: Some(Price(thousandths * 1_000_000_000_000)),
        ..ClassPrices::default()
    }
}

/// A quote by the built-in prices.
pub fn quote(channel: Option<Channel>, requested: &str) -> Quote {
    quote_by(Prices::built_in(), channel, requested)
}

/// A quote by these prices.
pub fn quote_by(prices: Prices, channel: Option<Channel>, requested: &str) -> Quote {
    let channel = channel.map(Arc::new);
    Quote::new(Arc::new(prices), Arc::new(group()), channel, requested)
}
