//! A raw HTTP/1.1 client.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Reply, Request, limited};
use crate::link::Link;
use crate::tls::{self, TestCa};
use crate::wire::{Body, Head, Wire, find};

/// One connection. Dropping it closes it.
pub struct H1Client {
    wire: Wire,
    body: Body,
}

/// The head of an answer; its body is read from the client.
#[derive(Clone, Debug)]
pub struct Answering {
    /// HTTP status.
    pub status: u16,
    /// Fields in order.
    pub headers: Vec<(String, String)>,
    /// The head's bytes.
    pub raw: Bytes,
}

impl Answering {
    /// The first field of that name, compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

impl H1Client {
    /// A cleartext connection.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let tcp = limited("connecting", TcpStream::connect(address)).await?;
        tcp.set_nodelay(true)?;
        Ok(Self::over(Link::Plain(tcp)))
    }

    /// A TLS connection to `localhost` with ALPN `http/1.1`.
    ///
    /// # Errors
    /// Those of connecting and of the handshake.
    pub async fn connect_tls(address: SocketAddr, ca: &TestCa) -> io::Result<Self> {
        let link = tls_link(address, ca, tls::HTTP_1_1).await?;
        Ok(Self::over(link))
    }

    fn over(link: Link) -> Self {
        Self {
            wire: Wire::new(link),
            body: Body::Done,
        }
    }

    /// The address this end has.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.wire.link.tcp().local_addr()
    }

    /// Sends exactly these bytes.
    ///
    /// # Errors
    /// Those of writing; the peer may have closed.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        limited("sending", self.wire.write(bytes)).await
    }

    /// Sends a whole request. A peer that answers early may close meanwhile: then the answer can
    /// often still be read.
    ///
    /// # Errors
    /// Those of writing.
    pub async fn send_request(&mut self, request: &Request) -> io::Result<()> {
        let body = request.body_bytes();
        let mut head = request.head_bytes();
        if body.len() <= 64 * 1024 {
            head.extend_from_slice(&body);
            return self.send(&head).await;
        }
        self.send(&head).await?;
        self.send(&body).await
    }

    /// The next answer's head, interim ones (100) included.
    ///
    /// # Errors
    /// Those of reading; `UnexpectedEof` when the peer closed.
    pub async fn head(&mut self) -> io::Result<Answering> {
        let head = limited("reading the head", self.wire.head()).await?;
        let head = head.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer closed without answering",
            )
        })?;
        self.body = body_of(&head);
        let status = head.first_line.split(' ').nth(1);
        Ok(Answering {
            status: status.and_then(|s| s.parse().ok()).unwrap_or_default(),
            headers: head.fields,
            raw: head.raw,
        })
    }

    /// The next answer's head, interim ones passed over.
    ///
    /// # Errors
    /// As [`H1Client::head`].
    pub async fn final_head(&mut self) -> io::Result<Answering> {
        loop {
            let head = self.head().await?;
            if head.status >= 200 {
                return Ok(head);
            }
        }
    }

    /// The next piece of the body as it arrived (never across two chunks), `None` at its proper
    /// end.
    ///
    /// # Errors
    /// Those of reading; `UnexpectedEof` when the body is cut.
    pub async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        limited("reading the body", self.wire.piece(&mut self.body)).await
    }

    /// Reads the body until what was read contains this text, and returns what was read.
    ///
    /// # Errors
    /// As [`H1Client::chunk`]; `UnexpectedEof` when the body ends before.
    pub async fn read_until(&mut self, text: &str) -> io::Result<Bytes> {
        let mut read = BytesMut::new();
        while !String::from_utf8_lossy(&read).contains(text) {
            let Some(piece) = self.chunk().await? else {
                let seen = String::from_utf8_lossy(&read).into_owned();
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("no {text:?} in {seen:?}"),
                ));
            };
            read.extend_from_slice(&piece);
        }
        Ok(read.freeze())
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// As [`H1Client::chunk`].
    pub async fn body(&mut self) -> io::Result<Bytes> {
        let (body, end) = self.body_so_far().await;
        end.map(|()| body)
    }

    /// The rest of the body as far as it came, and how it ended.
    pub async fn body_so_far(&mut self) -> (Bytes, io::Result<()>) {
        let mut whole = BytesMut::new();
        loop {
            match self.chunk().await {
                Ok(Some(piece)) => whole.extend_from_slice(&piece),
                Ok(None) => return (whole.freeze(), Ok(())),
                Err(error) => return (whole.freeze(), Err(error)),
            }
        }
    }

    /// The next complete answer.
    ///
    /// # Errors
    /// As [`H1Client::head`] and [`H1Client::body`].
    pub async fn reply(&mut self) -> io::Result<Reply> {
        let head = self.final_head().await?;
        let body = self.body().await?;
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    /// Sends a request and reads its answer; the connection can be used again.
    ///
    /// # Errors
    /// As sending and [`H1Client::reply`].
    pub async fn request(&mut self, request: &Request) -> io::Result<Reply> {
        let sent = self.send_request(request).await;
        match self.reply().await {
            Ok(reply) => Ok(reply),
            Err(error) => Err(sent.err().unwrap_or(error)),
        }
    }

    /// Closes this side only; answers can still be read.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn half_close(&mut self) -> io::Result<()> {
        self.wire.link.shutdown().await
    }

    /// Closes with a reset (RST).
    pub fn reset(self) {
        self.wire.link.reset_on_close();
    }

    /// Waits for the peer to close; `true` = it closed properly, and sent nothing before.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn closed_by_peer(&mut self) -> io::Result<bool> {
        let ended = limited("waiting for the peer to close", async {
            Ok(matches!(self.wire.fill().await, Ok(0)))
        });
        Ok(ended.await? && self.wire.buffer.is_empty())
    }
}

/// A TLS link to `localhost` with that protocol alone.
pub(super) async fn tls_link(address: SocketAddr, ca: &TestCa, alpn: &[u8]) -> io::Result<Link> {
    let tcp = limited("connecting", TcpStream::connect(address)).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").expect("a valid name");
    let connector = TlsConnector::from(ca.client(&[alpn]));
    let stream = limited("the TLS handshake", connector.connect(name, tcp)).await?;
    Ok(Link::Tls(Box::new(stream.into())))
}

fn body_of(head: &Head) -> Body {
    let status = head.first_line.split(' ').nth(1).unwrap_or_default();
    if status.starts_with('1') || status == "204" || status == "304" {
        return Body::Done;
    }
    match (head.is_chunked(), head.length()) {
        (true, _) => Body::Chunked(None),
        (false, Some(length)) => Body::Length(length),
        (false, None) => Body::UntilClose,
    }
}
