//! Which beta features clients of Anthropic's API may ask for.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream};

use crate::claude::{answer, body, error_of, post, send, setup};
use crate::harness::{Gateway, free_address};

const PATHS: [&str; 2] = ["/v1/messages", "/v1/messages/count_tokens"];

/// Asks with these betas; the status, and what of them went upstream.
async fn asked(
    gateway: &Gateway,
    upstream: &FakeUpstream,
    group: &str,
    betas: &str,
) -> (u16, Option<String>) {
    upstream.push(answer(false));
    upstream.forget();
    let request = post(group, PATHS[0], &body(false)).header("anthropic-beta", betas);
    let reply = send(gateway, &request).await;
    let seen = upstream.requests().pop();
    let betas = seen.and_then(|seen| seen.header("anthropic-beta").map(str::to_owned));
    (reply.status, betas)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_feature_is_refused_before_anybody_is_asked() {
    let upstream = FakeUpstream::start().await;
    let (url, dead) = (upstream.url(), format!("http://{}", free_address()));
    let policy = json!([
        { "beta_token": "never-1", "action": "block" },
        { "beta_token": "never-2", "action": "block", "scope": "apikey", "error_message": "Not here." },
        { "beta_token": "never-3", "action": "block", "scope": "oauth" },
        { "beta_token": "some-1", "action": "pass", "models": ["claude-opus-*"], "fallback_action": "block" },
    ]);
    let gateway = setup(&[
        ("main", json!({}), &[&dead, &url]),
        ("relay", json!({}), &[&url]),
    ])
    .set("GATEWAY__BETA_POLICY", &policy)
    .resources(|all| all["accounts"][2]["extra"] = json!({ "anthropic_passthrough": true }))
    .start()
    .await;
    let attempts = || {
        let (_, text) = gateway.get("/metrics").unwrap();
        text.matches("tollgate_attempts_total{").count()
    };
    for path in PATHS {
        for (betas, words) in [
            ("a, NEVER-1", "beta feature never-1 is not allowed"),
            ("never-2", "Not here."),
            ("some-1", "beta feature some-1 is not allowed"),
        ] {
            let request = post("main", path, &body(false)).header("anthropic-beta", betas);
            let reply = send(&gateway, &request).await;
            assert_eq!(reply.status, 400, "{path} {betas}: {}", reply.text());
            assert_eq!(error_of(&reply.json()), ("invalid_request_error", words));
        }
    }
    // Not even a connection was tried, and no account has come off worse for it.
    assert_eq!(attempts(), 0);
    let shown = gateway.run_json(&["accounts", "list", "--json"]);
    let conditions = |account: &Value| account["conditions"].clone();
    assert!(
        shown
            .as_array()
            .unwrap()
            .iter()
            .all(|a| conditions(a) == json!([])),
        "{shown:#}"
    );
    assert!(upstream.requests().is_empty());
    assert_eq!(gateway.balance("alice"), "10");
    assert_eq!(gateway.records(), Vec::<Value>::new());
    // Accounts that are no business of the policy's, and those of other kinds.
    assert_eq!(
        asked(&gateway, &upstream, "relay", "never-1").await,
        (200, Some("never-1".to_owned()))
    );
    // With rules of one's own the built-in ones are gone.
    assert_eq!(
        asked(&gateway, &upstream, "main", "never-3,context-1m-2025-08-07").await,
        (200, Some("never-3,context-1m-2025-08-07".to_owned()))
    );
    gateway.wait_records(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hang_up_puts_other_rules_in_force() {
    const BETAS: &str = "context-1m-2025-08-07,tools-1";
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let mut setup = setup(&[("main", json!({}), &[&url])]);
    setup.file = Some("gateway: {}\n".to_owned());
    let gateway = setup.start().await;
    let rules = |rules: &str| format!("gateway:\n  beta_policy: {rules}\n");
    let passed = |betas: &str| (200, Some(betas.to_owned()));
    let mut expected = passed("tools-1");
    for (count, (text, then)) in [
        (rules("[]"), passed(BETAS)),
        (
            rules("[{beta_token: tools-1, action: filter, models: [claude-sonnet-*]}]"),
            passed("context-1m-2025-08-07"),
        ),
        (rules("[{beta_token: tools-1, action: block}]"), (400, None)),
        (rules("null"), passed("tools-1")),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            asked(&gateway, &upstream, "main", BETAS).await,
            expected,
            "{count}"
        );
        std::fs::write(gateway.path("tollgate.yaml"), text).unwrap();
        gateway.signal("HUP");
        let read = || gateway.logged().matches("configuration read again").count() > count;
        gateway.wait("the configuration to be read", read).await;
        expected = then;
    }
    assert_eq!(asked(&gateway, &upstream, "main", BETAS).await, expected);
    gateway.wait_records(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_without_the_endpoint_says_so_for_counting() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = setup(&[("main", json!({}), &[&url, &url])]).start().await;
    let count = post("main", PATHS[1], &body(false));
    for (answer, words) in [
        (
            Answer::body(404, "text/plain", "404 page not found"),
            "Token counting is not supported by the upstream",
        ),
        (
            Answer::empty(404),
            "Token counting is not supported by the upstream",
        ),
        (Answer::anthropic_error(404, "model: gone"), "model: gone"),
    ] {
        upstream.push(answer);
        let reply = send(&gateway, &count).await;
        assert_eq!(reply.status, 404);
        assert_eq!(error_of(&reply.json()), ("not_found_error", words));
        // Nobody else is asked, and the account has done nothing wrong.
        upstream.only_request();
        upstream.forget();
    }
    // What is wrong with the account itself takes it out, and the other one counts next.
    upstream.push(Answer::anthropic_error(401, "no"));
    let reply = send(&gateway, &count).await;
    assert_eq!(
        (reply.status, error_of(&reply.json()).0),
        (401, "upstream_error")
    );
    let status = || gateway.run_json(&["accounts", "show", "main-1", "--json"])["status"].clone();
    gateway
        .wait("the account to be out", || status() == "error")
        .await;
    upstream.forget();
    upstream.push(Answer::json(200, &json!({ "input_tokens": 7 })));
    assert_eq!(send(&gateway, &count).await.status, 200);
    assert_eq!(upstream.only_request().credential(), Some("sk-main-2"));
    assert_eq!(gateway.records(), Vec::<Value>::new());
}
