//! HTTP/2 through the `h2` crate: one task a stream.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{Shared, decide};
use crate::answer::{Answer, Early, Ending, Framing, Next, Pace, Reply, Response};
use crate::link::{Link, Peer};
use crate::received::{Received, Ticket};

/// Windows large enough that uploads of many MiB do not wait for updates.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How long a connection that is to break is still driven, so that what was sent before reaches
/// the peer.
const FLUSH: std::time::Duration = std::time::Duration::from_millis(50);

/// What becomes of the stream.
enum After {
    Done,
    /// The whole connection breaks.
    Break,
    PeerLeft,
}

pub(super) async fn serve(link: Link, number: u64, shared: Arc<Shared>) {
    let Ok(peer) = Peer::of(&link).map(Arc::new) else {
        return;
    };
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(10_000)
        .handshake::<_, Bytes>(link);
    let Ok(mut connection) = handshake.await else {
        return;
    };
    let breaks = Arc::new(Notify::new());
    // Dropped with the connection: a stream does not outlive it.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { break };
                let (from, shared, breaks) = ((number, peer.clone()), shared.clone(), breaks.clone());
                streams.spawn(exchange(request, respond, from, shared, breaks));
            }
            () = breaks.notified() => {
                let _ = tokio::time::timeout(FLUSH, poll_fn(|cx| connection.poll_closed(cx))).await;
                return;
            }
            Some(_) = streams.join_next() => {}
        }
    }
    // The peer closed the connection: let the streams find out, so that their entries say so.
    drop(connection);
    while streams.join_next().await.is_some() {}
}

async fn exchange(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (number, peer): (u64, Arc<Peer>),
    shared: Arc<Shared>,
    breaks: Arc<Notify>,
) {
    let (parts, mut stream) = request.into_parts();
    let mut request = begin(&parts, number);
    let ticket = shared.log.start(&request, &peer);
    let next = shared.next(&request);
    let early = match &next {
        Next::Answer(answer) => answer.early,
        Next::Handler(_) => None,
    };
    let after = match early {
        Some(early) => {
            let answer = decide(next, &request);
            let after = give(&mut respond, &answer, &ticket).await;
            match (&after, early) {
                (After::Done, Early::Drain) => {
                    match read(&mut stream, &mut request, &ticket).await {
                        true => After::Done,
                        false => After::PeerLeft,
                    }
                }
                (After::Done, Early::Hold) => {
                    left(&mut respond).await;
                    After::PeerLeft
                }
                _ => after,
            }
        }
        None => match read(&mut stream, &mut request, &ticket).await {
            true => give(&mut respond, &decide(next, &request), &ticket).await,
            false => After::PeerLeft,
        },
    };
    match after {
        After::PeerLeft => ticket.update(|entry| entry.peer_left = true),
        _ => ticket.update(|entry| entry.answered = true),
    }
    drop(ticket);
    if matches!(after, After::Break) {
        breaks.notify_one();
    }
}

fn begin(parts: &http::request::Parts, connection: u64) -> Received {
    let mut headers = Vec::with_capacity(parts.headers.len() + 2);
    for (name, value) in [
        (":authority", parts.uri.authority().map(|a| a.to_string())),
        (":scheme", parts.uri.scheme_str().map(str::to_owned)),
    ] {
        headers.extend(value.map(|value| (name.to_owned(), value)));
    }
    headers.extend(parts.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    }));
    let target = parts.uri.path_and_query();
    Received {
        connection,
        version: http::Version::HTTP_2,
        method: parts.method.to_string(),
        target: target.map(ToString::to_string).unwrap_or_default(),
        headers,
        raw_head: Bytes::new(),
        body: Bytes::new(),
        body_bytes: 0,
        complete: false,
        peer_left: false,
        answered: false,
    }
}

async fn read(stream: &mut RecvStream, request: &mut Received, ticket: &Ticket) -> bool {
    let mut whole = BytesMut::new();
    let complete = loop {
        match stream.data().await {
            Some(Ok(piece)) => {
                whole.extend_from_slice(&piece);
                ticket.update(|entry| entry.body_bytes = whole.len() as u64);
                if stream.flow_control().release_capacity(piece.len()).is_err() {
                    break false;
                }
            }
            Some(Err(_)) => break false,
            None => break true,
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

async fn give(respond: &mut SendResponse<Bytes>, answer: &Answer, ticket: &Ticket) -> After {
    let ready = async {
        if !answer.delay.is_zero() {
            tokio::time::sleep(answer.delay).await;
        }
        if let Some(gate) = &answer.gate {
            gate.arrive();
            gate.pass().await;
        }
    };
    tokio::select! {
        () = ready => {}
        () = left(respond) => return After::PeerLeft,
    }
    match &answer.reply {
        Reply::Response(response) => send(respond, response, ticket).await,
        Reply::CloseBeforeHeader => After::Break,
        Reply::ResetBeforeHeader => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            After::Done
        }
        Reply::NeverAnswer | Reply::Echo => {
            left(respond).await;
            After::PeerLeft
        }
    }
}

/// Ends when the peer reset the stream or the connection is gone.
async fn left(respond: &mut SendResponse<Bytes>) {
    // Both outcomes, a reason or an error of the connection, mean the same here.
    let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
}

async fn send(respond: &mut SendResponse<Bytes>, response: &Response, ticket: &Ticket) -> After {
    let pieces = &response.pieces;
    let ends_with_head = pieces.is_empty()
        && response.ending == Ending::End
        && !matches!(response.pace, Pace::Gated { .. });
    if ends_with_head {
        ticket.ends();
    }
    let Ok(mut stream) = respond.send_response(head(response), ends_with_head) else {
        return After::PeerLeft;
    };
    for (index, piece) in pieces.iter().enumerate() {
        if !pass(&mut stream, &response.pace, index).await {
            return After::PeerLeft;
        }
        let gated = matches!(response.pace, Pace::Gated { free, .. } if pieces.len() <= free);
        let last = index + 1 == pieces.len() && response.ending == Ending::End && !gated;
        if last {
            ticket.ends();
        }
        if !write(&mut stream, piece.clone(), last).await {
            return After::PeerLeft;
        }
    }
    if let Pace::Gated { free, .. } = response.pace
        && pieces.len() <= free
    {
        if !pass(&mut stream, &response.pace, free).await {
            return After::PeerLeft;
        }
        ticket.ends();
        if response.ending == Ending::End && stream.send_data(Bytes::new(), true).is_err() {
            return After::PeerLeft;
        }
    }
    match response.ending {
        Ending::End => After::Done,
        Ending::HangUp => After::Break,
        Ending::Reset => {
            // Data still queued is thrown away by a reset; let the connection send it first.
            tokio::time::sleep(FLUSH).await;
            stream.send_reset(Reason::INTERNAL_ERROR);
            After::Done
        }
        Ending::Stall => {
            let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
            After::PeerLeft
        }
    }
}

fn head(response: &Response) -> http::Response<()> {
    let mut head = http::Response::builder().status(response.status);
    for (name, value) in &response.headers {
        head = head.header(name, value);
    }
    if let Framing::ContentLength(announced) = response.framing {
        let actual: usize = response.pieces.iter().map(Bytes::len).sum();
        head = head.header("content-length", announced.unwrap_or(actual as u64));
    }
    head.body(()).expect("a planned answer has a valid head")
}

/// Sends one piece under the peer's flow control; `false` = the peer left.
async fn write(stream: &mut SendStream<Bytes>, mut piece: Bytes, last: bool) -> bool {
    if piece.is_empty() {
        return stream.send_data(piece, last).is_ok();
    }
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return false;
        };
        let part = piece.split_to(room.min(piece.len()));
        let end = last && piece.is_empty();
        if !part.is_empty() && stream.send_data(part, end).is_err() {
            return false;
        }
    }
    true
}

/// Waits for what comes before a piece; `false` = the peer left meanwhile.
async fn pass(stream: &mut SendStream<Bytes>, pace: &Pace, index: usize) -> bool {
    let ready = async {
        match pace {
            Pace::AtOnce => {}
            Pace::Every(_) if index == 0 => {}
            Pace::Every(gap) => tokio::time::sleep(*gap).await,
            Pace::Gated { free, .. } if index < *free => {}
            Pace::Gated { gate, .. } => {
                gate.arrive();
                gate.pass().await;
            }
        }
    };
    tokio::select! {
        biased;
        () = ready => true,
        _ = poll_fn(|cx| stream.poll_reset(cx)) => false,
    }
}
