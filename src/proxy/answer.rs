//! Replies of our own.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, header};
use parking_lot::Mutex;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use tollgate_filters::headers::anthropic::REQUEST_ID;
use tollgate_filters::reply::ErrorReply;
use tollgate_filters::route::Dialect;

use super::context::Context;
use super::downstream::write_bounded;
use super::exchange::{Exchange, Judgement, Reply};
use super::read::expects_continue;

/// After a refusal the rest of the request is read for at most this long, so that a client that is
/// still sending gets to read the refusal before the connection closes.
const LINGER: Duration = Duration::from_secs(2);

/// Who is answered: in which dialect, and under which id of the request.
#[derive(Clone, Debug)]
pub struct Addressee {
    /// The client's dialect.
    pub dialect: Dialect,
    /// Our id of the request.
    pub request_id: HeaderValue,
}

impl Addressee {
    /// Puts our id of the request where clients look for it.
    pub fn mark(&self, head: &mut ResponseHeader) -> Result<()> {
        head.insert_header("x-request-id", self.request_id.clone())?;
        if self.dialect == Dialect::Anthropic {
            head.insert_header(REQUEST_ID, self.request_id.clone())?;
        }
        Ok(())
    }

    /// Our id of the request, as text.
    pub fn id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }
}

/// The header of an error reply.
pub fn error_head(reply: &ErrorReply, body_len: usize, to: &Addressee) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(reply.status, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, "application/json")?;
    head.insert_header(header::CONTENT_LENGTH, body_len)?;
    to.mark(&mut head)?;
    if let Some(seconds) = reply.retry_after_s {
        head.insert_header(header::RETRY_AFTER, seconds)?;
    }
    Ok(head)
}

/// The header of a whole answer of ours.
pub fn whole_head(
    content_type: &'static str,
    body_len: usize,
    to: &Addressee,
) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(200, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, content_type)?;
    head.insert_header(header::CONTENT_LENGTH, body_len)?;
    to.mark(&mut head)?;
    Ok(head)
}

/// The header of an event stream that begins while the request still waits (SPEC 3.6).
pub fn stream_head(to: &Addressee) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(200, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, "text/event-stream")?;
    head.insert_header(header::CACHE_CONTROL, "no-cache")?;
    head.insert_header("x-accel-buffering", "no")?;
    // Without it an HTTP/1.1 answer would end with its connection.
    head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    to.mark(&mut head)?;
    Ok(head)
}

/// Answers a request that goes no further with an error, and ends its request body decently.
/// Returns what `request_filter` returns: the answer has been given.
pub async fn refuse(session: &mut Session, ctx: &mut Context, reply: &ErrorReply) -> Result<bool> {
    let judgement = match &ctx.exchange {
        Some(exchange) => exchange.lock().write_reply(reply),
        None => {
            ctx.early_status = reply.status;
            let to = ctx.addressee();
            let body = reply.body_for(to.dialect, to.id());
            let mut head = error_head(reply, body.len(), &to)?;
            if let Some(allow) = ctx.allow {
                head.insert_header(header::ALLOW, allow)?;
            }
            return write_early(session, head, body).await;
        }
    };
    if let Judgement::Write { tasks, .. } = judgement {
        write_bounded(session.as_downstream_mut(), tasks)
            .await
            .map_err(pingora::Error::into_down)?;
    }
    Ok(true)
}

/// Writes a whole answer of ours, then reads what is left of the request.
pub async fn write_early(session: &mut Session, head: ResponseHeader, body: Bytes) -> Result<bool> {
    let expects_continue = expects_continue(session.req_header());
    let downstream = session.as_downstream_mut();
    // An interim answer is the only one that can have been written before this one.
    let waits_for_continue = expects_continue && downstream.response_written().is_none();
    let unread = !downstream.is_body_done();
    if unread && waits_for_continue {
        // It will not send its body now; what follows on this connection would be ambiguous.
        downstream.set_keepalive(None);
    }
    downstream
        .write_response_header(Box::new(head))
        .await
        .map_err(pingora::Error::into_down)?;
    downstream
        .write_response_body(body, true)
        .await
        .map_err(pingora::Error::into_down)?;
    if unread && !waits_for_continue {
        let drained = tokio::time::timeout(LINGER, async {
            while let Ok(Some(_)) = downstream.read_request_body().await {}
            downstream.is_body_done()
        })
        .await
        .unwrap_or(false);
        if !drained {
            downstream.set_keepalive(None);
        }
    }
    Ok(true)
}

/// The last word to a client whose request failed upstream or on the way, by whatever means are
/// left: JSON, an event, or an abrupt end that no client takes for a complete answer. Returns the
/// status the client got; 0 = none.
pub async fn last_word(
    session: &mut Session,
    exchange: &Mutex<Exchange>,
    reply: &ErrorReply,
) -> u16 {
    let downstream = session.as_downstream_mut();
    let tasks = {
        let mut exchange = exchange.lock();
        if exchange.is_client_gone() || exchange.reply == Reply::Done {
            return exchange.status;
        }
        let begun = exchange.reply == Reply::Released && !exchange.takes_events();
        match (!begun).then(|| exchange.write_reply(reply)) {
            Some(Judgement::Write { tasks, .. }) => Some(tasks),
            _ => None,
        }
    };
    // Pingora closes the connection after an error; the client should be told.
    downstream.set_keepalive(None);
    match tasks {
        Some(tasks) => {
            if write_bounded(downstream, tasks).await.is_err() {
                exchange.lock().client_left(Instant::now());
            }
        }
        // Not waited for: an orderly end would flush first, to a client that may have stopped reading.
        None => {
            let _ = downstream.shutdown().now_or_never();
        }
    }
    exchange.lock().status
}
