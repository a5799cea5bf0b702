use super::*;

/// A map in which every model's input price says which entry was found.
fn map(names: &[&str]) -> Prices {
    let entries: Map<String, Value> = names
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let entry = serde_json::json!({ "input_cost_per_token": format!("{}e-15", n + 1) });
            (name.to_string(), entry)
        })
        .collect();
    Prices::from_json(&Value::Object(entries).to_string()).unwrap()
}

fn found<'n>(prices: &Prices, names: &[&'n str], model: &str) -> Option<&'n str> {
    let number = prices.lookup(model)?.input?.0 - 1;
    names.get(usize::try_from(number).unwrap()).copied()
}

/// Input, output, cache write and cache read in USD per million tokens.
fn dollars(price: &ModelPrice) -> [f64; 4] {
    [
        price.input,
        price.output,
        price.cache_creation,
        price.cache_read,
    ]
    .map(|price| price.map_or(0.0, |price| price.0 as f64 / 1e9))
}

#[test]
fn the_built_in_map_knows_the_current_models() {
    let prices = Prices::built_in();
    let count = prices.map.models.len();
    assert!(count > 200, "{count}");
    for (model, expected) in [
        ("gpt-5.4", [2.5, 15.0, 0.0, 0.25]),
        ("gpt-5.4-mini", [0.75, 4.5, 0.0, 0.075]),
        ("claude-sonnet-4-5", [3.0, 15.0, 3.75, 0.3]),
        ("claude-opus-4-6", [5.0, 25.0, 6.25, 0.5]),
        ("gemini/gemini-2.5-pro", [1.25, 10.0, 0.0, 0.125]),
        ("gemini-2.5-pro", [1.25, 10.0, 0.0, 0.125]),
        ("models/gemini-2.5-pro", [1.25, 10.0, 0.0, 0.125]),
        ("text-embedding-3-small", [0.02, 0.0, 0.0, 0.0]),
    ] {
        let price = prices.lookup(model).unwrap();
        assert_eq!(dollars(price), expected, "{model}");
    }
    let sonnet = prices.lookup("claude-sonnet-4-5").unwrap();
    assert_eq!(sonnet.cache_creation_1h, Some(Price(6_000_000_000)));
    let gemini = prices.lookup("gemini-2.5-pro").unwrap().long_context;
    assert_eq!(gemini.unwrap().threshold_tokens, 200_000);
}

#[test]
fn the_built_in_map_has_no_wild_price() {
    for (model, price) in &Prices::built_in().map.models {
        let most = [price.input, price.output].into_iter().flatten().max();
        // A thousand dollars per million tokens.
        assert!(most <= Some(Price(1_000_000_000_000)), "{model} {price:?}");
        if let (Some(input), Some(read)) = (price.input, price.cache_read) {
            assert!(read <= input, "{model}");
        }
        if let Some(long) = price.long_context {
            let raised = |above, normal| above >= normal;
            assert!(raised(long.input, price.input), "{model}");
            assert!(raised(long.output, price.output), "{model}");
        }
    }
}

#[test]
fn prefixes_are_taken_off() {
    let names = ["alpha", "gemini/beta", "gamma/delta", "gemini/both", "both"];
    let prices = map(&names);
    for (model, expected) in [
        ("alpha", Some("alpha")),
        ("  ALPHA ", Some("alpha")),
        ("models/alpha", Some("alpha")),
        ("publishers/google/models/alpha", Some("alpha")),
        ("projects/p/locations/l/models/alpha", Some("alpha")),
        ("beta", Some("gemini/beta")),
        ("models/beta", Some("gemini/beta")),
        ("gemini/beta", Some("gemini/beta")),
        // Only a provider's name is a prefix of the map.
        ("delta", None),
        ("gamma/delta", Some("gamma/delta")),
        ("both", Some("both")),
        ("gemini/both", Some("gemini/both")),
        ("", None),
        ("   ", None),
        ("models/", None),
        ("alph", None),
    ] {
        assert_eq!(found(&prices, &names, model), expected, "{model:?}");
    }
}

#[test]
fn version_dots_and_dates_are_reconciled() {
    let names = [
        "nova-4.5-20250101",
        "terra-20240101",
        "terra-20250101",
        "luna",
        "luna-20250101",
        "sol-20250101-v1:0",
        "mars-2025-01-01",
        "mars-2025-06-01",
        "venus",
        "venus-2025-01-01",
    ];
    let prices = map(&names);
    for (model, expected) in [
        ("nova-4-5-20250101", Some("nova-4.5-20250101")),
        ("models/nova-4-5-20250101", Some("nova-4.5-20250101")),
        ("terra", Some("terra-20250101")),
        ("terra-20240101", Some("terra-20240101")),
        ("terra-20261231", Some("terra-20250101")),
        ("luna-20261231", Some("luna")),
        ("luna-20250101-v2:0", Some("luna")),
        ("sol", Some("sol-20250101-v1:0")),
        ("a/b/sol-v9:1", Some("sol-20250101-v1:0")),
        ("mars", Some("mars-2025-06-01")),
        ("mars-2025-01-01", Some("mars-2025-01-01")),
        ("mars-2026-12-31", Some("mars-2025-06-01")),
        ("venus-2026-12-31", Some("venus")),
        ("luna-2026-12-31", Some("luna")),
        ("venus-2026-12", None),
        ("venus-26-12-31", None),
        ("2025-01-01", None),
        ("luna-2025010", None),
        ("20250101", None),
        ("v1:0", None),
    ] {
        assert_eq!(found(&prices, &names, model), expected, "{model:?}");
    }
}

#[test]
fn claude_models_are_found_by_family() {
    let names = [
        "claude-opus-4-6",
        "claude-opus-4-5-20251101",
        "claude-opus-4-20250514",
        "claude-opus-4-8",
        "claude-sonnet-4-20250514",
        "claude-sonnet-4-5-20250929",
        "claude-3-5-sonnet-20241022",
        "claude-3-5-haiku-20241022",
        "claude-3-haiku-20240307",
    ];
    let prices = map(&names);
    for (model, expected) in [
        ("claude-opus-4-7", "claude-opus-4-6"),
        ("claude-opus-4.7-20260416", "claude-opus-4-6"),
        ("anthropic.claude-opus-4-6-v1:0", "claude-opus-4-6"),
        ("claude-opus-4-6-thinking", "claude-opus-4-6"),
        ("claude-opus-4-5", "claude-opus-4-5-20251101"),
        ("claude-opus-4.5-thinking", "claude-opus-4-5-20251101"),
        ("claude-opus-4-1-20250805", "claude-opus-4-20250514"),
        ("claude-opus-4-latest", "claude-opus-4-20250514"),
        ("claude-4-8-opus", "claude-opus-4-6"),
        ("claude-opus-4-8-thinking", "claude-opus-4-8"),
        ("claude-opus-4-9", "claude-opus-4-6"),
        ("opus", "claude-opus-4-6"),
        ("claude-sonnet-4-5-thinking", "claude-sonnet-4-5-20250929"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4-20250514"),
        ("claude-sonnet-9", "claude-sonnet-4-20250514"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
        ("claude-3.5-sonnet", "claude-3-5-sonnet-20241022"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022"),
        ("claude-3-haiku-latest", "claude-3-haiku-20240307"),
        ("haiku", "claude-3-5-haiku-20241022"),
        ("claude-next", "claude-sonnet-4-20250514"),
    ] {
        assert_eq!(found(&prices, &names, model), Some(expected), "{model:?}");
    }
}

#[test]
fn gpt_models_lose_date_and_variant() {
    let names = [
        "gpt-5.4",
        "gpt-5.2",
        "gpt-5.2-codex",
        "gpt-5.1-codex",
        "gpt-5-mini",
        "gpt-5",
        "gpt-4o",
    ];
    let prices = map(&names);
    for (model, expected) in [
        ("gpt-5.3-codex-spark", "gpt-5.1-codex"),
        ("gpt-5.3-codex-spark-high", "gpt-5.1-codex"),
        ("gpt-5.3-codex", "gpt-5.2-codex"),
        ("gpt-5.3-codex-xhigh", "gpt-5.2-codex"),
        ("openai/gpt-5.4-2026-03-05", "gpt-5.4"),
        ("gpt-5.2-20251211", "gpt-5.2"),
        ("gpt-5.2-codex-high", "gpt-5.2-codex"),
        ("gpt-5.2-something-new", "gpt-5.2"),
        ("gpt-5-2025-08-07", "gpt-5"),
        ("gpt-5-mini-2025-08-07", "gpt-5-mini"),
        ("gpt-4o-2099-01-01", "gpt-4o"),
        // Not a part of the name: gpt-5.21 is not gpt-5.2.
        ("gpt-5.21", "gpt-5.4"),
        ("gpt-9", "gpt-5.4"),
        ("gpt-", "gpt-5.4"),
    ] {
        assert_eq!(found(&prices, &names, model), Some(expected), "{model:?}");
    }
    assert_eq!(prices.lookup("gpt"), None);
    assert_eq!(prices.lookup("my-gpt-5"), None);
}

#[test]
fn the_table_of_last_resort_prices_what_the_map_lacks() {
    let empty = Prices::from_json("{}").unwrap();
    assert!(empty.is_empty());
    for (model, expected) in [
        ("claude-opus-4-7", [5.0, 25.0, 6.25, 0.5]),
        ("claude-opus-4.6", [5.0, 25.0, 6.25, 0.5]),
        ("claude-opus-4-5-20251101", [5.0, 25.0, 6.25, 0.5]),
        ("claude-opus-4-1-20250805", [15.0, 75.0, 18.75, 1.5]),
        ("claude-opus-4-20250514", [15.0, 75.0, 18.75, 1.5]),
        ("claude-3-opus-20240229", [15.0, 75.0, 18.75, 1.5]),
        ("claude-sonnet-4-20250514", [3.0, 15.0, 3.75, 0.3]),
        ("claude-3-5-sonnet-20241022", [3.0, 15.0, 3.75, 0.3]),
        ("claude-3-sonnet-20240229", [3.0, 15.0, 3.75, 0.3]),
        ("claude-3-5-haiku-20241022", [1.0, 5.0, 1.25, 0.1]),
        ("claude-3-haiku-20240307", [0.25, 1.25, 0.3, 0.03]),
        ("claude-2.1", [3.0, 15.0, 3.75, 0.3]),
        ("gemini-3.1-pro-high", [2.0, 12.0, 2.0, 0.2]),
        ("gpt-5.4", [2.5, 15.0, 2.5, 0.25]),
        ("gpt-5.4-pro", [2.5, 15.0, 2.5, 0.25]),
        ("gpt-5.4-mini-2026-03-17", [0.75, 4.5, 0.0, 0.075]),
        ("gpt-5.4-nano", [0.2, 1.25, 0.0, 0.02]),
        ("gpt-5.2-2025-12-11", [1.75, 14.0, 1.75, 0.175]),
        ("gpt-5.1-codex", [1.5, 12.0, 1.5, 0.15]),
        ("gpt-5.3-codex", [1.5, 12.0, 1.5, 0.15]),
        ("gpt-5.3-codex-spark", [1.5, 12.0, 1.5, 0.15]),
        ("gpt-7", [2.5, 15.0, 2.5, 0.25]),
    ] {
        let price = empty.lookup(model).unwrap();
        assert_eq!(dollars(price), expected, "{model}");
    }
    for (model, priority) in [
        ("gpt-5.4", Some([5.0, 30.0, 0.5])),
        ("gpt-5.2", Some([3.5, 28.0, 0.35])),
        ("gpt-5.1-codex", Some([3.0, 24.0, 0.3])),
        ("gpt-5.4-mini", None),
        ("claude-opus-4-7", None),
    ] {
        let price = empty.lookup(model).unwrap();
        let expected = priority.map(|prices| prices.map(|usd| Some(Price((usd * 1e9) as i64))));
        assert_eq!(
            [
                price.input_priority,
                price.output_priority,
                price.cache_read_priority
            ],
            expected.unwrap_or_default(),
            "{model}"
        );
    }
    for model in [
        "o9-mini",
        "gemini-9",
        "llama-4",
        "codex-mini",
        "ft:llama-4:org::id",
    ] {
        assert_eq!(empty.lookup(model), None, "{model}");
    }
}

#[test]
fn the_gpt_5_4_family_has_its_long_context_prices() {
    let plain = r#"{"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1.5e-05,
                    "input_cost_per_token_priority": 5e-06}"#;
    let own =
        r#"{"input_cost_per_token": 2.5e-06, "input_cost_per_token_above_400k_tokens": 3e-06}"#;
    let prices = Prices::from_json(&format!(
        r#"{{"gpt-5.4": {plain}, "gpt-5.4-2026-03-05": {plain}, "openai/gpt-5.4-pro": {plain},
             "gpt-5.4-mini": {plain}, "gpt-5.4-nano-2026-03-17": {plain}, "gpt-5.40": {plain},
             "gpt-5.5": {plain}, "gpt-5.4-own": {own}}}"#
    ))
    .unwrap();
    let rule = Some(LongContext {
        threshold_tokens: 272_000,
        input: Some(Price(5_000_000_000)),
        output: Some(Price(22_500_000_000)),
        input_priority: Some(Price(10_000_000_000)),
        output_priority: None,
    });
    for (model, expected) in [
        ("gpt-5.4", rule),
        ("gpt-5.4-2026-03-05", rule),
        ("gpt-5.4-pro", rule),
        ("gpt-5.4-mini", None),
        ("gpt-5.4-nano-2026-03-17", None),
        ("gpt-5.40", None),
        ("gpt-5.5", None),
    ] {
        assert_eq!(
            prices.lookup(model).unwrap().long_context,
            expected,
            "{model}"
        );
    }
    let own = prices.lookup("gpt-5.4-own").unwrap().long_context.unwrap();
    assert_eq!(
        (own.threshold_tokens, own.input),
        (400_000, Some(Price(3_000_000_000)))
    );
    // The published numbers and the rule are the same.
    let (published, table) = (Prices::built_in(), Prices::default());
    assert_eq!(
        published.lookup("gpt-5.4").unwrap().long_context,
        table.lookup("gpt-5.4").unwrap().long_context
    );
}

#[test]
fn overrides_win_under_every_name_of_the_model() {
    let price = |femtos| ModelPrice {
        output: Some(Price(femtos)),
        ..ModelPrice::default()
    };
    let prices = Prices::built_in();
    let overrides = PriceMap::from([
        ("GPT-5.4-mini".to_owned(), price(1)),
        ("house-model-20260101".to_owned(), price(2)),
        ("gemini/gemini-2.5-pro".to_owned(), price(3)),
        ("gemini/gemini-2.5-flash".to_owned(), price(4)),
        ("gemini-2.5-flash".to_owned(), price(5)),
    ]);
    let ours = prices.with_overrides(&overrides);
    for (model, femtos) in [
        ("gpt-5.4-mini", 1),
        ("house-model", 2),
        ("gemini-2.5-pro", 3),
        ("gemini/gemini-2.5-pro", 3),
        ("gemini/gemini-2.5-flash", 4),
        ("gemini-2.5-flash", 5),
    ] {
        let found = ours.lookup(model).unwrap();
        // The whole entry is replaced.
        assert_eq!(
            (found.input, found.output),
            (None, Some(Price(femtos))),
            "{model}"
        );
    }
    assert_eq!(ours.lookup("gpt-5.4"), prices.lookup("gpt-5.4"));
    assert_eq!(prices.with_overrides(&PriceMap::new()), prices);
}

#[test]
fn a_file_is_refused_with_every_mistake_named() {
    let error = Prices::from_json(
        r#"{"sample_spec": {"input_cost_per_token": "text"},
            "fine": {"input_cost_per_token": 1e-6},
            "image": {"output_cost_per_image": 0.04},
            "bad": {"input_cost_per_token": -1},
            "worse": {"input_cost_per_token": 1, "output_cost_per_token": "x"},
            "list": []}"#,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "bad: input_cost_per_token: must not be negative\nlist: not an object\n\
         worse: output_cost_per_token: not a decimal number"
    );
    for text in ["", "[]", "{", "null"] {
        let error = Prices::from_json(text).unwrap_err();
        assert!(matches!(error, PriceError::Json(_)), "{text}");
    }
    let prices = Prices::from_json(r#"{"image": {"output_cost_per_image": 0.04}}"#).unwrap();
    assert!(
        prices.is_empty(),
        "an entry without token prices is skipped"
    );
}

#[test]
fn a_very_long_name_is_no_trouble() {
    let prices = Prices::built_in();
    let tail = "-x".repeat(500_000);
    let gpt = format!("gpt-5.2{tail}");
    assert_eq!(prices.lookup(&gpt), prices.lookup("gpt-5.2"));
    let claude = format!("claude-opus-4-6{tail}");
    assert_eq!(prices.lookup(&claude), prices.lookup("claude-opus-4-6"));
    assert_eq!(prices.lookup(&tail), None);
}

#[test]
fn fine_tuned_models_are_priced_as_what_they_were_made_of() {
    let names = [
        "ft:alpha-2024-08-06",
        "alpha",
        "beta-2024-08-06",
        "ft:gamma:mine::1",
        "ft:gamma",
        "gpt-5.4",
    ];
    let prices = map(&names);
    for (model, expected) in [
        ("ft:alpha-2024-08-06:org::id", Some("ft:alpha-2024-08-06")),
        ("FT:Alpha-2024-08-06:Org-2::Id", Some("ft:alpha-2024-08-06")),
        ("ft:alpha-2025-01-01:org::id", Some("ft:alpha-2024-08-06")),
        ("ft:alpha:org-a:suffix:id", Some("ft:alpha-2024-08-06")),
        ("models/ft:alpha:org::id", Some("ft:alpha-2024-08-06")),
        ("ft:alpha", Some("ft:alpha-2024-08-06")),
        ("ft:beta-2024-08-06:org::id", Some("beta-2024-08-06")),
        ("ft:beta:org::id", Some("beta-2024-08-06")),
        ("ft:gamma:mine::1", Some("ft:gamma:mine::1")),
        ("ft:gamma:mine::2", Some("ft:gamma")),
        ("ft:gpt-9:org::id", Some("gpt-5.4")),
        // The customer's own words are no model.
        ("ft:delta:claude-opus::alpha", None),
        ("ft:", None),
        ("ft::alpha", None),
        // And a fine-tuned model's price is for no other.
        ("alpha", Some("alpha")),
        ("gamma", None),
    ] {
        assert_eq!(found(&prices, &names, model), expected, "{model:?}");
    }
    let built_in = Prices::built_in();
    assert_eq!(
        built_in.lookup("ft:gpt-4o-2024-08-06:acme::abc"),
        built_in.lookup("ft:gpt-4o-2024-08-06")
    );
}

#[test]
fn an_override_prices_every_date_of_its_model_and_no_other_model() {
    let price = |femtos| ModelPrice {
        output: Some(Price(femtos)),
        ..ModelPrice::default()
    };
    let prices = Prices::built_in();
    let ours = prices.with_overrides(&PriceMap::from([
        ("gpt-4.1".to_owned(), price(1)),
        ("gpt-4o".to_owned(), price(2)),
        ("gpt-4o-2024-08-06".to_owned(), price(3)),
        ("gpt-4-2024-01-01".to_owned(), price(4)),
        ("claude-sonnet-4".to_owned(), price(5)),
        ("claude-opus-4-6".to_owned(), price(6)),
        ("gpt-5.4".to_owned(), price(7)),
        ("claude-sonnet-4-5".to_owned(), price(8)),
    ]));
    for (model, femtos) in [
        ("gpt-4.1", 1),
        ("gpt-4.1-2025-04-14", 1),
        ("openai/gpt-4.1-2025-04-14", 1),
        ("gpt-4o-2024-11-20", 2),
        ("gpt-4o-2024-08-06", 3),
        ("claude-sonnet-4-20250514", 5),
        ("claude-sonnet-4-5-20250929", 8),
    ] {
        let output = ours.lookup(model).and_then(|price| price.output);
        assert_eq!(output, Some(Price(femtos)), "{model}");
    }
    for model in [
        "gpt-4.1-mini",
        "gpt-4o-mini",
        // A date of its own is no price for the others.
        "gpt-4",
        // Fine-tuning has its own price in the map.
        "ft:gpt-4.1-2025-04-14:org::id",
        // By family, a matter of the map.
        "claude-sonnet-9",
        "claude-next",
        "claude-opus-4-99",
        "gpt-9",
        "gpt-5.4-nonesuch",
    ] {
        assert!(prices.lookup(model).is_some(), "{model}");
        assert_eq!(ours.lookup(model), prices.lookup(model), "{model}");
    }
}

#[test]
fn a_price_file_without_prices_or_with_mistakes_is_refused_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prices.json");
    let mut config = crate::config::default_with(dir.path());
    config.billing.prices = Some(path.clone());
    let configured = || Prices::configured(&config).unwrap_err().to_string();
    let missing = configured();
    let mut refused = vec![missing];
    for text in [
        "[]",
        "{}",
        r#"{"sample_spec": {"input_cost_per_token": 1}}"#,
        r#"{"m": {"input_cost_per_tokn": 1}}"#,
        r#"{"a\nb": {"input_cost_per_token": -1}, "c": 1}"#,
    ] {
        std::fs::write(&path, text).unwrap();
        refused.push(configured());
    }
    let start = format!("billing.prices: {}: ", path.display());
    for error in &refused {
        assert!(error.lines().all(|l| l.starts_with(&start)), "{error}");
    }
    let lines: Vec<usize> = refused.iter().map(|error| error.lines().count()).collect();
    assert_eq!(lines, [1, 1, 1, 1, 1, 2]);
    assert!(
        refused[2].ends_with("no model in it has an input_cost_per_token or output_cost_per_token")
    );
    std::fs::write(&path, r#"{"m": {"input_cost_per_token": 1e-6}}"#).unwrap();
    assert!(Prices::configured(&config).unwrap().lookup("m").is_some());
}

#[test]
fn an_updated_map_in_the_data_directory_is_used_where_no_file_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let config = crate::config::default_with(dir.path());
    let place = Source::of(&config);
    assert!(!place.is_file());
    assert!(Prices::configured(&config).unwrap() == Prices::built_in());
    let before = place.stamp();
    assert_eq!(before, place.stamp());
    std::fs::write(
        config.data_dir.join("prices.json"),
        r#"{"m": {"input_cost_per_token": 1e-6}}"#,
    )
    .unwrap();
    assert_eq!(place.path(), config.data_dir.join("prices.json"));
    assert_ne!(place.stamp(), before);
    let prices = Prices::configured(&config).unwrap();
    assert!(prices.lookup("m").is_some() && prices.lookup("o3").is_none());
    std::fs::write(place.path(), "[]").unwrap();
    let error = Prices::configured(&config).unwrap_err().to_string();
    assert!(error.starts_with("data_dir: "), "{error}");
}

#[test]
fn an_entry_is_explained_and_maps_are_compared() {
    let map = |json: &str| Prices::from_json(json).unwrap();
    let old = map(
        r#"{"openai/a": {"input_cost_per_token": 1}, "b": {"input_cost_per_token": 2},
            "c": {"input_cost_per_token": 3}}"#,
    );
    let overrides = PriceMap::from([("b".to_owned(), ModelPrice::default())]);
    let laid = old.with_overrides(&overrides);
    for (model, entry, origin) in [
        ("A-2025-01-01", Some("a"), Origin::Map),
        ("openai/a", Some("openai/a"), Origin::Map),
        ("b", Some("b"), Origin::Override),
        ("gpt-9", None, Origin::Table),
    ] {
        let found = laid.explain(model).unwrap();
        assert_eq!((found.entry, found.origin), (entry, origin), "{model}");
        assert_eq!(Some(found.price), laid.lookup(model));
    }
    assert_eq!(laid.explain("house-model"), None);
    let new = map(
        r#"{"b": {"input_cost_per_token": 9}, "c": {"input_cost_per_token": 3},
            "d": {"input_cost_per_token": 4}}"#,
    );
    assert_eq!(
        new.difference(&old),
        Difference {
            names: 3,
            added: 1,
            changed: 1,
            // Also under its plain name.
            removed: 2,
        }
    );
}

#[test]
fn a_name_that_is_found_as_written_is_what_a_search_finds() {
    let built_in = Prices::built_in();
    let some = ["gpt-5.4", "gpt-5.4-2026-03-05", "models/x/", "a/"];
    let overrides: PriceMap = some
        .iter()
        .map(|name| ((*name).to_owned(), ModelPrice::default()))
        .collect();
    for prices in [&built_in, &built_in.with_overrides(&overrides)] {
        let known = built_in.map.models.keys().map(String::as_str);
        let written = known
            .chain(some)
            .chain(["", "GPT-5.4", "ft:gpt-4o", "none"]);
        for name in written {
            if let Some(found) = prices.as_written(name) {
                assert_eq!(Some(found), prices.search(name), "{name}");
            }
        }
    }
    assert!(built_in.as_written("gpt-5.4").is_some());
}
