//! One request under way, over HTTP/1.1 or HTTP/2, for tests that hold for both.

use std::io;

use bytes::{Bytes, BytesMut};
use tollgate_test_support::client::H2Stream;
use tollgate_test_support::{H1Client, H2Client, Request};

use crate::harness::{Gateway, KEY, ask, ask_anew};

/// A Responses request of the standard client for a stream.
pub fn streamed(model: &str) -> Request {
    request(model, true, KEY)
}

/// A Responses request of the standard client for JSON.
pub fn plain(model: &str) -> Request {
    request(model, false, KEY)
}

/// A Responses request with this key.
pub fn request(model: &str, stream: bool, key: &str) -> Request {
    Request::post("/v1/responses", ask(model, stream).to_string()).bearer(key)
}

/// As [`plain`], in a conversation of its own.
pub fn apart(model: &str) -> Request {
    Request::post("/v1/responses", ask_anew(model, false).to_string()).bearer(KEY)
}

/// The protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 without TLS: the gateway needs `SERVER__H2C`.
    H2,
}

/// Both protocols.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::H1, Protocol::H2];

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// HTTP/1.1: both directions are closed.
    Fin,
    /// HTTP/1.1: the connection is reset.
    Rst,
    /// HTTP/1.1: the client's direction is closed. That counts as leaving: an API client that does
    /// so is not to be told from one that has gone.
    HalfClose,
    /// HTTP/2: the stream is reset, the connection stays.
    StreamReset,
    /// HTTP/2: the connection is gone.
    ConnectionLost,
}

/// Every way to leave.
pub const LEAVINGS: [Leaving; 5] = [
    Leaving::Fin,
    Leaving::Rst,
    Leaving::HalfClose,
    Leaving::StreamReset,
    Leaving::ConnectionLost,
];

impl Leaving {
    /// The protocol in which one can leave like that.
    pub fn protocol(self) -> Protocol {
        match self {
            Leaving::Fin | Leaving::Rst | Leaving::HalfClose => Protocol::H1,
            Leaving::StreamReset | Leaving::ConnectionLost => Protocol::H2,
        }
    }
}

/// A request that has been sent, or begun.
pub enum Call {
    /// On a connection of its own.
    H1(Box<H1Client>),
    /// On a connection of its own, which lives as long as the call.
    H2(Box<(H2Client, H2Stream)>),
}

/// The head of an answer.
pub struct Head {
    /// HTTP status.
    pub status: u16,
    /// `content-type`.
    pub content_type: String,
    /// `x-request-id`.
    pub request_id: String,
    /// The connection takes no other request.
    pub closes: bool,
}

impl Call {
    /// Sends a whole request on a new connection.
    pub async fn send(gateway: &Gateway, protocol: Protocol, request: &Request) -> Call {
        match protocol {
            Protocol::H1 => {
                let mut client = gateway.h1().await;
                client.send_request(request).await.unwrap();
                Call::H1(Box::new(client))
            }
            Protocol::H2 => {
                let mut client = H2Client::connect(gateway.address).await.unwrap();
                let stream = client.send_request(request).await.unwrap();
                Call::H2(Box::new((client, stream)))
            }
        }
    }

    /// Sends a request whose body breaks off after `part`.
    pub async fn begin(
        gateway: &Gateway,
        protocol: Protocol,
        request: &Request,
        part: &str,
    ) -> Call {
        match protocol {
            Protocol::H1 => {
                let mut client = gateway.h1().await;
                let mut bytes = request.head_bytes();
                bytes.extend_from_slice(part.as_bytes());
                client.send(&bytes).await.unwrap();
                Call::H1(Box::new(client))
            }
            Protocol::H2 => {
                let mut client = H2Client::connect(gateway.address).await.unwrap();
                let mut stream = client.start(request).await.unwrap();
                let part = Bytes::copy_from_slice(part.as_bytes());
                stream.send(part, false).await.unwrap();
                Call::H2(Box::new((client, stream)))
            }
        }
    }

    /// Waits for the head of the answer.
    pub async fn head(&mut self) -> io::Result<Head> {
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        match self {
            Call::H1(client) => {
                let head = client.final_head().await?;
                Ok(Head {
                    status: head.status,
                    content_type: text(head.header("content-type")),
                    request_id: text(head.header("x-request-id")),
                    closes: head.header("connection") == Some("close"),
                })
            }
            Call::H2(call) => Ok(Head {
                status: call.1.head().await?,
                content_type: text(call.1.header("content-type")),
                request_id: text(call.1.header("x-request-id")),
                closes: false,
            }),
        }
    }

    /// The next piece of the body, after the head.
    pub async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Call::H1(client) => client.chunk().await,
            Call::H2(call) => call.1.chunk().await,
        }
    }

    /// Reads until what was read has `text` in it `count` times; what was read.
    pub async fn read_until(&mut self, text: &str, count: usize) -> Bytes {
        let mut read = BytesMut::new();
        while String::from_utf8_lossy(&read).matches(text).count() < count {
            match self.chunk().await {
                Ok(Some(piece)) => read.extend_from_slice(&piece),
                end => panic!("{end:?} after {:?}", String::from_utf8_lossy(&read)),
            }
        }
        read.freeze()
    }

    /// The rest of the body as far as it came, and how it ended.
    pub async fn rest(&mut self) -> (Bytes, io::Result<()>) {
        let mut read = BytesMut::new();
        loop {
            match self.chunk().await {
                Ok(Some(piece)) => read.extend_from_slice(&piece),
                Ok(None) => return (read.freeze(), Ok(())),
                Err(error) => return (read.freeze(), Err(error)),
            }
        }
    }

    /// The whole answer: its status and its body, which must end properly.
    pub async fn answer(mut self) -> (u16, Bytes) {
        let status = self.head().await.unwrap().status;
        let (body, end) = self.rest().await;
        end.unwrap();
        (status, body)
    }

    /// Leaves. What stays open (a half of the connection, a connection without its stream) is
    /// returned and must outlive what is to be seen of the leaving.
    pub async fn leave(self, how: Leaving) -> Option<Call> {
        match (self, how) {
            (Call::H1(client), Leaving::Fin) => {
                drop(client);
                None
            }
            (Call::H1(client), Leaving::Rst) => {
                client.reset();
                None
            }
            (Call::H1(mut client), Leaving::HalfClose) => {
                client.half_close().await.unwrap();
                Some(Call::H1(client))
            }
            (Call::H2(call), Leaving::StreamReset) => {
                let (mut client, stream) = *call;
                stream.reset();
                // The reset is on its way before this: the connection sends in order.
                let other = client.start(&Request::get("/nothing")).await.unwrap();
                Some(Call::H2(Box::new((client, other))))
            }
            (Call::H2(call), Leaving::ConnectionLost) => {
                drop(call);
                None
            }
            (_, how) => panic!("{how:?} is of the other protocol"),
        }
    }
}
