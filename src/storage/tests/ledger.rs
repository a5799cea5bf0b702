//! What commands enter: once for each idempotency key, and always in step with everything else.

use chrono::TimeDelta;
use proptest::prelude::*;
use sea_orm::ConnectionTrait;

use super::*;
use crate::domain::Window;
use crate::storage::{Counted, LedgerMismatch, StorageError};

fn usd(text: &str) -> Money {
    text.parse().unwrap()
}

fn with_key(key: &str) -> Posting<'_> {
    Posting {
        idempotency_key: Some(key),
        note: Some("a note"),
        command: Some("test"),
    }
}

async fn balance(store: &Store, name: &str) -> Money {
    store.list_users(Some(name), &HashMap::new()).await.unwrap()[0].balance
}

#[tokio::test]
async fn a_command_repeated_with_its_key_is_entered_once_and_answered_alike() {
    let (_dir, store) = filled().await;
    let first = store
        .credit("alice", usd("5"), with_key("k-1"))
        .await
        .unwrap();
    assert_eq!((first.balance, first.repeated), (usd("15"), false));
    store
        .debit("alice", usd("1"), with_key("k-2"))
        .await
        .unwrap();
    let version = store.version().await.unwrap();
    let again = store
        .credit("alice", usd("5"), with_key("k-1"))
        .await
        .unwrap();
    assert!(again.repeated);
    assert_eq!(again.balance, first.balance, "as it was answered then");
    assert_eq!(balance(&store, "alice").await, usd("14"));

    let other_note = Posting {
        note: None,
        ..with_key("k-1")
    };
    for other in [
        store.credit("alice", usd("6"), with_key("k-1")).await,
        store.credit("bob", usd("5"), with_key("k-1")).await,
        store.debit("alice", usd("5"), with_key("k-1")).await,
        store.credit("alice", usd("5"), other_note).await,
    ] {
        assert!(matches!(other, Err(StorageError::Conflict(_))), "{other:?}");
    }
    for (key, note) in [("", "a"), (" k", "a"), ("k", "two\nlines")] {
        let posting = Posting {
            note: Some(note),
            ..with_key(key)
        };
        let refused = store.credit("alice", usd("1"), posting).await;
        assert!(matches!(refused, Err(StorageError::Invalid(_))));
    }
    assert_eq!(store.version().await.unwrap(), version);
    // Without a key it is another credit every time.
    for after in ["15", "16"] {
        let posted = store.credit("alice", usd("1"), Posting::default()).await;
        assert_eq!(posted.unwrap().balance, usd(after));
    }
    assert!(store.verify_ledger().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_request_is_refunded_once_and_everything_it_counted_in_is_lowered() {
    for (billing, back, after) in [
        (BillingType::Balance, "2", "10"),
        (BillingType::Subscription, "0", "10"),
    ] {
        let (_dir, store) = filled().await;
        let mut wanted = record("r-1", "2");
        wanted.billing_type = billing;
        let mut other = record("r-2", "0.5");
        other.billing_type = BillingType::Subscription;
        store.settle(&[wanted, other], None, Tz::UTC).await.unwrap();
        let start = store.last_entry().await.unwrap();

        let posted = store.refund("r-1", with_key("k"), Tz::UTC).await.unwrap();
        assert_eq!((posted.user.as_str(), posted.amount), ("alice", usd(back)));
        assert_eq!(posted.balance, usd(after));
        let of_subscription = || ("alice/main".to_owned(), usd("2"));
        let subscription = (billing == BillingType::Subscription).then(of_subscription);
        assert_eq!(posted.subscription, subscription);
        assert_eq!(store.key_spend().await.unwrap()[0].1, usd("0.5"));
        let used = |windows: [Window; 3]| windows.map(|w| w.used);
        let keys = store.key_windows().await.unwrap();
        assert_eq!(used(keys[0].1), [usd("0.5"); 3]);
        let subscriptions = store.subscription_windows().await.unwrap();
        assert_eq!(used(subscriptions[0].1), [usd("0.5"); 3]);
        let accounts = store.account_usage().await.unwrap();
        assert_eq!(accounts[0].1.total, usd("0.5"), "the provider was paid");

        let again = store.refund("r-1", with_key("k"), Tz::UTC).await.unwrap();
        assert!(again.repeated);
        assert_eq!(again.balance, posted.balance);
        assert_eq!(again.subscription, subscription);
        for posting in [Posting::default(), with_key("l")] {
            let twice = store.refund("r-1", posting, Tz::UTC).await;
            assert!(matches!(twice, Err(StorageError::Conflict(_))), "{twice:?}");
        }
        let other = store.refund("r-2", with_key("k"), Tz::UTC).await;
        assert!(matches!(other, Err(StorageError::Conflict(_))), "{other:?}");
        assert!(store.verify_ledger().await.unwrap().is_empty());

        // A running server hears of it once.
        let reversals = store.reversals(start).await.unwrap();
        let charge = Counted {
            user: UserId(1),
            key: ApiKeyId(1),
            group: GroupId(1),
            billing_type: billing,
            charge: usd("2"),
            at: record("r-1", "2").settled_at(),
        };
        assert_eq!(reversals.charges, [charge]);
        let rest = store.reversals(reversals.upto).await.unwrap();
        assert_eq!((rest.upto, rest.charges.len()), (reversals.upto, 0));
    }
}

#[tokio::test]
async fn what_was_never_charged_is_not_refunded() {
    let (_dir, store) = filled().await;
    let mut unpaid = record("r-none", "2");
    unpaid.billing_type = BillingType::None;
    let batch = [unpaid, record("r-zero", "0")];
    store.settle(&batch, None, Tz::UTC).await.unwrap();
    for request in ["r-none", "r-zero"] {
        let refused = store.refund(request, Posting::default(), Tz::UTC).await;
        assert!(matches!(refused, Err(StorageError::Invalid(_))));
    }
    let unknown = store.refund("r-9", Posting::default(), Tz::UTC).await;
    assert!(matches!(unknown, Err(StorageError::NotFound { .. })));
}

#[tokio::test]
async fn a_window_that_began_anew_is_not_lowered() {
    let (_dir, store) = filled().await;
    let mut later = record("r-2", "1");
    later.created_at += TimeDelta::hours(6);
    let batch = [record("r-1", "2"), later];
    store.settle(&batch, None, Tz::UTC).await.unwrap();
    let used = |windows: &[(ApiKeyId, [Window; 3])]| windows[0].1.map(|w| w.used);
    let before = used(&store.key_windows().await.unwrap());
    assert_eq!(before[0], usd("1"));
    store
        .refund("r-1", Posting::default(), Tz::UTC)
        .await
        .unwrap();
    let after = used(&store.key_windows().await.unwrap());
    assert_eq!(after[0], usd("1"), "five hours later");
    assert_eq!(after[2], before[2] - usd("2"), "the same week");
}

#[tokio::test]
async fn every_kind_of_mismatch_is_found() {
    #[rustfmt::skip]
    let rows = [
        ("UPDATE users SET balance_nanos = balance_nanos + 1 WHERE name = 'bob'",
         "user bob: balance 0.000000001, sum of entries 0"),
        ("UPDATE usage_entries SET charge_nanos = 3 WHERE request_id = 'r-1'",
         "request r-1: record 0.000000003, charged 2"),
        ("UPDATE usage_entries SET user_id = 2 WHERE request_id = 'r-1'",
         "request r-1: record 2, charged none"),
        ("DELETE FROM usage_entries WHERE request_id = 'r-1'",
         "request r-1: record none, charged 2"),
        ("DELETE FROM usage_entries WHERE request_id = 'r-2'",
         "request r-2: record none, given back 1"),
        ("UPDATE usage_entries SET charge_nanos = 3 WHERE request_id = 'r-2'",
         "request r-2: record 0.000000003, given back 1"),
        ("UPDATE api_keys SET quota_used_nanos = 7 WHERE name = 'alice-laptop'",
         "key alice-laptop: quota used 0.000000007, sum of charges 2"),
        ("INSERT INTO ledger_entries (user_id, kind, amount_nanos, request_id, created_at) VALUES (1, 'charge', -4, 'r-9', 0)",
         "request r-9: record none, charged 0.000000004"),
        ("INSERT INTO ledger_entries (user_id, kind, amount_nanos, request_id, created_at) VALUES (1, 'charge', 4, 'r-9', 0)",
         "entry 5 (user 1, charge, 0.000000004): has the wrong sign"),
        ("INSERT INTO ledger_entries (user_id, kind, amount_nanos, created_at) VALUES (1, 'credit', -4, 0)",
         "entry 5 (user 1, credit, -0.000000004): has the wrong sign"),
        ("INSERT INTO ledger_entries (user_id, kind, amount_nanos, created_at) VALUES (1, 'adjustment', 4, 0)",
         "entry 5 (user 1, adjustment, 0.000000004): has the wrong sign"),
        ("INSERT INTO ledger_entries (user_id, kind, amount_nanos, created_at) VALUES (1, 'reversal', 4, 0)",
         "entry 5 (user 1, reversal, 0.000000004): names no request"),
        ("INSERT INTO ledger_entries (user_id, kind, amount_nanos, request_id, created_at) VALUES (1, 'charge', -9223372036854775808, 'r-9', 0)",
         "request r-9: record none, charged 9223372036.854775807"),
        ("PRAGMA foreign_keys = OFF; INSERT INTO ledger_entries (user_id, kind, amount_nanos, created_at) VALUES (77, 'credit', 4, 0)",
         "entry 5 (user 77, credit, 0.000000004): there is no such user"),
        // Sums beyond what SQLite can add up.
        ("INSERT INTO ledger_entries (user_id, kind, amount_nanos, created_at) VALUES (2, 'credit', 9223372036854775807, 0), (2, 'credit', 1, 0)",
         "user bob: balance 0, sum of entries 9223372036.854775807"),
        ("UPDATE usage_entries SET charge_nanos = 9223372036854775807 WHERE request_id = 'r-1'; \
          INSERT INTO usage_entries SELECT NULL, 'r-3', created_at, user_id, context_id, NULL, NULL, NULL, \
              0, 0, 0, 0, 0, 0, 0, 0, 0, charge_nanos, 0, NULL, NULL, NULL FROM usage_entries WHERE request_id = 'r-1'",
         "key alice-laptop: quota used 2, sum of charges 9223372036.854775807"),
    ];
    for (sql, expected) in rows {
        let (_dir, store) = filled().await;
        let batch = [record("r-1", "2"), record("r-2", "1")];
        store.settle(&batch, None, Tz::UTC).await.unwrap();
        store
            .refund("r-2", Posting::default(), Tz::UTC)
            .await
            .unwrap();
        assert!(store.verify_ledger().await.unwrap().is_empty());
        let writer = &store.inner.pools.writer;
        writer.execute_unprepared(sql).await.unwrap();
        let found = store.verify_ledger().await.unwrap();
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(texts.iter().any(|t| t == expected), "{sql}: {texts:?}");
    }
    let mismatch = LedgerMismatch::Charge {
        request_id: "r".to_owned(),
        record: None,
        entry: Some(usd("1")),
    };
    assert_eq!(
        serde_json::to_string(&mismatch).unwrap(),
        r#"{"mismatch":"charge","request_id":"r","record":null,"entry":"1"}"#
    );
}

#[tokio::test]
async fn entries_are_listed_with_what_was_said_of_them() {
    let (_dir, store) = filled().await;
    let now = chrono::Utc::now() - TimeDelta::minutes(1);
    store
        .settle(&[record("r-1", "2"), bobs("r-2", "1")], None, Tz::UTC)
        .await
        .unwrap();
    let posting = Posting {
        note: Some("sorry"),
        command: Some("usage refund"),
        idempotency_key: Some("k"),
    };
    store.refund("r-1", posting, Tz::UTC).await.unwrap();
    let all = store.ledger_entries(None, now, 0, 100).await.unwrap();
    let shown: Vec<(&str, &str, String)> = all
        .iter()
        .map(|e| (e.user.as_deref().unwrap(), &*e.kind, e.amount.to_string()))
        .collect();
    let row = |user, kind, amount: &str| (user, kind, amount.to_owned());
    assert_eq!(
        shown,
        [
            row("alice", "credit", "10"),
            row("alice", "charge", "-2"),
            row("bob", "charge", "-1"),
            row("alice", "reversal", "2"),
        ]
    );
    let last = serde_json::to_value(&all[3]).unwrap();
    for (field, value) in [
        ("note", "sorry"),
        ("command", "usage refund"),
        ("idempotency_key", "k"),
        ("request_id", "r-1"),
    ] {
        assert_eq!(last[field], value);
    }
    let page = async |user, since, after, limit| {
        let page = store.ledger_entries(user, since, after, limit).await;
        let entries = page.unwrap().into_iter().map(|e| e.entry);
        entries.collect::<Vec<i64>>()
    };
    assert_eq!(page(Some("alice"), now, 1, 1).await, [2]);
    assert_eq!(page(Some("alice"), now, 2, 9).await, [4]);
    assert_eq!(page(None, now + TimeDelta::hours(1), 0, 9).await, [0; 0]);
    let nobody = store.ledger_entries(Some("eve"), now, 0, 9).await;
    assert!(matches!(nobody, Err(StorageError::NotFound { .. })));
}

/// Whatever somebody has done to the file: what can be read is told.
#[tokio::test]
async fn what_cannot_be_read_hides_nothing_else() {
    let (_dir, store) = filled().await;
    let writer = &store.inner.pools.writer;
    for sql in [
        "UPDATE users SET balance_nanos = 1 WHERE name = 'bob'",
        "ALTER TABLE usage_entries RENAME TO gone",
    ] {
        writer.execute_unprepared(sql).await.unwrap();
    }
    let found = store.verify_ledger().await.unwrap();
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(texts[0], "user bob: balance 0.000000001, sum of entries 0");
    for (text, check) in
        texts[1..]
            .iter()
            .zip(["charges", "entries of charges", "reversals", "quotas"])
    {
        let begins = format!("{check} cannot be checked: ");
        assert!(
            text.starts_with(&begins) && text.contains("usage_entries"),
            "{text}"
        );
    }
    assert_eq!(found.len(), 5);
}

/// Two sums are one exactly when they are, whatever the signs and the sizes.
#[tokio::test]
async fn sums_are_compared_exactly() {
    for (amounts, sum) in [
        (vec![1_999_999_999, 2], 2_000_000_001_i64),
        (vec![-1_999_999_999, -2], -2_000_000_001),
        (vec![3_000_000_000, -1], 2_999_999_999),
        (vec![-3_000_000_000, 1], -2_999_999_999),
        (
            vec![999_999_999, 999_999_999, 999_999_999, -5],
            2_999_999_992,
        ),
        (vec![i64::MAX, i64::MIN, 7], 6),
        (vec![i64::MAX, 5, i64::MIN + 1], 5),
        (vec![], 0),
    ] {
        let (_dir, store) = filled().await;
        let writer = &store.inner.pools.writer;
        for amount in &amounts {
            let kind = if *amount < 0 { "adjustment" } else { "credit" };
            let sql = format!(
                "INSERT INTO ledger_entries (user_id, kind, amount_nanos, created_at) VALUES (2, '{kind}', {amount}, 0)"
            );
            writer.execute_unprepared(&sql).await.unwrap();
        }
        for (off, mismatches) in [
            (0, 0),
            (1, 1),
            (-1, 1),
            (1_000_000_000, 1),
            (-1_000_000_000, 1),
        ] {
            let sql = format!(
                "UPDATE users SET balance_nanos = {} WHERE id = 2",
                sum + off
            );
            writer.execute_unprepared(&sql).await.unwrap();
            let found = store.verify_ledger().await.unwrap();
            assert_eq!(found.len(), mismatches, "{amounts:?} {off}: {found:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Whatever is settled, refunded, credited and debited in whatever order, some of it twice.
    #[test]
    fn everything_agrees_whatever_is_entered(
        steps in prop::collection::vec((0..4_u8, 0..6_usize, 1..1000_i64), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, store) = filled().await;
            for (step, n, amount) in steps {
                let (name, request) = (format!("k-{n}"), format!("r-{n}"));
                match step {
                    0 => {
                        let mut record = record(&request, "0");
                        record.charge = Money(amount);
                        if n % 2 == 0 {
                            record.billing_type = BillingType::Subscription;
                        }
                        store.settle(&[record], None, Tz::UTC).await.unwrap();
                    }
                    // Refused or not: the ledger stays right.
                    1 => drop(store.refund(&request, with_key(&name), Tz::UTC).await),
                    2 => drop(store.credit("alice", Money(amount), with_key(&name)).await),
                    _ => drop(store.debit("alice", Money(amount), Posting::default()).await),
                }
            }
            assert_eq!(store.verify_ledger().await.unwrap(), []);
        });
    }
}
