//! What does it take to choose an account? The pool of the model, its candidates, their order with loads
//! given: for groups of 10 to 10,000 accounts, all alike; with model mappings; with a tenth of the accounts
//! cooling down; of subscriptions with limits; with each choice being another conversation. Besides: a bound
//! conversation, the report after an attempt, and what a change of the directory or of the conditions costs once.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use criterion::{Criterion, criterion_group, criterion_main};
use tollgate::config::SchedulingWeights;
use tollgate::domain::account::quota::AccountQuota;
use tollgate::domain::{
    Account, AccountId, AccountType, Condition, ConditionKind, Conditions, Credentials, Directory,
    GroupId, ModelMapping, Money, Multiplier, Objects, Platform, Secret,
};
use tollgate::scheduler::gates::{Readings, gate};
use tollgate::scheduler::{Gates, Need, Outcome, Request, Scheduler, Seed, sticky};
use tollgate::state::{Load, SessionRoom};
use tollgate_filters::verdict::ErrorPolicy;

const GROUP: GroupId = GroupId(1);
const MODEL: &str = "gpt-5.4-2026-03-05";
const WEIGHTS: SchedulingWeights = SchedulingWeights {
    load: 1.0,
    queue: 0.7,
    error: 0.8,
    first_token: 0.5,
};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default()
}

/// Twenty rules each, as an operator writes them for a relay.
fn mapping() -> ModelMapping {
    let rules: BTreeMap<String, String> = (0..16)
        .map(|n| (format!("gpt-4.{n}"), format!("up-4.{n}")))
        .chain(
            ["gpt-5*", "gpt-5.4*", "o3*", "codex-*"].map(|key| (key.to_owned(), "up".to_owned())),
        )
        .collect();
    ModelMapping::new(rules)
}

fn account(id: i64, model_mapping: ModelMapping) -> Account {
    Account {
        id: AccountId(id),
        name: format!("account-{id}"),
        enabled: true,
        platform: Platform::OpenAi,
        account_type: AccountType::ApiKey,
        credentials: Credentials::default(),
        groups: vec![GROUP],
        concurrency: 10,
        priority: 1,
        model_mapping,
        rate_multiplier: Multiplier(1_000_000),
        load_factor: None,
        schedulable: true,
        expires_at: None,
        proxy: None,
        error_policy: ErrorPolicy::default(),
        quota: AccountQuota::default(),
        soft_limits: Default::default(),
        habits: Default::default(),
        extra: serde_json::Map::new(),
        paused: false,
        resumed_at: None,
    }
}

fn directory(version: i64, count: i64, mapping: &ModelMapping) -> Directory {
    let accounts = (1..=count).map(|id| account(id, mapping.clone())).collect();
    Directory::new(Objects {
        version,
        accounts,
        ..Objects::default()
    })
}

/// A tenth of the accounts is limited for a minute.
fn limited(count: i64) -> Arc<Conditions> {
    let condition = Condition {
        kind: ConditionKind::RateLimited,
        model: None,
        since: now(),
        until: Some(now() + TimeDelta::minutes(1)),
        status: Some(429),
        reason: String::new(),
    };
    let of = (1..=count).filter(|id| id % 10 == 0);
    Arc::new(Conditions(
        of.map(|id| (AccountId(id), vec![condition.clone()]))
            .collect(),
    ))
}

/// Loads differ, as they do.
fn loads(ids: &[AccountId]) -> Vec<Load> {
    ids.iter()
        .map(|id| Load {
            held: (id.0 % 8) as u32,
            waiting: (id.0 % 2) as u32,
        })
        .collect()
}

fn warmed(directory: &Directory, count: i64) -> Scheduler {
    let scheduler = Scheduler::new();
    let pool = scheduler.pool(directory, GROUP, Platform::OpenAi, Need::default(), MODEL);
    for id in (1..=count).step_by(3) {
        let took = Duration::from_millis(300 + (id % 500) as u64);
        let first_token = Some(took);
        pool.report(AccountId(id), Outcome::Served { first_token }, now());
        if id % 7 == 0 {
            pool.report(AccountId(id), Outcome::Failed, now());
        }
    }
    scheduler
}

fn choosing(c: &mut Criterion) {
    for count in [10, 100, 1_000, 10_000] {
        let none = Arc::new(Conditions::default());
        for (name, mapping, conditions) in [
            ("plain", ModelMapping::default(), &none),
            ("mappings", mapping(), &none),
            ("conditions", ModelMapping::default(), &limited(count)),
        ] {
            let directory = directory(1, count, &mapping);
            let scheduler = warmed(&directory, count);
            // Given, as the live state gives them; which accounts they belong to does not matter.
            let ids: Vec<AccountId> = (1..=count).map(AccountId).collect();
            let loads = loads(&ids);
            let mut conversation = 0_u64;
            c.bench_function(&format!("choose/{name}/{count}"), |b| {
                b.iter(|| {
                    conversation += 1;
                    let key = conversation.to_le_bytes();
                    let pool = scheduler.pool(
                        &directory,
                        GROUP,
                        Platform::OpenAi,
                        Need::default(),
                        black_box(MODEL),
                    );
                    let request = Request {
                        model: MODEL,
                        excluded: &[],
                        seed: Seed::of(Some(&key), None, MODEL, GROUP, 0),
                        binds: true,
                        top_k: 7,
                        now: now(),
                        gates: Gates::default(),
                    };
                    let mut candidates = pool.candidates(conditions, request).ok()?;
                    let stage = candidates.next_stage()?;
                    let loads = &loads[..stage.members.len()];
                    let ranked = stage.rank(loads, &WEIGHTS, &request);
                    ranked
                        .first()
                        .first()
                        .map(|i| stage.members[*i as usize].id())
                });
            });
        }
    }
}

/// Accounts of subscriptions, all with limits, of which a tenth are reached.
fn at_gates(c: &mut Criterion) {
    for count in [10, 100, 1_000, 10_000] {
        let gated = |id| {
            let mut account = account(id, ModelMapping::default());
            account.platform = Platform::Anthropic;
            account.account_type = AccountType::SetupToken;
            let token = ("access_token".to_owned(), Secret::new("t"));
            account.credentials.other.extend([token]);
            account.soft_limits.base_rpm = 10;
            account.soft_limits.window_cost = Some(Money::from_usd(50));
            account
        };
        let directory = Directory::new(Objects {
            version: 1,
            accounts: (1..=count).map(gated).collect(),
            ..Objects::default()
        });
        let scheduler = Scheduler::new();
        let none = Arc::new(Conditions::default());
        let ask = |account: &Account| {
            let readings = Readings {
                cost: Money::from_usd(account.id.0 % 45),
                cost_until: now(),
                rpm: if account.id.0 % 10 == 0 { 10 } else { 3 },
                rpm_until: now(),
                room: SessionRoom::Free,
            };
            gate(&account.soft_limits, account.concurrency, &readings).keeps_out(false)
        };
        let mut conversation = 0_u64;
        c.bench_function(&format!("choose/gates/{count}"), |b| {
            b.iter(|| {
                conversation += 1;
                let key = conversation.to_le_bytes();
                let need = Need::default();
                let pool = scheduler.pool(&directory, GROUP, Platform::Anthropic, need, MODEL);
                let request = Request {
                    model: MODEL,
                    excluded: &[],
                    seed: Seed::of(Some(&key), None, MODEL, GROUP, 0),
                    binds: true,
                    top_k: 7,
                    now: now(),
                    gates: Gates::kept_by(&ask),
                };
                let stage = pool.candidates(&none, request).ok()?.next_stage()?;
                let first = stage.rank(&[], &WEIGHTS, &request).first().first().copied();
                first.map(|i| stage.members[i as usize].id())
            });
        });
    }
}

fn around(c: &mut Criterion) {
    let directories = [1, 2].map(|version| directory(version, 10_000, &mapping()));
    let scheduler = warmed(&directories[0], 10_000);
    let pool_of = |directory: &Directory| {
        scheduler.pool(directory, GROUP, Platform::OpenAi, Need::default(), MODEL)
    };
    let request = Request {
        model: MODEL,
        excluded: &[],
        seed: Seed(1),
        binds: true,
        top_k: 7,
        now: now(),
        gates: Gates::default(),
    };
    let none = Arc::new(Conditions::default());
    let pool = pool_of(&directories[0]);
    c.bench_function("sticky/10000", |b| {
        b.iter(|| {
            let candidates = pool.candidates(&none, request).ok()?;
            let sticky = sticky::sticky(&candidates, black_box(AccountId(5_000)));
            Some(matches!(sticky, sticky::Sticky::Use(_)))
        });
    });
    c.bench_function("report/10000", |b| {
        let first_token = Some(Duration::from_millis(700));
        b.iter(|| pool.report(AccountId(5_000), Outcome::Served { first_token }, now()));
    });
    let pictures = [limited(10_000), limited(10_000)];
    let mut turn = 0;
    c.bench_function("new_conditions/10000_with_1000", |b| {
        b.iter(|| {
            turn += 1;
            pool.candidates(&pictures[turn % 2], request).is_ok()
        });
    });
    let mut version = 2;
    c.bench_function("new_directory/10000_with_20_rules", |b| {
        b.iter_batched(
            || {
                version += 1;
                directory(version, 10_000, &mapping())
            },
            |directory| {
                let pool = pool_of(&directory);
                (directory, pool)
            },
            criterion::BatchSize::PerIteration,
        );
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = choosing, at_gates, around
}
criterion_main!(benches);
