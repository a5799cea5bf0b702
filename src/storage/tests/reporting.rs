//! What was used: totals with filters and by day, and what a key is told.

use chrono::TimeDelta;
use chrono_tz::Tz;
use sea_orm::ConnectionTrait;

use super::*;
use crate::storage::{KeySpan, StorageError, UsageBy, UsageFilter, UsageSums};

fn moment(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn named(totals: &[crate::storage::UsageTotal]) -> Vec<(&str, u64)> {
    totals
        .iter()
        .map(|total| (total.name.as_deref().unwrap(), total.requests))
        .collect()
}

/// A record of that time, with that charge.
fn used(id: &str, time: &str, charge: &str) -> UsageRecord {
    let mut record = record(id, charge);
    record.created_at = moment(time);
    record
}

#[tokio::test]
async fn filters_hold_for_totals_and_records_alike() {
    let (_dir, store) = filled().await;
    let bob = bobs("r-2", "2");
    let mut other = record("r-3", "3");
    (other.model, other.group) = ("o3".to_owned(), "spare".to_owned());
    let mut late = record("r-4", "4");
    late.created_at = at(100);
    let batch = [record("r-1", "1"), bob, other, late];
    store
        .settle(&batch, None, chrono_tz::Tz::UTC)
        .await
        .unwrap();
    let some = |name: &str| Some(name.to_owned());
    let all = UsageFilter::since(at(0));
    type Change = Box<dyn Fn(&mut UsageFilter)>;
    let rows: [(Change, &[&str]); 9] = [
        (Box::new(|_| {}), &["r-1", "r-2", "r-3", "r-4"]),
        (
            Box::new(|f| f.until = Some(at(100))),
            &["r-1", "r-2", "r-3"],
        ),
        (Box::new(|f| f.since = at(1)), &["r-4"]),
        (Box::new(move |f| f.user = some("bob")), &["r-2"]),
        (
            Box::new(move |f| f.key = some("alice-laptop")),
            &["r-1", "r-3", "r-4"],
        ),
        (
            Box::new(move |f| f.account = some("one")),
            &["r-1", "r-2", "r-3", "r-4"],
        ),
        (Box::new(move |f| f.model = some("o3")), &["r-3"]),
        (Box::new(move |f| f.model = some("nobody's")), &[]),
        (
            Box::new(move |f| {
                (f.user, f.group, f.until) = (some("alice"), some("main"), Some(at(50)));
            }),
            &["r-1"],
        ),
    ];
    for (change, expected) in rows {
        let mut filter = all.clone();
        change(&mut filter);
        let mut records = Vec::new();
        let mut after = None;
        loop {
            let page = store.usage_records(&filter, after, 2).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.cursor());
            records.extend(page);
        }
        let ids: Vec<&str> = records.iter().map(|r| r.request_id.as_str()).collect();
        assert_eq!(ids, expected, "{filter:?}");
        let total = &store.usage_totals(&filter, None).await.unwrap()[0];
        assert_eq!(total.requests as usize, expected.len(), "{filter:?}");
        assert_eq!(
            total.charge,
            records.iter().map(|r| r.charge).sum::<Money>(),
            "{filter:?}"
        );
        let by_user = store.usage_totals(&filter, Some(UsageBy::User)).await;
        let sum: u64 = by_user.unwrap().iter().map(|t| t.requests).sum();
        assert_eq!(sum, total.requests, "{filter:?}");
    }
    type Name = fn(&mut UsageFilter) -> &mut Option<String>;
    let names: [(&str, Name); 4] = [
        ("user", |f| &mut f.user),
        ("key", |f| &mut f.key),
        ("account", |f| &mut f.account),
        ("group", |f| &mut f.group),
    ];
    for (kind, name) in names {
        let mut filter = all.clone();
        *name(&mut filter) = Some("eve".to_owned());
        let error = store.usage_totals(&filter, None).await.unwrap_err();
        assert!(
            matches!(error, StorageError::NotFound { kind: k, .. } if k == kind),
            "{kind}: {error}"
        );
    }
}

#[tokio::test]
async fn days_are_those_of_a_time_zone() {
    let (_dir, store) = filled().await;
    let batch = [
        used("r-1", "2026-11-24T22:59:59.999Z", "1"),
        used("r-2", "2026-11-24T23:00:00Z", "2"),
        used("r-3", "2026-11-25T18:29:59Z", "4"),
        used("r-4", "2026-11-25T18:30:00Z", "8"),
    ];
    store
        .settle(&batch, None, chrono_tz::Tz::UTC)
        .await
        .unwrap();
    let all = UsageFilter::since(moment("2026-11-01T00:00:00Z"));
    for (tz, expected) in [
        (Tz::UTC, vec![("2026-11-24", 2), ("2026-11-25", 2)]),
        (
            chrono_tz::Europe::Berlin,
            vec![("2026-11-24", 1), ("2026-11-25", 3)],
        ),
        (
            // Half an hour from the full one.
            chrono_tz::Asia::Kolkata,
            vec![("2026-11-25", 3), ("2026-11-26", 1)],
        ),
    ] {
        let totals = store.usage_totals(&all, Some(UsageBy::Day(tz))).await;
        let totals = totals.unwrap();
        assert_eq!(named(&totals), expected, "{tz}");
        assert_eq!(
            totals.iter().map(|t| t.charge).sum::<Money>(),
            "15".parse().unwrap()
        );
    }
    let none = UsageFilter::since(moment("2027-01-01T00:00:00Z"));
    let totals = store.usage_totals(&none, Some(UsageBy::Day(Tz::UTC))).await;
    assert!(totals.unwrap().is_empty());
}

#[tokio::test]
async fn requests_with_tokens_and_no_price_are_counted() {
    let (_dir, store) = filled().await;
    let mut silent = record("r-2", "0");
    (silent.tokens, silent.model) = (TokenUsage::default(), "house".to_owned());
    let mut house = record("r-3", "0");
    house.model = "house".to_owned();
    store
        .settle(
            &[record("r-1", "1"), silent, house],
            None,
            chrono_tz::Tz::UTC,
        )
        .await
        .unwrap();
    let mark = "UPDATE usage_contexts SET details = json_set(details, '$.priced', json('false')) \
                WHERE model = 'house'";
    let writer = &store.inner.pools.writer;
    writer.execute_unprepared(mark).await.unwrap();
    let all = UsageFilter::since(at(0));
    let total = &store.usage_totals(&all, None).await.unwrap()[0];
    assert_eq!((total.requests, total.unpriced), (3, 1));
    let models = store.usage_totals(&all, Some(UsageBy::Model)).await;
    let unpriced: Vec<(Option<String>, u64)> = models
        .unwrap()
        .into_iter()
        .map(|t| (t.name, t.unpriced))
        .collect();
    assert_eq!(
        unpriced,
        [(Some("house".to_owned()), 1), (Some("gpt-5".to_owned()), 0)]
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
    );
}

fn span(now: &str) -> KeySpan {
    let now = moment(now);
    KeySpan {
        key: ApiKeyId(1),
        user: UserId(1),
        now,
        today: moment("2026-11-25T00:00:00Z"),
        from: moment("2026-11-20T00:00:00Z"),
        to: now,
    }
}

#[tokio::test]
async fn a_key_is_told_what_it_used_and_each_request_once() {
    let (_dir, store) = filled().await;
    let now = "2026-11-25T12:07:00Z";
    assert_eq!(
        store.key_statistics(&span(now)).await.unwrap(),
        Default::default()
    );
    let mut other = used("r-4", "2026-11-25T12:06:30Z", "0.5");
    (other.model, other.duration_ms) = ("o3".to_owned(), 34);
    let mut foreign = used("r-5", "2026-11-25T12:06:30Z", "9");
    (foreign.api_key_id, foreign.api_key) = (ApiKeyId(2), "bob-laptop".to_owned());
    let batch = [
        used("r-1", "2026-01-01T00:00:00Z", "1"),
        used("r-2", "2026-11-20T00:00:00Z", "2"),
        used("r-3", "2026-11-25T00:00:00Z", "4"),
        other,
        foreign,
    ];
    store
        .settle(&batch[..2], None, chrono_tz::Tz::UTC)
        .await
        .unwrap();
    // Some of them again, and once more in one batch.
    let again = [&batch[..], &batch[3..]].concat();
    store
        .settle(&again, None, chrono_tz::Tz::UTC)
        .await
        .unwrap();
    store
        .settle(&again, None, chrono_tz::Tz::UTC)
        .await
        .unwrap();
    let statistics = store.key_statistics(&span(now)).await.unwrap();
    let sums = |requests: u64, charge: &str| UsageSums {
        requests,
        input_tokens: 11 * requests,
        output_tokens: 12 * requests,
        cache_creation_tokens: 13 * requests,
        cache_read_tokens: 16 * requests,
        cost: Money(250_000_000 * requests as i64),
        charge: charge.parse().unwrap(),
    };
    assert_eq!(statistics.total, sums(4, "7.5"));
    assert_eq!(statistics.today, sums(2, "4.5"));
    assert_eq!(statistics.minute, sums(1, "0.5"));
    assert_eq!(statistics.average_duration_ms, (3 * 1234 + 34) / 4);
    assert_eq!(
        statistics.models,
        [
            ("gpt-5".to_owned(), sums(2, "6")),
            ("o3".to_owned(), sums(1, "0.5"))
        ]
    );
    assert_eq!(sums(1, "0").total_tokens(), 52);
    // Up to the end of a day, which is the beginning of the next.
    let earlier = KeySpan {
        to: moment("2026-11-25T00:00:00Z"),
        ..span(now)
    };
    let statistics = store.key_statistics(&earlier).await.unwrap();
    assert_eq!(statistics.models, [("gpt-5".to_owned(), sums(1, "2"))]);
    let inverted = KeySpan {
        to: earlier.from - TimeDelta::days(1),
        ..earlier
    };
    assert!(
        store
            .key_statistics(&inverted)
            .await
            .unwrap()
            .models
            .is_empty()
    );
}

/// The sums that were kept are what the step makes of the records.
#[tokio::test]
async fn sums_kept_and_sums_made_are_the_same() {
    let (_dir, store) = filled().await;
    let batch: Vec<UsageRecord> = (0..200)
        .map(|n| {
            let of = if n % 3 == 0 { record } else { bobs };
            let mut record = of(&format!("r-{n}"), "0.01");
            record.created_at = at(n * 97 % 5000);
            record.model = format!("model-{}", n % 4);
            record
        })
        .collect();
    for part in batch.chunks(30) {
        store.settle(part, None, chrono_tz::Tz::UTC).await.unwrap();
    }
    let rows = "SELECT group_concat(api_key_id || ' ' || quarter || ' ' || model || ' ' || requests || ' ' \
                || input_tokens || ' ' || cost_nanos || ' ' || charge_nanos || ' ' || duration_ms, ';') \
                FROM (SELECT * FROM usage_by_key ORDER BY 1, 2, 3)";
    let ask = async || -> String {
        let statement = crate::storage::rows::statement(rows, vec![]);
        let row = store.inner.pools.reader.query_one_raw(statement).await;
        row.unwrap().unwrap().try_get_by_index(0).unwrap()
    };
    let kept = ask().await;
    let step = include_str!("../migrations/m20261125_000005_usage_by_key.sql");
    let writer = &store.inner.pools.writer;
    writer
        .execute_unprepared(&format!("DROP TABLE usage_by_key; {step}"))
        .await
        .unwrap();
    assert_eq!(ask().await, kept);
    assert!(kept.matches(';').count() > 20, "{kept}");
}
