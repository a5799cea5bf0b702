use std::sync::Arc;

use proptest::prelude::*;
use tollgate_filters::usage::TokenUsage;

use super::*;
use crate::billing::price_map::Prices;
use crate::billing::pricing::tests::{any_model, any_price, any_tier};
use crate::billing::quote::Used;
use crate::billing::quote::fixtures::{
    channel, group, interval, per_million, per_request, quote, quote_by, row,
};
use crate::domain::price::{Price, PriceMap};
use crate::domain::{BillingModelSource, Channel, ClassPrices, PriceInterval, PricingMode};

const ONE: Multiplier = Multiplier::ONE;

fn usd(text: &str) -> Money {
    text.parse().unwrap()
}

fn of(quote: &Quote, demand: &Demand) -> Bound {
    quote.bound([quote.mapped()], demand, None, ONE)
}

fn body(body_len: u64) -> Demand {
    Demand {
        body_len,
        ..Demand::default()
    }
}

#[test]
fn the_tokens_of_a_request() {
    // gpt-5.4 reads 1 050 000 and writes 128 000, gpt-4o 128 000 and 16 384.
    let hosted = Demand {
        hosted: true,
        ..body(1_000)
    };
    let pictures = Demand {
        inline_images: 2,
        ..body(1_000)
    };
    let asks = |tokens| Demand {
        max_output_tokens: Some(tokens),
        ..body(1_000)
    };
    for (model, demand, input, output) in [
        ("gpt-5.4", body(1_000), 1_000, 128_000),
        ("gpt-5.4", body(2_000_000), 1_050_000, 128_000),
        ("gpt-5.4", hosted, 1_050_000, 128_000),
        ("gpt-5.4", pictures, 101_000, 128_000),
        ("gpt-4o", hosted, 128_000, 16_384),
        ("gpt-4o", asks(100), 1_000, 100),
        ("gpt-4o", asks(100_000), 1_000, 16_384),
        ("house-model", body(2_000_000), 2_000_000, 128_000),
        ("house-model", hosted, 1_001_000, 128_000),
        ("house-model", asks(1_000_000), 1_000, 1_000_000),
    ] {
        let bound = of(&quote(None, model), &demand);
        let tokens = (bound.input_tokens, bound.output_tokens);
        assert_eq!(tokens, (input, output), "{model} {demand:?}");
    }
}

#[test]
fn the_dearest_class_that_can_be_reached_counts() {
    for (model, body_len, input, per_thousand_output) in [
        // Below the threshold of long contexts, at it, and above: × 2 and × 1.5.
        ("gpt-5.4", 100_000, "0.25", "0.015"),
        ("gpt-5.4", 272_000, "0.68", "0.015"),
        ("gpt-5.4", 272_001, "1.360005", "0.0225"),
        // The 1-hour cache, at twice the input price.
        ("claude-sonnet-4-5", 100_000, "0.6", "0.015"),
        // Tokens of images.
        ("gpt-image-1", 100_000, "0.5", "0.04"),
    ] {
        let bound = of(&quote(None, model), &body(body_len));
        assert_eq!(bound.total(0), usd(input), "{model}");
        let output = bound.total(1_000) - bound.total(0);
        assert_eq!(output, usd(per_thousand_output), "{model}");
    }
    let priority = quote(None, "gpt-5.4").bound(
        [],
        &body(100_000),
        Some(ServiceTier::Priority),
        Multiplier(500_000),
    );
    assert_eq!(priority.total(0), usd("0.25"));
}

#[test]
fn fixed_prices_are_no_matter_of_length() {
    let mut request = row(&["gpt-5.4"], PricingMode::PerRequest);
    request.prices = per_request(50);
    request.intervals = vec![interval(100_000, None, per_request(80))];
    let request = quote(Some(channel(&[], vec![request])), "gpt-5.4");
    for (body_len, expected) in [(1_000, "0.05"), (100_000, "0.05"), (100_001, "0.08")] {
        let bound = of(&request, &body(body_len));
        assert_eq!(bound.most(), usd(expected));
        assert_eq!(bound.affordable(usd(expected)), Some(u64::MAX));
        assert_eq!(bound.affordable(usd("0.049")), None);
        assert!(!bound.depends_on_output());
    }
    let mut image = row(&["*"], PricingMode::Image);
    let mut sized = interval(0, None, per_request(200));
    sized.tier_label = Some("2K".into());
    image.intervals = vec![sized];
    image.prices = per_request(30);
    let image = quote(Some(channel(&[], vec![image])), "gpt-image-1");
    for (size, expected) in [
        (Some(ImageSize::OneK), "0.12"),
        (Some(ImageSize::TwoK), "0.8"),
        (None, "0.8"),
    ] {
        let demand = Demand {
            images: Some(ImageDemand { count: 4, size }),
            ..body(1_000)
        };
        assert_eq!(of(&image, &demand).most(), usd(expected), "{size:?}");
    }
    assert_eq!(of(&image, &body(1_000)).most(), usd("0.03"));
}

#[test]
fn images_that_may_be_paid_for_apart_are_in_the_bound() {
    let demand = Demand {
        images: Some(ImageDemand {
            count: 10,
            size: None,
        }),
        ..body(1_000)
    };
    // 10 × 0.134 × 2, more than the prompt.
    let bound = of(&quote(None, "gpt-5.4"), &demand);
    assert_eq!(bound.total(0), usd("2.68"));
    assert!(bound.depends_on_output());
    let unknown = of(&quote(None, "house-model"), &demand);
    assert_eq!((unknown.most(), unknown.priced), (usd("2.68"), true));
}

#[test]
fn a_model_without_a_price_is_bound_to_nothing() {
    let bound = of(&quote(None, "house-model"), &body(1_000));
    assert_eq!((bound.most(), bound.priced), (Money::ZERO, false));
    assert_eq!(bound.affordable(Money::ZERO), Some(u64::MAX));
}

#[test]
fn the_dearest_account_counts_where_its_name_matters() {
    let mut with = channel(&[], Vec::new());
    let names = ["gpt-4o", "gpt-5.4", "gpt-4o", "gpt-4o-mini"];
    let cost = |with: &Channel, requested| {
        let quote = quote(Some(with.clone()), requested);
        quote.bound(names, &body(100_000), None, ONE).total(0)
    };
    assert_eq!(cost(&with, "gpt-4o-mini"), usd("0.015"));
    // Nobody knows its price: those of the accounts' names may apply.
    assert_eq!(cost(&with, "house-model"), usd("0.25"));
    with.billing_model_source = BillingModelSource::Upstream;
    assert_eq!(cost(&with, "gpt-4o-mini"), usd("0.25"));
}

#[test]
fn what_is_affordable_is_exact() {
    let cheap = ClassPrices {
        input: Some(Price(3)),
        output: Some(Price(7)),
        ..per_million(1, 1)
    };
    let mut odd = row(&["m"], PricingMode::Token);
    odd.prices = cheap;
    let quote = quote_by(Prices::default(), Some(channel(&[], vec![odd])), "m");
    let bound = of(&quote, &body(1));
    // 3 femto-dollars are a nano-dollar, rounded up; so are 3 + 7 × 142 856.
    assert_eq!(bound.total(0), Money(1));
    assert_eq!(bound.affordable(Money(1)), Some(142_856));
    assert_eq!(bound.total(142_856), Money(1));
    assert_eq!(bound.total(142_857), Money(2));
    assert_eq!(bound.affordable(Money(0)), None);
    assert_eq!(bound.affordable(Money(-1)), None);
}

fn any_classes() -> impl Strategy<Value = ClassPrices> {
    (proptest::array::uniform5(any_price()), any_fixed()).prop_map(|(p, per_request)| ClassPrices {
        input: p[0],
        output: p[1],
        cache_write: p[2],
        cache_read: p[3],
        image_output: p[4],
        per_request,
    })
}

fn any_fixed() -> impl Strategy<Value = Option<Price>> {
    proptest::option::of((0i64..2_000_000_000_000_000).prop_map(Price))
}

fn any_row() -> impl Strategy<Value = ChannelPrice> {
    let label = proptest::option::of(prop::sample::select(vec!["1K", "2K", "4K"]));
    let end = proptest::option::of(0u64..3_000);
    let interval =
        (0u64..2_000, end, label, any_classes()).prop_map(|(min_tokens, more, label, prices)| {
            PriceInterval {
                min_tokens,
                max_tokens: more.map(|more| min_tokens + more),
                tier_label: label.map(str::to_owned),
                prices,
            }
        });
    (
        prop::sample::subsequence(vec!["a", "b", "c", "*"], 0..4),
        prop::sample::select(vec![
            PricingMode::Token,
            PricingMode::PerRequest,
            PricingMode::Image,
        ]),
        any_classes(),
        prop::collection::vec(interval, 0..4),
    )
        .prop_map(|(models, mode, prices, intervals)| ChannelPrice {
            prices,
            intervals,
            ..row(&models, mode)
        })
}

/// Requests for `a`, which a channel may map to `b`; accounts call it `a`, `b` or `c`.
fn any_quote() -> impl Strategy<Value = Quote> {
    let limits = (
        proptest::option::of(1u64..3_000),
        proptest::option::of(1u64..3_000),
    );
    let model = (any_model(), limits).prop_map(|(mut model, (input, output))| {
        model.max_input_tokens = input;
        model.max_output_tokens = output;
        // Near what the bodies of these tests have.
        if let Some(long) = &mut model.long_context {
            long.threshold_tokens %= 4_000;
        }
        model
    });
    let map = prop::collection::hash_map(
        prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned),
        model,
        0..4,
    );
    let source = prop::sample::select(vec![
        BillingModelSource::Requested,
        BillingModelSource::ChannelMapped,
        BillingModelSource::Upstream,
    ]);
    let with = (
        prop::collection::vec(any_row(), 0..3),
        any::<bool>(),
        source,
    )
        .prop_map(|(rows, maps, source)| {
            let mapping: &[_] = if maps { &[("a", "b")] } else { &[] };
            Channel {
                billing_model_source: source,
                ..channel(mapping, rows)
            }
        });
    let image_prices = proptest::option::of("0\\.[0-9]{1,3}");
    (map, proptest::option::of(with), image_prices).prop_map(|(map, with, price)| {
        let map: PriceMap = map;
        let mut group = group();
        if let Some(price) = price {
            let prices = serde_json::json!({ "2k": price });
            group.options.insert("image_prices".into(), prices);
        }
        let prices = Arc::new(Prices::default().with_overrides(&map));
        Quote::new(prices, Arc::new(group), with.map(Arc::new), "a")
    })
}

fn any_size() -> impl Strategy<Value = ImageSize> {
    prop::sample::select(ImageSize::ALL.to_vec())
}

fn any_demand() -> impl Strategy<Value = Demand> {
    let images = (1u32..5, proptest::option::of(any_size()))
        .prop_map(|(count, size)| ImageDemand { count, size });
    (
        0u64..5_000,
        proptest::option::of(0u64..5_000),
        prop::bool::weighted(0.1),
        proptest::option::of(images),
    )
        .prop_map(|(body_len, max_output_tokens, hosted, images)| Demand {
            body_len,
            max_output_tokens,
            thinking_tokens: 0,
            hosted,
            inline_images: 0,
            images,
        })
}

/// `total` cut at four places.
fn parts(total: u64, cuts: [prop::sample::Index; 4]) -> [u64; 4] {
    let size = usize::try_from(total).unwrap() + 1;
    let mut at = cuts.map(|cut| cut.index(size) as u64);
    at.sort_unstable();
    [at[0], at[1] - at[0], at[2] - at[1], at[3] - at[2]]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The law: whatever account is chosen and whatever is used, it costs no more than the bound.
    #[test]
    fn nothing_that_keeps_to_the_bound_costs_more(
        quote in any_quote(), demand in any_demand(), tier in any_tier(),
        multiplier in 0u64..3_000_000, upstream in prop::sample::subsequence(vec!["a", "b", "c"], 1..4),
        prompt in any::<[prop::sample::Index; 4]>(), answer in any::<[prop::sample::Index; 4]>(),
        whole_prompt in any::<bool>(), only_images in any::<bool>(),
        length in any::<prop::sample::Index>(), images in any::<prop::sample::Index>(), size in any_size(),
    ) {
        let multiplier = Multiplier(multiplier);
        let bound = quote.bound(upstream.iter().copied(), &demand, tier, multiplier);
        let output_tokens = length.index(usize::try_from(bound.output_tokens).unwrap() + 1) as u64;
        let mut prompt = parts(bound.input_tokens, prompt);
        if whole_prompt {
            prompt[0] += bound.input_tokens - prompt.iter().sum::<u64>();
        }
        let answer = parts(output_tokens, answer);
        let tokens = TokenUsage {
            input: prompt[0],
            cache_read: prompt[1],
            cache_creation: prompt[2] + prompt[3],
            cache_creation_5m: prompt[2],
            cache_creation_1h: prompt[3],
            output: answer[0] + answer[1],
            image_output: answer[2],
        };
        let most_images = demand.images.map_or(0, |images| images.count);
        let used = Used {
            tokens: if only_images { TokenUsage::default() } else { tokens },
            image_count: images.index(most_images as usize + 1) as u32,
            image_size: demand.images.and_then(|images| images.size).unwrap_or(size),
        };
        for name in upstream {
            let priced = quote.price(name, &used, tier, multiplier);
            prop_assert!(
                priced.charge <= bound.total(output_tokens), "{name}: {used:?} {priced:?} {bound:?}"
            );
            prop_assert!(bound.priced || !priced.priced);
        }
        prop_assert!(bound.total(output_tokens) <= bound.most());
    }

    #[test]
    fn affordable_and_total_are_inverse(
        quote in any_quote(), demand in any_demand(), tier in any_tier(), multiplier in 0u64..3_000_000,
        money in prop_oneof![-5i64..100, 0i64..10_000_000, any::<i64>()],
    ) {
        let bound = quote.bound(["a"], &demand, tier, Multiplier(multiplier));
        let money = Money(money);
        match bound.affordable(money) {
            None => prop_assert!(bound.total(0) > money),
            Some(tokens) => {
                prop_assert!(bound.total(tokens) <= money);
                if tokens < u64::MAX {
                    prop_assert!(bound.total(tokens + 1) > money);
                }
            }
        }
    }

    #[test]
    fn a_larger_request_has_no_lower_bound(
        quote in any_quote(), demand in any_demand(), tier in any_tier(), more in 0u64..5_000,
    ) {
        let larger = Demand { body_len: demand.body_len + more, ..demand };
        let hosted = Demand { hosted: true, ..larger };
        let names = ["a", "b", "c"];
        let bound = |demand: &Demand, names: &[&'static str]| {
            quote.bound(names.iter().copied(), demand, tier, ONE)
        };
        for tokens in [0, 1, 1_000] {
            let small = bound(&demand, &names).total(tokens);
            prop_assert!(small <= bound(&larger, &names).total(tokens));
            prop_assert!(bound(&larger, &names).total(tokens) <= bound(&hosted, &names).total(tokens));
            prop_assert!(bound(&demand, &names[..1]).total(tokens) <= small);
        }
    }
}

#[test]
fn the_largest_numbers_stop_at_the_end_of_the_range() {
    let mut dear = row(&["m"], PricingMode::Token);
    dear.prices = ClassPrices {
        input: Some(Price(i64::MAX)),
        output: Some(Price(i64::MAX)),
        ..ClassPrices::default()
    };
    let quote = quote_by(Prices::default(), Some(channel(&[], vec![dear])), "m");
    let demand = Demand {
        max_output_tokens: Some(u64::MAX),
        hosted: true,
        inline_images: u32::MAX,
        ..body(u64::MAX)
    };
    let bound = quote.bound(
        ["m"],
        &demand,
        Some(ServiceTier::Priority),
        Multiplier(u64::MAX),
    );
    assert_eq!(bound.most(), Money(i64::MAX));
    assert_eq!(bound.affordable(Money(i64::MAX)), None);
}
