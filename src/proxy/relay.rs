//! How one upstream answer is treated: relayed as a stream, relayed as it is, collected because it
//! has to be changed as a whole, or held back because it is an error.

use std::time::{Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use tollgate_filters::headers::{self, anthropic};
use tollgate_filters::peek;
use tollgate_filters::reply::{ErrorReply, errors};
use tollgate_filters::route::Dialect;
use tollgate_filters::sse::{SseFramer, SseScanner, single_data};
use tollgate_filters::usage::openai::{Seen, Terminal};
use tollgate_filters::usage::{Failure as Failed, TokenUsage};
use tollgate_filters::verdict::{self, Cooldowns, CredentialKind, Judge, Reading, Shape, Verdict};

use super::answer::Addressee;
use super::exchange::Failure;
use super::fold;
use super::observe::Observer;
use crate::domain::{Account, AccountType, Platform};

/// Longest event a stream may hold. The reference allows 500 MiB; an image in an event is some 20.
const EVENT_LIMIT: usize = 128 << 20;
/// Held back of a stream before its first real output; a preamble is a few KiB.
const PREAMBLE_LIMIT: usize = 1 << 20;
/// Read of an upstream's error body (SPEC 8.6).
const REFUSAL_LIMIT: usize = 2 << 20;
/// Kept of a JSON answer, to read its usage or to rewrite it (SPEC 9.0).
const COLLECT_LIMIT: usize = 128 << 20;

/// Tells a client that its output limit was lowered to what can be paid for, and to what.
pub const OUTPUT_LIMIT: &str = "x-tollgate-max-output-tokens";

/// What was seen of an attempt's answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Upstream status; 0 = no header came.
    pub status: u16,
    /// When the header came.
    pub header_at: Option<Instant>,
    /// When the first real output came.
    pub first_token_at: Option<Instant>,
    /// The provider's own request id.
    pub upstream_request_id: Option<String>,
    /// As reported.
    pub usage: Option<TokenUsage>,
    /// The output in it is an estimate: the answer broke off before it was told.
    pub usage_estimated: bool,
    /// Bytes of generated text seen, for an estimate.
    pub output_bytes: u64,
    /// Images produced.
    pub image_count: u32,
    /// The response's own id.
    pub response_id: Option<String>,
    /// Whether the answer reached its own end.
    pub complete: bool,
    /// Whether the provider ended it with a failure of its own.
    pub failed: bool,
}

/// What the treatment depends on beside the header.
pub struct RelayRequest {
    /// The client asked for a stream.
    pub stream: bool,
    /// Our own stream header is out already.
    pub preamble_out: bool,
    /// The name to put back into the answer, when the account calls the model something else.
    pub client_model: Option<String>,
    /// Who gets the answer. The upstream speaks the same dialect.
    pub to: Addressee,
    /// The output limit that the request was sent with, where we have lowered it.
    pub output_limit: Option<u64>,
}

/// The treatment of the current attempt's answer.
pub enum Relay {
    /// No header yet.
    Awaited,
    /// A status of 400 and above, or a redirect: held back whole.
    Refused(Refusal),
    /// An event stream for a client that asked for one.
    Stream(Box<StreamRelay>),
    /// Bytes pass as they come.
    Plain(PlainRelay),
    /// Collected, changed, then released.
    Collect(Collected),
}

impl Relay {
    /// Chooses the treatment and turns `head` into what the client gets.
    pub fn begin(head: &mut ResponseHeader, request: RelayRequest, answer: &mut Answer) -> Relay {
        let status = head.status.as_u16();
        let dialect = request.to.dialect;
        answer.upstream_request_id = match dialect {
            Dialect::Anthropic => text(&head.headers, anthropic::REQUEST_ID.as_str()),
            Dialect::OpenAi | Dialect::Google => None,
        }
        .or_else(|| text(&head.headers, "x-request-id"));
        if !(200..300).contains(&status) {
            let refusal = Refusal::new(head, &request, answer);
            return Relay::Refused(refusal);
        }
        let is_events = has_type(&head.headers, "text/event-stream");
        let is_json = has_type(&head.headers, "application/json");
        let encoded = head.headers.contains_key(header::CONTENT_ENCODING);
        let limits = match is_events && request.stream {
            true => limit_headers(&head.headers),
            false => HeaderMap::new(),
        };
        client_head(head, &request, answer);
        if is_events && request.stream && !encoded {
            let _ = head.insert_header(header::CACHE_CONTROL, "no-cache");
            // Tells nginx and others not to collect the stream.
            let _ = head.insert_header("x-accel-buffering", "no");
            head.remove_header(&header::CONTENT_LENGTH);
            let stream = StreamRelay::new(dialect, request.client_model, limits);
            return Relay::Stream(Box::new(stream));
        }
        let change = if encoded && !request.preamble_out {
            None
        } else if is_events && !encoded {
            Some(Change::FoldStream)
        } else if request.preamble_out {
            Some(Change::ToEvent)
        } else if is_json && request.client_model.is_some() {
            Some(Change::Nothing)
        } else {
            None
        };
        match change {
            Some(change) => Relay::Collect(Collected {
                dialect,
                head: Some(Box::new(head.clone())),
                change,
                client_model: request.client_model,
                parts: Parts::default(),
            }),
            None => Relay::Plain(PlainRelay {
                dialect,
                held: Vec::new(),
                expected: head
                    .headers
                    .get(header::CONTENT_LENGTH)
                    .and_then(|len| len.to_str().ok()?.parse().ok()),
                received: 0,
                len: 0,
                parts: (is_json && !encoded).then(Parts::default),
            }),
        }
    }

    /// Looks at a piece of the body, and takes out or changes what is not to pass as it is.
    pub fn observe(&mut self, body: &mut Option<Bytes>, answer: &mut Answer, now: Instant) {
        let Some(bytes) = body.as_ref().filter(|b| !b.is_empty()) else {
            return;
        };
        match self {
            Relay::Awaited => {}
            Relay::Refused(refusal) => {
                refusal.push(bytes);
                *body = None;
            }
            Relay::Stream(stream) => stream.observe(body, answer, now),
            Relay::Plain(plain) => {
                answer.first_token_at.get_or_insert(now);
                plain.len += bytes.len() as u64;
                plain.received += bytes.len() as u64;
                if let Some(parts) = &mut plain.parts {
                    parts.push(bytes);
                }
            }
            Relay::Collect(collected) => {
                answer.first_token_at.get_or_insert(now);
                collected.parts.push(bytes);
                *body = None;
            }
        }
    }

    /// The upstream has said everything (`whole`) or was cut off. Returns bytes still to be sent.
    /// A second call changes nothing.
    pub fn finish(&mut self, answer: &mut Answer, whole: bool) -> Option<Bytes> {
        match self {
            Relay::Stream(stream) => stream.finish(answer, whole),
            Relay::Plain(plain) => {
                answer.complete |= whole;
                let len = std::mem::take(&mut plain.len);
                let json = plain.parts.take().and_then(Parts::into_bytes);
                let readable = json.is_some();
                if let Some(json) = json {
                    read_json(plain.dialect, &json, answer);
                }
                if answer.usage.is_none() && answer.output_bytes == 0 && !(whole && readable) {
                    // Cut off before it could say, or nothing we can read: what came is the best
                    // there is.
                    answer.output_bytes = len;
                }
                None
            }
            Relay::Awaited | Relay::Refused(_) | Relay::Collect(_) => None,
        }
    }

    /// Brings `answer` up to what has been seen so far, while more may come.
    pub fn look(&mut self, answer: &mut Answer) {
        match self {
            Relay::Stream(stream) => stream.observer.tell(answer),
            Relay::Plain(plain) if plain.is_whole() => drop(self.finish(answer, true)),
            _ => {}
        }
    }

    /// Whether all of an answer has come whose length was told.
    pub fn is_whole(&self) -> bool {
        matches!(self, Relay::Plain(plain) if plain.is_whole())
    }

    /// Whether the client stands at the end of a frame of an event stream.
    pub fn at_frame_end(&self) -> bool {
        match self {
            Relay::Stream(stream) => stream.at_frame_end(),
            _ => true,
        }
    }

    /// Whether an event stream is being relayed.
    pub fn is_stream(&self) -> bool {
        matches!(self, Relay::Stream(_))
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    // ASCII, or `to_str` refuses it.
    let value = headers.get(name)?.to_str().ok()?;
    // Recorded and logged: bounded.
    Some(value[..value.len().min(128)].to_owned())
}

/// The headers by which a provider says what is left of a limit.
fn limit_headers(headers: &HeaderMap) -> HeaderMap {
    const BEGINNINGS: [&str; 3] = ["x-codex-", "anthropic-ratelimit-", "retry-after"];
    let mut limits = HeaderMap::new();
    for (name, value) in headers {
        if BEGINNINGS.iter().any(|b| name.as_str().starts_with(b)) {
            limits.append(name, value.clone());
        }
    }
    limits
}

fn has_type(headers: &HeaderMap, wanted: &str) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| {
            v.split(';')
                .next()
                .is_some_and(|v| v.trim().eq_ignore_ascii_case(wanted))
        })
}

/// Keeps the headers a client may see and adds our own.
fn client_head(head: &mut ResponseHeader, request: &RelayRequest, answer: &Answer) {
    // The version is each connection's own; one of HTTP/2 cannot be written to HTTP/1.1.
    head.set_version(Version::HTTP_11);
    let is_allowed = match request.to.dialect {
        Dialect::Anthropic => anthropic::is_response_header_allowed,
        Dialect::OpenAi | Dialect::Google => headers::is_response_header_allowed,
    };
    let unwanted: Vec<_> = head
        .headers
        .keys()
        .filter(|name| {
            // A body that passes untouched keeps its length; framing is Pingora's own matter.
            !is_allowed(name)
                && **name != header::CONTENT_LENGTH
                && **name != header::TRANSFER_ENCODING
        })
        .cloned()
        .collect();
    for name in unwanted {
        head.remove_header(&name);
    }
    let _ = request.to.mark(head);
    if let Some(id) = &answer.upstream_request_id {
        let _ = head.insert_header("x-upstream-request-id", id.as_str());
    }
    if let Some(limit) = request.output_limit {
        let _ = head.insert_header(OUTPUT_LIMIT, limit);
    }
}

fn read_json(dialect: Dialect, json: &[u8], answer: &mut Answer) {
    let mut observer = Observer::of(dialect);
    observer.json(json);
    observer.tell(answer);
}

/// Puts the client's name for the model into a JSON answer, wherever `path` leads.
fn with_client_model(json: &Bytes, path: &[&str], client_model: &str) -> Option<Vec<Bytes>> {
    let span = peek::find_string_at(json, path)?;
    Some(peek::splice(json, &[span], client_model))
}

fn joined(pieces: Vec<Bytes>) -> Bytes {
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in &pieces {
        whole.extend_from_slice(piece);
    }
    whole.freeze()
}

/// Pieces of a body, up to a limit.
#[derive(Default)]
pub struct Parts {
    pieces: Vec<Bytes>,
    len: usize,
    too_large: bool,
}

impl Parts {
    fn push(&mut self, piece: &Bytes) {
        self.len += piece.len();
        if self.len > COLLECT_LIMIT {
            self.too_large = true;
            self.pieces = Vec::new();
        } else {
            self.pieces.push(piece.clone());
        }
    }

    fn into_bytes(mut self) -> Option<Bytes> {
        match (self.too_large, self.pieces.len()) {
            (true, _) => None,
            (false, 1) => self.pieces.pop(),
            (false, _) => Some(joined(self.pieces)),
        }
    }
}

/// An answer whose bytes pass as they come.
pub struct PlainRelay {
    dialect: Dialect,
    /// The header, until the first byte of the body has come.
    pub held: Vec<HttpTask>,
    /// Its length, where the upstream said it: then a client knows the end before the upstream ends.
    expected: Option<u64>,
    /// Bytes of the body so far.
    received: u64,
    /// Of those, not accounted for as an estimate yet.
    len: u64,
    /// A copy (by reference) of a JSON body, for its usage.
    parts: Option<Parts>,
}

impl PlainRelay {
    fn is_whole(&self) -> bool {
        self.expected
            .is_some_and(|expected| self.received >= expected)
    }
}

// ---- streams

/// An event stream on its way to the client.
pub struct StreamRelay {
    /// Held back until the first real output.
    pub held: Vec<HttpTask>,
    /// Headers that may say how long a limit lasts; mostly none.
    limits: HeaderMap,
    scanner: SseScanner,
    observer: Observer,
    rewrite: Option<Rewrite>,
    view: View,
    failed_first: Option<Failed>,
    /// Set at the end: whether it came in the middle of a frame.
    finished: Option<MidFrame>,
}

/// Whether the client stands in the middle of a frame.
type MidFrame = bool;

impl StreamRelay {
    fn new(dialect: Dialect, client_model: Option<String>, limits: HeaderMap) -> StreamRelay {
        StreamRelay {
            held: Vec::new(),
            limits,
            scanner: SseScanner::new(EVENT_LIMIT),
            observer: Observer::of(dialect),
            rewrite: client_model.map(|client_model| Rewrite {
                framer: SseFramer::new(EVENT_LIMIT),
                envelope: envelope(dialect),
                client_model,
            }),
            view: View::default(),
            failed_first: None,
            finished: None,
        }
    }

    /// Whether the client may have what is held.
    pub fn has_output(&self) -> bool {
        self.view.has_output
    }

    /// Whether so much is held that it has to be released.
    pub fn is_full(&self) -> bool {
        let held: usize = self
            .held
            .iter()
            .map(|task| match task {
                HttpTask::Body(Some(bytes), _) => bytes.len(),
                _ => 0,
            })
            .sum();
        held > PREAMBLE_LIMIT
    }

    /// What a stream says that began with a failure instead of output, and how a refusal would have said it.
    pub fn failed_before_output(
        &self,
        judge: &Judge<'_>,
        now: SystemTime,
    ) -> Option<(Reading, Bytes)> {
        let failed = self.failed_first.as_ref()?;
        let reading = judge.stream_failure(failed, &self.limits, now);
        let error = serde_json::json!({
            "type": "error",
            "error": { "type": failed.kind, "code": failed.code, "message": failed.message },
        });
        Some((reading, error.to_string().into()))
    }

    fn at_frame_end(&self) -> bool {
        // Where frames are rewritten, the client gets whole ones only.
        let mid_frame = self.finished.unwrap_or_else(|| !self.scanner.at_boundary());
        self.rewrite.is_some() || !mid_frame
    }

    fn observe(&mut self, body: &mut Option<Bytes>, answer: &mut Answer, now: Instant) {
        let Some(bytes) = body.take() else { return };
        let scanned = {
            let (observer, view) = (&mut self.observer, &mut self.view);
            self.scanner.feed(&bytes, |event| {
                view.saw(observer.event(&event), answer, now)
            })
        };
        if scanned.is_err() {
            // An event beyond any sense: it passes, but nothing more is read from this stream.
            self.view.has_output = true;
        }
        if self.view.failed && !self.view.has_output && self.failed_first.is_none() {
            self.failed_first = Some(self.observer.failure().cloned().unwrap_or_default());
        }
        *body = Some(match &mut self.rewrite {
            None => bytes,
            Some(rewrite) => rewrite.feed(bytes),
        });
    }

    /// The stream is over: reads what stood at its end without a blank line.
    fn finish(&mut self, answer: &mut Answer, whole: bool) -> Option<Bytes> {
        if self.finished.is_some() {
            return None;
        }
        // The scanner forgets it.
        self.finished = Some(!self.scanner.at_boundary());
        let now = Instant::now();
        let (observer, view) = (&mut self.observer, &mut self.view);
        self.scanner
            .finish(|event| view.saw(observer.event(&event), answer, now));
        self.observer.tell(answer);
        // The half of a frame that was held back when the stream broke off is of no use.
        self.rewrite
            .as_mut()
            .and_then(Rewrite::finish)
            .filter(|_| whole)
    }
}

/// What the events so far amount to.
#[derive(Default)]
struct View {
    /// Real output was seen: from here on the client may have it.
    has_output: bool,
    /// The provider said that it failed.
    failed: bool,
}

impl View {
    fn saw(&mut self, seen: Seen, answer: &mut Answer, now: Instant) {
        match seen {
            // The provider has ended its answer, and the client may have been told: what comes after that
            // changes nothing.
            _ if answer.complete => {}
            Seen::Preamble => {}
            Seen::Output => {
                self.has_output = true;
                answer.first_token_at.get_or_insert(now);
            }
            Seen::Terminal(Terminal::Failed) | Seen::Error => {
                self.failed = true;
                answer.failed = true;
                answer.complete = true;
            }
            Seen::Terminal(_) => {
                self.has_output = true;
                answer.complete = true;
            }
            Seen::Done => {
                self.has_output |= !self.failed;
                answer.complete = true;
            }
        }
    }
}

/// Puts the client's name for the model back into the events that name it.
struct Rewrite {
    framer: SseFramer,
    /// What the answer is called in the events that have it whole.
    envelope: &'static str,
    client_model: String,
}

fn envelope(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Anthropic => "message",
        Dialect::OpenAi | Dialect::Google => "response",
    }
}

impl Rewrite {
    fn feed(&mut self, bytes: Bytes) -> Bytes {
        let mut out = BytesMut::with_capacity(bytes.len() + 64);
        let (envelope, client_model) = (self.envelope, &self.client_model);
        self.framer.feed(bytes, |frame| {
            rewrite_frame(frame, envelope, client_model, &mut out);
        });
        out.freeze()
    }

    fn finish(&mut self) -> Option<Bytes> {
        let rest = self.framer.finish()?;
        let mut out = BytesMut::new();
        rewrite_frame(rest, self.envelope, &self.client_model, &mut out);
        Some(out.freeze())
    }
}

fn rewrite_frame(frame: Bytes, envelope: &str, client_model: &str, out: &mut BytesMut) {
    match model_span(&frame, envelope) {
        Some(span) => {
            for piece in peek::splice(&frame, &[span], client_model) {
                out.extend_from_slice(&piece);
            }
        }
        None => out.extend_from_slice(&frame),
    }
}

/// Where a frame names the model, if it has one line of data that does.
fn model_span(frame: &[u8], envelope: &str) -> Option<std::ops::Range<usize>> {
    memchr::memmem::find(frame, b"\"model\"")?;
    let data = single_data(frame)?;
    let json = &frame[data.clone()];
    let span = peek::find_string_at(json, &[envelope, "model"])
        .or_else(|| peek::find_string_at(json, &["model"]))?;
    Some(data.start + span.start..data.start + span.end)
}

// ---- answers changed as a whole

/// What is done to a collected answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Only the model's name.
    Nothing,
    /// An event stream for a client that asked for JSON.
    FoldStream,
    /// JSON for a client that has our stream header already.
    ToEvent,
}

/// A whole answer that is changed before the client gets it.
pub struct Collected {
    dialect: Dialect,
    head: Option<Box<ResponseHeader>>,
    change: Change,
    client_model: Option<String>,
    parts: Parts,
}

impl Collected {
    /// Whether the answer is larger than what is kept.
    pub fn is_too_large(&self) -> bool {
        self.parts.too_large
    }

    /// The changed answer: its header (unless one is out already) and its body. `None` when the
    /// answer cannot be understood.
    pub fn take_answer(
        &mut self,
        answer: &mut Answer,
    ) -> Option<(Option<Box<ResponseHeader>>, Bytes)> {
        let whole = std::mem::take(&mut self.parts).into_bytes()?;
        let json = match self.change {
            Change::Nothing | Change::ToEvent => {
                read_json(self.dialect, &whole, answer);
                whole
            }
            Change::FoldStream => {
                let (json, observer) = fold::to_json(self.dialect, &whole)?;
                observer.tell(answer);
                json
            }
        };
        answer.complete = true;
        let json = self
            .client_model
            .as_deref()
            .and_then(|model| with_client_model(&json, &["model"], model))
            .map_or_else(|| json.clone(), joined);
        if self.change == Change::ToEvent {
            return Some((None, fold::to_events(self.dialect, &json)?));
        }
        let mut head = self.head.take();
        if let Some(head) = &mut head {
            head.remove_header(&header::TRANSFER_ENCODING);
            let _ = head.insert_header(header::CONTENT_TYPE, "application/json");
            let _ = head.insert_header(header::CONTENT_LENGTH, json.len());
        }
        Some((head, json))
    }
}

// ---- errors

/// An upstream's refusal, held back until it is judged.
pub struct Refusal {
    dialect: Dialect,
    head: Box<ResponseHeader>,
    /// As the upstream sent them: the verdict reads reset times from them.
    headers: HeaderMap,
    body: BytesMut,
}

/// What the client gets when a refusal is final.
pub enum LastWord {
    /// The upstream's own words: the mistake is the client's.
    Relay(Box<ResponseHeader>, Bytes),
    /// Ours.
    Own(ErrorReply),
}

impl Refusal {
    fn new(head: &mut ResponseHeader, request: &RelayRequest, answer: &Answer) -> Refusal {
        let headers = head.headers.clone();
        client_head(head, request, answer);
        Refusal {
            dialect: request.to.dialect,
            head: Box::new(head.clone()),
            headers,
            body: BytesMut::new(),
        }
    }

    fn push(&mut self, bytes: &Bytes) {
        let room = REFUSAL_LIMIT.saturating_sub(self.body.len());
        self.body.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Whether as much has been read as ever will be.
    pub fn is_full(&self) -> bool {
        self.body.len() >= REFUSAL_LIMIT
    }

    /// The upstream's status.
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    /// Our reading of it.
    pub fn reading(&self, judge: &Judge<'_>, now: SystemTime) -> Reading {
        judge.refusal(&verdict::Refusal {
            status: self.status(),
            headers: &self.headers,
            body: &self.body,
            now,
        })
    }

    /// What the upstream said, as far as it is kept.
    pub fn body(&self) -> Bytes {
        Bytes::copy_from_slice(&self.body)
    }

    /// What the client gets, if this is the end and no rule says otherwise. The client's own mistakes
    /// reach it in the provider's words (Change 12), where these are an error object of the dialect.
    pub fn last_word(mut self, failure: &Failure) -> LastWord {
        let status = self.status();
        if !matches!(failure.reading.verdict, Verdict::ClientFault) {
            return LastWord::Own(own_word(failure));
        }
        let body = self.body.split().freeze();
        let is_error = match self.dialect {
            Dialect::Anthropic => verdict::is_anthropic_error(&body),
            Dialect::OpenAi | Dialect::Google => verdict::is_openai_error(&body),
        };
        if !self.headers.contains_key(header::CONTENT_ENCODING) && is_error {
            self.head.remove_header(&header::TRANSFER_ENCODING);
            let _ = self
                .head
                .insert_header(header::CONTENT_TYPE, "application/json");
            let _ = self.head.insert_header(header::CONTENT_LENGTH, body.len());
            return LastWord::Relay(self.head, body);
        }
        LastWord::Own(errors::client_fault(status, &body))
    }
}

/// Who reads what this account's upstream answers to a request that sent the names `echoed`.
pub fn judge<'a>(account: &'a Account, cooldowns: Cooldowns, echoed: &'a [&'a str]) -> Judge<'a> {
    Judge {
        shape: match account.platform {
            Platform::Anthropic | Platform::Antigravity => Shape::Anthropic,
            Platform::OpenAi | Platform::Gemini => Shape::OpenAi,
        },
        credential: credential_kind(account),
        policy: &account.error_policy,
        cooldowns,
        echoed,
    }
}

/// What this account proves itself with.
pub fn credential_kind(account: &Account) -> CredentialKind {
    match account.account_type {
        AccountType::ApiKey | AccountType::Upstream => CredentialKind::ApiKey,
        AccountType::Oauth | AccountType::SetupToken => CredentialKind::OAuth,
    }
}

/// Our words for a final failure.
pub fn own_word(failure: &Failure) -> ErrorReply {
    errors::last_word(failure.status, &failure.reading.verdict, &failure.body)
}
