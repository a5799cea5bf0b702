//! The operator's commands beside a running server, and what the server makes of them.

use std::process::Output;

use serde_json::{Value, json};
use tollgate::domain::Money;
use tollgate_test_support::{
    Answer, ClientReply, FakeUpstream, Gate, Request, Usage, openai, post_json,
};

use crate::harness::{Gateway, KEY, Setup, ask, ask_anew, free_address};

/// What a request of the fake's usual size costs with gpt-5-mini: 100 input tokens, 20 from the
/// cache, 30 output.
const USUAL_COST: &str = "0.0000855";

/// A kind of object, the names in its list, and fields of the first.
type Shown<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, Value)]);

/// What totals are by, and for each: name, requests, cost, charge.
type Totals<'a> = (&'a str, &'a [(&'a str, u64, &'a str, &'a str)]);

async fn asked(gateway: &Gateway, key: &str) -> ClientReply {
    let body = ask_anew("gpt-5-mini", false);
    post_json(gateway.address, "/v1/responses", key, &body)
        .await
        .unwrap()
}

async fn status(gateway: &Gateway, key: &str) -> u16 {
    asked(gateway, key).await.status
}

/// Changes something in the store and waits until the server has followed.
async fn followed<T>(gateway: &Gateway, change: impl FnOnce() -> T) -> T {
    let before = gateway.metric("directory_reloads_total");
    let result = change();
    gateway
        .wait("the server follows", || {
            gateway.metric("directory_reloads_total") > before
        })
        .await;
    result
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn strings(list: &Value) -> Vec<&str> {
    let items = list.as_array().expect("a list").iter();
    items.map(|item| item.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_reports_and_a_running_server_follows() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    const NEW: &str = "tg-new-0123456789abcdef";
    assert_eq!(status(&gateway, KEY).await, 200);
    assert_eq!(status(&gateway, NEW).await, 401);

    // The same again: nothing to do.
    let same = Setup::with(&[&upstream]).resources;
    let report = gateway.apply(&same);
    for nothing in ["created", "changed", "removed"] {
        assert_eq!(report[nothing], json!([]), "{nothing}");
    }
    assert_eq!(
        strings(&report["left"]),
        [
            "groups/main",
            "users/alice",
            "accounts/a1",
            "api_keys/alice-key"
        ]
    );

    // A new user with a new key; the key that was there is switched off.
    let change = json!({
        "users": [{"name": "bob", "balance": "1"}],
        "api_keys": [
            {"name": "bob-key", "key": NEW, "user": "bob", "group": "main"},
            {"name": "alice-key", "user": "alice", "group": "main", "enabled": false},
        ],
    });
    let dry = gateway.try_run(
        &["apply", "--dry-run", "--json", "-f", "-"],
        &change.to_string(),
    );
    assert!(dry.status.success());
    assert_eq!(status(&gateway, NEW).await, 401, "a dry run does nothing");
    let report = followed(&gateway, || gateway.apply(&change)).await;
    assert_eq!(
        report,
        serde_json::from_slice::<Value>(&dry.stdout).unwrap(),
        "a dry run says what would be done"
    );
    assert_eq!(
        strings(&report["created"]),
        ["users/bob", "api_keys/bob-key"]
    );
    assert_eq!(strings(&report["changed"]), ["api_keys/alice-key"]);
    assert_eq!(status(&gateway, NEW).await, 200);
    assert_eq!(status(&gateway, KEY).await, 401);

    // Back again; an entry without `key` keeps the one it has.
    let change = json!({"api_keys": [{"name": "alice-key", "user": "alice", "group": "main"}]});
    followed(&gateway, || gateway.apply(&change)).await;
    assert_eq!(status(&gateway, KEY).await, 200);

    // Pruned to what the first file says: what is not in it is disabled, history stays.
    let report = followed(&gateway, || {
        let prune = ["apply", "--prune", "--json", "-f", "-"];
        let output = gateway.try_run(&prune, &same.to_string());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    })
    .await;
    let mut removed = strings(&report["removed"]);
    removed.sort();
    assert_eq!(removed, ["api_keys/bob-key", "users/bob"]);
    assert_eq!(status(&gateway, NEW).await, 401);
    assert_eq!(status(&gateway, KEY).await, 200);
    let bob = gateway.run_json(&["users", "show", "bob", "--json"]);
    assert_eq!(bob["enabled"], json!(false));
    let records = gateway.wait_records(4).await;
    assert!(records.iter().any(|r| r["user"] == "bob"));

    // For people: words instead of JSON.
    let output = gateway.try_run(&["apply", "-f", "-"], &same.to_string());
    assert_eq!(
        stdout(&output),
        "0 created, 0 changed, 0 removed, 4 left as they are\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_and_prices_follow_too() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = Setup::with(&[&first]).start().await;
    assert_eq!(status(&gateway, KEY).await, 200);
    // Another address for the account, another price for the model.
    let change = json!({
        "accounts": [{
            "name": "a1", "platform": "openai", "groups": ["main"],
            "credentials": {"api_key": "sk-a1-new", "base_url": second.url()},
        }],
        "prices": {"gpt-5-mini": {
            "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-5,
            "cache_read_input_token_cost": 1e-7,
        }},
    });
    let report = followed(&gateway, || gateway.apply(&change)).await;
    assert_eq!(strings(&report["created"]), ["prices/gpt-5-mini"]);
    assert_eq!(strings(&report["changed"]), ["accounts/a1"]);
    assert_eq!(status(&gateway, KEY).await, 200);
    assert_eq!(first.total(), 1);
    assert_eq!(second.only_request().credential(), Some("sk-a1-new"));
    let records = gateway.wait_records(2).await;
    assert_eq!(records[0]["cost"], json!(USUAL_COST));
    // 100 × 1e-6 + 20 × 1e-7 + 30 × 1e-5.
    assert_eq!(records[1]["cost"], json!("0.000402"));
    assert_eq!(records[1]["charge"], json!("0.000402"));

    // A multiplier of the group, then the user's own in its place.
    for (count, change, charge) in [
        (
            3,
            json!({"groups": [{"name": "main", "platform": "openai", "rate_multiplier": "2.5"}]}),
            "0.001005",
        ),
        (
            4,
            json!({"users": [{"name": "alice", "concurrency": 50, "group_multipliers": {"main": "0.5"}}]}),
            "0.000201",
        ),
    ] {
        followed(&gateway, || gateway.apply(&change)).await;
        assert_eq!(status(&gateway, KEY).await, 200);
        let records = gateway.wait_records(count).await;
        let last = records.last().unwrap();
        assert_eq!(last["cost"], json!("0.000402"), "{change}");
        assert_eq!(last["charge"], json!(charge), "{change}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credit_lets_a_broke_user_in_again() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .resources(|r| r["users"][0]["balance"] = json!("0.00001"))
        .start()
        .await;
    assert_eq!(status(&gateway, KEY).await, 200);
    let reply = asked(&gateway, KEY).await;
    assert_eq!(reply.status, 403);
    assert_eq!(reply.json()["error"]["type"], json!("billing_error"));
    gateway.only_record().await;
    // What the request cost beyond the balance is owed.
    assert_eq!(gateway.balance("alice"), "-0.0000755");

    for (amount, problem) in [
        ("0", "more than 0"),
        ("-5", "more than 0"),
        ("a lot", "is no amount"),
    ] {
        let output = gateway.try_run(&["users", "credit", "alice", "--", amount], "");
        assert_eq!(output.status.code(), Some(1), "{amount}");
        assert!(stderr(&output).contains(problem), "{}", stderr(&output));
    }
    let output = gateway.try_run(&["users", "credit", "nobody", "5"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no user named nobody"));
    assert_eq!(status(&gateway, KEY).await, 403);

    let said = followed(&gateway, || {
        gateway.run(&["users", "credit", "alice", "5.50"])
    })
    .await;
    assert!(said.contains("5.4999245"), "{said}");
    assert_eq!(status(&gateway, KEY).await, 200);
    gateway.wait_records(2).await;
    let alice = gateway.run_json(&["users", "show", "alice", "--json"]);
    assert_eq!(alice["balance"], json!("5.499839"));
    assert_eq!(alice["reserved"], json!("0"));
    assert_eq!(alice["available"], json!("5.499839"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_shown_with_what_their_running_requests_hold() {
    let upstream = FakeUpstream::start().await;
    let mut gateway = Setup::with(&[&upstream])
        .resources(|r| r["users"][0]["balance"] = json!("0.5"))
        .start()
        .await;
    // Of alice, and of everybody.
    let shown = |gateway: &Gateway| {
        let alice = gateway.run_json(&["users", "show", "alice", "--json"]);
        assert_eq!(gateway.run_json(&["users", "list", "--json"])[0], alice);
        ["balance", "reserved", "available"].map(|name| {
            let amount = alice[name].as_str().unwrap();
            amount.parse::<Money>().unwrap()
        })
    };
    let gate = Gate::new();
    let late = openai::responses_json("gpt-5-mini", "r", "late", Usage::default());
    upstream.push(Answer::body(200, "application/json", late).after(&gate));
    let address = gateway.address;
    let mut body = ask("gpt-5-mini", false);
    body["max_output_tokens"] = json!(4000);
    let length = body.to_string().len() as i64;
    let running =
        tokio::spawn(async move { post_json(address, "/v1/responses", KEY, &body).await });
    upstream
        .wait_for("the request", |_| upstream.in_flight() > 0)
        .await;
    let [balance, reserved, available] = shown(&gateway);
    // A byte is a token at 250 nano-dollars; every token that may come back is one at 2,000.
    assert_eq!(reserved, Money(length * 250 + 4000 * 2000));
    assert_eq!(
        (balance, available),
        (Money(500_000_000), balance - reserved)
    );
    let table = gateway.run(&["users", "list"]);
    assert!(table.contains(&reserved.to_string()), "{table}");

    gate.open();
    assert_eq!(running.await.unwrap().unwrap().status, 200);
    gateway.only_record().await;
    let [balance, reserved, available] = shown(&gateway);
    assert_eq!((reserved, available), (Money::ZERO, balance));
    assert_eq!(balance, Money(500_000_000) - USUAL_COST.parse().unwrap());

    // Without a journal nothing runs.
    gateway.finish();
    std::fs::remove_dir_all(gateway.data().join("journal")).unwrap();
    assert_eq!(shown(&gateway), [balance, Money::ZERO, balance]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_is_given_taken_and_given_back_once() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    assert_eq!(status(&gateway, KEY).await, 200);
    let record = gateway.only_record().await;
    let request = record["request_id"].as_str().unwrap();
    assert_eq!(gateway.balance("alice"), "9.9999145");

    let credit = [
        "users",
        "credit",
        "alice",
        "5",
        "--idempotency-key",
        "invoice-7",
        "--note",
        "paid",
    ];
    let said = gateway.run(&credit);
    assert!(said.contains("balance is 14.9999145"), "{said}");
    let said = gateway.run(&["users", "debit", "alice", "1"]);
    assert!(said.contains("balance is 13.9999145"), "{said}");
    let said = gateway.run(&credit);
    assert!(
        said.starts_with("done before") && said.contains("14.9999145"),
        "{said}"
    );
    assert_eq!(gateway.balance("alice"), "13.9999145");
    let mut other = credit;
    other[3] = "6";
    let refusals = [
        (&other[..], "was used for another entry"),
        (
            &["users", "debit", "alice", "--", "-1"],
            "a debit must be more than 0",
        ),
        (
            &["usage", "refund", "req_none"],
            "there is no usage record named req_none",
        ),
    ];
    for (arguments, why) in refusals {
        let output = gateway.try_run(arguments, "");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }

    let said = gateway.run(&["usage", "refund", request]);
    assert!(
        said.contains("gave 0.0000855 USD back to alice; the balance is 14 USD"),
        "{said}"
    );
    let output = gateway.try_run(&["usage", "refund", request], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("was refunded at"),
        "{}",
        stderr(&output)
    );
    let key = gateway.run_json(&["keys", "show", "alice-key", "--json"]);
    assert_eq!(key["quota_used"], json!("0"));
    let said = gateway.run(&["ledger", "verify"]);
    assert!(said.contains("agree"), "{said}");
    assert_eq!(gateway.run_json(&["ledger", "verify", "--json"]), json!([]));

    let listed = gateway.run(&["ledger", "list", "--user", "alice", "--json"]);
    let entries: Vec<Value> = listed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let shown: Vec<_> = entries
        .iter()
        .map(|entry| (&entry["kind"], &entry["amount"], &entry["note"]))
        .collect();
    let rows = [
        (&json!("credit"), &json!("10"), &json!("opening balance")),
        (&json!("charge"), &json!("-0.0000855"), &json!(null)),
        (&json!("credit"), &json!("5"), &json!("paid")),
        (&json!("adjustment"), &json!("-1"), &json!(null)),
        (&json!("reversal"), &json!("0.0000855"), &json!(null)),
    ];
    assert_eq!(shown, rows);
    assert_eq!(entries[4]["request_id"], request);
    let table = gateway.run(&["ledger", "list", "--since", "1h"]);
    assert_eq!(table.lines().count(), 1 + entries.len(), "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_paused_and_resumed() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream, &upstream]).start().await;
    let used = || {
        let last = upstream.requests().pop().unwrap();
        last.credential().unwrap().to_owned()
    };
    assert_eq!(status(&gateway, KEY).await, 200);
    assert_eq!(used(), "sk-a1");
    let said = followed(&gateway, || gateway.run(&["accounts", "pause", "a1"])).await;
    assert_eq!(said, "paused  a1\n");
    assert_eq!(status(&gateway, KEY).await, 200);
    assert_eq!(used(), "sk-a2");
    followed(&gateway, || gateway.run(&["accounts", "pause", "--all"])).await;
    let reply = asked(&gateway, KEY).await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["error"]["type"], json!("api_error"));
    let paused: Vec<Value> = gateway
        .run_json(&["accounts", "list", "--json"])
        .as_array()
        .unwrap()
        .iter()
        .map(|account| account["paused"].clone())
        .collect();
    assert_eq!(paused, [json!(true), json!(true)]);

    // A name that does not exist: nothing is done to the others.
    let output = gateway.try_run(&["accounts", "resume", "a1", "a9", "b9"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("a9, b9"), "{}", stderr(&output));
    assert_eq!(status(&gateway, KEY).await, 503);

    followed(&gateway, || {
        gateway.run(&["accounts", "resume", "a1", "a2"])
    })
    .await;
    assert_eq!(status(&gateway, KEY).await, 200);
    assert_eq!(used(), "sk-a1");

    // A cool-down is over when the operator says so.
    let limited = Answer::error(429, "rate_limit_exceeded").header("retry-after", "3600");
    upstream.push_for("sk-a1", limited);
    assert_eq!(status(&gateway, KEY).await, 200);
    assert_eq!(used(), "sk-a2");
    assert_eq!(status(&gateway, KEY).await, 200);
    assert_eq!(used(), "sk-a2", "the first account cools down");
    followed(&gateway, || gateway.run(&["accounts", "resume", "a1"])).await;
    assert_eq!(status(&gateway, KEY).await, 200);
    assert_eq!(used(), "sk-a1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_mistakes_changes_nothing() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let before =
        ["groups", "accounts", "users", "keys"].map(|kind| gateway.run(&[kind, "list", "--json"]));
    let wrong = json!({
        "groups": [
            {"name": "extra", "platform": "openai"},
            {"name": "x", "platform": "openia"},
            {"name": "y", "platform": "openai", "rate_multiplier": "fast"},
        ],
        "accounts": [{
            "name": "b1", "platform": "openai", "groups": ["main"], "concurency": 5,
            "credentials": {"api_key": "sk-a1-secret", "base_url": "ftp://nowhere"},
        }],
        "users": [{"name": "carol", "balance": "1,50"}, {"name": "carol"}],
        "api_keys": [{"name": "k", "key": "short", "user": "carol", "group": "main"}],
        "channels": [{"name": "default", "groups": ["main"], "prices": [{"platform": "openai"}]}],
        "subscriptions": [{"user": "alice", "group": "main"}],
    });
    for arguments in [
        &["apply", "-f", "-"][..],
        &["apply", "--dry-run", "-f", "-"],
        &["check", "-f", "-"],
    ] {
        let output = gateway.try_run(arguments, &wrong.to_string());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        let said = stderr(&output);
        for mistake in [
            "openia",
            "rate_multiplier",
            "concurency",
            "concurrency",
            "base_url",
            "1,50",
            "carol",
            "channels[0]",
            "subscriptions[0]",
            "api_keys[0]",
        ] {
            assert!(
                said.contains(mistake),
                "{arguments:?}: no {mistake} in\n{said}"
            );
        }
        assert!(said.lines().count() >= 9, "a line each:\n{said}");
        for secret in ["sk-a1-secret", "short\""] {
            assert!(!said.contains(secret), "{secret} in\n{said}");
        }
    }
    // Names that neither the file nor the store knows.
    let missing = json!({
        "groups": [{"name": "extra", "platform": "openai"}],
        "accounts": [{"name": "b1", "platform": "openai", "groups": ["main", "none"],
            "credentials": {"api_key": "sk-b1"}}],
        "users": [{"name": "dave", "group_multipliers": {"nowhere": "1"}}],
        "api_keys": [{"name": "k", "user": "nobody", "group": "nogroup"}],
    });
    let output = gateway.try_run(&["apply", "-f", "-"], &missing.to_string());
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    for name in ["none", "nowhere", "nobody", "nogroup"] {
        assert!(said.contains(name), "no {name} in\n{said}");
    }
    let after =
        ["groups", "accounts", "users", "keys"].map(|kind| gateway.run(&[kind, "list", "--json"]));
    assert_eq!(before, after);
    assert_eq!(gateway.metric("directory_reloads_total"), 0.0);
    assert_eq!(status(&gateway, KEY).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_single_objects_without_secrets() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream, &upstream])
        .resources(|r| {
            r["accounts"][0]["model_mapping"] = json!({"gpt-*": "gpt-5-mini"});
            r["api_keys"][0]["quota"] = json!("5");
            r["api_keys"][0]["ip_allow"] = json!(["127.0.0.1"]);
            r["accounts"][1]["proxy"] = json!("socks5://customer7:hunter2@proxy.example");
            r["error_passthrough_rules"] = json!([{"name": "busy", "error_codes": [529]}]);
            let plan = json!({"name": "plan", "platform": "openai", "subscription_type": "subscription",
                "weekly_limit_usd": "7"});
            r["groups"].as_array_mut().unwrap().push(plan);
            r["subscriptions"] = json!([{"user": "alice", "group": "plan",
                "starts_at": "2026-11-01T00:00:00Z", "expires_at": "2026-11-02T00:00:00Z"}]);
            r["channels"] = json!([{"name": "prices", "groups": ["main"], "prices": [
                {"platform": "openai", "models": ["GPT-x"], "input_per_million": "1.250"}]}]);
        })
        .start()
        .await;
    let mut seen = String::new();
    #[rustfmt::skip]
    let fields: [Shown; 7] = [
        ("groups", &["main", "plan"], &[
            ("platform", json!("openai")), ("enabled", json!(true)), ("rate_multiplier", Value::Null),
            ("subscription_type", json!("standard")), ("accounts", json!(["a1", "a2"])),
        ]),
        ("accounts", &["a1", "a2"], &[
            ("platform", json!("openai")), ("type", json!("api_key")), ("enabled", json!(true)),
            ("base_url", json!(upstream.url())), ("credential_set", json!(true)),
            ("groups", json!(["main"])), ("concurrency", json!(50)), ("priority", json!(1)),
            ("model_mapping", json!({"gpt-*": "gpt-5-mini"})), ("paused", json!(false)),
            ("schedulable", json!(true)), ("proxy_set", json!(false)), ("extra", json!({})),
            ("status", json!("active")), ("until", Value::Null), ("conditions", json!([])),
        ]),
        ("rules", &["busy"], &[
            ("enabled", json!(true)), ("priority", json!(0)), ("error_codes", json!([529])),
            ("match_mode", json!("any")), ("passthrough_code", json!(true)), ("response_code", Value::Null),
        ]),
        ("subscriptions", &["alice/plan"], &[
            ("user", json!("alice")), ("group", json!("plan")), ("status", json!("active")),
            ("usable", json!(false)), ("expires_at", json!("2026-11-02T00:00:00Z")),
        ]),
        ("channels", &["prices"], &[
            ("enabled", json!(true)), ("groups", json!(["main"])), ("restrict_models", json!(false)),
            ("prices", json!([{"platform": "openai", "models": ["gpt-x"], "billing_mode": "token",
                "input_per_million": "1.25", "intervals": []}])),
        ]),
        ("users", &["alice"], &[
            ("enabled", json!(true)), ("balance", json!("10")), ("reserved", json!("0")),
            ("available", json!("10")), ("concurrency", json!(50)), ("group_multipliers", json!({})),
        ]),
        ("keys", &["alice-key"], &[
            ("user", json!("alice")), ("group", json!("main")), ("status", json!("active")),
            ("quota", json!("5")), ("quota_used", json!("0")), ("ip_allow", json!(["127.0.0.1"])),
            ("rate_limits", json!({"5h": null, "1d": null, "7d": null})), ("expires_at", Value::Null),
        ]),
    ];
    for (kind, names, expected) in fields {
        let list = gateway.run_json(&[kind, "list", "--json"]);
        let listed: Vec<_> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o["name"].clone())
            .collect();
        assert_eq!(listed, names, "{kind}");
        let shown = gateway.run_json(&[kind, "show", names[0], "--json"]);
        assert_eq!(shown, list[0], "{kind}: show is what list shows");
        for (field, value) in expected {
            assert_eq!(&shown[*field], value, "{kind}: {field}");
        }
        let table = gateway.run(&[kind, "list"]);
        let people = gateway.run(&[kind, "show", names[0]]);
        for name in names {
            assert!(table.contains(name), "{kind}: {table}");
        }
        assert!(people.contains(names[0]), "{kind}: {people}");
        seen += &format!("{list}{shown}{table}{people}");

        let output = gateway.try_run(&[kind, "show", "nobody", "--json"], "");
        assert_eq!(output.status.code(), Some(1), "{kind}");
        assert_eq!(stdout(&output), "", "{kind}");
        assert!(stderr(&output).contains("nobody"), "{kind}");
    }
    assert!(seen.contains("socks5://proxy.example:1080"), "{seen}");
    for secret in [KEY, "sk-a1", "sk-a2", "customer7", "hunter2"] {
        assert!(!seen.contains(secret), "{secret} is shown");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_key_is_printed_alone_once_and_works() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let create = ["keys", "create", "--user", "alice", "--group", "main"];
    let output = followed(&gateway, || gateway.try_run(&create, "")).await;
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
    let printed = stdout(&output);
    let key = printed.strip_suffix('\n').unwrap();
    assert!(key.starts_with("tg-") && key.len() >= 32 && !key.contains(char::is_whitespace));
    assert_eq!(status(&gateway, key).await, 200);
    let named = [&create[..], &["--name", "ci"]].concat();
    let other = followed(&gateway, || gateway.run(&named)).await;
    assert_ne!(other, printed);
    assert_eq!(status(&gateway, other.trim()).await, 200);

    let listed = gateway.run(&["keys", "list", "--json"]);
    assert!(!listed.contains(key) && !listed.contains(other.trim()));
    let names: Vec<_> = gateway
        .run_json(&["keys", "list", "--json"])
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["alice-2", "alice-key", "ci"]);

    for (wrong, problem) in [
        (named, "already a key named ci"),
        (
            vec!["keys", "create", "--user", "bob", "--group", "main"],
            "there is no user named bob",
        ),
        (
            vec!["keys", "create", "--user", "alice", "--group", "sub"],
            "there is no group named sub",
        ),
    ] {
        let output = gateway.try_run(&wrong, "");
        assert_eq!(output.status.code(), Some(1), "{wrong:?}");
        assert_eq!(stdout(&output), "", "{wrong:?}");
        assert!(stderr(&output).contains(problem), "{}", stderr(&output));
    }

    // Keys that `apply` makes are shown once as well, and not among what programs read.
    let change = json!({"api_keys": [{"name": "made", "user": "alice", "group": "main"}]});
    let output = followed(&gateway, || {
        gateway.try_run(&["apply", "--json", "-f", "-"], &change.to_string())
    })
    .await;
    let said = stderr(&output);
    let made = said.trim().rsplit(' ').next().unwrap();
    assert!(said.contains("made") && made.starts_with("tg-"), "{said}");
    assert!(!stdout(&output).contains(made));
    assert_eq!(status(&gateway, made).await, 200);
    let output = gateway.try_run(&["apply", "-f", "-"], &change.to_string());
    assert!(!stdout(&output).contains("tg-") && !stderr(&output).contains("tg-"));
    assert!(!gateway.logged().contains(made) && !gateway.logged().contains(key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_in_totals_and_records() {
    let upstream = FakeUpstream::start().await;
    const BOB: &str = "tg-bob-0123456789abcdef";
    let gateway = Setup::with(&[&upstream, &upstream])
        .resources(|r| {
            let groups = r["groups"].as_array_mut().unwrap();
            groups.push(json!({"name": "vip", "platform": "openai", "rate_multiplier": "2"}));
            r["accounts"][1]["groups"] = json!(["vip"]);
            let users = r["users"].as_array_mut().unwrap();
            users.push(json!({"name": "bob", "balance": "10"}));
            let keys = r["api_keys"].as_array_mut().unwrap();
            keys.push(json!({"name": "bob-key", "key": BOB, "user": "bob", "group": "vip"}));
        })
        .start()
        .await;
    for (key, model) in [
        (KEY, "gpt-5-mini"),
        (KEY, "gpt-5-nano"),
        (BOB, "gpt-5-mini"),
    ] {
        let request = Request::post("/v1/responses", ask(model, true).to_string())
            .bearer(key)
            .header("user-agent", "a-client/1.0")
            .header("x-request-id", "mine");
        let reply = gateway.h1().await.request(&request).await.unwrap();
        assert_eq!(reply.status, 200);
    }
    let records = gateway.wait_records(3).await;

    // Exactly the fields of the interface, in its order.
    #[rustfmt::skip]
    const FIELDS: [&str; 47] = [
        "request_id", "client_request_id", "upstream_request_id", "created_at", "user", "api_key",
        "group", "fallback_from_group", "account", "platform", "endpoint", "upstream_endpoint",
        "requested_model", "model", "upstream_model", "model_mapping_chain", "stream", "status",
        "outcome", "input_tokens", "output_tokens", "cache_creation_tokens",
        "cache_creation_5m_tokens", "cache_creation_1h_tokens", "cache_read_tokens",
        "image_output_tokens", "image_count", "cost", "charge", "rate_multiplier",
        "account_rate_multiplier", "billing_type", "billing_mode", "billing_tier", "channel", "priced",
        "service_tier", "reasoning_effort", "attempts", "account_switches", "attempt_trail",
        "duration_ms", "first_token_ms", "usage_source", "client_disconnected", "ip", "user_agent",
    ];
    let lines = gateway.run(&["usage", "records", "--json"]);
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record.as_object().unwrap().len(), FIELDS.len(), "{line}");
        let places: Vec<_> = FIELDS
            .iter()
            .map(|field| line.find(&format!("\"{field}\":")).expect(field))
            .collect();
        assert!(places.is_sorted(), "{line}");
    }
    #[rustfmt::skip]
    let expected = json!({
        "client_request_id": "mine", "user": "bob", "api_key": "bob-key", "group": "vip",
        "fallback_from_group": null, "account": "a2", "platform": "openai",
        "endpoint": "/v1/responses", "upstream_endpoint": "/v1/responses",
        "requested_model": "gpt-5-mini", "model": "gpt-5-mini", "upstream_model": "gpt-5-mini",
        "model_mapping_chain": null, "stream": true, "status": 200, "outcome": "ok",
        "input_tokens": 100, "output_tokens": 30, "cache_creation_tokens": 0,
        "cache_creation_5m_tokens": 0, "cache_creation_1h_tokens": 0, "cache_read_tokens": 20,
        "image_output_tokens": 0, "image_count": 0, "cost": USUAL_COST, "charge": "0.000171",
        "rate_multiplier": "2", "billing_type": "balance", "service_tier": null,
        "reasoning_effort": null, "attempts": 1, "account_switches": 0, "usage_source": "reported",
        "client_disconnected": false, "ip": "127.0.0.1", "user_agent": "a-client/1.0",
    });
    let bobs = gateway.run(&[
        "usage", "records", "--user", "bob", "--since", "1h", "--json",
    ]);
    assert_eq!(bobs.lines().count(), 1);
    let record: Value = serde_json::from_str(&bobs).unwrap();
    assert_eq!(record, records[2]);
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&record[field], value, "{field}");
    }
    assert!(record["first_token_ms"].is_u64() && record["duration_ms"].is_u64());

    // 100 × 5e-8 + 20 × 5e-9 + 30 × 4e-7 with gpt-5-nano.
    let nano = "0.0000171";
    #[rustfmt::skip]
    let rows: [Totals; 5] = [
        ("user", &[("bob", 1, USUAL_COST, "0.000171"), ("alice", 2, "0.0001026", "0.0001026")]),
        ("key", &[("bob-key", 1, USUAL_COST, "0.000171"), ("alice-key", 2, "0.0001026", "0.0001026")]),
        ("account", &[("a2", 1, USUAL_COST, "0.000171"), ("a1", 2, "0.0001026", "0.0001026")]),
        ("group", &[("vip", 1, USUAL_COST, "0.000171"), ("main", 2, "0.0001026", "0.0001026")]),
        ("model", &[("gpt-5-mini", 2, "0.000171", "0.0002565"), ("gpt-5-nano", 1, nano, nano)]),
    ];
    for (by, expected) in rows {
        let totals = gateway.run_json(&["usage", "--by", by, "--json"]);
        let got: Vec<_> = totals
            .as_array()
            .unwrap()
            .iter()
            .map(|t| (&t["name"], &t["requests"], &t["cost"], &t["charge"]))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, count, cost, charge)| {
                (json!(name), json!(count), json!(cost), json!(charge))
            })
            .collect();
        let expected: Vec<_> = expected.iter().map(|(a, b, c, d)| (a, b, c, d)).collect();
        assert_eq!(got, expected, "by {by}");
        let table = gateway.run(&["usage", "--by", by]);
        assert!(table.contains("0.000171"), "{table}");
    }
    let total = gateway.run_json(&["usage", "--json"]);
    let total = &total.as_array().unwrap()[0];
    assert_eq!(total["requests"], json!(3));
    assert_eq!(total["input_tokens"], json!(300));
    assert_eq!(total["output_tokens"], json!(90));
    assert_eq!(total["cache_read_tokens"], json!(60));
    assert_eq!(total["charge"], json!("0.0002736"));
    let later = gateway.run_json(&["usage", "--since", "2100-01-01T00:00:00Z", "--json"]);
    assert_eq!(later[0]["requests"], json!(0));
    let table = gateway.run(&["usage", "records"]);
    assert_eq!(table.lines().count(), 4, "{table}");
    let wrong = gateway.try_run(&["usage", "--since", "yesterday"], "");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("24h"), "{}", stderr(&wrong));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_names_every_mistake() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let file = gateway.path("wrong.yaml");
    let path = file.to_str().unwrap();
    let good = gateway.try_run(&["check"], "");
    assert!(good.status.success(), "{}", stderr(&good));
    let resources = Setup::with(&[&upstream]).resources.to_string();
    let good = gateway.try_run(&["check", "-f", "-"], &resources);
    assert!(good.status.success(), "{}", stderr(&good));

    std::fs::write(
        &file,
        "server:\n  thread: 4\n  max_body_bytes: many\ngateway:\n  drain_timeout_ms: -1\n\
         nonsense: true\nsecurity: { secret: \"${NOT_THERE}\" }\n",
    )
    .unwrap();
    let mut command = gateway.command();
    let output = command
        .args(["check", "-c", path])
        .env_remove("TOLLGATE_GATEWAY__DRAIN_TIMEOUT_MS")
        .env_remove("TOLLGATE_SECURITY__SECRET")
        .env("TOLLGATE_GATEWAY__STAL_TIMEOUT_MS", "5")
        .env("TOLLGATE_BILLING__MODE", "free")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    for (place, right) in [
        ("wrong.yaml:2:3 server.thread", "threads"),
        ("wrong.yaml:3:19 server.max_body_bytes", "1 to 17179869184"),
        ("wrong.yaml:5:21 gateway.drain_timeout_ms", "1 to 86400000"),
        ("wrong.yaml:6:1 nonsense", ""),
        ("wrong.yaml:7:", "NOT_THERE"),
        (
            "TOLLGATE_GATEWAY__STAL_TIMEOUT_MS",
            "TOLLGATE_GATEWAY__STALL_TIMEOUT_MS",
        ),
        ("TOLLGATE_BILLING__MODE", "standard"),
    ] {
        let line = said.lines().find(|line| line.contains(place));
        let line = line.unwrap_or_else(|| panic!("no {place} in\n{said}"));
        assert!(line.contains(right), "no {right:?} in {line}");
    }
    assert_eq!(
        said.lines().count(),
        8,
        "one line each, and one before:\n{said}"
    );

    // The server refuses the same, and any other command too.
    for arguments in [&["serve"][..], &["users", "list"]] {
        let output = gateway
            .command()
            .args(arguments)
            .env("TOLLGATE_GATEWAY__STAL_TIMEOUT_MS", "5")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = stderr(&output);
        assert!(
            said.contains("TOLLGATE_GATEWAY__STALL_TIMEOUT_MS"),
            "{said}"
        );
    }
    let output = gateway.try_run(&["check", "-c", "not-there.yaml"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("not-there.yaml"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_do_not_share_a_directory_or_an_address() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let pid = gateway.pid().to_string();
    let data = gateway.data();
    let other = gateway.path("other");
    let (free, taken) = (free_address(), gateway.address);
    let serve =
        |data: &std::path::Path, listen: std::net::SocketAddr, admin: std::net::SocketAddr| {
            gateway
                .command()
                .arg("serve")
                .env("TOLLGATE_DATA_DIR", data)
                .env(
                    "TOLLGATE_SERVER__LISTEN",
                    json!([listen.to_string()]).to_string(),
                )
                .env("TOLLGATE_ADMIN__LISTEN", admin.to_string())
                .output()
                .unwrap()
        };
    let output = serve(&data, free, free_address());
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    for word in [pid.as_str(), data.to_str().unwrap(), "data_dir"] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    for (listen, admin, key, address) in [
        (taken, free, "server.listen[0]", taken),
        (free, gateway.admin, "admin.listen", gateway.admin),
    ] {
        let output = serve(&other, listen, admin);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.contains(key) && last.contains(&address.to_string()),
            "{said}"
        );
    }
    assert_eq!(status(&gateway, KEY).await, 200, "the first goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_key_in_the_environment_is_enough() {
    let upstream = FakeUpstream::start().await;
    let mut setup = Setup::new(&[]).env("OPENAI_API_KEY", "sk-a1-of-a-newcomer");
    setup.resources = Value::Null;
    let mut gateway = setup.start().await;
    let printed = gateway.logged();
    let key = printed
        .lines()
        .find_map(|line| line.split_once("(shown once): "))
        .map(|(_, key)| key.trim().to_owned())
        .expect("the key is printed");
    let line = printed.lines().find(|line| line.contains("curl "));
    let line = line.expect("a curl line is printed");
    assert!(
        line.contains(&key) && line.contains(&gateway.address.to_string()),
        "{line}"
    );

    let listed = |kind: &str| {
        let list = gateway.run_json(&[kind, "list", "--json"]);
        let names = list.as_array().unwrap().iter();
        names
            .map(|o| o["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(listed("users"), ["default"]);
    assert_eq!(listed("groups").len(), 1);
    assert_eq!(listed("keys").len(), 1);
    let account = listed("accounts").remove(0);
    let group = listed("groups").remove(0);
    // The provider is elsewhere in this test.
    let change = json!({"accounts": [{
        "name": account, "platform": "openai", "groups": [group],
        "credentials": {"api_key": "sk-a1-of-a-newcomer", "base_url": upstream.url()},
    }]});
    followed(&gateway, || gateway.apply(&change)).await;
    assert_eq!(status(&gateway, &key).await, 200);
    assert_eq!(
        upstream.only_request().credential(),
        Some("sk-a1-of-a-newcomer")
    );
    gateway.only_record().await;

    // The next start finds a store with something in it: nothing is made, nothing printed.
    gateway.stop();
    gateway.launch();
    let since = &gateway.logged()[printed.len()..];
    assert!(
        !since.contains("shown once") && !since.contains("curl"),
        "{since}"
    );
    assert_eq!(
        gateway
            .run_json(&["keys", "list", "--json"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(status(&gateway, &key).await, 200);
    gateway.wait_records(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_shows_a_request_and_its_record() {
    // Its ports are chosen by itself; somebody else may take one in that moment.
    let mut said = String::new();
    for _ in 0..5 {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["demo", "--once"])
            .env_clear()
            .output()
            .unwrap();
        said = format!("{}\n{}", stdout(&output), stderr(&output));
        if stderr(&output).contains("cannot listen") {
            continue;
        }
        assert!(output.status.success(), "{said}");
        let text = stdout(&output);
        let begin = text.find("\n{\n").expect("a record") + 1;
        let end = text[begin..].find("\n}\n").unwrap() + begin + 2;
        let record: Value = serde_json::from_str(&text[begin..end]).unwrap();
        assert_eq!(record["outcome"], json!("ok"));
        assert_eq!(record["stream"], json!(true));
        assert_eq!(record["usage_source"], json!("reported"));
        assert_ne!(record["charge"], json!("0"));
        assert!(
            text.lines()
                .filter(|l| l.trim().starts_with("curl "))
                .count()
                >= 2
        );
        assert_eq!(stderr(&output), "");
        return;
    }
    panic!("{said}");
}
