//! One attempt: an account, its slot, and the request as that account gets it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use http::{HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType, Result};
use tollgate_filters::headers::openai_request;
use tollgate_filters::rewrite::{Changes, Places, rewrite};

use super::context::{Context, SentAttempt};
use super::exchange::Judged;
use crate::billing::journal::JournalError;
use crate::domain::Account;
use crate::providers::target::Target;
use crate::scheduler::Pool;
use crate::state::Lease;

/// Up to here the pieces of a body are joined: one write costs less than three.
const JOIN_LIMIT: usize = 64 << 10;
/// Large bodies go out in slices of this size, so that an early answer is noticed between them.
const SLICE: usize = 256 << 10;

/// One try on one account.
pub struct Attempt {
    /// The account.
    pub account: Arc<Account>,
    /// Where its requests go.
    pub target: Arc<Target>,
    /// The address chosen for this attempt.
    pub address: SocketAddr,
    /// The account's slot.
    pub lease: Lease,
    /// The model's name at this account.
    pub upstream_model: String,
    /// Path at the upstream.
    pub path: String,
    /// Among which accounts it was chosen.
    pub pool: Pool,
    /// What its answer is judged by.
    pub judged: Judged,
    /// When it began.
    pub started: Instant,
    /// The same by the clock on the wall, to which conditions are compared.
    pub began: DateTime<Utc>,
    /// Whether the connection had been used before.
    pub reused: bool,
    /// Whether the request has been handed to the connection.
    pub sent: bool,
}

impl Attempt {
    /// What the record says of it.
    pub fn as_sent(&self) -> SentAttempt {
        SentAttempt {
            account: self.account.clone(),
            upstream_model: self.upstream_model.clone(),
            path: self.path.clone(),
        }
    }

    /// The request header for this account: the client's allowed headers, the account's credential.
    pub fn header(&self, client: &RequestHeader, body_len: usize) -> Result<RequestHeader> {
        let mut to =
            RequestHeader::build_no_case(client.method.clone(), self.path.as_bytes(), Some(12))?;
        to.set_version(client.version);
        let mut has_type = false;
        for (name, value) in openai_request(&client.headers) {
            has_type |= name == header::CONTENT_TYPE;
            to.append_header(name, value)?;
        }
        if !has_type {
            to.insert_header(header::CONTENT_TYPE, "application/json")?;
        }
        to.insert_header(header::HOST, self.target.authority.as_str())?;
        to.insert_header(header::CONTENT_LENGTH, body_len)?;
        let key = self.account.credentials.api_key.expose();
        let mut credential = HeaderValue::from_maybe_shared(Bytes::from(format!("Bearer {key}")))
            .map_err(|_| {
            pingora::Error::explain(
                pingora::ErrorType::InvalidHTTPHeader,
                "the account's credential has characters that a header cannot hold",
            )
        })?;
        credential.set_sensitive(true);
        to.insert_header(header::AUTHORIZATION, credential)?;
        Ok(to)
    }
}

/// Makes the request of the context's attempt ready to be sent: its header, its body laid out for the pump,
/// and a note of it in the journal, without which nothing is sent (the inner error).
pub fn prepare(
    request: &mut RequestHeader,
    ctx: &mut Context,
) -> Result<std::result::Result<(), JournalError>> {
    let missing = || Error::new_in(ErrorType::InternalError);
    let (Some(attempt), Some(exchange), Some(asked)) =
        (&mut ctx.attempt, &ctx.exchange, &ctx.asked)
    else {
        return Err(missing());
    };
    let mut exchange = exchange.lock();
    let body = exchange.body.as_ref().ok_or_else(missing)?;
    let model =
        (attempt.upstream_model != asked.requested_model).then_some(&*attempt.upstream_model);
    let places = Places {
        model: &asked.model_spans,
        output_limit: &asked.output_limit_spans,
    };
    let changes = Changes {
        model,
        output_limit: exchange.output_limit,
    };
    let pieces = pieces(&body.bytes, places, changes);
    let len = pieces.iter().map(Bytes::len).sum();
    *request = attempt.header(request, len)?;
    if let Some(settlement) = &mut exchange.settlement
        && let Err(error) = settlement.sent(attempt.as_sent(), &ctx.tries)
    {
        return Ok(Err(error));
    }
    exchange.begin_attempt(pieces, attempt.judged.clone(), Instant::now());
    attempt.sent = true;
    Ok(Ok(()))
}

/// The body as an account gets it, in pieces: the client's bytes, except for the model's name.
pub fn pieces(body: &Bytes, places: Places<'_>, changes: Changes<'_>) -> VecDeque<Bytes> {
    let parts = match changes == Changes::default() {
        true => vec![body.clone()],
        false => rewrite(body, places, changes),
    };
    let len: usize = parts.iter().map(Bytes::len).sum();
    if len <= JOIN_LIMIT && parts.len() > 1 {
        let mut joined = BytesMut::with_capacity(len);
        for part in &parts {
            joined.extend_from_slice(part);
        }
        return VecDeque::from([joined.freeze()]);
    }
    let mut pieces = VecDeque::with_capacity(parts.len() + len / SLICE);
    for mut part in parts {
        while part.len() > SLICE {
            pieces.push_back(part.split_to(SLICE));
        }
        if !part.is_empty() {
            pieces.push_back(part);
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(pieces: &VecDeque<Bytes>) -> Vec<u8> {
        pieces.iter().flatten().copied().collect()
    }

    #[test]
    fn pieces_are_the_body_whatever_its_size() {
        for size in [
            1,
            1024,
            JOIN_LIMIT,
            JOIN_LIMIT + 1,
            SLICE,
            SLICE + 1,
            3 * SLICE + 7,
        ] {
            let body = Bytes::from(vec![b'x'; size]);
            let pieces = pieces(&body, Places::default(), Changes::default());
            assert_eq!(joined(&pieces), body, "{size}");
            assert!(pieces.iter().all(|p| !p.is_empty() && p.len() <= SLICE));
        }
    }

    #[test]
    fn a_mapped_model_changes_nothing_else() {
        let filler = "y".repeat(JOIN_LIMIT);
        for body in [
            r#"{"model":"a","input":"hi"}"#.to_owned(),
            format!(r#"{{"input":"{filler}","model":"a"}}"#),
        ] {
            let at = body.find(r#""a""#).unwrap();
            let bytes = Bytes::from(body.clone());
            let spans = std::iter::once(at..at + 3).collect::<Vec<_>>();
            let places = Places {
                model: &spans,
                output_limit: &[],
            };
            let changes = Changes {
                model: Some("gpt-5"),
                output_limit: Some(16),
            };
            let pieces = pieces(&bytes, places, changes);
            let expected = body.replace(r#""a""#, r#""gpt-5""#).replacen(
                '{',
                r#"{"max_output_tokens":16,"#,
                1,
            );
            assert_eq!(joined(&pieces), expected.as_bytes());
        }
    }
}
