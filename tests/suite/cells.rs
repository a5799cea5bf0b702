//! Cells of a table: each has a group, a client key and accounts of its own, so that hundreds of them
//! run against one server and the cool-downs of one are no matter of the next.

use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use tollgate_test_support::{ClientReply, FakeUpstream, H1Client, H2Client, Request, TestCa};

use crate::dialect::Dialect;
use crate::harness::{Gateway, Setup, free_address};

/// What accounts with a mapping call the model, in order: shorter, longer, of the same length.
fn upstream_models(dialect: Dialect) -> [&'static str; 3] {
    match dialect {
        Dialect::Responses => ["o3", "gpt-5-mini-2025-08-07-or-so", "gpt-5-nano"],
        Dialect::Messages => [
            "claude-3",
            "claude-sonnet-4-5-20250929-or-so",
            "claude-sonnet-4-6",
        ],
    }
}

/// One cell.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What its clients speak.
    pub dialect: Dialect,
    /// Says in a failure which one it is.
    pub name: String,
    /// The client key.
    pub key: String,
    /// The accounts' credentials, in the order in which they are asked.
    pub credentials: Vec<String>,
    mapped: bool,
}

impl Cell {
    /// What the account in this place calls the model.
    pub fn upstream_model(&self, place: usize) -> &'static str {
        match self.mapped {
            true => upstream_models(self.dialect)[place % 3],
            false => self.dialect.model(),
        }
    }
}

/// Adds a cell with so many accounts at `base_url`.
pub fn add(
    dialect: Dialect,
    resources: &mut Value,
    name: &str,
    base_url: &str,
    accounts: usize,
    mapped: bool,
) -> Cell {
    let cell = Cell {
        dialect,
        name: name.to_owned(),
        key: format!("tg-cell-{name}-0123456789"),
        credentials: (1..=accounts).map(|n| format!("sk-{name}-{n}")).collect(),
        mapped,
    };
    list(resources, "groups").push(json!({ "name": name, "platform": dialect.platform() }));
    for (place, credential) in cell.credentials.iter().enumerate() {
        let mapping = match mapped {
            true => json!({ dialect.model(): cell.upstream_model(place) }),
            false => json!({}),
        };
        list(resources, "accounts").push(json!({
            "name": credential,
            "platform": dialect.platform(),
            "type": "api_key",
            "credentials": { "api_key": credential, "base_url": base_url },
            "groups": [name],
            "concurrency": 5,
            "priority": place + 1,
            "model_mapping": mapping,
        }));
    }
    list(resources, "api_keys")
        .push(json!({ "name": name, "key": cell.key, "user": "alice", "group": name }));
    cell
}

fn list<'r>(resources: &'r mut Value, name: &str) -> &'r mut Vec<Value> {
    resources[name].as_array_mut().expect("a list of resources")
}

/// The fake provider on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// HTTP/1.1 in the clear.
    Http1,
    /// HTTP/2 over TLS.
    Http2,
}

impl Side {
    /// Both.
    pub const ALL: [Side; 2] = [Side::Http1, Side::Http2];
}

/// A server with cells, its provider, and listeners for every kind of client.
pub struct World {
    /// The server.
    pub gateway: Gateway,
    /// The provider.
    pub upstream: FakeUpstream,
    tls: SocketAddr,
    ca: TestCa,
    _certificates: tempfile::TempDir,
}

impl World {
    /// Starts both; `fill` adds the cells, given the provider's base URL.
    pub async fn start(side: Side, fill: impl FnOnce(&mut Value, &str)) -> World {
        Self::start_with(side, |setup| setup, fill).await
    }

    /// The same with more configuration.
    pub async fn start_with(
        side: Side,
        change: impl FnOnce(Setup) -> Setup,
        fill: impl FnOnce(&mut Value, &str),
    ) -> World {
        let ca = TestCa::new();
        let certificates = tempfile::TempDir::new().unwrap();
        ca.write(certificates.path()).unwrap();
        let file = |name: &str| certificates.path().join(name);
        let upstream = match side {
            Side::Http1 => FakeUpstream::start().await,
            Side::Http2 => FakeUpstream::start_tls(&ca).await,
        };
        let (plain, tls) = (free_address(), free_address());
        let listen = json!([
            plain.to_string(),
            { "addr": tls.to_string(), "cert": file("cert.pem"), "key": file("key.pem") },
        ]);
        let setup = Setup::new(&[])
            .set("SERVER__LISTEN", listen)
            .set("SERVER__H2C", true)
            .env("SSL_CERT_FILE", file("ca.pem").display())
            .resources(|resources| {
                resources["users"][0]["balance"] = json!("1000.00");
                fill(resources, &upstream.url());
            });
        let mut gateway = change(setup).start().await;
        gateway.address = plain;
        World {
            gateway,
            upstream,
            tls,
            ca,
            _certificates: certificates,
        }
    }

    /// A new connection of this kind.
    pub async fn client(&self, kind: Kind) -> Client {
        let address = self.gateway.address;
        let link = match kind {
            Kind::H1Length | Kind::H1Chunked => Link::H1(H1Client::connect(address).await.unwrap()),
            Kind::H2Length | Kind::H2Open => Link::H2(H2Client::connect(address).await.unwrap()),
            Kind::H2Tls => Link::H2(H2Client::connect_tls(self.tls, &self.ca).await.unwrap()),
        };
        Client { kind, link }
    }
}

/// How a client sends its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTP/1.1 with a length.
    H1Length,
    /// HTTP/1.1 in chunks.
    H1Chunked,
    /// HTTP/2 in the clear, with a length.
    H2Length,
    /// HTTP/2 in the clear, without a length.
    H2Open,
    /// HTTP/2 over TLS, with a length.
    H2Tls,
}

impl Kind {
    /// All but TLS.
    pub const CLEAR: [Kind; 4] = [
        Kind::H1Length,
        Kind::H1Chunked,
        Kind::H2Length,
        Kind::H2Open,
    ];
}

/// One connection that is used for request after request: that it can be is part of the test.
pub struct Client {
    kind: Kind,
    link: Link,
}

enum Link {
    H1(H1Client),
    H2(H2Client),
}

impl Client {
    /// Sends a request to this cell and reads the answer.
    pub async fn post(&mut self, cell: &Cell, body: &Bytes) -> std::io::Result<ClientReply> {
        self.send(cell.dialect.post(body.clone(), &cell.key)).await
    }

    /// Sends this request, its body framed as this client frames bodies, and reads the answer.
    pub async fn send(&mut self, request: Request) -> std::io::Result<ClientReply> {
        let request = match self.kind {
            Kind::H1Chunked | Kind::H2Open => request.chunked(10_007),
            Kind::H1Length | Kind::H2Length | Kind::H2Tls => request,
        };
        match &mut self.link {
            Link::H1(client) => client.request(&request).await,
            Link::H2(client) => client.request(&request).await,
        }
    }
}

/// A valid request of exactly `size` bytes whose text repeats nowhere; the model stands first or last.
pub fn body(dialect: Dialect, size: usize, model_first: bool) -> Bytes {
    let model = dialect.model();
    // Spaces and spellings that no serializer would write the same way again.
    let (head, tail) = match (dialect, model_first) {
        (Dialect::Responses, true) => (
            format!(r#"{{ "model" : "{model}","temperature":1.0e0,"input":""#),
            r#""}"#.to_owned(),
        ),
        (Dialect::Responses, false) => (
            r#"{"input":""#.to_owned(),
            format!(r#"","stream" :false, "model":"{model}" }}"#),
        ),
        (Dialect::Messages, true) => (
            format!(
                r#"{{ "model" : "{model}","temperature":1.0e0,"max_tokens":100,"messages":[ {{"role":"user","content" :""#
            ),
            r#""}]}"#.to_owned(),
        ),
        (Dialect::Messages, false) => (
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":""#.to_owned(),
            format!(r#""}}]}} ],"max_tokens": 100, "stream" :false, "model":"{model}" }}"#),
        ),
    };
    let mut body = Vec::with_capacity(size);
    body.extend_from_slice(head.as_bytes());
    let text = size
        .checked_sub(head.len() + tail.len())
        .expect("room for a valid request");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
    while body.len() < head.len() + text {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for byte in state.to_le_bytes() {
            body.push(
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
                    [usize::from(byte & 63)],
            );
        }
    }
    body.truncate(head.len() + text);
    body.extend_from_slice(tail.as_bytes());
    Bytes::from(body)
}

/// What the upstream in this place is to get of a [`body`]: its model under another name, nothing else changed.
pub fn with_model(cell: &Cell, place: usize, body: &Bytes) -> Bytes {
    let model = cell.upstream_model(place);
    if model == cell.dialect.model() {
        return body.clone();
    }
    let name = format!("\"{}\"", cell.dialect.model());
    let at = body
        .windows(name.len())
        .position(|window| window == name.as_bytes())
        .expect("a body names its model");
    let renamed = format!("\"{model}\"");
    let (before, after) = (&body[..at], &body[at + name.len()..]);
    Bytes::from([before, renamed.as_bytes(), after].concat())
}

/// Compares bodies without printing megabytes.
pub fn assert_same(what: &str, got: &Bytes, expected: &Bytes) {
    if got == expected {
        return;
    }
    let differs = got.iter().zip(expected.iter()).position(|(a, b)| a != b);
    panic!(
        "{what}: {} bytes instead of {}, different from {differs:?} on",
        got.len(),
        expected.len()
    );
}
