//! The store against real SQLite files.

mod applying;
mod aside;
mod keeping;
mod ledger;
mod opening;
mod operating;
mod paying;
mod reading;
mod reporting;
mod settling;
mod windows;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sea_orm::ConnectionTrait;
use tempfile::TempDir;
use tollgate_filters::passthrough::{MatchMode, Rule};
use tollgate_filters::usage::TokenUsage;

use super::{ApplyOptions, ApplyReport, Posting, Store};
use crate::config::resources::{
    AccountResource, ApiKeyResource, GroupResource, Resources, UserResource,
};
use crate::domain::price::{ModelPrice, Price};
use crate::domain::{
    AccountId, AccountType, ApiKeyId, BillingType, Credentials, GroupId, ModelMapping, Money,
    Multiplier, Outcome, Platform, PricingMode, Secret, SubscriptionType, UsageRecord, UsageSource,
    UserId,
};

fn secret() -> Secret {
    Secret::new("a secret for tests")
}

async fn open(dir: &TempDir) -> Store {
    Store::open(dir.path(), &secret()).await.unwrap()
}

/// A store in a directory of its own, holding [`resources`].
async fn filled() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    apply(&store, &resources()).await;
    (dir, store)
}

async fn apply(store: &Store, resources: &Resources) -> ApplyReport {
    store
        .apply(resources, ApplyOptions::default())
        .await
        .unwrap()
}

fn group(name: &str) -> GroupResource {
    GroupResource {
        name: name.to_owned(),
        enabled: true,
        platform: Platform::OpenAi,
        rate_multiplier: None,
        subscription_type: SubscriptionType::Standard,
        daily_limit: None,
        weekly_limit: None,
        monthly_limit: None,
        rpm_limit: 0,
        options: serde_json::Map::new(),
    }
}

fn account(name: &str, groups: &[&str]) -> AccountResource {
    AccountResource {
        name: name.to_owned(),
        enabled: true,
        platform: Platform::OpenAi,
        account_type: AccountType::ApiKey,
        credentials: Credentials {
            api_key: Secret::new(format!("sk-{name}")),
            base_url: Some("https://api.example.com/v1".to_owned()),
            other: [("project".to_owned(), Secret::new("p-1"))].into(),
        },
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        concurrency: 10,
        priority: 50,
        model_mapping: ModelMapping::new([("gpt-*".to_owned(), "gpt-5".to_owned())].into()),
        rate_multiplier: Multiplier::ONE,
        load_factor: Some(3),
        schedulable: true,
        expires_at: Some(at(5_000)),
        proxy: Some(Secret::new("socks5://u:p@proxy:1080")),
        extra: serde_json::json!({"pool_mode": true})
            .as_object()
            .unwrap()
            .clone(),
    }
}

fn user(name: &str, balance: &str) -> UserResource {
    UserResource {
        name: name.to_owned(),
        enabled: true,
        balance: Some(balance.parse().unwrap()),
        concurrency: 5,
        rpm_limit: 60,
        group_multipliers: [("main".to_owned(), Multiplier(500_000))].into(),
    }
}

fn key(name: &str, text: Option<&str>, user: &str) -> ApiKeyResource {
    ApiKeyResource {
        name: name.to_owned(),
        enabled: true,
        key: text.map(Secret::new),
        user: user.to_owned(),
        group: Some("main".to_owned()),
        quota: Some(Money::from_usd(7)),
        rate_limits: [Some(Money(1)), None, Some(Money(3))],
        expires_at: Some(at(9_000)),
        ip_allow: vec!["10.0.0.0/8".to_owned()],
        ip_deny: vec!["10.1.1.1".to_owned()],
    }
}

fn rule(name: &str, priority: i32) -> Rule {
    Rule {
        name: name.to_owned(),
        enabled: true,
        priority,
        error_codes: vec![529, 503],
        keywords: vec!["Overloaded".to_owned()],
        match_mode: MatchMode::All,
        platforms: vec!["openai".to_owned()],
        passthrough_code: false,
        response_code: Some(503),
        passthrough_body: false,
        custom_message: Some("Busy, please retry".to_owned()),
        skip_monitoring: true,
        description: "for the operator".to_owned(),
    }
}

/// One of everything.
fn resources() -> Resources {
    let mut main = group("main");
    main.rate_multiplier = Some(Multiplier(1_500_000));
    main.daily_limit = Some(Money(5));
    main.rpm_limit = 9;
    main.options = serde_json::json!({"claude_code_only": false, "fallback_group": "spare"})
        .as_object()
        .unwrap()
        .clone();
    let price = ModelPrice {
        input: Some(Price(1_250_000_000)),
        output_image_token: Some(Price(7)),
        ..ModelPrice::default()
    };
    Resources {
        groups: vec![main, group("spare")],
        accounts: vec![account("one", &["main", "spare"])],
        users: vec![user("alice", "10"), user("bob", "0")],
        api_keys: vec![
            key("alice-laptop", Some("tg-alice-0123456789abcdef"), "alice"),
            key("bob-laptop", Some("tg-bob-0123456789abcdef"), "bob"),
        ],
        error_passthrough_rules: vec![rule("busy", 5)],
        prices: [("gpt-5".to_owned(), price)].into(),
        ..Resources::default()
    }
}

/// A moment `seconds` after a fixed one.
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_790_000_000_123 + seconds * 1000).unwrap()
}

/// A record of alice's (the first user's) with every optional field filled in and no two counts
/// the same, so that a column in the wrong place shows.
pub(super) fn record(request_id: &str, charge: &str) -> UsageRecord {
    let some = |text: &str| Some(text.to_owned());
    UsageRecord {
        request_id: request_id.to_owned(),
        client_request_id: some("client-1"),
        upstream_request_id: some("upstream-1"),
        created_at: at(0),
        user_id: UserId(1),
        user: "alice".to_owned(),
        api_key_id: ApiKeyId(1),
        api_key: "alice-laptop".to_owned(),
        group_id: GroupId(1),
        group: "main".to_owned(),
        fallback_from_group: some("spare"),
        account_id: AccountId(1),
        account: "one".to_owned(),
        platform: Platform::OpenAi,
        endpoint: "/v1/responses".to_owned(),
        upstream_endpoint: "/responses".to_owned(),
        requested_model: "gpt-4o".to_owned(),
        model: "gpt-5".to_owned(),
        upstream_model: "gpt-5-2026".to_owned(),
        model_mapping_chain: some("gpt-4o→gpt-5"),
        stream: true,
        status: 200,
        outcome: Outcome::Ok,
        tokens: TokenUsage {
            input: 11,
            output: 12,
            cache_creation: 13,
            cache_creation_5m: 14,
            cache_creation_1h: 15,
            cache_read: 16,
            image_output: 17,
        },
        image_count: 18,
        cost: "0.25".parse().unwrap(),
        charge: charge.parse().unwrap(),
        rate_multiplier: Multiplier(500_000),
        account_rate_multiplier: Multiplier::ONE,
        billing_type: BillingType::Balance,
        billing_mode: PricingMode::Token,
        channel: None,
        billing_tier: None,
        priced: true,
        service_tier: some("priority"),
        reasoning_effort: some("high"),
        attempts: 3,
        account_switches: 2,
        trail: vec![],
        duration_ms: 1234,
        first_token_ms: Some(321),
        usage_source: UsageSource::Reported,
        client_disconnected: false,
        ip: some("10.0.0.7"),
        user_agent: some("openai-python"),
    }
}

/// The same, of bob's.
fn bobs(request_id: &str, charge: &str) -> UsageRecord {
    UsageRecord {
        user_id: UserId(2),
        user: "bob".to_owned(),
        api_key_id: ApiKeyId(2),
        api_key: "bob-laptop".to_owned(),
        ..record(request_id, charge)
    }
}

/// Makes every settlement of a charge fail at its end, or no more.
async fn fail_settlements(store: &Store, fail: bool) {
    let sql = if fail {
        "CREATE TRIGGER fail BEFORE INSERT ON usage_by_key BEGIN SELECT RAISE(ABORT, 'on purpose'); END"
    } else {
        "DROP TRIGGER fail"
    };
    let writer = &store.inner.pools.writer;
    writer.execute_unprepared(sql).await.unwrap();
}
