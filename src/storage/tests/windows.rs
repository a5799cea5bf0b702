//! Windows, account usage and the journal's watermark: written with the records or not at all.

use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::domain::{JournalPosition, KEY_WINDOWS, SUBSCRIPTION_WINDOWS, Window, WindowKind};
use crate::storage::AccountUsage;

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// However records are cut into batches and repeated, the database counts what memory counts.
    #[test]
    fn the_database_counts_what_memory_counts(
        requests in prop::collection::vec((0..20_000_i64, 0..400_i64, 0..7_200_000_u64, any::<bool>()), 1..40),
        size in 1..12_usize,
        overlap in 0..4_usize,
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
            let (_dir, store) = filled().await;
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
                let (cost, at) = (Money(3 * record.charge.0), record.settled_at());
                usage.total += cost;
                usage.day.add(WindowKind::Day, cost, at, BERLIN);
                usage.week.add(WindowKind::Week, cost, at, BERLIN);
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

    let mut unknown = record("r-2", "1");
    unknown.user_id = UserId(99);
    let next = place(u64::MAX - 1, 2, 0);
    let failed = store.settle(&[unknown], Some(next), Tz::UTC).await;
    failed.unwrap_err();
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
