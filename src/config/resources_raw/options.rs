//! `extra:` of an account: options with a meaning are checked, the others kept with a warning.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::{amount, limit};
use crate::config::check::timezone;
use crate::config::field::Field;
use crate::config::keys::nearest;
use crate::domain::account::is_subscription;
use crate::domain::account::options::{
    self, ANTHROPIC_PASSTHROUGH, BASE_RPM, CUSTOM_ERROR_CODES, CUSTOM_ERROR_CODES_ENABLED, DAYS,
    DURATION_MINUTES, FIXED, HOURS, IDLE_MINUTES, INTERCEPT_WARMUP_REQUESTS, MAX_SESSIONS,
    MIXED_SCHEDULING, POOL_MODE, POOL_MODE_RETRY_COUNT, POOL_RETRIES, QUOTA_DAILY_LIMIT,
    QUOTA_DAILY_RESET_HOUR, QUOTA_DAILY_RESET_MODE, QUOTA_LIMIT, QUOTA_RESET_TIMEZONE,
    QUOTA_WEEKLY_LIMIT, QUOTA_WEEKLY_RESET_DAY, QUOTA_WEEKLY_RESET_HOUR, QUOTA_WEEKLY_RESET_MODE,
    RESET_MODES, RPM, RPM_STICKY_BUFFER, RPM_STRATEGY, SESSION_IDLE_TIMEOUT_MINUTES, SESSIONS,
    STATUSES, TEMP_RULE_KEYS, TEMP_UNSCHEDULABLE_ENABLED, TEMP_UNSCHEDULABLE_RULES,
    USER_MSG_QUEUE_MODE, WINDOW_COST_LIMIT, WINDOW_COST_STICKY_RESERVE,
};
use crate::domain::account::soft_limits::RPM_STRATEGIES;
use crate::domain::{AccountType, MessageQueueMode, Platform};

/// Options of accounts that the specification names and that have no effect in this version.
const LATER_OPTIONS: &[&str] = &[
    "user_agent",
    "default_instructions",
    "codex_cli_only",
    "openai_passthrough",
    "cache_ttl_override_enabled",
    "cache_ttl_override_target",
    "allow_overages",
    "privacy_mode",
];

/// Options of limits that only accounts of Anthropic's with a token have.
const SOFT_LIMITS: [&str; 7] = [
    WINDOW_COST_LIMIT,
    WINDOW_COST_STICKY_RESERVE,
    BASE_RPM,
    RPM_STRATEGY,
    RPM_STICKY_BUFFER,
    MAX_SESSIONS,
    SESSION_IDLE_TIMEOUT_MINUTES,
];

/// Why an option never acts on accounts of this kind.
fn not_used(key: &str, platform: Platform, account_type: AccountType) -> Option<&'static str> {
    let by_token = is_subscription(platform, account_type);
    match key {
        _ if SOFT_LIMITS.contains(&key) && !by_token => {
            Some("only anthropic accounts of type oauth and setup_token have such limits")
        }
        USER_MSG_QUEUE_MODE if !by_token => {
            Some("only messages at anthropic accounts of type oauth and setup_token are queued")
        }
        MIXED_SCHEDULING
            if (platform, account_type) != (Platform::Antigravity, AccountType::Upstream) =>
        {
            Some("only antigravity accounts of type upstream serve groups of another platform")
        }
        INTERCEPT_WARMUP_REQUESTS if matches!(platform, Platform::OpenAi | Platform::Gemini) => {
            Some("only accounts that serve the Messages API get such requests")
        }
        _ => None,
    }
}

/// The options as written, of an account of this kind; of a kind that could not be read nothing more is said.
pub(super) fn extra(
    field: &Field<'_>,
    kind: Option<(Platform, AccountType)>,
) -> Option<Map<String, Value>> {
    let pairs = field.pairs("options")?;
    let mut extra = Map::new();
    for (key, value) in &pairs {
        // `null` is as good as not given.
        if options::ALL.contains(key) {
            if !value.is_null() {
                check(key, value);
                if let Some(why) = kind.and_then(|(platform, of)| not_used(key, platform, of)) {
                    value.warn(format!("not used: {why}"));
                }
            }
        } else if LATER_OPTIONS.contains(key) {
            value.warn("stored, but not used by this version");
        } else {
            let known = options::ALL.iter().chain(LATER_OPTIONS).copied();
            let near = nearest(key, known);
            let near = near.map_or(String::new(), |near| format!("; is `{near}` meant?"));
            value.warn(format!("unknown option, stored but not used{near}"));
        }
        let kept = match *key {
            // An amount stays exact.
            QUOTA_LIMIT
            | QUOTA_DAILY_LIMIT
            | QUOTA_WEEKLY_LIMIT
            | WINDOW_COST_LIMIT
            | WINDOW_COST_STICKY_RESERVE => value.json_with_number_texts(),
            _ => value.json(),
        };
        extra.insert((*key).to_string(), kept);
    }
    let given = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, f)| f);
    for (switch, list, what) in [
        (
            CUSTOM_ERROR_CODES_ENABLED,
            CUSTOM_ERROR_CODES,
            "at least one status",
        ),
        (
            TEMP_UNSCHEDULABLE_ENABLED,
            TEMP_UNSCHEDULABLE_RULES,
            "at least one rule",
        ),
    ] {
        let enabled = extra.get(switch) == Some(&Value::Bool(true));
        match given(list).filter(|list| !list.is_empty()) {
            Some(list) if !enabled => list.warn(format!("not used while {switch} is not true")),
            None if enabled => {
                // Where it is wrong, or where it is missing.
                if let Some(field) = given(list).or(given(switch)) {
                    field.bad(
                        format!("{switch} is true and {list} is empty"),
                        format!("{list} with {what}, or {switch}: false"),
                    );
                }
            }
            _ => {}
        }
    }
    for (mode, option) in [
        (QUOTA_DAILY_RESET_MODE, QUOTA_DAILY_RESET_HOUR),
        (QUOTA_WEEKLY_RESET_MODE, QUOTA_WEEKLY_RESET_DAY),
        (QUOTA_WEEKLY_RESET_MODE, QUOTA_WEEKLY_RESET_HOUR),
    ] {
        let fixed = extra.get(mode).is_some_and(|mode| mode == FIXED);
        if let Some(option) = given(option).filter(|option| !fixed && !option.is_null()) {
            option.warn(format!("not used while {mode} is not {FIXED}"));
        }
    }
    Some(extra)
}

fn check(key: &str, value: &Field<'_>) {
    match key {
        POOL_MODE
        | CUSTOM_ERROR_CODES_ENABLED
        | TEMP_UNSCHEDULABLE_ENABLED
        | ANTHROPIC_PASSTHROUGH
        | INTERCEPT_WARMUP_REQUESTS
        | MIXED_SCHEDULING => {
            value.flag();
        }
        WINDOW_COST_LIMIT => {
            limit(value);
        }
        WINDOW_COST_STICKY_RESERVE => {
            amount(value);
        }
        BASE_RPM | RPM_STICKY_BUFFER => within(value, &RPM, "requests a minute"),
        MAX_SESSIONS => within(value, &SESSIONS, "conversations"),
        SESSION_IDLE_TIMEOUT_MINUTES => within(value, &IDLE_MINUTES, "minutes"),
        RPM_STRATEGY => {
            value.choice(&RPM_STRATEGIES.map(|strategy| (strategy, ())));
        }
        USER_MSG_QUEUE_MODE => {
            value.choice(&MessageQueueMode::NAMES.map(|mode| (mode, ())));
        }
        POOL_MODE_RETRY_COUNT => {
            let (least, most) = (*POOL_RETRIES.start(), *POOL_RETRIES.end());
            value.whole::<u32>(
                i128::from(least)..=i128::from(most),
                &format!("a whole number from {least} to {most}"),
            );
        }
        CUSTOM_ERROR_CODES => {
            statuses(value);
        }
        TEMP_UNSCHEDULABLE_RULES => {
            for rule in value.items("rules").unwrap_or_default() {
                temp_rule(&rule);
            }
        }
        QUOTA_LIMIT | QUOTA_DAILY_LIMIT | QUOTA_WEEKLY_LIMIT => {
            limit(value);
        }
        QUOTA_DAILY_RESET_MODE | QUOTA_WEEKLY_RESET_MODE => {
            value.choice(&RESET_MODES.map(|mode| (mode, ())));
        }
        QUOTA_DAILY_RESET_HOUR | QUOTA_WEEKLY_RESET_HOUR => {
            let (least, most) = (*HOURS.start(), *HOURS.end());
            value.whole::<u32>(
                i128::from(least)..=i128::from(most),
                &format!("a whole hour from {least} to {most}"),
            );
        }
        QUOTA_WEEKLY_RESET_DAY => {
            let (least, most) = (*DAYS.start(), *DAYS.end());
            value.whole::<u32>(
                i128::from(least)..=i128::from(most),
                &format!("a day from {least} (Sunday) to {most} (Saturday)"),
            );
        }
        QUOTA_RESET_TIMEZONE => {
            timezone(value);
        }
        _ => {}
    }
}

fn within(value: &Field<'_>, bounds: &RangeInclusive<u32>, of_what: &str) {
    let (least, most) = (*bounds.start(), *bounds.end());
    value.whole::<u32>(
        i128::from(least)..=i128::from(most),
        &format!("{least} to {most} {of_what}"),
    );
}

fn temp_rule(rule: &Field<'_>) {
    const KEYWORDS: &str = "at least one word, such as [\"overloaded\"]; any of them will do";
    let (least, most) = (*DURATION_MINUTES.start(), *DURATION_MINUTES.end());
    let minutes = format!("whole minutes from {least} to {most} (a week)");
    let Some(table) = rule.table(&TEMP_RULE_KEYS) else {
        return;
    };
    if let Some(code) = table.required("error_code", "the upstream's status") {
        status(&code);
    }
    if let Some(words) = table.required("keywords", KEYWORDS)
        && keywords(&words).is_some_and(|words| words.is_empty())
        && words.is_empty()
    {
        words.bad("no keywords, so it would never match", KEYWORDS);
    }
    if let Some(duration) = table.required("duration_minutes", &minutes) {
        duration.whole::<u32>(i128::from(least)..=i128::from(most), &minutes);
    }
    if let Some(description) = table.given("description") {
        description.text("a text");
    }
}

/// A list of statuses that an upstream may answer with when it does not succeed.
pub(super) fn statuses(field: &Field<'_>) -> Option<Vec<u16>> {
    let items = field.items("statuses, such as [429, 529]")?;
    Some(items.iter().filter_map(status).collect())
}

fn status(field: &Field<'_>) -> Option<u16> {
    let (least, most) = (*STATUSES.start(), *STATUSES.end());
    let expected = format!("a status from {least} to {most}");
    field.whole(i128::from(least)..=i128::from(most), &expected)
}

/// A list of words to be found in what an upstream answers.
pub(super) fn keywords(field: &Field<'_>) -> Option<Vec<String>> {
    const EXPECTED: &str = "a word or words that stand in the upstream's answer";
    let word = |item: &Field<'_>| {
        let text = item.text(EXPECTED)?;
        if text.trim().is_empty() {
            item.bad("an empty keyword, which would match everything", EXPECTED);
            return None;
        }
        Some(text.to_string())
    };
    let items = field.items("words, such as [\"overloaded\"]")?;
    Some(items.iter().filter_map(word).collect())
}
