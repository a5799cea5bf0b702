//! Raw clients. [`H1Client`] sends exact bytes and reads answers piece by piece; [`H2Client`]
//! does the same with streams. [`post_json`] is for tests that only want an answer.

mod h1;
mod h2;

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::Value;

pub use h1::{Answering, H1Client};
pub use h2::{H2Client, H2Stream};

use crate::LIMIT;
use crate::sse::{self, Event};
use crate::wire::find;

/// How a request tells the length of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    /// HTTP/1.1: chunks of so many bytes; HTTP/2: no content-length, DATA frames of so many.
    Unknown(usize),
}

/// A request that either client can send.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    framing: Framing,
}

impl Request {
    /// A request without a body.
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
            framing: Framing::Length,
        }
    }

    /// A POST of JSON: sets content-type.
    pub fn post(path: &str, body: impl Into<Bytes>) -> Self {
        let mut request = Self::new("POST", path).header("content-type", "application/json");
        request.body = body.into();
        request
    }

    /// A GET.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// Adds `authorization: Bearer KEY`.
    pub fn bearer(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    /// Adds a field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Tells no length: chunks (HTTP/1.1) or DATA frames (HTTP/2) of so many bytes.
    ///
    /// # Panics
    /// When `size` is 0.
    pub fn chunked(mut self, size: usize) -> Self {
        assert!(size > 0, "chunks of no bytes end the body");
        self.framing = Framing::Unknown(size);
        self
    }

    /// The head's bytes on HTTP/1.1, blank line included; a `host` is added unless given.
    pub fn head_bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if find(&self.headers, "host").is_none() {
            head.push_str("host: tollgate.test\r\n");
        }
        for (name, value) in &self.headers {
            // Writing to a string cannot fail.
            let _ = write!(head, "{name}: {value}\r\n");
        }
        match self.framing {
            Framing::Unknown(_) => head.push_str("transfer-encoding: chunked\r\n"),
            Framing::Length if self.body.is_empty() && self.method != "POST" => {}
            Framing::Length => {
                let _ = write!(head, "content-length: {}\r\n", self.body.len());
            }
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// The body's bytes on HTTP/1.1, chunk framing included.
    pub fn body_bytes(&self) -> Bytes {
        let Framing::Unknown(size) = self.framing else {
            return self.body.clone();
        };
        let mut framed = Vec::with_capacity(self.body.len() + 64);
        for chunk in self.body.chunks(size) {
            framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            framed.extend_from_slice(chunk);
            framed.extend_from_slice(b"\r\n");
        }
        framed.extend_from_slice(b"0\r\n\r\n");
        framed.into()
    }
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Fields in order.
    pub headers: Vec<(String, String)>,
    /// The body, framing removed.
    pub body: Bytes,
}

impl Reply {
    /// The first field of that name, compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as JSON, `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body's server-sent events.
    pub fn events(&self) -> Vec<Event> {
        sse::events(&self.body)
    }

    /// The `type` of every event's data, in order.
    pub fn event_types(&self) -> Vec<String> {
        let kind = |event: &Event| event.json()["type"].as_str().map(str::to_owned);
        self.events().iter().filter_map(kind).collect()
    }
}

/// Sends one JSON request on a connection of its own and reads the whole answer.
///
/// # Errors
/// Those of the connection, and an answer that is cut.
pub async fn post_json(
    address: SocketAddr,
    path: &str,
    key: &str,
    body: &Value,
) -> io::Result<Reply> {
    let request = Request::post(path, body.to_string()).bearer(key);
    let mut client = H1Client::connect(address).await?;
    client.request(&request).await
}

/// Fails what takes longer than [`LIMIT`].
async fn limited<T>(what: &str, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("{what}: over {LIMIT:?}"));
    tokio::time::timeout(LIMIT, work).await.map_err(late)?
}
