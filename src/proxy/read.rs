//! Reading the client's body: any size up to the limit, bounded in sum, decoded, held once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Version, header};
use pingora::Error;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use tollgate_filters::body::{self, BodyBuffer};
use tollgate_filters::reply::{ErrorReply, errors};

use super::exchange::HeldBody;
use crate::limits::bodies::BodyBudget;

/// Longest wait for the next piece of a body; Pingora has such a limit for HTTP/1 only.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a body could not be read.
pub enum ReadError {
    /// The client is answered with this.
    Refused(ErrorReply),
    /// The client has left.
    Gone(Box<Error>),
}

impl From<ErrorReply> for ReadError {
    fn from(reply: ErrorReply) -> ReadError {
        ReadError::Refused(reply)
    }
}

/// Reads and decodes the whole body.
pub async fn body(
    session: &mut Session,
    budget: &Arc<BodyBudget>,
    limit: usize,
) -> Result<HeldBody, ReadError> {
    let headers = &session.req_header().headers;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.trim().parse::<u64>().ok());
    // Several headers are one list (RFC 9110, 5.3).
    let encodings: Vec<_> = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .map(|v| String::from_utf8_lossy(v.as_bytes()))
        .collect();
    let encoding = (!encodings.is_empty()).then(|| encodings.join(","));
    let expects_continue = expects_continue(session.req_header());

    let mut hold = budget.hold();
    let mut buffer =
        BodyBuffer::new(limit, announced).map_err(|_| errors::body_too_large(limit))?;
    let downstream = session.as_downstream_mut();
    if expects_continue {
        // Pingora leaves this to whoever reads the body; and takes it for an answer that came
        // before the request was over, after which it would close the connection.
        let keepalive = downstream.get_keepalive();
        downstream
            .write_continue_response()
            .await
            .map_err(|e| ReadError::Gone(e.into_down()))?;
        downstream.set_keepalive(keepalive);
    }
    loop {
        let read = tokio::time::timeout(CHUNK_TIMEOUT, downstream.read_request_body());
        match read.await.map_err(|_| errors::body_unreadable())? {
            Ok(Some(chunk)) => {
                hold.grow(chunk.len())
                    .map_err(|_| errors::bodies_in_flight())?;
                buffer
                    .push(chunk)
                    .map_err(|_| errors::body_too_large(limit))?;
            }
            Ok(None) => break,
            Err(error) => {
                // Where the next request would begin is not known any more.
                downstream.set_keepalive(None);
                return Err(read_failure(error));
            }
        }
    }
    let mut bytes = buffer.into_bytes();
    if let Some(encoding) = encoding {
        // Off the worker: a few KiB may become the whole limit.
        bytes = tokio::task::spawn_blocking(move || decode(bytes, &encoding, limit))
            .await
            .map_err(|_| errors::internal_error())??;
        match bytes.len().checked_sub(hold.bytes()) {
            Some(more) => hold.grow(more).map_err(|_| errors::bodies_in_flight())?,
            None => hold.shrink_to(bytes.len()),
        }
    }
    if bytes.is_empty() {
        return Err(errors::body_empty().into());
    }
    Ok(HeldBody { bytes, hold })
}

/// Whether the client wants to be told to go on before it sends its body. HTTP/1.0 does not know
/// such an answer (RFC 9110, 10.1.1).
pub fn expects_continue(head: &RequestHeader) -> bool {
    head.version > Version::HTTP_10
        && head
            .headers
            .get(header::EXPECT)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn read_failure(error: Box<Error>) -> ReadError {
    use pingora::ErrorType::{ConnectionClosed, H2Error, ReadError as Broken};
    match error.etype() {
        ConnectionClosed | H2Error | Broken => ReadError::Gone(error.into_down()),
        _ => ReadError::Refused(errors::body_unreadable()),
    }
}

fn decode(bytes: Bytes, encoding: &str, limit: usize) -> Result<Bytes, ErrorReply> {
    body::decode(bytes, encoding, limit).map_err(|error| errors::body_encoding(&error, limit))
}
