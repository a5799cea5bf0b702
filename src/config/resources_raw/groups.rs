//! `groups:` as checked.

use serde_json::{Map, Value};
use tollgate_filters::client::Version;

use super::{Names, amount, count, limit, multiplier, unique_name};
use crate::config::field::{Field, Table};
use crate::config::resources::GroupResource;
use crate::domain::group::rules;
use crate::domain::{Platform, SubscriptionType};

const KEYS: &[&str] = &[
    "name",
    "enabled",
    "platform",
    "rate_multiplier",
    "subscription_type",
    "daily_limit_usd",
    "weekly_limit_usd",
    "monthly_limit_usd",
    "rpm_limit",
    "claude_code_only",
    "fallback_group",
    "min_client_version",
    "max_client_version",
    "fallback_group_on_invalid_request",
    "model_routing",
    "forced_cache_billing",
    "image_prices",
];
/// Image sizes that have a price of their own.
const IMAGE_SIZES: &[&str] = &["1k", "2k", "4k"];

pub(super) fn group<'a>(item: &Field<'a>, names: &mut Names<'a>) -> Option<GroupResource> {
    let table = item.table(KEYS)?;
    let name = unique_name(&table, "group", names);
    let platform = platform(&table);
    let group = GroupResource {
        enabled: table.or("enabled", true, Field::flag),
        rate_multiplier: table.or_null("rate_multiplier", multiplier),
        subscription_type: table.or("subscription_type", SubscriptionType::Standard, |f| {
            f.choice(&[
                ("standard", SubscriptionType::Standard),
                ("subscription", SubscriptionType::Subscription),
            ])
        }),
        daily_limit: table.or_null("daily_limit_usd", limit),
        weekly_limit: table.or_null("weekly_limit_usd", limit),
        monthly_limit: table.or_null("monthly_limit_usd", limit),
        rpm_limit: table.or("rpm_limit", 0, |f| count(f, "off")),
        options: options(&table),
        name: name.unwrap_or_default(),
        platform: platform.unwrap_or(Platform::OpenAi),
    };
    if group.subscription_type == SubscriptionType::Standard {
        for key in ["daily_limit_usd", "weekly_limit_usd", "monthly_limit_usd"] {
            if let Some(field) = table.given(key) {
                field.warn(
                    "not used: only subscriptions have it, and subscription_type is standard",
                );
            }
        }
    }
    if let Some(platform) = platform {
        unused_rules(&table, &group, platform);
    }
    // What stands in for a bad name or platform is never seen: a mistake was noted.
    Some(group)
}

/// Says of rules that nothing of the group will ever meet.
fn unused_rules(table: &Table<'_>, group: &GroupResource, platform: Platform) {
    let said = |key: &'static str| table.given(key).filter(|_| group.options.contains_key(key));
    let warn = |key: &'static str, text: String| {
        if let Some(field) = said(key) {
            field.warn(text);
        }
    };
    let is_anthropic = platform == Platform::Anthropic;
    let not_here = format!("not used: Claude Code is not served by groups of platform {platform}");
    if !matches!(platform, Platform::Anthropic | Platform::Antigravity) {
        warn(
            rules::CLAUDE_CODE_ONLY,
            format!(
                "Claude Code is not served by groups of platform {platform}, so this one serves nobody"
            ),
        );
        warn(rules::MIN_CLIENT_VERSION, not_here.clone());
        warn(rules::MAX_CLIENT_VERSION, not_here);
        warn(
            rules::FALLBACK_GROUP_ON_INVALID_REQUEST,
            format!("not used: groups of platform {platform} have no such requests"),
        );
    }
    if !is_anthropic {
        warn(
            rules::MODEL_ROUTING,
            format!("not used: only for groups of platform anthropic, and this is of {platform}"),
        );
    }
    if !group.options.contains_key(rules::CLAUDE_CODE_ONLY) {
        warn(
            rules::FALLBACK_GROUP,
            "not used while claude_code_only is not true".to_owned(),
        );
    }
}

/// The platform of a group or account.
pub(super) fn platform(table: &Table<'_>) -> Option<Platform> {
    let choices = Platform::ALL.map(|p| (p.as_str(), p));
    let expected = "one of openai, anthropic, gemini, antigravity";
    table.required("platform", expected)?.choice(&choices)
}

/// Fields of some groups only. What differs from the default is kept, so that writing a default down
/// changes nothing.
fn options(table: &Table<'_>) -> Map<String, Value> {
    let mut options = Map::new();
    let mut keep = |key: &str, value: Value| {
        options.insert(key.to_string(), value);
    };
    for key in [rules::CLAUDE_CODE_ONLY, rules::FORCED_CACHE_BILLING] {
        if let Some(field) = table.get(key)
            && field.flag() == Some(true)
        {
            keep(key, Value::Bool(true));
        }
    }
    for key in [
        rules::FALLBACK_GROUP,
        rules::FALLBACK_GROUP_ON_INVALID_REQUEST,
    ] {
        if let Some(field) = table.given(key)
            && let Some(name) = field.name()
        {
            keep(key, name.into());
        }
    }
    let mut bounds = Vec::new();
    for key in [rules::MIN_CLIENT_VERSION, rules::MAX_CLIENT_VERSION] {
        if let Some(field) = table.given(key)
            && let Some(version) = version(&field)
        {
            keep(key, version.into());
            bounds.push((field, version.parse::<Version>().ok()));
        }
    }
    if let [(_, Some(min)), (field, Some(max))] = &bounds[..]
        && min > max
    {
        field.bad(
            format!(
                "below {} ({min}), so no version is served",
                rules::MIN_CLIENT_VERSION
            ),
            format!("at least {min}, or null"),
        );
    }
    if let Some(field) = table.given(rules::MODEL_ROUTING) {
        let routes = model_routing(&field);
        if !routes.is_empty() {
            keep(rules::MODEL_ROUTING, Value::Object(routes));
        }
    }
    if let Some(field) = table.given("image_prices")
        && let Some(sizes) = field.table(IMAGE_SIZES)
    {
        let prices: Map<String, Value> = IMAGE_SIZES
            .iter()
            .filter_map(|size| {
                let price = sizes.or_null(size, amount)?;
                Some(((*size).to_string(), price.to_string().into()))
            })
            .collect();
        if !prices.is_empty() {
            keep("image_prices", Value::Object(prices));
        }
    }
    options
}

fn version<'a>(field: &Field<'a>) -> Option<&'a str> {
    const EXPECTED: &str = "a version such as \"1.2.3\"";
    let text = field.text(EXPECTED)?;
    let fine = text.split('.').count() == 3
        && text
            .split('.')
            .all(|part| part.parse::<u32>().is_ok_and(|n| n.to_string() == part));
    if !fine {
        field.bad("not a version", EXPECTED);
    }
    fine.then_some(text)
}

fn model_routing(field: &Field<'_>) -> Map<String, Value> {
    let mut routes = Map::new();
    for (pattern, accounts) in field
        .pairs("patterns to lists of accounts")
        .unwrap_or_default()
    {
        super::accounts::check_pattern(pattern, &accounts);
        if let Some(names) = accounts.names() {
            routes.insert(pattern.to_string(), names.into());
        }
    }
    routes
}
