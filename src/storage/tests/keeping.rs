//! What of the live state is kept: conditions, strikes, bindings of responses.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::domain::account::seen_window::{Permille, SeenWindow, Span};
use crate::domain::{AccountStatus, Condition, ConditionKind, Conditions, ResponseBinding};
use crate::storage::{ConditionChanges, Names, StorageError};

const ONE: AccountId = AccountId(1);

fn condition(
    kind: ConditionKind,
    model: Option<&str>,
    since: i64,
    until: Option<i64>,
) -> Condition {
    Condition {
        kind,
        model: model.map(str::to_owned),
        since: at(since),
        until: until.map(at),
        status: Some(429),
        reason: format!("since {since}"),
    }
}

fn picture(list: &[(AccountId, Condition)]) -> Conditions {
    let mut conditions = Conditions::default();
    for (account, condition) in list {
        let list = conditions.0.entry(*account).or_default();
        list.push(condition.clone());
    }
    conditions
}

/// The store's picture, its rows in order.
async fn stored(store: &Store) -> Vec<(AccountId, Condition)> {
    store.load_conditions().await.unwrap()
}

async fn save(store: &Store, before: &Conditions, after: &Conditions) {
    let changes = ConditionChanges::between(before, after);
    store.save_conditions(&changes).await.unwrap();
}

#[tokio::test]
async fn conditions_are_kept_changed_and_removed_without_a_new_version() {
    use ConditionKind::{Error, RateLimited};
    let (dir, store) = filled().await;
    let mut wanted = resources();
    wanted.accounts.push(account("two", &["main"]));
    apply(&store, &wanted).await;
    let version = store.version().await.unwrap();
    let two = AccountId(2);
    let mut error = condition(Error, None, 1, None);
    error.status = None;
    let first = picture(&[
        (ONE, error),
        (ONE, condition(RateLimited, None, 2, Some(20))),
        (ONE, condition(RateLimited, Some("gpt-5"), 3, Some(30))),
        (two, condition(RateLimited, Some("o3"), 4, Some(40))),
    ]);
    save(&store, &Conditions::default(), &first).await;
    store.close().await.unwrap();
    let store = open(&dir).await;
    assert_eq!(picture(&stored(&store).await), first);

    let second = picture(&[
        (ONE, condition(RateLimited, None, 2, Some(25))),
        (ONE, condition(RateLimited, Some("gpt-5"), 3, Some(30))),
        (two, condition(RateLimited, Some("o4"), 4, Some(40))),
    ]);
    let changes = ConditionChanges::between(&first, &second);
    assert_eq!(
        (changes.set.len(), changes.gone.len(), changes.len()),
        (2, 2, 4)
    );
    for _ in 0..2 {
        store.save_conditions(&changes).await.unwrap();
        assert_eq!(picture(&stored(&store).await), second);
    }
    assert!(ConditionChanges::between(&second, &second).is_empty());
    save(&store, &second, &Conditions::default()).await;
    assert!(stored(&store).await.is_empty());
    assert_eq!(
        store.version().await.unwrap(),
        version,
        "no change of configuration"
    );
}

#[tokio::test]
async fn a_difference_is_written_whole_or_not_at_all() {
    let (_dir, store) = filled().await;
    let good = condition(ConditionKind::Failing, None, 1, Some(2));
    let changes = ConditionChanges {
        set: vec![(ONE, good.clone()), (AccountId(99), good)],
        gone: vec![],
    };
    let error = store.save_conditions(&changes).await.unwrap_err();
    assert!(matches!(error, StorageError::Db(_)), "{error}");
    assert!(stored(&store).await.is_empty());
}

#[tokio::test]
async fn resuming_removes_what_began_before() {
    use ConditionKind::{Error, Overloaded, RateLimited};
    let (_dir, store) = filled().await;
    let mut wanted = resources();
    wanted.accounts.push(account("two", &["main"]));
    apply(&store, &wanted).await;
    let two = AccountId(2);
    let all = [
        (ONE, condition(Error, None, 9, None)),
        (ONE, condition(Overloaded, None, 10, Some(99))),
        (ONE, condition(RateLimited, Some("o3"), 11, Some(99))),
        (two, condition(Error, None, 1, None)),
    ];
    save(&store, &Conditions::default(), &picture(&all)).await;
    let strikes = [(ONE, at(1)), (two, at(2)), (ONE, at(3)), (ONE, at(3))];
    store.save_strikes(&strikes).await.unwrap();

    let one = ["one".to_owned()];
    store
        .set_paused(Names::List(&one), true, at(10))
        .await
        .unwrap();
    assert_eq!(stored(&store).await.len(), 4, "pausing lifts nothing");
    store
        .set_paused(Names::List(&one), false, at(10))
        .await
        .unwrap();
    assert_eq!(picture(&stored(&store).await), picture(&all[1..]));
    assert_eq!(store.load_strikes().await.unwrap(), [(two, at(2))]);

    // A server that has not seen it yet may write what was lifted once more: it stays void.
    save(&store, &Conditions::default(), &picture(&all[..1])).await;
    let view = &store.list_accounts(Some("one"), at(12)).await.unwrap()[0];
    assert_eq!(
        (view.status, view.until),
        (AccountStatus::Overloaded, Some(at(99)))
    );
    let kinds: Vec<ConditionKind> = view.conditions.iter().map(|c| c.kind).collect();
    assert_eq!(kinds, [Overloaded, RateLimited]);
}

#[tokio::test]
async fn views_show_the_conditions_that_hold() {
    let (_dir, store) = filled().await;
    let all = [
        (
            ONE,
            condition(ConditionKind::RateLimited, None, 1, Some(20)),
        ),
        (ONE, condition(ConditionKind::Failing, None, 1, Some(10))),
    ];
    save(&store, &Conditions::default(), &picture(&all)).await;
    let json = serde_json::to_value(&store.list_accounts(None, at(10)).await.unwrap()[0]).unwrap();
    assert_eq!(json["status"], "rate_limited");
    assert_eq!(json["until"], serde_json::to_value(at(20)).unwrap());
    assert_eq!(
        json["conditions"],
        serde_json::json!([{
            "kind": "rate_limited", "model": null, "since": at(1), "until": at(20),
            "status": 429, "reason": "since 1",
        }])
    );
    let json = serde_json::to_value(&store.list_accounts(None, at(20)).await.unwrap()[0]).unwrap();
    assert_eq!(
        (&json["status"], &json["conditions"]),
        (&"active".into(), &serde_json::json!([]))
    );
}

#[tokio::test]
async fn strikes_are_replaced() {
    let (_dir, store) = filled().await;
    let strikes: Vec<_> = (0..100).map(|second| (ONE, at(second))).collect();
    store.save_strikes(&strikes).await.unwrap();
    assert_eq!(store.load_strikes().await.unwrap(), strikes);
    store.save_strikes(&strikes[..1]).await.unwrap();
    assert_eq!(store.load_strikes().await.unwrap(), strikes[..1]);
    store.save_strikes(&[]).await.unwrap();
    assert!(store.load_strikes().await.unwrap().is_empty());
    assert_eq!(store.version().await.unwrap(), 1);
}

fn binding(group: i64, key: u128, account: i64, second: i64) -> ResponseBinding {
    ResponseBinding {
        group: GroupId(group),
        key,
        account: AccountId(account),
        at: at(second),
    }
}

#[tokio::test]
async fn bindings_come_back_newest_first_and_bounded() {
    let (dir, store) = filled().await;
    let bindings = [
        binding(1, 1, 1, 10),
        binding(1, u128::MAX, 2, 30),
        binding(2, 1, 3, 20),
        // Used again, by hearsay older, used again.
        binding(1, 1, 4, 40),
        binding(1, u128::MAX, 5, 29),
    ];
    store.save_responses(&bindings).await.unwrap();
    store.save_responses(&[binding(2, 1, 6, 19)]).await.unwrap();
    store.save_responses(&[]).await.unwrap();
    store.close().await.unwrap();
    let store = open(&dir).await;
    let sorted = [bindings[3], bindings[1], bindings[2]];
    for (limit, since, want) in [
        (9, 0, &sorted[..]),
        (2, 0, &sorted[..2]),
        (9, 30, &sorted[..2]),
        (9, 41, &[]),
    ] {
        assert_eq!(store.load_responses(limit, at(since)).await.unwrap(), want);
    }
    assert_eq!(store.version().await.unwrap(), 1);
}

#[tokio::test]
async fn bindings_are_pruned_by_number_and_age() {
    for (keep, since, left) in [
        (20_000, 0, 12_000),
        (12_000, 999, 12_000),
        (12_000, 1_000, 11_000),
        // Whole batches of a thousand.
        (2_000, 0, 2_000),
        (1_001, 0, 2_000),
        (10, 0, 1_000),
        (10, 11_995, 1_000),
        (1, 0, 1_000),
        (0, 0, 0),
        (10, 12_000, 0),
    ] {
        let (_dir, store) = filled().await;
        let all: Vec<_> = (0..12_000)
            .map(|n| binding(1, u128::from(n as u64) << 64, 1, n))
            .collect();
        store.save_responses(&all).await.unwrap();
        let removed = store.prune_responses(keep, at(since)).await.unwrap();
        assert_eq!(removed, 12_000 - left, "{keep} since {since}");
        let kept = store.load_responses(u32::MAX, at(0)).await.unwrap();
        assert_eq!(kept.len() as u64, left);
        assert!(kept.iter().all(|b| b.at >= at(12_000 - left as i64)));
    }
}

#[tokio::test]
async fn session_windows_are_kept_and_shown_without_a_new_version() {
    use tollgate_filters::verdict::SessionStatus::{Allowed, Rejected};
    let (dir, store) = filled().await;
    let mut wanted = resources();
    wanted.accounts.push(account("two", &["main"]));
    apply(&store, &wanted).await;
    let version = store.version().await.unwrap();
    let known = SeenWindow {
        status: Allowed,
        span: Some(Span {
            start: at(0),
            end: at(18_000),
        }),
        used: Some(Permille(421)),
        week_used: Some(Permille(1_005)),
        seen_at: at(3),
    };
    let unknown = SeenWindow {
        status: Rejected,
        span: None,
        used: None,
        week_used: None,
        seen_at: at(4),
    };
    let two = AccountId(2);
    for windows in [
        [(ONE, unknown), (two, known)],
        [(ONE, known), (two, unknown)],
    ] {
        store.save_session_windows(&windows.into()).await.unwrap();
        assert_eq!(store.load_session_windows().await.unwrap(), windows);
    }
    store
        .save_session_windows(&[(ONE, known)].into())
        .await
        .unwrap();
    assert_eq!(store.version().await.unwrap(), version);
    store.close().await.unwrap();
    let store = open(&dir).await;
    let shown = store.list_accounts(None, at(20_000)).await.unwrap();
    let shown: Vec<_> = shown
        .iter()
        .map(|view| view.session_window.as_ref().unwrap())
        .collect();
    let json = serde_json::to_value(shown[0]).unwrap();
    let want = serde_json::json!({
        "status": "allowed", "starts_at": at(0), "ends_at": at(18_000),
        "used_percent": 42.1, "week_used_percent": 100.5, "seen_at": at(3),
    });
    assert_eq!(json, want, "also when it is over");
    assert_eq!((shown[1].status, shown[1].ends_at), ("rejected", None));
    let nobody = [(AccountId(99), known)].into();
    assert!(store.save_session_windows(&nobody).await.is_err());
}

#[tokio::test]
async fn what_accounts_have_cost_by_the_minute_in_which_requests_ended() {
    let (_dir, store) = filled().await;
    // A whole minute and a little.
    let begin = at(40);
    let minute = begin.timestamp() / 60;
    assert_eq!(begin.timestamp() % 60, 0);
    let settled = |id: &str, account: i64, platform, second: i64, cost: i64| UsageRecord {
        platform,
        account_id: AccountId(account),
        // It ends 59 seconds later.
        created_at: at(40 + second),
        duration_ms: 59_000,
        cost: Money(cost),
        ..record(id, "0.0001")
    };
    use Platform::{Anthropic, OpenAi};
    let records = [
        settled("a", 1, Anthropic, 0, 1),
        settled("b", 1, Anthropic, 1, 10),
        settled("c", 1, Anthropic, 60, 100),
        settled("d", 2, Anthropic, 60, 1_000),
        settled("e", 1, OpenAi, 60, 7),
        settled("f", 1, Anthropic, -1, 7),
        settled("g", 1, Anthropic, 60, 0),
    ];
    store.settle(&records, None, Tz::UTC).await.unwrap();
    let costs = store.costs_by_minute(Anthropic, begin).await.unwrap();
    let want = [
        (ONE, minute, Money(1)),
        (ONE, minute + 1, Money(110)),
        (AccountId(2), minute + 1, Money(1_000)),
    ];
    assert_eq!(costs, want);
}

#[tokio::test]
async fn bindings_of_an_earlier_version_move_into_batches() {
    let (dir, store) = filled().await;
    let writer = &store.inner.pools.writer;
    // As step 2 made it.
    writer
        .execute_unprepared(
            "DELETE FROM seaql_migrations WHERE version = 'm20261128_000007_response_batches'; \
             DROP TABLE response_batches; \
             CREATE TABLE response_bindings (group_id INTEGER NOT NULL, \
             key BLOB NOT NULL CHECK (length(key) = 16), account_id INTEGER NOT NULL, \
             used_at INTEGER NOT NULL, PRIMARY KEY (group_id, key)) STRICT, WITHOUT ROWID; \
             WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 2499) \
             INSERT INTO response_bindings \
             SELECT 3, unhex(printf('%032x', i)), 4, (1800000000 + i) * 1000 FROM n;",
        )
        .await
        .unwrap();
    store.close().await.unwrap();
    let store = open(&dir).await;
    let found = store.load_responses(u32::MAX, at(0)).await.unwrap();
    assert_eq!(found.len(), 2500);
    let newest = found[0];
    assert_eq!((newest.group, newest.account), (GroupId(3), AccountId(4)));
    assert_eq!((newest.key, newest.at.timestamp()), (2499, 1_800_002_499));
    let writer = &store.inner.pools.writer;
    let old = writer.execute_unprepared("SELECT * FROM response_bindings");
    assert!(old.await.is_err(), "the old table is gone");
}

/// A few conditions at a few places.
fn pictures() -> impl Strategy<Value = Conditions> {
    let place = (
        0..3_i64,
        0..ConditionKind::ALL.len(),
        proptest::option::of(0..2_u8),
    );
    proptest::collection::hash_map(place, (0..3_i64, proptest::option::of(10..13_i64)), 0..8)
        .prop_map(|places: HashMap<_, _>| {
            let list: Vec<_> = places
                .into_iter()
                .map(|((account, kind, model), (since, until))| {
                    let model = model.map(|m| format!("m{m}"));
                    let kind = ConditionKind::ALL[kind];
                    let c = condition(kind, model.as_deref(), since, until);
                    (AccountId(account), c)
                })
                .collect();
            picture(&list)
        })
}

proptest! {
    #[test]
    fn a_difference_leads_from_one_picture_to_the_other(before in pictures(), after in pictures()) {
        let changes = ConditionChanges::between(&before, &after);
        let mut made = before.clone();
        for (account, kind, model) in &changes.gone {
            let list = made.0.get_mut(account).unwrap();
            list.retain(|c| !(c.kind == *kind && c.model == *model));
        }
        for (account, condition) in &changes.set {
            let list = made.0.entry(*account).or_default();
            list.retain(|c| !c.same_place(condition));
            list.push(condition.clone());
        }
        let sorted = |conditions: &Conditions| {
            let mut all: Vec<_> = conditions.0.iter()
                .flat_map(|(account, list)| list.iter().map(|c| (account.0, format!("{c:?}"))))
                .collect();
            all.sort();
            all
        };
        prop_assert_eq!(sorted(&made), sorted(&after));
        prop_assert_eq!(changes.is_empty(), sorted(&before) == sorted(&after));
    }
}
