//! Bodies of every size reach every attempt byte for byte, whatever the client speaks, whatever the
//! provider speaks, and whatever the attempts before came to. This is the matrix that has to pass
//! before the pinned version of Pingora may be changed.

use bytes::Bytes;
use serde_json::json;
use tollgate_test_support::{Answer, Early, Received};

use crate::cells::{self, Cell, Client, Kind, Side, World, assert_same, body, with_model};
use crate::dialect::{DIALECTS, Dialect};
use crate::harness::Setup;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Around what Pingora itself can send twice (64 KiB), and beyond.
const SIZES: [usize; 4] = [KIB, 60 * KIB, 64 * KIB + 1, MIB];

/// What goes wrong before all goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Success,
    Limited,
    Refused,
    Reset,
    Twice,
}

impl Plan {
    const ALL: [Plan; 5] = [
        Plan::Success,
        Plan::Limited,
        Plan::Refused,
        Plan::Reset,
        Plan::Twice,
    ];

    fn failures(self, dialect: Dialect) -> Vec<Answer> {
        match self {
            Plan::Success => vec![],
            Plan::Limited => vec![dialect.error(429, "rate_limit_exceeded")],
            Plan::Refused => vec![dialect.error(401, "invalid_api_key")],
            Plan::Reset => vec![Answer::reset()],
            Plan::Twice => vec![
                dialect.error(529, "overloaded").chunked(&[3]),
                Answer::close(),
            ],
        }
    }
}

struct Row {
    cell: Cell,
    kind: Kind,
    size: usize,
    plan: Plan,
}

fn rows(side: Side) -> Vec<(Dialect, Kind, usize, Plan, bool)> {
    let mut rows = Vec::new();
    for kind in Kind::CLEAR {
        for size in SIZES {
            for (turn, plan) in Plan::ALL.into_iter().enumerate() {
                let with = |mapped| (Dialect::Responses, kind, size, plan, mapped);
                rows.extend([false, true].map(with));
                // On the same connection, in turn.
                rows.push((Dialect::Messages, kind, size, plan, turn % 2 == 0));
            }
        }
    }
    for size in SIZES {
        let with = |dialect| (dialect, Kind::H2Tls, size, Plan::Limited, true);
        rows.extend(DIALECTS.map(with));
    }
    // No power of two, the least that is too much for many a proxy's buffer, and more than most allow.
    for (plan, size) in [(Plan::Twice, 2 * MIB + 1), (Plan::Reset, 30 * MIB)] {
        rows.push((Dialect::Messages, Kind::H1Length, size, plan, true));
        rows.push((Dialect::Messages, Kind::H2Open, 2 * MIB + 1, plan, false));
    }
    // 30 MiB takes its time in a debug build: each kind of client, each plan, with and without a
    // mapping, but not everything with everything.
    let large = match side {
        Side::Http1 => [
            (Kind::H1Length, 30 * MIB, Plan::Twice, true),
            (Kind::H1Chunked, 30 * MIB, Plan::Reset, false),
            (Kind::H2Length, 30 * MIB, Plan::Limited, true),
            (Kind::H2Open, 30 * MIB, Plan::Refused, false),
            (Kind::H2Tls, 30 * MIB, Plan::Success, true),
        ],
        Side::Http2 => [
            (Kind::H1Length, 30 * MIB, Plan::Reset, true),
            (Kind::H1Chunked, 30 * MIB, Plan::Twice, true),
            (Kind::H2Length, 30 * MIB, Plan::Refused, false),
            (Kind::H2Open, 30 * MIB, Plan::Limited, true),
            (Kind::H2Tls, 30 * MIB, Plan::Success, false),
        ],
    };
    rows.extend(
        large.map(|(kind, size, plan, mapped)| (Dialect::Responses, kind, size, plan, mapped)),
    );
    rows
}

async fn matrix(side: Side) {
    let mut rows_with_cells = Vec::new();
    let world = World::start(side, |resources, url| {
        for (number, (dialect, kind, size, plan, mapped)) in rows(side).into_iter().enumerate() {
            let accounts = plan.failures(dialect).len() + 1;
            let name = format!("c{number}");
            let cell = cells::add(dialect, resources, &name, url, accounts, mapped);
            rows_with_cells.push(Row {
                cell,
                kind,
                size,
                plan,
            });
        }
    })
    .await;
    for kind in [Kind::CLEAR.as_slice(), &[Kind::H2Tls]].concat() {
        // One connection for every request of this kind.
        let mut client = world.client(kind).await;
        for row in rows_with_cells.iter().filter(|row| row.kind == kind) {
            run(&world, &mut client, row).await;
        }
    }
}

async fn run(world: &World, client: &mut Client, row: &Row) {
    let Row { cell, plan, .. } = row;
    let dialect = cell.dialect;
    let what = format!(
        "{} {dialect:?} {:?} {} {plan:?}",
        cell.name, row.kind, row.size
    );
    let failures = plan.failures(dialect);
    let attempts = failures.len() + 1;
    for (credential, answer) in cell.credentials.iter().zip(failures) {
        world.upstream.push_for(credential, answer);
    }
    let sent = body(dialect, row.size, attempts % 2 == 1);
    let reply = client.post(cell, &sent).await;
    let reply = reply.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(reply.status, 200, "{what}: {}", reply.text());
    assert_eq!(reply.json()["model"], dialect.model(), "{what}");
    let seen = world.upstream.wait_complete(attempts).await;
    assert_eq!(seen.len(), attempts, "{what}");
    for (place, request) in seen.iter().enumerate() {
        let expected = with_model(cell, place, &sent);
        let what = format!("{what}, attempt {place}");
        assert_attempt(&what, request, &cell.credentials[place], &expected);
    }
    world.upstream.wait_idle().await;
    world.upstream.forget();
}

fn assert_attempt(what: &str, request: &Received, credential: &str, expected: &Bytes) {
    assert_eq!(request.credential(), Some(credential), "{what}");
    let length = expected.len().to_string();
    assert_eq!(request.headers("content-length"), [&length], "{what}");
    for name in ["transfer-encoding", "expect", "content-encoding"] {
        assert_eq!(request.header(name), None, "{what}: {name}");
    }
    assert_same(what, &request.body, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_reaches_every_attempt_over_http1() {
    matrix(Side::Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_reaches_every_attempt_over_http2() {
    matrix(Side::Http2).await;
}

/// A provider that refuses the credential does not wait for 30 MiB, and what it does with the rest
/// is its own matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_before_the_body_was_read_leads_to_the_next_account() {
    for side in Side::ALL {
        for early in [Early::Close, Early::Drain, Early::Hold] {
            refused_early(Dialect::Responses, side, early).await;
        }
    }
    refused_early(Dialect::Messages, Side::Http1, Early::Close).await;
    refused_early(Dialect::Messages, Side::Http2, Early::Drain).await;
}

async fn refused_early(dialect: Dialect, side: Side, early: Early) {
    let what = format!("{dialect:?} {side:?} {early:?}");
    let mut cell = None;
    // Over HTTP/1.1 nothing is read while a write waits: an upstream that neither reads on nor
    // closes is heard when the write times out.
    let stall = |setup: Setup| setup.set("GATEWAY__STALL_TIMEOUT_MS", 3000);
    let world = World::start_with(side, stall, |resources, url| {
        cell = Some(cells::add(dialect, resources, "early", url, 2, true));
    })
    .await;
    let cell = cell.unwrap();
    let refusal = dialect.error(401, "invalid_api_key").early(early);
    world.upstream.push_for(&cell.credentials[0], refusal);
    let sent = body(dialect, 30 * MIB, true);
    let mut client = world.client(Kind::H1Length).await;
    let reply = client.post(&cell, &sent).await.unwrap();
    assert_eq!(reply.status, 200, "{what}: {}", reply.text());
    let second = cell.credentials[1].as_str();
    let answered = |seen: &[Received]| {
        seen.iter()
            .any(|r| r.credential() == Some(second) && r.complete)
    };
    let seen = world.upstream.wait_for(&what, answered).await;
    assert_eq!(seen.len(), 2, "{what}");
    let expected = with_model(&cell, 1, &sent);
    assert_attempt(&what, &seen[1], second, &expected);
    let record = world.gateway.only_record().await;
    assert_eq!(record["attempts"], json!(2), "{what}");
    assert_eq!(record["account_switches"], json!(1), "{what}");
    assert_eq!(record["outcome"], json!("ok"), "{what}");
    // The connection of the client is as good as before.
    let reply = client.post(&cell, &body(dialect, KIB, true)).await.unwrap();
    assert_eq!(reply.status, 200, "{what}: {}", reply.text());
}
