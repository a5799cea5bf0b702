//! Pools, candidates and bound conversations over whole directories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use tollgate_filters::verdict::ErrorPolicy;

use super::sticky::sticky;
use super::*;
use crate::config::SchedulingWeights;
use crate::domain::account::quota::AccountQuota;
use crate::domain::{
    Account, AccountId, AccountType, Condition, ConditionKind, Conditions, Credentials, Group,
    Habits, ModelMapping, Multiplier, Objects, Secret, SubscriptionType,
};
use crate::state::Load;

const GROUP: GroupId = GroupId(1);
const MODEL: &str = "gpt-5";
const WEIGHTS: SchedulingWeights = SchedulingWeights {
    load: 1.0,
    queue: 0.7,
    error: 0.8,
    first_token: 0.5,
};

/// What stands against accounts.
type List = Vec<(i64, Condition)>;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn account(id: i64) -> Account {
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
        model_mapping: ModelMapping::default(),
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

fn mapped(id: i64, keys: &[&str]) -> Account {
    let rules: BTreeMap<_, _> = keys
        .iter()
        .map(|k| (k.to_string(), "up".to_string()))
        .collect();
    Account {
        model_mapping: ModelMapping::new(rules),
        ..account(id)
    }
}

fn directory(version: i64, accounts: Vec<Account>) -> Directory {
    Directory::new(Objects {
        version,
        accounts,
        ..Objects::default()
    })
}

fn pool_of(accounts: Vec<Account>) -> Pool {
    pool(&Scheduler::new(), &directory(1, accounts), MODEL)
}

fn pool(scheduler: &Scheduler, directory: &Directory, model: &str) -> Pool {
    scheduler.pool(directory, GROUP, Platform::OpenAi, Need::default(), model)
}

fn request(excluded: &[AccountId], second: i64) -> Request<'_> {
    Request {
        model: MODEL,
        excluded,
        seed: Seed(1),
        binds: false,
        top_k: 7,
        now: at(second),
        gates: Gates::default(),
    }
}

fn condition(kind: ConditionKind, since: i64, until: Option<i64>) -> Condition {
    Condition {
        kind,
        model: None,
        since: at(since),
        until: until.map(at),
        status: None,
        reason: String::new(),
    }
}

fn conditions(list: &[(i64, Condition)]) -> Arc<Conditions> {
    let mut conditions = Conditions::default();
    for (id, condition) in list {
        let of = conditions.0.entry(AccountId(*id)).or_default();
        of.push(condition.clone());
    }
    Arc::new(conditions)
}

/// Ids, stage by stage.
fn stages(
    pool: &Pool,
    conditions: &Arc<Conditions>,
    request: Request<'_>,
) -> Result<Vec<Vec<i64>>, NoAccount> {
    let mut candidates = pool.candidates(conditions, request)?;
    let next = || {
        candidates
            .next_stage()
            .map(|s| s.ids().iter().map(|id| id.0).collect())
    };
    Ok(std::iter::from_fn(next).collect())
}

#[test]
fn reasons_not_to_be_chosen() {
    use ConditionKind::*;
    let plain = || account(1);
    let with = |kind, until| vec![(1, condition(kind, -10, until))];
    let of_model = |model: &str| {
        let model = Some(model.to_owned());
        vec![(
            1,
            Condition {
                model,
                ..condition(RateLimited, -10, Some(5))
            },
        )]
    };
    let out = |until: Option<i64>, limited| {
        Fit::No(Unfit::Out {
            until: until.map(at),
            limited,
        })
    };
    let resumed = |second| Account {
        resumed_at: Some(at(second)),
        ..plain()
    };
    let expires = |second| Account {
        expires_at: Some(at(second)),
        ..plain()
    };
    let unknown = Fit::No(Unfit::Unknown);
    let mismatch = Fit::No(Unfit::Mismatch);
    let mut elsewhere = plain();
    elsewhere.groups = vec![GroupId(2)];
    #[rustfmt::skip]
    let rows: Vec<(&str, Account, List, Vec<i64>, Fit)> = vec![
        ("as it should be", plain(), vec![], vec![], Fit::Yes),
        ("another one is excluded", plain(), vec![], vec![2], Fit::Yes),
        ("excluded", plain(), vec![], vec![2, 1], Fit::No(Unfit::Excluded)),
        ("in another group", elsewhere, vec![], vec![], unknown),
        ("disabled", Account { enabled: false, ..plain() }, vec![], vec![], unknown),
        ("not schedulable", Account { schedulable: false, ..plain() }, vec![], vec![], unknown),
        ("paused", Account { paused: true, ..plain() }, vec![], vec![], unknown),
        ("of another platform", Account { platform: Platform::Anthropic, ..plain() }, vec![], vec![], unknown),
        ("of a kind that is not served", Account { account_type: AccountType::Oauth, ..plain() }, vec![], vec![], mismatch),
        ("expired a second ago", expires(-1), vec![], vec![], Fit::No(Unfit::Expired)),
        ("expires now", expires(0), vec![], vec![], Fit::No(Unfit::Expired)),
        ("expires in a second", expires(1), vec![], vec![], Fit::Yes),
        ("expired and excluded", expires(0), vec![], vec![1], Fit::No(Unfit::Expired)),
        ("model by its name", mapped(1, &["gpt-5"]), vec![], vec![], Fit::Yes),
        ("model by a prefix", mapped(1, &["gpt-*"]), vec![], vec![], Fit::Yes),
        ("model by the whole prefix", mapped(1, &["gpt-5*"]), vec![], vec![], Fit::Yes),
        ("model by any", mapped(1, &["*"]), vec![], vec![], Fit::Yes),
        ("longer name", mapped(1, &["gpt-5-mini"]), vec![], vec![], mismatch),
        ("longer prefix", mapped(1, &["gpt-5-*"]), vec![], vec![], mismatch),
        ("shorter name", mapped(1, &["gpt-"]), vec![], vec![], mismatch),
        ("limited", plain(), with(RateLimited, Some(1)), vec![], out(Some(1), true)),
        ("limited until now", plain(), with(RateLimited, Some(0)), vec![], Fit::Yes),
        ("limited and excluded", plain(), with(RateLimited, Some(1)), vec![1], out(Some(1), true)),
        ("overloaded", plain(), with(Overloaded, Some(1)), vec![], out(Some(1), false)),
        ("overloaded until now", plain(), with(Overloaded, Some(0)), vec![], Fit::Yes),
        ("out for a while", plain(), with(TempUnschedulable, Some(1)), vec![], out(Some(1), false)),
        ("out until now", plain(), with(TempUnschedulable, Some(0)), vec![], Fit::Yes),
        ("error", plain(), with(Error, None), vec![], out(None, false)),
        ("quota used up", plain(), with(QuotaExhausted, Some(1)), vec![], out(Some(1), false)),
        ("quota used up until now", plain(), with(QuotaExhausted, Some(0)), vec![], Fit::Yes),
        ("quota used up for good", plain(), with(QuotaExhausted, None), vec![], out(None, false)),
        ("failing", plain(), with(Failing, Some(1)), vec![], Fit::LastResort),
        ("failing until now", plain(), with(Failing, Some(0)), vec![], Fit::Yes),
        ("failing and excluded", plain(), with(Failing, Some(1)), vec![1], Fit::No(Unfit::Excluded)),
        ("limited for this model", plain(), of_model(MODEL), vec![], out(Some(5), true)),
        ("limited for another", plain(), of_model("gpt-5-mini"), vec![], Fit::Yes),
        ("limited for a prefix of it", plain(), of_model("gpt"), vec![], Fit::Yes),
        ("resumed since", resumed(-9), with(Error, None), vec![], Fit::Yes),
        ("resumed in that moment", resumed(-10), with(Error, None), vec![], out(None, false)),
        ("resumed before", resumed(-11), with(RateLimited, Some(1)), vec![], out(Some(1), true)),
        ("the longer of two", plain(), [with(RateLimited, Some(9)), with(Overloaded, Some(10))].concat(), vec![], out(Some(10), false)),
        ("the longer of two, other way", plain(), [with(Overloaded, Some(9)), with(RateLimited, Some(10))].concat(), vec![], out(Some(10), true)),
        ("the shorter has ended", plain(), [with(RateLimited, Some(0)), with(Overloaded, Some(2))].concat(), vec![], out(Some(2), false)),
        ("one without an end", plain(), [with(Error, None), with(RateLimited, Some(10))].concat(), vec![], out(None, false)),
        ("model and all", plain(), [of_model(MODEL), with(Overloaded, Some(9))].concat(), vec![], out(Some(9), false)),
        ("model longer than all", plain(), [of_model(MODEL), with(Overloaded, Some(4))].concat(), vec![], out(Some(5), true)),
        ("failing and out", plain(), [with(Failing, Some(9)), with(Overloaded, Some(2))].concat(), vec![], out(Some(2), false)),
        ("failing for longer than out", plain(), [with(Failing, Some(9)), with(Overloaded, Some(0))].concat(), vec![], Fit::LastResort),
    ];
    for (what, account, list, excluded, expected) in rows {
        let excluded: Vec<AccountId> = excluded.into_iter().map(AccountId).collect();
        let pool = pool_of(vec![account]);
        let held = conditions(&list);
        let request = request(&excluded, 0);
        assert_eq!(pool.fit(AccountId(1), &held, request), expected, "{what}");
        // What is said about one is what is done among many.
        let among = match (stages(&pool, &held, request), expected) {
            (Ok(stages), Fit::Yes | Fit::LastResort) => stages == [[1]],
            (Err(NoAccount::NoneEligible), Fit::No(Unfit::Out { until, .. })) => {
                until.is_none() || excluded.len() == 1
            }
            (Err(NoAccount::AllCoolingDown { until, limited }), Fit::No(unfit)) => {
                unfit
                    == Unfit::Out {
                        until: Some(until),
                        limited,
                    }
            }
            (Err(NoAccount::NoneEligible), Fit::No(_)) => true,
            _ => false,
        };
        assert!(among, "{what}: {:?}", stages(&pool, &held, request));
    }
}

#[test]
fn capabilities() {
    use super::need::serves;
    let transports = [Transport::HttpSse, Transport::WebSocket];
    let images = [Image::Any, Image::Basic, Image::Native];
    let mut socket = account(1);
    let option = "openai_apikey_responses_websockets_v2_enabled";
    socket.extra.insert(option.to_owned(), true.into());
    let oauth = Account {
        account_type: AccountType::Oauth,
        ..account(1)
    };
    let mut seen = std::collections::HashSet::new();
    for transport in transports {
        for image in images {
            let need = Need {
                transport,
                image,
                counts: false,
            };
            for counts in [false, true] {
                let need = Need { counts, ..need };
                assert!(seen.insert(need.index()) && need.index() < Need::COUNT);
            }
            assert_eq!(
                serves(&account(1), need),
                transport == Transport::HttpSse,
                "{need:?}"
            );
            assert!(serves(&socket, need), "{need:?}");
            assert!(!serves(&oauth, need), "{need:?}");
        }
    }
    // A pool is of one need.
    let scheduler = Scheduler::new();
    let directory = directory(
        1,
        vec![
            account(1),
            Account {
                id: AccountId(2),
                ..socket
            },
        ],
    );
    let need = Need {
        transport: Transport::WebSocket,
        ..Need::default()
    };
    let sockets = scheduler.pool(&directory, GROUP, Platform::OpenAi, need, MODEL);
    assert_eq!(
        (sockets.len(), pool(&scheduler, &directory, MODEL).len()),
        (1, 2)
    );
}

#[test]
fn which_kinds_of_account_serve_and_which_count_tokens() {
    use super::need::serves;
    use AccountType::{ApiKey, Oauth, SetupToken, Upstream};
    let secrets = |key: &str, token: &str| Credentials {
        api_key: Secret::new(key),
        base_url: None,
        other: [("access_token".to_owned(), Secret::new(token))].into(),
    };
    let (none, both) = (secrets("", ""), secrets("k", "t"));
    for (platform, kind, credentials, answers, counts) in [
        (Platform::OpenAi, ApiKey, &both, true, true),
        (Platform::OpenAi, Oauth, &both, false, false),
        (Platform::Anthropic, ApiKey, &both, true, true),
        (Platform::Anthropic, ApiKey, &none, false, false),
        (Platform::Anthropic, Oauth, &both, true, true),
        (Platform::Anthropic, Oauth, &none, false, false),
        (Platform::Anthropic, SetupToken, &both, true, true),
        (Platform::Anthropic, Upstream, &both, false, false),
        (Platform::Antigravity, Upstream, &both, true, false),
        (Platform::Antigravity, Upstream, &none, false, false),
        (Platform::Antigravity, Oauth, &both, false, false),
        (Platform::Antigravity, ApiKey, &both, false, false),
        (Platform::Gemini, ApiKey, &both, false, false),
    ] {
        let account = Account {
            platform,
            account_type: kind,
            credentials: credentials.clone(),
            ..account(1)
        };
        let serves = |counts| {
            let need = Need {
                counts,
                ..Need::default()
            };
            serves(&account, need)
        };
        let got = (serves(false), serves(true));
        assert_eq!(got, (answers, counts), "{platform} {kind:?}");
    }
}

/// A group of Anthropic's platform with this routing and these accounts (keys of Anthropic's, named by their ids).
fn routed(routing: &serde_json::Value, accounts: Vec<Account>) -> Directory {
    let options = serde_json::json!({ "model_routing": routing });
    let group = Group {
        id: GROUP,
        name: "g".to_owned(),
        enabled: true,
        platform: Platform::Anthropic,
        rate_multiplier: Multiplier(1_000_000),
        subscription_type: SubscriptionType::Standard,
        daily_limit: None,
        weekly_limit: None,
        monthly_limit: None,
        rpm_limit: 0,
        options: options.as_object().unwrap().clone(),
    };
    let of_anthropic = |account: Account| Account {
        name: account.id.0.to_string(),
        platform: Platform::Anthropic,
        credentials: Credentials {
            api_key: Secret::new("k"),
            ..Credentials::default()
        },
        ..account
    };
    Directory::new(Objects {
        version: 1,
        groups: vec![group],
        accounts: accounts.into_iter().map(of_anthropic).collect(),
        ..Objects::default()
    })
}

/// A pattern, and who is asked first by it.
type Route = (&'static str, &'static [i64]);

#[test]
fn each_model_has_the_accounts_that_its_route_names() {
    let accounts = vec![
        account(1),
        account(2),
        mapped(3, &["opus*"]),
        mapped(4, &["opus-5", "haiku"]),
        Account {
            paused: true,
            ..account(5)
        },
    ];
    let routing = serde_json::json!({
        "opus*": ["3", "2", "gone"], "opus-5": ["1", "4"], "opus-5-1*": ["5"], "haiku*": ["3"],
        "haiku": ["4", "1"], "none": [], "sonnet": ["1", "2", "3", "4", "5"],
    });
    let directory = routed(&routing, accounts);
    let scheduler = Scheduler::new();
    let pool =
        |platform, model: &str| scheduler.pool(&directory, GROUP, platform, Need::default(), model);
    let ids = |pool: &Pool, model: &str| {
        let request = Request {
            model,
            ..request(&[], 0)
        };
        stages(pool, &conditions(&[]), request).unwrap().concat()
    };
    #[rustfmt::skip]
    let rows: [(&str, &[i64], Option<Route>); 9] = [
        ("opus", &[1, 2, 3], Some(("opus*", &[2, 3]))),
        ("opus-4", &[1, 2, 3], Some(("opus*", &[2, 3]))),
        ("opus-5", &[1, 2, 3, 4], Some(("opus-5", &[1, 4]))),
        // Nobody that may be chosen is named by the longest beginning, or takes the model.
        ("opus-5-1", &[1, 2, 3], None),
        ("haiku-4", &[1, 2], None),
        ("haiku", &[1, 2, 4], Some(("haiku", &[1, 4]))),
        ("none", &[1, 2], None),
        ("sonnet", &[1, 2], Some(("sonnet", &[1, 2]))),
        ("sonnet-5", &[1, 2], None),
    ];
    for (model, everybody, first) in rows.iter().chain(rows.iter().rev()) {
        let all = pool(Platform::Anthropic, model);
        assert_eq!(ids(&all, model), *everybody, "{model}");
        let got = all
            .routed()
            .map(|(first, pattern)| (pattern.to_owned(), ids(&first, model)));
        let expected = first.map(|(pattern, first)| (pattern.to_owned(), first.to_vec()));
        assert_eq!(got, expected, "{model}");
    }
    // One that is not named is a mismatch there, whatever it takes.
    let (first, _) = pool(Platform::Anthropic, "opus-5").routed().unwrap();
    let request = Request {
        model: "opus-5",
        ..request(&[], 0)
    };
    let fit = |id| first.fit(AccountId(id), &conditions(&[]), request);
    assert_eq!(
        [1, 2, 4, 9].map(fit),
        [
            Fit::Yes,
            Fit::No(Unfit::Mismatch),
            Fit::Yes,
            Fit::No(Unfit::Unknown)
        ]
    );
    assert!(first.routed().is_none());
    // Only groups of Anthropic's route.
    assert!(pool(Platform::OpenAi, "opus-5").routed().is_none());
}

#[test]
fn relays_of_antigravity_serve_the_groups_that_they_are_told_to() {
    let relay = |id, platform, mixed_scheduling| Account {
        platform,
        account_type: AccountType::Upstream,
        credentials: Credentials {
            api_key: Secret::new("k"),
            ..Credentials::default()
        },
        habits: Habits {
            mixed_scheduling,
            ..Habits::default()
        },
        ..account(id)
    };
    let accounts = vec![
        relay(1, Platform::Antigravity, true),
        relay(2, Platform::Antigravity, false),
        // The option is Antigravity's.
        relay(3, Platform::Anthropic, true),
        relay(4, Platform::OpenAi, true),
    ];
    let directory = directory(1, accounts);
    let scheduler = Scheduler::new();
    let members = |platform| {
        let pool = scheduler.pool(&directory, GROUP, platform, Need::default(), MODEL);
        let is_member = |id: &i64| pool.member(AccountId(*id)).is_some();
        (1..=4).filter(is_member).collect::<Vec<i64>>()
    };
    for (platform, expected) in [
        (Platform::Anthropic, &[1, 3][..]),
        (Platform::Gemini, &[1]),
        (Platform::Antigravity, &[1, 2]),
        (Platform::OpenAi, &[4]),
    ] {
        assert_eq!(members(platform), expected, "{platform}");
    }
}

#[test]
fn each_model_has_its_pool() {
    let accounts = vec![
        account(1),
        mapped(2, &["gpt-5", "o3*"]),
        mapped(3, &["gpt-*", "gpt-5*"]),
        mapped(4, &["gpt-5-mini", "o3-pro"]),
        mapped(5, &["*"]),
    ];
    let scheduler = Scheduler::new();
    let directory = directory(1, accounts);
    #[rustfmt::skip]
    let rows: [(&str, &[i64]); 9] = [
        ("gpt-5", &[1, 2, 3, 5]),
        ("gpt-5-mini", &[1, 3, 4, 5]),
        ("gpt-5-nano", &[1, 3, 5]),
        ("gpt-4o", &[1, 3, 5]),
        ("o3", &[1, 2, 5]),
        ("o3-pro", &[1, 2, 4, 5]),
        ("o3-mini", &[1, 2, 5]),
        ("claude", &[1, 5]),
        ("", &[1, 5]),
    ];
    // Twice: made, then remembered; a model never spoils the class of another.
    for (model, expected) in rows.iter().chain(rows.iter().rev()) {
        let pool = pool(&scheduler, &directory, model);
        let stages = stages(
            &pool,
            &conditions(&[]),
            Request {
                model,
                ..request(&[], 0)
            },
        );
        assert_eq!(stages.unwrap(), [expected.to_vec()], "{model}");
    }
}

#[test]
fn a_new_directory_has_new_pools_and_an_old_one_does_not_come_back() {
    let scheduler = Scheduler::new();
    let (old, new) = (
        directory(1, vec![account(1), account(2)]),
        directory(2, vec![account(2)]),
    );
    assert_eq!(pool(&scheduler, &old, MODEL).len(), 2);
    assert_eq!(pool(&scheduler, &new, MODEL).len(), 1);
    assert_eq!(scheduler.health().tracked(), 1);
    assert_eq!(pool(&scheduler, &old, MODEL).len(), 2);
    assert_eq!(scheduler.rosters.load().version, 2);
    assert!(pool(&scheduler, &directory(3, Vec::new()), MODEL).is_empty());
    assert_eq!(scheduler.health().tracked(), 0);
}

#[test]
fn tiers_come_one_after_the_other() {
    let tier = |id, priority| Account {
        priority,
        ..account(id)
    };
    let accounts = || vec![tier(1, 5), tier(2, -1), tier(3, 5), tier(4, -1), tier(5, 9)];
    let pool = pool_of(accounts());
    let failing = |id| (id, condition(ConditionKind::Failing, 0, Some(9)));
    let limited = |id, until| (id, condition(ConditionKind::RateLimited, 0, Some(until)));
    let overloaded = |id, until| (id, condition(ConditionKind::Overloaded, 0, Some(until)));
    #[rustfmt::skip]
    let rows: Vec<(List, &[&[i64]])> = vec![
        (vec![], &[&[2, 4], &[1, 3], &[5]]),
        (vec![limited(2, 9)], &[&[4], &[1, 3], &[5]]),
        (vec![limited(2, 9), limited(4, 9)], &[&[1, 3], &[5]]),
        // Behind the others: of every tier.
        (vec![failing(2)], &[&[4], &[1, 3], &[5]]),
        (vec![failing(2), failing(4)], &[&[1, 3], &[5]]),
        (vec![failing(2), failing(4), failing(1), failing(3)], &[&[5]]),
        (vec![failing(1), failing(2), failing(3), failing(4), failing(5)], &[&[2, 4], &[1, 3], &[5]]),
        (vec![failing(1), limited(2, 9), failing(3), limited(4, 9), failing(5)], &[&[1, 3], &[5]]),
    ];
    for (list, expected) in rows {
        let got = stages(&pool, &conditions(&list), request(&[], 0)).unwrap();
        assert_eq!(got, expected, "{list:?}");
        let held = conditions(&list);
        let candidates = pool.candidates(&held, request(&[], 0)).unwrap();
        let everyone: Vec<i64> = candidates.everyone(99).iter().map(|m| m.id().0).collect();
        assert_eq!(everyone, expected.concat());
        assert_eq!(candidates.everyone(2).len(), everyone.len().min(2));
        assert_eq!(
            candidates.wants(1)[0],
            pool.member(AccountId(everyone[0])).unwrap().want()
        );
    }
    // Nobody at all: the first that comes back, and whether all have met a limit.
    let all = |until: i64| {
        (1..=5)
            .map(|id| limited(id, until + id))
            .collect::<Vec<_>>()
    };
    let mut mixed = all(10);
    mixed[4] = overloaded(5, 7);
    let mut hopeless = all(10);
    hopeless[0].1 = condition(ConditionKind::Error, 0, None);
    for (list, excluded, until, limited) in [
        (all(10), vec![], 11, true),
        (all(10), vec![AccountId(1)], 12, true),
        (mixed.clone(), vec![], 7, false),
        (mixed, vec![AccountId(5)], 11, true),
        (hopeless, vec![], 12, false),
    ] {
        let until = at(until);
        let none = Err(NoAccount::AllCoolingDown { until, limited });
        assert_eq!(
            stages(&pool, &conditions(&list), request(&excluded, 0)),
            none
        );
    }
    let everybody: Vec<AccountId> = (1..=5).map(AccountId).collect();
    let none = stages(&pool, &conditions(&[]), request(&everybody, 0));
    assert_eq!(none, Err(NoAccount::NoneEligible));
}

#[test]
fn whether_there_is_another_to_go_to() {
    let pool = pool_of(
        (1..=3)
            .map(|id| Account {
                priority: id as i32,
                ..account(id)
            })
            .collect(),
    );
    let list = |kind, ids: &[i64]| {
        let of = |id: &i64| (*id, condition(kind, 0, Some(9)));
        conditions(&ids.iter().map(of).collect::<Vec<_>>())
    };
    use ConditionKind::*;
    for (kind, ids, excluded, expected) in [
        (RateLimited, &[][..], &[][..], true),
        (RateLimited, &[1], &[], true),
        (RateLimited, &[1, 2], &[], false),
        (RateLimited, &[1], &[AccountId(2)], false),
        // Better one that failed lately than none.
        (Failing, &[1, 2], &[], true),
        (Failing, &[1, 2, 3], &[], true),
        (Failing, &[1, 2, 3], &[AccountId(1), AccountId(2)], false),
    ] {
        let held = list(kind, ids);
        let candidates = pool.candidates(&held, request(excluded, 0)).unwrap();
        assert_eq!(
            candidates.more_than_one(),
            expected,
            "{kind:?} {ids:?} {excluded:?}"
        );
    }
}

#[test]
fn a_large_tier_is_sampled_and_then_walked() {
    let pool = pool_of((1..=1_000).map(account).collect());
    let held = conditions(&[]);
    let first = stages(&pool, &held, request(&[], 0)).unwrap();
    assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [24, 976]);
    // One out of each part of it.
    for (id, part) in first[0].iter().zip(0..) {
        assert!((part * 1_000 / 24..(part + 1) * 1_000 / 24).contains(&(id - 1)));
    }
    let of_seed = |seed| {
        let request = Request {
            seed: Seed(seed),
            ..request(&[], 0)
        };
        stages(&pool, &held, request).unwrap().swap_remove(0)
    };
    assert_eq!(of_seed(1), first[0]);
    assert_ne!(of_seed(2), first[0]);
    // A choice among more looks at more.
    let wide = Request {
        top_k: 20,
        ..request(&[], 0)
    };
    assert_eq!(stages(&pool, &held, wide).unwrap()[0].len(), 60);
    // Most do not fit: a sample would tell little.
    let limited = |id| (id, condition(ConditionKind::RateLimited, 0, Some(9)));
    let most: Vec<_> = (1..=900).map(limited).collect();
    let got = stages(&pool, &conditions(&most), request(&[], 0)).unwrap();
    assert_eq!(got, [(901..=1_000).collect::<Vec<i64>>()]);
    // A small one is not sampled.
    let small = pool_of((1..=48).map(account).collect());
    assert_eq!(stages(&small, &held, request(&[], 0)).unwrap().len(), 1);
}

#[test]
fn bound_conversations() {
    use ConditionKind::*;
    const ONE: AccountId = AccountId(1);
    const TWO: AccountId = AccountId(2);
    let list = |kind, ids: &[i64]| {
        let of = |id: &i64| (*id, condition(kind, 0, Some(9)));
        ids.iter().map(of).collect::<Vec<_>>()
    };
    let of_model = |model: &str| {
        let model = Some(model.to_owned());
        vec![(
            1,
            Condition {
                model,
                ..condition(RateLimited, 0, Some(9))
            },
        )]
    };
    #[rustfmt::skip]
    let rows: Vec<(&str, Account, List, &[AccountId], &str)> = vec![
        ("fit", account(1), vec![], &[], "use"),
        ("another excluded", account(1), vec![], &[TWO], "use"),
        ("excluded", account(1), vec![], &[ONE], "keep"),
        ("model unknown", mapped(1, &["o3"]), vec![], &[], "keep"),
        ("kind not served", Account { account_type: AccountType::Oauth, ..account(1) }, vec![], &[], "keep"),
        ("paused", Account { paused: true, ..account(1) }, vec![], &[], "part"),
        ("gone", account(9), vec![], &[], "part"),
        ("expired", Account { expires_at: Some(at(0)), ..account(1) }, vec![], &[], "part"),
        ("limited", account(1), list(RateLimited, &[1]), &[], "part"),
        ("limited and excluded", account(1), list(RateLimited, &[1]), &[ONE], "part"),
        ("limited for this model", account(1), of_model(MODEL), &[], "part"),
        ("limited for another", account(1), of_model("o3"), &[], "use"),
        ("overloaded", account(1), list(Overloaded, &[1]), &[], "part"),
        ("failing", account(1), list(Failing, &[1]), &[], "keep"),
        ("failing, and the other too", account(1), list(Failing, &[1, 2]), &[], "use"),
        ("failing, and no other", account(1), list(Failing, &[1]), &[TWO], "use"),
        ("the other failing", account(1), list(Failing, &[2]), &[], "use"),
    ];
    for (what, account_1, held, excluded, expected) in rows {
        let pool = pool_of(vec![account_1, account(2)]);
        let held = conditions(&held);
        let candidates = match pool.candidates(&held, request(excluded, 0)) {
            Ok(candidates) => candidates,
            Err(none) => panic!("{what}: {none}"),
        };
        let got = match sticky(&candidates, ONE) {
            Sticky::Use(member) => {
                assert_eq!(member.id(), ONE);
                "use"
            }
            Sticky::SpillKeeping => "keep",
            Sticky::Unbind => "part",
        };
        assert_eq!(got, expected, "{what}");
    }
    let line = |waiting| Load { held: 9, waiting };
    for (waiting, has_others, expected) in [
        (0, true, true),
        (2, true, true),
        (3, true, false),
        (3, false, true),
    ] {
        assert_eq!(sticky::waits(line(waiting), has_others), expected);
    }
}

#[test]
fn a_slow_account_loses_its_conversations_and_gets_others_again() {
    let pool = pool_of(vec![account(1), account(2)]);
    let served = |id, ms, second| {
        let first_token = Some(Duration::from_millis(ms));
        pool.report(AccountId(id), Outcome::Served { first_token }, at(second));
    };
    let keeps = |second| {
        let held = conditions(&[]);
        let candidates = pool.candidates(&held, request(&[], second)).unwrap();
        matches!(sticky(&candidates, AccountId(1)), Sticky::Use(_))
    };
    // Nobody to compare with.
    for _ in 0..9 {
        served(1, 60_000, 0);
    }
    assert!(keeps(0));
    served(2, 1_500, 0);
    #[rustfmt::skip]
    let rows = [
        // A first token at the bound is in time, whichever of the two bounds it is.
        (4_500, 1, true), (4_500, 1, true), (4_500, 1, true),
        (4_501, 2, true), (4_501, 3, true),
        (400, 4, true),
        (4_501, 5, true), (4_501, 6, true), (4_501, 7, false), (4_501, 8, false),
        (4_500, 9, true),
    ];
    for (ms, second, kept) in rows {
        served(1, ms, second);
        assert_eq!(keeps(second), kept, "{ms} ms at {second} s");
    }
    for second in [10, 11, 12] {
        served(1, 9_000, second);
    }
    assert_eq!([132, 133].map(keeps), [false, true]);
    // Others are quick: still not slow below the floor.
    for _ in 0..50 {
        served(2, 10, 140);
    }
    for _ in 0..5 {
        served(1, 3_000, 140);
    }
    assert!(keeps(140));
    for _ in 0..3 {
        served(1, 3_001, 140);
    }
    assert!(!keeps(140));
}

#[test]
fn a_conversation_is_not_bound_to_an_account_that_loses_them() {
    let pool = pool_of(vec![account(1), account(2), account(3)]);
    let fail = |id| (0..5).for_each(|_| pool.report(AccountId(id), Outcome::Failed, at(0)));
    let firsts = |binds, second| -> std::collections::BTreeSet<i64> {
        let held = conditions(&[]);
        let of_seed = |seed| {
            let seed = Seed(seed);
            let request = Request {
                seed,
                binds,
                ..request(&[], second)
            };
            let mut candidates = pool.candidates(&held, request).unwrap();
            let stage = candidates.next_stage().unwrap();
            let ranked = stage.rank(&[], &WEIGHTS, &request);
            assert_eq!(ranked.order().len(), 3);
            assert_eq!(ranked.top_k(), ranked.first().len());
            stage.members[ranked.order()[0] as usize].id().0
        };
        (0..200).map(of_seed).collect()
    };
    fail(1);
    assert_eq!(firsts(true, 0), [2, 3].into());
    assert_eq!(firsts(true, 120), [1, 2, 3].into());
    // What is not bound finds out whether it is better.
    assert_eq!(firsts(false, 0), [1, 2, 3].into());
    fail(2);
    assert_eq!(firsts(true, 0), [3].into());
    // Better one of them than none.
    fail(3);
    assert_eq!(firsts(true, 0), [1, 2, 3].into());
}

#[test]
fn an_open_circuit_is_behind_the_others_and_lets_one_through_afterwards() {
    let scheduler = Scheduler::new();
    let directory = directory(1, vec![account(1), account(2)]);
    let pool = pool(&scheduler, &directory, MODEL);
    let (one, health, held) = (AccountId(1), scheduler.health(), conditions(&[]));
    let fit = |second| pool.fit(one, &held, request(&[], second));
    for _ in 0..3 {
        assert!(health.transport_failed(one, at(0)).is_some());
    }
    assert_eq!(
        [0, 4, 5].map(fit),
        [Fit::LastResort, Fit::LastResort, Fit::Yes]
    );
    assert_eq!(stages(&pool, &held, request(&[], 4)).unwrap(), [[2]]);
    assert_eq!(
        stages(&pool, &held, request(&[AccountId(2)], 4)).unwrap(),
        [[1]]
    );
    assert!(health.chosen(one, at(5)));
    assert!(!health.chosen(one, at(5)));
    assert_eq!(fit(5), Fit::LastResort);
    assert!(health.succeeded(one, at(5)));
    assert!(!health.succeeded(one, at(5)));
    assert!(fit(5) == Fit::Yes && health.chosen(one, at(5)) && health.chosen(one, at(5)));
    assert_eq!(health.transport_failed(AccountId(9), at(0)), None);
    assert!(health.chosen(AccountId(9), at(0)));
}

#[test]
fn resuming_an_account_closes_its_circuit() {
    let scheduler = Scheduler::new();
    let before = directory(1, vec![account(1)]);
    let held = conditions(&[]);
    let one = AccountId(1);
    pool(&scheduler, &before, MODEL);
    for _ in 0..3 {
        scheduler.health().transport_failed(one, at(0));
    }
    for (version, resumed_at, expected) in [(2, -1, Fit::LastResort), (3, 1, Fit::Yes)] {
        let resumed_at = Some(at(resumed_at));
        let after = directory(
            version,
            vec![Account {
                resumed_at,
                ..account(1)
            }],
        );
        let pool = pool(&scheduler, &after, MODEL);
        assert_eq!(pool.fit(one, &held, request(&[], 2)), expected, "{version}");
    }
}

/// An account of a subscription, which has a limit.
fn gated(id: i64) -> Account {
    let mut account = Account {
        platform: Platform::Anthropic,
        account_type: AccountType::SetupToken,
        ..account(id)
    };
    let token = crate::domain::Secret::new("t");
    let other = &mut account.credentials.other;
    other.insert("access_token".to_owned(), token);
    account.soft_limits.max_sessions = 1;
    account
}

/// The same without one.
fn ungated(id: i64) -> Account {
    let mut account = gated(id);
    account.soft_limits.max_sessions = 0;
    account
}

fn claude_pool(accounts: Vec<Account>) -> Pool {
    let directory = directory(1, accounts);
    let need = Need::default();
    Scheduler::new().pool(&directory, GROUP, Platform::Anthropic, need, MODEL)
}

fn shut(kind: GateKind, second: i64) -> Shut {
    Shut {
        kind,
        until: at(second),
    }
}

#[test]
fn only_accounts_with_soft_limits_are_asked_and_only_when_looked_at() {
    let ids = parking_lot::Mutex::new(Vec::new());
    let ask = |account: &Account| {
        ids.lock().push(account.id.0);
        (account.id.0 % 2 == 0).then(|| shut(GateKind::Rpm, 60))
    };
    let request = |excluded| Request {
        gates: Gates::kept_by(&ask),
        ..request(excluded, 0)
    };
    let asked = || std::mem::take(&mut *ids.lock());
    let mut api_key = gated(5);
    api_key.account_type = AccountType::ApiKey;
    api_key.credentials.api_key = crate::domain::Secret::new("k");
    let worse = Account {
        priority: 9,
        ..gated(7)
    };
    let accounts = vec![gated(1), gated(2), ungated(3), gated(4), api_key, worse];
    let pool = claude_pool(accounts);
    assert!(pool.has_gates());
    let none = conditions(&[]);
    let excluded = [AccountId(4)];
    let mut candidates = pool.candidates(&none, request(&excluded)).unwrap();
    let first = candidates.next_stage().unwrap();
    assert_eq!(
        first.ids().iter().map(|id| id.0).collect::<Vec<_>>(),
        [1, 3, 5]
    );
    assert_eq!(
        asked(),
        [1, 2],
        "neither those without limits, nor the excluded, nor a later tier"
    );
    assert_eq!(candidates.next_stage().unwrap().ids(), [AccountId(7)]);
    assert_eq!(
        pool.fit(AccountId(2), &none, request(&[])),
        Fit::No(Unfit::Gated(shut(GateKind::Rpm, 60)))
    );
    // What is against the account itself comes first.
    let limited = conditions(&[(2, condition(ConditionKind::RateLimited, 0, Some(9)))]);
    asked();
    let out = Unfit::Out {
        until: Some(at(9)),
        limited: true,
    };
    assert_eq!(pool.fit(AccountId(2), &limited, request(&[])), Fit::No(out));
    assert_eq!(asked(), [0; 0]);
    assert!(!claude_pool(vec![ungated(1)]).has_gates());
}

#[test]
fn where_every_gate_is_closed_there_is_no_account_until_the_first_opens() {
    let pool = claude_pool(vec![gated(1), gated(2), gated(3)]);
    let ask = |account: &Account| Some(shut(GateKind::WindowCost, account.id.0 * 100));
    let limited = |until| vec![(1, condition(ConditionKind::RateLimited, 0, Some(until)))];
    for (list, excluded, until) in [
        (vec![], vec![], 100),
        (limited(50), vec![], 50),
        (limited(150), vec![], 150),
        (limited(250), vec![], 200),
        (vec![], vec![AccountId(1)], 200),
    ] {
        let request = Request {
            gates: Gates::kept_by(&ask),
            ..request(&excluded, 0)
        };
        let got = stages(&pool, &conditions(&list), request);
        // Not that a provider's limit was met by all: 503, not 429.
        let none = NoAccount::AllCoolingDown {
            until: at(until),
            limited: false,
        };
        assert_eq!(got, Err(none), "{list:?} {excluded:?}");
    }
}

#[test]
fn what_becomes_of_a_bound_conversation_at_a_closed_gate() {
    let pool = claude_pool(vec![gated(1), gated(2)]);
    let held = conditions(&[]);
    use GateKind::{Rpm, Sessions, WindowCost};
    for (kind, second, expected) in [
        (Rpm, 1, "keep"),
        (Rpm, 60, "keep"),
        (WindowCost, 300, "keep"),
        (WindowCost, 301, "part"),
        (WindowCost, 18_000, "part"),
        (Sessions, 1, "part"),
        (Sessions, 300, "part"),
    ] {
        let ask = |account: &Account| (account.id.0 == 1).then(|| shut(kind, second));
        let request = Request {
            gates: Gates::kept_by(&ask),
            ..request(&[], 0)
        };
        let candidates = pool.candidates(&held, request).unwrap();
        let got = match sticky(&candidates, AccountId(1)) {
            Sticky::Use(_) => "use",
            Sticky::SpillKeeping => "keep",
            Sticky::Unbind => "part",
        };
        assert_eq!(got, expected, "{kind:?} {second}");
        assert!(matches!(sticky(&candidates, AccountId(2)), Sticky::Use(_)));
    }
}

/// An account of a random directory: what stands against it, its tier.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: u8,
    priority: i32,
}

fn cases() -> impl Strategy<Value = Vec<Case>> {
    let case = (0_u8..16, 0..3).prop_map(|(kind, priority)| Case { kind, priority });
    prop_oneof![
        prop::collection::vec(case.clone(), 0..20),
        prop::collection::vec(case, 150..400)
    ]
}

/// The directory, what holds, who is excluded; who may be chosen, who only as a last resort.
type World = (Pool, Arc<Conditions>, Vec<AccountId>, Vec<i64>, Vec<i64>);

fn world(cases: &[Case]) -> World {
    let mut accounts = Vec::new();
    let mut held = Vec::new();
    let mut excluded = Vec::new();
    let (mut fit, mut failing) = (Vec::new(), Vec::new());
    for (case, id) in cases.iter().zip(1..) {
        let mut account = Account {
            priority: case.priority,
            ..account(id)
        };
        match case.kind {
            0 => account.enabled = false,
            1 => account.paused = true,
            2 => account.expires_at = Some(at(0)),
            3 => account.model_mapping = mapped(id, &["o3"]).model_mapping,
            4 => held.push((id, condition(ConditionKind::RateLimited, -1, Some(1)))),
            5 => held.push((id, condition(ConditionKind::Error, -1, None))),
            6 => excluded.push(AccountId(id)),
            7 => {
                held.push((id, condition(ConditionKind::Failing, -1, Some(1))));
                failing.push(id);
            }
            8 => {
                held.push((id, condition(ConditionKind::Overloaded, -1, Some(0))));
                fit.push(id);
            }
            _ => fit.push(id),
        }
        accounts.push(account);
    }
    (pool_of(accounts), conditions(&held), excluded, fit, failing)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nobody_is_offered_whose_gate_is_closed(
        gates in prop::collection::vec((any::<bool>(), any::<bool>()), 1..300),
        seed in any::<u64>(),
    ) {
        let of = |(has_limits, _): &(bool, bool), id| if *has_limits { gated(id) } else { ungated(id) };
        let pool = claude_pool(gates.iter().zip(1..).map(|(gate, id)| of(gate, id)).collect());
        let is_closed = |id: i64| gates[id as usize - 1] == (true, true);
        let ask = |account: &Account| is_closed(account.id.0).then(|| shut(GateKind::Rpm, 60));
        let request = Request { seed: Seed(seed), gates: Gates::kept_by(&ask), ..request(&[], 0) };
        let mut offered = stages(&pool, &conditions(&[]), request).unwrap_or_default().concat();
        offered.sort_unstable();
        let open: Vec<i64> = (1..=gates.len() as i64).filter(|id| !is_closed(*id)).collect();
        prop_assert_eq!(offered, open);
    }

    #[test]
    fn everyone_fit_is_offered_once_in_tiers_and_nobody_else(cases in cases(), seed in any::<u64>()) {
        let (pool, held, excluded, fit, failing) = world(&cases);
        let request = Request { seed: Seed(seed), ..request(&excluded, 0) };
        let Ok(mut candidates) = pool.candidates(&held, request) else {
            prop_assert!(fit.is_empty() && failing.is_empty());
            return Ok(());
        };
        let mut expected = if fit.is_empty() { failing.clone() } else { fit.clone() };
        let more = fit.len() + failing.len() > 1;
        prop_assert_eq!(candidates.more_than_one(), more);
        prop_assert_eq!(candidates.last_resort(), fit.is_empty());
        let mut order = Vec::new();
        while let Some(stage) = candidates.next_stage() {
            prop_assert!(!stage.members.is_empty());
            prop_assert_eq!(stage.last_resort, fit.is_empty());
            let loads: Vec<Load> = (0..stage.members.len() as u32)
                .map(|n| Load { held: (n ^ seed as u32) % 12, waiting: n % 3 })
                .collect();
            let ranked = stage.rank(&loads, &WEIGHTS, &request);
            prop_assert_eq!(ranked.top_k(), stage.members.len().min(7));
            // The same conversation, the same loads: the same order.
            prop_assert_eq!(stage.rank(&loads, &WEIGHTS, &request).order(), ranked.order());
            order.extend(ranked.order().into_iter().map(|i| stage.members[i as usize].id().0));
        }
        let priorities: Vec<i32> = order.iter().map(|id| cases[*id as usize - 1].priority).collect();
        prop_assert!(priorities.is_sorted(), "{:?}", priorities);
        order.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(order, expected);
    }

    #[test]
    fn one_is_judged_as_among_all(cases in cases()) {
        let (pool, held, excluded, fit, failing) = world(&cases);
        for id in 1..=cases.len() as i64 {
            let expected = match (fit.contains(&id), failing.contains(&id)) {
                (true, _) => "yes",
                (_, true) => "last",
                _ => "no",
            };
            let got = match pool.fit(AccountId(id), &held, request(&excluded, 0)) {
                Fit::Yes => "yes",
                Fit::LastResort => "last",
                Fit::No(_) => "no",
            };
            prop_assert_eq!(got, expected, "{}", id);
        }
    }
}
