//! `GET /v1/usage`, and what the operator's commands say of the same requests.

use serde_json::{Value, json};
use tollgate_test_support::{FakeUpstream, Request, post_json};

use crate::harness::{Gateway, KEY, Setup, ask_anew};

/// What a request of the fake's usual size costs with gpt-5-mini.
const USUAL_COST: &str = "0.0000855";
/// A model that no price map knows.
const HOUSE: &str = "house-model";

async fn usage(gateway: &Gateway, path: &str, key: &str) -> (u16, String) {
    let request = Request::get(path).bearer(key);
    let reply = gateway.h1().await.request(&request).await.unwrap();
    (
        reply.status,
        String::from_utf8(reply.body.to_vec()).unwrap(),
    )
}

async fn used(gateway: &Gateway, key: &str) -> Value {
    let (status, body) = usage(gateway, "/v1/usage", key).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

async fn request(gateway: &Gateway, key: &str, model: &str) -> u16 {
    let body = ask_anew(model, false);
    let reply = post_json(gateway.address, "/v1/responses", key, &body).await;
    reply.unwrap().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_told_the_balance_and_what_was_used() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let before = used(&gateway, KEY).await;
    assert_eq!(before["usage"]["total"]["requests"], json!(0));
    assert_eq!(before["model_stats"], json!([]));
    for model in ["gpt-5-mini", "gpt-5-mini", HOUSE] {
        assert_eq!(request(&gateway, KEY, model).await, 200);
    }
    gateway.wait_records(3).await;

    let (status, text) = usage(&gateway, "/v1/usage", KEY).await;
    assert_eq!(status, 200);
    // Exactly, as floats would hide.
    assert!(text.contains("\"remaining\":9.999829,"), "{text}");
    assert!(
        text.contains("\"cost\":0.000171,\"actual_cost\":0.000171"),
        "{text}"
    );
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["mode"], json!("unrestricted"));
    assert_eq!(
        (&body["isValid"], &body["unit"]),
        (&json!(true), &json!("USD"))
    );
    assert_eq!(body["balance"], body["remaining"]);
    let total = json!({
        "requests": 3, "input_tokens": 300, "output_tokens": 90, "cache_creation_tokens": 0,
        "cache_read_tokens": 60, "total_tokens": 450, "cost": 0.000171, "actual_cost": 0.000171,
    });
    assert_eq!(body["usage"]["total"], total);
    assert_eq!(body["usage"]["today"], total);
    assert_eq!(
        (&body["usage"]["rpm"], &body["usage"]["tpm"]),
        (&json!(3), &json!(450))
    );
    let models = body["model_stats"].as_array().unwrap();
    let models: Vec<_> = models
        .iter()
        .map(|m| (&m["model"], &m["requests"]))
        .collect();
    assert_eq!(
        models,
        [
            (&json!("gpt-5-mini"), &json!(2)),
            (&json!(HOUSE), &json!(1))
        ]
    );

    // Dates are about models only, and a wrong one is passed over.
    for (query, count) in [
        ("?start_date=2000-01-01&end_date=2000-12-31", 0),
        ("?start_date=2000-01-01", 2),
        ("?start_date=nonsense&end_date=2000-1-1", 2),
    ] {
        for path in ["/v1/usage", "/usage"] {
            let (status, text) = usage(&gateway, &format!("{path}{query}"), KEY).await;
            assert_eq!(status, 200);
            let body: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(body["usage"]["total"], total, "{query}");
            assert_eq!(
                body["model_stats"].as_array().unwrap().len(),
                count,
                "{query}"
            );
        }
    }
    // Nothing was sent, and nothing recorded.
    assert_eq!(upstream.total(), 3);
    gateway.wait_records(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_nothing_left_may_still_ask() {
    let upstream = FakeUpstream::start().await;
    let key = |name: &str| format!("tg-{name}-0123456789abcdef");
    let gateway = Setup::with(&[&upstream])
        .resources(|r| {
            let groups = r["groups"].as_array_mut().unwrap();
            groups.push(json!({
                "name": "sub", "platform": "openai", "subscription_type": "subscription",
            }));
            let users = r["users"].as_array_mut().unwrap();
            users.push(json!({"name": "poor", "balance": "0"}));
            let keys = r["api_keys"].as_array_mut().unwrap();
            for (name, user, group, more) in [
                ("poor", "poor", Some("main"), json!({})),
                (
                    "expired",
                    "alice",
                    Some("main"),
                    json!({"expires_at": "2020-01-01T00:00:00Z"}),
                ),
                (
                    "used-up",
                    "alice",
                    Some("main"),
                    json!({"quota": USUAL_COST}),
                ),
                ("off", "alice", Some("main"), json!({"enabled": false})),
                (
                    "elsewhere",
                    "alice",
                    Some("main"),
                    json!({"ip_allow": ["192.0.2.1"]}),
                ),
                ("groupless", "alice", None, json!({})),
                ("sub", "alice", Some("sub"), json!({})),
            ] {
                let mut entry =
                    json!({"name": name, "key": key(name), "user": user, "group": group});
                let entry_fields = entry.as_object_mut().unwrap();
                entry_fields.extend(more.as_object().unwrap().clone());
                keys.push(entry);
            }
        })
        .start()
        .await;
    assert_eq!(request(&gateway, &key("used-up"), "gpt-5-mini").await, 200);
    gateway.only_record().await;
    for (name, inference, status, code) in [
        ("poor", 403, 200, None),
        ("expired", 403, 200, None),
        ("used-up", 429, 200, None),
        ("off", 401, 401, Some("API_KEY_DISABLED")),
        ("elsewhere", 403, 403, Some("ACCESS_DENIED")),
        ("groupless", 403, 403, None),
        ("sub", 403, 403, Some("SUBSCRIPTION_NOT_FOUND")),
        ("unknown", 401, 401, Some("INVALID_API_KEY")),
    ] {
        let key = key(name);
        assert_eq!(
            request(&gateway, &key, "gpt-5-mini").await,
            inference,
            "{name}"
        );
        let (got, text) = usage(&gateway, "/v1/usage", &key).await;
        assert_eq!(got, status, "{name}: {text}");
        if let Some(code) = code {
            let body: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(body["error"]["code"], json!(code), "{name}");
        }
    }
    let body = used(&gateway, &key("used-up")).await;
    assert_eq!(body["mode"], json!("quota_limited"));
    assert_eq!(
        (&body["status"], &body["isValid"], &body["remaining"]),
        (&json!("quota_exhausted"), &json!(true), &json!(0))
    );
    assert_eq!(
        body["quota"],
        json!({"limit": 0.0000855, "used": 0.0000855, "remaining": 0, "unit": "USD"})
    );
    assert_eq!(body["usage"]["total"]["requests"], json!(1));
    assert_eq!(used(&gateway, &key("poor")).await["remaining"], json!(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_sees_days_filters_and_csv() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .group("other", &[("b1", &upstream.url())])
        .start()
        .await;
    for model in ["gpt-5-mini", HOUSE] {
        assert_eq!(request(&gateway, KEY, model).await, 200);
    }
    gateway.wait_records(2).await;
    let days = gateway.run_json(&["usage", "--by", "day", "--since", "2d", "--json"]);
    let requests: u64 = days
        .as_array()
        .unwrap()
        .iter()
        .map(|day| day["requests"].as_u64().unwrap())
        .sum();
    assert_eq!(requests, 2, "{days}");
    assert_eq!(days[0]["name"].as_str().unwrap().len(), "2026-11-25".len());
    for (filter, count) in [
        (["--model", "gpt-5-mini"], 1),
        (["--key", "alice-key"], 2),
        (["--account", "b1"], 0),
        (["--group", "main"], 2),
        (["--until", "2000-01-01"], 0),
        (["--until", "0s"], 2),
    ] {
        let arguments = [&["usage", "--json"][..], &filter].concat();
        let totals = gateway.run_json(&arguments);
        assert_eq!(totals[0]["requests"], json!(count), "{filter:?}");
        let arguments = [&["usage", "records", "--json"][..], &filter].concat();
        assert_eq!(gateway.run(&arguments).lines().count(), count, "{filter:?}");
    }
    for (name, kind) in [
        ("--key", "key"),
        ("--account", "account"),
        ("--group", "group"),
    ] {
        let output = gateway.try_run(&["usage", name, "nobody"], "");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains(&format!("there is no {kind} named nobody")),
            "{said}"
        );
    }
    let csv = gateway.run(&["usage", "--by", "model", "--csv"]);
    let mut lines = csv.lines();
    assert_eq!(
        lines.next().unwrap(),
        "name,requests,input_tokens,output_tokens,cache_creation_tokens,cache_creation_5m_tokens,\
         cache_creation_1h_tokens,cache_read_tokens,image_output_tokens,image_count,unpriced,cost,charge"
    );
    assert_eq!(
        lines.next().unwrap(),
        format!("gpt-5-mini,1,100,30,0,0,0,20,0,0,0,{USUAL_COST},{USUAL_COST}")
    );
    assert!(
        lines.next().unwrap().starts_with("house-model,1,100,30,"),
        "{csv}"
    );
    let csv = gateway.run(&["usage", "records", "--csv"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 3, "{csv}");
    assert!(
        lines[0].starts_with("request_id,client_request_id,"),
        "{csv}"
    );
    assert_eq!(lines[0].split(',').count(), lines[1].split(',').count());
    assert!(gateway.run(&["usage"]).contains("UNPRICED"));
    let both = gateway.try_run(&["usage", "--csv", "--json"], "");
    assert_eq!(both.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_names_models_without_a_price() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let mut resources = Setup::with(&[&upstream]).resources;
    resources["accounts"][0]["model_mapping"] = json!({
        "gpt-5": "gpt-5", "alias": "gpt-5-mini", "mine": HOUSE, "gpt-4*": HOUSE,
    });
    let output = gateway.try_run(&["check", "-f", "-"], &resources.to_string());
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    let warnings: Vec<&str> = said.lines().filter(|l| l.contains("no price")).collect();
    assert_eq!(warnings.len(), 2, "{said}");
    assert!(warnings[0].contains("accounts/a1: model_mapping"), "{said}");
    assert!(said.contains("\"mine\" or \"house-model\""), "{said}");
    resources["prices"] = json!({ HOUSE: {"input_cost_per_token": 1e-6} });
    let output = gateway.try_run(&["check", "-f", "-"], &resources.to_string());
    assert!(
        !String::from_utf8(output.stderr)
            .unwrap()
            .contains("no price")
    );
}
