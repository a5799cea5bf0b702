//! Who is next in line, what ends a wait early, and what it may cost.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, Request};

use crate::call::{Call, Protocol};
use crate::dialect::{Dialect, in_each_dialect};
use crate::harness::{Gateway, KEY, Setup};

const BOB: &str = "tg-bob-0123456789abcdef";

/// One account that serves one request at a time, and a second user; clients that wait for a stream
/// see that they do.
fn one_slot(dialect: Dialect, upstreams: &[&FakeUpstream]) -> Setup {
    Setup::with(upstreams)
        .speaking(dialect)
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["concurrency"] = json!(1);
            }
            let users = all["users"].as_array_mut().unwrap();
            users.push(json!({ "name": "bob", "balance": "10", "concurrency": 50 }));
            let keys = all["api_keys"].as_array_mut().unwrap();
            keys.push(json!({ "name": "bob-key", "key": BOB, "user": "bob", "group": "main" }));
        })
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
}

/// A request for a stream with this input.
fn asking(dialect: Dialect, key: &str, input: &str) -> Request {
    let body = dialect.saying(input, dialect.model(), true);
    dialect.post(body.to_string(), key)
}

fn answer(dialect: Dialect) -> Answer {
    dialect.sse("resp_x", &["Hello"])
}

/// A request at the provider, which answers when the gate is opened.
async fn hold(
    dialect: Dialect,
    gateway: &Gateway,
    upstream: &FakeUpstream,
    gate: &Gate,
    input: &str,
) -> Call {
    upstream.push(answer(dialect).after(gate));
    let reached = gate.reached();
    let call = Call::send(gateway, Protocol::H1, &asking(dialect, KEY, input)).await;
    gate.wait_reached(reached + 1).await;
    call
}

/// A request in line: it has had a ping.
async fn in_line(dialect: Dialect, gateway: &Gateway, key: &str, input: &str) -> Call {
    let mut call = Call::send(gateway, Protocol::H1, &asking(dialect, key, input)).await;
    assert_eq!(call.head().await.unwrap().status, 200);
    call.read_until(dialect.ping(), 1).await;
    call
}

/// The rest of an answer that must be a good one.
async fn served(dialect: Dialect, call: &mut Call) {
    let (body, end) = call.rest().await;
    end.unwrap();
    let body = String::from_utf8_lossy(&body).into_owned();
    assert!(body.contains(dialect.ends()), "{body}");
}

/// The whole of an answer that must be a good one.
async fn whole(dialect: Dialect, mut call: Call) {
    assert_eq!(call.head().await.unwrap().status, 200);
    served(dialect, &mut call).await;
}

/// The first account is the better one.
fn rank(resources: &mut Value) {
    resources["accounts"][0]["priority"] = json!(1);
    resources["accounts"][1]["priority"] = json!(2);
}

/// What was asked of the provider, in order.
fn inputs(dialect: Dialect, upstream: &FakeUpstream) -> Vec<String> {
    let input = |body: Value| dialect.said(&body).to_owned();
    upstream
        .requests()
        .iter()
        .map(|r| input(r.json()))
        .collect()
}

in_each_dialect!(users_take_turns);
async fn users_take_turns(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = one_slot(dialect, &[&upstream]).start().await;
    let gate = Gate::new();
    let held = hold(dialect, &gateway, &upstream, &gate, "held").await;
    // Alice has the slot and twenty in line, in a known order, before Bob comes with two.
    upstream.otherwise(answer(dialect).after(&gate));
    let mut waiting = Vec::new();
    for turn in 0..20 {
        waiting.push(in_line(dialect, &gateway, KEY, &format!("alice {turn}")).await);
    }
    for turn in 0..2 {
        waiting.push(in_line(dialect, &gateway, BOB, &format!("bob {turn}")).await);
    }
    // One answer at a time, each of which lets in one more.
    for answered in 1..=waiting.len() {
        gate.release(1);
        gate.wait_reached(answered + 1).await;
    }
    gate.release(1);
    assert_eq!(held.answer().await.0, 200);
    for call in &mut waiting {
        served(dialect, call).await;
    }
    let order = inputs(dialect, &upstream);
    let place = |input: &str| order.iter().position(|seen| seen == input).unwrap();
    // Within one turn of the other, each time.
    assert!(place("bob 0") <= 2, "{order:?}");
    assert!(place("bob 1") <= place("bob 0") + 2, "{order:?}");
    // Who came first of one user is served first.
    for turn in 1..20 {
        let (one, next) = (format!("alice {}", turn - 1), format!("alice {turn}"));
        assert!(place(&one) < place(&next), "{order:?}");
    }
    gateway.wait_records(23).await;
}

/// What makes room while a request waits.
#[derive(Clone, Copy, Debug)]
enum Room {
    /// `apply` with another account.
    Added,
    /// `apply` with a higher limit.
    Raised,
    /// `apply` with a limit of none.
    Unlimited,
    /// `apply` that enables an account.
    Enabled,
    /// `accounts resume` of one that was paused.
    Unpaused,
    /// `accounts resume` of one that cools down.
    Resumed,
    /// The end of a cool-down.
    Recovered,
    /// The client before it in line leaves, then the slot comes free.
    Left,
}

in_each_dialect!(a_wait_ends_as_soon_as_there_is_room);
async fn a_wait_ends_as_soon_as_there_is_room(dialect: Dialect) {
    use Room::*;
    for room in [
        Added, Raised, Unlimited, Enabled, Unpaused, Resumed, Recovered, Left,
    ] {
        let upstream = FakeUpstream::start().await;
        // The first account is full, the second out.
        let setup = one_slot(dialect, &[&upstream, &upstream]);
        let all = setup.resources.clone();
        let account = |index: usize, field: &str, value: Value| {
            let mut account = all["accounts"][index].clone();
            account[field] = value;
            json!({ "accounts": [account] })
        };
        let setup = setup.resources(|all| match room {
            Unpaused | Resumed | Recovered => {}
            Enabled => all["accounts"][1]["enabled"] = json!(false),
            _ => drop(all["accounts"].as_array_mut().unwrap().pop()),
        });
        let gateway = setup.start().await;
        if let Resumed | Recovered = room {
            let gate = Gate::new();
            let held = hold(dialect, &gateway, &upstream, &gate, "holds a1").await;
            // On a busy machine the cool-down may end before anybody waits: no harm.
            let seconds = if let Resumed = room { "600" } else { "3" };
            let limited = dialect.error(429, "x").header("retry-after", seconds);
            upstream.push_for("sk-a2", limited);
            let mut call =
                Call::send(&gateway, Protocol::H1, &asking(dialect, KEY, "limits a2")).await;
            gateway
                .wait("the cool-down", || {
                    let kind = "kind=\"rate_limited\"";
                    gateway.metric(&format!(
                        "account_conditions_total{{{kind},platform=\"{}\"}}",
                        dialect.platform()
                    )) == 1.0
                })
                .await;
            gate.open();
            assert_eq!(held.answer().await.0, 200);
            assert_eq!(call.head().await.unwrap().status, 200);
            served(dialect, &mut call).await;
        }
        if let Unpaused = room {
            let pause = || gateway.run(&["accounts", "pause", "a2"]);
            gateway.followed(pause).await;
        }
        let gate = Gate::new();
        let held = hold(dialect, &gateway, &upstream, &gate, "held").await;
        let asked = upstream.total();
        let before = in_line(dialect, &gateway, KEY, "before").await;
        let mut waiting = match room {
            Left => Some(in_line(dialect, &gateway, KEY, "waiting").await),
            _ => None,
        };
        if !matches!(room, Recovered) {
            assert_eq!(upstream.total(), asked, "{room:?}");
        }
        let mut first = Some(before);
        match room {
            Added => drop(gateway.apply(&account(1, "priority", json!(9)))),
            Raised => drop(gateway.apply(&account(0, "concurrency", json!(2)))),
            Unlimited => drop(gateway.apply(&account(0, "concurrency", json!(0)))),
            Enabled => drop(gateway.apply(&account(1, "enabled", json!(true)))),
            Unpaused | Resumed => drop(gateway.run(&["accounts", "resume", "a2"])),
            Recovered => {}
            Left => {
                drop(first.take());
                gateway.wait_metric("requests_in_flight", 2.0).await;
                gate.open();
            }
        }
        // The slot that is held stays so meanwhile.
        for call in first.iter_mut().chain(&mut waiting) {
            served(dialect, call).await;
        }
        assert_eq!(upstream.total(), asked + 1, "{room:?}");
        gate.open();
        assert_eq!(held.answer().await.0, 200, "{room:?}");
    }
}

/// Pings in what was read.
fn pings(dialect: Dialect, text: &[u8]) -> usize {
    String::from_utf8_lossy(text)
        .matches(dialect.ping())
        .count()
}

in_each_dialect!(one_budget_is_for_all_waits_of_a_request);
async fn one_budget_is_for_all_waits_of_a_request(dialect: Dialect) {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = one_slot(dialect, &[&first, &second])
        .set("CONCURRENCY__ACCOUNT_WAIT_MS", 2_000)
        .start()
        .await;
    let gates = [Gate::new(), Gate::new()];
    let held = [
        hold(dialect, &gateway, &first, &gates[0], "holds a1").await,
        hold(dialect, &gateway, &second, &gates[1], "holds a2").await,
    ];
    // Half of it goes into the first wait: pings come no faster than every 100 ms.
    let mut call = in_line(dialect, &gateway, KEY, "waits").await;
    let mut waited = 1;
    while waited < 10 {
        match call.chunk().await.unwrap() {
            Some(piece) => waited += pings(dialect, &piece),
            None => break,
        }
    }
    let failing = Gate::new();
    first.push(dialect.error(500, "server_error").after(&failing));
    gates[0].open();
    // Where the machine was so slow that the budget is gone there is nothing to see.
    let limit = std::time::Duration::from_secs(5);
    let attempted = tokio::time::timeout(limit, failing.wait_reached(1)).await;
    if attempted.is_ok() {
        failing.open();
        // The other account is full. What is left of the budget is at most a second.
        let (rest, end) = call.rest().await;
        end.unwrap();
        assert!(
            pings(dialect, &rest) <= 11,
            "{}",
            String::from_utf8_lossy(&rest)
        );
        let rest = dialect.without_pings(&rest);
        let events = tollgate_test_support::sse::events(rest.as_bytes());
        assert_eq!(events.len(), 1, "{rest}");
        assert_eq!(events[0].name, "error");
        let error = events[0].json()["error"].clone();
        assert_eq!(error["type"], "rate_limit_error");
        assert_eq!(
            error["message"],
            "Concurrency limit exceeded for account, please retry later"
        );
        let record = gateway.wait_records(2).await.pop().unwrap();
        assert_eq!(record["outcome"], "upstream_error", "{record:#}");
        assert_eq!(record["attempts"], 1, "{record:#}");
    }
    gates[1].open();
    for call in held {
        assert_eq!(call.answer().await.0, 200);
    }
}

in_each_dialect!(the_time_of_an_attempt_is_no_wait);
async fn the_time_of_an_attempt_is_no_wait(dialect: Dialect) {
    const BUDGET: std::time::Duration = std::time::Duration::from_secs(3);
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = one_slot(dialect, &[&first, &second])
        .set("CONCURRENCY__ACCOUNT_WAIT_MS", BUDGET.as_millis())
        .start()
        .await;
    // The first attempt takes longer than the budget, and then the other account is full.
    let failing = Gate::new();
    let mut call = {
        first.push(dialect.error(500, "server_error").after(&failing));
        let call = Call::send(&gateway, Protocol::H1, &asking(dialect, KEY, "fails")).await;
        failing.wait_reached(1).await;
        call
    };
    let gate = Gate::new();
    let held = hold(dialect, &gateway, &second, &gate, "holds a2").await;
    tokio::time::sleep(BUDGET).await;
    failing.open();
    assert_eq!(call.head().await.unwrap().status, 200);
    call.read_until(dialect.ping(), 1).await;
    gate.open();
    served(dialect, &mut call).await;
    assert_eq!(inputs(dialect, &second), ["holds a2", "fails"]);
    assert_eq!(held.answer().await.0, 200);
    let records = gateway.wait_records(2).await;
    let record = records.iter().find(|r| r["account_switches"] == 1).unwrap();
    assert_eq!(record["outcome"], "ok", "{record:#}");
}

in_each_dialect!(a_users_line_is_as_long_as_its_limit_and_twenty);
async fn a_users_line_is_as_long_as_its_limit_and_twenty(dialect: Dialect) {
    for concurrency in [1, 3] {
        let upstream = FakeUpstream::start().await;
        let gateway = Setup::with(&[&upstream])
            .speaking(dialect)
            .resources(|all| all["users"][0]["concurrency"] = json!(concurrency))
            .set("CONCURRENCY__PING_INTERVAL_MS", 100)
            .start()
            .await;
        let gate = Gate::new();
        let mut held = Vec::new();
        for turn in 0..concurrency {
            held.push(hold(dialect, &gateway, &upstream, &gate, &format!("held {turn}")).await);
        }
        let mut waiting = Vec::new();
        for turn in 0..concurrency + 20 {
            waiting.push(in_line(dialect, &gateway, KEY, &format!("waits {turn}")).await);
        }
        // The next one is refused at once, with a status: nothing has been written yet.
        let request = asking(dialect, KEY, "one too many");
        let reply = gateway.h1().await.request(&request).await.unwrap();
        assert_eq!(reply.status, 429);
        assert_eq!(reply.header("retry-after"), Some("5"));
        let error = &reply.json()["error"];
        assert_eq!(error["type"], "rate_limit_error");
        assert_eq!(
            error["message"],
            "Too many pending requests, please retry later"
        );
        // A place that was left can be taken.
        drop(waiting.pop());
        let all = 2 * concurrency + 19;
        gateway
            .wait_metric("requests_in_flight", f64::from(all))
            .await;
        waiting.push(in_line(dialect, &gateway, KEY, "in its place").await);
        gate.open();
        for call in held {
            assert_eq!(call.answer().await.0, 200);
        }
        for call in &mut waiting {
            served(dialect, call).await;
        }
        gateway.wait_records(2 * concurrency as usize + 20).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_waited_for_its_account_does_not_get_it_when_it_has_failed() {
    let dialect = Dialect::Responses;
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = one_slot(dialect, &[&first, &second])
        .resources(rank)
        .set("CONCURRENCY__STICKY_WAIT_MS", 20_000)
        .start()
        .await;
    let session = |input: &str| asking(dialect, KEY, input).header("session_id", "s");
    first.push(answer(dialect));
    whole(
        dialect,
        Call::send(&gateway, Protocol::H1, &session("binds")).await,
    )
    .await;
    // Its slot goes back a moment after its answer has been read.
    gateway
        .wait_metric(r#"slots_held{slot="account"}"#, 0.0)
        .await;
    // The account is refused while the session's next request waits for it.
    let gate = Gate::new();
    first.push(dialect.error(401, "invalid_api_key").after(&gate));
    second.push(answer(dialect));
    let refused = Call::send(&gateway, Protocol::H1, &asking(dialect, KEY, "refused")).await;
    gate.wait_reached(1).await;
    let mut waiting = Call::send(&gateway, Protocol::H1, &session("waits")).await;
    assert_eq!(waiting.head().await.unwrap().status, 200);
    waiting.read_until(dialect.ping(), 1).await;
    second.push(answer(dialect));
    gate.open();
    whole(dialect, refused).await;
    served(dialect, &mut waiting).await;
    assert_eq!(
        first.requests().len(),
        2,
        "nothing goes to it after its 401"
    );
}

in_each_dialect!(an_account_that_failed_lately_is_waited_for_too);
async fn an_account_that_failed_lately_is_waited_for_too(dialect: Dialect) {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = one_slot(dialect, &[&first, &second])
        .resources(rank)
        .start()
        .await;
    let gate = Gate::new();
    // The first account is full for long; the second fails once and rests behind it.
    first.push(answer(dialect).after(&gate));
    let held = Call::send(&gateway, Protocol::H1, &asking(dialect, KEY, "held")).await;
    gate.wait_reached(1).await;
    second.push(dialect.error(502, "bad_gateway"));
    let failed = Call::send(&gateway, Protocol::H1, &asking(dialect, KEY, "fails")).await;
    second.wait_complete(1).await;
    let platform = dialect.platform();
    let out = format!("account_conditions_total{{kind=\"failing\",platform=\"{platform}\"}}");
    gateway.wait_metric(&out, 1.0).await;
    drop(failed);
    gateway
        .wait_metric(r#"slots_held{slot="account"}"#, 1.0)
        .await;
    second.otherwise(answer(dialect));
    // Both of these are served by it when its rest is over, with the first still full.
    let mut waiting = in_line(dialect, &gateway, BOB, "waits").await;
    served(dialect, &mut waiting).await;
    gate.open();
    whole(dialect, held).await;
}
