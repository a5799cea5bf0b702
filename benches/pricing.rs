//! What does it take to price one request? Looking a model up (known, dated, unknown), its quote, its
//! bound before and its price after, and reading the built-in map at start.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use tollgate::billing::bound::Demand;
use tollgate::billing::image::ImageSize;
use tollgate::billing::price_map::Prices;
use tollgate::billing::pricing::ServiceTier;
use tollgate::billing::quote::{Quote, Used};
use tollgate::domain::price::Price;
use tollgate::domain::{
    BillingModelSource, Channel, ChannelId, ChannelPrice, ClassPrices, Group, GroupId,
    ModelMapping, Multiplier, Platform, PriceInterval, PricingMode, SubscriptionType,
};
use tollgate_filters::usage::TokenUsage;

fn group() -> Group {
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

/// Twenty rows of prices, of which the last applies.
fn channel() -> Channel {
    let prices = ClassPrices {
        input: Some(Price(2_000_000_000)),
        ..ClassPrices::default()
    };
    let row = |n: usize| ChannelPrice {
        platform: Platform::OpenAi,
        models: vec![if n == 19 {
            "gpt-5*".into()
        } else {
            format!("other-{n}*")
        }],
        billing_mode: PricingMode::Token,
        prices,
        intervals: vec![PriceInterval {
            min_tokens: 200_000,
            max_tokens: None,
            tier_label: None,
            prices,
        }],
    };
    Channel {
        id: ChannelId(1),
        name: "c".into(),
        enabled: true,
        groups: vec![GroupId(1)],
        model_mapping: [(Platform::OpenAi, ModelMapping::default())].into(),
        restrict_models: false,
        billing_model_source: BillingModelSource::default(),
        prices: (0..20).map(row).collect(),
    }
}

fn pricing(c: &mut Criterion) {
    let prices = Prices::built_in();
    let group = Arc::new(group());
    for (name, model) in [
        ("lookup/exact", "gpt-5.4"),
        ("lookup/variant", "gpt-5.2-codex-2099-01-01-xhigh"),
        ("lookup/claude_family", "anthropic.claude-opus-4-6-v1:0"),
        ("lookup/unknown", "llama-4-maverick-17b"),
    ] {
        c.bench_function(name, |b| b.iter(|| prices.lookup(black_box(model))));
    }

    let usage = TokenUsage {
        input: 200_000,
        output: 1_000,
        cache_read: 100_000,
        ..TokenUsage::default()
    };
    let multiplier = Multiplier(850_000);
    let used = Used {
        tokens: usage,
        image_count: 0,
        image_size: ImageSize::TwoK,
    };
    let demand = Demand {
        body_len: 20_000,
        ..Demand::default()
    };
    let shared = Arc::new(prices);
    for (name, channel) in [("plain", None), ("channel", Some(Arc::new(channel())))] {
        let quote = || {
            let model = black_box("gpt-5.4");
            Quote::new(shared.clone(), group.clone(), channel.clone(), model)
        };
        let tier = ServiceTier::parse("priority");
        c.bench_function(&format!("quote/{name}"), |b| b.iter(quote));
        let made = quote();
        c.bench_function(&format!("bound/{name}"), |b| {
            b.iter(|| made.bound([made.mapped()], black_box(&demand), tier, multiplier));
        });
        c.bench_function(&format!("price/{name}"), |b| {
            b.iter(|| made.price("gpt-5.4", black_box(&used), tier, multiplier));
        });
    }
    c.bench_function("built_in", |b| b.iter(Prices::built_in));
}

criterion_group!(benches, pricing);
criterion_main!(benches);
