//! Settlement: exactly once, whoever repeats it, and always in step with the ledger.

use super::*;
use crate::storage::{LedgerMismatch, Settled, UsageFilter};

async fn balance(store: &Store, name: &str) -> Money {
    store.list_users(Some(name), &HashMap::new()).await.unwrap()[0].balance
}

fn usd(text: &str) -> Money {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_batch_is_settled_exactly_once() {
    let (_dir, store) = filled().await;
    let batch: Vec<UsageRecord> = (0..150)
        .map(|n| record(&format!("r-{n}"), "0.01"))
        .collect();
    let first = store.settle(&batch[..100], None, Tz::UTC).await.unwrap();
    let expected = Settled {
        balances: vec![(UserId(1), usd("9"))],
        spend: vec![(ApiKeyId(1), usd("1"))],
        accounts: store.account_usage().await.unwrap(),
        inserted: 100,
        put_aside: 0,
    };
    assert_eq!(first, expected);

    let repeated = store.settle(&batch[..100], None, Tz::UTC).await.unwrap();
    assert_eq!(
        repeated,
        Settled {
            accounts: vec![],
            inserted: 0,
            ..expected
        }
    );
    let overlapping = store.settle(&batch[50..], None, Tz::UTC).await.unwrap();
    assert_eq!(overlapping.inserted, 50);
    assert_eq!(overlapping.balances, [(UserId(1), usd("8.5"))]);
    let twice_in_one = [record("r-x", "0.5"), record("r-x", "3")];
    let settled = store.settle(&twice_in_one, None, Tz::UTC).await.unwrap();
    assert_eq!(settled.inserted, 1);
    assert_eq!(
        settled.balances,
        [(UserId(1), usd("8"))],
        "the first one counts"
    );
    assert_eq!(
        store
            .settle::<UsageRecord>(&[], None, Tz::UTC)
            .await
            .unwrap(),
        Settled::default()
    );
    assert!(store.verify_ledger().await.unwrap().is_empty());
    assert_eq!(
        store.version().await.unwrap(),
        1,
        "no change of configuration"
    );
}

#[tokio::test]
async fn who_pays_decides_what_moves() {
    for (billing, charge, balance_after, spent) in [
        (BillingType::Balance, "2", "8", "2"),
        (BillingType::Balance, "12", "-2", "12"),
        (BillingType::Balance, "0", "10", "0"),
        (BillingType::Balance, "-1", "10", "0"),
        (BillingType::Subscription, "2", "10", "2"),
        (BillingType::None, "2", "10", "0"),
    ] {
        let (_dir, store) = filled().await;
        let mut record = record("r-1", charge);
        record.billing_type = billing;
        let settled = store.settle(&[record], None, Tz::UTC).await.unwrap();
        assert_eq!(settled.inserted, 1);
        assert_eq!(
            settled.balances,
            [(UserId(1), usd(balance_after))],
            "{billing:?} {charge}"
        );
        assert_eq!(
            settled.spend,
            [(ApiKeyId(1), usd(spent))],
            "{billing:?} {charge}"
        );
        assert!(store.verify_ledger().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_nonsensical_record_does_not_stop_the_others() {
    let (_dir, store) = filled().await;
    let mut mad = record("r-mad", "0");
    mad.charge = Money(i64::MAX);
    mad.cost = Money(i64::MAX);
    mad.tokens.input = u64::MAX;
    mad.duration_ms = u64::MAX;
    let batch: Vec<UsageRecord> = (0..20)
        .map(|n| UsageRecord {
            request_id: format!("r-{n}"),
            ..mad.clone()
        })
        .collect();
    let settled = store.settle(&batch, None, Tz::UTC).await.unwrap();
    assert_eq!(settled.balances, [(UserId(1), usd("-19999990"))]);
    assert_eq!(
        store
            .settle(&[record("r-good", "1")], None, Tz::UTC)
            .await
            .unwrap()
            .inserted,
        1
    );
    let total = &store
        .usage_totals(&UsageFilter::since(at(-1)), None)
        .await
        .unwrap()[0];
    assert_eq!(total.requests, 21);
    assert!(store.verify_ledger().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_batch_that_fails_leaves_nothing_behind() {
    let (_dir, store) = filled().await;
    let batch = [record("r-1", "1"), record("r-2", "1")];
    fail_settlements(&store, true).await;
    store.settle(&batch, None, Tz::UTC).await.unwrap_err();
    fail_settlements(&store, false).await;
    assert_eq!(balance(&store, "alice").await, usd("10"));
    assert_eq!(
        store
            .settle(&batch[..1], None, Tz::UTC)
            .await
            .unwrap()
            .inserted,
        1
    );
}

#[tokio::test]
async fn the_ledger_is_append_only_and_drift_is_found() {
    let (_dir, store) = filled().await;
    let writer = &store.inner.pools.writer;
    for sql in [
        "UPDATE ledger_entries SET amount_nanos = 1",
        "DELETE FROM ledger_entries",
        "DELETE FROM users",
        "INSERT INTO ledger_entries (user_id, kind, amount_nanos, created_at) VALUES (1, 'charge', -1, 0)",
        "INSERT INTO ledger_entries (user_id, kind, amount_nanos, created_at) VALUES (1, 'gift', 1, 0)",
        "UPDATE users SET balance_nanos = 9223372036854775807 + 1",
    ] {
        writer.execute_unprepared(sql).await.unwrap_err();
    }
    assert!(store.verify_ledger().await.unwrap().is_empty());
    let drift = "UPDATE users SET balance_nanos = balance_nanos + 1 WHERE name = 'bob'";
    writer.execute_unprepared(drift).await.unwrap();
    let found = store.verify_ledger().await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(
        matches!(&found[0], LedgerMismatch::Balance { user, balance, .. } if user == "bob" && *balance == Money(1))
    );
}

/// Two processes, as far as SQLite can tell: separate pools on one file, all writing at once and
/// each batch given twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_stores_settling_and_crediting_at_once_stay_in_step() {
    let (dir, first) = filled().await;
    let second = open(&dir).await;
    let mut tasks = Vec::new();
    for task in 0..40_i64 {
        let store = if task % 2 == 0 { &first } else { &second }.clone();
        tasks.push(tokio::spawn(async move {
            if task % 4 == 3 {
                store
                    .credit("alice", Money::from_usd(1), Posting::default())
                    .await
                    .unwrap();
                return 0;
            }
            let batch: Vec<UsageRecord> = (0..70)
                .map(|n| {
                    let id = format!("r-{}-{n}", task / 2);
                    let of = if n % 2 == 0 { record } else { bobs };
                    of(&id, "0.001")
                })
                .collect();
            store.settle(&batch, None, Tz::UTC).await.unwrap().inserted
        }));
    }
    let inserted: usize = futures::future::join_all(tasks)
        .await
        .into_iter()
        .map(Result::unwrap)
        .sum();
    // Tasks 4n and 4n+1 write the same ids; 4n+2 shares its ids with a credit only.
    assert_eq!(inserted, 20 * 70);
    assert_eq!(balance(&first, "alice").await, usd("19.3"));
    assert_eq!(balance(&second, "bob").await, usd("-0.7"));
    let spend = first.key_spend().await.unwrap();
    assert_eq!(
        spend,
        [(ApiKeyId(1), usd("0.7")), (ApiKeyId(2), usd("0.7"))]
    );
    assert!(second.verify_ledger().await.unwrap().is_empty());
}

/// Where the other process of the next test finds the data directory.
const SHARED_DIR: &str = "TOLLGATE_TEST_SHARED_DIR";

/// A real second process (this test binary again) opens the new directory, settles and credits
/// while this one does the same.
#[tokio::test]
async fn two_processes_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let other = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--ignored",
            "storage::tests::settling::the_other_process",
        ])
        .env(SHARED_DIR, dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let store = open(&dir).await;
    work(&store, "here").await;
    let other = tokio::task::spawn_blocking(|| other.wait_with_output().unwrap());
    assert!(other.await.unwrap().status.success());
    // 100 settlements of a dollar in ten cents and 20 credits of a cent, by each of the two.
    assert_eq!(balance(&store, "alice").await, usd("-189.6"));
    assert_eq!(store.key_spend().await.unwrap()[0].1, usd("200"));
    assert_eq!(
        store.version().await.unwrap(),
        41,
        "one apply and forty credits"
    );
    assert!(store.verify_ledger().await.unwrap().is_empty());
}

#[tokio::test]
#[ignore = "started by two_processes_share_a_directory"]
async fn the_other_process() {
    let Some(dir) = std::env::var_os(SHARED_DIR) else {
        return;
    };
    let store = Store::open(dir.as_ref(), &secret()).await.unwrap();
    work(&store, "there").await;
}

async fn work(store: &Store, who: &str) {
    apply(store, &resources()).await;
    for round in 0..100 {
        let batch: Vec<UsageRecord> = (0..10)
            .map(|n| record(&format!("{who}-{round}-{n}"), "0.1"))
            .collect();
        store.settle(&batch, None, Tz::UTC).await.unwrap();
        if round % 5 == 0 {
            store
                .credit("alice", usd("0.01"), Posting::default())
                .await
                .unwrap();
        }
    }
}

/// SQLite ends the transaction by itself when the disk is full; the connection must not be lost with it.
#[tokio::test]
async fn writing_goes_on_after_the_disk_was_full() {
    let (_dir, store) = filled().await;
    let writer = &store.inner.pools.writer;
    let most_pages = async |pages: u32| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        writer.execute_unprepared(&sql).await.unwrap();
    };
    let mut written = 0;
    for _ in 0..3 {
        most_pages(1).await; // it has more already: then those are the most
        // One row at a time: statements of many rows are undone alone, and the transaction lives on.
        let full = loop {
            let next = [record(&format!("r-{written}"), "0.001")];
            match store.settle(&next, None, Tz::UTC).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 10_000, "the disk is never full");
        };
        assert!(full.to_string().contains("disk is full"), "{full}");
        // On the same connection, if that is still there.
        most_pages(u32::MAX - 1).await;
        let posting = Posting::default();
        store.credit("bob", Money(1), posting).await.unwrap();
        let batch: Vec<UsageRecord> = (0..200)
            .map(|n| record(&format!("r-{}", written + n), "0.001"))
            .collect();
        let settled = store.settle(&batch, None, Tz::UTC).await.unwrap();
        assert_eq!(settled.inserted, 200, "nothing of what failed was kept");
        written += 200;
    }
    assert_eq!(balance(&store, "bob").await, Money(3));
    let paid = Money(1_000_000 * written);
    assert_eq!(balance(&store, "alice").await, usd("10") - paid);
    assert!(store.verify_ledger().await.unwrap().is_empty());
}

/// Not a test of speed, but `cargo test -- --ignored --nocapture` shows it.
#[tokio::test]
#[ignore = "prints a measurement"]
async fn settlement_rate() {
    let (_dir, store) = filled().await;
    for size in [1, 100, 1_000, 10_000] {
        let rounds = 20_000_usize.div_ceil(size).min(200);
        let batches: Vec<Vec<UsageRecord>> = (0..rounds)
            .map(|round| {
                (0..size)
                    .map(|n| record(&format!("{size}-{round}-{n}"), "0.0001"))
                    .collect()
            })
            .collect();
        let started = std::time::Instant::now();
        for batch in &batches {
            store.settle(batch, None, Tz::UTC).await.unwrap();
        }
        let rate = (rounds * size) as u128 * 1_000_000 / started.elapsed().as_micros();
        println!("batches of {size}: {rate} records/s");
    }
}
