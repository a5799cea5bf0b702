//! `users:` and `api_keys:` as checked: who may use what.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Names, amount, count, limit, multiplier, unique_name};
use crate::config::field::{Field, Table};
use crate::config::resources::{ApiKeyResource, UserResource};
use crate::config::secrets::{MIN_SECRET_CHARS, secret};
use crate::domain::{Multiplier, Secret};

const USER_KEYS: &[&str] = &[
    "name",
    "enabled",
    "balance",
    "concurrency",
    "rpm_limit",
    "group_multipliers",
];
const API_KEY_KEYS: &[&str] = &[
    "name",
    "enabled",
    "key",
    "user",
    "group",
    "quota",
    "rate_limits",
    "expires_at",
    "ip_allow",
    "ip_deny",
];
/// The windows of `rate_limits`, in the order of [`ApiKeyResource::rate_limits`].
const WINDOWS: [&str; 3] = ["5h", "1d", "7d"];

/// One person with an editor and a terminal.
const DEFAULT_CONCURRENCY: u32 = 5;
/// Far longer than any key that is in use.
const MAX_KEY_CHARS: usize = 256;

pub(super) fn user<'a>(item: &Field<'a>, names: &mut Names<'a>) -> Option<UserResource> {
    let table = item.table(USER_KEYS)?;
    let name = unique_name(&table, "user", names);
    Some(UserResource {
        enabled: table.or("enabled", true, Field::flag),
        balance: table.or_null("balance", amount),
        concurrency: table.or("concurrency", DEFAULT_CONCURRENCY, |f| {
            count(f, "unlimited")
        }),
        rpm_limit: table.or("rpm_limit", 0, |f| count(f, "off")),
        group_multipliers: table.or("group_multipliers", BTreeMap::new(), group_multipliers),
        // What stands in for a bad name is never seen: a mistake was noted.
        name: name.unwrap_or_default(),
    })
}

fn group_multipliers(field: &Field<'_>) -> Option<BTreeMap<String, Multiplier>> {
    let pairs = field.pairs("group names to multipliers")?;
    let read =
        |(group, field): &(&str, Field<'_>)| Some(((*group).to_string(), multiplier(field)?));
    Some(pairs.iter().filter_map(read).collect())
}

pub(super) fn api_key<'a>(item: &Field<'a>, names: &mut Names<'a>) -> Option<ApiKeyResource> {
    let table = item.table(API_KEY_KEYS)?;
    let name = unique_name(&table, "API key", names);
    let user = table.required("user", "the name of the key's owner");
    Some(ApiKeyResource {
        enabled: table.or("enabled", true, Field::flag),
        key: table.or_null("key", |f| key_text(f, names)),
        user: user.and_then(|f| f.name()).unwrap_or_default().to_string(),
        group: table.or_null("group", |f| f.name().map(str::to_string)),
        quota: table.or_null("quota", limit),
        rate_limits: rate_limits(&table),
        expires_at: table.or_null("expires_at", Field::time),
        ip_allow: table.or("ip_allow", Vec::new(), ip_rules),
        ip_deny: table.or("ip_deny", Vec::new(), ip_rules),
        // What stands in for a bad name or user is never seen: a mistake was noted.
        name: name.unwrap_or_default(),
    })
}

fn key_text<'a>(field: &Field<'a>, names: &mut Names<'a>) -> Option<Secret> {
    const EXPECTED: &str = "16 to 256 characters of A-Z, a-z, 0-9, _ and -";
    let field = field.clone().secretly();
    let key = secret(&field, EXPECTED)?;
    let text = key.expose();
    let problem = if text.len() < MIN_SECRET_CHARS {
        "too short"
    } else if text.len() > MAX_KEY_CHARS {
        "too long"
    } else if !text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    {
        "has characters a key cannot have"
    } else {
        names.unique("key text", text.to_string(), &field);
        return Some(key);
    };
    field.bad(problem, EXPECTED);
    None
}

fn rate_limits(table: &Table<'_>) -> [Option<crate::domain::Money>; 3] {
    let windows = table.given("rate_limits").and_then(|f| f.table(&WINDOWS));
    WINDOWS.map(|window| windows.as_ref()?.or_null(window, limit))
}

/// Rules as written: what is no address never matches, but counts as a rule (SPEC 1.5).
fn ip_rules(field: &Field<'_>) -> Option<Vec<String>> {
    const RULE: &str = "an IP address or a network such as 10.0.0.0/8";
    let mut rules = Vec::new();
    for item in field.items("IP addresses and networks")? {
        let Some(rule) = item.text(RULE) else {
            continue;
        };
        if rule.parse::<IpNet>().is_err() && rule.parse::<IpAddr>().is_err() {
            item.warn(format!(
                "`{}` is not {RULE}: it never matches",
                rule.escape_default()
            ));
        }
        rules.push(rule.to_string());
    }
    Some(rules)
}
