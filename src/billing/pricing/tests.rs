use proptest::prelude::*;

use super::*;
use crate::billing::price_map::Prices;
use crate::domain::price::LongContext;

const ONE: Multiplier = Multiplier::ONE;
const PRIORITY: Option<ServiceTier> = Some(ServiceTier::Priority);
const FLEX: Option<ServiceTier> = Some(ServiceTier::Flex);

fn usd(text: &str) -> Money {
    text.parse().unwrap()
}

/// A price in pico-dollars per token, which is micro-dollars per million tokens.
fn per_million(micros: i64) -> Option<Price> {
    Some(Price(micros * 1_000))
}

fn cost(usage: &TokenUsage, model: &ModelPrice, tier: Option<ServiceTier>) -> Money {
    price(usage, 0, Some(model), tier, ONE).cost
}

fn gpt_5_4() -> ModelPrice {
    Prices::built_in().lookup("gpt-5.4").unwrap().clone()
}

/// 3 / 15 / 3.75 (1 h: 6) / 0.3 USD per million, and no priority prices.
fn claude() -> ModelPrice {
    ModelPrice {
        input: per_million(3_000_000),
        output: per_million(15_000_000),
        cache_creation: per_million(3_750_000),
        cache_creation_1h: per_million(6_000_000),
        cache_read: per_million(300_000),
        ..ModelPrice::default()
    }
}

#[test]
fn tiers_are_recognised() {
    for (name, tier) in [
        ("priority", PRIORITY),
        ("fast", PRIORITY),
        (" Fast ", PRIORITY),
        ("flex", FLEX),
        ("FLEX", FLEX),
        ("default", None),
        ("auto", None),
        ("scale", None),
        ("", None),
    ] {
        assert_eq!(ServiceTier::parse(name), tier, "{name:?}");
    }
    for tier in [ServiceTier::Priority, ServiceTier::Flex] {
        assert_eq!(ServiceTier::parse(tier.as_str()), Some(tier));
    }
}

#[test]
fn a_long_context_raises_the_price_of_the_whole_request() {
    let model = gpt_5_4();
    let usage = |input| TokenUsage {
        input,
        cache_read: 100_000,
        output: 1_000,
        ..TokenUsage::default()
    };
    for (input, tier, expected) in [
        // Context 300 000: input × 2, output × 1.5, cache read as ever.
        (200_000, None, "1.0475"),
        // Exactly 272 000: no surcharge.
        (172_000, None, "0.47"),
        // 172 001 × 5e-6 + 0.025 + 0.0225
        (172_001, None, "0.907505"),
        // The surcharge stacks with the priority prices (5 / 30 / 0.5): 2.00 + 0.05 + 0.045.
        (200_000, PRIORITY, "2.095"),
        (172_000, PRIORITY, "0.94"),
        (200_000, FLEX, "0.52375"),
    ] {
        assert_eq!(
            cost(&usage(input), &model, tier),
            usd(expected),
            "{input} {tier:?}"
        );
    }
}

#[test]
fn only_input_and_cache_reads_make_the_context() {
    let usage = TokenUsage {
        input: 272_000,
        output: 100_000,
        cache_creation: 100_000,
        image_output: 100_000,
        ..TokenUsage::default()
    };
    // 0.68 + 1.5 + 0.25 (cache writes at the input price) + 1.5 (image tokens at the output price)
    assert_eq!(cost(&usage, &gpt_5_4(), None), usd("3.93"));
}

#[test]
fn claude_cache_writes_are_priced_by_how_long_they_are_kept() {
    let split = |total, m5, h1| TokenUsage {
        cache_creation: total,
        cache_creation_5m: m5,
        cache_creation_1h: h1,
        ..TokenUsage::default()
    };
    let base_only = ModelPrice {
        cache_creation_1h: None,
        ..claude()
    };
    let hour_is_cheaper = ModelPrice {
        cache_creation_1h: per_million(3_750_000),
        ..claude()
    };
    let base_is_free = ModelPrice {
        cache_creation: Some(Price(0)),
        ..claude()
    };
    for (usage, model, expected) in [
        (split(1_500, 1_000, 500), claude(), "0.00675"),
        (split(1_500, 0, 0), claude(), "0.005625"),
        // The provider explains only a part: the rest is at the base price.
        (split(1_500, 0, 500), claude(), "0.00675"),
        // Or only the parts.
        (split(0, 1_000, 500), claude(), "0.00675"),
        (split(1_500, 1_000, 500), base_only, "0.005625"),
        (split(1_500, 1_000, 500), hour_is_cheaper, "0.005625"),
        (split(1_500, 1_000, 500), base_is_free, "0"),
    ] {
        assert_eq!(cost(&usage, &model, None), usd(expected), "{usage:?}");
    }
}

#[test]
fn tiers_halve_or_double_a_model_without_priority_prices() {
    let usage = TokenUsage {
        input: 10_000,
        output: 4_000,
        cache_creation: 2_000,
        cache_read: 8_000,
        image_output: 6,
        ..TokenUsage::default()
    };
    let list = usd("0.09999"); // 0.03 + 0.06 + 0.0075 + 0.0024 + 0.00009
    assert_eq!(cost(&usage, &claude(), None), list);
    assert_eq!(cost(&usage, &claude(), PRIORITY), list + list);
    assert_eq!(cost(&usage, &claude(), FLEX), usd("0.049995"));

    let ten_cents = TokenUsage {
        output: 20_000,
        ..TokenUsage::default()
    };
    let model = ModelPrice {
        output: per_million(5_000_000),
        ..ModelPrice::default()
    };
    for (tier, expected) in [(None, "0.1"), (FLEX, "0.05"), (PRIORITY, "0.2")] {
        assert_eq!(cost(&ten_cents, &model, tier), usd(expected));
    }
}

#[test]
fn a_class_without_a_priority_price_keeps_its_own() {
    let model = ModelPrice {
        input_priority: per_million(7_000_000),
        output_priority: Some(Price(0)),
        ..claude()
    };
    let usage = TokenUsage {
        input: 1_000_000,
        output: 1_000_000,
        cache_read: 1_000_000,
        ..TokenUsage::default()
    };
    assert_eq!(cost(&usage, &model, PRIORITY), usd("22.3")); // 7 + 15 + 0.3
    assert_eq!(cost(&usage, &model, None), usd("18.3"));
}

#[test]
fn cached_tokens_without_a_price_are_input_and_free_ones_are_free() {
    let usage = TokenUsage {
        cache_read: 1_000_000,
        cache_creation: 1_000_000,
        ..TokenUsage::default()
    };
    let silent = ModelPrice {
        input: per_million(2_000_000),
        ..ModelPrice::default()
    };
    let free = ModelPrice {
        cache_read: Some(Price(0)),
        cache_creation: Some(Price(0)),
        ..silent.clone()
    };
    assert_eq!(cost(&usage, &silent, None), usd("4"));
    assert_eq!(cost(&usage, &free, None), Money::ZERO);
}

#[test]
fn image_tokens_have_their_own_price_or_that_of_output() {
    let usage = TokenUsage {
        image_output: 1_000_000,
        ..TokenUsage::default()
    };
    for (image, expected) in [
        (per_million(40_000_000), "40"),
        (None, "15"),
        (Some(Price(0)), "15"),
    ] {
        let model = ModelPrice {
            output_image_token: image,
            ..claude()
        };
        assert_eq!(cost(&usage, &model, None), usd(expected));
    }
}

#[test]
fn images_are_counted_only_where_no_tokens_were_reported() {
    let model = ModelPrice {
        output_image: Some(Price(134_000_000_000_000)),
        ..claude()
    };
    let none = TokenUsage::default();
    let some = TokenUsage {
        output: 1_000,
        ..none
    };
    for (usage, count, model, expected) in [
        (none, 2, &model, "0.268"),
        (none, 0, &model, "0"),
        (some, 2, &model, "0.015"),
        (none, 2, &claude(), "0"),
    ] {
        let priced = price(&usage, count, Some(model), None, ONE);
        assert_eq!(priced.cost, usd(expected), "{count} {usage:?}");
    }
}

#[test]
fn an_unknown_model_costs_nothing_and_says_so() {
    let usage = TokenUsage {
        input: 1_000_000,
        ..TokenUsage::default()
    };
    let unknown = price(&usage, 3, None, PRIORITY, ONE);
    assert_eq!(unknown, Priced::default());
    assert!(!unknown.priced);
    let free = price(&usage, 0, Some(&ModelPrice::default()), None, ONE);
    assert_eq!((free.cost, free.priced), (Money::ZERO, true));
}

#[test]
fn the_charge_is_list_price_times_multiplier() {
    let usage = TokenUsage {
        output: 100_000,
        ..TokenUsage::default()
    };
    for (multiplier, charge) in [("1", "1.5"), ("0.85", "1.275"), ("0", "0"), ("2.5", "3.75")] {
        let priced = price(
            &usage,
            0,
            Some(&claude()),
            None,
            multiplier.parse().unwrap(),
        );
        assert_eq!(
            (priced.cost, priced.charge),
            (usd("1.5"), usd(charge)),
            "× {multiplier}"
        );
    }
}

#[test]
fn amounts_are_rounded_once_half_up() {
    let of = |femtos, tier, multiplier| {
        let model = ModelPrice {
            input: Some(Price(femtos)),
            ..ModelPrice::default()
        };
        let usage = TokenUsage {
            input: 1,
            ..TokenUsage::default()
        };
        let priced = price(&usage, 0, Some(&model), tier, Multiplier(multiplier));
        (priced.cost.0, priced.charge.0)
    };
    assert_eq!(of(499_999, None, 1_000_000), (0, 0));
    assert_eq!(of(500_000, None, 1_000_000), (1, 1));
    assert_eq!(of(1_499_999, None, 1_000_000), (1, 1));
    // Half a femto-dollar decides.
    assert_eq!(of(999_999, FLEX, 1_000_000), (0, 0));
    assert_eq!(of(1_000_000, FLEX, 1_000_000), (1, 1));
    // The charge comes from the exact cost: 400 000 × 3 is 1.2 nano-dollars, not 0 × 3 …
    assert_eq!(of(400_000, None, 3_000_000), (0, 1));
    // … and 500 000 × 2 is 1, not 1 × 2.
    assert_eq!(of(500_000, None, 2_000_000), (1, 1));
}

#[test]
fn the_largest_numbers_stop_at_the_end_of_the_range() {
    let most = TokenUsage {
        input: u64::MAX,
        output: u64::MAX,
        cache_creation: u64::MAX,
        cache_creation_5m: u64::MAX,
        cache_creation_1h: u64::MAX,
        cache_read: u64::MAX,
        image_output: u64::MAX,
    };
    let dear = Some(Price(i64::MAX));
    let model = ModelPrice {
        input: dear,
        output: dear,
        cache_read: dear,
        ..claude()
    };
    let priced = price(
        &most,
        u32::MAX,
        Some(&model),
        PRIORITY,
        Multiplier(u64::MAX),
    );
    assert_eq!(priced.cost, Money(i64::MAX));
    assert_eq!(priced.charge, Money(i64::MAX));
    let negative = ModelPrice {
        input: Some(Price(-5)),
        output: Some(Price(i64::MIN)),
        ..ModelPrice::default()
    };
    assert_eq!(cost(&most, &negative, PRIORITY), Money::ZERO);
}

pub(in crate::billing) fn any_price() -> impl Strategy<Value = Option<Price>> {
    proptest::option::of((0i64..200_000_000_000).prop_map(Price))
}

pub(in crate::billing) fn any_model() -> impl Strategy<Value = ModelPrice> {
    // Surcharges, as every published one is: at least the normal price.
    let long = proptest::option::of((0u64..2_000_000, 0i64..1_000_000, 0i64..1_000_000));
    (proptest::array::uniform10(any_price()), long).prop_map(|(p, long)| {
        // A priority price of zero means there is none, above the threshold too.
        let raised =
            |price: Option<Price>, by| price.map(|p| if p.0 == 0 { p } else { Price(p.0 + by) });
        ModelPrice {
            input: p[0],
            output: p[1],
            cache_creation: p[2],
            cache_creation_1h: p[3],
            cache_read: p[4],
            input_priority: p[5],
            output_priority: p[6],
            cache_read_priority: p[7],
            output_image: p[8],
            output_image_token: p[9],
            long_context: long.map(|(threshold_tokens, input, output)| LongContext {
                threshold_tokens,
                input: raised(p[0], input),
                output: raised(p[1], output),
                input_priority: raised(p[5], input),
                output_priority: raised(p[6], output),
            }),
            max_input_tokens: None,
            max_output_tokens: None,
        }
    })
}

pub(in crate::billing) fn any_usage() -> impl Strategy<Value = TokenUsage> {
    let count = || prop_oneof![0u64..3_000, 0u64..3_000_000, Just(u64::MAX)];
    (
        count(),
        count(),
        count(),
        count(),
        count(),
        count(),
        count(),
    )
        .prop_map(
            |(input, output, rest, m5, h1, cache_read, image_output)| TokenUsage {
                input,
                output,
                cache_creation: rest,
                cache_creation_5m: m5,
                cache_creation_1h: h1,
                cache_read,
                image_output,
            },
        )
}

pub(in crate::billing) fn any_tier() -> impl Strategy<Value = Option<ServiceTier>> {
    prop_oneof![Just(None), Just(PRIORITY), Just(FLEX)]
}

fn class(usage: &mut TokenUsage, number: usize) -> &mut u64 {
    match number {
        0 => &mut usage.input,
        1 => &mut usage.output,
        2 => &mut usage.cache_creation,
        3 => &mut usage.cache_creation_5m,
        4 => &mut usage.cache_creation_1h,
        5 => &mut usage.cache_read,
        _ => &mut usage.image_output,
    }
}

proptest! {
    #[test]
    fn more_tokens_of_any_class_never_cost_less(
        usage in any_usage(), model in any_model(), tier in any_tier(),
        number in 0usize..7, more in 1u64..1_000_000, multiplier in 0u64..10_000_000,
    ) {
        let mut larger = usage;
        let count = class(&mut larger, number);
        *count = count.saturating_add(more);
        // Without a price per image, which is another way to pay and ends with the first token.
        let model = ModelPrice { output_image: None, ..model };
        let multiplier = Multiplier(multiplier);
        let less = price(&usage, 1, Some(&model), tier, multiplier);
        let more = price(&larger, 1, Some(&model), tier, multiplier);
        prop_assert!(less.cost <= more.cost && less.charge <= more.charge, "{less:?} {more:?}");
    }

    #[test]
    fn nothing_is_ever_negative(
        usage in any_usage(), model in any_model(), tier in any_tier(),
        images in any::<u32>(), multiplier in any::<u64>(), wild in any::<[i64; 4]>(),
    ) {
        let model = ModelPrice {
            input: Some(Price(wild[0])), output: Some(Price(wild[1])),
            cache_read: Some(Price(wild[2])), output_image: Some(Price(wild[3])), ..model
        };
        let priced = price(&usage, images, Some(&model), tier, Multiplier(multiplier));
        prop_assert!(priced.cost >= Money::ZERO && priced.charge >= Money::ZERO);
    }

    /// A request costs what its classes cost one by one: they share nothing but the context, so
    /// the sums differ only by the rounding of each part.
    #[test]
    fn a_request_costs_the_sum_of_its_classes(
        usage in any_usage(), model in any_model(), tier in any_tier(),
    ) {
        let model = ModelPrice { long_context: None, output_image: None, ..model };
        let none = TokenUsage::default();
        let parts = [
            TokenUsage { input: usage.input, ..none },
            TokenUsage { output: usage.output, ..none },
            TokenUsage {
                cache_creation: usage.cache_creation, cache_creation_5m: usage.cache_creation_5m,
                cache_creation_1h: usage.cache_creation_1h, ..none
            },
            TokenUsage { cache_read: usage.cache_read, ..none },
            TokenUsage { image_output: usage.image_output, ..none },
        ];
        let sum: Money = parts.iter().map(|part| cost(part, &model, tier)).sum();
        let whole = cost(&usage, &model, tier);
        prop_assert!(whole.0.abs_diff(sum.0) <= parts.len() as u64, "{whole} {sum}");
    }

    /// Below the threshold two requests cost what one of both sizes together does.
    #[test]
    fn a_request_split_in_two_costs_the_same(
        model in any_model(), tier in any_tier(),
        first in proptest::array::uniform7(0u64..1_000_000),
        second in proptest::array::uniform7(0u64..1_000_000),
    ) {
        let model = ModelPrice { long_context: None, output_image: None, ..model };
        let usage = |counts: &dyn Fn(usize) -> u64| {
            let mut usage = TokenUsage::default();
            for number in 0..7 {
                *class(&mut usage, number) = counts(number);
            }
            // A provider's total covers its parts.
            usage.cache_creation += usage.cache_creation_5m + usage.cache_creation_1h;
            usage
        };
        let halves = cost(&usage(&|n| first[n]), &model, tier) + cost(&usage(&|n| second[n]), &model, tier);
        let whole = cost(&usage(&|n| first[n] + second[n]), &model, tier);
        prop_assert!(whole.0.abs_diff(halves.0) <= 1, "{whole} {halves}");
    }

    /// Which tokens of a class were counted when makes no difference where they have one price.
    #[test]
    fn without_an_hour_price_the_breakdown_does_not_matter(
        model in any_model(), tier in any_tier(), m5 in 0u64..1_000_000, h1 in 0u64..1_000_000,
    ) {
        let model = ModelPrice { cache_creation_1h: None, output_image: None, ..model };
        let total = TokenUsage { cache_creation: m5 + h1, ..TokenUsage::default() };
        let broken_down = TokenUsage { cache_creation_5m: m5, cache_creation_1h: h1, ..total };
        prop_assert_eq!(cost(&total, &model, tier), cost(&broken_down, &model, tier));
    }
}
