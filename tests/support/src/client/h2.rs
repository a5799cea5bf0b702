//! A raw HTTP/2 client on the `h2` crate.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::h1::tls_link;
use super::{Framing, Reply, Request, limited};
use crate::link::Link;
use crate::tls::{self, TestCa};
use crate::wire::find;

/// One connection; any number of streams at once. Dropping it closes the connection at once.
pub struct H2Client {
    sender: SendRequest<Bytes>,
    connection: AbortHandle,
    scheme: &'static str,
}

/// One stream: a request sent or being sent, and its answer.
pub struct H2Stream {
    sending: SendStream<Bytes>,
    answer: Option<ResponseFuture>,
    body: Option<RecvStream>,
    status: u16,
    headers: Vec<(String, String)>,
}

impl H2Client {
    /// A cleartext connection with prior knowledge (h2c).
    ///
    /// # Errors
    /// Those of connecting and of the handshake.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let tcp = limited("connecting", TcpStream::connect(address)).await?;
        tcp.set_nodelay(true)?;
        Self::over(Link::Plain(tcp), "http").await
    }

    /// A TLS connection to `localhost` with ALPN `h2`.
    ///
    /// # Errors
    /// Those of connecting and of the handshakes.
    pub async fn connect_tls(address: SocketAddr, ca: &TestCa) -> io::Result<Self> {
        Self::over(tls_link(address, ca, tls::H2).await?, "https").await
    }

    async fn over(link: Link, scheme: &'static str) -> io::Result<Self> {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(16 << 20);
        let handshake = async { builder.handshake(link).await.map_err(other) };
        let (sender, connection) = limited("the HTTP/2 handshake", handshake).await?;
        // Its end is seen by the streams.
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            connection: driver.abort_handle(),
            scheme,
        })
    }

    /// Sends a request's head; the body follows by [`H2Stream::send`].
    ///
    /// # Errors
    /// When the connection takes no more streams.
    pub async fn start(&mut self, request: &Request) -> io::Result<H2Stream> {
        self.open(request, false).await
    }

    /// Sends a whole request.
    ///
    /// # Errors
    /// When the connection takes no more streams or the peer stops reading.
    pub async fn send_request(&mut self, request: &Request) -> io::Result<H2Stream> {
        let mut stream = self.open(request, request.body.is_empty()).await?;
        let step = match request.framing {
            Framing::Unknown(size) => size,
            Framing::Length => request.body.len().max(1),
        };
        let mut rest = request.body.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(step.min(rest.len()));
            let last = rest.is_empty();
            if let Err(error) = stream.send(piece, last).await {
                // The peer may have answered early and refused the rest.
                return match stream.head().await {
                    Ok(_) => Ok(stream),
                    Err(_) => Err(error),
                };
            }
        }
        Ok(stream)
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// As [`H2Client::send_request`] and [`H2Stream::reply`].
    pub async fn request(&mut self, request: &Request) -> io::Result<Reply> {
        self.send_request(request).await?.reply().await
    }

    async fn open(&mut self, request: &Request, end: bool) -> io::Result<H2Stream> {
        let host = find(&request.headers, "host").unwrap_or("tollgate.test");
        let mut head = http::Request::builder()
            .version(http::Version::HTTP_2)
            .method(request.method.as_str())
            .uri(format!("{}://{host}{}", self.scheme, request.path));
        for (name, value) in &request.headers {
            if !name.eq_ignore_ascii_case("host") {
                head = head.header(name, value);
            }
        }
        if request.framing == Framing::Length && !request.body.is_empty() {
            head = head.header("content-length", request.body.len());
        }
        let head = head.body(()).map_err(io::Error::other)?;
        let ready = async {
            poll_fn(|cx| self.sender.poll_ready(cx))
                .await
                .map_err(other)
        };
        limited("room for a stream", ready).await?;
        let (answer, sending) = self.sender.send_request(head, end).map_err(other)?;
        Ok(H2Stream {
            sending,
            answer: Some(answer),
            body: None,
            status: 0,
            headers: Vec::new(),
        })
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl H2Stream {
    /// Sends a piece of the body under flow control.
    ///
    /// # Errors
    /// When the peer reset the stream or stops reading.
    pub async fn send(&mut self, mut piece: Bytes, end: bool) -> io::Result<()> {
        if piece.is_empty() {
            return self.sending.send_data(piece, end).map_err(other);
        }
        while !piece.is_empty() {
            self.sending.reserve_capacity(piece.len());
            let room = async {
                match poll_fn(|cx| self.sending.poll_capacity(cx)).await {
                    Some(room) => room.map_err(other),
                    None => Err(io::ErrorKind::BrokenPipe.into()),
                }
            };
            let room = limited("room in the window", room).await?;
            let part = piece.split_to(room.min(piece.len()));
            if !part.is_empty() {
                let last = end && piece.is_empty();
                self.sending.send_data(part, last).map_err(other)?;
            }
        }
        Ok(())
    }

    /// Waits for the answer's head and returns its status.
    ///
    /// # Errors
    /// When the stream was reset or the connection is gone.
    pub async fn head(&mut self) -> io::Result<u16> {
        if let Some(answer) = self.answer.take() {
            let answer = async { answer.await.map_err(other) };
            let (head, body) = limited("reading the head", answer).await?.into_parts();
            self.status = head.status.as_u16();
            let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
            let fields = head.headers.iter();
            self.headers = fields.map(|(n, v)| (n.to_string(), text(v))).collect();
            self.body = Some(body);
        }
        Ok(self.status)
    }

    /// The first answer field of that name; after [`H2Stream::head`].
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The next DATA frame of the answer, `None` at its end.
    ///
    /// # Errors
    /// When the stream was reset or the connection is gone.
    pub async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.head().await?;
        let Some(body) = self.body.as_mut() else {
            return Ok(None);
        };
        let data = limited("reading the body", async {
            body.data().await.transpose().map_err(other)
        });
        let Some(piece) = data.await? else {
            return Ok(None);
        };
        body.flow_control()
            .release_capacity(piece.len())
            .map_err(other)?;
        Ok(Some(piece))
    }

    /// The complete answer.
    ///
    /// # Errors
    /// As [`H2Stream::chunk`].
    pub async fn reply(mut self) -> io::Result<Reply> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.chunk().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(Reply {
            status: self.status,
            headers: self.headers,
            body: whole.freeze(),
        })
    }

    /// Resets the stream (CANCEL); the connection lives on.
    pub fn reset(mut self) {
        self.sending.send_reset(Reason::CANCEL);
    }
}

fn other(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::other(error)
}
