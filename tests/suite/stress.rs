//! Everything at once: hundreds of clients, half of which leave, accounts that fail in every way, and
//! limits that must hold exactly at the provider and in the books.
//!
//! What each client does and what each attempt meets is drawn from a seed, which a failure prints;
//! `TOLLGATE_STRESS_SEED` repeats it (who comes before whom is still up to the machine).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tollgate::domain::Money;
use tollgate_test_support::{Answer, FakeUpstream, Received, Request};

use crate::call::{Call, Leaving, PROTOCOLS, Protocol};
use crate::chance::Chance;
use crate::dialect::{DIALECTS, Dialect, OUTPUT, Trouble};
use crate::harness::{Gateway, Setup};

const SEED: u64 = 0x7011_6a7e;

/// Requests at once of the accounts `s1` … `s20`, 0 = unlimited; and how many of them come before the
/// others.
const LIMITS: [usize; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 6, 0];
const FIRST_TIER: usize = 12;
/// Accounts of the groups `few`: all but the last few, the unlimited one among them. All of a platform are in its `all`.
const FEW: usize = 16;
/// Some or all accounts of each platform.
const GROUPS: [(Dialect, &str); 4] = [
    (Dialect::Responses, "few"),
    (Dialect::Responses, "all"),
    (Dialect::Messages, "few"),
    (Dialect::Messages, "all"),
];
/// Users: requests at once (0 = unlimited), and how many of the clients are theirs, in percent.
const USERS: [(u32, u64); 5] = [(3, 5), (30, 15), (60, 25), (80, 25), (0, 30)];
const BALANCE: &str = "100";

/// Longer than any answer that is not to be given up, on a busy machine too.
const GIVEN_UP_MS: u64 = 1_500;

/// What an attempt meets at the provider.
fn answer(chance: &mut Chance, id: &str, request: &Received, pool_mode: bool) -> Answer {
    let text = "some words of an answer";
    let dialect = Dialect::of(request.path());
    let is_stream = request.json()["stream"] == true;
    let fine = |chance: &mut Chance| match is_stream {
        true => dialect
            .sse(id, &[text; 5])
            .every(chance.ms(1, 20))
            .delayed(chance.ms(1, 60)),
        false => {
            let answer = dialect.body(id, text);
            let answer = match chance.below(2) {
                0 => answer.chunked(&[100, 100]),
                _ => answer.split(&[300]),
            };
            answer.every(chance.ms(1, 10)).delayed(chance.ms(1, 120))
        }
    };
    let begun = |text: &str| match is_stream {
        true => Answer::sse(dialect.cut(id, &[text])).every(Duration::from_millis(3)),
        false => Answer::body(200, "application/json", "{\"id\":\"resp").chunked(&[]),
    };
    match chance.below(100) {
        0..5 => dialect.error(500, "server_error"),
        5..10 => dialect.error(503, "server_error").delayed(chance.ms(1, 40)),
        10..14 => dialect.error(502, "server_error").chunked(&[1, 5]),
        // Not a cool-down …
        14..17 => dialect
            .error(429, "rate_limit_exceeded")
            .header("retry-after", "0"),
        // … and a short one.
        17 => dialect
            .error(429, "rate_limit_exceeded")
            .header("retry-after", "1"),
        // Takes an account out for minutes, unless it is a pool.
        18..20 if pool_mode => dialect.error(529, "overloaded"),
        18..20 => dialect.error(504, "server_error").close_delimited(),
        20 => dialect.error(400, "invalid_request_error"),
        21..24 => Answer::close(),
        24..27 => Answer::reset(),
        27 => Answer::never(),
        28 => begun(text).then_stall(),
        29..31 => begun(text).then_hang_up(),
        31..33 => begun(text).then_reset(),
        33..35 if is_stream => Answer::sse(dialect.preamble(id)).then_hang_up(),
        35..38 if is_stream => {
            let frames = dialect.failed(id, &[], Trouble::Server, "The server had an error");
            Answer::sse(frames).every(chance.ms(1, 20))
        }
        _ => fine(chance),
    }
}

/// When a client leaves.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the request: in line, during an attempt, in the middle of a stream.
    After(Duration),
    /// After so many pieces of the answer.
    Reading(u64),
}

/// What a client does.
struct Plan {
    id: String,
    dialect: Dialect,
    request: Request,
    protocol: Protocol,
    is_stream: bool,
    leaves: Option<(Moment, Leaving)>,
}

impl Plan {
    fn of(seed: u64, client: usize, turn: u64, user: usize, last: bool) -> Plan {
        let mut chance = Chance::of((seed, "client", client, turn));
        let id = format!("client-{client}-{turn}");
        let is_stream = chance.below(3) > 0;
        let mut protocol = chance.pick(&PROTOCOLS);
        let leaves = (last && client % 2 == 1).then(|| {
            let leavings = [
                Leaving::Fin,
                Leaving::Rst,
                Leaving::HalfClose,
                Leaving::StreamReset,
                Leaving::ConnectionLost,
            ];
            let leaving = chance.pick(&leavings);
            protocol = leaving.protocol();
            let moment = match chance.below(3) {
                0 => Moment::Reading(chance.below(6)),
                1 => Moment::After(chance.ms(0, 100)),
                _ => Moment::After(chance.ms(0, 2_000)),
            };
            (moment, leaving)
        });
        let group = chance.pick(&["few", "all"]);
        // A third belongs to some conversations that they share.
        let session = chance.below(60);
        let dialect = chance.pick(&DIALECTS);
        let mut body = dialect.saying(&id, dialect.model(), is_stream);
        match (session < 20, dialect) {
            (true, Dialect::Responses) => {
                body["prompt_cache_key"] = json!(format!("session-{session}"));
            }
            (true, Dialect::Messages) => {
                let session = format!("00000000-0000-4000-8000-{session:012}");
                let user = format!("user_{}_account__session_{session}", "a".repeat(64));
                body["metadata"] = json!({ "user_id": user });
            }
            (false, _) => {}
        }
        let request = dialect
            .post(body.to_string(), &key(user, dialect, group))
            // Passed on to the provider.
            .header("user-agent", &id)
            .header("x-request-id", &id);
        Plan {
            id,
            dialect,
            request,
            protocol,
            is_stream,
            leaves,
        }
    }
}

/// What became of a request, as its client saw it.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// A good answer, read to its end; our id of it.
    Whole(String),
    /// An error of ours or the provider's, as a status or an event; what it says.
    Failed(String),
    /// The answer broke off.
    Broken,
    Left,
}

async fn run(gateway: &Gateway, plan: &Plan, open: &Mutex<Vec<Call>>) -> End {
    let mut call = Call::send(gateway, plan.protocol, &plan.request).await;
    // `None` = it is to leave.
    let ended = match plan.leaves {
        None => read(&mut call, u64::MAX).await,
        Some((Moment::Reading(count), _)) => read(&mut call, count).await,
        Some((Moment::After(time), _)) => tokio::select! {
            ended = read(&mut call, u64::MAX) => ended,
            () = tokio::time::sleep(time) => Ok(None),
        },
    };
    match (ended, plan.leaves) {
        (Ok(Some(answer)), _) => answer.judge(plan),
        (Ok(None), Some((_, leaving))) => {
            let left = leave(call, leaving).await;
            open.lock().extend(left);
            End::Left
        }
        (Ok(None), None) => unreachable!("it reads to the end"),
        (Err(_), _) => End::Broken,
    }
}

/// Leaves, also where the other side has closed meanwhile; what must stay open for that.
async fn leave(call: Call, how: Leaving) -> Option<Call> {
    match (call, how) {
        (Call::H1(client), Leaving::Rst) => {
            client.reset();
            None
        }
        (Call::H1(mut client), Leaving::HalfClose) => {
            let _ = client.half_close().await;
            Some(Call::H1(client))
        }
        (Call::H2(call), Leaving::StreamReset) => {
            let (mut client, stream) = *call;
            stream.reset();
            let other = client.start(&Request::get("/nothing")).await.ok()?;
            Some(Call::H2(Box::new((client, other))))
        }
        _ => None,
    }
}

struct Whole {
    status: u16,
    request_id: String,
    body: Bytes,
}

/// Reads the answer; `None` after so many pieces of it.
async fn read(call: &mut Call, pieces: u64) -> io::Result<Option<Whole>> {
    let head = call.head().await?;
    let mut body = BytesMut::new();
    for _ in 0..pieces {
        match call.chunk().await? {
            Some(piece) => body.extend_from_slice(&piece),
            None => {
                return Ok(Some(Whole {
                    status: head.status,
                    request_id: head.request_id,
                    body: body.freeze(),
                }));
            }
        }
    }
    Ok(None)
}

impl Whole {
    fn judge(self, plan: &Plan) -> End {
        let events = tollgate_test_support::sse::events(&self.body);
        let last = match events.last() {
            Some(event) if plan.is_stream => event.json(),
            _ => serde_json::from_slice(&self.body).unwrap_or_default(),
        };
        match self.status == 200 && plan.dialect.is_good(&last) {
            true => End::Whole(self.request_id),
            false => End::Failed(format!("{} {}", self.status, last["error"]["message"])),
        }
    }
}

fn key(user: usize, dialect: Dialect, group: &str) -> String {
    format!("tg-u{user}-{}-0123456789abcdef", group_of(dialect, group))
}

fn group_of(dialect: Dialect, group: &str) -> String {
    format!("{}-{group}", dialect.platform())
}

/// Two accounts of one dialect, then two of the other: each has some at both providers.
fn dialect_of(account: usize) -> Dialect {
    DIALECTS[account / 2 % 2]
}

fn credential(account: usize) -> String {
    format!("sk-s{}", account + 1)
}

/// Every fifth account is itself a pool of others.
fn is_pool(account: usize) -> bool {
    account % 5 == 4
}

fn resources(upstreams: &[FakeUpstream; 2]) -> Value {
    let accounts: Vec<Value> = (0..LIMITS.len())
        .map(|account| {
            let dialect = dialect_of(account);
            let groups: &[&str] = if account < FEW {
                &["few", "all"]
            } else {
                &["all"]
            };
            let groups: Vec<_> = groups
                .iter()
                .map(|group| group_of(dialect, group))
                .collect();
            json!({
                "name": format!("s{}", account + 1),
                "platform": dialect.platform(),
                "type": "api_key",
                "credentials": {
                    "api_key": credential(account),
                    "base_url": upstreams[account % 2].url(),
                },
                "groups": groups,
                "concurrency": LIMITS[account],
                "priority": if account < FIRST_TIER { 1 } else { 2 },
                "extra": { "pool_mode": is_pool(account), "pool_mode_retry_count": 1 },
            })
        })
        .collect();
    let users = USERS.iter().enumerate().map(|(user, (concurrency, _))| {
        json!({ "name": format!("u{user}"), "balance": BALANCE, "concurrency": concurrency })
    });
    let keys = (0..USERS.len()).flat_map(|user| {
        GROUPS.map(|(dialect, group)| {
            let group_name = group_of(dialect, group);
            json!({
                "name": format!("u{user}-{group_name}"),
                "key": key(user, dialect, group),
                "user": format!("u{user}"),
                "group": group_name,
            })
        })
    });
    let groups = GROUPS.map(|(dialect, group)| {
        json!({ "name": group_of(dialect, group), "platform": dialect.platform() })
    });
    json!({
        "groups": groups,
        "accounts": accounts,
        "users": users.collect::<Vec<_>>(),
        "api_keys": keys.collect::<Vec<_>>(),
    })
}

/// The user of a client.
fn user_of(seed: u64, client: usize) -> usize {
    let mut at = Chance::of((seed, "user", client)).below(100);
    for (user, (_, percent)) in USERS.iter().enumerate() {
        match at.checked_sub(*percent) {
            Some(rest) => at = rest,
            None => return user,
        }
    }
    unreachable!("the shares are a hundred percent")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_books_hold_whatever_happens() {
    hold(500, "drain", 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_hold_as_well_when_attempts_end_with_their_clients() {
    hold(200, "abort", 5).await;
}

/// So many clients, which must bring at least `full` accounts to their limits.
async fn hold(clients: usize, on_client_disconnect: &str, full: usize) {
    let seed = std::env::var("TOLLGATE_STRESS_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    // Shown when the test fails.
    println!("TOLLGATE_STRESS_SEED={seed}");
    let upstreams = [FakeUpstream::start().await, FakeUpstream::start().await];
    let tries: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
    for upstream in &upstreams {
        let tries = tries.clone();
        upstream.handle(move |request| {
            let id = request.header("user-agent").unwrap_or_default();
            let count = {
                let mut tries = tries.lock();
                let count = tries.entry(id.to_owned()).or_default();
                *count += 1;
                *count
            };
            let pool_mode = (0..LIMITS.len())
                .any(|a| is_pool(a) && request.credential() == Some(&credential(a)));
            let mut chance = Chance::of((seed, "attempt", id, count));
            answer(
                &mut chance,
                &format!("resp_{id}_{count}"),
                request,
                pool_mode,
            )
        });
    }
    let mut setup = Setup::new(&[])
        .set("SERVER__H2C", true)
        .set("GATEWAY__ON_CLIENT_DISCONNECT", on_client_disconnect)
        .set("GATEWAY__RESPONSE_HEADER_TIMEOUT_MS", GIVEN_UP_MS)
        .set("GATEWAY__STALL_TIMEOUT_MS", GIVEN_UP_MS)
        .set("CONCURRENCY__PING_INTERVAL_MS", 300)
        .set("CONCURRENCY__USER_WAIT_MS", 15_000)
        .set("CONCURRENCY__ACCOUNT_WAIT_MS", 15_000)
        .set("CONCURRENCY__STICKY_WAIT_MS", 100)
        .set("CONCURRENCY__MAX_WAITING_PER_ACCOUNT", 300)
        .set("LOGGING__LEVEL", "warn");
    setup.resources = resources(&upstreams);
    let gateway = Arc::new(setup.start().await);

    let open: Arc<Mutex<Vec<Call>>> = Arc::default();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (gateway, open) = (gateway.clone(), open.clone());
            tokio::spawn(async move {
                let user = user_of(seed, client);
                let turns = 1 + Chance::of((seed, "turns", client)).below(3);
                let mut ends = Vec::new();
                for turn in 0..turns {
                    let plan = Plan::of(seed, client, turn, user, turn + 1 == turns);
                    let end = run(&gateway, &plan, &open).await;
                    ends.push((plan.id, end));
                }
                ends
            })
        })
        .collect();
    let mut ends = Vec::new();
    for task in tasks {
        ends.extend(task.await.expect("a client does not panic"));
    }
    // Those who left may still be served to the end.
    for gauge in [
        "requests_in_flight",
        "slots_held{slot=\"user\"}",
        "slots_held{slot=\"account\"}",
        "writer_queue_records",
    ] {
        gateway.wait_metric(gauge, 0.0).await;
    }
    drop(open);

    // At the provider: no account beyond its limit, and most of them at it.
    let mut at_limit = 0;
    for (account, limit) in LIMITS.into_iter().enumerate() {
        let upstream = &upstreams[account % 2];
        upstream.wait_idle().await;
        let most = upstream.most_in_flight_of(&credential(account));
        if limit > 0 {
            assert!(
                most <= limit,
                "s{} was asked {most} at once of {limit}",
                account + 1
            );
            at_limit += usize::from(most == limit);
        }
    }
    assert!(at_limit >= full, "only {at_limit} accounts were ever full");

    // In the books: what was sent is there once, what was not is not.
    let records = gateway.records();
    let mut by_client = HashMap::new();
    let mut ids = HashSet::new();
    for record in &records {
        let text = |field: &str| record[field].as_str().unwrap().to_owned();
        assert!(ids.insert(text("request_id")), "twice: {record:#}");
        let before = by_client.insert(text("client_request_id"), record);
        assert!(before.is_none(), "two records: {before:?} {record:#}");
    }
    let mut seen: HashMap<String, u64> = HashMap::new();
    for request in upstreams.iter().flat_map(FakeUpstream::requests) {
        let id = request.header("user-agent").unwrap().to_owned();
        assert!(
            by_client.contains_key(&id),
            "{id} was sent and is not recorded"
        );
        *seen.entry(id).or_default() += 1;
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (id, record) in &by_client {
        let (sent, attempts) = (seen.get(id), record["attempts"].as_u64().unwrap());
        let sent = sent.copied().unwrap_or_default();
        assert!(sent <= attempts, "sent {sent} times: {record:#}");
        if sent == 0 {
            // Nothing but a connection that broke before anything of it was read.
            assert_eq!(record["usage_source"], "none", "{record:#}");
            assert_ne!(record["outcome"], "ok", "{record:#}");
        }
        let outcome = record["outcome"].as_str().unwrap();
        *counts.entry(format!("record {outcome}")).or_default() += 1;
    }
    for (id, end) in &ends {
        let record = by_client.get(id);
        let outcome = record.map(|record| record["outcome"].as_str().unwrap());
        let what = match end {
            End::Whole(request_id) => {
                let record = record.unwrap_or_else(|| panic!("no record of {id}"));
                assert_eq!(record["request_id"], **request_id, "{record:#}");
                assert_eq!(record["outcome"], "ok", "{record:#}");
                assert_eq!(record["output_tokens"], OUTPUT, "{record:#}");
                "answered"
            }
            End::Failed(why) => {
                assert_ne!(outcome, Some("ok"), "{id}: {record:#?}");
                why
            }
            End::Broken => {
                assert!(record.is_some(), "{id} was answered in part");
                assert_ne!(outcome, Some("ok"), "{id}: {record:#?}");
                "broken"
            }
            End::Left => "left",
        };
        *counts.entry(what.to_owned()).or_default() += 1;
    }
    println!(
        "{counts:?}, {} attempts, {at_limit} accounts full",
        seen.values().sum::<u64>()
    );
    let count = |what: &str| counts.get(what).copied().unwrap_or_default();
    let clients = clients as u64;
    assert!(count("answered") > clients / 2, "{counts:?}");
    assert!(count("left") > clients / 8, "{counts:?}");

    // And in money: each balance is what was there less what was charged.
    for user in 0..USERS.len() {
        let name = format!("u{user}");
        let charges = records.iter().filter(|r| r["user"] == *name);
        let charged: Money = charges
            .map(|record| record["charge"].as_str().unwrap().parse::<Money>().unwrap())
            .sum();
        let balance: Money = gateway.balance(&name).parse().unwrap();
        assert_eq!(balance + charged, BALANCE.parse().unwrap(), "{name}");
    }
}
