//! An upstream's refusals, in every form an error body can come: another account is asked and the
//! client sees nothing of it, or it is the last word and the client gets one it understands.

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::Write;
use tollgate_test_support::{Answer, ClientReply, Gate};

use crate::cells::{self, Cell, Client, Kind, Side, World};
use crate::dialect::{Dialect, in_each_dialect};

const MIB: usize = 1 << 20;
/// Stands in everything that no client may see.
const SECRET: &str = "swallowed";

/// How the upstream's error body comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    AtOnce,
    /// The header, then nothing for a while, then the body in two segments.
    Delayed,
    Split,
    Chunked,
    /// `content-length: 0`; HTTP/2: on HEADERS that end the stream.
    Empty,
    /// Empty and without a length; HTTP/2: HEADERS that end the stream, and nothing else.
    EmptyOpen,
    CloseDelimited,
    Truncated,
    Reset,
}

impl Form {
    const ALL: [Form; 9] = [
        Form::AtOnce,
        Form::Delayed,
        Form::Split,
        Form::Chunked,
        Form::Empty,
        Form::EmptyOpen,
        Form::CloseDelimited,
        Form::Truncated,
        Form::Reset,
    ];
    /// Those that bring the whole body.
    const WHOLE: [Form; 5] = [
        Form::AtOnce,
        Form::Delayed,
        Form::Split,
        Form::Chunked,
        Form::CloseDelimited,
    ];

    fn answer(self, dialect: Dialect, status: u16, gate: &Gate) -> Answer {
        let error = match self {
            Form::Empty | Form::EmptyOpen => Answer::empty(status),
            _ => dialect.error(status, SECRET),
        };
        // Headers that pass when they belong to the answer the client gets.
        let error = error
            .header("x-codex-turn-state", SECRET)
            .header("anthropic-ratelimit-tokens-remaining", SECRET)
            .header("x-ratelimit-remaining-tokens", SECRET);
        match self {
            Form::AtOnce | Form::Empty => error,
            Form::Delayed => error.split(&[20]).gated(0, gate),
            Form::Split => error.split_every(7),
            Form::Chunked => error.chunked(&[1, 5]),
            Form::EmptyOpen => error.chunked(&[]),
            Form::CloseDelimited => error.close_delimited(),
            Form::Truncated => error.truncated(25),
            Form::Reset => error.split(&[30]).then_reset(),
        }
    }
}

struct Row {
    cell: Cell,
    status: u16,
    form: Form,
}

fn rows(
    dialect: Dialect,
    resources: &mut Value,
    url: &str,
    statuses: &[u16],
    forms: &[Form],
    accounts: usize,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for status in statuses {
        for form in forms {
            let name = format!("c{status}-{form:?}").to_lowercase();
            let cell = cells::add(dialect, resources, &name, url, accounts, false);
            let (status, form) = (*status, *form);
            rows.push(Row { cell, status, form });
        }
    }
    rows
}

/// One connection of either protocol, asked in turn: that it lasts is part of the test.
struct Clients {
    clients: [Client; 2],
    turn: usize,
}

impl Clients {
    async fn new(world: &World) -> Clients {
        let h1 = world.client(Kind::H1Length).await;
        let h2 = world.client(Kind::H2Length).await;
        Clients {
            clients: [h1, h2],
            turn: 0,
        }
    }

    /// Asks by the client whose turn it is. Half of all requests ask for a stream.
    async fn ask(&mut self, what: &str, cell: &Cell) -> ClientReply {
        self.turn += 1;
        self.ask_again(what, cell).await
    }

    /// Asks by the client that asked last.
    async fn ask_again(&mut self, what: &str, cell: &Cell) -> ClientReply {
        let dialect = cell.dialect;
        let body = dialect.ask(dialect.model(), self.turn % 4 < 2);
        let body = Bytes::from(body.to_string());
        let reply = self.clients[self.turn % 2].post(cell, &body).await;
        reply.unwrap_or_else(|error| panic!("{what}, client {}: {error}", self.turn % 2))
    }

    /// The same, while the upstream's first answer is of this form.
    async fn ask_with(&mut self, world: &World, row: &Row) -> ClientReply {
        let gate = Gate::new();
        let refusal = row.form.answer(row.cell.dialect, row.status, &gate);
        world.upstream.push_for(&row.cell.credentials[0], refusal);
        let opened = async {
            if row.form == Form::Delayed {
                gate.wait_reached(1).await;
                gate.open();
            }
        };
        tokio::join!(self.ask(&row.cell.name, &row.cell), opened).0
    }
}

/// The error of an error reply: its type and its message.
fn error_of(dialect: Dialect, what: &str, reply: &ClientReply) -> (String, String) {
    let json = reply.json();
    assert!(
        json.is_object(),
        "{what}: no error object: {}",
        reply.text()
    );
    let (kind, message) = dialect.refusal(&json);
    assert_eq!(
        reply.header("content-type"),
        Some("application/json"),
        "{what}"
    );
    (kind.to_owned(), message.to_owned())
}

fn assert_nothing_leaked(what: &str, reply: &ClientReply) {
    let headers = format!("{:?}", reply.headers);
    assert!(!headers.contains(SECRET), "{what}: {headers}");
    assert!(!reply.text().contains(SECRET), "{what}: {}", reply.text());
}

in_each_dialect!(a_refusal_is_swallowed_and_the_next_account_answers);
async fn a_refusal_is_swallowed_and_the_next_account_answers(dialect: Dialect) {
    const STATUSES: [u16; 8] = [307, 401, 402, 403, 429, 500, 503, 529];
    for side in Side::ALL {
        let mut table = Vec::new();
        let world = World::start(side, |resources, url| {
            table = rows(dialect, resources, url, &STATUSES, &Form::ALL, 2);
        })
        .await;
        let mut clients = Clients::new(&world).await;
        for row in &table {
            let what = format!("{side:?} {}", row.cell.name);
            let reply = clients.ask_with(&world, row).await;
            assert_eq!(reply.status, 200, "{what}: {}", reply.text());
            assert_nothing_leaked(&what, &reply);
            let seen = world.upstream.wait_complete(2).await;
            let asked: Vec<_> = seen.iter().filter_map(|r| r.credential()).collect();
            assert_eq!(asked, row.cell.credentials, "{what}");
            assert_eq!(seen[0].body, seen[1].body, "{what}");
            world.upstream.wait_idle().await;
            world.upstream.forget();
        }
        for record in world.gateway.wait_records(table.len()).await {
            assert_eq!(record["account_switches"], json!(1), "{record}");
            assert_eq!(record["outcome"], json!("ok"), "{record}");
        }
    }
}

in_each_dialect!(a_refusal_nobody_else_can_answer_is_said_in_our_words);
async fn a_refusal_nobody_else_can_answer_is_said_in_our_words(dialect: Dialect) {
    const UNAVAILABLE: &str = "Upstream service temporarily unavailable";
    #[rustfmt::skip]
    const WORDS: [(u16, u16, &str, &str); 8] = [
        (307, 502, "upstream_error", "Upstream request failed"),
        (401, 502, "upstream_error", "Upstream authentication failed, please contact administrator"),
        (402, 502, "upstream_error", "Upstream request failed"),
        (403, 502, "upstream_error", "Upstream access forbidden, please contact administrator"),
        (429, 429, "rate_limit_error", "Upstream rate limit exceeded, please retry later"),
        (500, 502, "upstream_error", UNAVAILABLE),
        (503, 502, "upstream_error", UNAVAILABLE),
        (529, 503, "upstream_error", "Upstream service overloaded, please retry later"),
    ];
    let statuses = WORDS.map(|(status, ..)| status);
    for side in Side::ALL {
        let mut table = Vec::new();
        let world = World::start(side, |resources, url| {
            table = rows(dialect, resources, url, &statuses, &Form::ALL, 1);
        })
        .await;
        let mut clients = Clients::new(&world).await;
        for row in &table {
            let what = format!("{side:?} {}", row.cell.name);
            let reply = clients.ask_with(&world, row).await;
            let (_, status, kind, message) = WORDS.into_iter().find(|w| w.0 == row.status).unwrap();
            assert_eq!(reply.status, status, "{what}: {}", reply.text());
            let kind = match (dialect, row.status) {
                (Dialect::Messages, 529) => "overloaded_error",
                _ => kind,
            };
            let expected = (kind.to_owned(), message.to_owned());
            assert_eq!(error_of(dialect, &what, &reply), expected, "{what}");
            assert_nothing_leaked(&what, &reply);
            let id = reply.header("x-request-id").unwrap_or_default();
            assert!(id.starts_with("req_"), "{what}: {id:?}");
            assert_eq!(world.upstream.requests().len(), 1, "{what}");
            world.upstream.wait_idle().await;
            world.upstream.forget();
        }
    }
}

in_each_dialect!(the_clients_own_mistake_reaches_the_client_and_harms_no_account);
async fn the_clients_own_mistake_reaches_the_client_and_harms_no_account(dialect: Dialect) {
    const STATUSES: [u16; 7] = [400, 404, 405, 409, 413, 415, 422];
    for side in Side::ALL {
        let mut table = Vec::new();
        let world = World::start(side, |resources, url| {
            table = rows(dialect, resources, url, &STATUSES, &Form::WHOLE, 2);
        })
        .await;
        let mut clients = Clients::new(&world).await;
        for row in &table {
            let what = format!("{side:?} {}", row.cell.name);
            let reply = clients.ask_with(&world, row).await;
            assert_eq!(reply.status, row.status, "{what}: {}", reply.text());
            let theirs = dialect.error_body(row.status, SECRET);
            assert_eq!(reply.text(), String::from_utf8_lossy(&theirs), "{what}");
            error_of(dialect, &what, &reply);
            // The account is asked again at once: it has done nothing wrong.
            let reply = clients.ask_again(&what, &row.cell).await;
            assert_eq!(reply.status, 200, "{what}: {}", reply.text());
            let first = row.cell.credentials[0].as_str();
            let seen = world.upstream.wait_complete(2).await;
            let asked: Vec<_> = seen.iter().filter_map(|r| r.credential()).collect();
            assert_eq!(asked, [first, first], "{what}");
            world.upstream.wait_idle().await;
            world.upstream.forget();
        }
    }
}

in_each_dialect!(a_mistake_named_in_another_way_is_named_in_the_clients_dialect);
/// What is not an error object of the client's dialect becomes one; the status stays.
async fn a_mistake_named_in_another_way_is_named_in_the_clients_dialect(dialect: Dialect) {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&dialect.error_body(400, SECRET)).unwrap();
    let gzip = gzip.finish().unwrap();
    let long = json!({"type": "error", "error": {"type": "invalid_request_error", "message": "x".repeat(3 * MIB)}});
    let table = [
        (
            "html",
            404,
            Answer::body(404, "text/html", "<h1>Nothing here</h1>"),
            None,
        ),
        ("empty", 405, Answer::empty(405), None),
        (
            "detail",
            422,
            Answer::json(422, &json!({"detail": "no such field"})),
            Some("no such field"),
        ),
        (
            "message",
            400,
            Answer::json(400, &json!({"message": "bad field"})),
            Some("bad field"),
        ),
        (
            "gzip",
            400,
            Answer::body(400, "application/json", gzip).header("content-encoding", "gzip"),
            None,
        ),
        ("cut", 400, dialect.error(400, SECRET).truncated(25), None),
        ("long", 413, Answer::json(413, &long), None),
    ];
    for side in Side::ALL {
        let mut cells_of = Vec::new();
        let world = World::start(side, |resources, url| {
            for (name, ..) in &table {
                cells_of.push(cells::add(dialect, resources, name, url, 1, false));
            }
        })
        .await;
        let mut clients = Clients::new(&world).await;
        for (cell, (name, status, answer, message)) in cells_of.iter().zip(table.clone()) {
            let what = format!("{side:?} {name}");
            world.upstream.push_for(&cell.credentials[0], answer);
            let reply = clients.ask(&what, cell).await;
            assert_eq!(reply.status, status, "{what}");
            assert_eq!(reply.header("content-encoding"), None, "{what}");
            let (kind, said) = error_of(dialect, &what, &reply);
            let expected = dialect.kind(status, "invalid_request_error");
            assert_eq!(kind, expected, "{what}");
            match message {
                Some(message) => assert_eq!(said, message, "{what}"),
                None => assert!(!said.is_empty() && !said.contains("<h1>"), "{what}: {said}"),
            }
            // Not the account's fault, however it was said.
            let reply = clients.ask_again(&what, cell).await;
            assert_eq!(reply.status, 200, "{what}: {}", reply.text());
            world.upstream.wait_idle().await;
        }
    }
}

in_each_dialect!(an_endless_error_is_cut_short);
/// More than 2 MiB of an error is never read, and its end never waited for.
async fn an_endless_error_is_cut_short(dialect: Dialect) {
    let endless = || {
        let words = SECRET.repeat(3 * MIB / SECRET.len());
        Answer::body(500, "text/plain", words)
            .chunked(&[MIB, MIB])
            .then_stall()
    };
    for side in Side::ALL {
        let mut table = Vec::new();
        let world = World::start(side, |resources, url| {
            for (accounts, status) in [(2, 200), (1, 502)] {
                let name = format!("c{accounts}");
                let cell = cells::add(dialect, resources, &name, url, accounts, false);
                table.push((cell, status));
            }
        })
        .await;
        let mut clients = Clients::new(&world).await;
        for (cell, status) in table {
            let what = format!("{side:?} {}", cell.name);
            world.upstream.push_for(&cell.credentials[0], endless());
            let reply = clients.ask(&what, &cell).await;
            assert_eq!(reply.status, status, "{what}: {}", reply.text());
            assert_nothing_leaked(&what, &reply);
            world.upstream.wait_idle().await;
        }
    }
}

in_each_dialect!(a_limit_tells_when_to_come_back);
async fn a_limit_tells_when_to_come_back(dialect: Dialect) {
    let mut cell = None;
    let world = World::start(Side::Http1, |resources, url| {
        cell = Some(cells::add(dialect, resources, "limited", url, 1, false));
    })
    .await;
    let cell = cell.unwrap();
    let limited = dialect.error(429, SECRET).header("retry-after", "77");
    world.upstream.push_for(&cell.credentials[0], limited);
    let mut clients = Clients::new(&world).await;
    let reply = clients.ask("limited", &cell).await;
    assert_eq!(reply.status, 429);
    assert_eq!(reply.header("retry-after"), Some("77"));
}
