use super::*;
use crate::billing::quote::fixtures::{channel, interval, per_million, row};
use crate::domain::{ModelMapping, PricingMode};

const OPENAI: Platform = Platform::OpenAi;

#[test]
fn a_model_is_mapped_by_its_own_platform_exact_before_the_longest_prefix() {
    let mut channel = channel(
        &[
            ("gpt-4o*", "a"),
            ("gpt-4o-mini", "b"),
            ("gpt-4o-m*", "c"),
            ("same", "same"),
        ],
        Vec::new(),
    );
    let other = ModelMapping::new([("gpt-4o".to_owned(), "x".to_owned())].into());
    channel.model_mapping.insert(Platform::Anthropic, other);
    for (model, expected) in [
        ("gpt-4o", Some("a")),
        ("GPT-4o-2024", Some("a")),
        ("gpt-4o-mini", Some("b")),
        ("gpt-4o-max", Some("c")),
        ("same", Some("same")),
        ("gpt-4", None),
        ("", None),
    ] {
        assert_eq!(mapped(&channel, OPENAI, model), expected, "{model}");
    }
    assert_eq!(mapped(&channel, Platform::Anthropic, "gpt-4o"), Some("x"));
    assert_eq!(mapped(&channel, Platform::Gemini, "gpt-4o"), None);
}

#[test]
fn a_row_that_names_the_model_comes_before_the_first_with_a_prefix() {
    let rows = [
        &["gpt-5*"][..],
        &["o*", "gpt-5-mini"],
        &["gpt-5-m*"],
        &["gpt-5-mini"],
    ];
    let mut prices: Vec<_> = rows
        .iter()
        .map(|models| row(models, PricingMode::Token))
        .collect();
    let mut foreign = row(&["*"], PricingMode::Token);
    foreign.platform = Platform::Anthropic;
    prices.insert(0, foreign);
    let channel = channel(&[], prices);
    let found = |model| {
        let found = price_row(&channel, OPENAI, model)?;
        channel
            .prices
            .iter()
            .position(|row| std::ptr::eq(row, found))
    };
    for (model, expected) in [
        ("gpt-5", Some(1)),
        // The order counts, not the length of the prefix.
        ("gpt-5-max", Some(1)),
        ("gpt-5-mini", Some(2)),
        ("GPT-5-Mini", Some(2)),
        ("o3", Some(2)),
        ("gpt-4", None),
        ("", None),
    ] {
        assert_eq!(found(model), expected, "{model}");
    }
}

#[test]
fn a_restriction_is_decided_by_the_name_that_is_billed() {
    use BillingModelSource::{ChannelMapped, Requested, Upstream};
    let mut channel = channel(&[], vec![row(&["priced*"], PricingMode::Token)]);
    let names = [
        ("priced", "other"),
        ("other", "priced-2"),
        ("other", "other"),
    ];
    for source in [Requested, ChannelMapped, Upstream] {
        channel.billing_model_source = source;
        for (requested, mapped) in names {
            assert_eq!(gate(&channel, OPENAI, requested, mapped), Gate::Open);
        }
    }
    assert!(allows(&channel, OPENAI, "other"));
    channel.restrict_models = true;
    for (source, gates) in [
        (Requested, [Gate::Open, Gate::Closed, Gate::Closed]),
        (ChannelMapped, [Gate::Closed, Gate::Open, Gate::Closed]),
        (Upstream, [Gate::PerAccount; 3]),
    ] {
        channel.billing_model_source = source;
        let found = names.map(|(requested, mapped)| gate(&channel, OPENAI, requested, mapped));
        assert_eq!(found, gates, "{source:?}");
    }
    assert!(allows(&channel, OPENAI, "priced-3"));
    assert!(!allows(&channel, OPENAI, "other"));
    assert!(!allows(&channel, Platform::Gemini, "priced"));
}

#[test]
fn the_chain_has_every_change_of_name() {
    for (names, chain) in [
        (["a", "a", "a"], None),
        (["a", "b", "b"], Some("a→b")),
        (["a", "a", "b"], Some("a→b")),
        (["a", "b", "c"], Some("a→b→c")),
        (["a", "b", "a"], Some("a→b→a")),
    ] {
        assert_eq!(
            mapping_chain(names[0], names[1], names[2]).as_deref(),
            chain
        );
    }
}

#[test]
fn intervals_have_names() {
    let prices = ClassPrices::default();
    let mut labelled = interval(0, None, prices);
    labelled.tier_label = Some("2K".into());
    for (interval, name) in [
        (interval(0, Some(200_000), prices), "(0,200000]"),
        (interval(200_000, None, prices), "(200000,∞)"),
        (labelled, "2K"),
    ] {
        assert_eq!(name_of(&interval), name);
    }
}

#[test]
fn surcharges_grow_with_the_price_they_are_laid_on() {
    let price = |dollars: i64| Some(Price(dollars * 1_000_000_000));
    let base = ModelPrice {
        input: price(2),
        output: price(10),
        cache_creation: price(3),
        cache_creation_1h: price(5),
        cache_read: price(1),
        input_priority: price(4),
        output_priority: price(30),
        cache_read_priority: price(3),
        long_context: Some(crate::domain::price::LongContext {
            threshold_tokens: 1_000,
            input: price(4),
            output: price(15),
            input_priority: price(8),
            output_priority: None,
        }),
        max_output_tokens: Some(7),
        ..ModelPrice::default()
    };
    let mut row = row(&["m"], PricingMode::Token);
    assert_eq!(overlay(Some(&base), &row, None), base);
    row.prices = ClassPrices {
        cache_write: price(9),
        cache_read: price(2),
        image_output: price(40),
        ..per_million(1, 20)
    };
    let laid = overlay(Some(&base), &row, None);
    let long = laid.long_context.unwrap();
    assert_eq!((laid.input, laid.input_priority), (price(1), price(2)));
    assert_eq!((laid.output, laid.output_priority), (price(20), price(60)));
    assert_eq!(
        (laid.cache_read, laid.cache_read_priority),
        (price(2), price(6))
    );
    assert_eq!(
        (laid.cache_creation, laid.cache_creation_1h),
        (price(9), None)
    );
    assert_eq!(laid.output_image_token, price(40));
    assert_eq!((long.input, long.output), (price(2), price(30)));
    assert_eq!(
        (long.input_priority, long.output_priority),
        (price(4), None)
    );
    assert_eq!(laid.max_output_tokens, Some(7));

    // An interval's prices before the row's, and no long context besides.
    row.intervals = vec![interval(
        10,
        None,
        ClassPrices {
            input: price(6),
            ..Default::default()
        },
    )];
    let inside = overlay(Some(&base), &row, interval_of(&row, 11));
    assert_eq!((inside.input, inside.input_priority), (price(6), price(12)));
    assert_eq!((inside.output, inside.long_context), (price(20), None));
    let outside = overlay(Some(&base), &row, interval_of(&row, 10));
    assert_eq!((outside.input, outside.long_context), (price(1), None));
    // Nothing below: only what the row says.
    let alone = overlay(None, &row, None);
    assert_eq!((alone.input, alone.input_priority), (price(1), None));
}
