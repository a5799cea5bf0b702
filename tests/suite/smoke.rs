//! The whole job once through.

use serde_json::json;
use tollgate_test_support::{Answer, FakeUpstream, Request, Usage, openai};

use crate::harness::{KEY, Setup, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_relayed_and_recorded() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    upstream.push(Answer::sse(openai::responses_stream(
        "gpt-5-mini",
        "resp_1",
        &["Hel", "lo"],
        Usage::default(),
    )));
    let request = Request::post("/v1/responses", ask("gpt-5-mini", true).to_string()).bearer(KEY);
    let reply = gateway.h1().await.request(&request).await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.event_types().last().map(String::as_str),
        Some("response.completed")
    );
    let record = gateway.only_record().await;
    assert_eq!(record["outcome"], json!("ok"));
    assert_eq!(record["usage_source"], json!("reported"));
    assert_eq!(record["input_tokens"], json!(100));
    assert_eq!(record["cache_read_tokens"], json!(20));
    assert_eq!(record["output_tokens"], json!(30));
    assert_eq!(upstream.only_request().credential(), Some("sk-a1"));
}
