//! Windows, account usage and the journal's watermark: written with the records or not at all.

use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::domain::account::quota::{AccountQuota, AccountUsage, Reset};
use crate::domain::{JournalPosition, KEY_WINDOWS, SUBSCRIPTION_WINDOWS, Window, WindowKind};
use crate::storage::Names;

const BERLIN: Tz = chrono_tz::Europe::Berlin;

/// What the same records come to when they are counted in memory.
fn counted(records: &[UsageRecord], kinds: [WindowKind; 3]) -> [Window; 3] {
    let mut windows = [Window::default(); 3];
    for record in records {
        for (window, kind) in windows.iter_mut().zip(kinds) {
            window.add(kind, record.charge, record.settled_at(), BERLIN);
        }
    }
    windows
}

/// A store whose only account has these options.
async fn with_options(options: serde_json::Value) -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let mut wanted = resources();
    wanted.accounts[0].extra = options.as_object().unwrap().clone();
    apply(&store, &wanted).await;
    (dir, store)
}

fn options(fixed: bool) -> serde_json::Value {
    if !fixed {
        return serde_json::json!({});
    }
    serde_json::json!({
        "quota_daily_reset_mode": "fixed",
        "quota_daily_reset_hour": 9,
        "quota_weekly_reset_mode": "fixed",
        "quota_weekly_reset_day": 3,
        "quota_reset_timezone": "Asia/Tokyo",
    })
}

/// The same as the server understands it.
fn quota(fixed: bool) -> AccountQuota {
    if !fixed {
        return AccountQuota::default();
    }
    AccountQuota {
        day: Reset::Daily { hour: 9 },
        week: Reset::Weekly {
            day: chrono::Weekday::Wed,
            hour: 0,
        },
        tz: chrono_tz::Asia::Tokyo,
        ..AccountQuota::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// However records are cut into batches and repeated, the database counts what memory counts.
    #[test]
    fn the_database_counts_what_memory_counts(
        requests in prop::collection::vec((0..20_000_i64, 0..400_i64, 0..7_200_000_u64, any::<bool>()), 1..40),
        size in 1..12_usize,
        overlap in 0..4_usize,
        fixed in any::<bool>(),
    ) {
        let records: Vec<UsageRecord> = requests
            .iter()
            .enumerate()
            .map(|(n, &(minutes, charge, duration_ms, subscribed))| UsageRecord {
                created_at: at(0) + TimeDelta::minutes(minutes) + TimeDelta::microseconds(7),
                duration_ms,
                charge: Money(charge),
                cost: Money(2 * charge),
                account_rate_multiplier: Multiplier(1_500_000),
                billing_type: if subscribed { BillingType::Subscription } else { BillingType::Balance },
                ..record(&format!("r-{n}"), "0")
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, store) = with_options(options(fixed)).await;
            let mut from = 0;
            while from < records.len() {
                let to = (from + size).min(records.len());
                let batch = &records[from.saturating_sub(overlap)..to];
                store.settle(batch, None, BERLIN).await.unwrap();
                from = to;
            }
            let all = store.key_windows().await.unwrap();
            let charged = records.iter().any(|r| r.charge.is_positive());
            if charged {
                assert_eq!(all, [(ApiKeyId(1), counted(&records, KEY_WINDOWS))]);
            } else {
                assert!(all.is_empty());
            }
            let subscribed: Vec<UsageRecord> = records
                .iter()
                .filter(|r| r.billing_type == BillingType::Subscription && r.charge.is_positive())
                .cloned()
                .collect();
            let all = store.subscription_windows().await.unwrap();
            if subscribed.is_empty() {
                assert!(all.is_empty());
            } else {
                let windows = counted(&subscribed, SUBSCRIPTION_WINDOWS);
                assert_eq!(all, [((UserId(1), GroupId(1)), windows)]);
            }
            let mut usage = AccountUsage::default();
            for record in &records {
                let cost = Money(3 * record.charge.0);
                usage.add(&quota(fixed), cost, record.settled_at());
            }
            let all = store.account_usage().await.unwrap();
            assert_eq!(all, if charged { vec![(AccountId(1), usage)] } else { vec![] });
        });
    }
}

#[tokio::test]
async fn who_pays_decides_what_is_counted() {
    for (billing, keys, subscriptions) in [
        (BillingType::Balance, 1, 0),
        (BillingType::Subscription, 1, 1),
        (BillingType::None, 0, 0),
    ] {
        let (_dir, store) = filled().await;
        let mut record = record("r-1", "2");
        record.billing_type = billing;
        let settled = store.settle(&[record], None, Tz::UTC).await.unwrap();
        assert_eq!(settled.accounts, store.account_usage().await.unwrap());
        assert_eq!(
            settled.accounts[0].1.total,
            "0.25".parse().unwrap(),
            "whoever pays"
        );
        assert_eq!(store.key_windows().await.unwrap().len(), keys);
        let found = store.subscription_windows().await.unwrap();
        assert_eq!(found.len(), subscriptions, "{billing:?}");
    }
}

#[tokio::test]
async fn the_watermark_goes_with_the_batch_and_never_back() {
    let (_dir, store) = filled().await;
    let place = |journal, segment, offset| JournalPosition {
        journal,
        segment,
        offset,
    };
    assert_eq!(store.watermark().await.unwrap(), None);
    let first = place(u64::MAX - 1, 1, 900);
    let settled = store
        .settle(&[record("r-1", "1")], Some(first), Tz::UTC)
        .await;
    assert_eq!(settled.unwrap().inserted, 1);
    assert_eq!(store.watermark().await.unwrap(), Some(first));

    let next = place(u64::MAX - 1, 2, 0);
    fail_settlements(&store, true).await;
    let failed = store
        .settle(&[record("r-2", "1")], Some(next), Tz::UTC)
        .await;
    failed.unwrap_err();
    fail_settlements(&store, false).await;
    assert_eq!(store.watermark().await.unwrap(), Some(first));
    let windows = store.key_windows().await.unwrap();
    assert_eq!(
        windows[0].1[0].used,
        Money::from_usd(1),
        "nor was it counted"
    );

    // Without records, and to a place that was passed already.
    for (given, stored) in [(next, next), (first, next), (next, next)] {
        let none: [UsageRecord; 0] = [];
        store.settle(&none, Some(given), Tz::UTC).await.unwrap();
        assert_eq!(store.watermark().await.unwrap(), Some(stored));
    }
    let other = place(7, 1, 0);
    let none: [UsageRecord; 0] = [];
    store.settle(&none, Some(other), Tz::UTC).await.unwrap();
    assert_eq!(store.watermark().await.unwrap(), Some(other));
}

#[tokio::test]
async fn an_account_that_is_resumed_has_once_more_what_was_used_up() {
    let options = serde_json::json!({"quota_limit": "5", "quota_daily_limit": "0.5"});
    let (_dir, store) = with_options(options).await;
    let usage = async || store.account_usage().await.unwrap()[0].1;
    let resume = async |seconds| {
        let names = ["one".to_owned()];
        let names = Names::List(&names);
        store.set_paused(names, false, at(seconds)).await.unwrap();
    };
    resume(0).await;
    assert!(store.account_usage().await.unwrap().is_empty());

    // Every record costs the account 0.25.
    let batch = |from, to| -> Vec<UsageRecord> {
        let numbers = from..to;
        numbers.map(|n| record(&format!("r-{n}"), "0")).collect()
    };
    store.settle(&batch(0, 1), None, Tz::UTC).await.unwrap();
    let one = usage().await;
    resume(60).await;
    assert_eq!(usage().await, one, "nothing is used up");

    store.settle(&batch(1, 3), None, Tz::UTC).await.unwrap();
    let three = usage().await;
    store.set_paused(Names::All, true, at(60)).await.unwrap();
    assert_eq!(usage().await, three, "a pause is no resume");
    resume(60).await;
    let resumed = AccountUsage {
        day: Window::default(),
        ..three
    };
    assert_eq!(usage().await, resumed, "only the day was used up");

    store.settle(&batch(3, 20), None, Tz::UTC).await.unwrap();
    assert_eq!(usage().await.total, Money::from_usd(5));
    resume(60).await;
    let anew = AccountUsage {
        week: usage().await.week,
        ..AccountUsage::default()
    };
    assert_eq!(usage().await, anew);
}

#[tokio::test]
async fn options_that_nobody_can_read_stop_no_record() {
    let options = serde_json::json!({"quota_daily_reset_mode": "never", "quota_limit": []});
    let (_dir, store) = with_options(options).await;
    store
        .settle(&[record("r-1", "1")], None, Tz::UTC)
        .await
        .unwrap();
    let writer = &store.inner.pools.writer;
    for extra in ["[", "7"] {
        let sql = format!("UPDATE accounts SET extra = '{extra}'");
        sea_orm::ConnectionTrait::execute_unprepared(writer, &sql)
            .await
            .unwrap();
        let next = record(&format!("r-{extra}"), "1");
        store.settle(&[next], None, Tz::UTC).await.unwrap();
    }
    let mut unknown = record("r-unknown", "1");
    unknown.account_id = AccountId(99);
    store.settle(&[unknown], None, Tz::UTC).await.unwrap();
    let usage = store.account_usage().await.unwrap();
    let totals: Vec<_> = usage.iter().map(|(id, u)| (id.0, u.total.0)).collect();
    assert_eq!(totals, [(1, 750_000_000), (99, 250_000_000)]);
}
