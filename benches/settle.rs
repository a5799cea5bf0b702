//! How fast do finished requests become records, ledger entries and balances?
//!
//! Every iteration settles one batch of new records into a database on disk, with everything that
//! goes with it: `cargo bench --bench settle`. `SETTLE_ROWS=1000000` fills the table first.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, TimeDelta};
use chrono_tz::Tz;
use criterion::{BenchmarkId, Criterion, Throughput};
use tollgate::config::resources::{ApiKeyResource, Resources, UserResource};
use tollgate::domain::{
    AccountId, ApiKeyId, BillingType, GroupId, Money, Multiplier, Outcome, Platform, PricingMode,
    Secret, UsageRecord, UsageSource, UserId,
};
use tollgate::storage::{ApplyOptions, Store};
use tollgate_filters::usage::TokenUsage;

/// Users of the gateway in this measurement.
const USERS: u64 = 100;

/// The `number`-th request, as a gateway with some users, models and accounts would see it.
fn record(number: u64) -> UsageRecord {
    let user = number * 7 % USERS;
    let model = ["gpt-5", "gpt-5-mini", "o3"][usize::try_from(number % 3).unwrap_or(0)];
    let at = DateTime::from_timestamp_millis(1_790_000_000_000).unwrap_or_default();
    UsageRecord {
        request_id: format!("req_8f3a61c09be24d57{number:08x}"),
        client_request_id: None,
        upstream_request_id: Some(format!(
            "req_{:032x}",
            number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        )),
        created_at: at + TimeDelta::microseconds(i64::try_from(number * 100).unwrap_or(0)),
        user_id: UserId(1 + user.cast_signed()),
        user: format!("user-{user}"),
        api_key_id: ApiKeyId(1 + user.cast_signed()),
        api_key: format!("key-{user}"),
        group_id: GroupId(1),
        group: "main".to_owned(),
        fallback_from_group: None,
        account_id: AccountId(1 + (number % 5).cast_signed()),
        account: format!("account-{}", number % 5),
        platform: Platform::OpenAi,
        endpoint: "/v1/responses".to_owned(),
        upstream_endpoint: "/v1/responses".to_owned(),
        requested_model: model.to_owned(),
        model: model.to_owned(),
        upstream_model: model.to_owned(),
        model_mapping_chain: None,
        stream: number.is_multiple_of(2),
        status: 200,
        outcome: Outcome::Ok,
        tokens: TokenUsage {
            input: 900 + number % 800,
            output: 300 + number % 500,
            cache_read: number % 400,
            ..TokenUsage::default()
        },
        image_count: 0,
        cost: Money(1_000_000),
        charge: Money(1_000_000),
        rate_multiplier: Multiplier::ONE,
        account_rate_multiplier: Multiplier::ONE,
        billing_type: BillingType::Balance,
        billing_mode: PricingMode::Token,
        channel: None,
        billing_tier: None,
        priced: true,
        service_tier: None,
        reasoning_effort: Some("medium".to_owned()),
        attempts: 1,
        account_switches: 0,
        trail: Vec::new(),
        duration_ms: 900 + number % 9000,
        first_token_ms: Some(300 + number % 1000),
        usage_source: UsageSource::Reported,
        client_disconnected: false,
        ip: Some("192.0.2.7".to_owned()),
        user_agent: Some("OpenAI/Python 2.8.1".to_owned()),
    }
}

fn resources() -> Resources {
    Resources {
        users: (0..USERS)
            .map(|n| UserResource {
                name: format!("user-{n}"),
                enabled: true,
                balance: Some(Money::from_usd(1_000_000)),
                concurrency: 0,
                rpm_limit: 0,
                group_multipliers: Default::default(),
            })
            .collect(),
        api_keys: (0..USERS)
            .map(|n| ApiKeyResource {
                name: format!("key-{n}"),
                enabled: true,
                key: None,
                user: format!("user-{n}"),
                group: None,
                quota: None,
                rate_limits: [None; 3],
                expires_at: None,
                ip_allow: Vec::new(),
                ip_deny: Vec::new(),
            })
            .collect(),
        ..Resources::default()
    }
}

fn batch(next: &AtomicU64, size: u64) -> Vec<UsageRecord> {
    let first = next.fetch_add(size, Ordering::Relaxed);
    (first..first + size).map(record).collect()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let store = runtime.block_on(async {
        let store = Store::open(dir.path(), &Secret::new("the secret of a measurement")).await?;
        store.apply(&resources(), ApplyOptions::default()).await?;
        Ok::<_, tollgate::storage::StorageError>(store)
    });
    let store = store.expect("a store");
    let next = Arc::new(AtomicU64::new(0));
    let rows: u64 = std::env::var("SETTLE_ROWS")
        .ok()
        .and_then(|rows| rows.parse().ok())
        .unwrap_or(0);
    for _ in 0..rows / 2000 {
        let records = batch(&next, 2000);
        runtime
            .block_on(store.settle(&records, None, Tz::UTC))
            .expect("settled");
    }
    let mut group = criterion.benchmark_group("settle");
    group.sample_size(20);
    for size in [1, 20, 200, 2000] {
        group.throughput(Throughput::Elements(size));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_batched(
                || batch(&next, size),
                |records| {
                    black_box(
                        runtime
                            .block_on(store.settle(&records, None, Tz::UTC))
                            .expect("settled"),
                    )
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    criterion.final_summary();
}
