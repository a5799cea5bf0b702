use super::fixtures::{channel, interval, per_million, per_request, quote, quote_by, row};
use super::*;
use crate::domain::price::{Price, PriceMap};
use crate::domain::{ClassPrices, Money};

const ONE: Multiplier = Multiplier::ONE;

fn usd(text: &str) -> Money {
    text.parse().unwrap()
}

fn used(input: u64, cache_read: u64, output: u64) -> Used {
    Used {
        tokens: TokenUsage {
            input,
            cache_read,
            output,
            ..TokenUsage::default()
        },
        image_count: 0,
        image_size: ImageSize::TwoK,
    }
}

fn images(image_count: u32, image_size: ImageSize) -> Used {
    Used {
        image_count,
        image_size,
        ..used(0, 0, 0)
    }
}

/// Prices of these models: USD per million input tokens.
fn prices(models: &[(&str, i64)]) -> Prices {
    let map: PriceMap = models
        .iter()
        .map(|(name, dollars)| {
            let price = ModelPrice {
                input: Some(Price(dollars * 1_000_000_000)),
                ..ModelPrice::default()
            };
            (name.to_string(), price)
        })
        .collect();
    Prices::default().with_overrides(&map)
}

fn cost(quote: &Quote, used: &Used) -> Money {
    quote.price(quote.mapped(), used, None, ONE).cost
}

#[test]
fn the_worked_numbers_of_the_specification() {
    let gpt = quote(None, "gpt-5.4");
    for (used, expected) in [
        (used(200_000, 100_000, 1_000), "1.0475"),
        // At exactly 272 000: 172 000 × 2.5e-6 + 100 000 × 0.25e-6 + 1 000 × 15e-6.
        (used(172_000, 100_000, 1_000), "0.47"),
        (used(172_001, 100_000, 1_000), "0.907505"),
    ] {
        assert_eq!(cost(&gpt, &used), usd(expected), "{used:?}");
    }
    let claude = quote(None, "claude-sonnet-4-5");
    for (tokens, expected) in [
        (
            TokenUsage {
                cache_creation: 1_500,
                cache_creation_5m: 1_000,
                cache_creation_1h: 500,
                ..TokenUsage::default()
            },
            "0.00675",
        ),
        (
            TokenUsage {
                cache_creation: 1_500,
                ..TokenUsage::default()
            },
            "0.005625",
        ),
    ] {
        let used = Used {
            tokens,
            ..used(0, 0, 0)
        };
        assert_eq!(cost(&claude, &used), usd(expected));
    }
    // 0.134 × 1.5 × 2
    let priced = quote(None, "gpt-5.4").price("gpt-5.4", &images(2, ImageSize::TwoK), None, ONE);
    assert_eq!(priced.cost, usd("0.402"));
    assert_eq!(priced.mode, PricingMode::Image);
    assert_eq!(priced.billing_tier.as_deref(), Some("2K"));
    // Tiers of a model without priority prices.
    let dime = quote_by(prices(&[("m", 1)]), None, "m");
    for (tier, expected) in [
        (None, "0.1"),
        (Some(ServiceTier::Flex), "0.05"),
        (Some(ServiceTier::Priority), "0.2"),
    ] {
        let priced = dime.price("m", &used(100_000, 0, 0), tier, ONE);
        assert_eq!(priced.cost, usd(expected), "{tier:?}");
    }
    // A multiplier of nothing.
    let priced = dime.price("m", &used(100_000, 0, 0), None, Multiplier(0));
    assert_eq!((priced.cost, priced.charge), (usd("0.1"), Money::ZERO));
}

#[test]
fn intervals_begin_behind_their_lower_end() {
    let mut long = row(&["gpt-5.4*"], PricingMode::Token);
    long.prices = per_million(1, 10);
    long.intervals = vec![
        interval(0, Some(200_000), per_million(2, 20)),
        interval(200_000, Some(300_000), per_million(4, 40)),
    ];
    let quote = quote(Some(channel(&[], vec![long])), "gpt-5.4");
    for (used, expected, tier) in [
        (used(1_000, 0, 0), "0.002", Some("(0,200000]")),
        // Cache reads (0.25 per million, the model's own) belong to the context.
        (used(100_000, 100_000, 0), "0.225", Some("(0,200000]")),
        (
            used(100_001, 100_000, 0),
            "0.425004",
            Some("(200000,300000]"),
        ),
        // The last context of an interval; no long-context surcharge.
        (used(300_000, 0, 1_000), "1.24", Some("(200000,300000]")),
        // Behind the last, and without a prompt: the row's own.
        (used(300_001, 0, 0), "0.300001", None),
        (used(0, 0, 1_000), "0.01", None),
    ] {
        let priced = quote.price("gpt-5.4", &used, None, ONE);
        assert_eq!(priced.cost, usd(expected), "{used:?}");
        assert_eq!(priced.billing_tier.as_deref(), tier, "{used:?}");
        assert_eq!(priced.mode, PricingMode::Token);
    }
}

#[test]
fn the_source_says_which_name_is_billed() {
    use BillingModelSource::{ChannelMapped, Requested, Upstream};
    let mut with = channel(&[("asked", "mapped")], Vec::new());
    let prices = prices(&[("asked", 1), ("mapped", 2), ("upstream", 3)]);
    for (source, name, expected) in [
        (Requested, "asked", "1"),
        (ChannelMapped, "mapped", "2"),
        (Upstream, "upstream", "3"),
    ] {
        with.billing_model_source = source;
        let quote = quote_by(prices.clone(), Some(with.clone()), "asked");
        assert_eq!(quote.mapped(), "mapped");
        assert_eq!(quote.billed("upstream"), name, "{source:?}");
        assert_eq!(quote.chain("upstream").unwrap(), "asked→mapped→upstream");
        let priced = quote.price("upstream", &used(1_000_000, 0, 0), None, ONE);
        assert_eq!(priced.cost, usd(expected), "{source:?}");
    }
    let plain = quote_by(prices, None, "asked");
    assert_eq!(
        (plain.billed("upstream"), plain.mapped()),
        ("asked", "asked")
    );
    assert_eq!(plain.gate(), Gate::Open);
    assert!(plain.allows("anything"));
}

#[test]
fn a_name_without_a_price_is_billed_by_the_next_that_has_one() {
    use BillingModelSource::{ChannelMapped, Requested, Upstream};
    let million = used(1_000_000, 0, 0);
    let mut with = channel(&[("asked", "mapped")], Vec::new());
    for (source, known, expected) in [
        (ChannelMapped, &[("asked", 1), ("upstream", 3)][..], "3"),
        (ChannelMapped, &[("asked", 1)], "1"),
        (Requested, &[("mapped", 2), ("upstream", 3)], "2"),
        (Requested, &[("upstream", 3)], "3"),
        (Upstream, &[("asked", 1), ("mapped", 2)], "2"),
        (Upstream, &[("asked", 1)], "1"),
        (Upstream, &[], "0"),
    ] {
        with.billing_model_source = source;
        let quote = quote_by(prices(known), Some(with.clone()), "asked");
        let priced = quote.price("upstream", &million, None, ONE);
        assert_eq!(priced.cost, usd(expected), "{source:?} {known:?}");
        assert_eq!(priced.priced, !known.is_empty());
    }
    // A price of the channel's is a price, also a partial one over a model nobody knows.
    let mut own = row(&["upstream"], PricingMode::Token);
    own.prices.input = Some(Price(9_000_000_000));
    with.prices = vec![own];
    with.billing_model_source = ChannelMapped;
    let quote = quote_by(prices(&[("asked", 1)]), Some(with), "asked");
    assert_eq!(quote.price("upstream", &million, None, ONE).cost, usd("9"));
}

#[test]
fn requests_and_images_may_have_a_fixed_price() {
    let mut request = row(&["gpt-5.4"], PricingMode::PerRequest);
    request.prices = per_request(50);
    let mut sized = interval(0, None, per_request(200));
    sized.tier_label = Some("2k".into());
    request.intervals = vec![sized, interval(100_000, None, per_request(80))];
    let mut image = request.clone();
    image.billing_mode = PricingMode::Image;
    let with_images = |n, size| Used {
        image_count: n,
        image_size: size,
        ..used(1_000, 0, 1_000)
    };
    for (row, used, expected, tier) in [
        (&request, used(1_000, 0, 1_000), "0.05", None),
        (&request, used(100_001, 0, 0), "0.08", Some("(100000,∞)")),
        (&request, with_images(3, ImageSize::TwoK), "0.2", Some("2k")),
        (&request, with_images(3, ImageSize::OneK), "0.05", None),
        (&image, with_images(3, ImageSize::OneK), "0.15", None),
        (&image, with_images(3, ImageSize::TwoK), "0.6", Some("2k")),
        (&image, images(2, ImageSize::TwoK), "0.4", Some("2k")),
        // A request to an image model that made none is one.
        (&image, used(1_000, 0, 1_000), "0.05", None),
        // Nothing was used: the provider refused.
        (&request, used(0, 0, 0), "0", None),
        (&image, used(0, 0, 0), "0", None),
    ] {
        let quote = quote(Some(channel(&[], vec![row.clone()])), "gpt-5.4");
        for tier in [None, Some(ServiceTier::Priority)] {
            let priced = quote.price("gpt-5.4", &used, tier, Multiplier(2_000_000));
            assert_eq!(priced.cost, usd(expected), "{used:?}");
            assert_eq!(priced.charge, priced.cost + priced.cost);
            assert_eq!(priced.mode, row.billing_mode);
        }
        let priced = quote.price("gpt-5.4", &used, None, ONE);
        assert_eq!(priced.billing_tier.as_deref(), tier, "{used:?}");
    }
}

#[test]
fn a_row_that_has_no_fixed_price_for_the_request_leaves_it_to_tokens() {
    let mut request = row(&["gpt-5.4"], PricingMode::PerRequest);
    request.intervals = vec![interval(100_000, None, per_request(80))];
    let with = channel(&[], vec![request]);
    let quote = quote(Some(with.clone()), "gpt-5.4");
    let priced = quote.price("gpt-5.4", &used(1_000_000, 0, 0), None, ONE);
    assert_eq!(
        (priced.cost, priced.mode),
        (usd("0.08"), PricingMode::PerRequest)
    );
    let priced = quote.price("gpt-5.4", &used(1_000, 0, 0), None, ONE);
    assert_eq!(
        (priced.cost, priced.mode),
        (usd("0.0025"), PricingMode::Token)
    );
    let mut with = with;
    with.prices[0].models = vec!["m".into()];
    let unknown = quote_by(Prices::default(), Some(with), "m");
    assert!(!unknown.price("m", &used(1_000, 0, 0), None, ONE).priced);
}

#[test]
fn images_are_paid_for_where_no_tokens_are() {
    let known = quote_by(prices(&[("m", 1)]), None, "m");
    let unknown = quote_by(Prices::default(), None, "m");
    let both = Used {
        image_count: 1,
        ..used(1_000_000, 0, 0)
    };
    let one = images(1, ImageSize::OneK);
    for (quote, used, expected, mode) in [
        (&known, both, "1", PricingMode::Token),
        (&known, one, "0.134", PricingMode::Image),
        (&unknown, both, "0.201", PricingMode::Image),
        (&unknown, one, "0.134", PricingMode::Image),
    ] {
        let priced = quote.price("m", &used, None, ONE);
        assert_eq!((priced.cost, priced.mode), (usd(expected), mode));
        assert!(priced.priced);
    }
    // The channel's token prices are none for images.
    let mut tokens = row(&["m"], PricingMode::Token);
    tokens.prices = ClassPrices {
        output: Some(Price(1)),
        ..ClassPrices::default()
    };
    let quote = quote(Some(channel(&[], vec![tokens])), "m");
    assert_eq!(cost(&quote, &one), usd("0.134"));
}

#[test]
fn what_is_free_and_what_is_unknown_are_told_apart() {
    let nothing = used(0, 0, 0);
    let some = used(1, 0, 0);
    for (quote, used, priced) in [
        (quote_by(prices(&[("m", 0)]), None, "m"), some, true),
        (quote_by(prices(&[("m", 1)]), None, "m"), nothing, true),
        (quote_by(Prices::default(), None, "m"), some, false),
        (quote_by(Prices::default(), None, "m"), nothing, false),
    ] {
        let price = quote.price("m", &used, None, ONE);
        assert_eq!((price.priced, price.cost), (priced, Money::ZERO));
    }
}
