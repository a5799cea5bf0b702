//! `tollgate prices`: what a model costs, and a new price map taken over by a running server.

use serde_json::{Value, json};
use tollgate_test_support::{FakeUpstream, post_json};

use crate::harness::{Gateway, KEY, Setup, ask_anew};

/// Costs 100 × 1e-6 + 20 × 1e-6 + 30 × 1e-5 at these prices: a request of the fake's usual size.
const MAP: &str =
    r#"{"gpt-5-mini": {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-5}}"#;

async fn cost_of_one(gateway: &Gateway, count: usize) -> Value {
    let body = ask_anew("gpt-5-mini", false);
    let reply = post_json(gateway.address, "/v1/responses", KEY, &body)
        .await
        .unwrap();
    assert_eq!(reply.status, 200);
    gateway.wait_records(count).await[count - 1]["cost"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_takes_an_updated_price_map_over() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    assert_eq!(cost_of_one(&gateway, 1).await, json!("0.0000855"));
    let shown = gateway.run_json(&["prices", "show", "gpt-5-mini-2025-08-07", "--json"]);
    assert_eq!(shown["from"], json!("built-in price map"));
    assert_eq!(shown["input_per_million"], json!("0.25"));

    // One with mistakes changes nothing, and all of them are named.
    let bad = r#"{"a": {"input_cost_per_token": -1}, "b": 1, "c": {"input_cost_per_token": 1}}"#;
    let output = gateway.try_run(&["prices", "update", "-"], bad);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("-: a: input_cost_per_token: must not be negative"),
        "{said}"
    );
    assert!(said.contains("-: b: not an object"), "{said}");
    assert!(!gateway.data().join("prices.json").exists());

    let output = gateway
        .followed(|| gateway.try_run(&["prices", "update", "-"], MAP))
        .await;
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("1 names: 0 new, 1 changed, "), "{said}");
    assert_eq!(cost_of_one(&gateway, 2).await, json!("0.00042"));
    let shown = gateway.run_json(&["prices", "show", "gpt-5-mini", "--json"]);
    assert_eq!(shown["output_per_million"], json!("10"));
    assert_eq!(shown["entry"], json!("gpt-5-mini"));

    // The operator's own prices win, and are shown.
    let own = json!({"prices": {"gpt-5-mini": {"input_cost_per_token": 2e-6, "output_cost_per_token": 0}}});
    gateway.followed(|| gateway.apply(&own)).await;
    assert_eq!(cost_of_one(&gateway, 3).await, json!("0.00024"));
    let shown = gateway.run_json(&["prices", "show", "gpt-5-mini", "--json"]);
    assert_eq!(shown["from"], json!("prices: of the resources"));

    let output = gateway.try_run(&["prices", "show", "house-model"], "");
    assert_eq!(output.status.code(), Some(1));
    // The second update keeps the first.
    let output = gateway.try_run(
        &["prices", "update", "-"],
        r#"{"m": {"input_cost_per_token": 1}}"#,
    );
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("prices.json.bak")
    );
    let kept = std::fs::read_to_string(gateway.data().join("prices.json.bak")).unwrap();
    assert_eq!(kept, MAP);
}
