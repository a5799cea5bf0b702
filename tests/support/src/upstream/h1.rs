//! HTTP/1.1, written by hand so that every framing, wrong ones included, can be produced.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWriteExt, Interest};

use super::{Shared, decide};
use crate::answer::{Answer, Early, Ending, Framing, Next, Pace, Reply, Response};
use crate::link::{Link, Peer};
use crate::received::{Received, Ticket};
use crate::wire::{Body, Head, Wire};

/// What becomes of the connection.
enum After {
    Keep,
    Close,
    Reset,
    /// The peer has closed or reset it.
    PeerLeft,
}

pub(super) async fn serve(link: Link, number: u64, shared: Arc<Shared>) {
    let Ok(peer) = Peer::of(&link).map(Arc::new) else {
        return;
    };
    let mut wire = Wire::new(link);
    while let Ok(Some(head)) = wire.head().await {
        let (request, mut body) = begin(head, number);
        let ticket = shared.log.start(&request, &peer);
        let keeps_alive = !request.says_close;
        let after = exchange(&mut wire, request.received, &mut body, &ticket, &shared).await;
        match after {
            After::PeerLeft => ticket.update(|entry| entry.peer_left = true),
            _ => ticket.update(|entry| entry.answered = true),
        }
        // The request is over before the connection is: who waits for an idle upstream may.
        drop(ticket);
        match after {
            After::Keep if keeps_alive => {}
            After::Keep | After::Close => {
                let _ = wire.link.shutdown().await;
                return;
            }
            After::Reset => return wire.link.reset_on_close(),
            After::PeerLeft => return,
        }
    }
}

struct Begun {
    received: Received,
    says_close: bool,
}

impl std::ops::Deref for Begun {
    type Target = Received;
    fn deref(&self) -> &Received {
        &self.received
    }
}

fn begin(head: Head, connection: u64) -> (Begun, Body) {
    let mut words = head.first_line.split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or_default();
    let is_1_0 = words.next().as_deref() == Some("HTTP/1.0");
    let body = match (head.is_chunked(), head.length()) {
        (true, _) => Body::Chunked(None),
        (false, Some(length)) => Body::Length(length),
        (false, None) => Body::Done,
    };
    let says_close = head.says_close() || is_1_0;
    let received = Received {
        connection,
        version: if is_1_0 {
            http::Version::HTTP_10
        } else {
            http::Version::HTTP_11
        },
        method,
        target,
        headers: head.fields,
        raw_head: head.raw,
        body: Bytes::new(),
        body_bytes: 0,
        complete: false,
        peer_left: false,
        answered: false,
    };
    let begun = Begun {
        received,
        says_close,
    };
    (begun, body)
}

async fn exchange(
    wire: &mut Wire,
    mut request: Received,
    body: &mut Body,
    ticket: &Ticket,
    shared: &Shared,
) -> After {
    let next = shared.next(&request);
    if let Next::Answer(answer) = &next
        && let Some(early) = answer.early
    {
        let answer = decide(next, &request);
        let after = give(wire, &answer, &request, early == Early::Close, ticket).await;
        return match (after, early) {
            (After::Keep, Early::Drain) => match read(wire, &mut request, body, ticket).await {
                true => After::Keep,
                false => After::PeerLeft,
            },
            (After::Keep, Early::Hold) => {
                hold(wire).await;
                After::PeerLeft
            }
            (After::Keep, Early::Close) => After::Close,
            (other, _) => other,
        };
    }
    let expects = request.header("expect");
    if expects.is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        && wire.write(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err()
    {
        return After::PeerLeft;
    }
    if !read(wire, &mut request, body, ticket).await {
        return After::PeerLeft;
    }
    let answer = decide(next, &request);
    // What a handler decided comes too late to be early.
    give(wire, &answer, &request, false, ticket).await
}

/// Reads the body into the request and its log entry; `false` = the peer left before its end.
async fn read(wire: &mut Wire, request: &mut Received, body: &mut Body, ticket: &Ticket) -> bool {
    let announced = match body {
        Body::Length(length) => usize::try_from(*length).unwrap_or_default(),
        _ => 0,
    };
    let mut whole = BytesMut::with_capacity(announced.min(256 << 20));
    let complete = loop {
        match wire.piece(body).await {
            Ok(Some(piece)) => {
                whole.extend_from_slice(&piece);
                ticket.update(|entry| entry.body_bytes = whole.len() as u64);
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    request.body = whole.freeze();
    request.body_bytes = request.body.len() as u64;
    request.complete = complete;
    ticket.update(|entry| {
        entry.body = request.body.clone();
        entry.body_bytes = request.body_bytes;
        entry.complete = complete;
    });
    complete
}

async fn give(
    wire: &mut Wire,
    answer: &Answer,
    request: &Received,
    closing: bool,
    ticket: &Ticket,
) -> After {
    if !answer.delay.is_zero() && gone(wire, tokio::time::sleep(answer.delay)).await {
        return After::PeerLeft;
    }
    if let Some(gate) = &answer.gate {
        gate.arrive();
        if gone(wire, gate.pass()).await {
            return After::PeerLeft;
        }
    }
    match &answer.reply {
        Reply::Response(response) => respond(wire, response, request, closing, ticket).await,
        Reply::CloseBeforeHeader => After::Close,
        Reply::ResetBeforeHeader => After::Reset,
        Reply::NeverAnswer | Reply::Echo => {
            wire.closed().await;
            After::PeerLeft
        }
    }
}

async fn respond(
    wire: &mut Wire,
    response: &Response,
    request: &Received,
    closing: bool,
    ticket: &Ticket,
) -> After {
    let is_head = request.method == "HEAD";
    let mut pending = head(response, closing).into_bytes();
    let chunked = response.framing == Framing::Chunked && !is_head;
    let at_once = matches!(response.pace, Pace::AtOnce);
    let pieces: &[Bytes] = if is_head { &[] } else { &response.pieces };
    for (index, piece) in pieces.iter().enumerate() {
        if (index > 0 || !at_once) && wire.write(&std::mem::take(&mut pending)).await.is_err() {
            return After::PeerLeft;
        }
        if !pass(wire, &response.pace, index).await {
            return After::PeerLeft;
        }
        if chunked {
            pending.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            pending.extend_from_slice(piece);
            pending.extend_from_slice(b"\r\n");
        } else {
            pending.extend_from_slice(piece);
        }
    }
    if let Pace::Gated { free, .. } = response.pace
        && pieces.len() <= free
        && (wire.write(&std::mem::take(&mut pending)).await.is_err()
            || !pass(wire, &response.pace, free).await)
    {
        return After::PeerLeft;
    }
    if chunked && response.ending == Ending::End {
        pending.extend_from_slice(b"0\r\n\r\n");
    }
    if is_head || ends_in_itself(response) {
        ticket.ends();
    }
    if wire.write(&pending).await.is_err() {
        return After::PeerLeft;
    }
    match response.ending {
        Ending::End if response.framing == Framing::Close => After::Close,
        Ending::End => After::Keep,
        Ending::HangUp => After::Close,
        Ending::Reset => After::Reset,
        Ending::Stall => {
            wire.closed().await;
            After::PeerLeft
        }
    }
}

/// Whether the bytes of the answer say where it ends, as they are sent.
fn ends_in_itself(response: &Response) -> bool {
    match response.framing {
        Framing::Chunked => response.ending == Ending::End,
        Framing::ContentLength(None) => true,
        Framing::ContentLength(Some(announced)) => {
            let actual: usize = response.pieces.iter().map(Bytes::len).sum();
            announced <= actual as u64
        }
        Framing::Close => false,
    }
}

fn head(response: &Response, closing: bool) -> String {
    let status = response.status;
    let reason = http::StatusCode::from_u16(status)
        .ok()
        .and_then(|code| code.canonical_reason())
        .unwrap_or("Unknown");
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in &response.headers {
        // Writing to a string cannot fail.
        let _ = write!(head, "{name}: {value}\r\n");
    }
    match response.framing {
        Framing::Chunked => head.push_str("transfer-encoding: chunked\r\n"),
        Framing::ContentLength(announced) => {
            let actual: usize = response.pieces.iter().map(Bytes::len).sum();
            let length = announced.unwrap_or(actual as u64);
            let _ = write!(head, "content-length: {length}\r\n");
        }
        Framing::Close => {}
    }
    if closing || response.framing == Framing::Close {
        head.push_str("connection: close\r\n");
    }
    head.push_str("\r\n");
    head
}

/// Waits for what comes before a piece; `false` = the peer left meanwhile.
async fn pass(wire: &mut Wire, pace: &Pace, index: usize) -> bool {
    match pace {
        Pace::AtOnce => true,
        Pace::Every(gap) if index == 0 || *gap == Duration::ZERO => true,
        Pace::Every(gap) => !gone(wire, tokio::time::sleep(*gap)).await,
        Pace::Gated { free, .. } if index < *free => true,
        Pace::Gated { gate, .. } => {
            gate.arrive();
            !gone(wire, gate.pass()).await
        }
    }
}

/// Whether the peer left before the future was done.
async fn gone(wire: &mut Wire, until: impl Future<Output = ()>) -> bool {
    tokio::select! {
        () = until => false,
        () = wire.closed() => true,
    }
}

/// Waits for the peer to leave without reading a byte: the socket's readiness tells.
async fn hold(wire: &mut Wire) {
    let tcp = wire.link.tcp();
    while let Ok(ready) = tcp.ready(Interest::READABLE | Interest::ERROR).await {
        if ready.is_read_closed() || ready.is_error() {
            return;
        }
        // Unread bytes make it ready all the time; look again now and then.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
