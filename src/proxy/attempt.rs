//! One attempt: an account, its slot, and the request as that account gets it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use http::{HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType, Result};
use tollgate_filters::beta::BetaBlocked;
use tollgate_filters::edits::Edits;
use tollgate_filters::edits::anthropic::{max_tokens, tidy};
use tollgate_filters::headers::openai_request;
use tollgate_filters::rewrite::{Changes, Places, rewrite};

use super::context::{Asked, Context, SentAttempt};
use super::exchange::Judged;
use super::message_queue::Turn;
use super::relay::credential_kind;
use crate::billing::journal::JournalError;
use crate::domain::{Account, Platform};
use crate::providers::target::Target;
use crate::providers::{anthropic, antigravity};
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
    /// The account's slot, where one is taken.
    pub lease: Option<Lease>,
    /// The turn of its message, where those are queued: until the upstream has accepted it.
    pub turn: Option<Turn>,
    /// The model's name at this account.
    pub upstream_model: String,
    /// Path at the upstream.
    pub path: String,
    /// The beta features it may ask for there, as their header's value.
    pub betas: Option<HeaderValue>,
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
        let mut to = match self.account.platform {
            Platform::Anthropic | Platform::Antigravity => self.anthropic_header(client)?,
            Platform::OpenAi | Platform::Gemini => self.openai_header(client)?,
        };
        if !to.headers.contains_key(header::CONTENT_TYPE) {
            to.insert_header(header::CONTENT_TYPE, "application/json")?;
        }
        to.insert_header(header::HOST, self.target.authority.as_str())?;
        to.insert_header(header::CONTENT_LENGTH, body_len)?;
        Ok(to)
    }

    fn openai_header(&self, client: &RequestHeader) -> Result<RequestHeader> {
        let mut to = bare_header(client, &self.path)?;
        for (name, value) in openai_request(&client.headers) {
            to.append_header(name, value)?;
        }
        let key = self.account.credentials.api_key.expose();
        to.insert_header(header::AUTHORIZATION, credential(format!("Bearer {key}"))?)?;
        Ok(to)
    }

    fn anthropic_header(&self, client: &RequestHeader) -> Result<RequestHeader> {
        use tollgate_filters::headers::anthropic::{BETA, VERSION, relayed, request, version};

        let (path, proof) = match self.account.platform {
            Platform::Antigravity => (
                Cow::Borrowed(&*self.path),
                antigravity::credential(&self.account),
            ),
            _ => (
                Cow::Owned(format!("{}?{}", self.path, anthropic::QUERY)),
                anthropic::credential(&self.account),
            ),
        };
        let mut to = bare_header(client, &path)?;
        if anthropic::passes_through(&self.account) {
            for (name, value) in relayed(&client.headers) {
                to.append_header(name, value)?;
            }
        } else {
            for (name, value) in request(&client.headers) {
                to.append_header(name, value)?;
            }
            if let Some(betas) = &self.betas {
                to.insert_header(BETA, betas.clone())?;
            }
        }
        if !to.headers.contains_key(VERSION) {
            to.insert_header(VERSION, version(&client.headers))?;
        }
        let Some((name, value)) = proof else {
            return Err(Error::explain(
                ErrorType::InvalidHTTPHeader,
                "the account has no credential",
            ));
        };
        to.insert_header(name, credential(value)?)?;
        Ok(to)
    }

    /// The body as this account gets it: the client's bytes, but for what `asked` has to be called there, an output
    /// limit that was lowered, and what the provider would refuse.
    fn body(&self, body: &Bytes, asked: &Asked, output_limit: Option<u64>) -> Vec<Bytes> {
        let model = (self.upstream_model != asked.requested_model).then_some(&*self.upstream_model);
        match self.account.platform {
            Platform::Anthropic | Platform::Antigravity => {
                let mut edits = Edits::default();
                if let Some(model) = model {
                    edits.string(&asked.model_spans, model);
                }
                if let Some(lowered) = output_limit.and_then(|limit| max_tokens(body, limit)) {
                    edits.extend(&lowered);
                }
                if !anthropic::passes_through(&self.account) {
                    edits.extend(&tidy(body));
                }
                edits.pieces(body)
            }
            Platform::OpenAi | Platform::Gemini => {
                let places = Places {
                    model: &asked.model_spans,
                    output_limit: &asked.output_limit_spans,
                };
                let changes = Changes {
                    model,
                    output_limit,
                };
                match changes == Changes::default() {
                    true => vec![body.clone()],
                    false => rewrite(body, places, changes),
                }
            }
        }
    }
}

/// The beta features that a request may ask for at `account`, by the operator's rules: the value of their header,
/// `None` without any. Clients of an account that passes everything through say for themselves.
///
/// # Errors
/// The one for which the whole request is refused.
pub fn betas(
    client: &RequestHeader,
    ctx: &Context,
    account: &Account,
) -> std::result::Result<Option<HeaderValue>, BetaBlocked> {
    let Some(asked) = &ctx.asked else {
        return Ok(None);
    };
    let has_betas = matches!(
        account.platform,
        Platform::Anthropic | Platform::Antigravity
    );
    if !has_betas || anthropic::passes_through(account) {
        return Ok(None);
    }
    let model = account.upstream_model(&asked.model);
    let policy = &ctx.config.gateway.beta_policy;
    policy.apply(&client.headers, credential_kind(account), model)
}

/// A header with nothing in it yet.
fn bare_header(client: &RequestHeader, path: &str) -> Result<RequestHeader> {
    let mut to = RequestHeader::build_no_case(client.method.clone(), path.as_bytes(), Some(12))?;
    to.set_version(client.version);
    Ok(to)
}

/// A credential as the value of a header, which is kept out of logs.
fn credential(text: String) -> Result<HeaderValue> {
    let mut credential = HeaderValue::from_maybe_shared(Bytes::from(text)).map_err(|_| {
        Error::explain(
            ErrorType::InvalidHTTPHeader,
            "the account's credential has characters that a header cannot hold",
        )
    })?;
    credential.set_sensitive(true);
    Ok(credential)
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
    let pieces = pieces(attempt.body(&body.bytes, asked, exchange.output_limit));
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

/// The parts of a body as they are handed to the connection.
pub fn pieces(parts: Vec<Bytes>) -> VecDeque<Bytes> {
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
            let pieces = pieces(vec![body.clone()]);
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
            let pieces = pieces(rewrite(&bytes, places, changes));
            let expected = body.replace(r#""a""#, r#""gpt-5""#).replacen(
                '{',
                r#"{"max_output_tokens":16,"#,
                1,
            );
            assert_eq!(joined(&pieces), expected.as_bytes());
        }
    }
}
