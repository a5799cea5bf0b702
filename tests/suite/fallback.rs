//! A request whose prompt is too long for its group goes on, once, in the group that takes such requests.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, Received, Request};

use crate::call::{Call, PROTOCOLS, Protocol};
use crate::harness::{Gateway, Setup, key_of};
use crate::messages::{MODEL, answer, body, error_of, message, post, send, setup};

const TOO_LONG: &str = "prompt is too long: 208310 tokens > 200000 maximum";
/// What the answer costs at list price, and at the double price of the group that takes long prompts.
const CHARGE: &str = "0.000948";
const DOUBLE: &str = "0.001896";

/// The groups `main` (one account for each of `first`) and `long` (one for each of `long`), where everything costs
/// twice as much; main sends on to long.
fn groups(first: &[&FakeUpstream], long: &[&FakeUpstream]) -> Setup {
    let names: Vec<(String, String)> = long
        .iter()
        .enumerate()
        .map(|(index, upstream)| (format!("long{}", index + 1), upstream.url()))
        .collect();
    let accounts: Vec<(&str, &str)> = names.iter().map(|(n, u)| (&**n, &**u)).collect();
    setup(first).group("long", &accounts).resources(|all| {
        all["groups"][0]["fallback_group_on_invalid_request"] = json!("long");
        all["groups"][1]["platform"] = json!("anthropic");
        all["groups"][1]["rate_multiplier"] = json!("2");
        for account in all["accounts"].as_array_mut().unwrap() {
            account["platform"] = json!("anthropic");
        }
    })
}

fn refused() -> Answer {
    Answer::anthropic_error(400, TOO_LONG)
}

fn sticky(mut body: Value) -> Value {
    let session = "00000000-0000-4000-8000-000000000001";
    let user = format!("user_{}_account__session_{session}", "a".repeat(64));
    body["metadata"] = json!({ "user_id": user });
    body
}

/// Group, group it came from, account, charge.
fn served_by(record: &Value) -> (&str, Option<&str>, &str, &str) {
    let text = |field: &str| record[field].as_str();
    (
        text("group").unwrap(),
        text("fallback_from_group"),
        text("account").unwrap(),
        text("charge").unwrap(),
    )
}

fn shown(gateway: &Gateway, account: &str) -> Value {
    gateway.run_json(&["accounts", "show", account, "--json"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_is_too_long_goes_on_in_the_other_group() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long]).start().await;
    let in_stream =
        |events| Answer::sse(message().failed(events, "invalid_request_error", TOO_LONG));
    let mut rows = Vec::new();
    for stream in [false, true] {
        rows.push((stream, refused()));
        rows.push((stream, Answer::anthropic_error(413, "Prompt is too long")));
    }
    rows.extend((0..=3).map(|events| (true, in_stream(events))));
    let count = rows.len();
    for (row, (stream, refusal)) in rows.into_iter().enumerate() {
        for protocol in PROTOCOLS {
            first.push(refusal.clone());
            long.push(answer(stream));
            let call = Call::send(&gateway, protocol, &post(&body(stream))).await;
            let (status, got) = call.answer().await;
            let expected = match stream {
                true => message().stream().concat(),
                false => message().json().to_vec(),
            };
            assert_eq!((status, got), (200, expected.into()), "{row} {protocol:?}");
            assert_eq!(first.only_request().json(), body(stream));
            assert_eq!(long.only_request().json(), body(stream));
            first.forget();
            long.forget();
        }
    }
    for record in gateway.wait_records(2 * count).await {
        let expected = ("long", Some("main"), "long1", DOUBLE);
        assert_eq!(served_by(&record), expected, "{record:#}");
        assert_eq!(record["outcome"], "ok");
        assert_eq!(record["rate_multiplier"], "2");
        assert_eq!(
            (&record["attempts"], &record["account_switches"]),
            (&json!(2), &json!(1))
        );
        let trail = record["attempt_trail"].as_array().unwrap();
        let results: Vec<&Value> = trail.iter().map(|attempt| &attempt["result"]).collect();
        assert_eq!(results, ["prompt_too_long", "answered"]);
    }
    // It has done its work.
    assert_eq!(shown(&gateway, "a1")["conditions"], json!([]));
    let went = "failovers_total{platform=\"anthropic\",reason=\"prompt_too_long\"}";
    assert_eq!(gateway.metric(went), 2.0 * count as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_done_once_and_the_other_group_has_all_its_accounts() {
    let [first, second, long1, long2] = [
        FakeUpstream::start().await,
        FakeUpstream::start().await,
        FakeUpstream::start().await,
        FakeUpstream::start().await,
    ];
    let failing = || Answer::anthropic_error(500, "no");
    // One change of account in each group: the count begins anew.
    let gateway = groups(&[&first, &second], &[&long1, &long2])
        .set("GATEWAY__MAX_ACCOUNT_SWITCHES", 1)
        .start()
        .await;
    first.push(failing());
    second.push(refused());
    long1.push(failing());
    long2.push(answer(false));
    let reply = send(&gateway, &post(&body(false))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let record = gateway.only_record().await;
    assert_eq!(served_by(&record), ("long", Some("main"), "long2", DOUBLE));
    assert_eq!(
        (&record["attempts"], &record["account_switches"]),
        (&json!(4), &json!(3))
    );

    // Too long there as well: that is the answer, in the provider's words.
    for upstream in [&first, &second, &long1, &long2] {
        upstream.otherwise(Answer::anthropic_error(400, "prompt is too long: still"));
    }
    let reply = send(&gateway, &post(&body(false))).await;
    let json = reply.json();
    assert_eq!(reply.status, 400);
    assert_eq!(
        error_of(&json),
        ("invalid_request_error", "prompt is too long: still")
    );
    let records = gateway.wait_records(2).await;
    let failed = records
        .iter()
        .find(|record| record["outcome"] != "ok")
        .unwrap();
    let (group, from, _, charge) = served_by(failed);
    assert_eq!((group, from, charge), ("long", Some("main"), "0"));
    assert_eq!(failed["attempts"], 2, "{failed:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_group_for_it_the_providers_words_are_the_answer() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    type Change = fn(&mut Value);
    // Groups that cannot take such requests are refused when they are applied.
    let rows: [(&str, Change); 5] = [
        ("none", |all| {
            all["groups"][0]["fallback_group_on_invalid_request"] = json!(null);
        }),
        ("disabled", |all| all["groups"][1]["enabled"] = json!(false)),
        ("for Claude Code", |all| {
            all["groups"][1]["claude_code_only"] = json!(true);
        }),
        ("restricted", |all| {
            all["channels"] = json!([{
                "name": "few", "groups": ["long"], "restrict_models": true,
                "prices": [{ "platform": "anthropic", "models": ["claude-opus*"], "billing_mode": "token",
                             "input_per_million": "1", "output_per_million": "1" }],
            }]);
        }),
        ("without accounts", |all| {
            all["accounts"][1]["schedulable"] = json!(false);
        }),
    ];
    for (what, change) in rows {
        let gateway = groups(&[&first], &[&long]).resources(change).start().await;
        for stream in [false, true] {
            first.push(refused());
            let reply = send(&gateway, &post(&body(stream))).await;
            let json = reply.json();
            assert_eq!(reply.status, 400, "{what}: {json}");
            assert_eq!(
                error_of(&json),
                ("invalid_request_error", TOO_LONG),
                "{what}"
            );
        }
        for record in gateway.wait_records(2).await {
            assert_eq!(served_by(&record), ("main", None, "a1", "0"), "{what}");
            assert_eq!(record["attempts"], 1, "{what}");
        }
    }
    assert!(long.requests().is_empty());
    // Counting tokens has no such thing.
    let gateway = groups(&[&first], &[&long]).start().await;
    first.push(refused());
    let reply = send(
        &gateway,
        &crate::messages::count(crate::harness::KEY, MODEL),
    )
    .await;
    assert_eq!(reply.status, 400);
    assert!(long.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_groups_channel_names_and_prices_it() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long])
        .resources(|all| {
            let price = |input: &str| json!([{
                "platform": "anthropic", "models": ["claude*"], "billing_mode": "token",
                "input_per_million": input, "output_per_million": "0", "cache_write_per_million": "0",
                "cache_read_per_million": "0",
            }]);
            all["channels"] = json!([
                { "name": "here", "groups": ["main"], "prices": price("1"),
                  "model_mapping": { "anthropic": { "best": "claude-sonnet-4-5" } } },
                { "name": "there", "groups": ["long"], "prices": price("10"),
                  "model_mapping": { "anthropic": { "best": "claude-opus-4-1" } } },
            ]);
        })
        .start()
        .await;
    first.push(refused());
    long.push(answer(true));
    let mut asked = sticky(body(true));
    asked["model"] = json!("best");
    let reply = send(&gateway, &post(&asked)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.events()[0].json()["message"]["model"], "best");
    assert_eq!(first.only_request().model(), "claude-sonnet-4-5");
    assert_eq!(long.only_request().model(), "claude-opus-4-1");
    let record = gateway.only_record().await;
    // 100 input tokens at 10 USD a million, twice.
    assert_eq!(served_by(&record), ("long", Some("main"), "long1", "0.002"));
    assert_eq!(record["channel"], "there");
    assert_eq!(record["model"], "claude-opus-4-1");
    assert_eq!(record["requested_model"], "best");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conversation_is_bound_in_each_group() {
    let [first, long1, long2] = [
        FakeUpstream::start().await,
        FakeUpstream::start().await,
        FakeUpstream::start().await,
    ];
    let gateway = groups(&[&first], &[&long1, &long2])
        .resources(|all| {
            // Of equals the least loaded: where it went once it need not go again, but for the binding.
            for account in all["accounts"].as_array_mut().unwrap() {
                account["priority"] = json!(1);
            }
        })
        .start()
        .await;
    first.otherwise(refused());
    for _ in 0..6 {
        let reply = send(&gateway, &post(&sticky(body(false)))).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let counts = (long1.requests().len(), long2.requests().len());
    assert!(matches!(counts, (6, 0) | (0, 6)), "{counts:?}");
    assert_eq!(first.requests().len(), 6);
    gateway.wait_records(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_from_a_subscription_pays_from_the_balance_there() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    for (balance, paid) in [("1", true), ("0", false)] {
        let gateway = groups(&[&first], &[&long])
            .resources(|all| {
                all["groups"][0]["subscription_type"] = json!("subscription");
                all["groups"][0]["daily_limit_usd"] = json!("1");
                all["subscriptions"] = json!([{ "user": "alice", "group": "main", "status": "active",
                    "starts_at": "2020-01-01T00:00:00Z", "expires_at": "2100-01-01T00:00:00Z" }]);
                all["users"][0]["balance"] = json!(balance);
            })
            .start()
            .await;
        first.push(refused());
        first.forget();
        long.forget();
        if paid {
            long.push(answer(false));
        }
        let reply = send(&gateway, &post(&body(false))).await;
        let record = gateway.only_record().await;
        if paid {
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(served_by(&record), ("long", Some("main"), "long1", DOUBLE));
            assert_eq!(record["billing_type"], "balance");
            assert_eq!(gateway.balance("alice"), "0.998104");
        } else {
            // What money refuses is the answer.
            let json = reply.json();
            assert_eq!(
                (reply.status, error_of(&json).0),
                (403, "billing_error"),
                "{json}"
            );
            assert_eq!(served_by(&record), ("main", None, "a1", "0"), "{record:#}");
            assert_eq!(record["billing_type"], "subscription");
            assert!(long.requests().is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_for_the_other_price_is_waited_for() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    for patience in [30_000, 300] {
        let gateway = groups(&[&first], &[&long])
            .set("BILLING__RESERVATION", "strict")
            .set("BILLING__STRICT_OUTPUT", "refuse")
            .set("BILLING__WAIT_MS", patience)
            .set("CONCURRENCY__PING_INTERVAL_MS", 100)
            // 1,024 tokens cost 0.01536 here and 0.03072 there, and a little for the prompt.
            .resources(|all| all["users"][0]["balance"] = json!("0.04"))
            .start()
            .await;
        let gate = Gate::new();
        first.push(answer(false).after(&gate));
        let running = Call::send(&gateway, Protocol::H1, &post(&body(false))).await;
        gate.wait_reached(1).await;
        first.push(refused());
        let mut call = Call::send(&gateway, Protocol::H1, &post(&body(true))).await;
        assert_eq!(call.head().await.unwrap().status, 200);
        call.read_until(ping, 1).await;
        if patience == 300 {
            let (rest, end) = call.rest().await;
            end.unwrap();
            let rest = String::from_utf8(rest.to_vec()).unwrap().replace(ping, "");
            assert!(rest.starts_with("event: error\n"), "{rest}");
            assert!(rest.contains("rate_limit_error"), "{rest}");
            gate.open();
        } else {
            // What it held itself goes back while it waits: only the other's is held.
            let open = || gateway.metric("reservations_open") == 1.0;
            gateway.wait("one reservation", open).await;
            long.push(answer(true));
            gate.open();
            let (rest, end) = call.rest().await;
            end.unwrap();
            let rest = String::from_utf8(rest.to_vec()).unwrap().replace(ping, "");
            assert_eq!(rest.as_bytes(), message().stream().concat());
        }
        assert_eq!(running.answer().await.0, 200);
        let records = gateway.wait_records(2).await;
        let other = records
            .iter()
            .find(|record| record["attempts"] != 1 || record["charge"] == "0");
        let expected = match patience {
            300 => ("main", None, "a1", "0"),
            _ => ("long", Some("main"), "long1", DOUBLE),
        };
        assert_eq!(served_by(other.unwrap()), expected, "{records:#?}");
        assert!(records.iter().any(|record| record["charge"] == CHARGE));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_money_is_waited_for_is_missed() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long])
        .set("BILLING__RESERVATION", "strict")
        .set("BILLING__STRICT_OUTPUT", "refuse")
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .resources(|all| all["users"][0]["balance"] = json!("0.04"))
        .start()
        .await;
    let gate = Gate::new();
    first.push(answer(false).after(&gate));
    let running = Call::send(&gateway, Protocol::H1, &post(&body(false))).await;
    gate.wait_reached(1).await;
    first.push(refused());
    let mut call = Call::send(&gateway, Protocol::H1, &post(&body(true))).await;
    call.head().await.unwrap();
    call.read_until("event: ping", 1).await;
    drop(call);
    gateway.wait_metric("requests_in_flight", 1.0).await;
    let record = gateway.only_record().await;
    assert_eq!(served_by(&record), ("main", None, "a1", "0"), "{record:#}");
    assert_eq!(record["outcome"], "client_gone");
    gate.open();
    assert_eq!(running.answer().await.0, 200);
    gateway.wait_records(2).await;
    assert!(long.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_counts_once_for_the_minute_and_keeps_its_users_slot() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long])
        .resources(|all| {
            all["users"][0]["concurrency"] = json!(1);
            all["users"][0]["rpm_limit"] = json!(3);
            all["groups"][0]["rpm_limit"] = json!(3);
            all["groups"][1]["rpm_limit"] = json!(3);
        })
        .start()
        .await;
    let gate = Gate::new();
    first.otherwise(refused());
    long.push(answer(false).after(&gate));
    let running = Call::send(&gateway, Protocol::H1, &post(&body(false))).await;
    gate.wait_reached(1).await;
    assert_eq!(gateway.metric("slots_held{slot=\"user\"}"), 1.0);
    assert_eq!(gateway.metric("slots_held{slot=\"account\"}"), 1.0);
    gate.open();
    assert_eq!(running.answer().await.0, 200);
    // The fallback is no request of its own, of the user's or in either group.
    for _ in 0..2 {
        let reply = send(&gateway, &post(&body(false))).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    gateway.wait_records(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_in_between_charges_right() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    let setup = |reservation: &str| {
        groups(&[&first], &[&long])
            .set("BILLING__RESERVATION", reservation)
            .set("BILLING__STRICT_OUTPUT", "refuse")
            .set("CONCURRENCY__PING_INTERVAL_MS", 100)
            .resources(|all| all["users"][0]["balance"] = json!("0.04"))
    };
    // While it waits for money: nothing of it is owed.
    let mut gateway = setup("strict").start().await;
    let gate = Gate::new();
    first.push(answer(false).after(&gate));
    let _running = Call::send(&gateway, Protocol::H1, &post(&body(false))).await;
    gate.wait_reached(1).await;
    first.push(refused());
    let mut call = Call::send(&gateway, Protocol::H1, &post(&body(true))).await;
    call.head().await.unwrap();
    // Twice as long as it takes to be on the disk.
    call.read_until(ping, 2).await;
    gateway.kill();
    gateway.launch();
    let records = gateway.wait_records(2).await;
    let waited = records
        .iter()
        .find(|record| record["stream"] == true)
        .unwrap();
    assert_eq!(served_by(waited), ("main", None, "a1", "0"), "{waited:#}");
    assert_eq!(waited["usage_source"], "none");
    let running = records
        .iter()
        .find(|record| record["stream"] == false)
        .unwrap();
    assert_ne!(running["charge"], "0", "{running:#}");
    gate.open();
    drop(gateway);

    // While the other group serves it: charged as one of that group.
    let mut gateway = setup("available").start().await;
    first.push(refused());
    long.push(Answer::sse(message().cut(5)).then_stall());
    let mut call = Call::send(&gateway, Protocol::H1, &post(&body(true))).await;
    call.head().await.unwrap();
    call.read_until("text_delta", 2).await;
    gateway.kill();
    gateway.launch();
    let record = gateway.only_record().await;
    let (group, from, account, charge) = served_by(&record);
    assert_eq!(
        (group, from, account),
        ("long", Some("main"), "long1"),
        "{record:#}"
    );
    assert_eq!(
        (&record["rate_multiplier"], &record["attempts"]),
        (&json!("2"), &json!(2))
    );
    let list = record["cost"].as_str().unwrap();
    assert_ne!(charge, "0");
    let (charge, list): (f64, f64) = (charge.parse().unwrap(), list.parse().unwrap());
    assert!((charge - 2.0 * list).abs() < 1e-12, "{record:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_code_goes_on_in_a_group_of_its_own() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long])
        .resources(|all| {
            all["groups"][1]["claude_code_only"] = json!(true);
            all["groups"][1]["min_client_version"] = json!("2.0.0");
        })
        .start()
        .await;
    first.otherwise(refused());
    long.otherwise(answer(false));
    for (version, status) in [("2.0.0", 200), ("1.9.9", 400)] {
        let asked = sticky(body(false)).to_string();
        let request = Request::post("/v1/messages", asked)
            .header("x-api-key", crate::harness::KEY)
            .header(
                "user-agent",
                &format!("claude-cli/{version} (external, cli)"),
            )
            .header("x-app", "cli")
            .header("anthropic-beta", "claude-code-20250219")
            .header("anthropic-version", "2023-06-01");
        let reply = send(&gateway, &request).await;
        assert_eq!(reply.status, status, "{version}: {}", reply.text());
    }
    assert_eq!(long.requests().len(), 1);
    gateway.wait_records(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mended_request_may_go_on_and_a_key_of_the_other_group_stays() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long]).start().await;
    let mut asked = body(false);
    asked["thinking"] = json!({ "type": "enabled", "budget_tokens": 2048 });
    let budget = "`max_tokens` must be greater than `thinking.budget_tokens`";
    first.push(Answer::anthropic_error(400, budget));
    first.push(refused());
    long.push(answer(false));
    let reply = send(&gateway, &post(&asked)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let sent = long.only_request().json();
    assert_eq!(sent["max_tokens"], 64_000);
    let bodies: Vec<Value> = first.requests().iter().map(Received::json).collect();
    assert_eq!(bodies, [asked, sent]);
    let record = gateway.only_record().await;
    assert_eq!(served_by(&record), ("long", Some("main"), "long1", DOUBLE));
    assert_eq!(record["attempts"], 3);

    long.forget();
    long.push(refused());
    let request = Request::post("/v1/messages", body(false).to_string()).bearer(&key_of("long"));
    let reply = send(&gateway, &request).await;
    assert_eq!(reply.status, 400);
    long.only_request();
    gateway.wait_records(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_group_that_charges_says_whether_a_lost_cache_is_paid_for() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let other = FakeUpstream::start().await;
    for (of_main, of_long) in [(false, true), (true, false)] {
        let gateway = groups(&[&first], &[&long, &other])
            .resources(|all| {
                all["groups"][0]["forced_cache_billing"] = json!(of_main);
                all["groups"][1]["forced_cache_billing"] = json!(of_long);
            })
            .start()
            .await;
        let asked = sticky(body(false));
        // Bound in both groups; then at home in the second; then away from home there.
        first.push_all([answer(false), refused(), refused(), refused()]);
        let failed = Answer::anthropic_error(500, "no");
        long.push_all([answer(false), answer(false), failed]);
        other.push(answer(false));
        for turn in 1..=4 {
            let reply = send(&gateway, &post(&asked)).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            gateway.wait_records(turn).await;
        }
        let records = gateway.wait_records(4).await;
        let away = |record: &&Value| record["account"] == "long2";
        for record in &records {
            let of = |field: &str| record[field].as_u64().unwrap();
            let as_cached = of("input_tokens") == 0;
            assert_eq!(as_cached, of_long && away(&record), "{record:#}");
        }
        assert_eq!(records.iter().filter(away).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_groups_requests_a_minute_count_those_that_come_to_it() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long])
        .resources(|all| {
            all["groups"][1]["rpm_limit"] = json!(1);
            all["users"][0]["rpm_limit"] = json!(100);
        })
        .start()
        .await;
    first.otherwise(refused());
    long.otherwise(answer(false));
    // Two in one minute, whenever the clock's minute ends.
    let mut statuses = Vec::new();
    while !statuses.contains(&429) {
        assert!(statuses.len() < 4, "{statuses:?}");
        let reply = send(&gateway, &post(&body(false))).await;
        statuses.push(reply.status);
        if reply.status == 429 {
            assert!(reply.header("retry-after").is_some());
            assert_eq!(error_of(&reply.json()).0, "rate_limit_error");
        }
    }
    assert_eq!(long.requests().len(), statuses.len() - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_of_both_groups_is_not_asked_the_same_again() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long])
        .resources(|all| {
            all["accounts"][0]["groups"] = json!(["main", "long"]);
            all["accounts"][0]["priority"] = json!(0);
        })
        .start()
        .await;
    first.push(refused());
    long.push(answer(false));
    let reply = send(&gateway, &post(&body(false))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!((first.requests().len(), long.requests().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_there_bounds_a_request_that_was_mended_before() {
    let (first, long) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = groups(&[&first], &[&long])
        .set("BILLING__RESERVATION", "strict")
        .resources(|all| all["users"][0]["balance"] = json!("1.2"))
        .start()
        .await;
    let mut asked = body(false);
    asked["max_tokens"] = json!(60_000);
    asked["thinking"] = json!({ "type": "enabled", "budget_tokens": 2048 });
    asked["messages"] = json!([
        { "role": "user", "content": "hi" },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": "Hm.", "signature": "c2ln" },
            { "type": "text", "text": "Hello" },
        ]},
        { "role": "user", "content": "go on" },
    ]);
    let no = |words: &str| Answer::anthropic_error(400, words);
    first.push_all([
        no("`max_tokens` must be greater than `thinking.budget_tokens`"),
        refused(),
    ]);
    long.push_all([
        no("messages.1.content.0: Invalid `signature` in `thinking` block"),
        answer(false),
    ]);
    let reply = send(&gateway, &post(&asked)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let limits: Vec<u64> = long
        .requests()
        .iter()
        .map(|request: &Received| request.json()["max_tokens"].as_u64().unwrap())
        .collect();
    // Twice the price: 1.2 USD pay for 40,000 less the input.
    assert_eq!(limits.len(), 2);
    for limit in limits {
        assert!((32_001..40_000).contains(&limit), "{limit}");
    }
}
