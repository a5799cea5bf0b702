//! Who may ask for what: routes, keys, every check of authentication, and which headers pass.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, ClientReply, FakeUpstream, Request, openai, post_json};

use crate::dialect::{Dialect, in_each_dialect};
use crate::harness::{Gateway, KEY, Setup, ask};

/// A key of the right form that nobody has.
const NOBODY: &str = "tg-nobody-0123456789abcdef";

fn post(path: &str) -> Request {
    post_in(Dialect::Responses, path)
}

/// A request for JSON to this path, without a key.
fn post_in(dialect: Dialect, path: &str) -> Request {
    Request::post(path, dialect.ask(dialect.model(), false).to_string())
}

/// A request for JSON with the key of this name.
fn with_key(dialect: Dialect, name: &str) -> Request {
    dialect.request(dialect.model(), false, &text_of(name))
}

async fn send(gateway: &Gateway, request: &Request) -> ClientReply {
    gateway.h1().await.request(request).await.unwrap()
}

/// Asserts an error of ours in OpenAI's dialect.
fn assert_refused(reply: &ClientReply, status: u16, kind: &str, code: Option<&str>, row: &str) {
    assert_eq!(reply.status, status, "{row}: {}", reply.text());
    assert_eq!(
        reply.header("content-type"),
        Some("application/json"),
        "{row}"
    );
    assert_own_id(reply, row);
    let body = reply.json();
    let error = &body["error"];
    assert_eq!(body.as_object().map(|o| o.len()), Some(1), "{row}: {body}");
    assert_eq!(error["type"], json!(kind), "{row}");
    assert_eq!(error["code"], json!(code), "{row}");
    assert_eq!(error["param"], Value::Null, "{row}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.len() > 10, "{row}: {message:?}");
}

/// Asserts an error of ours in a dialect; `kind` and `code` are those of OpenAI's.
fn assert_refused_in(
    dialect: Dialect,
    reply: &ClientReply,
    status: u16,
    kind: &'static str,
    code: Option<&str>,
    row: &str,
) {
    if dialect == Dialect::Responses {
        return assert_refused(reply, status, kind, code, row);
    }
    assert_eq!(reply.status, status, "{row}: {}", reply.text());
    let is_json = reply.header("content-type") == Some("application/json");
    assert!(is_json, "{row}: {:?}", reply.headers);
    assert_own_id(reply, row);
    // Where the libraries look for it, and in the body for people who have only that.
    let id = reply.header("x-request-id");
    assert_eq!(reply.header("request-id"), id, "{row}");
    let body = reply.json();
    assert_eq!(body["request_id"].as_str(), id, "{row}: {body}");
    let (said, message) = dialect.refusal(&body);
    assert_eq!(said, dialect.kind(status, kind), "{row}: {body}");
    assert!(message.len() > 10, "{row}: {message:?}");
    // Nothing of the other dialect.
    let fields = body["error"].as_object().unwrap();
    assert_eq!(fields.len(), 2, "{row}: {body}");
}

fn assert_own_id(reply: &ClientReply, row: &str) {
    let id = reply.header("x-request-id").unwrap_or_default();
    assert!(id.starts_with("req_") && id.len() == 28, "{row}: {id:?}");
    let ids = reply.headers.iter().filter(|(n, _)| n == "x-request-id");
    assert_eq!(ids.count(), 1, "{row}");
}

fn key(name: &str, more: Value) -> Value {
    let mut key = json!({
        "name": name, "key": format!("tg-{name}-0123456789abcdef"), "user": "alice", "group": "main",
    });
    for (field, value) in more.as_object().unwrap() {
        key[field] = value.clone();
    }
    key
}

fn text_of(name: &str) -> String {
    format!("tg-{name}-0123456789abcdef")
}

/// Keys for every way to be refused.
fn with_every_key(dialect: Dialect, setup: Setup) -> Setup {
    let platform = dialect.platform();
    let other = match dialect {
        Dialect::Responses => "anthropic",
        Dialect::Messages => "openai",
    };
    setup.speaking(dialect).resources(|resources| {
        let groups = resources["groups"].as_array_mut().unwrap();
        groups.push(
            json!({"name": "sub", "platform": platform, "subscription_type": "subscription"}),
        );
        groups.push(json!({"name": "other", "platform": other}));
        groups.push(json!({"name": "closed", "platform": platform, "enabled": false}));
        let users = resources["users"].as_array_mut().unwrap();
        users.push(json!({"name": "gone", "balance": "10", "enabled": false}));
        users.push(json!({"name": "broke", "balance": "0"}));
        users.push(json!({"name": "later", "balance": "10"}));
        resources["subscriptions"] = json!([{"user": "later", "group": "sub",
            "starts_at": "2998-01-01T00:00:00Z", "expires_at": "2999-01-01T00:00:00Z"}]);
        let past = "2026-01-01T00:00:00Z";
        let keys = resources["api_keys"].as_array_mut().unwrap();
        keys.extend([
            key("disabled", json!({"enabled": false})),
            key("denied", json!({"ip_deny": ["127.0.0.0/8"]})),
            key(
                "elsewhere",
                json!({"ip_allow": ["192.0.2.1", "10.0.0.0/8"]}),
            ),
            key("garbage", json!({"ip_allow": ["nonsense"]})),
            key(
                "here",
                json!({"ip_allow": ["127.0.0.1"], "ip_deny": ["192.0.2.0/24"]}),
            ),
            key(
                "both",
                json!({"ip_allow": ["127.0.0.1"], "ip_deny": ["127.0.0.1"]}),
            ),
            key("inactive", json!({"user": "gone"})),
            key("expired", json!({"expires_at": past})),
            key("broke", json!({"user": "broke"})),
            key("groupless", json!({"group": null})),
            key("closed", json!({"group": "closed"})),
            key("sub", json!({"group": "sub"})),
            key("later", json!({"group": "sub", "user": "later"})),
            key("other", json!({"group": "other"})),
            key("quota", json!({"quota": "0.00001"})),
            // Several reasons at once: the first check of SPEC 1.3 that fails is the answer.
            key(
                "disabled-denied",
                json!({"enabled": false, "ip_deny": ["127.0.0.1"]}),
            ),
            key(
                "denied-inactive",
                json!({"ip_deny": ["127.0.0.1"], "user": "gone"}),
            ),
            key("inactive-sub", json!({"user": "gone", "group": "sub"})),
            key("sub-expired", json!({"group": "sub", "expires_at": past})),
            key(
                "expired-broke",
                json!({"user": "broke", "expires_at": past}),
            ),
            key("broke-groupless", json!({"user": "broke", "group": null})),
        ]);
    })
}

in_each_dialect!(every_key_gets_its_answer);
async fn every_key_gets_its_answer(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_every_key(dialect, Setup::with(&[&upstream]))
        .start()
        .await;
    const AUTHENTICATION: &str = "authentication_error";
    const PERMISSION: &str = "permission_error";
    let refused = [
        ("disabled", 401, AUTHENTICATION, Some("API_KEY_DISABLED")),
        ("denied", 403, PERMISSION, Some("ACCESS_DENIED")),
        ("elsewhere", 403, PERMISSION, Some("ACCESS_DENIED")),
        ("garbage", 403, PERMISSION, Some("ACCESS_DENIED")),
        ("both", 403, PERMISSION, Some("ACCESS_DENIED")),
        ("inactive", 401, AUTHENTICATION, Some("USER_INACTIVE")),
        ("expired", 403, PERMISSION, Some("API_KEY_EXPIRED")),
        ("broke", 403, "billing_error", Some("INSUFFICIENT_BALANCE")),
        ("groupless", 403, PERMISSION, None),
        ("closed", 403, PERMISSION, None),
        ("sub", 403, PERMISSION, Some("SUBSCRIPTION_NOT_FOUND")),
        ("later", 403, PERMISSION, Some("SUBSCRIPTION_INVALID")),
        ("other", 404, "not_found_error", None),
        (
            "disabled-denied",
            401,
            AUTHENTICATION,
            Some("API_KEY_DISABLED"),
        ),
        ("denied-inactive", 403, PERMISSION, Some("ACCESS_DENIED")),
        ("inactive-sub", 401, AUTHENTICATION, Some("USER_INACTIVE")),
        (
            "sub-expired",
            403,
            PERMISSION,
            Some("SUBSCRIPTION_NOT_FOUND"),
        ),
        ("expired-broke", 403, PERMISSION, Some("API_KEY_EXPIRED")),
        (
            "broke-groupless",
            403,
            "billing_error",
            Some("INSUFFICIENT_BALANCE"),
        ),
        ("unknown", 401, AUTHENTICATION, Some("INVALID_API_KEY")),
    ];
    for (name, status, kind, code) in refused {
        let reply = send(&gateway, &with_key(dialect, name)).await;
        assert_refused_in(dialect, &reply, status, kind, code, name);
        if name == "later" {
            let said = reply.text();
            assert!(said.contains("it begins at 2998-01-01T00:00:00Z"), "{said}");
        }
    }
    let reply = send(&gateway, &with_key(dialect, "here")).await;
    assert_eq!(reply.status, 200);
    // Only the last one went anywhere, and only it is on record.
    assert_eq!(upstream.total(), 1);
    assert_eq!(gateway.only_record().await["api_key"], json!("here"));
}

in_each_dialect!(a_refused_client_reads_the_refusal_even_while_it_is_still_sending);
async fn a_refused_client_reads_the_refusal_even_while_it_is_still_sending(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    for size in [0, 100, 1 << 20, 8 << 20] {
        let body = dialect.saying(&"x".repeat(size), dialect.model(), false);
        let mut client = gateway.h1().await;
        let request = dialect.post(body.to_string(), NOBODY);
        let reply = client.request(&request).await.unwrap();
        let (kind, code) = ("authentication_error", Some("INVALID_API_KEY"));
        assert_refused_in(dialect, &reply, 401, kind, code, &size.to_string());
        // Told whether the connection goes on, and so it does.
        if reply.header("connection") == Some("close") {
            assert!(client.closed_by_peer().await.unwrap(), "{size}");
        }
    }
    let mut client = gateway.h1().await;
    for _ in 0..3 {
        let reply = client.request(&Request::get("/v1/models")).await.unwrap();
        assert_eq!(reply.status, 401, "a refused GET keeps its connection");
    }
    assert_eq!(upstream.total(), 0);
}

in_each_dialect!(a_quota_is_used_up_by_what_is_charged);
async fn a_quota_is_used_up_by_what_is_charged(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_every_key(dialect, Setup::with(&[&upstream]))
        .start()
        .await;
    let request = with_key(dialect, "quota");
    // The first is let in with anything left, and charged in full.
    assert_eq!(send(&gateway, &request).await.status, 200);
    let reply = send(&gateway, &request).await;
    let (kind, code) = ("rate_limit_error", "API_KEY_QUOTA_EXHAUSTED");
    assert_refused_in(dialect, &reply, 429, kind, Some(code), "quota");
    // A quota has no next period: there is no time to come back.
    assert_eq!(reply.header("retry-after"), None);
    gateway.only_record().await;
    let shown = gateway.run_json(&["keys", "show", "quota", "--json"]);
    assert_eq!(shown["status"], json!("quota_exhausted"));
    assert_eq!(shown["quota_used"], json!(dialect.charge()));
    // The user's other keys go on.
    let other = dialect.plain(dialect.model());
    assert_eq!(send(&gateway, &other).await.status, 200);
}

in_each_dialect!(in_simple_mode_nothing_is_billed);
async fn in_simple_mode_nothing_is_billed(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_every_key(dialect, Setup::with(&[&upstream]))
        .set("BILLING__MODE", "simple")
        .start()
        .await;
    for (name, status) in [
        ("quota", 200),
        ("quota", 200),
        ("expired", 200),
        ("broke", 200),
        ("disabled", 401),
        ("denied", 403),
        ("inactive", 401),
        ("groupless", 403),
    ] {
        let reply = send(&gateway, &with_key(dialect, name)).await;
        assert_eq!(reply.status, status, "{name}: {}", reply.text());
    }
    for record in gateway.wait_records(4).await {
        assert_eq!(record["billing_type"], json!("none"));
        assert_eq!(record["charge"], json!("0"));
        assert_eq!(record["cost"], json!(dialect.charge()));
    }
    assert_eq!(gateway.balance("broke"), "0");
}

in_each_dialect!(where_the_key_may_stand);
async fn where_the_key_may_stand(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    let path = dialect.path();
    let bearer = format!("Bearer {KEY}");
    let lower = format!("bearer   {KEY}  ");
    let basic = format!("Basic {KEY}");
    let other = format!("Bearer {NOBODY}");
    let required = Some((401, "authentication_error", "API_KEY_REQUIRED"));
    let invalid = Some((401, "authentication_error", "INVALID_API_KEY"));
    type Row<'a> = (
        &'a [(&'a str, &'a str)],
        Option<(u16, &'static str, &'static str)>,
    );
    #[rustfmt::skip]
    let rows: &[Row] = &[
        (&[("authorization", &bearer)], None),
        (&[("Authorization", &lower)], None),
        (&[("x-api-key", KEY)], None),
        (&[("X-Goog-Api-Key", KEY)], None),
        (&[("authorization", &bearer), ("x-api-key", NOBODY), ("x-goog-api-key", NOBODY)], None),
        (&[("authorization", &other), ("x-api-key", KEY), ("x-goog-api-key", KEY)], invalid),
        (&[("x-api-key", KEY), ("x-goog-api-key", NOBODY)], None),
        (&[("x-api-key", NOBODY), ("x-goog-api-key", KEY)], invalid),
        (&[("authorization", "Bearer "), ("x-api-key", ""), ("x-goog-api-key", KEY)], None),
        (&[("authorization", &basic), ("x-api-key", KEY)], None),
        (&[("authorization", &basic)], required),
        (&[("authorization", KEY)], required),
        (&[("authorization", "Bearer")], required),
        (&[], required),
    ];
    for (headers, refusal) in rows {
        let mut request = post_in(dialect, path);
        for (name, value) in *headers {
            request = request.header(name, value);
        }
        let reply = send(&gateway, &request).await;
        let row = format!("{headers:?}");
        match refusal {
            None => assert_eq!(reply.status, 200, "{row}: {}", reply.text()),
            Some((status, kind, code)) => {
                assert_refused_in(dialect, &reply, *status, kind, Some(code), &row);
            }
        }
    }
    for query in ["key", "api_key", "x=1&key", "%6bey"] {
        let path = format!("{path}?{query}={KEY}");
        let reply = send(&gateway, &post_in(dialect, &path).bearer(KEY)).await;
        let (kind, code) = ("invalid_request_error", "api_key_in_query_deprecated");
        assert_refused_in(dialect, &reply, 400, kind, Some(code), query);
    }
    // An empty one is none, and other parameters mean nothing here.
    let path = format!("{path}?key=&other=1&monkey=2");
    let reply = send(&gateway, &post_in(dialect, &path).bearer(KEY)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarded_addresses_are_believed_from_trusted_proxies_only() {
    let only = |setup: Setup| {
        setup.resources(|r| {
            r["api_keys"][0]["ip_allow"] = json!(["198.51.100.0/24"]);
            r["api_keys"][0]["ip_deny"] = json!(["198.51.100.66"]);
        })
    };
    let upstream = FakeUpstream::start().await;
    let trusting = only(Setup::with(&[&upstream]))
        .set(
            "SERVER__TRUSTED_PROXIES",
            r#"["127.0.0.0/8", "10.0.0.0/8"]"#,
        )
        .start()
        .await;
    let wary = only(Setup::with(&[&upstream])).start().await;
    for (forwarded, status) in [
        (None, 403),
        (Some("198.51.100.7"), 200),
        (Some("198.51.100.66"), 403),
        (Some("203.0.113.9"), 403),
        // What the client wrote itself stands left of what its proxy wrote.
        (Some("198.51.100.7, 203.0.113.9"), 403),
        (Some("203.0.113.9, 198.51.100.7"), 200),
        (Some("198.51.100.7, 10.1.2.3"), 200),
        (Some("garbage, 10.1.2.3"), 403),
    ] {
        let mut request = post("/v1/responses").bearer(KEY);
        if let Some(forwarded) = forwarded {
            request = request
                .header("x-forwarded-for", forwarded)
                // Neither of these is ever believed.
                .header("x-real-ip", "198.51.100.7")
                .header("cf-connecting-ip", "198.51.100.7");
        }
        let reply = send(&trusting, &request).await;
        assert_eq!(reply.status, status, "{forwarded:?}: {}", reply.text());
        let reply = send(&wary, &request).await;
        let (kind, code) = ("permission_error", Some("ACCESS_DENIED"));
        assert_refused(&reply, 403, kind, code, &format!("{forwarded:?}"));
    }
    for record in trusting.wait_records(3).await {
        assert_eq!(record["ip"], json!("198.51.100.7"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_methods() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let kind = "invalid_request_error";
    // Routing comes before authentication: no key is needed to be told of a wrong path.
    for path in [
        "/",
        "/v1",
        "/v1/chat",
        "/v2/responses",
        "/v1/responsesx",
        "/v1/responses/%2e%2e/x",
    ] {
        assert_refused(&send(&gateway, &post(path)).await, 404, kind, None, path);
    }
    for (path, method, allow) in [
        ("/v1/responses", "PUT", "GET, POST"),
        ("/responses", "DELETE", "GET, POST"),
        ("/v1/responses/compact", "GET", "POST"),
        ("/v1/models", "POST", "GET"),
    ] {
        let reply = send(&gateway, &Request::new(method, path).bearer(KEY)).await;
        assert_refused(&reply, 405, kind, None, path);
        assert_eq!(reply.header("allow"), Some(allow), "{method} {path}");
    }
    for path in ["/v1/responses", "/responses", "/v1/responses/"] {
        let upgrade = Request::get(path)
            .bearer(KEY)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        for request in [Request::get(path).bearer(KEY), upgrade] {
            let reply = send(&gateway, &request).await;
            assert_refused(&reply, 426, kind, None, path);
        }
    }
    // The dialect of the path, so that the right library reads the right error.
    for path in [
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/antigravity/v1/messages",
    ] {
        let reply = send(&gateway, &post(path).bearer(KEY)).await;
        assert_eq!(reply.status, 404, "{path}");
        assert_own_id(&reply, path);
        let body = reply.json();
        assert_eq!(body["type"], json!("error"), "{path}");
        assert_eq!(body["error"]["type"], json!("not_found_error"), "{path}");
        assert!(body["error"]["message"].is_string(), "{path}");
    }
    for path in [
        "/v1beta/models/gemini-3-pro:generateContent",
        "/antigravity/v1beta/models",
    ] {
        let reply = send(&gateway, &post(path).bearer(KEY)).await;
        assert_eq!(reply.status, 404, "{path}");
        assert_own_id(&reply, path);
        let error = &reply.json()["error"];
        assert_eq!(error["code"], json!(404), "{path}");
        assert_eq!(error["status"], json!("NOT_FOUND"), "{path}");
        assert!(error["message"].is_string(), "{path}");
    }
    assert_eq!(upstream.total(), 0);
}

in_each_dialect!(base_urls_aliases_and_sub_paths);
async fn base_urls_aliases_and_sub_paths(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    upstream.otherwise(dialect.body("resp_1", "hi"));
    // (what follows the host in base_url, the client's path, the upstream's, the record's endpoint)
    const MESSAGES: &str = "/v1/messages";
    #[rustfmt::skip]
    let rows_of_messages = [
        ("", MESSAGES, MESSAGES, MESSAGES),
        ("/", "/v1/messages/", MESSAGES, MESSAGES),
        ("/v1", MESSAGES, MESSAGES, MESSAGES),
        ("/v1/", "/v1/messages?beta=true", MESSAGES, MESSAGES),
        ("/relay", MESSAGES, "/relay/v1/messages", MESSAGES),
        ("/relay/v1", MESSAGES, "/relay/v1/messages", MESSAGES),
        ("/x/v1/messages/", MESSAGES, "/x/v1/messages", MESSAGES),
    ];
    let rows_of_responses = [
        ("", "/v1/responses", "/v1/responses", "/v1/responses"),
        ("/", "/responses", "/v1/responses", "/v1/responses"),
        ("/v1", "/v1/responses/", "/v1/responses", "/v1/responses"),
        (
            "/v1/",
            "/v1/responses/compact",
            "/v1/responses/compact",
            "/v1/responses/compact",
        ),
        (
            "/relay",
            "/responses/compact",
            "/relay/v1/responses/compact",
            "/v1/responses/compact",
        ),
        (
            "/relay/v1",
            "/v1/responses",
            "/relay/v1/responses",
            "/v1/responses",
        ),
        (
            "/x/responses",
            "/v1/responses",
            "/x/responses",
            "/v1/responses",
        ),
        (
            "/x/v1/responses/",
            "/responses/resp_1/cancel",
            "/x/v1/responses/resp_1/cancel",
            "/v1/responses/resp_1/cancel",
        ),
        (
            "",
            "/v1/responses?other=1",
            "/v1/responses",
            "/v1/responses",
        ),
    ];
    let (rows, query) = match dialect {
        Dialect::Responses => (rows_of_responses.to_vec(), ""),
        Dialect::Messages => (rows_of_messages.to_vec(), "?beta=true"),
    };
    let bases: Vec<String> = rows
        .iter()
        .map(|(suffix, ..)| format!("{}{suffix}", upstream.url()))
        .collect();
    let gateway = Setup::new(&bases)
        .resources(|r| {
            for index in 0..rows.len() {
                let group = format!("g{index}");
                r["accounts"][index]["groups"] = json!([group]);
                let groups = r["groups"].as_array_mut().unwrap();
                groups.push(json!({"name": group, "platform": "openai"}));
                let keys = r["api_keys"].as_array_mut().unwrap();
                keys.push(key(&group, json!({"group": group})));
            }
        })
        .speaking(dialect)
        .start()
        .await;
    for (index, (suffix, path, there, endpoint)) in rows.into_iter().enumerate() {
        let key = text_of(&format!("g{index}"));
        let reply = send(&gateway, &post_in(dialect, path).bearer(&key)).await;
        assert_eq!(reply.status, 200, "{suffix} {path}: {}", reply.text());
        let seen = upstream.requests().pop().unwrap();
        assert_eq!(seen.target, format!("{there}{query}"), "{suffix} {path}");
        assert_eq!(seen.method, "POST");
        let host = upstream.address().to_string();
        assert_eq!(seen.host(), Some(host.as_str()));
        let credential = format!("sk-a{}", index + 1);
        assert_eq!(seen.credential(), Some(credential.as_str()));
        let record = gateway.wait_records(index + 1).await.pop().unwrap();
        assert_eq!(record["endpoint"], json!(endpoint));
        assert_eq!(record["upstream_endpoint"], json!(there));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_the_usual_ones_or_those_of_the_mappings() {
    let upstream = FakeUpstream::start().await;
    let mapped = |names: Value| move |r: &mut Value| r["accounts"][0]["model_mapping"] = names;
    let gateway = Setup::with(&[&upstream]).start().await;
    let reply = send(&gateway, &Request::get("/v1/models").bearer(KEY)).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_own_id(&reply, "models");
    let list = reply.json();
    assert_eq!(list["object"], json!("list"));
    let models = list["data"].as_array().unwrap();
    assert!(models.iter().any(|m| m["id"] == "gpt-5-mini"));
    for model in models {
        assert_eq!(model["object"], json!("model"));
        assert!(model["created"].is_u64() && model["owned_by"].is_string());
    }
    let reply = send(&gateway, &Request::get("/v1/models")).await;
    let code = Some("API_KEY_REQUIRED");
    assert_refused(&reply, 401, "authentication_error", code, "models");

    let names = json!({"z-model": "gpt-5", "a-model": "gpt-5", "gpt-*": "gpt-5"});
    let gateway = Setup::with(&[&upstream])
        .resources(mapped(names))
        .start()
        .await;
    let reply = send(&gateway, &Request::get("/v1/models").bearer(KEY)).await;
    let ids: Vec<_> = reply.json()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].clone())
        .collect();
    assert_eq!(ids, ["a-model", "z-model"]);
    // Asked for by nobody upstream, and nothing to record.
    assert_eq!(upstream.total(), 0);
    assert!(gateway.records().is_empty());
}

in_each_dialect!(request_ids_are_ours);
async fn request_ids_are_ours(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    let named = match dialect {
        Dialect::Responses => "x-request-id",
        Dialect::Messages => "request-id",
    };
    let answer = dialect.body("resp_1", "hi");
    upstream.push(answer.header(named, "req_of_upstream"));
    let request = dialect
        .plain(dialect.model())
        .header("x-request-id", "mine-1");
    let reply = send(&gateway, &request).await;
    assert_own_id(&reply, "answer");
    assert_eq!(reply.header(named), reply.header("x-request-id"));
    assert_eq!(
        reply.header("x-upstream-request-id"),
        Some("req_of_upstream")
    );
    assert_eq!(upstream.only_request().header("x-request-id"), None);
    let record = gateway.only_record().await;
    assert_eq!(record["request_id"].as_str(), reply.header("x-request-id"));
    assert_eq!(record["client_request_id"], json!("mine-1"));
    assert_eq!(record["upstream_request_id"], json!("req_of_upstream"));

    // The same id twice is no repetition: both are served, both are charged.
    let again = send(&gateway, &request).await;
    assert_ne!(again.header("x-request-id"), reply.header("x-request-id"));
    gateway.wait_records(2).await;

    // An error relayed from upstream carries both as well.
    upstream.push(dialect.error(400, "bad").header(named, "req_of_upstream_2"));
    let reply = send(&gateway, &request).await;
    assert_eq!(reply.status, 400);
    assert_own_id(&reply, "relayed error");
    assert_eq!(
        reply.header("x-upstream-request-id"),
        Some("req_of_upstream_2")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_listed_headers_pass_in_either_direction() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let passing = [
        ("accept", "application/json"),
        ("accept-language", "de"),
        ("content-type", "application/json"),
        ("conversation_id", "c1"),
        ("originator", "codex_cli_rs"),
        ("session_id", "s1"),
        ("user-agent", "a-client/1.0"),
        ("x-codex-turn-metadata", "m1"),
        ("x-codex-turn-state", "t1"),
    ];
    let staying = [
        "accept-encoding",
        "cf-connecting-ip",
        "cookie",
        "forwarded",
        "openai-beta",
        "openai-organization",
        "openai-project",
        "origin",
        "proxy-authorization",
        "referer",
        "te",
        "trailer",
        "via",
        "x-api-key",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-goog-api-key",
        "x-real-ip",
        "x-request-id",
        "x-stainless-lang",
    ];
    let mut request = Request::new("POST", "/v1/responses").bearer(KEY);
    let body = ask("gpt-5-mini", true).to_string();
    for name in staying {
        request = request.header(name, "gzip");
    }
    // `post` sets a content type, so the list is sent with a raw head.
    for (name, value) in passing {
        request = request.header(name, value);
    }
    let mut head = request
        .header("content-length", &body.len().to_string())
        .head_bytes();
    // The blank line and the content length of the empty body make way for the real ones.
    let surplus = b"content-length: 0\r\n\r\n";
    assert!(head.ends_with(surplus));
    head.truncate(head.len() - surplus.len());
    head.extend_from_slice(b"\r\n");
    let returned = [
        ("cache-control", "no-cache"),
        ("content-language", "en"),
        ("content-type", "text/event-stream"),
        ("openai-processing-ms", "5"),
        ("openai-version", "2020-10-01"),
        ("retry-after", "3"),
        ("x-codex-turn-state", "t2"),
        ("x-ratelimit-limit-requests", "100"),
        ("x-ratelimit-remaining-tokens", "7"),
    ];
    let kept_back = [
        ("set-cookie", "a=1"),
        ("server", "cloudflare"),
        ("cf-ray", "1"),
        ("alt-svc", "h3"),
        ("openai-organization", "org"),
        ("strict-transport-security", "max-age=1"),
        ("x-codex-primary-used-percent", "50"),
        ("x-unheard-of", "1"),
    ];
    let frames = openai::responses_stream("gpt-5-mini", "resp_1", &["hi"], Default::default());
    let mut answer = Answer::sse(frames);
    for (name, value) in returned.iter().chain(&kept_back) {
        if *name != "content-type" {
            answer = answer.header(name, value);
        }
    }
    upstream.push(answer);
    let mut client = gateway.h1().await;
    client.send(&head).await.unwrap();
    client.send(body.as_bytes()).await.unwrap();
    let reply = client.reply().await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());

    let seen = upstream.only_request();
    for (name, value) in passing {
        assert_eq!(seen.headers(name), [value], "{name}");
    }
    let mut names: Vec<String> = seen
        .headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort();
    let mut expected: Vec<&str> = passing.iter().map(|(name, _)| *name).collect();
    expected.extend(["authorization", "content-length", "host"]);
    expected.sort();
    assert_eq!(names, expected, "nothing else goes upstream");
    assert_eq!(seen.headers("authorization"), ["Bearer sk-a1"]);
    assert!(!String::from_utf8_lossy(&seen.raw_head).contains(KEY));

    for (name, value) in returned {
        let got = reply.header(name).unwrap_or_default();
        assert!(got.starts_with(value), "{name}: {got:?}");
    }
    for (name, _) in kept_back {
        assert_eq!(reply.header(name), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_credentials_are_stored_unreadably() {
    let upstream = FakeUpstream::start().await;
    let mut gateway = Setup::with(&[&upstream]).start().await;
    let reply = post_json(
        gateway.address,
        "/v1/responses",
        KEY,
        &ask("gpt-5-mini", false),
    )
    .await
    .unwrap();
    assert_eq!(reply.status, 200);
    gateway.only_record().await;
    gateway.finish();
    let mut read = 0;
    let files = |folder: std::path::PathBuf| {
        let entries = std::fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
    };
    let journal = files(gateway.data().join("journal"));
    for path in files(gateway.data()).chain(journal) {
        let bytes = std::fs::read(&path).unwrap();
        read += bytes.len();
        for secret in [KEY, "sk-a1"] {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} in {}", path.display());
        }
    }
    assert!(read > 10_000, "there is a database");
}
