//! Who may use a group, and which group serves instead: Claude Code and other clients, versions, and what is charged
//! when a conversation has to leave its account.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Request};

use crate::claude::{
    CHARGE, MODEL, answer, body, claude_code, error_of, in_conversation, post, send, setup,
};
use crate::harness::{Gateway, key_of};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const VERSION: &str = "2.0.14";

/// A group for Claude Code only.
fn only(fallback: &str) -> Value {
    json!({ "claude_code_only": true, "fallback_group": fallback })
}

fn find<'r>(records: &'r [Value], group: &str) -> &'r Value {
    records.iter().find(|r| r["group"] == group).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_are_served_and_charged_by_the_fallback_group() {
    let (own, other) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let (own_url, other_url) = (own.url(), other.url());
    let gateway = setup(&[
        ("first", only("second"), &[&own_url]),
        ("second", only("open"), &[&own_url]),
        ("open", json!({ "rate_multiplier": "2" }), &[&other_url]),
    ])
    .resources(|all| {
        // Its channel is that of the group that serves, too.
        all["channels"] = json!([{
            "name": "names", "groups": ["open"], "model_mapping": { "anthropic": { "fast": MODEL } },
        }]);
    })
    .start()
    .await;
    own.otherwise(answer(false));
    other.otherwise(answer(false));

    let reply = send(
        &gateway,
        &claude_code("first", MESSAGES, &body(false), VERSION),
    )
    .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(own.only_request().credential(), Some("sk-first-1"));
    own.forget();

    let mut asked = body(false);
    asked["model"] = json!("fast");
    let reply = send(&gateway, &post("first", MESSAGES, &asked)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(other.only_request().model(), MODEL);
    let records = gateway.wait_records(2).await;
    let expected = [
        ("first", "first-1", json!(null), "1", CHARGE, MODEL),
        ("open", "open-1", json!("first"), "2", "0.001896", "fast"),
    ];
    for (group, account, from, multiplier, charge, model) in expected {
        let record = find(&records, group);
        for (field, value) in [
            ("account", json!(account)),
            ("fallback_from_group", from),
            ("rate_multiplier", json!(multiplier)),
            ("charge", json!(charge)),
            ("requested_model", json!(model)),
            ("upstream_model", json!(MODEL)),
            ("api_key", json!("key-first")),
        ] {
            assert_eq!(record[field], value, "{field}\n{record:#}");
        }
    }
    // 10 - 0.000948 - 0.001896
    assert_eq!(gateway.balance("alice"), "9.997156");
    // Tokens are counted there as well, and leave no record.
    other.forget();
    for request in [
        post("first", COUNT, &body(false)),
        post("second", COUNT, &body(false)),
    ] {
        let counted = Answer::json(200, &json!({ "input_tokens": 7 }));
        other.push(counted);
        assert_eq!(send(&gateway, &request).await.json()["input_tokens"], 7);
    }
    assert_eq!(other.requests().len(), 2);
    assert!(own.requests().is_empty());
    gateway.wait_records(2).await;
}

/// Both endpoints refuse with these words, and nobody is asked.
async fn assert_refused(
    gateway: &Gateway,
    upstream: &FakeUpstream,
    group: &str,
    expected: (u16, &str, &str),
) {
    for path in [MESSAGES, COUNT] {
        let reply = send(gateway, &post(group, path, &body(false))).await;
        let json = reply.json();
        let (kind, words) = error_of(&json);
        assert_eq!(
            (reply.status, kind),
            (expected.0, expected.1),
            "{group} {path}: {json}"
        );
        assert!(words.starts_with(expected.2), "{group} {path}: {words}");
    }
    assert!(upstream.requests().is_empty(), "{group}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_group_that_takes_them_other_clients_are_refused() {
    const ONLY: (u16, &str, &str) = (
        503,
        "api_error",
        "No available accounts: this group only allows Claude Code clients",
    );
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = setup(&[
        ("alone", json!({ "claude_code_only": true }), &[&url]),
        ("to-off", only("off"), &[&url]),
        ("off", json!({ "enabled": false }), &[&url]),
        ("to-plan", only("plan"), &[&url]),
        (
            "plan",
            json!({ "subscription_type": "subscription" }),
            &[&url],
        ),
    ])
    .start()
    .await;
    for group in ["alone", "to-off"] {
        assert_refused(&gateway, &upstream, group, ONLY).await;
    }
    let missing = (
        403,
        "permission_error",
        "No active subscription for this group",
    );
    assert_refused(&gateway, &upstream, "to-plan", missing).await;
    // All of them serve Claude Code; what only looks like it is another client.
    upstream.otherwise(answer(false));
    for (count, group) in ["alone", "to-off", "to-plan"].into_iter().enumerate() {
        let claude = claude_code(group, MESSAGES, &body(false), VERSION);
        assert_eq!(send(&gateway, &claude).await.status, 200, "{group}");
        gateway.wait_records(count + 1).await;
        let named = post(group, MESSAGES, &body(false)).header("user-agent", "claude-cli/2.0.14");
        let reply = send(&gateway, &named).await;
        assert!(reply.status >= 400, "{group}: {}", reply.text());
    }
    // Its probe has nothing but its name.
    let probe = json!({ "model": "claude-haiku-4-5", "max_tokens": 1, "messages": [{ "role": "user", "content": "hi" }] });
    let probe = post("alone", MESSAGES, &probe).header("user-agent", "claude-cli/2.0.14");
    assert_eq!(send(&gateway, &probe).await.status, 200);
    gateway.wait_records(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_those_of_the_group_that_serves() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let plan = json!({ "subscription_type": "subscription", "daily_limit_usd": "0.0015" });
    let mut own_plan = plan.clone();
    own_plan["claude_code_only"] = json!(true);
    own_plan["fallback_group"] = json!("balance");
    let gateway = setup(&[
        ("to-plan", only("plan"), &[&url]),
        ("plan", plan, &[&url]),
        ("to-rpm", only("rpm"), &[&url]),
        ("rpm", json!({ "rpm_limit": 1 }), &[&url]),
        ("own-plan", own_plan, &[&url]),
        ("balance", json!({}), &[&url]),
    ])
    .set("BILLING__RESERVE_OUTPUT_TOKENS", 0)
    .resources(|all| {
        let subscription = |group: &str| {
            json!({
                "user": "alice", "group": group, "starts_at": "2020-01-01T00:00:00Z",
                "expires_at": "2120-01-01T00:00:00Z", "status": "active",
            })
        };
        all["subscriptions"] = json!([subscription("plan"), subscription("own-plan")]);
    })
    .start()
    .await;
    upstream.otherwise(answer(false));
    let ask = async |request: Request| {
        let reply = send(&gateway, &request).await;
        let kind = reply.json()["error"]["type"].as_str().map(str::to_owned);
        (reply.status, kind.unwrap_or_default())
    };
    let other = |group: &str| post(group, MESSAGES, &body(false));
    let (fine, limited) = ((200, String::new()), (429, "rate_limit_error".to_owned()));
    // A subscription pays, up to its limit.
    for expected in [&fine, &fine, &limited] {
        assert_eq!(&ask(other("to-plan")).await, expected);
    }
    let records = gateway.wait_records(2).await;
    for record in &records {
        assert_eq!(
            (
                &record["billing_type"],
                &record["group"],
                &record["fallback_from_group"]
            ),
            (&json!("subscription"), &json!("plan"), &json!("to-plan"))
        );
    }
    assert_eq!(gateway.balance("alice"), "10");
    // Requests a minute are counted in the group that serves; in the key's own there is no limit.
    let mut served = 2;
    let (mut minute, mut met) = (0, false);
    while !met {
        // The minute may be over between two of them, but not for ever.
        minute += 1;
        assert!(minute < 10);
        let (first, second) = (ask(other("to-rpm")).await, ask(other("to-rpm")).await);
        met = second == limited;
        served += usize::from(first == fine) + usize::from(second == fine);
    }
    let claude = || claude_code("to-rpm", MESSAGES, &body(false), VERSION);
    assert_eq!(
        [ask(claude()).await, ask(claude()).await],
        [fine.clone(), fine.clone()]
    );
    served += 2;
    // What is used up in the key's own group is nothing to those that another serves.
    let claude = || claude_code("own-plan", MESSAGES, &body(false), VERSION);
    for expected in [&fine, &fine, &limited] {
        assert_eq!(&ask(claude()).await, expected);
    }
    assert_eq!(ask(other("own-plan")).await, fine);
    let records = gateway.wait_records(served + 3).await;
    let last = find(&records, "balance");
    assert_eq!(
        (&last["billing_type"], &last["fallback_from_group"]),
        (&json!("balance"), &json!("own-plan"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_endpoints_of_a_group_for_claude_code_are_closed() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = setup(&[
        ("claude", json!({ "claude_code_only": true }), &[&url]),
        (
            "open",
            json!({ "claude_code_only": true, "platform": "openai" }),
            &[],
        ),
    ])
    .start()
    .await;
    let responses = |group: &str| {
        Request::post(
            "/v1/responses",
            json!({ "model": "gpt-5", "input": "hi" }).to_string(),
        )
        .bearer(&key_of(group))
        .header("user-agent", "claude-cli/2.0.14")
    };
    // Where the platform has the endpoint at all.
    let reply = send(&gateway, &responses("open")).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["type"]),
        (403, &json!("permission_error"))
    );
    let message = "This group is restricted to Claude Code clients (/v1/messages only)";
    assert_eq!(reply.json()["error"]["message"], message);
    assert_eq!(send(&gateway, &responses("claude")).await.status, 404);
    // What costs nothing stays open.
    for path in ["/v1/models", "/v1/usage"] {
        let reply = send(&gateway, &Request::get(path).bearer(&key_of("claude"))).await;
        assert_eq!(reply.status, 200, "{path}");
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_of_claude_code_are_checked() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let bounds = json!({ "min_client_version": "2.0.0", "max_client_version": "2.1.9" });
    let gateway = setup(&[("bound", bounds, &[&url])]).start().await;
    upstream.otherwise(answer(false));
    let mut served = 0;
    for (version, words) in [
        ("2.0.0", None),
        ("2.1.9", None),
        (
            "1.99.0",
            Some("Claude Code 1.99.0 is older than the required version 2.0.0"),
        ),
        (
            "2.1.10",
            Some("Claude Code 2.1.10 is newer than the latest supported version 2.1.9"),
        ),
        (
            "9.9.99999999999",
            Some("The version of Claude Code could not be determined"),
        ),
    ] {
        let reply = send(
            &gateway,
            &claude_code("bound", MESSAGES, &body(false), version),
        )
        .await;
        match words {
            None => {
                assert_eq!(reply.status, 200, "{version}");
                served += 1;
            }
            Some(words) => {
                let json = reply.json();
                assert_eq!(
                    (reply.status, error_of(&json).0),
                    (400, "invalid_request_error")
                );
                assert!(error_of(&json).1.starts_with(words), "{json}");
                assert!(error_of(&json).1.contains("npm"), "{json}");
            }
        }
        // Tokens are counted for every version.
        upstream.push(Answer::json(200, &json!({ "input_tokens": 7 })));
        let counted = send(
            &gateway,
            &claude_code("bound", COUNT, &body(false), version),
        )
        .await;
        assert_eq!(counted.status, 200, "{version}");
    }
    // Who does not say that it is Claude Code has no version.
    let other = post("bound", MESSAGES, &body(false)).header("user-agent", "claude-cli/1.0.0");
    assert_eq!(send(&gateway, &other).await.status, 200);
    gateway.wait_records(served + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_cannot_be_followed_are_not_applied() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = setup(&[("a", only("b"), &[&url]), ("b", json!({}), &[&url])])
        .start()
        .await;
    let file = |groups: Value| json!({ "groups": groups }).to_string();
    let group = |name: &str, options: Value| {
        let mut group = json!({ "name": name, "platform": "anthropic" });
        group
            .as_object_mut()
            .unwrap()
            .extend(options.as_object().unwrap().clone());
        group
    };
    let circle = "groups/b: fallback_group: b → a → b goes round in a circle";
    let wrong = "groups/c: fallback_group_on_invalid_request: groups/d is for subscribers";
    let platform = "accounts/x: its platform is openai but groups/c is of anthropic";
    let groups = json!([
        group("b", only("a")),
        group("a", only("b")),
        group("c", json!({ "fallback_group_on_invalid_request": "d" })),
        group("d", json!({ "subscription_type": "subscription" })),
    ]);
    let account = json!({
        "name": "x", "platform": "openai", "groups": ["c"], "credentials": { "api_key": "k" },
    });
    let all = json!({ "groups": groups, "accounts": [account] }).to_string();
    for command in ["check", "apply"] {
        let output = gateway.try_run(&[command, "-f", "-"], &all);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            [circle, wrong, platform]
                .iter()
                .all(|problem| said.contains(problem)),
            "{command}: {said}"
        );
    }
    // Of the circle the store has a part.
    let part = file(json!([group("b", only("a"))]));
    assert!(
        gateway
            .try_run(&["check", "-f", "-"], &part)
            .status
            .success()
    );
    let output = gateway.try_run(&["apply", "-f", "-"], &part);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains(circle), "{said}");
    // Nothing of it has been applied; what was, is shown.
    let shown = gateway.run_json(&["groups", "show", "a", "--json"]);
    assert_eq!(
        (&shown["claude_code_only"], &shown["fallback_group"]),
        (&json!(true), &json!("b"))
    );
    let shown = gateway.run_json(&["groups", "show", "b", "--json"]);
    assert_eq!(shown["claude_code_only"], json!(null));
    assert!(
        gateway
            .run(&["groups", "show", "a"])
            .contains("fallback_group")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forced_cache_billing_is_for_conversations_that_left_their_account() {
    // 100 of the input tokens at 0.3 in place of 3 USD a million.
    const CACHED: &str = "0.000678";
    for forced in [true, false] {
        let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
        let (first_url, second_url) = (first.url(), second.url());
        let options = json!({ "forced_cache_billing": forced });
        let gateway = setup(&[("main", options, &[&first_url, &second_url])])
            .resources(|all| {
                // It fails, and stays in the choice.
                all["accounts"][0]["extra"] =
                    json!({ "pool_mode": true, "pool_mode_retry_count": 0 });
            })
            .start()
            .await;
        let ask = |conversation: &str, stream: bool| {
            post(
                "main",
                MESSAGES,
                &in_conversation(body(stream), conversation),
            )
        };
        let fails = || Answer::anthropic_error(500, "no");
        // New, and moved on at once: it has left nothing behind.
        first.push(fails());
        second.push(answer(false));
        assert_eq!(send(&gateway, &ask("new", false)).await.status, 200);
        // Bound, and served there.
        first.push(answer(false));
        assert_eq!(send(&gateway, &ask("bound", false)).await.status, 200);
        // Bound, and moved on.
        for stream in [false, true] {
            first.push(fails());
            second.push(answer(stream));
            let reply = send(&gateway, &ask("bound", stream)).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        let records = gateway.wait_records(4).await;
        let mut seen: Vec<_> = records
            .iter()
            .map(|r| {
                let text = |field: &str| r[field].as_str().unwrap().to_owned();
                let tokens = (r["input_tokens"].as_u64(), r["cache_read_tokens"].as_u64());
                (
                    text("account"),
                    r["account_switches"].as_u64(),
                    tokens,
                    text("charge"),
                )
            })
            .collect();
        seen.sort();
        let (usual, cached) = ((Some(100), Some(20)), (Some(0), Some(120)));
        let row = |account: &str, switches, tokens, charge: &str| {
            (
                account.to_owned(),
                Some(switches),
                tokens,
                charge.to_owned(),
            )
        };
        let moved = match forced {
            true => row("main-2", 1, cached, CACHED),
            false => row("main-2", 1, usual, CHARGE),
        };
        let mut expected = vec![
            row("main-1", 0, usual, CHARGE),
            row("main-2", 1, usual, CHARGE),
            moved.clone(),
            moved,
        ];
        expected.sort();
        assert_eq!(seen, expected, "{forced}");
    }
}
