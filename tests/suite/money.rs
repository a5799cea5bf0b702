//! Many requests at once against little money: a balance, a quota, a window, a subscription's limit, in
//! every reservation mode, through the whole path.
//!
//! Every request here costs the same, exactly as much as is set aside for it: as many input tokens as its
//! body has bytes, as many output tokens as it asks for. So it is known how many requests an amount is
//! enough for, whoever comes first: they are let through, all others have to wait for money that is held.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tollgate::domain::Money;
use tollgate_test_support::{
    Answer, ClientReply, FakeUpstream, Gate, Received, Usage, openai, post_json,
};

use crate::chance::Chance;
use crate::harness::{Gateway, KEY, Setup};

const MODEL: &str = "gpt-5-mini";
/// Its list prices in nano-dollars per token.
const INPUT_PRICE: u64 = 250;
const OUTPUT_PRICE: u64 = 2000;
/// Output tokens that every request asks for and gets, and that are reserved for it.
const OUTPUT: u64 = 8192;
/// Of all waits that are to end by themselves. Longer than 50 or 200 requests need to arrive, so that
/// those to be served are in before the first gives up.
const SHORT_WAIT_MS: u64 = 3_000;
/// Waits that are not to end by themselves.
const LONG_WAIT_MS: u64 = 120_000;

fn usd(text: &str) -> Money {
    text.parse().unwrap()
}

fn amount(value: &Value) -> Money {
    usd(value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no decimal string")))
}

/// Request number `n`, one in two a stream, all of the same length.
fn body(n: usize) -> Value {
    let is_stream = n.is_multiple_of(2);
    // `true` is a byte shorter than `false`.
    let input = format!("{n:03}{}", if is_stream { "." } else { "" });
    json!({ "model": MODEL, "input": input, "stream": is_stream, "max_output_tokens": OUTPUT })
}

/// What each of them costs.
fn each() -> Money {
    let length = body(0).to_string().len() as u64;
    assert_eq!(length, body(1).to_string().len() as u64);
    cost(length, OUTPUT)
}

fn cost(input: u64, output: u64) -> Money {
    Money((input * INPUT_PRICE + output * OUTPUT_PRICE) as i64)
}

/// So many requests an amount is enough for, the last of them in part.
fn enough_for(amount: Money) -> usize {
    usize::try_from((amount.0 + each().0 - 1) / each().0).unwrap()
}

fn times(count: usize) -> Money {
    Money(each().0 * count as i64)
}

fn answer(is_stream: bool, usage: Usage) -> Answer {
    match is_stream {
        true => Answer::sse(openai::responses_stream(MODEL, "r", &["Hello"], usage)),
        false => Answer::body(
            200,
            "application/json",
            openai::responses_json(MODEL, "r", "Hello", usage),
        ),
    }
}

fn is_stream(request: &Received) -> bool {
    request.json()["stream"] == true
}

/// A provider that reports what [`each`] says.
fn exact(request: &Received) -> Answer {
    let usage = Usage {
        input: request.body.len() as u64,
        cached: 0,
        output: OUTPUT,
        reasoning: 0,
    };
    answer(is_stream(request), usage)
}

/// Nothing is in the way of any request but money.
fn setup(upstream: &FakeUpstream, reservation: &str, balance: &str, wait_ms: u64) -> Setup {
    Setup::with(&[upstream])
        .set("BILLING__RESERVATION", reservation)
        .set("BILLING__RESERVE_OUTPUT_TOKENS", OUTPUT)
        .set("BILLING__WAIT_MS", wait_ms)
        // No pings: whoever waits in vain gets a status.
        .set("CONCURRENCY__PING_INTERVAL_MS", 60_000)
        .resources(|all| {
            all["users"][0]["concurrency"] = json!(0);
            all["users"][0]["balance"] = json!(balance);
            all["accounts"][0]["concurrency"] = json!(0);
        })
}

/// Requests under way at once.
struct Load {
    tasks: Vec<tokio::task::JoinHandle<io::Result<ClientReply>>>,
    answered: Arc<AtomicU64>,
}

impl Load {
    /// The requests with these numbers.
    fn of(gateway: &Gateway, numbers: std::ops::Range<usize>, body: fn(usize) -> Value) -> Load {
        let answered: Arc<AtomicU64> = Arc::default();
        let start = |number| {
            let (address, answered) = (gateway.address, answered.clone());
            tokio::spawn(async move {
                let reply = post_json(address, "/v1/responses", KEY, &body(number)).await;
                answered.fetch_add(1, Ordering::SeqCst);
                reply
            })
        };
        let tasks = numbers.map(start).collect();
        Load { tasks, answered }
    }

    /// How many have an answer.
    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    async fn replies(self) -> Vec<ClientReply> {
        let mut replies = Vec::new();
        for task in self.tasks {
            replies.push(task.await.unwrap().unwrap());
        }
        replies
    }
}

/// The answers by status.
fn by_status(replies: &[ClientReply]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for reply in replies {
        *counts.entry(reply.status).or_default() += 1;
    }
    counts
}

/// The error of an answer in the shape of the OpenAI dialect, which says what is the matter in `words`,
/// and how much of what is left: the message.
fn refusal(reply: &ClientReply, status: u16, kind: &str, words: &[&str]) -> String {
    assert_eq!(reply.status, status, "{}", reply.text());
    let error = &reply.json()["error"];
    assert_eq!(error["type"], kind, "{error}");
    assert!(error["code"].is_string(), "{error}");
    let message = error["message"].as_str().unwrap().to_owned();
    let lower = message.to_lowercase();
    for word in words {
        assert!(lower.contains(word), "{word:?} in {message:?}");
    }
    assert!(
        message.bytes().any(|byte| byte.is_ascii_digit()),
        "how much is left in {message:?}"
    );
    message
}

/// Seconds after which to come back.
fn retry_after(reply: &ClientReply) -> u64 {
    let value = reply.header("retry-after");
    let value = value.unwrap_or_else(|| panic!("no retry-after: {}", reply.text()));
    value.parse().unwrap()
}

/// Waits until exactly so many requests are at the provider.
async fn at_provider(upstream: &FakeUpstream, count: usize) {
    let what = format!("{count} requests at the provider");
    upstream
        .wait_for(&what, |_| upstream.in_flight() >= count)
        .await;
    assert_eq!(upstream.in_flight(), count);
}

/// The sum of all charges, which is what is missing from the balance.
async fn spent(gateway: &Gateway, records: usize, opening: Money) -> Money {
    let records = gateway.wait_records(records).await;
    let charged: Money = records.iter().map(|record| amount(&record["charge"])).sum();
    assert_eq!(usd(&gateway.balance("alice")), opening - charged);
    charged
}

async fn once(gateway: &Gateway, n: usize) -> ClientReply {
    let reply = post_json(gateway.address, "/v1/responses", KEY, &body(n)).await;
    reply.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dollar_is_not_spent_twice_where_what_is_available_is_reserved() {
    const REQUESTS: usize = 200;
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream, "available", "1.00", SHORT_WAIT_MS)
        .start()
        .await;
    let gate = Gate::new();
    let closed = gate.clone();
    upstream.handle(move |request| exact(request).after(&closed));

    let served = enough_for(usd("1"));
    let load = Load::of(&gateway, 0..REQUESTS, body);
    at_provider(&upstream, served).await;
    // The others are not refused as long as the money is only held: they wait, and then are to come back.
    gateway
        .wait("the others to give up", || {
            load.answered() == (REQUESTS - served) as u64
        })
        .await;
    assert_eq!(
        upstream.in_flight(),
        served,
        "no dollar is counted on twice"
    );
    assert_eq!(gateway.metric("reservations_open"), served as f64);
    let shown = gateway.run_json(&["users", "show", "alice", "--json"]);
    assert_eq!(amount(&shown["reserved"]), usd("1"), "{shown}");
    assert_eq!(amount(&shown["available"]), Money::ZERO, "{shown}");
    let all = gateway.run_json(&["users", "list", "--json"]);
    assert_eq!(all[0], shown);
    gate.open();
    let replies = load.replies().await;
    let expected = BTreeMap::from([(200, served), (429, REQUESTS - served)]);
    assert_eq!(by_status(&replies), expected);
    for reply in replies.iter().filter(|reply| reply.status == 429) {
        refusal(reply, 429, "rate_limit_error", &["balance"]);
        assert!((1..=60).contains(&retry_after(reply)));
    }
    // Only the last of them cost more than what was there to be reserved.
    let charged = spent(&gateway, served, usd("1")).await;
    assert_eq!(charged, times(served));
    assert!(charged - usd("1") < each());
    let shown = gateway.run_json(&["users", "show", "alice", "--json"]);
    assert_eq!(amount(&shown["reserved"]), Money::ZERO, "{shown}");
    assert_eq!(shown["available"], shown["balance"], "{shown}");
    // And now there is none.
    let reply = once(&gateway, 0).await;
    refusal(&reply, 403, "billing_error", &["balance"]);
    assert_eq!(reply.json()["error"]["code"], "INSUFFICIENT_BALANCE");
    assert_eq!(reply.header("retry-after"), None, "no time brings money");
    gateway.wait_records(served).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_money_goes_on_with_what_comes_back() {
    const REQUESTS: usize = 200;
    let upstream = FakeUpstream::start().await;
    // Three times what a request costs is asked for it: the most of a reservation comes back.
    fn generous(n: usize) -> Value {
        let mut body = body(n);
        body["max_output_tokens"] = json!(9999);
        body
    }
    upstream.handle(|request| {
        let usage = Usage {
            input: 100,
            cached: 0,
            output: 2000,
            reasoning: 0,
        };
        answer(is_stream(request), usage)
    });
    let gateway = setup(&upstream, "available", "1.00", LONG_WAIT_MS)
        .start()
        .await;
    let replies = Load::of(&gateway, 0..REQUESTS, generous).replies().await;
    // 200 × 0.004025 is less than a dollar: nobody is refused.
    assert_eq!(by_status(&replies), BTreeMap::from([(200, REQUESTS)]));
    let charged = spent(&gateway, REQUESTS, usd("1")).await;
    assert_eq!(charged, usd("0.805"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_never_spends_what_is_not_there() {
    const REQUESTS: usize = 200;
    let upstream = FakeUpstream::start().await;
    // Answers of all lengths, as long as the request allows: together more than two dollars.
    upstream.handle(|request| {
        let json = request.json();
        let number: u64 = json["input"].as_str().unwrap()[..3].parse().unwrap();
        let allowed = json["max_output_tokens"].as_u64().unwrap();
        let usage = Usage {
            input: request.body.len() as u64,
            cached: 0,
            output: (2000 + number * 40).min(allowed),
            reasoning: 0,
        };
        answer(is_stream(request), usage)
    });
    let gateway = setup(&upstream, "strict", "1.00", LONG_WAIT_MS)
        .start()
        .await;
    let replies = Load::of(&gateway, 0..REQUESTS, body).replies().await;
    let counts = by_status(&replies);
    println!("{counts:?}");
    let served = counts[&200];
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        refusal(reply, 403, "billing_error", &["balance"]);
    }
    // The longest answers fit in so many times.
    assert!(served >= enough_for(usd("1")) - 1, "{counts:?}");
    assert!(served < REQUESTS, "{counts:?}");
    let charged = spent(&gateway, served, usd("1")).await;
    let left = usd("1") - charged;
    assert!(left >= Money::ZERO, "{left}");
    // Refused when money was gone, not when it was held: what is left is not enough for a whole request.
    assert!(left < each(), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_waits_for_held_money_and_then_asks_to_come_back() {
    let upstream = FakeUpstream::start().await;
    let gate = Gate::new();
    let closed = gate.clone();
    upstream.handle(move |request| exact(request).after(&closed));
    // Enough for ten, and a little.
    let balance = times(10) + Money(1000);
    let balance = balance.to_string();
    let gateway = setup(&upstream, "strict", &balance, SHORT_WAIT_MS)
        .start()
        .await;
    let load = Load::of(&gateway, 0..30, body);
    at_provider(&upstream, 10).await;
    gateway
        .wait("the others to give up", || load.answered() == 20)
        .await;
    gate.open();
    let replies = load.replies().await;
    assert_eq!(by_status(&replies), BTreeMap::from([(200, 10), (429, 20)]));
    for reply in replies.iter().filter(|reply| reply.status == 429) {
        refusal(reply, 429, "rate_limit_error", &["balance"]);
        assert!((1..=60).contains(&retry_after(reply)));
    }
    assert_eq!(spent(&gateway, 10, usd(&balance)).await, times(10));
    refusal(&once(&gateway, 0).await, 403, "billing_error", &["balance"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_reservations_whoever_comes_before_the_charge_is_served() {
    const REQUESTS: usize = 200;
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream, "none", "1.00", SHORT_WAIT_MS)
        .start()
        .await;
    let gate = Gate::new();
    let closed = gate.clone();
    upstream.handle(move |request| exact(request).after(&closed));
    let load = Load::of(&gateway, 0..REQUESTS, body);
    at_provider(&upstream, REQUESTS).await;
    gate.open();
    let replies = load.replies().await;
    assert_eq!(by_status(&replies), BTreeMap::from([(200, REQUESTS)]));
    let charged = spent(&gateway, REQUESTS, usd("1")).await;
    assert_eq!(charged, times(REQUESTS));
    refusal(&once(&gateway, 0).await, 403, "billing_error", &["balance"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credit_under_load_counts_once_and_wakes_who_waits() {
    const REQUESTS: usize = 200;
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream, "available", "0.50", LONG_WAIT_MS)
        .start()
        .await;
    let gate = Gate::new();
    let closed = gate.clone();
    upstream.handle(move |request| exact(request).after(&closed));
    let load = Load::of(&gateway, 0..REQUESTS, body);
    let before = enough_for(usd("0.5"));
    at_provider(&upstream, before).await;
    gateway.run(&["users", "credit", "alice", "2"]);
    let served = before + enough_for(usd("2"));
    at_provider(&upstream, served).await;
    assert_eq!(load.answered(), 0, "nobody is refused while money is held");
    gate.open();
    let replies = load.replies().await;
    // As the last money is charged, who still waits learns that there is none.
    let expected = BTreeMap::from([(200, served), (403, REQUESTS - served)]);
    assert_eq!(by_status(&replies), expected);
    for reply in replies.iter().filter(|reply| reply.status == 403) {
        refusal(reply, 403, "billing_error", &["balance"]);
    }
    assert_eq!(spent(&gateway, served, usd("2.5")).await, times(served));
}

/// A limit that is not the balance.
struct Limited {
    name: &'static str,
    /// Puts the limit into the resources.
    resources: fn(&mut Value, &str),
    /// What the answer says when it is used up.
    code: &'static str,
    words: &'static [&'static str],
    /// It is over within so many seconds, if ever.
    resets_within: Option<u64>,
    billing_type: &'static str,
}

const LIMITS: [Limited; 3] = [
    Limited {
        name: "a key's quota",
        resources: |all, limit| all["api_keys"][0]["quota"] = json!(limit),
        code: "API_KEY_QUOTA_EXHAUSTED",
        words: &["quota"],
        resets_within: None,
        billing_type: "balance",
    },
    Limited {
        name: "a key's window of five hours",
        resources: |all, limit| all["api_keys"][0]["rate_limits"] = json!({ "5h": limit }),
        code: "",
        words: &["5h", "reset"],
        resets_within: Some(5 * 3600),
        billing_type: "balance",
    },
    Limited {
        name: "a subscription's daily limit",
        resources: |all, limit| {
            all["groups"][0]["subscription_type"] = json!("subscription");
            all["groups"][0]["daily_limit_usd"] = json!(limit);
            all["users"][0]["balance"] = json!("0");
            all["subscriptions"] = json!([{
                "user": "alice",
                "group": "main",
                "starts_at": "2020-01-01T00:00:00Z",
                "expires_at": "2120-01-01T00:00:00Z",
                "status": "active",
            }]);
        },
        code: "USAGE_LIMIT_EXCEEDED",
        words: &["daily", "reset"],
        resets_within: Some(24 * 3600),
        billing_type: "subscription",
    },
];

async fn fifty_against(limited: &Limited, reservation: &str) {
    const REQUESTS: usize = 50;
    let name = limited.name;
    // Enough for six, and for too little of a seventh to be of use.
    let limit = times(6) + Money(1000);
    let served = match reservation {
        "strict" => 6,
        _ => 7,
    };
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream, reservation, "100", SHORT_WAIT_MS)
        .resources(|all| (limited.resources)(all, &limit.to_string()))
        .start()
        .await;
    let opening = usd(&gateway.balance("alice"));
    let gate = Gate::new();
    let closed = gate.clone();
    upstream.handle(move |request| exact(request).after(&closed));
    let load = Load::of(&gateway, 0..REQUESTS, body);
    at_provider(&upstream, served).await;
    let given_up = (REQUESTS - served) as u64;
    gateway
        .wait("the others to give up", || load.answered() >= given_up)
        .await;
    gate.open();
    let replies = load.replies().await;
    let expected = BTreeMap::from([(200, served), (429, REQUESTS - served)]);
    assert_eq!(by_status(&replies), expected, "{name}, {reservation}");
    for reply in replies.iter().filter(|reply| reply.status == 429) {
        // Held, not used up: soon, whenever the limit itself is reset.
        refusal(reply, 429, "rate_limit_error", &limited.words[..1]);
        assert!((1..=60).contains(&retry_after(reply)), "{name}");
    }
    // And now it is used up.
    let reply = once(&gateway, 0).await;
    refusal(&reply, 429, "rate_limit_error", limited.words);
    if !limited.code.is_empty() {
        assert_eq!(reply.json()["error"]["code"], limited.code, "{name}");
    }
    match limited.resets_within {
        Some(seconds) => assert!((1..=seconds).contains(&retry_after(&reply)), "{name}"),
        None => assert_eq!(reply.header("retry-after"), None, "{name}"),
    }
    let records = gateway.wait_records(served).await;
    for record in &records {
        assert_eq!(amount(&record["charge"]), each(), "{name}");
        assert_eq!(record["billing_type"], limited.billing_type, "{name}");
    }
    let paid = match limited.billing_type {
        "balance" => times(served),
        _ => Money::ZERO,
    };
    assert_eq!(usd(&gateway.balance("alice")), opening - paid, "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_against_a_quota() {
    for reservation in ["available", "strict"] {
        fifty_against(&LIMITS[0], reservation).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_against_a_window_of_the_key() {
    for reservation in ["available", "strict"] {
        fifty_against(&LIMITS[1], reservation).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_against_a_subscriptions_day() {
    for reservation in ["available", "strict"] {
        fifty_against(&LIMITS[2], reservation).await;
    }
}

/// The output limit a provider was told, if any.
fn told(request: &Received) -> Option<u64> {
    request.json()["max_output_tokens"].as_u64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_lowers_the_output_limit_to_what_can_be_paid() {
    let upstream = FakeUpstream::start().await;
    upstream.handle(|request| {
        let usage = Usage {
            input: request.body.len() as u64,
            cached: 0,
            // All it may: it must be payable to the last token.
            output: told(request).unwrap_or(100_000),
            reasoning: 0,
        };
        answer(is_stream(request), usage)
    });
    for limit in [Some(100_000), None] {
        for is_stream in [false, true] {
            let what = format!("limit {limit:?}, stream {is_stream}");
            let gateway = setup(&upstream, "strict", "0.01", SHORT_WAIT_MS)
                .start()
                .await;
            let mut asked = json!({ "model": MODEL, "input": "hi", "stream": is_stream });
            if let Some(limit) = limit {
                asked["max_output_tokens"] = json!(limit);
            }
            let reply = post_json(gateway.address, "/v1/responses", KEY, &asked).await;
            let reply = reply.unwrap();
            assert_eq!(reply.status, 200, "{what}: {}", reply.text());
            let request = upstream.only_request();
            let told = told(&request).unwrap_or_else(|| panic!("{what}: no limit"));
            // A cent is enough for five thousand, less the input.
            assert!((4_000..5_000).contains(&told), "{what}: {told}");
            let header = reply.header("x-tollgate-max-output-tokens");
            assert_eq!(header, Some(told.to_string().as_str()), "{what}");
            // Nothing else has been changed.
            let mut sent = request.json();
            sent["max_output_tokens"] = json!(told);
            asked["max_output_tokens"] = json!(told);
            assert_eq!(sent, asked, "{what}");
            let record = gateway.only_record().await;
            assert_eq!(record["output_tokens"], told, "{what}");
            let balance = usd(&gateway.balance("alice"));
            assert_eq!(balance, usd("0.01") - amount(&record["charge"]));
            assert!(balance >= Money::ZERO, "{what}: {balance}");
            upstream.wait_idle().await;
            upstream.forget();
        }
    }
    // A limit that can be paid stays as it is, and nothing is said about it.
    let gateway = setup(&upstream, "strict", "1", SHORT_WAIT_MS).start().await;
    let reply = once(&gateway, 0).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-tollgate-max-output-tokens"), None);
    assert_eq!(told(&upstream.only_request()), Some(OUTPUT));
    gateway.only_record().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_refuses_what_cannot_be_paid_where_the_operator_prefers() {
    let upstream = FakeUpstream::start().await;
    upstream.handle(exact);
    let gateway = setup(&upstream, "strict", "0.01", SHORT_WAIT_MS)
        .set("BILLING__STRICT_OUTPUT", "refuse")
        .start()
        .await;
    for n in [0, 1] {
        refusal(&once(&gateway, n).await, 403, "billing_error", &["balance"]);
    }
    assert_eq!(upstream.total(), 0);
    assert!(gateway.records().is_empty());
    // A shorter answer can be paid.
    let mut short = body(1);
    short["max_output_tokens"] = json!(100);
    let reply = post_json(gateway.address, "/v1/responses", KEY, &short).await;
    let reply = reply.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(told(&upstream.only_request()), Some(100));
    // The provider gave more than was asked for. Not even that brings the balance below zero.
    gateway.only_record().await;
    assert!(usd(&gateway.balance("alice")) >= Money::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_costs_what_the_same_answer_costs_in_one_piece() {
    const CASES: u64 = 60;
    let seed = std::env::var("TOLLGATE_MONEY_SEED").map_or(4, |seed| seed.parse().unwrap());
    println!("TOLLGATE_MONEY_SEED={seed}");
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .resources(|all| {
            all["users"][0]["balance"] = json!("1000000");
            all["groups"][0]["rate_multiplier"] = json!("1.234567");
        })
        .start()
        .await;
    let mut client = gateway.h1().await;
    let mut pairs = Vec::new();
    for case in 0..CASES {
        let mut chance = Chance::of((seed, "usage", case));
        // Every number of digits, and both sides of the long context.
        let mut up_to = |most: u64| {
            let digits = 10u64.pow(chance.below(7) as u32);
            chance.below(most.min(digits) + 1)
        };
        let (input, output) = (up_to(600_000), up_to(130_000));
        let usage = Usage {
            input,
            cached: up_to(input),
            output,
            reasoning: up_to(output),
        };
        let model = chance.pick(&["gpt-5-mini", "gpt-5.4", "o3-mini", "nobodys-model"]);
        let tier = chance.pick(&["", "priority", "flex"]);
        let size = 1 + chance.below(400) as usize;
        let mut ids = Vec::new();
        for is_stream in [false, true] {
            upstream.push(answer(is_stream, usage).split_every(size));
            let mut asked = json!({ "model": model, "input": "hi", "stream": is_stream });
            if !tier.is_empty() {
                asked["service_tier"] = json!(tier);
            }
            let request = tollgate_test_support::Request::post("/v1/responses", asked.to_string());
            let reply = client.request(&request.bearer(KEY)).await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
            ids.push(reply.header("x-request-id").unwrap().to_owned());
        }
        pairs.push((ids, usage));
    }
    let records = gateway.wait_records(2 * CASES as usize).await;
    let find = |id: &String| records.iter().find(|record| record["request_id"] == **id);
    for (ids, usage) in &pairs {
        let [whole, streamed] = [&ids[0], &ids[1]].map(|id| find(id).unwrap());
        for field in [
            "input_tokens",
            "output_tokens",
            "cache_creation_tokens",
            "cache_read_tokens",
            "image_output_tokens",
            "cost",
            "charge",
            "usage_source",
            "service_tier",
        ] {
            assert_eq!(
                whole[field], streamed[field],
                "{field} of {usage:?}\n{whole:#}"
            );
        }
        assert_eq!(whole["input_tokens"], usage.input - usage.cached);
        assert_eq!(whole["cache_read_tokens"], usage.cached);
        assert_eq!(whole["output_tokens"], usage.output);
    }
}
