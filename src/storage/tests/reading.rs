//! What comes out: the directory, the views, records and totals.

use sea_orm::ConnectionTrait;
use serde_json::Value;

use super::*;
use crate::domain::{ApiKeyStatus, AttemptTrace, UserStatus};
use crate::storage::{StorageError, UsageBy, UsageFilter};

#[tokio::test]
async fn the_directory_holds_what_was_applied() {
    let (dir, store) = filled().await;
    store.close().await.unwrap();
    let store = open(&dir).await;
    let wanted = resources();
    let directory = store.load_directory(Multiplier(2_000_000)).await.unwrap();
    assert_eq!(directory.version, 1);
    assert_eq!(directory.price_overrides, wanted.prices);
    assert_eq!(directory.error_rules, wanted.error_passthrough_rules);

    let key = directory
        .key(&store.hasher().hash("tg-alice-0123456789abcdef"))
        .unwrap();
    let resource = &wanted.api_keys[0];
    assert_eq!(key.name, resource.name);
    assert_eq!(key.hint, "tg-alice");
    assert_eq!(key.status, ApiKeyStatus::Active);
    assert_eq!(
        (key.quota, key.rate_limits),
        (resource.quota, resource.rate_limits)
    );
    assert_eq!(key.expires_at, resource.expires_at);
    assert_eq!(
        (&key.ip_allow, &key.ip_deny),
        (&resource.ip_allow, &resource.ip_deny)
    );

    let user = directory.user(key.user.unwrap()).unwrap();
    let group = directory.group(key.group.unwrap()).unwrap();
    assert_eq!(
        (user.name.as_str(), user.status),
        ("alice", UserStatus::Active)
    );
    assert_eq!((user.concurrency, user.rpm_limit), (5, 60));
    assert_eq!(
        user.group_multipliers,
        [(group.id, Multiplier(500_000))].into()
    );

    let resource = &wanted.groups[0];
    assert_eq!(group.name, resource.name);
    assert_eq!(Some(group.rate_multiplier), resource.rate_multiplier);
    assert_eq!(group.daily_limit, resource.daily_limit);
    assert_eq!((group.weekly_limit, group.monthly_limit), (None, None));
    assert_eq!((group.rpm_limit, &group.options), (9, &resource.options));
    let spare = directory.groups().find(|g| g.name == "spare").unwrap();
    assert_eq!(spare.rate_multiplier, Multiplier(2_000_000), "the default");

    let [account] = directory.accounts_of(group.id) else {
        panic!("one account")
    };
    let resource = &wanted.accounts[0];
    assert_eq!(account.name, resource.name);
    assert_eq!(account.credentials, resource.credentials);
    assert_eq!(account.proxy, resource.proxy);
    assert_eq!(account.groups, [group.id, spare.id]);
    assert_eq!(account.model_mapping, resource.model_mapping);
    assert_eq!((account.concurrency, account.priority), (10, 50));
    assert_eq!(
        (account.load_factor, account.rate_multiplier),
        (Some(3), Multiplier::ONE)
    );
    assert_eq!(
        (account.expires_at, &account.extra),
        (resource.expires_at, &resource.extra)
    );
    assert!(account.enabled && account.schedulable && !account.paused);
    assert!(account.error_policy.pool_mode, "its options are read");
    assert_eq!(account.error_policy.pool_mode_retry_count, 3);

    let balances = store.balances().await.unwrap();
    assert_eq!(
        balances,
        [(UserId(1), Money::from_usd(10)), (UserId(2), Money::ZERO)]
    );
}

#[tokio::test]
async fn no_secret_is_in_the_files_or_the_views() {
    let (dir, store) = filled().await;
    let mut shown =
        serde_json::to_string(&store.list_accounts(None, at(0)).await.unwrap()).unwrap();
    shown += &serde_json::to_string(&store.list_keys(None, at(0), Tz::UTC).await.unwrap()).unwrap();
    assert!(shown.contains("socks5://proxy:1080"));
    let views = shown.len();
    store.close().await.unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        shown += &String::from_utf8_lossy(&bytes);
    }
    assert!(shown.contains("alice-laptop"), "the files were read");
    for hidden in [
        "sk-one",
        "p-1\"",
        "u:p@",
        "tg-alice-0",
        "a secret for tests",
    ] {
        assert!(!shown.contains(hidden), "{hidden}");
    }
    assert!(!shown[views..].contains("socks5"), "a proxy is sealed");
}

#[tokio::test]
async fn rules_come_in_the_order_in_which_they_are_asked() {
    let (_dir, store) = filled().await;
    let mut wanted = resources();
    wanted.error_passthrough_rules = vec![
        rule("z", -3),
        rule("busy", 5),
        rule("b", 0),
        rule("a", 0),
        rule("A", 5),
    ];
    apply(&store, &wanted).await;
    let sorted = ["z", "a", "b", "A", "busy"];
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    let names: Vec<&str> = directory
        .error_rules
        .iter()
        .map(|r| r.name.as_str())
        .collect();
    assert_eq!(names, sorted);
    let listed = store.list_rules(None).await.unwrap();
    let names: Vec<&str> = listed.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, sorted);
    assert!(store.list_rules(Some("none")).await.unwrap().is_empty());
    let shown = serde_json::to_value(&store.list_rules(Some("busy")).await.unwrap()[0]).unwrap();
    let mut fields = serde_json::json!({
        "name": "busy", "enabled": true, "priority": 5, "error_codes": [529, 503],
        "keywords": ["Overloaded"], "match_mode": "all", "platforms": ["openai"],
        "passthrough_code": false, "response_code": 503, "passthrough_body": false,
        "custom_message": "Busy, please retry", "skip_monitoring": true,
        "description": "for the operator",
    });
    fields["created_at"] = shown["created_at"].clone();
    assert_eq!(shown, fields);
}

#[tokio::test]
async fn views_show_names_and_states() {
    let (_dir, store) = filled().await;
    let group = &store.list_groups(Some("main")).await.unwrap()[0];
    let json = serde_json::to_value(group).unwrap();
    assert_eq!(json["rate_multiplier"], "1.5");
    assert_eq!(json["fallback_group"], "spare");
    assert_eq!(json["accounts"], serde_json::json!(["one"]));
    let account = &store.list_accounts(Some("one"), at(0)).await.unwrap()[0];
    let json = serde_json::to_value(account).unwrap();
    assert_eq!(json["type"], "api_key");
    assert_eq!(json["base_url"], "https://api.example.com/v1");
    assert_eq!(json["credential_set"], true);
    assert_eq!(json["proxy"], "socks5://proxy:1080");
    assert_eq!(
        (&json["status"], &json["until"]),
        (&"active".into(), &Value::Null)
    );
    assert_eq!(json["groups"], serde_json::json!(["main", "spare"]));
    let user = &store
        .list_users(Some("alice"), &HashMap::new())
        .await
        .unwrap()[0];
    let json = serde_json::to_value(user).unwrap();
    assert_eq!(
        (&json["balance"], &json["reserved"]),
        (&"10".into(), &"0".into())
    );
    assert_eq!(json["available"], "10");
    assert_eq!(json["group_multipliers"]["main"], "0.5");
    assert!(
        store
            .list_users(Some("eve"), &HashMap::new())
            .await
            .unwrap()
            .is_empty()
    );

    let status = async |now| {
        store
            .list_keys(Some("alice-laptop"), now, Tz::UTC)
            .await
            .unwrap()[0]
            .status
    };
    assert_eq!(status(at(0)).await, ApiKeyStatus::Active);
    assert_eq!(status(at(9_000)).await, ApiKeyStatus::Expired);
    store
        .settle(&[record("r-1", "7")], None, Tz::UTC)
        .await
        .unwrap();
    assert_eq!(status(at(0)).await, ApiKeyStatus::QuotaExhausted);
    let mut wanted = resources();
    wanted.api_keys[0].enabled = false;
    apply(&store, &wanted).await;
    assert_eq!(status(at(0)).await, ApiKeyStatus::Disabled);
    let key = &store
        .list_keys(Some("alice-laptop"), at(60), Tz::UTC)
        .await
        .unwrap()[0];
    let json = serde_json::to_value(key).unwrap();
    assert_eq!(json["rate_limits"]["7d"], "0.000000003");
    let windows = json["windows"].as_array().unwrap();
    let reset =
        (at(1) + chrono::TimeDelta::milliseconds(234) + chrono::TimeDelta::hours(5)).to_rfc3339();
    assert_eq!(windows[0]["window"], "5h");
    assert_eq!(windows[0]["used"], "7");
    assert_eq!(windows[0]["limit"], "0.000000001");
    let resets: DateTime<Utc> = windows[0]["resets_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(resets.to_rfc3339(), reset);
    assert_eq!(
        (&windows[1]["used"], &windows[1]["limit"]),
        (&"7".into(), &serde_json::Value::Null)
    );
    assert_eq!(
        (&json["user"], &json["group"]),
        (&"alice".into(), &"main".into())
    );
}

#[tokio::test]
async fn a_record_has_exactly_the_published_fields_in_order() {
    let (_dir, store) = filled().await;
    let mut tried_twice = record("r-1", "0.125");
    tried_twice.trail = vec![
        AttemptTrace {
            account: "two".to_owned(),
            result: "overloaded".to_owned(),
            status: Some(529),
            duration_ms: 12,
        },
        AttemptTrace {
            account: "one".to_owned(),
            result: "answered".to_owned(),
            status: None,
            duration_ms: 900,
        },
    ];
    store
        .settle(&[tried_twice, record("r-2", "0")], None, Tz::UTC)
        .await
        .unwrap();
    let filter = UsageFilter::since(at(0));
    let records = store.usage_records(&filter, None, 10).await.unwrap();
    let text = serde_json::to_string(&records[0]).unwrap();
    // INTERFACE.md, "Usage record", with the values of `record`.
    let expected = concat!(
        r#"{"request_id":"r-1","client_request_id":"client-1","upstream_request_id":"upstream-1","#,
        r#""created_at":"2026-09-21T14:13:20.123Z","user":"alice","api_key":"alice-laptop","#,
        r#""group":"main","fallback_from_group":"spare","account":"one","platform":"openai","#,
        r#""endpoint":"/v1/responses","upstream_endpoint":"/responses","requested_model":"gpt-4o","#,
        r#""model":"gpt-5","upstream_model":"gpt-5-2026","model_mapping_chain":"gpt-4o→gpt-5","#,
        r#""stream":true,"status":200,"outcome":"ok","input_tokens":11,"output_tokens":12,"#,
        r#""cache_creation_tokens":13,"cache_creation_5m_tokens":14,"cache_creation_1h_tokens":15,"#,
        r#""cache_read_tokens":16,"image_output_tokens":17,"image_count":18,"cost":"0.25","#,
        r#""charge":"0.125","rate_multiplier":"0.5","account_rate_multiplier":"1","#,
        r#""billing_type":"balance","billing_mode":"token","billing_tier":null,"channel":null,"#,
        r#""priced":true,"#,
        r#""service_tier":"priority","reasoning_effort":"high","attempts":3,"account_switches":2,"#,
        r#""attempt_trail":[{"account":"two","result":"overloaded","status":529,"duration_ms":12},"#,
        r#"{"account":"one","result":"answered","status":null,"duration_ms":900}],"#,
        r#""duration_ms":1234,"first_token_ms":321,"usage_source":"reported","#,
        r#""client_disconnected":false,"ip":"10.0.0.7","user_agent":"openai-python"}"#,
    );
    assert_eq!(text, expected);
    assert!(
        serde_json::to_string(&records[1])
            .unwrap()
            .contains(r#""attempt_trail":[],"#)
    );
}

#[tokio::test]
async fn ids_in_paths_are_shown_whole_and_make_no_contexts() {
    let (_dir, store) = filled().await;
    let mut wanted = Vec::new();
    let batch: Vec<UsageRecord> = (0..50)
        .map(|n| {
            let mut record = record(&format!("r-{n}"), "0");
            let own = match n % 5 {
                0 => "/compact".to_owned(),
                1 => String::new(),
                _ => format!("/resp_{n}/cancel"),
            };
            record.endpoint = format!("/v1/responses{own}");
            record.upstream_endpoint = format!("/api/v1/responses{own}");
            wanted.push((record.endpoint.clone(), record.upstream_endpoint.clone()));
            record
        })
        .collect();
    // As a batch, one by one, and one with a context too long to be remembered.
    store.settle(&batch[..30], None, Tz::UTC).await.unwrap();
    for record in &batch[30..] {
        store
            .settle(std::slice::from_ref(record), None, Tz::UTC)
            .await
            .unwrap();
    }
    for id in ["long-1", "long-2"] {
        let mut record = batch[2].clone();
        record.request_id = id.to_owned();
        record.requested_model = "m".repeat(5000);
        wanted.push((record.endpoint.clone(), record.upstream_endpoint.clone()));
        store.settle(&[record], None, Tz::UTC).await.unwrap();
    }
    let filter = UsageFilter::since(at(0));
    let found = store.usage_records(&filter, None, 100).await.unwrap();
    let found: Vec<(String, String)> = found
        .into_iter()
        .map(|r| (r.endpoint, r.upstream_endpoint))
        .collect();
    assert_eq!(found, wanted);
    let contexts: i64 = ask(&store, "SELECT COUNT(*) FROM usage_contexts").await;
    assert_eq!(contexts, 4, "compact, nothing, any id, the long one");
}

/// The one value that a query has.
async fn ask<T: sea_orm::TryGetable>(store: &Store, sql: &str) -> T {
    let statement = crate::storage::rows::statement(sql, vec![]);
    let row = store.inner.pools.reader.query_one_raw(statement).await;
    row.unwrap().unwrap().try_get_by_index(0).unwrap()
}

#[tokio::test]
async fn old_records_are_carried_over_exactly_and_kept_once() {
    let (dir, store) = filled().await;
    let ledger = "SELECT group_concat(id || ' ' || user_id || ' ' || kind || ' ' || amount_nanos \
                  || ' ' || created_at) || (SELECT seq FROM sqlite_sequence \
                  WHERE name = 'ledger_entries') FROM ledger_entries ORDER BY id";
    store
        .credit("bob", Money(7), Posting::default())
        .await
        .unwrap();
    let entries: String = ask(&store, ledger).await;
    let writer = &store.inner.pools.writer;
    // Back to the schema before this step, with records of that time: most alike, two not.
    let initial = include_str!("../migrations/m20261121_000001_initial.sql");
    let (_, old_schema) = initial.split_once("CREATE TABLE usage_records").unwrap();
    let old_row = |id: &str, user: &str, charge: &str, endpoint: &str, optional: &str| {
        format!(
            "INSERT INTO usage_records VALUES (NULL, {id}, {optional}, {optional}, \
             1790000000123, 1, '{user}', 1, 'alice-laptop', 1, 'main', {optional}, 1, 'one', 'openai', \
             '{endpoint}', '/responses', 'gpt-4o', 'gpt-5', 'gpt-5-2026', {optional}, {charge} > 1, 200, \
             'ok', 11, 12, 13, 14, 15, 16, 17, 18, 250000000, {charge}, 500000, 'balance', {optional}, \
             {optional}, 3, 2, 1234, iif({optional} IS NULL, NULL, 321), 'reported', {charge} = 1, \
             {optional}, {optional})"
        )
    };
    let many = old_row(
        "'r-' || value",
        "alice",
        "125000000",
        "/v1/responses",
        "'o\"'",
    )
    .replace("VALUES (", "SELECT ")
    .strip_suffix(')')
    .unwrap()
    .to_owned()
        + " FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n \
             WHERE value < 3000) SELECT value FROM n)";
    for sql in [
        "DROP TABLE usage_entries",
        "DROP TABLE usage_contexts",
        "DROP TABLE channel_groups",
        "DROP TABLE channels",
        "DROP TABLE subscriptions",
        "DROP TABLE key_windows",
        "DROP TABLE subscription_windows",
        "DROP TABLE account_usage",
        "DROP TABLE journal_watermark",
        "DROP INDEX ledger_entries_by_idempotency_key",
        "ALTER TABLE ledger_entries DROP COLUMN idempotency_key",
        "ALTER TABLE ledger_entries DROP COLUMN command",
        "DELETE FROM seaql_migrations WHERE version LIKE '%records_in_context'",
        "DELETE FROM seaql_migrations WHERE version LIKE '%money'",
        &format!("CREATE TABLE usage_records{old_schema}"),
        &many,
        "DELETE FROM usage_records WHERE id = 5",
        &old_row("'anna-1'", "anna", "1", "/v1/responses/resp_1", "NULL"),
        "VACUUM",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ] {
        writer.execute_unprepared(sql).await.unwrap();
    }
    let pages: i64 = ask(&store, "SELECT page_count FROM pragma_page_count").await;
    store.close().await.unwrap();

    let store = open(&dir).await;
    assert_eq!(ask::<String>(&store, ledger).await, entries);
    let left = "SELECT COUNT(*) FROM sqlite_master WHERE name LIKE '%usage_records%'";
    assert_eq!(ask::<i64>(&store, left).await, 0, "the old table is gone");
    let now: i64 = ask(&store, "SELECT page_count FROM pragma_page_count").await;
    assert!(now <= pages, "{now} pages, of {pages} before");
    let rows = "SELECT COUNT(*) || ' ' || SUM(id) || ' ' || MAX(id) FROM usage_entries";
    let ids = format!("3000 {} 3001", 3001 * 3002 / 2 - 5);
    assert_eq!(ask::<String>(&store, rows).await, ids);
    let contexts: i64 = ask(&store, "SELECT COUNT(*) FROM usage_contexts").await;
    assert_eq!(contexts, 2, "alice's and anna's");

    // Written now, a record with the same says the same, and shares its context.
    let some = || Some("o\"".to_owned());
    let mut again = record("again", "0.125");
    again.client_request_id = some();
    again.upstream_request_id = some();
    again.fallback_from_group = some();
    again.model_mapping_chain = some();
    again.service_tier = some();
    again.reasoning_effort = some();
    again.ip = some();
    again.user_agent = some();
    let mut known = again.clone();
    known.request_id = "r-7".to_owned();
    let settled = store.settle(&[again, known], None, Tz::UTC).await.unwrap();
    assert_eq!(settled.inserted, 1, "old rows count as written");
    let contexts: i64 = ask(&store, "SELECT COUNT(*) FROM usage_contexts").await;
    assert_eq!(contexts, 2);
    let filter = UsageFilter::since(at(0));
    let found = store.usage_records(&filter, None, 4000).await.unwrap();
    let fields = |index: usize| {
        let mut json = serde_json::to_value(&found[index]).unwrap();
        let id = json.as_object_mut().unwrap().remove("request_id").unwrap();
        (id, json)
    };
    let (last, same) = fields(3000);
    assert_eq!(last, "again");
    for index in 0..2999 {
        let (id, json) = fields(index);
        assert_eq!(id, format!("r-{}", index + 1 + usize::from(index >= 4)));
        assert_eq!(json, same);
    }
    let (id, anna) = fields(2999);
    assert_eq!((id, &anna["user"]), ("anna-1".into(), &"anna".into()));
    assert_eq!(anna["endpoint"], "/v1/responses/resp_1");
    assert_eq!(
        (&anna["stream"], &anna["client_disconnected"]),
        (&Value::Bool(false), &Value::Bool(true))
    );
    for field in [
        "client_request_id",
        "fallback_from_group",
        "first_token_ms",
        "ip",
    ] {
        assert_eq!(anna[field], Value::Null, "{field}");
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repeat() {
    let (_dir, store) = filled().await;
    // Three records a second, written in another order than they arrived in.
    let mut batch: Vec<UsageRecord> = (0..60)
        .map(|n| {
            let of = if n % 2 == 1 { bobs } else { record };
            let mut record = of(&format!("r-{n:02}"), "0");
            record.created_at = at(n / 3);
            record
        })
        .collect();
    batch.rotate_left(20);
    store.settle(&batch, None, Tz::UTC).await.unwrap();
    for (since, user, expected) in [
        (at(0), None, 60),
        (at(10), None, 30),
        (at(10), Some("bob"), 15),
        (at(20), None, 0),
    ] {
        let filter = UsageFilter {
            user: user.map(str::to_owned),
            ..UsageFilter::since(since)
        };
        let mut seen: Vec<(DateTime<Utc>, String)> = Vec::new();
        let mut after = None;
        loop {
            let page = store.usage_records(&filter, after, 7).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 7);
            after = Some(last.cursor());
            seen.extend(page.into_iter().map(|r| (r.created_at, r.request_id)));
        }
        assert_eq!(seen.len(), expected);
        assert!(seen.is_sorted_by_key(|(time, _)| *time));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), expected, "a record came twice");
    }
    let nobody = UsageFilter {
        user: Some("eve".to_owned()),
        ..UsageFilter::since(at(0))
    };
    let error = store.usage_records(&nobody, None, 7).await.unwrap_err();
    assert!(matches!(error, StorageError::NotFound { kind: "user", .. }));
}

#[tokio::test]
async fn totals_add_up_by_every_key() {
    let (_dir, store) = filled().await;
    let nothing = store
        .usage_totals(&UsageFilter::since(at(0)), None)
        .await
        .unwrap();
    assert_eq!(
        (nothing.len(), nothing[0].requests, nothing[0].cost),
        (1, 0, Money::ZERO)
    );
    assert!(
        store
            .usage_totals(&UsageFilter::since(at(0)), Some(UsageBy::User))
            .await
            .unwrap()
            .is_empty()
    );

    let mut early = record("r-0", "5");
    early.created_at = at(-1);
    let mut bob = bobs("r-3", "0.5");
    bob.model = "o3".to_owned();
    let batch = [early, record("r-1", "0.1"), record("r-2", "0.2"), bob];
    store.settle(&batch, None, Tz::UTC).await.unwrap();

    let all = &store
        .usage_totals(&UsageFilter::since(at(0)), None)
        .await
        .unwrap()[0];
    assert_eq!(
        (all.requests, all.input_tokens, all.image_count),
        (3, 33, 54)
    );
    assert_eq!(all.cost, "0.75".parse().unwrap());
    assert_eq!(all.charge, "0.8".parse().unwrap());
    assert!(!serde_json::to_string(all).unwrap().contains("name"));
    for (by, expected) in [
        (UsageBy::User, vec![("bob", 1), ("alice", 2)]),
        (UsageBy::Key, vec![("bob-laptop", 1), ("alice-laptop", 2)]),
        (UsageBy::Model, vec![("o3", 1), ("gpt-5", 2)]),
        (UsageBy::Account, vec![("one", 3)]),
        (UsageBy::Group, vec![("main", 3)]),
    ] {
        let totals = store
            .usage_totals(&UsageFilter::since(at(0)), Some(by))
            .await
            .unwrap();
        let found: Vec<(&str, u64)> = totals
            .iter()
            .map(|t| (t.name.as_deref().unwrap(), t.requests))
            .collect();
        assert_eq!(found, expected, "{by:?}, dearest first");
        assert_eq!(totals.iter().map(|t| t.charge).sum::<Money>(), all.charge);
    }
}

/// Not a test of speed, but `cargo test -- --ignored --nocapture` shows it.
#[tokio::test]
#[ignore = "prints a measurement"]
async fn directory_of_a_hundred_thousand_keys() {
    let (_dir, store) = filled().await;
    let mut wanted = resources();
    for number in 0..100_000 {
        if number % 10 == 0 {
            wanted
                .accounts
                .push(account(&format!("a-{number}"), &["main"]));
        }
        let text = format!("tg-{number:032}");
        wanted
            .api_keys
            .push(key(&format!("k-{number}"), Some(&text), "alice"));
    }
    let started = std::time::Instant::now();
    apply(&store, &wanted).await;
    println!("applied in {:?}", started.elapsed());
    let started = std::time::Instant::now();
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    println!("loaded in {:?}", started.elapsed());
    for _ in 0..3 {
        let started = std::time::Instant::now();
        store.load_directory(Multiplier::ONE).await.unwrap();
        println!("again in {:?}", started.elapsed());
    }
    assert_eq!(directory.accounts().count(), 10_001);
}
