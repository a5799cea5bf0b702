//! Resource files as a whole.

use tollgate_filters::passthrough::{MatchMode, Rule};

use super::*;
use crate::config::resources::{ChannelResource, SubscriptionResource};
use crate::domain::account::options::{ALL, account_quota, error_policy, habits, soft_limits};
use crate::domain::account::quota::Reset;
use crate::domain::price::Price;
use crate::domain::{
    AccountType, BillingModelSource, ChannelPrice, ClassPrices, ModelMapping, Platform,
    PriceInterval, PricingMode, SubscriptionStatus,
};

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_string(), (*v).to_string()))
        .collect()
}

/// Reads texts as the files `0.yaml`, `1.yaml`, ...
fn read(texts: &[&str]) -> Result<(Resources, Vec<String>), Mistakes> {
    let mut mistakes = Vec::new();
    let inputs: Vec<Input> = texts
        .iter()
        .enumerate()
        .filter_map(|(i, text)| {
            let name = format!("{i}.yaml");
            Input::parse(name, "/".into(), text.as_bytes().to_vec(), &mut mistakes)
        })
        .collect();
    let env = env(&[("PROVIDER_KEY", "sk-from-env"), ("SPACED", "sk from env")]);
    check(&inputs, Path::new("/"), &env, mistakes)
}

fn mistakes(texts: &[&str]) -> Vec<String> {
    match read(texts) {
        Ok((resources, _)) => panic!("no mistake in {texts:?}: {resources:?}"),
        Err(mistakes) => mistakes.0.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_example_is_right_and_warns_of_nothing() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/resources.example.yaml");
    let env = env(&[
        ("OPENAI_API_KEY", "sk-example"),
        ("CLAUDE_TOKEN", "t"),
        ("RELAY_KEY", "k"),
    ]);
    let (resources, warnings) =
        load_resources(&[file], &env).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(
        (
            resources.groups.len(),
            resources.accounts.len(),
            resources.users.len(),
            resources.api_keys.len(),
            resources.subscriptions.len(),
            resources.channels.len(),
            resources.error_passthrough_rules.len(),
            resources.prices.len(),
        ),
        (3, 4, 1, 1, 1, 1, 1, 1)
    );
    assert_eq!(
        resources.accounts[0].credentials.api_key.expose(),
        "sk-example"
    );
    // "Values shown are the defaults": all options that have a meaning are shown.
    let options = &resources.accounts[0].extra;
    assert_eq!(error_policy(options), error_policy(&Default::default()));
    assert_eq!(account_quota(options), account_quota(&Default::default()));
    let others = &resources.accounts[2].extra;
    assert_eq!(soft_limits(others), soft_limits(&Default::default()));
    assert_eq!(habits(others), habits(&Default::default()));
    // What is off by default, where it means something.
    let of_relay = &resources.accounts[3].extra;
    assert!(habits(of_relay).0.mixed_scheduling);
    assert_eq!(options.len() + others.len() + of_relay.len(), ALL.len());
}

#[test]
fn what_is_left_out_has_its_default() {
    let (resources, warnings) = read(&["groups:\n- {name: g, platform: openai}\n\
         accounts:\n- {name: a, platform: openai, credentials: {api_key: sk-1}}\n\
         users:\n- {name: u}\n\
         api_keys:\n- {name: k, user: u}\n"])
    .unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let group = &resources.groups[0];
    assert!(group.enabled && group.rate_multiplier.is_none() && group.options.is_empty());
    let account = &resources.accounts[0];
    assert_eq!((account.concurrency, account.priority), (10, 50));
    assert_eq!(account.account_type, AccountType::ApiKey);
    assert_eq!(account.rate_multiplier, Multiplier::ONE);
    assert!(account.schedulable && account.enabled && account.groups.is_empty());
    assert_eq!((account.load_factor, account.expires_at), (None, None));
    assert_eq!(account.proxy, None);
    assert!(account.model_mapping.is_empty() && account.credentials.base_url.is_none());
    let user = &resources.users[0];
    assert_eq!(
        (user.balance, user.concurrency, user.rpm_limit),
        (None, 5, 0)
    );
    let key = &resources.api_keys[0];
    assert_eq!((&key.key, &key.group, key.quota), (&None, &None, None));
    assert_eq!(key.rate_limits, [None; 3]);
}

#[test]
fn everything_written_is_read() {
    let (resources, warnings) = read(&[
        "groups:\n- name: g\n  enabled: false\n  platform: openai\n  rate_multiplier: 0.85\n",
        "accounts:\n\
         - name: 4711\n  platform: openai\n  credentials: {api_key: '${PROVIDER_KEY}', base_url: 'http://[::1]:9/v1/'}\n\
        \x20 groups: [g, h]\n  concurrency: 0\n  priority: -1\n  model_mapping: {'gpt-*': gpt-5, o3: o3}\n\
        \x20 rate_multiplier: '2'\n  load_factor: 3\n  schedulable: false\n  expires_at: 2027-01-01T02:00:00+02:00\n\
        \x20 proxy: socks5h://u:p@h\n\
         ---\n# nothing\n---\n\
         users:\n- {name: u, balance: 1234567.123456789, concurrency: 1, group_multipliers: {g: 0.1}}\n\
         api_keys:\n- {name: k, key: tg-0123456789abcdef, user: u, group: g, quota: 5, ip_allow: [10.0.0.0/8], ip_deny: ['::1']}\n\
         subscriptions: []\nchannels:\nerror_passthrough_rules: []\n\
         prices: {Model-X: {input_cost_per_token: 1.5e-6, output_cost_per_token: '2e-6', mode: chat, supports_prompt_caching: true}}\n",
    ])
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings, Vec::<String>::new());
    assert!(!resources.groups[0].enabled);
    assert_eq!(
        resources.groups[0].rate_multiplier,
        Some(Multiplier(850_000))
    );
    let account = &resources.accounts[0];
    assert_eq!(account.name, "4711");
    assert_eq!(account.credentials.api_key.expose(), "sk-from-env");
    assert_eq!(
        account.credentials.base_url.as_deref(),
        Some("http://[::1]:9/v1")
    );
    assert_eq!(account.groups, ["g", "h"]);
    assert_eq!(
        (account.concurrency, account.priority, account.load_factor),
        (0, -1, Some(3))
    );
    assert_eq!(account.model_mapping.lookup("gpt-4o"), Some("gpt-5"));
    assert_eq!(account.rate_multiplier, Multiplier(2_000_000));
    assert!(!account.schedulable);
    let proxy = account.proxy.as_ref().unwrap();
    assert_eq!(proxy.expose(), "socks5h://u:p@h");
    assert_eq!(
        account.expires_at.unwrap().to_rfc3339(),
        "2027-01-01T00:00:00+00:00"
    );
    let user = &resources.users[0];
    assert_eq!(user.balance, Some(Money(1_234_567_123_456_789)));
    assert_eq!(user.group_multipliers["g"], Multiplier(100_000));
    let key = &resources.api_keys[0];
    assert_eq!(key.key.as_ref().unwrap().expose(), "tg-0123456789abcdef");
    assert_eq!(key.quota, Some(Money::from_usd(5)));
    assert_eq!(
        (&key.ip_allow[..], &key.ip_deny[..]),
        (&["10.0.0.0/8".into()][..], &["::1".into()][..])
    );
    let price = &resources.prices["model-x"];
    assert_eq!(
        (price.input, price.output),
        (Some(Price(1_500_000_000)), Some(Price(2_000_000_000)))
    );
}

/// One account with `rest` in it.
fn account(rest: &str) -> String {
    format!("accounts:\n- {{name: a, platform: openai, credentials: {{api_key: sk-1}}, {rest}}}\n")
}

fn key(rest: &str) -> String {
    format!("api_keys:\n- {{name: k, user: u, {rest}}}\n")
}

/// One account with one rule of `temp_unschedulable_rules`.
fn temp_rule(rule: &str) -> String {
    account(&format!(
        "extra: {{temp_unschedulable_enabled: true, temp_unschedulable_rules: [{{{rule}}}]}}"
    ))
}

fn subscription(rest: &str) -> String {
    format!("subscriptions:\n- {{user: u, group: g, expires_at: 2026-12-01T00:00:00Z, {rest}}}\n")
}

fn channel(rest: &str) -> String {
    format!("channels:\n- {{name: c, {rest}}}\n")
}

/// One channel with one price row.
fn price(rest: &str) -> String {
    channel(&format!("prices: [{{platform: openai, {rest}}}]"))
}

fn rule(rest: &str) -> String {
    format!("error_passthrough_rules:\n- {{name: r, {rest}}}\n")
}

#[test]
fn subscriptions_and_channels_are_read_with_their_defaults() {
    let (resources, warnings) = read(&[
        "subscriptions:\n\
         - {user: u, group: g, expires_at: 2026-12-01T00:00:00Z}\n\
         - {user: u, group: h, enabled: false, starts_at: 2026-11-01T00:00:00Z, expires_at: 2026-12-01T02:00:00+02:00, status: suspended}\n\
         channels:\n- {name: bare}\n\
         - {name: full, enabled: false, groups: [g, h], restrict_models: true, billing_model_source: requested,\n\
        \x20  model_mapping: {openai: {'GPT-4o*': gpt-5}, gemini: {}},\n\
        \x20  prices: [{platform: openai, models: ['Gpt-5*', o3], input_per_million: '1.25', output_per_million: 10, cache_read_per_million: 0.000000001,\n\
        \x20    intervals: [{min_tokens: 200000, max_tokens: null, tier_label: null, input_per_million: '2.50'}, {max_tokens: 200000, output_per_million: 1}]},\n\
        \x20   {platform: gemini, models: [img], billing_mode: image, intervals: [{tier_label: 2k, per_request: '0.04'}, {max_tokens: 9, per_request: 1}]},\n\
        \x20   {platform: gemini, models: [o3]}]}\n",
    ])
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings, Vec::<String>::new());
    let moment = |text: &str| text.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let first = SubscriptionResource {
        user: "u".into(),
        group: "g".into(),
        enabled: true,
        starts_at: None,
        expires_at: moment("2026-12-01T00:00:00Z"),
        status: SubscriptionStatus::Active,
    };
    let second = SubscriptionResource {
        group: "h".into(),
        enabled: false,
        starts_at: Some(moment("2026-11-01T00:00:00Z")),
        status: SubscriptionStatus::Suspended,
        ..first.clone()
    };
    assert_eq!(resources.subscriptions, [first, second]);
    let bare = ChannelResource {
        name: "bare".into(),
        enabled: true,
        groups: vec![],
        model_mapping: BTreeMap::new(),
        restrict_models: false,
        billing_model_source: BillingModelSource::ChannelMapped,
        prices: vec![],
    };
    let per_million = |nanos: i64| Some(Price(nanos));
    let row = |platform, models: &[&str], billing_mode, prices, intervals| ChannelPrice {
        platform,
        models: models.iter().map(|m| (*m).to_string()).collect(),
        billing_mode,
        prices,
        intervals,
    };
    let between = |min_tokens, max_tokens, label: Option<&str>, prices| PriceInterval {
        min_tokens,
        max_tokens,
        tier_label: label.map(str::to_string),
        prices,
    };
    let none = ClassPrices::default;
    let each = |femtos| ClassPrices {
        per_request: Some(Price(femtos)),
        ..none()
    };
    let mapping = ModelMapping::new([("gpt-4o*".to_string(), "gpt-5".to_string())].into());
    let full = ChannelResource {
        name: "full".into(),
        enabled: false,
        groups: vec!["g".into(), "h".into()],
        model_mapping: [(Platform::OpenAi, mapping)].into(),
        restrict_models: true,
        billing_model_source: BillingModelSource::Requested,
        prices: vec![
            row(
                Platform::OpenAi,
                &["gpt-5*", "o3"],
                PricingMode::Token,
                ClassPrices {
                    input: per_million(1_250_000_000),
                    output: per_million(10_000_000_000),
                    cache_read: per_million(1),
                    ..none()
                },
                vec![
                    between(
                        200_000,
                        None,
                        None,
                        ClassPrices {
                            input: per_million(2_500_000_000),
                            ..none()
                        },
                    ),
                    between(
                        0,
                        Some(200_000),
                        None,
                        ClassPrices {
                            output: per_million(1_000_000_000),
                            ..none()
                        },
                    ),
                ],
            ),
            row(
                Platform::Gemini,
                &["img"],
                PricingMode::Image,
                none(),
                vec![
                    between(0, None, Some("2K"), each(40_000_000_000_000)),
                    between(0, Some(9), None, each(1_000_000_000_000_000)),
                ],
            ),
            row(
                Platform::Gemini,
                &["o3"],
                PricingMode::Token,
                none(),
                vec![],
            ),
        ],
    };
    assert_eq!(resources.channels, [bare, full]);
}

#[test]
fn subscriptions_and_channels_that_do_nothing_are_said() {
    let (_, warnings) = read(&[
        "groups:\n- {name: g, platform: openai, daily_limit_usd: 1}\n- {name: s, platform: openai, subscription_type: subscription, daily_limit_usd: 1}\n\
         subscriptions:\n- {user: u, group: g, expires_at: 2026-12-01T00:00:00Z}\n- {user: u, group: s, expires_at: 2026-12-01T00:00:00Z}\n\
         channels:\n- {name: c, restrict_models: true}\n- {name: d, prices: [{platform: openai, models: [m]}]}\n",
    ])
    .unwrap_or_else(|error| panic!("{error}"));
    for want in [
        "groups[0] \"g\".daily_limit_usd: not used: only subscriptions have it",
        "subscriptions/u/g: not used, since groups/g is paid from the balance",
        "channels[0] \"c\".restrict_models: without prices: every model is refused",
        "channels[1] \"d\".prices[0]: without a price",
    ] {
        assert_eq!(
            warnings.iter().filter(|w| w.contains(want)).count(),
            1,
            "{want}\n{warnings:#?}"
        );
    }
    assert_eq!(warnings.len(), 4, "{warnings:#?}");
}

#[test]
fn rules_are_read_with_their_defaults() {
    let (resources, warnings) = read(&[
        "error_passthrough_rules:\n\
         - {name: bare, error_codes: [529]}\n\
         - {name: full, enabled: false, priority: -1, error_codes: [300, 599], keywords: [Busy, 503], match_mode: all,\n\
        \x20  platforms: [Anthropic, openai], passthrough_code: false, response_code: 400, passthrough_body: false,\n\
        \x20  custom_message: 'Busy, please retry', skip_monitoring: true, description: why}\n\
         - {name: idle, keywords: [x], response_code: 503, custom_message: m}\n",
    ])
    .unwrap_or_else(|error| panic!("{error}"));
    let [bare, full, _] = resources.error_passthrough_rules.as_slice() else {
        panic!("{resources:?}")
    };
    let defaults = Rule {
        name: "bare".into(),
        enabled: true,
        priority: 0,
        error_codes: vec![529],
        keywords: vec![],
        match_mode: MatchMode::Any,
        platforms: vec![],
        passthrough_code: true,
        response_code: None,
        passthrough_body: true,
        custom_message: None,
        skip_monitoring: false,
        description: String::new(),
    };
    assert_eq!(*bare, defaults);
    let given = Rule {
        name: "full".into(),
        enabled: false,
        priority: -1,
        error_codes: vec![300, 599],
        keywords: vec!["Busy".into(), "503".into()],
        match_mode: MatchMode::All,
        platforms: vec!["anthropic".into(), "openai".into()],
        passthrough_code: false,
        response_code: Some(400),
        passthrough_body: false,
        custom_message: Some("Busy, please retry".into()),
        skip_monitoring: true,
        description: "why".into(),
    };
    assert_eq!(*full, given);
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert!(
        warnings[0]
            .ends_with("[2] \"idle\".response_code: not used while passthrough_code is true")
    );
    assert!(warnings[1].ends_with("custom_message: not used while passthrough_body is true"));
}

#[test]
fn options_that_are_right_are_kept_as_written() {
    let (resources, warnings) = read(&[&account(
        "extra: {pool_mode: true, pool_mode_retry_count: 0, custom_error_codes_enabled: true, custom_error_codes: [429, 529], \
         temp_unschedulable_enabled: true, temp_unschedulable_rules: \
         [{error_code: 404, keywords: [Gone, 12], duration_minutes: 10080, description: away}]}",
    )])
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings, Vec::<String>::new());
    let (policy, problems) = error_policy(&resources.accounts[0].extra);
    assert_eq!(
        problems,
        Vec::<String>::new(),
        "what is let through is understood"
    );
    assert_eq!((policy.pool_mode, policy.pool_mode_retry_count), (true, 0));
    assert_eq!(policy.custom_error_codes, Some(vec![429, 529]));
    assert_eq!(policy.temp_unschedulable_rules[0].keywords, ["gone", "12"]);

    let (resources, warnings) = read(&[&account(
        "extra: {quota_limit: 0.000000001, quota_daily_limit: '10.00', quota_weekly_limit: 3, quota_daily_reset_mode: fixed, \
         quota_daily_reset_hour: 9, quota_weekly_reset_day: 3, quota_reset_timezone: Europe/Berlin}",
    )])
    .unwrap_or_else(|error| panic!("{error}"));
    let (quota, problems) = account_quota(&resources.accounts[0].extra);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(quota.total, Some(Money(1)), "exactly");
    assert_eq!(quota.daily, Some(Money::from_usd(10)));
    assert_eq!(quota.weekly, Some(Money::from_usd(3)));
    assert_eq!(quota.day, Reset::Daily { hour: 9 });
    assert_eq!(quota.week, Reset::AfterWeek);
    assert_eq!(quota.tz, chrono_tz::Europe::Berlin);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].ends_with(
        "extra.quota_weekly_reset_day: not used while quota_weekly_reset_mode is not fixed"
    ));

    let (resources, warnings) = read(&[&account(
        "extra: {pool_mode: null, custom_error_codes: [429], temp_unschedulable_enabled: false, temp_unschedulable_rules: []}",
    )])
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        error_policy(&resources.accounts[0].extra).1,
        Vec::<String>::new()
    );
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].ends_with(
        "extra.custom_error_codes: not used while custom_error_codes_enabled is not true"
    ));
}

#[test]
fn every_mistake_is_named() {
    let long_name = "x".repeat(129);
    let mut failures = Vec::new();
    for (text, want) in [
        // The file and its kinds.
        ("- a".to_string(), "0.yaml:1:1: not a map"),
        ("groups: [".into(), "0.yaml:2:1: not valid YAML"),
        ("acounts: []".into(), "0.yaml:1:1 acounts: unknown key; expected `accounts`, perhaps"),
        ("groups: x".into(), "groups: not a list, found `x`; expected a list of groups"),
        ("groups: [x]".into(), "groups[0]: not a map, found `x`"),
        ("users: [{name: u, balence: 1}]".into(), "0.yaml:1:19 users[0] \"u\".balence: unknown key; expected `balance`, perhaps"),
        // Names.
        ("users: [{}]".into(), "users[0]: `name` is missing"),
        ("users: [{name: ''}]".into(), "users[0] \"\".name: not a usable name"),
        ("users: [{name: ' u'}]".into(), "not a usable name, found ` u`"),
        ("users: [{name: \"a\\nb\"}]".into(), "not a usable name, found `a\\nb`"),
        (format!("users: [{{name: {long_name}}}]"), "not a usable name"),
        ("users: [{name: true}]".into(), "YAML reads this as a flag, found `true`; expected a name"),
        ("users: [{name: u}, {name: u}]".into(), "0.yaml:1:27 users[1] \"u\".name: the same user is already at users[0] \"u\".name, found `u`"),
        // Groups.
        ("groups: [{name: g}]".into(), "groups[0] \"g\": `platform` is missing; expected one of openai, "),
        ("groups: [{name: g, platform: opanai}]".into(), "no such choice, found `opanai`; expected openai, perhaps"),
        ("groups: [{name: g, platform: openai, enabled: 1}]".into(), "enabled: not a flag"),
        ("groups: [{name: g, platform: openai, rate_multiplier: x}]".into(), "rate_multiplier: not a decimal number, found `x`"),
        ("groups: [{name: g, platform: openai, subscription_type: paid}]".into(), "no such choice, found `paid`"),
        ("groups: [{name: g, platform: openai, daily_limit_usd: 0}]".into(), "daily_limit_usd: not above zero"),
        ("groups: [{name: g, platform: openai, rpm_limit: -1}]".into(), "rpm_limit: out of bounds"),
        ("groups: [{name: g, platform: openai, rpm_limit: null}]".into(), "rpm_limit: not a whole number"),
        ("groups: [{name: g, platform: openai, min_client_version: '1.2'}]".into(), "not a version, found `1.2`"),
        ("groups: [{name: g, platform: anthropic, min_client_version: 2.10.0, max_client_version: 2.9.9}]".into(),
         "groups[0] \"g\".max_client_version: below min_client_version (2.10.0), so no version is served, found `2.9.9`; expected at least 2.10.0, or null"),
        ("groups: [{name: g, platform: openai, model_routing: {'a*b': [x]}}]".into(), "`*` inside the model name `a*b`"),
        ("groups: [{name: g, platform: openai, image_prices: {8k: 1}}]".into(), "image_prices.8k: unknown key"),
        // Subscriptions.
        (subscription("").replace("user: u, ", ""), "subscriptions[0]: `user` is missing"),
        ("subscriptions: [{user: u, group: g}]".into(), "subscriptions[0]: `expires_at` is missing"),
        ("subscriptions: [{user: u, group: g, expires_at: soon}]".into(), "expires_at: not a time"),
        (subscription("status: paused"), "status: no such choice, found `paused`"),
        (subscription("starts_at: 2026-12-01T00:00:00Z"), "expires_at: not after `starts_at`"),
        (subscription("name: n"), "name: unknown key"),
        (subscription("") + &subscription("").replace("subscriptions:\n", ""), "the same subscription is already at subscriptions[0]"),
        // Channels.
        ("channels: [{}]".into(), "channels[0]: `name` is missing"),
        ("channels: [{name: c}, {name: c}]".into(), "the same channel is already at channels[0] \"c\".name"),
        ("channels: [{name: c, groups: [g]}, {name: d, groups: [h, g]}]".into(), "groups[1]: the same group of a channel is already at channels[0] \"c\".groups[0]"),
        ("channels: [{name: c, groups: [g, g]}]".into(), "groups[1]: named twice"),
        (channel("model_mapping: {openia: {a: b}}"), "model_mapping.openia: unknown key; expected `openai`, perhaps"),
        (channel("model_mapping: {openai: {a*b: c}}"), "`*` inside the model name `a*b`"),
        (channel("model_mapping: {openai: {Gpt: c, gpt: d}}"), "model_mapping.openai.gpt: `gpt` is mapped twice"),
        (channel("billing_model_source: mapped"), "no such choice, found `mapped`"),
        (channel("restrict_models: 1"), "restrict_models: not a flag"),
        (channel("prices: [{models: [m], input_per_million: 1}]"), "prices[0]: `platform` is missing"),
        (channel("prices: [{platform: openai, input_per_million: 1}]"), "prices[0]: `models` is missing"),
        (price("models: [], input_per_million: 1"), "prices[0].models: no model"),
        (price("models: [a, A], input_per_million: 1"), "models[1]: has a price on openai already, found `A`"),
        (price("models: [m], input_per_million: -1"), "input_per_million: must not be negative"),
        (price("models: [m], input_per_million: 0.0000000001"), "input_per_million: more than 9 digits"),
        (price("models: [m], input_per_million: 1000000001"), "input_per_million: out of range"),
        (price("models: [m], per_request: 1"), "per_request: a price of requests where billing_mode is token"),
        (price("models: [m], billing_mode: per_call"), "no such choice, found `per_call`"),
        (price("models: [m], billing_mode: image"), "prices[0]: `per_request` is missing"),
        (price("models: [m], billing_mode: per_request, per_request: 1, output_per_million: 1"), "output_per_million: a price of tokens where billing_mode is per_request"),
        (price("models: [m], intervals: [{min_tokens: 5}]"), "intervals[0]: an interval without a price"),
        (price("models: [m], intervals: [{min_tokens: 5, max_tokens: 5, input_per_million: 1}]"), "max_tokens: not above min_tokens"),
        (price("models: [m], intervals: [{max_tokens: 5, input_per_million: 1}, {min_tokens: 4, input_per_million: 1}]"), "intervals[1]: overlaps with an interval before it"),
        (price("models: [m], intervals: [{tier_label: 1K, input_per_million: 1}]"), "tier_label: a size where billing_mode is token"),
        (price("models: [m], billing_mode: image, intervals: [{tier_label: 8K, per_request: 1}]"), "tier_label: no such choice, found `8K`"),
        (price("models: [m], billing_mode: image, intervals: [{tier_label: 1K, min_tokens: 5, per_request: 1}]"), "tier_label: beside a length of the context"),
        (price("models: [m], billing_mode: image, intervals: [{tier_label: 1K, per_request: 1}, {tier_label: 1k, per_request: 2}]"), "intervals[1]: a second interval for the size 1K"),
        (price("models: [m], billing_mode: image, intervals: [{tier_label: 1K}]"), "intervals[0]: `per_request` is missing"),
        // Accounts.
        ("accounts: [{name: a, platform: openai}]".into(), "accounts[0] \"a\": `credentials` is missing"),
        ("accounts: [{name: a, platform: openai, credentials: {}}]".into(), "credentials: `api_key` is missing"),
        ("accounts: [{name: a, platform: openai, credentials: sk-hunter2}]".into(), "credentials: not a map"),
        ("accounts: [{name: a, platform: openai, credentials: {api_key: x, refesh_token: hunter2}}]".into(), "credentials.refesh_token: unknown key; expected `refresh_token`, perhaps"),
        ("accounts: [{name: a, platform: openai, credentials: {api_key: [sk-hunter2]}}]".into(), "api_key: not a text"),
        ("accounts: [{name: a, platform: openai, credentials: {api_key: '${NOT_SET}'}}]".into(), "environment variable NOT_SET is not set"),
        ("accounts: [{name: a, platform: openai, credentials: {api_key: '${SPACED}'}}]".into(), "holds a space or a character that cannot stand in a header"),
        ("accounts: [{name: a, platform: openai, type: key, credentials: {api_key: x}}]".into(), "type: no such choice, found `key`"),
        (account("groups: [g, g]"), "groups[1]: named twice, found `g`"),
        (account("groups: g"), "groups: not a list, found `g`"),
        (account("concurrency: -1"), "concurrency: out of bounds"),
        (account("concurrency: 4294967296"), "concurrency: out of bounds"),
        (account("priority: high"), "priority: not a whole number, found `high`"),
        (account("load_factor: 0"), "load_factor: out of bounds"),
        (account("rate_multiplier: -1"), "rate_multiplier: must not be negative"),
        (account("expires_at: tomorrow"), "expires_at: not a time, found `tomorrow`"),
        (account("expires_at: 2027-01-01"), "expires_at: not a time"),
        (account("model_mapping: {'a*b': c}"), "model_mapping.a*b: `*` inside the model name `a*b`"),
        (account("model_mapping: {'': c}"), "an empty model name"),
        (account("model_mapping: {a: ''}"), "model_mapping.a: not a usable name"),
        (account("model_mapping: [a]"), "model_mapping: not a map"),
        (account("proxy: 'socks4://u:hunter2@h:1'"), "proxy: is none of http://, https://, socks5:// and socks5h://; expected http://, https:// or socks5:// and [user:password@]host[:port]"),
        (account("proxy: 'hunter2@h:1'"), "proxy: is none of http://"),
        (account("proxy: 'http://u:hunter2@h:0'"), "proxy: has a port that is none"),
        (account("proxy: 'http://u:hunter2@'"), "proxy: has no usable host"),
        (account("proxy: 'http://u:hunter2@h/x'"), "proxy: has a path, query or fragment"),
        (account("proxy: 'http://u:hunter2%@h'"), "proxy: has a user or password that cannot be sent"),
        (account("proxy: [http://u:hunter2@h]"), "proxy: not a text"),
        (account("extra: [a]"), "extra: not a map"),
        // Options of accounts.
        (account("extra: {quota_limit: 0}"), "extra.quota_limit: not above zero, found `0`; expected USD above zero, such as \"25.00\", or null for no limit"),
        (account("extra: {quota_daily_limit: [1]}"), "extra.quota_daily_limit: not a decimal number"),
        (account("extra: {quota_weekly_limit: 0.0000000001}"), "extra.quota_weekly_limit: more than 9 digits"),
        (account("extra: {quota_daily_reset_mode: fixd}"), "extra.quota_daily_reset_mode: no such choice, found `fixd`; expected fixed, perhaps; one of rolling, fixed"),
        (account("extra: {quota_weekly_reset_mode: 1}"), "extra.quota_weekly_reset_mode: no such choice"),
        (account("extra: {quota_daily_reset_hour: 24}"), "extra.quota_daily_reset_hour: out of bounds, found `24`; expected a whole hour from 0 to 23"),
        (account("extra: {quota_weekly_reset_hour: -1}"), "extra.quota_weekly_reset_hour: out of bounds"),
        (account("extra: {quota_weekly_reset_day: 7}"), "extra.quota_weekly_reset_day: out of bounds, found `7`; expected a day from 0 (Sunday) to 6 (Saturday)"),
        (account("extra: {quota_reset_timezone: Berlin}"), "extra.quota_reset_timezone: "),
        (account("extra: {pool_mode: 1}"), "extra.pool_mode: not a flag, found `1`"),
        (account("extra: {pool_mode_retry_count: 11}"), "extra.pool_mode_retry_count: out of bounds, found `11`; expected a whole number from 0 to 10"),
        (account("extra: {pool_mode_retry_count: -1}"), "pool_mode_retry_count: out of bounds"),
        (account("extra: {custom_error_codes_enabled: 'yes'}"), "custom_error_codes_enabled: not a flag"),
        (account("extra: {custom_error_codes_enabled: true}"), "extra.custom_error_codes_enabled: custom_error_codes_enabled is true and custom_error_codes is empty, found `true`; expected custom_error_codes with at least one status, or"),
        (account("extra: {custom_error_codes_enabled: true, custom_error_codes: []}"), "extra.custom_error_codes: custom_error_codes_enabled is true and custom_error_codes is empty"),
        (account("extra: {custom_error_codes_enabled: true, custom_error_codes: [429, 299]}"), "extra.custom_error_codes[1]: out of bounds, found `299`; expected a status from 300 to 599"),
        (account("extra: {custom_error_codes_enabled: true, custom_error_codes: [600]}"), "custom_error_codes[0]: out of bounds"),
        (account("extra: {custom_error_codes_enabled: true, custom_error_codes: 429}"), "custom_error_codes: not a list"),
        (account("extra: {temp_unschedulable_enabled: true}"), "temp_unschedulable_rules with at least one rule"),
        (temp_rule("keywords: [x], duration_minutes: 1"), "temp_unschedulable_rules[0]: `error_code` is missing"),
        (temp_rule("error_code: 600, keywords: [x], duration_minutes: 1"), "temp_unschedulable_rules[0].error_code: out of bounds"),
        (temp_rule("error_code: 500, duration_minutes: 1"), "`keywords` is missing; expected at least one word"),
        (temp_rule("error_code: 500, keywords: [], duration_minutes: 1"), "keywords: no keywords, so it would never match"),
        (temp_rule("error_code: 500, keywords: [' '], duration_minutes: 1"), "keywords[0]: an empty keyword"),
        (temp_rule("error_code: 500, keywords: [x]"), "`duration_minutes` is missing; expected whole minutes from 1 to 10080"),
        (temp_rule("error_code: 500, keywords: [x], duration_minutes: 0"), "duration_minutes: out of bounds"),
        (temp_rule("error_code: 500, keywords: [x], duration_minutes: 10081"), "duration_minutes: out of bounds, found `10081`"),
        (temp_rule("error_code: 500, keywords: [x], duration_minutes: 1, minutes: 5"), "temp_unschedulable_rules[0].minutes: unknown key"),
        // Error passthrough rules.
        ("error_passthrough_rules: [{error_codes: [529]}]".into(), "error_passthrough_rules[0]: `name` is missing"),
        (rule("error_codes: []"), "neither `error_codes` nor `keywords`, so it would never match; expected at least one status or keyword"),
        (rule("error_codes: [600]"), "error_codes[0]: out of bounds, found `600`; expected a status from 300 to 599"),
        (rule("error_codes: [299]"), "error_codes[0]: out of bounds, found `299`"),
        (temp_rule("error_code: 299, keywords: [x], duration_minutes: 1"), "error_code: out of bounds, found `299`"),
        (rule("error_codes: [99]"), "error_codes[0]: out of bounds"),
        (rule("keywords: ['']"), "keywords[0]: an empty keyword"),
        (rule("error_codes: [529], match_mode: both"), "match_mode: no such choice, found `both`; expected one of any, all"),
        (rule("error_codes: [529], platforms: [opanai]"), "platforms[0]: no such choice, found `opanai`; expected openai, perhaps"),
        (rule("error_codes: [529], passthrough_code: false"), "`response_code` is missing; expected a status from 400 to 599, since passthrough_code is false"),
        (rule("error_codes: [529], passthrough_code: false, response_code: 399"), "response_code: out of bounds"),
        (rule("error_codes: [529], passthrough_code: false, response_code: 600"), "response_code: out of bounds"),
        (rule("error_codes: [529], passthrough_body: false"), "`custom_message` is missing; expected a text of 1 to 2000 characters, since passthrough_body is false"),
        (rule("error_codes: [529], passthrough_body: false, custom_message: ' '"), "custom_message: empty or too long"),
        (rule(&format!("error_codes: [529], passthrough_body: false, custom_message: {}", "x".repeat(2001))), "custom_message: empty or too long"),
        (rule("error_codes: [529], priority: first"), "priority: not a whole number"),
        (rule("error_codes: [529], skip_monitor: true"), "skip_monitor: unknown key; expected `skip_monitoring`, perhaps"),
        ("error_passthrough_rules: [{name: r, error_codes: [529]}, {name: r, keywords: [x]}]".into(), "error_passthrough_rules[1] \"r\".name: the same error passthrough rule is already at"),
        // Users and keys.
        ("users: [{name: u, balance: -1}]".into(), "balance: must not be negative"),
        ("users: [{name: u, balance: 0.0000000001}]".into(), "more than 9 digits after the decimal point, found `0.0000000001`"),
        ("users: [{name: u, balance: 0.1000000000000000055}]".into(), "balance: more than 9 digits"),
        ("users: [{name: u, group_multipliers: {g: x}}]".into(), "group_multipliers.g: not a decimal number"),
        ("api_keys: [{name: k}]".into(), "api_keys[0] \"k\": `user` is missing"),
        (key("key: hunter2"), "key: too short; expected 16 to 256 characters"),
        (key("key: 'hunter2 hunter2 hunter2'"), "key: has characters a key cannot have"),
        (format!("api_keys: [{{name: k, user: u, key: {}}}]", "hunter2-".repeat(33)), "key: too long"),
        (key("quota: 0"), "quota: not above zero, found `0`; expected USD above zero"),
        (key("rate_limits: {5h: 1, 2h: 1}"), "rate_limits.2h: unknown key"),
        (key("rate_limits: {5h: x}"), "rate_limits.5h: not a decimal number"),
        (key("ip_allow: 10.0.0.0/8"), "ip_allow: not a list"),
        ("api_keys: [{name: k, user: u, key: hunter2hunter2hunter2}, {name: l, user: u, key: hunter2hunter2hunter2}]".into(),
         "api_keys[1] \"l\".key: the same key text is already at api_keys[0] \"k\".key; expected"),
        // Prices.
        ("prices: []".into(), "prices: not a map"),
        ("prices: {m: 1}".into(), "prices.m: not a map, found `1`"),
        ("prices: {m: {output_cost_per_image: 1}}".into(), "prices.m: a model without a price"),
        ("prices: {m: {input_cost_per_token: 1, output_cost_per_tokn: 1}}".into(), "prices.m.output_cost_per_tokn: unknown key; expected `output_cost_per_token`, perhaps (known here: input_cost_per_token, "),
        ("prices: {m: {input_cost_per_token: 1, input_cost_per_token_above_200k: 1}}".into(), "prices.m.input_cost_per_token_above_200k: unknown key"),
        ("prices: {m: {input_cost_per_token: free}}".into(), "prices.m.input_cost_per_token: not a decimal number, found `free`; expected USD for one"),
        ("prices: {m: {input_cost_per_token: -1}}".into(), "prices.m.input_cost_per_token: must not be negative, found `-1`"),
        ("prices: {m: {input_cost_per_token: 1}, M: {input_cost_per_token: 1}}".into(), "prices.M: the same price is already at prices.m"),
    ] {
        let found = mistakes(&[&text]);
        let fine = found.len() == 1
            && found[0].contains(want)
            && !found[0].contains("hunter2")
            && !found[0].contains('\n');
        if !fine {
            failures.push(format!("{text}\n  wanted: {want}\n  found: {found:#?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_disabled_channel_does_not_claim_its_groups() {
    let file = |enabled| {
        format!(
            "groups: [{{name: g, platform: openai}}]\n\
             channels: [{{name: a, enabled: {enabled}, groups: [g]}}, {{name: b, groups: [g]}}]"
        )
    };
    assert_eq!(mistakes(&[&file(true)]).len(), 1);
    let (resources, _) = read(&[&file(false)]).unwrap();
    assert_eq!(resources.channels[0].groups, resources.channels[1].groups);
}

#[test]
fn every_wrong_price_of_a_model_is_named() {
    let found = mistakes(&[
        "prices: {m: {input_cost_per_token: free, output_cost_per_token: -1, cache_read_input_token_cost: null,\n\
         \x20 input_cost_per_token_above_200k_tokens: x, max_tokens: y}, n: {output_cost_per_token: []}}",
    ]);
    for (mistake, want) in found.iter().zip([
        "prices.m.input_cost_per_token: not a decimal number, found `free`",
        "prices.m.output_cost_per_token: must not be negative, found `-1`",
        "prices.m.input_cost_per_token_above_200k_tokens: not a decimal number, found `x`",
        "prices.n.output_cost_per_token: not a decimal number, found `a list of 0`",
    ]) {
        assert!(mistake.contains(want), "{mistake}");
    }
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn addresses_of_providers_are_checked() {
    for (url, want) in [
        ("https://api.openai.com", None),
        ("http://127.0.0.1:8000/v1", None),
        ("api.openai.com", Some("neither http:// nor https://")),
        ("ftp://h", Some("neither http:// nor https://")),
        ("https://", Some("not a URL")),
        ("https://:80", Some("has no host")),
        ("https://u:hunter2@h", Some("holds a user name or password")),
        ("https://h?key=hunter2", Some("has a query")),
        ("https://h/#x", Some("has a fragment")),
        ("https://h:99999", Some("has a port that is none")),
        ("https://a b", Some("not a URL")),
    ] {
        let text = format!(
            "accounts: [{{name: a, platform: openai, credentials: {{api_key: k, base_url: '{url}'}}}}]"
        );
        match (read(&[&text]), want) {
            (Ok(_), None) => {}
            (Err(error), Some(want)) => {
                assert!(
                    error.to_string().contains(&format!("base_url: {want}")),
                    "{url}: {error}"
                );
                assert!(!error.to_string().contains("hunter2"));
            }
            (other, want) => panic!("{url}: {other:?} instead of {want:?}"),
        }
    }
}

#[test]
fn what_is_stored_but_has_no_effect_is_said() {
    let (resources, warnings) = read(&[
        "groups:\n- {name: g, platform: gemini, daily_limit_usd: 1, rpm_limit: 2, subscription_type: subscription, claude_code_only: true,\n\
        \x20   fallback_group: h, min_client_version: 1.2.3, model_routing: {'a*': [x]}, image_prices: {1k: 0.04, 2k: null}}\n\
         - {name: h, platform: openai, claude_code_only: false, fallback_group: null, model_routing: {}, image_prices: {1k: null}}\n\
         accounts:\n- {name: a, platform: anthropic, type: oauth, credentials: {access_token: t}, extra: {base_rpm: 5, pool_mod: true}}\n\
         - {name: b, platform: gemini, credentials: {api_key: k}}\n\
         users:\n- {name: u, rpm_limit: 3}\n\
         api_keys:\n- {name: k, user: u, rate_limits: {1d: 2.50}, ip_deny: [somewhere]}\n",
    ])
    .unwrap();
    let options = serde_json::json!({
        "claude_code_only": true, "fallback_group": "h", "min_client_version": "1.2.3",
        "model_routing": {"a*": ["x"]}, "image_prices": {"1k": "0.04"},
    });
    assert_eq!(
        serde_json::Value::Object(resources.groups[0].options.clone()),
        options
    );
    assert!(resources.groups[1].options.is_empty());
    let account = &resources.accounts[0];
    assert_eq!(
        (account.platform, account.account_type),
        (Platform::Anthropic, AccountType::Oauth)
    );
    assert_eq!(account.credentials.other["access_token"].expose(), "t");
    assert_eq!(
        serde_json::Value::Object(account.extra.clone()),
        serde_json::json!({"base_rpm": 5, "pool_mod": true})
    );
    assert_eq!(
        resources.api_keys[0].rate_limits,
        [None, Some(Money(2_500_000_000)), None]
    );
    assert_eq!(resources.api_keys[0].ip_deny, ["somewhere"]);
    for want in [
        "accounts[1] \"b\": this version sends requests only through openai accounts of type api_key",
        "accounts[0] \"a\".extra.pool_mod: unknown option, stored but not used; is `pool_mode` meant?",
        "api_keys[0] \"k\".ip_deny[0]: `somewhere` is not an IP address or a network",
        "groups[0] \"g\".claude_code_only: Claude Code is not served by groups of platform gemini, so this one serves nobody",
        "groups[0] \"g\".min_client_version: not used: Claude Code is not served by groups of platform gemini",
        "groups[0] \"g\".model_routing: not used: only for groups of platform anthropic, and this is of gemini",
    ] {
        assert_eq!(
            warnings.iter().filter(|w| w.contains(want)).count(),
            1,
            "{want}\n{warnings:#?}"
        );
    }
    assert_eq!(warnings.len(), 6, "{warnings:#?}");
    let place = |what: &str| {
        let found = warnings.iter().find(|w| w.contains(what));
        found.map(String::as_str).unwrap_or_default()
    };
    assert!(
        place("extra.pool_mod").starts_with("0.yaml:6:"),
        "{warnings:#?}"
    );
    assert!(
        place("so this one serves nobody").starts_with("0.yaml:2:"),
        "{warnings:#?}"
    );
}

#[test]
fn relays_of_antigravity_need_a_key_and_an_address() {
    let relay = |credentials: &str| {
        let text = format!(
            "accounts:\n- {{name: r, platform: antigravity, type: upstream, groups: [g]{credentials}}}\n"
        );
        read(&[&text])
    };
    let full = ", credentials: {api_key: k, base_url: 'https://relay.example/'}";
    let (resources, warnings) = relay(full).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let account = &resources.accounts[0];
    assert_eq!(
        account.credentials.base_url.as_deref(),
        Some("https://relay.example")
    );
    assert_eq!(account.credentials.api_key.expose(), "k");
    for (credentials, missing) in [
        (", credentials: {api_key: k}", &["base_url"][..]),
        (", credentials: {base_url: 'https://r'}", &["api_key"]),
        (", credentials: {}", &["api_key", "base_url"]),
        ("", &["credentials"]),
    ] {
        let found = relay(credentials).unwrap_err().to_string();
        for missing in missing {
            assert!(found.contains(missing), "{credentials}: {found}");
        }
        assert!(!found.contains("unknown"), "{found}");
    }
}

#[test]
fn soft_limits_of_accounts_that_have_none_are_said() {
    let limits = "{window_cost_limit: 5, window_cost_sticky_reserve: 1, base_rpm: 5, rpm_strategy: tiered, \
                  rpm_sticky_buffer: 1, max_sessions: 2, session_idle_timeout_minutes: 3, pool_mode: true}";
    for (kind, said) in [
        (
            "platform: anthropic, type: oauth, credentials: {access_token: t}",
            0,
        ),
        (
            "platform: anthropic, type: setup_token, credentials: {access_token: t}",
            0,
        ),
        ("platform: anthropic, credentials: {api_key: k}", 7),
        ("platform: openai, credentials: {api_key: k}", 7),
    ] {
        let text = format!("accounts: [{{name: a, {kind}, extra: {limits}}}]");
        let (resources, warnings) = read(&[&text]).unwrap();
        assert_eq!(warnings.len(), said, "{kind}\n{warnings:#?}");
        for warning in &warnings {
            assert!(
                warning.contains("not used: only anthropic accounts"),
                "{warning}"
            );
        }
        assert_eq!(resources.accounts[0].extra["base_rpm"], 5, "it is stored");
    }
    let (_, warnings) = read(&[
        "accounts: [{name: a, platform: openai, credentials: {api_key: k}, extra: {base_rpm: null, max_sessions: null}}]",
    ])
    .unwrap();
    assert_eq!(
        warnings,
        Vec::<String>::new(),
        "what is not given is not missed"
    );
}

#[test]
fn options_that_never_act_are_said() {
    let options =
        "{user_msg_queue_mode: serialize, mixed_scheduling: true, intercept_warmup_requests: true}";
    let queue = "user_msg_queue_mode: not used: only messages at anthropic accounts of type oauth and setup_token are queued";
    let mixed = "mixed_scheduling: not used: only antigravity accounts of type upstream serve groups of another platform";
    let intercept = "intercept_warmup_requests: not used: only accounts that serve the Messages API get such requests";
    let (key, token) = ("{api_key: k}", "{access_token: t}");
    let relay = "{api_key: k, base_url: 'https://r'}";
    for (platform, kind, credentials, said) in [
        ("anthropic", "oauth", token, &[mixed][..]),
        ("anthropic", "setup_token", token, &[mixed]),
        ("anthropic", "api_key", key, &[queue, mixed]),
        ("antigravity", "upstream", relay, &[queue]),
        ("antigravity", "oauth", token, &[queue, mixed]),
        ("openai", "api_key", key, &[queue, mixed, intercept]),
        ("gemini", "api_key", key, &[queue, mixed, intercept]),
    ] {
        let account = |extra: &str| {
            format!(
                "accounts: [{{name: a, platform: {platform}, type: {kind}, credentials: {credentials}, extra: {extra}}}]"
            )
        };
        let (resources, mut warnings) = read(&[&account(options)]).unwrap();
        warnings.retain(|warning| !warning.contains("this version sends requests only"));
        assert_eq!(
            warnings.len(),
            said.len(),
            "{platform} {kind}\n{warnings:#?}"
        );
        for (warning, said) in warnings.iter().zip(said) {
            assert!(warning.ends_with(said), "{platform} {kind}: {warning}");
        }
        assert_eq!(resources.accounts[0].extra.len(), 3, "they are stored");
        // What is not given is not missed.
        let nothing =
            "{user_msg_queue_mode: null, mixed_scheduling: null, intercept_warmup_requests: null}";
        let (_, mut warnings) = read(&[&account(nothing)]).unwrap();
        warnings.retain(|warning| !warning.contains("this version sends requests only"));
        assert_eq!(warnings, Vec::<String>::new(), "{platform} {kind}");
    }
    // Of an account whose platform cannot be read nothing is said but that.
    let unknown = "accounts: [{name: a, platform: opneai, credentials: {api_key: k}, extra: {mixed_scheduling: true}}]";
    let found = mistakes(&[unknown]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains(".platform: "), "{found:#?}");
}

#[test]
fn rules_of_groups_that_nothing_meets_are_said() {
    let (_, warnings) = read(&[
        "groups:\n- {name: a, platform: anthropic, fallback_group: b, min_client_version: 1.2.3, max_client_version: 1.2.3,\n\
        \x20   model_routing: {'m*': [x]}, fallback_group_on_invalid_request: b}\n\
         - {name: b, platform: anthropic, claude_code_only: true, fallback_group: a}\n\
         - {name: c, platform: openai, fallback_group_on_invalid_request: b, max_client_version: 1.2.3}\n\
         - {name: d, platform: antigravity, claude_code_only: true, fallback_group_on_invalid_request: b}\n",
    ])
    .unwrap();
    let wanted = [
        "groups[0] \"a\".fallback_group: not used while claude_code_only is not true",
        "groups[2] \"c\".fallback_group_on_invalid_request: not used: groups of platform openai have no such requests",
        "groups[2] \"c\".max_client_version: not used: Claude Code is not served by groups of platform openai",
    ];
    assert_eq!(warnings.len(), wanted.len(), "{warnings:#?}");
    for (warning, want) in warnings.iter().zip(wanted) {
        assert!(warning.ends_with(want), "{warning}");
    }
}

#[test]
fn prices_that_are_hardly_meant_are_said() {
    let (resources, warnings) = read(&[
        "prices:\n  both: {input_cost_per_token: 1e-6, output_cost_per_token: 0, input_cost_per_token_above_200k_tokens: 2e-6}\n\
        \x20 embedding: {input_cost_per_token: 1e-6}\n\
        \x20 backwards: {output_cost_per_token: 1e-6, input_cost_per_token: null}\n\
        \x20 long: {input_cost_per_token: 1e-6, output_cost_per_token: 1e-6, cache_read_input_token_cost_above_200k_tokens: 1e-6}\n",
    ])
    .unwrap();
    assert_eq!(resources.prices.len(), 4);
    let wanted = [
        "0.yaml:3:14 prices.embedding: without output_cost_per_token: those tokens cost nothing",
        "0.yaml:4:14 prices.backwards: without input_cost_per_token: those tokens cost nothing",
        "prices.long.cache_read_input_token_cost_above_200k_tokens: not used",
    ];
    assert_eq!(warnings.len(), wanted.len(), "{warnings:#?}");
    for (warning, want) in warnings.iter().zip(wanted) {
        assert!(warning.contains(want), "{warning}\n{want}");
    }
}

#[test]
fn names_that_are_in_no_file_are_known() {
    let (resources, _) = read(&[
        "groups: [{name: g, platform: openai, fallback_group: h, model_routing: {'m*': [a, b]}}]\n\
         accounts: [{name: a, platform: openai, groups: [g, i], credentials: {api_key: k}}]\n",
        "users: [{name: u, group_multipliers: {g: 1, j: 1}}]\n\
         api_keys: [{name: k, user: u, group: g}, {name: l, user: v, group: w}, {name: m, user: u}]\n",
    ])
    .unwrap();
    let missing: Vec<String> = resources
        .missing()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        missing,
        [
            "groups/g: fallback_group: there is no group named \"h\"",
            "groups/g: model_routing.m*: there is no account named \"b\"",
            "accounts/a: groups: there is no group named \"i\"",
            "users/u: group_multipliers: there is no group named \"j\"",
            "api_keys/l: user: there is no user named \"v\"",
            "api_keys/l: group: there is no group named \"w\"",
        ]
    );
}

#[test]
fn names_are_unique_across_files_and_documents() {
    let found = mistakes(&[
        "users: [{name: u}]\n---\nusers:\n- name: u\n",
        "\nusers: [{name: u}]\ngroups: [{name: u, platform: openai}]\n",
    ]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(
        found[0].starts_with(
            "0.yaml:4:9 users[0] \"u\".name: the same user is already at users[0] \"u\".name,"
        ),
        "{found:#?}"
    );
    assert!(found[1].starts_with("1.yaml:2:16 users[0] \"u\".name: the same user is already at 0.yaml users[0] \"u\".name,"), "{found:#?}");
}

#[test]
fn seven_mistakes_are_seven_lines() {
    let found = mistakes(&[
        "groups:\n- name: g\n  platform: opneai\n  rate: 1\naccounts:\n- platform: openai\n  credentials: {api_key: ''}\n",
        "users:\n- {name: u, balance: ten, concurrency: -5}\nprices: {m: {}}\n",
    ]);
    assert_eq!(found.len(), 7, "{found:#?}");
    for (line, start) in found.iter().zip([
        "0.yaml:3:13 groups[0] \"g\".platform: ",
        "0.yaml:4:3 groups[0] \"g\".rate: ",
        "0.yaml:6:3 accounts[0]: `name` is missing",
        "0.yaml:7:26 accounts[0].credentials.api_key: empty",
        "1.yaml:2:22 users[0] \"u\".balance: ",
        "1.yaml:2:40 users[0] \"u\".concurrency: ",
        "1.yaml:3:13 prices.m: ",
    ]) {
        assert!(line.starts_with(start), "{start}\n{line}");
    }
}

#[test]
fn files_are_named_once_and_must_be_there() {
    let twice = [
        PathBuf::from("/nowhere.yaml"),
        PathBuf::from("/nowhere.yaml"),
    ];
    let error = load_resources(&twice, &env(&[])).unwrap_err();
    assert_eq!(error.0.len(), 2, "{error}");
    assert!(error.0[0].problem.starts_with("cannot be read"), "{error}");
    assert_eq!(error.0[1].problem, "named twice");
    let (resources, warnings) = read(&["# nothing\n"]).unwrap();
    assert_eq!(resources, Resources::default());
    assert_eq!(warnings, ["the files name no resources at all"]);
}

#[test]
fn a_file_that_would_grow_without_end_is_refused() {
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
    for (name, inner) in ["ba", "cb", "dc", "ed", "fe", "gf"].map(|pair| pair.split_at(1)) {
        let list = vec![format!("*{inner}"); 10].join(", ");
        bomb += &format!("{name}: &{name} [{list}]\n");
    }
    assert!(mistakes(&[&bomb])[0].contains("repetition limit exceeded"));
    assert!(mistakes(&[&"[".repeat(100_000)])[0].contains("recursion limit exceeded"));
}

#[test]
fn a_great_many_mistakes_are_all_named_in_good_time() {
    let text = "users:\n".to_string() + &"- {name: u, balence: 1}\n".repeat(20_000);
    let found = mistakes(&[&text]);
    // Unknown key in each, and all but the first have a name that is taken.
    assert_eq!(found.len(), 39_999);
    assert!(found[0].starts_with("0.yaml:2:13 users[0]"), "{}", found[0]);
}
