//! Options of accounts (`extra`) that have a meaning: their names, their bounds, and what is made of
//! them. Resources are checked against the same bounds before they are stored.

use std::ops::RangeInclusive;
use std::str::FromStr;

use chrono::{TimeDelta, Weekday};
use chrono_tz::Tz;
use serde_json::{Map, Value};
use tollgate_filters::verdict::{ErrorPolicy, TempRule};

use super::quota::{AccountQuota, Reset};
use super::soft_limits::{RPM_STRATEGIES, RpmStrategy, SoftLimits};
use super::{Habits, MessageQueueMode};
use crate::domain::Money;

/// See [`ErrorPolicy::pool_mode`].
pub const POOL_MODE: &str = "pool_mode";
/// See [`ErrorPolicy::pool_mode_retry_count`].
pub const POOL_MODE_RETRY_COUNT: &str = "pool_mode_retry_count";
/// Whether [`CUSTOM_ERROR_CODES`] are used.
pub const CUSTOM_ERROR_CODES_ENABLED: &str = "custom_error_codes_enabled";
/// See [`ErrorPolicy::custom_error_codes`].
pub const CUSTOM_ERROR_CODES: &str = "custom_error_codes";
/// Whether [`TEMP_UNSCHEDULABLE_RULES`] are used.
pub const TEMP_UNSCHEDULABLE_ENABLED: &str = "temp_unschedulable_enabled";
/// See [`TempRule`].
pub const TEMP_UNSCHEDULABLE_RULES: &str = "temp_unschedulable_rules";
/// See [`AccountQuota::total`].
pub const QUOTA_LIMIT: &str = "quota_limit";
/// See [`AccountQuota::daily`].
pub const QUOTA_DAILY_LIMIT: &str = "quota_daily_limit";
/// See [`AccountQuota::weekly`].
pub const QUOTA_WEEKLY_LIMIT: &str = "quota_weekly_limit";
/// One of [`RESET_MODES`].
pub const QUOTA_DAILY_RESET_MODE: &str = "quota_daily_reset_mode";
/// One of [`RESET_MODES`].
pub const QUOTA_WEEKLY_RESET_MODE: &str = "quota_weekly_reset_mode";
/// See [`Reset::Daily`].
pub const QUOTA_DAILY_RESET_HOUR: &str = "quota_daily_reset_hour";
/// See [`Reset::Weekly`].
pub const QUOTA_WEEKLY_RESET_HOUR: &str = "quota_weekly_reset_hour";
/// See [`Reset::Weekly`]: 0 is Sunday, 6 Saturday.
pub const QUOTA_WEEKLY_RESET_DAY: &str = "quota_weekly_reset_day";
/// See [`AccountQuota::tz`].
pub const QUOTA_RESET_TIMEZONE: &str = "quota_reset_timezone";

/// Whether an account of Anthropic's gets requests as nearly as possible as clients write them.
pub const ANTHROPIC_PASSTHROUGH: &str = "anthropic_passthrough";

/// See [`SoftLimits::window_cost`].
pub const WINDOW_COST_LIMIT: &str = "window_cost_limit";
/// See [`SoftLimits::window_cost_sticky_reserve`].
pub const WINDOW_COST_STICKY_RESERVE: &str = "window_cost_sticky_reserve";
/// See [`SoftLimits::base_rpm`].
pub const BASE_RPM: &str = "base_rpm";
/// One of [`RPM_STRATEGIES`].
pub const RPM_STRATEGY: &str = "rpm_strategy";
/// See [`SoftLimits::rpm_sticky_buffer`].
pub const RPM_STICKY_BUFFER: &str = "rpm_sticky_buffer";
/// See [`SoftLimits::max_sessions`].
pub const MAX_SESSIONS: &str = "max_sessions";
/// See [`SoftLimits::session_idle`].
pub const SESSION_IDLE_TIMEOUT_MINUTES: &str = "session_idle_timeout_minutes";
/// See [`Habits::intercepts`].
pub const INTERCEPT_WARMUP_REQUESTS: &str = "intercept_warmup_requests";
/// See [`Habits::mixed_scheduling`].
pub const MIXED_SCHEDULING: &str = "mixed_scheduling";
/// See [`Habits::message_queue`]; one of [`MessageQueueMode::NAMES`].
pub const USER_MSG_QUEUE_MODE: &str = "user_msg_queue_mode";

/// Every option here.
pub const ALL: [&str; 26] = [
    POOL_MODE,
    POOL_MODE_RETRY_COUNT,
    CUSTOM_ERROR_CODES_ENABLED,
    CUSTOM_ERROR_CODES,
    TEMP_UNSCHEDULABLE_ENABLED,
    TEMP_UNSCHEDULABLE_RULES,
    QUOTA_LIMIT,
    QUOTA_DAILY_LIMIT,
    QUOTA_DAILY_RESET_MODE,
    QUOTA_DAILY_RESET_HOUR,
    QUOTA_WEEKLY_LIMIT,
    QUOTA_WEEKLY_RESET_MODE,
    QUOTA_WEEKLY_RESET_DAY,
    QUOTA_WEEKLY_RESET_HOUR,
    QUOTA_RESET_TIMEZONE,
    ANTHROPIC_PASSTHROUGH,
    WINDOW_COST_LIMIT,
    WINDOW_COST_STICKY_RESERVE,
    BASE_RPM,
    RPM_STRATEGY,
    RPM_STICKY_BUFFER,
    MAX_SESSIONS,
    SESSION_IDLE_TIMEOUT_MINUTES,
    INTERCEPT_WARMUP_REQUESTS,
    MIXED_SCHEDULING,
    USER_MSG_QUEUE_MODE,
];

/// What a rule of [`TEMP_UNSCHEDULABLE_RULES`] may say.
pub const TEMP_RULE_KEYS: [&str; 4] = ["error_code", "keywords", "duration_minutes", "description"];

/// Tries again on the same account in pool mode.
pub const POOL_RETRIES: RangeInclusive<u32> = 0..=10;
/// Statuses of upstreams that are no success: only these are judged.
pub const STATUSES: RangeInclusive<u16> = 300..=599;
/// How long a rule takes an account out: at most a week.
pub const DURATION_MINUTES: RangeInclusive<u32> = 1..=10_080;
/// Requests a minute: more is no limit.
pub const RPM: RangeInclusive<u32> = 0..=1_000_000;
/// Conversations of one account.
pub const SESSIONS: RangeInclusive<u32> = 0..=100_000;
/// Until a conversation counts no more: at most a day.
pub const IDLE_MINUTES: RangeInclusive<u32> = 1..=1_440;
/// When a quota's day or week begins: with its first request, or by the clock.
pub const RESET_MODES: [&str; 2] = ["rolling", FIXED];
/// By the clock.
pub const FIXED: &str = "fixed";
/// An hour of the day.
pub const HOURS: RangeInclusive<u32> = 0..=23;
/// A day of the week, from Sunday on.
pub const DAYS: RangeInclusive<u32> = 0..=6;
/// The day on which a week begins where none is given: Monday.
const DEFAULT_DAY: u32 = 1;

/// What the options say about upstream errors. The second part names every option that cannot be
/// read and why; it counts as not given.
pub fn error_policy(options: &Map<String, Value>) -> (ErrorPolicy, Vec<String>) {
    let mut reader = Reader {
        options,
        problems: Vec::new(),
    };
    let codes = reader.read(CUSTOM_ERROR_CODES, codes);
    let rules = reader.read(TEMP_UNSCHEDULABLE_RULES, rules);
    let codes_enabled = reader.flag(CUSTOM_ERROR_CODES_ENABLED);
    let rules_enabled = reader.flag(TEMP_UNSCHEDULABLE_ENABLED);
    // With no status that means anything every error would be ours; that is hardly meant.
    if codes_enabled && codes.as_ref().is_some_and(Vec::is_empty) {
        let problem = format!("{CUSTOM_ERROR_CODES}: no status in it");
        reader.problems.push(problem);
    }
    let policy = ErrorPolicy {
        pool_mode: reader.flag(POOL_MODE),
        pool_mode_retry_count: reader
            .read(POOL_MODE_RETRY_COUNT, |v| within(v, &POOL_RETRIES))
            .unwrap_or(ErrorPolicy::DEFAULT_POOL_RETRIES),
        custom_error_codes: codes.filter(|codes| codes_enabled && !codes.is_empty()),
        temp_unschedulable_rules: rules.filter(|_| rules_enabled).unwrap_or_default(),
    };
    (policy, reader.problems)
}

/// What the options say about quotas, and which of them cannot be read and why, as [`error_policy`].
pub fn account_quota(options: &Map<String, Value>) -> (AccountQuota, Vec<String>) {
    let mut reader = Reader {
        options,
        problems: Vec::new(),
    };
    let day = match reader.is_fixed(QUOTA_DAILY_RESET_MODE) {
        false => Reset::AfterDay,
        true => Reset::Daily {
            hour: reader.hour(QUOTA_DAILY_RESET_HOUR),
        },
    };
    let week = match reader.is_fixed(QUOTA_WEEKLY_RESET_MODE) {
        false => Reset::AfterWeek,
        true => Reset::Weekly {
            day: weekday(
                reader
                    .read(QUOTA_WEEKLY_RESET_DAY, |v| within(v, &DAYS))
                    .unwrap_or(DEFAULT_DAY),
            ),
            hour: reader.hour(QUOTA_WEEKLY_RESET_HOUR),
        },
    };
    let quota = AccountQuota {
        total: reader.read(QUOTA_LIMIT, limit),
        daily: reader.read(QUOTA_DAILY_LIMIT, limit),
        weekly: reader.read(QUOTA_WEEKLY_LIMIT, limit),
        day,
        week,
        tz: reader
            .read(QUOTA_RESET_TIMEZONE, timezone)
            .unwrap_or(Tz::UTC),
    };
    (quota, reader.problems)
}

/// What the options say about soft limits, as [`error_policy`].
pub fn soft_limits(options: &Map<String, Value>) -> (SoftLimits, Vec<String>) {
    let mut reader = Reader {
        options,
        problems: Vec::new(),
    };
    let defaults = SoftLimits::default();
    let limits = SoftLimits {
        window_cost: reader.read(WINDOW_COST_LIMIT, limit),
        window_cost_sticky_reserve: reader
            .read(WINDOW_COST_STICKY_RESERVE, amount)
            .unwrap_or(defaults.window_cost_sticky_reserve),
        base_rpm: reader.read(BASE_RPM, |v| within(v, &RPM)).unwrap_or(0),
        rpm_strategy: reader
            .read(RPM_STRATEGY, |v| match one_of(v, &RPM_STRATEGIES)? {
                0 => Ok(RpmStrategy::Tiered),
                _ => Ok(RpmStrategy::StickyExempt),
            })
            .unwrap_or_default(),
        rpm_sticky_buffer: reader.read(RPM_STICKY_BUFFER, |v| within(v, &RPM)),
        max_sessions: reader
            .read(MAX_SESSIONS, |v| within(v, &SESSIONS))
            .unwrap_or(0),
        session_idle: reader
            .read(SESSION_IDLE_TIMEOUT_MINUTES, |v| within(v, &IDLE_MINUTES))
            .map_or(defaults.session_idle, |m| TimeDelta::minutes(m.into())),
    };
    (limits, reader.problems)
}

/// What the options say about habits, as [`error_policy`].
pub fn habits(options: &Map<String, Value>) -> (Habits, Vec<String>) {
    let mut reader = Reader {
        options,
        problems: Vec::new(),
    };
    let habits = Habits {
        intercepts: reader.flag(INTERCEPT_WARMUP_REQUESTS),
        mixed_scheduling: reader.flag(MIXED_SCHEDULING),
        message_queue: reader.read(USER_MSG_QUEUE_MODE, |v| {
            let place = one_of(v, &MessageQueueMode::NAMES)?;
            Ok(MessageQueueMode::ALL[place])
        }),
    };
    (habits, reader.problems)
}

/// The place of a word among those there are.
fn one_of(value: &Value, words: &[&str]) -> Result<usize, String> {
    let place = words.iter().position(|word| value == word);
    place.ok_or(format!("not one of {}", words.join(", ")))
}

/// Reads options one by one and notes what cannot be read.
struct Reader<'a> {
    options: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn read<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.options.get(name).filter(|value| !value.is_null())?;
        read(value)
            .map_err(|problem| self.problems.push(format!("{name}: {problem}")))
            .ok()
    }

    fn flag(&mut self, name: &str) -> bool {
        let flag = |value: &Value| value.as_bool().ok_or("not a flag".to_owned());
        self.read(name, flag).unwrap_or(false)
    }

    fn is_fixed(&mut self, name: &str) -> bool {
        let mode = self.read(name, |value| one_of(value, &RESET_MODES));
        mode.is_some_and(|place| RESET_MODES[place] == FIXED)
    }

    fn hour(&mut self, name: &str) -> u32 {
        self.read(name, |v| within(v, &HOURS)).unwrap_or(0)
    }
}

/// The day with this number, 0 being Sunday.
fn weekday(number: u32) -> Weekday {
    (0..number).fold(Weekday::Sun, |day, _| day.succ())
}

/// An amount above zero. Resources keep it as a text, so that it stays exact.
fn limit(value: &Value) -> Result<Money, String> {
    let amount = text(value).and_then(|text| text.parse().ok());
    amount
        .filter(|amount: &Money| amount.is_positive())
        .ok_or("not USD above zero".to_owned())
}

/// An amount, perhaps none.
fn amount(value: &Value) -> Result<Money, String> {
    let amount = text(value).and_then(|text| text.parse().ok());
    amount
        .filter(|amount: &Money| *amount >= Money::ZERO)
        .ok_or("not USD".to_owned())
}

fn timezone(value: &Value) -> Result<Tz, String> {
    let zone = value.as_str().and_then(|name| Tz::from_str(name).ok());
    zone.ok_or("not a time zone".to_owned())
}

fn codes(value: &Value) -> Result<Vec<u16>, String> {
    let codes = list(value)?.iter();
    codes.map(|code| within(code, &STATUSES)).collect()
}

fn rules(value: &Value) -> Result<Vec<TempRule>, String> {
    let rule = |(index, rule): (usize, &Value)| {
        temp_rule(rule).map_err(|problem| format!("rule {}: {problem}", index + 1))
    };
    list(value)?.iter().enumerate().map(rule).collect()
}

fn temp_rule(value: &Value) -> Result<TempRule, String> {
    let field = |name: &str| value.get(name).unwrap_or(&Value::Null);
    let keywords = list(field("keywords"))?
        .iter()
        .map(|word| text(word).filter(|word| !word.is_empty()))
        .map(|word| word.map(|w| w.to_lowercase()).ok_or("an empty keyword"))
        .collect::<Result<Vec<String>, &str>>()?;
    if keywords.is_empty() {
        return Err("no keywords in it".to_owned());
    }
    Ok(TempRule {
        error_code: within(field("error_code"), &STATUSES)
            .map_err(|problem| format!("error_code: {problem}"))?,
        keywords,
        duration_minutes: within(field("duration_minutes"), &DURATION_MINUTES)
            .map_err(|problem| format!("duration_minutes: {problem}"))?,
        description: text(field("description")).unwrap_or_default(),
    })
}

/// A text; YAML makes a number of `503`, which is meant as one.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn list(value: &Value) -> Result<&Vec<Value>, String> {
    value.as_array().ok_or("not a list".to_owned())
}

fn within<T>(value: &Value, bounds: &RangeInclusive<T>) -> Result<T, String>
where
    T: TryFrom<u64> + PartialOrd + std::fmt::Display,
{
    value
        .as_u64()
        .and_then(|number| T::try_from(number).ok())
        .filter(|number| bounds.contains(number))
        .ok_or_else(|| {
            format!(
                "not a whole number from {} to {}",
                bounds.start(),
                bounds.end()
            )
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(options: Value) -> (ErrorPolicy, Vec<String>) {
        error_policy(options.as_object().unwrap())
    }

    fn nothing() -> ErrorPolicy {
        ErrorPolicy {
            pool_mode_retry_count: 3,
            ..ErrorPolicy::default()
        }
    }

    #[test]
    fn options_make_the_policy() {
        let rule = json!({"error_code": 404, "keywords": ["Not FOUND", "gone"], "duration_minutes": 10080, "description": "away"});
        let wanted = ErrorPolicy {
            pool_mode: true,
            pool_mode_retry_count: 10,
            custom_error_codes: Some(vec![300, 599, 429]),
            temp_unschedulable_rules: vec![TempRule {
                error_code: 404,
                keywords: vec!["not found".to_owned(), "gone".to_owned()],
                duration_minutes: 10_080,
                description: "away".to_owned(),
            }],
        };
        let (policy, problems) = read(json!({
            "pool_mode": true, "pool_mode_retry_count": 10,
            "custom_error_codes_enabled": true, "custom_error_codes": [300, 599, 429],
            "temp_unschedulable_enabled": true, "temp_unschedulable_rules": [rule],
            "base_rpm": 5,
        }));
        assert_eq!((policy, problems), (wanted, vec![]));
        // Switched off or not switched on, lists mean nothing.
        for off in [json!(false), json!(null)] {
            let (policy, problems) = read(json!({
                "custom_error_codes_enabled": off, "custom_error_codes": [429],
                "temp_unschedulable_enabled": off, "temp_unschedulable_rules": [rule],
            }));
            assert_eq!((policy, problems), (nothing(), vec![]));
        }
        let (policy, _) = read(json!({"pool_mode_retry_count": 0}));
        assert_eq!(policy.pool_mode_retry_count, 0);
        let empty =
            json!({"custom_error_codes": [], "temp_unschedulable_rules": [], "pool_mode": null});
        for options in [json!({}), empty] {
            assert_eq!(read(options), (nothing(), vec![]));
        }
    }

    #[test]
    fn options_make_soft_limits_and_habits() {
        let read = |options: Value| {
            let options = options.as_object().unwrap().clone();
            let (limits, mut problems) = soft_limits(&options);
            let (habits, more) = habits(&options);
            problems.extend(more);
            (limits, habits, problems)
        };
        let nothing = (SoftLimits::default(), Habits::default(), vec![]);
        assert_eq!(read(json!({})), nothing);
        let all = json!({
            "window_cost_limit": "50.5", "window_cost_sticky_reserve": 0, "base_rpm": 15,
            "rpm_strategy": "sticky_exempt", "rpm_sticky_buffer": 3, "max_sessions": 2,
            "session_idle_timeout_minutes": 7, "intercept_warmup_requests": true, "mixed_scheduling": true,
            "user_msg_queue_mode": "throttle",
        });
        let limits = SoftLimits {
            window_cost: Some(Money(50_500_000_000)),
            window_cost_sticky_reserve: Money::ZERO,
            base_rpm: 15,
            rpm_strategy: RpmStrategy::StickyExempt,
            rpm_sticky_buffer: Some(3),
            max_sessions: 2,
            session_idle: TimeDelta::minutes(7),
        };
        let habits = Habits {
            intercepts: true,
            mixed_scheduling: true,
            message_queue: Some(MessageQueueMode::Throttle),
        };
        assert_eq!(read(all), (limits, habits, vec![]));
        for (options, want) in [
            (json!({"window_cost_limit": 0}), "not USD above zero"),
            (json!({"window_cost_sticky_reserve": "-1"}), "not USD"),
            (
                json!({"base_rpm": -1}),
                "not a whole number from 0 to 1000000",
            ),
            (
                json!({"rpm_strategy": "x"}),
                "not one of tiered, sticky_exempt",
            ),
            (
                json!({"session_idle_timeout_minutes": 0}),
                "not a whole number from 1 to 1440",
            ),
            (
                json!({"user_msg_queue_mode": "x"}),
                "not one of off, serialize, throttle",
            ),
            (json!({"intercept_warmup_requests": 1}), "not a flag"),
        ] {
            let (limits, habits, problems) = read(options.clone());
            assert_eq!(
                (limits, habits),
                (nothing.0.clone(), nothing.1),
                "{options}"
            );
            assert!(
                problems.len() == 1 && problems[0].contains(want),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn options_make_the_quota() {
        let read = |options: Value| account_quota(options.as_object().unwrap());
        let nothing = AccountQuota::default();
        for options in [
            json!({}),
            json!({"quota_limit": null, "quota_daily_reset_mode": "rolling", "quota_daily_reset_hour": 9}),
        ] {
            assert_eq!(read(options), (nothing.clone(), vec![]));
        }
        let all = json!({
            "quota_limit": "100.5", "quota_daily_limit": 10, "quota_weekly_limit": "0.000000001",
            "quota_daily_reset_mode": "fixed", "quota_daily_reset_hour": 23,
            "quota_weekly_reset_mode": "fixed", "quota_weekly_reset_day": 6, "quota_weekly_reset_hour": 1,
            "quota_reset_timezone": "America/Los_Angeles",
        });
        let wanted = AccountQuota {
            total: Some(Money(100_500_000_000)),
            daily: Some(Money::from_usd(10)),
            weekly: Some(Money(1)),
            day: Reset::Daily { hour: 23 },
            week: Reset::Weekly {
                day: Weekday::Sat,
                hour: 1,
            },
            tz: Tz::America__Los_Angeles,
        };
        assert_eq!(read(all), (wanted, vec![]));
        let fixed = json!({"quota_daily_reset_mode": "fixed", "quota_weekly_reset_mode": "fixed"});
        let (day, week) = (
            Reset::Daily { hour: 0 },
            Reset::Weekly {
                day: Weekday::Mon,
                hour: 0,
            },
        );
        let defaults = AccountQuota {
            day,
            week,
            ..nothing.clone()
        };
        assert_eq!(read(fixed), (defaults, vec![]));
        for (options, want) in [
            (json!({"quota_limit": 0}), "quota_limit: not USD above zero"),
            (
                json!({"quota_daily_limit": "-1"}),
                "quota_daily_limit: not USD",
            ),
            (
                json!({"quota_weekly_limit": true}),
                "quota_weekly_limit: not USD",
            ),
            (
                json!({"quota_daily_reset_mode": "sliding"}),
                "quota_daily_reset_mode: not one of rolling, fixed",
            ),
            (
                json!({"quota_reset_timezone": "Mars"}),
                "quota_reset_timezone: not a time zone",
            ),
        ] {
            let (quota, problems) = read(options.clone());
            assert_eq!(quota, nothing, "{options}");
            assert_eq!(problems.len(), 1, "{options}");
            assert!(problems[0].contains(want), "{options}: {problems:?}");
        }
        for (mode, option, most) in [
            ("quota_daily_reset_mode", "quota_daily_reset_hour", 23),
            ("quota_weekly_reset_mode", "quota_weekly_reset_hour", 23),
            ("quota_weekly_reset_mode", "quota_weekly_reset_day", 6),
        ] {
            let (_, problems) = read(json!({mode: "fixed", option: most + 1}));
            let want = format!("{option}: not a whole number from 0 to {most}");
            assert_eq!(problems, [want]);
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_and_counts_as_not_given() {
        let rule = |change: Value| {
            let mut rule = json!({"error_code": 500, "keywords": ["x"], "duration_minutes": 1});
            for (key, value) in change.as_object().unwrap() {
                rule[key] = value.clone();
            }
            json!({"temp_unschedulable_enabled": true, "temp_unschedulable_rules": [rule]})
        };
        let codes =
            |list: Value| json!({"custom_error_codes_enabled": true, "custom_error_codes": list});
        for (options, want) in [
            (json!({"pool_mode": "yes"}), "pool_mode: not a flag"),
            (
                json!({"pool_mode_retry_count": 11}),
                "pool_mode_retry_count: not a whole number from 0 to 10",
            ),
            (
                json!({"pool_mode_retry_count": -1}),
                "pool_mode_retry_count: not a whole",
            ),
            (
                json!({"pool_mode_retry_count": 1.5}),
                "pool_mode_retry_count: not a whole",
            ),
            (
                codes(json!([299])),
                "custom_error_codes: not a whole number from 300 to 599",
            ),
            (codes(json!([429, 600])), "custom_error_codes: not a whole"),
            (codes(json!([])), "custom_error_codes: no status in it"),
            (codes(json!(429)), "custom_error_codes: not a list"),
            (
                rule(json!({"error_code": 299})),
                "temp_unschedulable_rules: rule 1: error_code: not a whole",
            ),
            (
                rule(json!({"duration_minutes": 0})),
                "rule 1: duration_minutes: not a whole number from 1 to 10080",
            ),
            (
                rule(json!({"duration_minutes": 10081})),
                "rule 1: duration_minutes: not a whole",
            ),
            (rule(json!({"keywords": []})), "rule 1: no keywords in it"),
            (rule(json!({"keywords": [""]})), "rule 1: an empty keyword"),
            (rule(json!({"keywords": "x"})), "rule 1: not a list"),
        ] {
            let (policy, problems) = read(options.clone());
            assert_eq!(policy, nothing(), "{options}");
            assert_eq!(problems.len(), 1, "{options}");
            assert!(problems[0].contains(want), "{options}: {problems:?}");
        }
    }
}
