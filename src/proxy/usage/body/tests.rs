use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::*;
use crate::auth::Principal;
use crate::domain::{
    ApiKeyId, GroupId, KeyHash, Multiplier, Platform, SubscriptionId, SubscriptionStatus, User,
    UserId, UserStatus,
};

fn now() -> DateTime<Utc> {
    "2026-11-25T12:00:00Z".parse().unwrap()
}

fn usd(text: &str) -> Money {
    text.parse().unwrap()
}

fn key() -> ApiKey {
    ApiKey {
        id: ApiKeyId(1),
        name: "k".into(),
        hash: KeyHash([7; 32]),
        hint: "tg-k".into(),
        user: Some(UserId(1)),
        group: Some(GroupId(1)),
        status: ApiKeyStatus::Active,
        quota: None,
        rate_limits: [None; 3],
        expires_at: None,
        ip_allow: vec![],
        ip_deny: vec![],
    }
}

fn group() -> Group {
    Group {
        id: GroupId(1),
        name: "claude-sub".into(),
        enabled: true,
        platform: Platform::OpenAi,
        rate_multiplier: Multiplier::ONE,
        subscription_type: SubscriptionType::Standard,
        daily_limit: None,
        weekly_limit: None,
        monthly_limit: None,
        rpm_limit: 0,
        options: Default::default(),
    }
}

fn subscription() -> Subscription {
    Subscription {
        id: SubscriptionId(1),
        user: UserId(1),
        group: GroupId(1),
        starts_at: now() - TimeDelta::days(1),
        expires_at: now() + TimeDelta::days(1),
        status: SubscriptionStatus::Active,
    }
}

/// Some principal.
pub(in crate::proxy::usage) fn principal() -> Principal {
    Principal {
        key: Arc::new(key()),
        user: Arc::new(User {
            id: UserId(1),
            name: "u".into(),
            status: UserStatus::Active,
            concurrency: 5,
            rpm_limit: 0,
            group_multipliers: Default::default(),
        }),
        group: Arc::new(group()),
        multiplier: Multiplier::ONE,
        subscription: None,
    }
}

fn text(
    standing: &Standing,
    key: &ApiKey,
    group: &Group,
    subscription: Option<&Subscription>,
    statistics: Option<&KeyStatistics>,
) -> String {
    let body = body(standing, key, group, subscription, statistics, now());
    String::from_utf8(body).unwrap()
}

fn window(used: &str, hours: std::ops::Range<i64>) -> WindowStanding {
    let hour = |hours| now() + TimeDelta::hours(hours);
    WindowStanding {
        used: usd(used),
        span: Some((hour(hours.start), hour(hours.end))),
    }
}

#[test]
fn amounts_are_numbers_with_their_own_digits() {
    for (balance, shown) in [
        ("0.1", "0.1"),
        ("0.000000001", "0.000000001"),
        ("-0.0000755", "-0.0000755"),
        // As a float it would end in …0.3 + 4e-17, or lose its last digits.
        ("0.3", "0.3"),
        ("1234567890.123456789", "1234567890.123456789"),
        ("10", "10"),
    ] {
        let standing = Standing {
            balance: usd(balance),
            reserved: usd("0.5"),
            ..Standing::default()
        };
        assert_eq!(
            text(&standing, &key(), &group(), None, None),
            format!(
                "{{\"mode\":\"unrestricted\",\"isValid\":true,\"planName\":\"Wallet balance\",\
                 \"remaining\":{shown},\"unit\":\"USD\",\"balance\":{shown},\"reserved\":0.5}}"
            )
        );
    }
}

#[test]
fn a_quota_and_windows() {
    let mut key = key();
    key.quota = Some(usd("5"));
    key.rate_limits = [Some(usd("1")), Some(Money::ZERO), Some(usd("2.5"))];
    key.expires_at = Some(now() + TimeDelta::hours(71));
    let standing = Standing {
        key_spent: usd("1.25"),
        key_windows: [
            window("0.3", -1..4),
            window("9", -12..12),
            window("3", -12..156),
        ],
        ..Standing::default()
    };
    let shown = text(&standing, &key, &group(), None, None);
    assert_eq!(
        serde_json::from_str::<Value>(&shown).unwrap(),
        json!({
            "mode": "quota_limited", "isValid": true, "status": "active",
            "quota": {"limit": 5, "used": 1.25, "remaining": 3.75, "unit": "USD"},
            "remaining": 3.75, "unit": "USD",
            "rate_limits": [
                {
                    "window": "5h", "limit": 1, "used": 0.3, "remaining": 0.7,
                    "window_start": "2026-11-25T11:00:00Z", "reset_at": "2026-11-25T16:00:00Z",
                },
                {
                    "window": "7d", "limit": 2.5, "used": 3, "remaining": 0,
                    "window_start": "2026-11-25T00:00:00Z", "reset_at": "2026-12-02T00:00:00Z",
                },
            ],
            "expires_at": "2026-11-28T11:00:00Z", "days_until_expiry": 2,
        }),
        "{shown}"
    );
}

#[test]
fn windows_alone_say_what_is_left_by_the_narrowest() {
    let mut key = key();
    key.rate_limits = [Some(usd("1")), None, Some(usd("2"))];
    let standing = Standing {
        key_windows: [
            WindowStanding::default(),
            window("0", -1..1),
            window("1.5", -1..1),
        ],
        ..Standing::default()
    };
    let shown: Value = serde_json::from_str(&text(&standing, &key, &group(), None, None)).unwrap();
    assert_eq!(shown["remaining"], json!(0.5));
    assert_eq!(shown.get("quota"), None);
    assert_eq!(
        shown["rate_limits"][0],
        json!({"window": "5h", "limit": 1, "used": 0, "remaining": 1}),
        "no start and no end while it does not run"
    );
}

#[test]
fn the_status_is_what_a_request_would_meet() {
    use ApiKeyStatus::{Active, Expired, QuotaExhausted};
    let hour = TimeDelta::hours(1);
    for (stored, spent, expires, shown, days) in [
        (Active, "1", hour, "active", 0),
        (Active, "5", hour, "quota_exhausted", 0),
        (Active, "5", -hour, "expired", 0),
        (Active, "1", TimeDelta::zero(), "expired", 0),
        (QuotaExhausted, "1", hour * 24, "quota_exhausted", 1),
        (Expired, "1", hour * 49, "expired", 2),
    ] {
        let mut key = key();
        key.status = stored;
        key.quota = Some(usd("5"));
        key.expires_at = Some(now() + expires);
        let standing = Standing {
            key_spent: usd(spent),
            ..Standing::default()
        };
        let body: Value =
            serde_json::from_str(&text(&standing, &key, &group(), None, None)).unwrap();
        assert_eq!(
            (
                &body["status"],
                &body["isValid"],
                &body["days_until_expiry"]
            ),
            (&json!(shown), &json!(true), &json!(days)),
            "{stored:?} {spent} {expires}"
        );
        assert_eq!(body["quota"]["remaining"] == json!(0), spent == "5");
    }
}

#[test]
fn a_subscription() {
    let mut group = group();
    group.subscription_type = SubscriptionType::Subscription;
    group.daily_limit = Some(usd("10"));
    group.weekly_limit = Some(usd("0"));
    group.monthly_limit = Some(usd("100"));
    let standing = Standing {
        balance: usd("3"),
        subscription_windows: [
            window("2.5", -1..1),
            window("20", -1..1),
            window("99", -1..1),
        ],
        ..Standing::default()
    };
    let shown = text(&standing, &key(), &group, Some(&subscription()), None);
    assert_eq!(
        serde_json::from_str::<Value>(&shown).unwrap(),
        json!({
            "mode": "unrestricted", "isValid": true, "planName": "claude-sub",
            "remaining": 1, "unit": "USD",
            "subscription": {
                "daily_usage_usd": 2.5, "weekly_usage_usd": 20, "monthly_usage_usd": 99,
                "daily_limit_usd": 10, "weekly_limit_usd": null, "monthly_limit_usd": 100,
                "expires_at": "2026-11-26T12:00:00Z",
            },
        })
    );
    // Over a limit there is nothing left, without one there is no end.
    for (daily, remaining) in [(Some("2"), json!(0)), (None, json!(-1))] {
        group.daily_limit = daily.map(usd);
        group.monthly_limit = None;
        let shown = text(&standing, &key(), &group, Some(&subscription()), None);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["remaining"], remaining, "{daily:?}");
    }
    let mut over = subscription();
    over.expires_at = now();
    let shown = text(&standing, &key(), &group, Some(&over), None);
    assert!(shown.contains("\"isValid\":false"), "{shown}");
    // Simple mode asks for no subscription.
    assert_eq!(
        text(&standing, &key(), &group, None, None),
        "{\"mode\":\"unrestricted\",\"isValid\":true,\"planName\":\"claude-sub\",\"unit\":\"USD\"}"
    );
}

#[test]
fn statistics_come_in_both_modes() {
    let sums = |n: u64| UsageSums {
        requests: n,
        input_tokens: 10 * n,
        output_tokens: 20 * n,
        cache_creation_tokens: 3 * n,
        cache_read_tokens: 4 * n,
        cost: Money(n as i64),
        charge: Money(2 * n as i64),
    };
    let statistics = KeyStatistics {
        today: sums(2),
        total: sums(100),
        average_duration_ms: 1234,
        minute: sums(1),
        models: vec![("gpt-5".to_owned(), sums(7))],
    };
    let mut limited = key();
    limited.quota = Some(usd("1"));
    for key in [key(), limited] {
        let shown = text(
            &Standing::default(),
            &key,
            &group(),
            None,
            Some(&statistics),
        );
        let tail = "\"usage\":{\"today\":{\"requests\":2,\"input_tokens\":20,\"output_tokens\":40,\
             \"cache_creation_tokens\":6,\"cache_read_tokens\":8,\"total_tokens\":74,\
             \"cost\":0.000000002,\"actual_cost\":0.000000004},\
             \"total\":{\"requests\":100,\"input_tokens\":1000,\"output_tokens\":2000,\
             \"cache_creation_tokens\":300,\"cache_read_tokens\":400,\"total_tokens\":3700,\
             \"cost\":0.0000001,\"actual_cost\":0.0000002},\
             \"average_duration_ms\":1234,\"rpm\":1,\"tpm\":37},\
             \"model_stats\":[{\"model\":\"gpt-5\",\"requests\":7,\"input_tokens\":70,\
             \"output_tokens\":140,\"cache_creation_tokens\":21,\"cache_read_tokens\":28,\
             \"total_tokens\":259,\"cost\":0.000000007,\"actual_cost\":0.000000014}]}";
        assert!(shown.ends_with(tail), "{shown}");
    }
}
