//! Which account serves: the one a response came from, the one a conversation is bound to, else one
//! of the best tier.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, ClientReply, FakeUpstream, Gate, Request, Usage, openai};

use crate::call::{Call, Protocol};
use crate::harness::{Gateway, KEY, Setup};

const MODEL: &str = "gpt-5-mini";

/// So many accounts of one tier, all at this provider.
fn even(upstream: &FakeUpstream, count: usize) -> Setup {
    let urls = vec![upstream.url(); count];
    Setup::new(&urls).resources(|all| {
        for account in all["accounts"].as_array_mut().unwrap() {
            account["priority"] = json!(1);
        }
    })
}

/// Accounts that serve one request at a time, and no score but of load.
fn single(setup: Setup) -> Setup {
    setup
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["concurrency"] = json!(1);
            }
        })
        .set("SCHEDULING__WEIGHTS__FIRST_TOKEN", 0)
        .set("SCHEDULING__WEIGHTS__ERROR", 0)
}

/// A request with this input, and what else its body and header say.
fn asking(input: &str, more: &[(&str, Value)], headers: &[(&str, &str)]) -> Request {
    let mut body = json!({ "model": MODEL, "input": input });
    for (name, value) in more {
        body[*name] = value.clone();
    }
    let request = Request::post("/v1/responses", body.to_string()).bearer(KEY);
    let add = |request: Request, (name, value): &(&str, &str)| request.header(name, value);
    headers.iter().fold(request, add)
}

/// A request of a conversation; each says something else.
fn of_session(session: &str, input: &str) -> Request {
    asking(input, &[], &[("session_id", session)])
}

async fn send(gateway: &Gateway, request: &Request) -> ClientReply {
    gateway.h1().await.request(request).await.unwrap()
}

/// Sends a request, which must be served; the account that did.
async fn account(gateway: &Gateway, upstream: &FakeUpstream, request: &Request) -> String {
    let reply = send(gateway, request).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    last_asked(upstream)
}

/// The account of the last request at the provider.
fn last_asked(upstream: &FakeUpstream) -> String {
    let last = upstream.requests().pop().expect("a request");
    let credential = last.credential().expect("a credential");
    credential.strip_prefix("sk-").unwrap().to_owned()
}

fn answer(id: &str) -> Answer {
    let body = openai::responses_json(MODEL, id, "Hello", Usage::default());
    Answer::body(200, "application/json", body)
}

/// A request that is under way until the gate is opened, and its account.
async fn hold(
    gateway: &Gateway,
    upstream: &FakeUpstream,
    gate: &Gate,
    request: &Request,
) -> (Call, String) {
    upstream.push(answer("resp_held").after(gate));
    let reached = gate.reached();
    let call = Call::send(gateway, Protocol::H1, request).await;
    gate.wait_reached(reached + 1).await;
    (call, last_asked(upstream))
}

/// An account of [`Setup`] with something else about it.
fn changed(gateway: &Gateway, resources: &Value, name: &str, field: &str, value: Value) {
    let accounts = resources["accounts"].as_array().unwrap();
    let mut account = accounts.iter().find(|a| a["name"] == name).unwrap().clone();
    account[field] = value;
    gateway.apply(&json!({ "accounts": [account] }));
}

fn stickies(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("scheduler_sticky_total{{result=\"{result}\"}}"))
}

/// Makes so many responses, `resp_0` and so on; the account of each.
async fn responses(gateway: &Gateway, upstream: &FakeUpstream, count: usize) -> Vec<String> {
    let mut accounts = Vec::new();
    for made in 0..count {
        let id = format!("resp_{made}");
        // As JSON and as a stream.
        let is_stream = made % 2 == 1;
        upstream.push(match is_stream {
            false => answer(&id),
            true => Answer::sse(openai::responses_stream(
                MODEL,
                &id,
                &["Hello"],
                Usage::default(),
            )),
        });
        let request = asking(&id, &[("stream", json!(is_stream))], &[]);
        accounts.push(account(gateway, upstream, &request).await);
    }
    accounts
}

fn going_on(from: &str, input: &str) -> Request {
    asking(input, &[("previous_response_id", json!(from))], &[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_on_from_a_response_goes_to_its_account() {
    let upstream = FakeUpstream::start().await;
    let mut gateway = even(&upstream, 5).start().await;
    let accounts = responses(&gateway, &upstream, 8).await;
    // A conversation that is bound elsewhere does not change that.
    let bound = account(&gateway, &upstream, &of_session("s", "one")).await;
    let follow = async |gateway: &Gateway, round: &str| {
        for (made, expected) in accounts.iter().enumerate() {
            let request = going_on(&format!("resp_{made}"), &format!("{round} {made}"))
                .header("session_id", "s");
            let served = account(gateway, &upstream, &request).await;
            assert_eq!(&served, expected, "{round}: resp_{made}");
        }
    };
    follow(&gateway, "at once").await;
    assert_eq!(
        account(&gateway, &upstream, &of_session("s", "two")).await,
        bound
    );
    // One that nobody made here goes anywhere.
    account(&gateway, &upstream, &going_on("resp_unknown", "hi")).await;

    // Known after a restart, and after a crash when it was written down.
    gateway.stop();
    gateway.launch();
    upstream.push(answer("resp_late"));
    let late = account(&gateway, &upstream, &asking("late", &[], &[])).await;
    // The first one of this process.
    gateway
        .wait("the binding to be written", || {
            gateway.metric("response_bindings_written_total") >= 1.0
        })
        .await;
    follow(&gateway, "restarted").await;
    gateway.wait_metric("writer_queue_records", 0.0).await;
    gateway.kill();
    gateway.launch();
    follow(&gateway, "crashed").await;
    let served = account(&gateway, &upstream, &going_on("resp_late", "on")).await;
    assert_eq!(served, late);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_on_from_a_response_goes_nowhere_else() {
    let upstream = FakeUpstream::start().await;
    let setup = single(even(&upstream, 3)).set("CONCURRENCY__ACCOUNT_WAIT_MS", 200);
    let resources = setup.resources.clone();
    let gateway = setup.start().await;
    let owner = responses(&gateway, &upstream, 1).await.remove(0);
    let credential = format!("sk-{owner}");
    let request = |input: &str| going_on("resp_0", input);

    // Full: it is waited for, and no other.
    let gate = Gate::new();
    let (held, by) = hold(&gateway, &upstream, &gate, &request("held")).await;
    assert_eq!(by, owner);
    let before = upstream.total();
    let reply = send(&gateway, &request("full")).await;
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert_eq!(
        reply.json()["error"]["message"],
        "Concurrency limit exceeded for account, please retry later"
    );
    gate.open();
    assert_eq!(held.answer().await.0, 200);

    // Failing: the client hears of it. Then limited: so it does.
    upstream.push_for(&credential, Answer::error(500, "server_error"));
    assert_eq!(send(&gateway, &request("fails")).await.status, 502);
    let limited = Answer::error(429, "rate_limit_exceeded").header("retry-after", "60");
    upstream.push_for(&credential, limited);
    assert_eq!(send(&gateway, &request("limited")).await.status, 429);
    assert_eq!(upstream.total(), before + 2);
    let reply = send(&gateway, &request("still limited")).await;
    assert_eq!(reply.status, 429, "{}", reply.text());
    let retry_after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&retry_after), "{retry_after}");

    // Taken out by the operator; then it is there again.
    let resume = || gateway.run(&["accounts", "resume", &owner]);
    gateway.followed(resume).await;
    gateway
        .followed(|| changed(&gateway, &resources, &owner, "enabled", json!(false)))
        .await;
    let reply = send(&gateway, &request("disabled")).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert_eq!(upstream.total(), before + 2);
    gateway
        .followed(|| changed(&gateway, &resources, &owner, "enabled", json!(true)))
        .await;
    assert_eq!(account(&gateway, &upstream, &request("back")).await, owner);
    gateway.wait_records(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_source_of_a_session_sticks() {
    const HEADERS: [&str; 8] = [
        "session_id",
        "session-id",
        "x-session-id",
        "x-session-affinity",
        "conversation_id",
        "conversation-id",
        "thread_id",
        "thread-id",
    ];
    let upstream = FakeUpstream::start().await;
    let gateway = even(&upstream, 7).start().await;
    let mut homes = Vec::new();
    let mut hits = 0.0;
    for header in HEADERS {
        let mut accounts = Vec::new();
        for turn in 0..5 {
            let request = asking(&format!("{header} {turn}"), &[], &[(header, header)]);
            accounts.push(account(&gateway, &upstream, &request).await);
        }
        hits += 4.0;
        accounts.dedup();
        assert_eq!(accounts.len(), 1, "{header}: {accounts:?}");
        homes.append(&mut accounts);
    }
    // The same id is the same conversation, whoever spells it how; so it is in the body.
    for other in HEADERS {
        let request = asking(&format!("as {other}"), &[], &[(other, HEADERS[0])]);
        assert_eq!(
            account(&gateway, &upstream, &request).await,
            homes[0],
            "{other}"
        );
        hits += 1.0;
    }
    let more = [("prompt_cache_key", json!(HEADERS[0]))];
    let request = asking("in the body", &more, &[]);
    assert_eq!(account(&gateway, &upstream, &request).await, homes[0]);
    hits += 1.0;
    for turn in 0..5 {
        let more = [("prompt_cache_key", json!("a key"))];
        let served = account(
            &gateway,
            &upstream,
            &asking(&format!("key {turn}"), &more, &[]),
        )
        .await;
        homes.push(served);
    }
    hits += 4.0;
    let keyed = &homes[HEADERS.len()..];
    assert!(keyed.iter().all(|home| *home == keyed[0]), "{keyed:?}");

    // Nothing at all: what the conversation began with. A header comes before it.
    for opening in ["first", "second"] {
        let mut input = vec![
            json!({ "role": "developer", "content": "Be brief." }),
            json!({ "role": "user", "content": opening }),
        ];
        let mut accounts = Vec::new();
        for turn in 0..5 {
            let more = [("input", json!(input)), ("instructions", json!("Help."))];
            accounts.push(account(&gateway, &upstream, &asking("", &more, &[])).await);
            input.push(json!({ "role": "assistant", "content": format!("answer {turn}") }));
            input.push(json!({ "role": "user", "content": format!("question {turn}") }));
        }
        hits += 4.0;
        accounts.dedup();
        assert_eq!(accounts.len(), 1, "{opening}: {accounts:?}");
        let more = [("input", json!(input)), ("instructions", json!("Help."))];
        let request = asking("", &more, &[("session-id", HEADERS[0])]);
        assert_eq!(account(&gateway, &upstream, &request).await, homes[0]);
        hits += 1.0;
    }
    assert_eq!(stickies(&gateway, "hit"), hits);
    homes.sort();
    homes.dedup();
    assert!(homes.len() > 1, "all at {homes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_account_is_waited_for_briefly() {
    let upstream = FakeUpstream::start().await;
    let gateway = single(even(&upstream, 2))
        // Never reached.
        .set("CONCURRENCY__STICKY_WAIT_MS", 60_000)
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .start()
        .await;
    let gate = Gate::new();
    let (held, home) = hold(&gateway, &upstream, &gate, &of_session("s", "held")).await;
    // The other account is idle, and has no part in this.
    let more = [("stream", json!(true))];
    let request = asking("waiting", &more, &[("session_id", "s")]);
    let mut waiting = Call::send(&gateway, Protocol::H1, &request).await;
    waiting.head().await.unwrap();
    waiting.read_until(":\n\n", 2).await;
    assert_eq!(upstream.total(), 1);
    gate.open();
    assert_eq!(held.answer().await.0, 200);
    let (_, end) = waiting.rest().await;
    end.unwrap();
    assert_eq!(last_asked(&upstream), home);
    assert_eq!(stickies(&gateway, "hit"), 1.0);
    gateway.wait_records(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_goes_elsewhere_does_not_take_its_session_along() {
    let upstream = FakeUpstream::start().await;
    let gateway = single(even(&upstream, 5))
        .set("CONCURRENCY__STICKY_WAIT_MS", 20)
        .start()
        .await;
    let home = account(&gateway, &upstream, &of_session("s", "first")).await;
    // A client has its answer a moment before the slot is free.
    let slots = "slots_held{slot=\"account\"}";
    for round in 0..3 {
        gateway.wait_metric(slots, 0.0).await;
        let gate = Gate::new();
        let request = of_session("s", &format!("held {round}"));
        let (held, by) = hold(&gateway, &upstream, &gate, &request).await;
        assert_eq!(by, home, "round {round}: the session is where it was");
        // The second choice of a session is always the same.
        let mut others = Vec::new();
        for spill in 0..3 {
            let request = of_session("s", &format!("spills {round} {spill}"));
            others.push(account(&gateway, &upstream, &request).await);
            gateway.wait_metric(slots, 1.0).await;
        }
        assert_ne!(others[0], home);
        others.dedup();
        assert_eq!(others.len(), 1, "round {round}: {others:?}");
        gate.open();
        assert_eq!(held.answer().await.0, 200);
    }
    assert_eq!(stickies(&gateway, "spilled"), 9.0);
    assert_eq!(stickies(&gateway, "unbound"), 0.0);
    gateway.wait_records(13).await;
}

/// What happens to the account of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// `apply` with `enabled: false`.
    Disabled,
    /// `apply` with `schedulable: false`.
    Unschedulable,
    /// `apply` that takes it out of the group.
    Moved,
    /// `accounts pause`.
    Paused,
    /// It answers 429 and says for how long.
    Limited,
    /// It answers 401.
    Refused,
    /// It answers 500: soon forgotten.
    Failed,
    /// Its provider closes the connection: as well.
    Closed,
    /// The request is for a model that it does not have.
    OtherModel,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_session_leaves_its_account() {
    use Fate::*;
    for (fate, leaves) in [
        (Disabled, true),
        (Unschedulable, true),
        (Moved, true),
        (Paused, true),
        (Limited, true),
        (Refused, true),
        (Failed, false),
        (Closed, false),
        (OtherModel, false),
    ] {
        let upstream = FakeUpstream::start().await;
        // Strict tiers: without a binding a1 serves, with one whoever it is bound to.
        let mut setup = Setup::with(&[&upstream, &upstream]);
        if fate == OtherModel {
            setup.resources["accounts"][0]["model_mapping"] = json!({ MODEL: MODEL });
        }
        let resources = setup.resources.clone();
        let gateway = setup.start().await;
        let first = account(&gateway, &upstream, &of_session("s", "first")).await;
        assert_eq!(first, "a1", "{fate:?}");
        let apply = |field: &str, value: Value| changed(&gateway, &resources, "a1", field, value);
        let mut request = of_session("s", "second");
        let mut asked = 1;
        match fate {
            Disabled => gateway.followed(|| apply("enabled", json!(false))).await,
            Unschedulable => {
                gateway
                    .followed(|| apply("schedulable", json!(false)))
                    .await
            }
            Moved => gateway.followed(|| apply("groups", json!([]))).await,
            Paused => {
                let pause = || gateway.run(&["accounts", "pause", "a1"]);
                gateway.followed(pause).await;
            }
            OtherModel => {
                request = asking(
                    "second",
                    &[("model", json!("gpt-5"))],
                    &[("session_id", "s")],
                );
            }
            Limited | Refused | Failed | Closed => {
                let failure = match fate {
                    Limited => Answer::error(429, "x").header("retry-after", "600"),
                    Refused => Answer::error(401, "invalid_api_key"),
                    Failed => Answer::error(500, "server_error"),
                    _ => Answer::close(),
                };
                if fate == Closed {
                    // A kept-alive connection may be closed at any time: that one does not count.
                    upstream.push_for("sk-a1", failure.clone());
                    asked += 1;
                }
                upstream.push_for("sk-a1", failure);
                asked += 1;
            }
        }
        let before = upstream.total();
        assert_eq!(
            account(&gateway, &upstream, &request).await,
            "a2",
            "{fate:?}"
        );
        assert_eq!(upstream.total(), before + asked, "{fate:?}");
        // Again as if nothing had happened.
        match fate {
            Disabled | Unschedulable | Moved => {
                gateway.followed(|| gateway.apply(&resources)).await;
            }
            OtherModel => {}
            _ => {
                let resume = || gateway.run(&["accounts", "resume", "a1"]);
                gateway.followed(resume).await;
            }
        }
        let third = account(&gateway, &upstream, &of_session("s", "third")).await;
        assert_eq!(third, if leaves { "a2" } else { "a1" }, "{fate:?}");
        let other = account(&gateway, &upstream, &of_session("other", "fourth")).await;
        assert_eq!(other, "a1", "{fate:?}: it is chosen again");
        gateway.wait_records(4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_fails_on_and_on_loses_its_sessions() {
    let upstream = FakeUpstream::start().await;
    // Pools: a failure leaves nothing at them, so that it is up to the average alone.
    let gateway = even(&upstream, 2)
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["extra"] = json!({ "pool_mode": true });
            }
        })
        .start()
        .await;
    let home = account(&gateway, &upstream, &of_session("s", "first")).await;
    let mut other = String::new();
    // 0.2, 0.36, 0.488, 0.59: above one half with the fourth.
    for failure in 0..4 {
        upstream.push_for(&format!("sk-{home}"), Answer::error(500, "server_error"));
        let before = upstream.total();
        let request = of_session("s", &format!("fails {failure}"));
        other = account(&gateway, &upstream, &request).await;
        assert_ne!(other, home, "failure {failure}");
        assert_eq!(
            upstream.total(),
            before + 2,
            "failure {failure}: it is asked first"
        );
    }
    assert_eq!(stickies(&gateway, "unbound"), 0.0);
    for turn in 0..3 {
        let request = of_session("s", &format!("elsewhere {turn}"));
        assert_eq!(account(&gateway, &upstream, &request).await, other);
    }
    assert_eq!(stickies(&gateway, "unbound"), 1.0);
    gateway.wait_records(8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worse_tier_is_used_when_the_better_ones_are_full() {
    let upstream = FakeUpstream::start().await;
    let gateway = single(even(&upstream, 6))
        .resources(|all| {
            for (index, tier) in [3, 1, 2, 1, 2, 3].into_iter().enumerate() {
                all["accounts"][index]["priority"] = json!(tier);
            }
        })
        .start()
        .await;
    let gate = Gate::new();
    let mut held = Vec::new();
    let mut tiers = Vec::new();
    for turn in 0..6 {
        let request = asking(&format!("turn {turn}"), &[], &[]);
        let (call, by) = hold(&gateway, &upstream, &gate, &request).await;
        held.push(call);
        tiers.push(by);
    }
    for (tier, expected) in tiers
        .chunks_mut(2)
        .zip([["a2", "a4"], ["a3", "a5"], ["a1", "a6"]])
    {
        tier.sort();
        assert_eq!(tier, expected);
    }
    gate.open();
    for call in held {
        assert_eq!(call.answer().await.0, 200);
    }
    // Free again: the best tier it is.
    let served = account(&gateway, &upstream, &asking("after", &[], &[])).await;
    assert!(["a2", "a4"].contains(&served.as_str()), "{served}");
    gateway.wait_records(7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_shares_the_requests() {
    let upstream = FakeUpstream::start().await;
    let gateway = even(&upstream, 6).start().await;
    let mut client = gateway.h1().await;
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for turn in 0..100 {
        let request = asking(&format!("turn {turn}"), &[], &[]);
        assert_eq!(client.request(&request).await.unwrap().status, 200);
        *counts.entry(last_asked(&upstream)).or_default() += 1;
    }
    assert_eq!(counts.len(), 6, "{counts:?}");
    gateway.wait_records(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_account_has_names_of_its_own_for_models() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream, &upstream, &upstream])
        .resources(|all| {
            all["accounts"][0]["model_mapping"] = json!({ "fast": "gpt-5-mini", "gpt-5": "gpt-5" });
            all["accounts"][1]["model_mapping"] =
                json!({ "gpt-*": "gpt-4o", "gpt-5-*": "gpt-5-nano", "gpt-5-pro": "gpt-5-pro" });
        })
        .start()
        .await;
    let rows = [
        // asked for, account, its name there
        ("fast", "a1", "gpt-5-mini"),
        ("gpt-5", "a1", "gpt-5"),
        ("gpt-4.1", "a2", "gpt-4o"),
        ("gpt-5-codex", "a2", "gpt-5-nano"),
        ("gpt-5-pro", "a2", "gpt-5-pro"),
        ("faster", "a3", "faster"),
    ];
    for (count, (model, expected, upstream_model)) in rows.into_iter().enumerate() {
        let request = asking(model, &[("model", json!(model))], &[]);
        let reply = send(&gateway, &request).await;
        assert_eq!(reply.status, 200, "{model}: {}", reply.text());
        assert_eq!(reply.json()["model"], model, "the client's own name");
        assert_eq!(last_asked(&upstream), expected, "{model}");
        assert_eq!(upstream.requests().pop().unwrap().model(), upstream_model);
        let record = gateway.wait_records(count + 1).await.pop().unwrap();
        let chain = match model == upstream_model {
            true => Value::Null,
            false => json!(format!("{model}→{upstream_model}")),
        };
        assert_eq!(
            (
                &record["requested_model"],
                &record["model"],
                &record["upstream_model"],
                &record["model_mapping_chain"],
                &record["account"],
            ),
            (
                &json!(model),
                &json!(model),
                &json!(upstream_model),
                &chain,
                &json!(expected)
            ),
            "{record:#}"
        );
    }
    // After a failover the next account's name counts; those without the model are passed over.
    upstream.push_for("sk-a1", Answer::error(500, "server_error"));
    let request = asking("again", &[("model", json!("fast"))], &[]);
    assert_eq!(account(&gateway, &upstream, &request).await, "a3");
    let seen = upstream.requests();
    let models: Vec<String> = seen[rows.len()..].iter().map(|r| r.model()).collect();
    assert_eq!(models, ["gpt-5-mini", "fast"]);
    let record = gateway.wait_records(rows.len() + 1).await.pop().unwrap();
    assert_eq!(record["upstream_model"], "fast");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_serves_until_it_expires() {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream, &upstream]).resources(|all| {
        all["accounts"][0]["expires_at"] = json!("2199-01-01T00:00:00Z");
    });
    let resources = setup.resources.clone();
    let gateway = setup.start().await;
    assert_eq!(
        account(&gateway, &upstream, &of_session("s", "one")).await,
        "a1"
    );
    let soon = chrono::Utc::now() + chrono::TimeDelta::milliseconds(1_500);
    gateway
        .followed(|| {
            changed(
                &gateway,
                &resources,
                "a1",
                "expires_at",
                json!(soon.to_rfc3339()),
            );
        })
        .await;
    // Nothing tells the server when it is time.
    gateway
        .wait("the account to expire", || {
            let shown = gateway.run_json(&["accounts", "show", "a1", "--json"]);
            shown["status"] == "expired"
        })
        .await;
    assert_eq!(
        account(&gateway, &upstream, &of_session("s", "two")).await,
        "a2"
    );
    assert_eq!(
        account(&gateway, &upstream, &asking("three", &[], &[])).await,
        "a2"
    );
    // Prolonged: it is there for others again, and the session stays where it went.
    gateway.followed(|| gateway.apply(&resources)).await;
    assert_eq!(
        account(&gateway, &upstream, &asking("four", &[], &[])).await,
        "a1"
    );
    assert_eq!(
        account(&gateway, &upstream, &of_session("s", "five")).await,
        "a2"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_not_schedulable_is_passed_over() {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream, &upstream])
        .resources(|all| all["accounts"][0]["schedulable"] = json!(false));
    let resources = setup.resources.clone();
    let gateway = setup.start().await;
    for turn in 0..3 {
        let request = asking(&format!("turn {turn}"), &[], &[]);
        assert_eq!(account(&gateway, &upstream, &request).await, "a2");
    }
    // Not even as the last one.
    upstream.push_for("sk-a2", Answer::error(500, "server_error"));
    assert_eq!(send(&gateway, &asking("fails", &[], &[])).await.status, 502);
    assert!(
        upstream
            .requests()
            .iter()
            .all(|r| r.credential() == Some("sk-a2"))
    );
    gateway
        .followed(|| {
            changed(&gateway, &resources, "a1", "schedulable", json!(true));
        })
        .await;
    assert_eq!(
        account(&gateway, &upstream, &asking("now", &[], &[])).await,
        "a1"
    );
}
