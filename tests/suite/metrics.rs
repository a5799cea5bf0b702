//! What /metrics says: the families that deploy/METRICS.md describes, and the right numbers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use tollgate_test_support::{Answer, FakeUpstream, Gate, Request, openai};

use crate::harness::{Gateway, KEY, Setup, ask};

/// A family: its type and the names of its labels.
type Family = (String, BTreeSet<String>);

/// The families of an exposition, without the prefix.
fn exposed(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = name.strip_prefix("tollgate_").expect("our prefix");
        families.insert(name.into(), (kind.into(), BTreeSet::new()));
    }
    for (name, labels, _) in samples(text) {
        let family = ["", "_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find_map(|name| families.get_key_value(name).map(|(name, _)| name.clone()))
            .unwrap_or_else(|| panic!("{name} belongs to no family"));
        let known = &mut families.get_mut(&family).unwrap().1;
        known.extend(labels.into_iter().map(|(name, _)| name));
    }
    for (kind, labels) in families.values_mut() {
        if kind == "histogram" {
            labels.remove("le");
        }
    }
    families
}

/// Name, labels and value.
type Sample = (String, Vec<(String, String)>, f64);

/// Every sample of an exposition, without the prefix.
fn samples(text: &str) -> Vec<Sample> {
    let lines = text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty());
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').unwrap();
            let labels = labels
                .split(',')
                .filter(|label| !label.is_empty())
                .map(|label| {
                    let (name, value) = label.split_once('=').unwrap();
                    (name.to_owned(), value.trim_matches('"').to_owned())
                })
                .collect();
            let name = name.strip_prefix("tollgate_").unwrap();
            (name.to_owned(), labels, value.parse().unwrap())
        })
        .collect()
}

/// The families of deploy/METRICS.md: rows of `name`, type, `label`s, meaning.
fn described() -> BTreeMap<String, Family> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/METRICS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut families = BTreeMap::new();
    for row in text.lines().filter(|l| l.starts_with("| `tollgate_")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else {
            panic!("four cells: {row}");
        };
        assert!(meaning.len() > 10, "{row}");
        let name = name.trim_matches('`').strip_prefix("tollgate_").unwrap();
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned);
        let family = (kind.to_owned(), labels.collect());
        let twice = families.insert(name.to_owned(), family).is_some();
        assert!(!twice, "{name} is described twice");
    }
    families
}

fn post(model: &str, stream: bool, key: &str) -> Request {
    Request::post("/v1/responses", ask(model, stream).to_string()).bearer(key)
}

async fn status(gateway: &Gateway, request: Request) -> u16 {
    gateway.h1().await.request(&request).await.unwrap().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scripted_day_in_numbers() {
    const MODEL: &str = "gpt-5-mini";
    const BOB: &str = "tg-bob-0123456789abcdef";
    const POOL: &str = "tg-pool-0123456789abcdef";
    const CLAUDE: &str = "tg-claude-0123456789abcdef";
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = Setup::with(&[&first, &second])
        .resources(|r| {
            let groups = r["groups"].as_array_mut().unwrap();
            groups.push(json!({"name": "twice", "platform": "openai", "rate_multiplier": "2"}));
            r["accounts"][0]["groups"] = json!(["main", "twice"]);
            let users = r["users"].as_array_mut().unwrap();
            users.push(json!({"name": "bob", "balance": "10", "concurrency": 1}));
            let keys = r["api_keys"].as_array_mut().unwrap();
            keys.push(json!({"name": "bob-key", "key": BOB, "user": "bob", "group": "twice"}));
            keys.push(json!({"name": "pool-key", "key": POOL, "user": "alice", "group": "pool"}));
            let groups = r["groups"].as_array_mut().unwrap();
            groups.push(json!({"name": "pool", "platform": "openai"}));
            let mut pool = r["accounts"][1].clone();
            pool["name"] = json!("a3");
            pool["groups"] = json!(["pool"]);
            pool["extra"] = json!({"pool_mode": true});
            r["accounts"].as_array_mut().unwrap().push(pool);
            let groups = r["groups"].as_array_mut().unwrap();
            groups.push(json!({"name": "claude", "platform": "anthropic"}));
            let keys = r["api_keys"].as_array_mut().unwrap();
            keys.push(
                json!({"name": "claude-key", "key": CLAUDE, "user": "alice", "group": "claude"}),
            );
            let mut claude = r["accounts"][0].clone();
            claude["name"] = json!("a4");
            claude["platform"] = json!("anthropic");
            claude["groups"] = json!(["claude"]);
            claude["extra"] = json!({"intercept_warmup_requests": true});
            r["accounts"].as_array_mut().unwrap().push(claude);
        })
        .start()
        .await;
    // Nothing has happened yet.
    for (name, _, value) in samples(&gateway.get("/metrics").unwrap().1) {
        let journal = ["journal_bytes", "journal_segments", "journal_syncs_total"];
        let is_there_from_the_start =
            name.ends_with("build_info") || journal.iter().any(|j| name.ends_with(j));
        if !is_there_from_the_start {
            assert_eq!(value, 0.0, "{name}");
        }
    }

    // Two that are served, one of them at twice the price: after waiting for the user's only slot.
    assert_eq!(status(&gateway, post(MODEL, true, KEY)).await, 200);
    let gate = Gate::new();
    first.push(Answer::echo().after(&gate));
    let running = {
        let mut client = gateway.h1().await;
        client.send_request(&post(MODEL, false, BOB)).await.unwrap();
        gate.wait_reached(1).await;
        client
    };
    assert_eq!(gateway.metric("requests_in_flight"), 1.0);
    assert_eq!(gateway.metric("slots_held{slot=\"user\"}"), 1.0);
    assert_eq!(gateway.metric("slots_held{slot=\"account\"}"), 1.0);
    let body = ask(MODEL, false).to_string().len() as f64;
    assert_eq!(gateway.metric("inflight_body_bytes"), body);
    let mut waiting = gateway.h1().await;
    waiting
        .send_request(&post(MODEL, false, BOB))
        .await
        .unwrap();
    gateway.wait_metric("requests_in_flight", 2.0).await;
    // Held while it waits, before it goes anywhere.
    gateway.wait_metric("inflight_body_bytes", 2.0 * body).await;
    gate.open();
    for mut client in [running, waiting] {
        assert_eq!(client.reply().await.unwrap().status, 200);
    }
    gateway.wait_metric("requests_in_flight", 0.0).await;

    // One that fails over from the first account, and one whose mistake is the client's own.
    first.push(Answer::error(529, "overloaded"));
    assert_eq!(status(&gateway, post(MODEL, true, KEY)).await, 200);
    second.push(Answer::error(400, "bad_request"));
    assert_eq!(status(&gateway, post(MODEL, true, KEY)).await, 400);
    // One that is tried again on the same account.
    second.push(Answer::error(429, "rate_limit_exceeded"));
    assert_eq!(status(&gateway, post(MODEL, false, POOL)).await, 200);
    // Those that never get that far.
    assert_eq!(
        status(&gateway, post(MODEL, true, "tg-nobody-0123456789abcdef")).await,
        401
    );
    assert_eq!(status(&gateway, Request::post("/v1/what", "{}")).await, 404);
    assert_eq!(
        status(&gateway, Request::get("/v1/models").bearer(KEY)).await,
        200
    );
    // One that is answered here in place of its account.
    let warm_up = json!({"model": MODEL, "messages": [{"role": "user", "content": "Warmup"}]});
    let warm_up = Request::post("/v1/messages", warm_up.to_string()).bearer(CLAUDE);
    assert_eq!(status(&gateway, warm_up).await, 200);
    // One without a known price.
    assert_eq!(
        status(&gateway, post("a-model-nobody-knows", false, KEY)).await,
        200
    );
    // One whose client leaves in the middle; it is read to its end all the same.
    let gate = Gate::new();
    let frames = openai::responses_stream(MODEL, "resp_1", &["Hel", "lo"], Default::default());
    second.push(Answer::sse(frames).gated(5, &gate));
    let mut client = gateway.h1().await;
    client.send_request(&post(MODEL, true, KEY)).await.unwrap();
    assert_eq!(client.final_head().await.unwrap().status, 200);
    client.read_until("Hel").await.unwrap();
    client.reset();
    gate.open();
    gateway.wait_metric("requests_in_flight", 0.0).await;
    // Something is configured anew.
    gateway.run(&["users", "credit", "bob", "1"]);
    gateway.wait_metric("directory_reloads_total", 1.0).await;
    gateway.wait_metric("records_written_total", 8.0).await;

    let text = gateway.get("/metrics").unwrap().1;
    let total = |name: &str| -> f64 {
        let all = samples(&text);
        let of = all.iter().filter(|(n, ..)| n == name).map(|(.., v)| v);
        of.sum()
    };
    let close = |name: &str, value: f64| {
        let got = gateway.metric(name);
        assert!((got - value).abs() < 1e-12, "{name}: {got}, not {value}");
    };
    #[rustfmt::skip]
    let exact = [
        (r#"requests_total{endpoint="responses",outcome="ok",status="200"}"#, 6.0),
        (r#"requests_total{endpoint="responses",outcome="client_gone",status="200"}"#, 1.0),
        (r#"requests_total{endpoint="responses",outcome="upstream_error",status="400"}"#, 1.0),
        (r#"requests_total{endpoint="responses",outcome="refused",status="401"}"#, 1.0),
        (r#"requests_total{endpoint="none",outcome="refused",status="404"}"#, 1.0),
        (r#"requests_total{endpoint="models",outcome="ok",status="200"}"#, 1.0),
        (r#"requests_total{endpoint="messages",outcome="intercepted",status="200"}"#, 1.0),
        (r#"intercepted_total{kind="warm_up"}"#, 1.0),
        (r#"attempts_total{platform="openai",result="answered"}"#, 7.0),
        (r#"attempts_total{platform="openai",result="overloaded"}"#, 1.0),
        (r#"attempts_total{platform="openai",result="limited"}"#, 1.0),
        (r#"attempts_total{platform="openai",result="client_fault"}"#, 1.0),
        (r#"failovers_total{platform="openai",reason="overloaded"}"#, 1.0),
        (r#"retries_total{platform="openai",reason="limited"}"#, 1.0),
        (r#"account_conditions_total{kind="overloaded",platform="openai"}"#, 1.0),
        // Both of bob's requests, like those of the usual model, are one conversation.
        (r#"scheduler_sticky_total{result="hit"}"#, 4.0),
        (r#"scheduler_sticky_total{result="unbound"}"#, 1.0),
        (r#"scheduler_choices_total{layer="session",platform="openai"}"#, 4.0),
        (r#"scheduler_choices_total{layer="again",platform="openai"}"#, 1.0),
        (r#"scheduler_choices_total{layer="load",platform="openai"}"#, 5.0),
        ("scheduler_seconds_count", 10.0),
        (r#"waits_total{end="granted",slot="user"}"#, 1.0),
        (r#"wait_seconds_count{slot="user"}"#, 1.0),
        (r#"tokens_total{class="input",platform="openai"}"#, 700.0),
        (r#"tokens_total{class="cache_read",platform="openai"}"#, 140.0),
        (r#"tokens_total{class="output",platform="openai"}"#, 210.0),
        (r#"clients_gone_total{phase="answer"}"#, 1.0),
        ("unpriced_records_total", 1.0),
        ("records_written_total", 8.0),
        ("record_write_errors_total", 0.0),
        ("directory_reloads_total", 1.0),
        ("directory_reload_errors_total", 0.0),
        (r#"request_seconds_count{endpoint="responses"}"#, 9.0),
        (r#"request_seconds_count{endpoint="models"}"#, 1.0),
        // Read and checked, one of them answered here; sent and answered.
        ("auth_seconds_count", 9.0),
        ("routing_seconds_count", 8.0),
        ("upstream_seconds_count", 8.0),
        ("response_seconds_count", 8.0),
        ("requests_in_flight", 0.0),
        ("inflight_body_bytes", 0.0),
        ("writer_queue_records", 0.0),
        (r#"slots_held{slot="user"}"#, 0.0),
        (r#"slots_held{slot="account"}"#, 0.0),
        (&format!("build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0),
    ];
    for (name, value) in exact {
        assert_eq!(gateway.metric(name), value, "{name}\n{text}");
    }
    // Six priced answers of the usual size, two of them at twice the price.
    let usual = 0.0000855;
    close("cost_usd_total{platform=\"openai\"}", 6.0 * usual);
    close("charge_usd_total{platform=\"openai\"}", 8.0 * usual);
    assert_eq!(total("requests_total"), 12.0);
    assert_eq!(total("attempts_total"), 10.0);
    assert_eq!(total("upstream_connections_total"), 10.0);
    assert_eq!(total("failovers_total"), 1.0);
    assert_eq!(total("waits_total"), 1.0);
    assert_eq!(total("first_token_seconds_count"), 7.0);

    // Every family is described, and what is described exists.
    let (exposed, described) = (exposed(&text), described());
    assert_eq!(exposed, described);
    // Labels are few and bounded: none says who asked for what.
    for (name, labels, _) in samples(&text) {
        for (label, value) in labels {
            for private in [
                "alice", "bob", "tg-", "gpt", "nobody", "a1", "a2", "main", "/",
            ] {
                assert!(
                    !value.contains(private),
                    "{name}: {label}={value} holds {private}"
                );
            }
        }
    }
    for forbidden in ["user", "key", "model", "path", "account", "group"] {
        let with = exposed
            .values()
            .any(|(_, labels)| labels.contains(forbidden));
        assert!(!with, "a label {forbidden}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_input_makes_no_labels() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    for number in 0..20 {
        let path = format!("/v1/path-{number}");
        status(&gateway, Request::new("GET", &path)).await;
        status(&gateway, Request::new(&format!("M{number}"), "/v1/models")).await;
        upstream.push(Answer::error(450 + number, "strange"));
        status(&gateway, post(&format!("model-{number}"), false, KEY)).await;
    }
    gateway.wait_metric("requests_in_flight", 0.0).await;
    let text = gateway.get("/metrics").unwrap().1;
    let series: BTreeSet<_> = samples(&text)
        .into_iter()
        .filter(|(name, ..)| name == "requests_total")
        .map(|(_, labels, _)| labels)
        .collect();
    assert!(series.len() <= 8, "{series:#?}");
}
