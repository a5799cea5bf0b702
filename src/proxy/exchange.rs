//! What passes between the client and the upstream during one request: shared by Pingora's hooks
//! (which see what the upstream says) and the downstream wrapper (which decides what the client
//! gets). Both run in the request's own task, so the lock around it is never contended; it is never
//! held across an await.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::{Error, ErrorType};
use tollgate_filters::passthrough::Rules;
use tollgate_filters::reply::{ErrorReply, errors, keep_alive};
use tollgate_filters::verdict::{Cooldowns, Effect, Reading, Verdict};

use super::answer::{self, Addressee};
use super::context::Asked;
use super::next::{self, Next};
use super::relay::{Answer, LastWord, Relay, RelayRequest, judge};
use super::second::SecondChances;
use super::settlement::{End, Settlement};
use crate::config::{GatewayConfig, InnerRetries, OnClientDisconnect};
use crate::domain::Account;
use crate::limits::bodies::BodyHold;

/// Custom error types of an attempt, as Pingora carries them.
pub mod ending {
    /// The upstream's answer leads to another attempt.
    pub const FAILED_ATTEMPT: &str = "failed_attempt";
    /// No response header in time.
    pub const HEADER_TIMEOUT: &str = "response_header_timeout";
    /// No data in time.
    pub const STALLED: &str = "stream_timeout";
    /// The client has left and the time for reading on is over.
    pub const DRAIN_DEADLINE: &str = "drain_deadline";
}

/// Whether the request waits for a slot or is with an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Nothing is under way upstream: only the client is watched.
    Waiting,
    /// An attempt runs.
    Attempting,
}

/// What the client has been given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Nothing.
    NotStarted,
    /// The header of an event stream and pings, while the request waited.
    Preamble,
    /// Bytes of an upstream's answer: there is no way back.
    Released,
    /// Everything.
    Done,
}

/// What the wrapper does with what the upstream sent.
pub enum Judgement {
    /// Nothing yet.
    Hold,
    /// Give it to the client.
    Write {
        /// What to write.
        tasks: Vec<HttpTask>,
        /// Whether the answer ends with it.
        end: bool,
    },
    /// Give this to the client, then end the attempt.
    WriteThenFail {
        /// What to write.
        tasks: Vec<HttpTask>,
        /// How the attempt ended.
        error: Box<Error>,
    },
    /// End the attempt; nothing goes to the client.
    Fail(Box<Error>),
}

/// What the clock says.
pub enum Tick {
    /// Look again then, if nothing happens before.
    At(Instant),
    /// A keep-alive comment is due, behind this header where the stream has not begun.
    KeepAlive(Option<HttpTask>),
    /// A limit has passed; the text is one of [`ending`].
    Expired(&'static str),
}

/// How an attempt went wrong, as far as the answer tells.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Status of the upstream, when there was one.
    pub status: Option<u16>,
    /// Our reading of it: for the request and for the account.
    pub reading: Reading,
    /// What the upstream said; empty where it said nothing.
    pub body: Bytes,
    /// There was no answer, or it broke off: the way to the account may be at fault.
    pub is_transport: bool,
}

impl Failure {
    /// No answer, or one that cannot be used.
    pub fn transport() -> Failure {
        Failure {
            is_transport: true,
            ..Failure::of(Reading {
                verdict: Verdict::Failed,
                effect: Effect::Failing,
                retry_same: false,
            })
        }
    }

    /// A failure that is told within an answer.
    pub fn of(reading: Reading) -> Failure {
        Failure {
            status: None,
            reading,
            body: Bytes::new(),
            is_transport: false,
        }
    }
}

/// What the current attempt's account means for the reading of its answer.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The account.
    pub account: Arc<Account>,
    /// What is asked.
    pub asked: Arc<Asked>,
    /// Whether another account may be tried after this attempt.
    pub may_fail_over: bool,
    /// Whether the same account may be tried again.
    pub may_retry: bool,
    /// Whether it may be because its refusal may pass.
    pub inner_retries: InnerRetries,
}

impl Judged {
    /// The model as the client and as the account's upstream call it.
    fn models(&self) -> [&str; 2] {
        let model = &self.asked.model;
        [model, self.account.upstream_model(model)]
    }
}

/// Limits of time that the exchange watches.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    response_header: Duration,
    stall: Duration,
    keepalive: Option<Duration>,
    drain: Duration,
    on_disconnect: OnClientDisconnect,
    cooldowns: Cooldowns,
}

impl Limits {
    /// The configured ones.
    pub fn new(config: &GatewayConfig) -> Limits {
        Limits {
            response_header: config.response_header_timeout,
            stall: config.stall_timeout,
            keepalive: config.keepalive_interval,
            drain: config.drain_timeout,
            on_disconnect: config.on_client_disconnect,
            cooldowns: config.cooldowns,
        }
    }
}

/// The request body while another attempt may need it.
pub struct HeldBody {
    /// As the client sent it, decoded, or as it was mended.
    pub bytes: Bytes,
    /// Its share of the memory set aside for bodies.
    pub hold: BodyHold,
}

/// One request's exchange.
pub struct Exchange {
    /// What is still to be sent upstream in this attempt.
    pub pieces: VecDeque<Bytes>,
    /// Waiting or attempting.
    pub phase: Phase,
    /// What the client has been given.
    pub reply: Reply,
    /// The status the client got; 0 = none yet.
    pub status: u16,
    /// The body, until the first byte of an answer is released.
    pub body: Option<HeldBody>,
    /// What the answer is judged by; set when an attempt begins.
    pub judged: Option<Judged>,
    /// Set when the answer shows that the attempt failed.
    pub failure: Option<Failure>,
    /// With it: what follows.
    pub next: Option<Next>,
    /// What else a refusal may lead to.
    pub chances: SecondChances,
    /// What was seen of the current attempt's answer.
    pub answer: Answer,
    to: Addressee,
    stream: bool,
    limits: Limits,
    relay: Relay,
    rules: Arc<Rules>,
    /// The money of the request, once it has been admitted.
    pub settlement: Option<Settlement>,
    /// The output limit that the request goes upstream with, where that is lower than what it asked for.
    pub output_limit: Option<u64>,
    /// A passthrough rule says that the client's error is not to be reported as one.
    pub unmonitored: bool,
    /// When the client left.
    client_gone: Option<Instant>,
    /// The client has the whole answer.
    delivered: bool,
    /// When this attempt's request was sent, or its last data came.
    last_upstream: Instant,
    header_seen: bool,
    /// When the client was last written to, for keep-alive comments.
    last_written: Instant,
}

fn failed(etype: &'static str) -> Box<Error> {
    Error::explain(ErrorType::Custom(etype), "").into_up()
}

impl Exchange {
    /// An exchange in which nothing has happened yet.
    pub fn new(
        to: Addressee,
        stream: bool,
        limits: Limits,
        rules: Arc<Rules>,
        body: HeldBody,
    ) -> Exchange {
        let now = Instant::now();
        Exchange {
            pieces: VecDeque::new(),
            phase: Phase::Waiting,
            reply: Reply::NotStarted,
            status: 0,
            body: Some(body),
            judged: None,
            failure: None,
            next: None,
            chances: SecondChances::default(),
            answer: Answer::default(),
            to,
            stream,
            limits,
            relay: Relay::Awaited,
            rules,
            settlement: None,
            output_limit: None,
            unmonitored: false,
            client_gone: None,
            delivered: false,
            last_upstream: now,
            header_seen: false,
            last_written: now,
        }
    }

    /// Our id of the request, for the log.
    pub fn request_id(&self) -> &str {
        self.to.id()
    }

    /// Who is answered.
    pub fn addressee(&self) -> &Addressee {
        &self.to
    }

    /// What keeps a silent stream alive: ignored by every reader of the dialect.
    pub fn keep_alive(&self) -> Bytes {
        keep_alive(self.to.dialect)
    }

    /// The next piece of the body, on its way upstream: as long as it is taken, the upstream has no
    /// reason to answer.
    pub fn next_piece(&mut self, now: Instant) -> Option<Bytes> {
        let piece = self.pieces.pop_front();
        if !self.header_seen {
            self.last_upstream = now;
        }
        piece
    }

    /// The last bytes of the answer have been written to the client.
    pub fn delivered(&mut self) {
        self.delivered = self.client_gone.is_none();
    }

    /// Whether the client asked for a stream.
    pub fn is_stream(&self) -> bool {
        self.stream
    }

    /// A new attempt begins: what was seen of the last one is forgotten.
    pub fn begin_attempt(&mut self, pieces: VecDeque<Bytes>, judged: Judged, now: Instant) {
        self.pieces = pieces;
        self.judged = Some(judged);
        self.phase = Phase::Attempting;
        self.failure = None;
        self.next = None;
        self.answer = Answer::default();
        self.relay = Relay::Awaited;
        self.last_upstream = now;
        self.header_seen = false;
    }

    /// The attempt is over; another may follow.
    pub fn end_attempt(&mut self) {
        self.pieces.clear();
        self.phase = Phase::Waiting;
        // What the last answer said is no verdict on the next account, which may not even be reached.
        self.failure = None;
        self.next = None;
        self.forget_answer();
        self.header_seen = false;
    }

    /// The attempt failed, and the client gets nothing of it. What it reported before any content was used for nobody,
    /// and is charged to nobody; content that only could not be relayed is charged as far as it is known.
    pub fn forget_unless_begun(&mut self) {
        if self.answer.first_token_at.is_none() {
            self.forget_answer();
        }
    }

    fn forget_answer(&mut self) {
        self.relay = Relay::Awaited;
        self.answer = Answer {
            status: self.answer.status,
            header_at: self.answer.header_at,
            upstream_request_id: self.answer.upstream_request_id.take(),
            ..Answer::default()
        };
    }

    /// The header of a waiting stream has been written.
    pub fn preamble_written(&mut self, now: Instant) {
        self.reply = Reply::Preamble;
        self.status = 200;
        self.last_written = now;
    }

    // ---- the client

    /// The client has left at `now`.
    pub fn client_left(&mut self, now: Instant) {
        // One that leaves with the whole answer in hand has not left early.
        if !self.delivered {
            self.client_gone.get_or_insert(now);
        }
    }

    /// Whether the client has left.
    pub fn is_client_gone(&self) -> bool {
        self.client_gone.is_some()
    }

    /// Whether the upstream is read to its end after the client left.
    pub fn drains(&self) -> bool {
        self.limits.on_disconnect == OnClientDisconnect::Drain
    }

    // ---- the clock

    /// What is due at `now`. A keep-alive comment counts as written from the moment it is due.
    pub fn tick(&mut self, now: Instant) -> Tick {
        let (limit, what) = if self.header_seen {
            (self.limits.stall, ending::STALLED)
        } else {
            (self.limits.response_header, ending::HEADER_TIMEOUT)
        };
        let mut next = self.last_upstream + limit;
        if next <= now {
            return Tick::Expired(what);
        }
        if let Some(gone) = self.client_gone {
            let deadline = gone + self.limits.drain;
            if deadline <= now {
                return Tick::Expired(ending::DRAIN_DEADLINE);
            }
            return Tick::At(next.min(deadline));
        }
        if let Some(interval) = self.limits.keepalive {
            // While nothing is released, what the upstream says does not reach the client.
            let since = match self.reply {
                Reply::Released => self.last_written.max(self.last_upstream),
                _ => self.last_written,
            };
            let due = since + interval;
            if due > now {
                next = next.min(due);
            } else if self.takes_comments() {
                self.last_written = now;
                return Tick::KeepAlive(self.open_held_stream());
            } else {
                // A comment may become possible meanwhile.
                next = next.min(now + interval);
            }
        }
        Tick::At(next)
    }

    /// Whether a comment may be written now: into an event stream, at the end of a frame.
    fn takes_comments(&self) -> bool {
        match self.reply {
            Reply::Preamble => true,
            Reply::NotStarted => self.relay.is_stream(),
            Reply::Released => self.relay.is_stream() && self.relay.at_frame_end(),
            Reply::Done => false,
        }
    }

    /// Where the provider is silent before its first real output, the client gets the header of the
    /// stream, so that comments can follow. Another account can still be tried after that.
    fn open_held_stream(&mut self) -> Option<HttpTask> {
        if self.reply != Reply::NotStarted {
            return None;
        }
        let Relay::Stream(stream) = &mut self.relay else {
            return None;
        };
        let at = stream
            .held
            .iter()
            .position(|task| matches!(task, HttpTask::Header(..)))?;
        let header = stream.held.remove(at);
        self.reply = Reply::Preamble;
        self.status = self.answer.status;
        Some(header)
    }

    /// A write to the client has ended at `now`. While it lasted nobody listened to the upstream: a
    /// slow or stopped reader is not the provider's silence.
    pub fn written(&mut self, now: Instant) {
        self.last_upstream = self.last_upstream.max(now);
    }

    // ---- what the upstream says

    /// The upstream's response header: decides how the answer is treated and what of the header
    /// the client gets. `client_model` is the name to put back, where the account has another.
    /// Informational headers are not an answer.
    pub fn begin_response(
        &mut self,
        head: &mut ResponseHeader,
        client_model: Option<String>,
        now: Instant,
    ) {
        if head.status.is_informational() {
            return;
        }
        self.header_seen = true;
        self.last_upstream = now;
        self.answer.header_at = Some(now);
        self.answer.status = head.status.as_u16();
        let request = RelayRequest {
            stream: self.stream,
            preamble_out: self.reply == Reply::Preamble,
            client_model,
            to: self.to.clone(),
            output_limit: self.output_limit,
        };
        self.relay = Relay::begin(head, request, &mut self.answer);
        if self.reply == Reply::NotStarted {
            self.last_written = now;
        }
    }

    /// A piece of the upstream's body: observed, perhaps rewritten, perhaps kept.
    pub fn observe(&mut self, body: &mut Option<Bytes>, now: Instant) {
        self.last_upstream = now;
        self.relay.observe(body, &mut self.answer, now);
        if let Some(settlement) = &mut self.settlement
            && settlement.is_progress_due(now)
        {
            self.relay.look(&mut self.answer);
            settlement.progress(&self.answer, now);
        }
    }

    /// What has been seen of the answer, now that no more of it will be read: an attempt that our own
    /// watch ends, or the client's leaving, never gets to judge its end.
    pub fn answer_seen(&mut self) -> Answer {
        // Not while a panic is on its way: the parser may be where it came from.
        if !std::thread::panicking() {
            self.relay.finish(&mut self.answer, false);
        }
        self.answer.clone()
    }

    /// Decides what the client gets of `tasks`. Whatever ends the answer for the client is settled before
    /// it is handed out.
    pub fn judge(&mut self, tasks: Vec<HttpTask>) -> Judgement {
        let judgement = self.judged(tasks);
        let hands_out = matches!(
            judgement,
            Judgement::Write { .. } | Judgement::WriteThenFail { .. }
        );
        if hands_out && (self.reply == Reply::Done || self.is_all_said()) {
            self.settle();
        }
        judgement
    }

    /// Whether a client may take what it has by now for the whole answer. Not yet after an error in a stream
    /// that has told no usage: that may still follow.
    fn is_all_said(&mut self) -> bool {
        // Asked for every piece that is handed out; looking closer costs more, and is for the end.
        if !self.answer.complete {
            return self.relay.is_whole();
        }
        self.relay.look(&mut self.answer);
        let may_tell_usage = self.answer.failed && self.answer.usage.is_none();
        !may_tell_usage || self.relay.is_whole()
    }

    /// Settles the request by what has been seen of its answer. Only the first call counts.
    fn settle(&mut self) {
        let Some(settlement) = &mut self.settlement else {
            return;
        };
        self.relay.look(&mut self.answer);
        let failed = self.failure.as_ref();
        let attempt = failed.map(|f| (f.reading.verdict.label(), f.status));
        let end = End {
            status: self.status,
            client_gone: self.client_gone.is_some(),
            cut: false,
            failed: failed.is_some(),
        };
        settlement.settle(&self.answer, end, attempt);
    }

    fn judged(&mut self, mut tasks: Vec<HttpTask>) -> Judgement {
        let error = match tasks.pop() {
            Some(HttpTask::Failed(error)) => Some(error),
            Some(task) => {
                tasks.push(task);
                None
            }
            None => None,
        };
        tasks.retain(|task| match task {
            HttpTask::Header(head, _) => !head.status.is_informational(),
            _ => true,
        });
        for task in &mut tasks {
            // Trailers would pass by the list of headers a client may see.
            if matches!(task, HttpTask::Trailer(_)) {
                *task = HttpTask::Done;
            }
        }
        let end = tasks.iter().any(HttpTask::is_end);
        if (end || error.is_some())
            && let Some(tail) = self.relay.finish(&mut self.answer, end)
        {
            append_body(&mut tasks, tail);
        }
        let (end, error) = match error {
            // The provider has said everything; how its connection ended does not matter.
            Some(_) if self.answer.complete && self.relay.is_stream() => {
                tasks.push(HttpTask::Done);
                (true, None)
            }
            error => (end, error),
        };
        match &self.relay {
            Relay::Awaited => error.map_or(Judgement::Hold, Judgement::Fail),
            // A refusal that is cut off is still a refusal.
            Relay::Refused(refusal) if end || error.is_some() || refusal.is_full() => {
                self.judge_refusal()
            }
            Relay::Refused(_) => Judgement::Hold,
            Relay::Stream(_) => self.judge_stream(tasks, end, error),
            Relay::Plain(_) => self.judge_plain(tasks, end, error),
            Relay::Collect(collected) => match error {
                Some(error) => Judgement::Fail(error),
                None if end || collected.is_too_large() => self.judge_collected(),
                None => Judgement::Hold,
            },
        }
    }

    /// Notes a failure, and whether it leads to another attempt.
    fn goes_again(&mut self, judged: &Judged, failure: &Failure) -> bool {
        let next = self.next_after(judged, failure);
        let again = !matches!(next, Next::End);
        let mut failure = failure.clone();
        if self.is_client_gone() && next::is_passing(judged, &failure) {
            // Nobody waits to see whether it passes: then nobody knows.
            failure.reading.effect = Effect::None;
        }
        self.failure = Some(failure);
        self.next = Some(next);
        again
    }

    fn next_after(&mut self, judged: &Judged, failure: &Failure) -> Next {
        if self.is_client_gone() {
            return Next::End;
        }
        if failure.reading.verdict == Verdict::ClientFault {
            let mended = self.body.as_mut().and_then(|body| {
                let (settlement, limit) = (self.settlement.as_mut(), &mut self.output_limit);
                self.chances.mend(judged, failure, body, settlement, limit)
            });
            if let Some(mended) = mended {
                return Next::Mended(mended);
            }
            if let Some(group) = self.chances.other_group(failure) {
                return Next::OtherGroup(group);
            }
        }
        next::after(judged, failure)
    }

    fn judge_refusal(&mut self) -> Judgement {
        let Relay::Refused(refusal) = std::mem::replace(&mut self.relay, Relay::Awaited) else {
            return Judgement::Hold;
        };
        let Some(judged) = self.judged.clone() else {
            return self.write_reply(&errors::upstream_failed());
        };
        let reading = refusal.reading(
            &judge(&judged.account, self.limits.cooldowns, &judged.models()),
            SystemTime::now(),
        );
        let failure = Failure {
            status: Some(refusal.status()),
            reading,
            body: refusal.body(),
            is_transport: false,
        };
        if self.goes_again(&judged, &failure) {
            return Judgement::Fail(failed(ending::FAILED_ATTEMPT));
        }
        if let Some(reply) = self.by_rule(&judged.account, &failure) {
            return self.write_reply(&reply);
        }
        match refusal.last_word(&failure) {
            LastWord::Relay(head, body) if self.reply == Reply::NotStarted => {
                self.reply_done(head.status.as_u16());
                Judgement::Write {
                    tasks: whole(head, body),
                    end: true,
                }
            }
            LastWord::Relay(head, body) => {
                self.write_reply(&errors::client_fault(head.status.as_u16(), &body))
            }
            LastWord::Own(_) if judged.asked.counts => {
                self.write_reply(&errors::count_failed(failure.status))
            }
            LastWord::Own(reply) => self.write_reply(&reply),
        }
    }

    /// What the client is told of a final upstream error, if the operator has a rule for it.
    pub fn by_rule(&mut self, account: &Account, failure: &Failure) -> Option<ErrorReply> {
        let status = failure.status?;
        let rule = self
            .rules
            .find(account.platform.as_str(), status, &failure.body)?;
        self.unmonitored |= rule.skip_monitoring;
        Some(rule.reply(status, &failure.body))
    }

    fn judge_stream(
        &mut self,
        mut tasks: Vec<HttpTask>,
        end: bool,
        error: Option<Box<Error>>,
    ) -> Judgement {
        if self.reply == Reply::Preamble {
            // Our own header is out already.
            drop_header(&mut tasks);
        }
        let Relay::Stream(stream) = &mut self.relay else {
            return Judgement::Hold;
        };
        if self.reply != Reply::Released {
            stream.held.append(&mut tasks);
            let (has_output, is_full) = (stream.has_output(), stream.is_full());
            let judged = self.judged.clone();
            let failed_first = judged.and_then(|judged| {
                let models = judged.models();
                let judge = judge(&judged.account, self.limits.cooldowns, &models);
                let (reading, body) = stream.failed_before_output(&judge, SystemTime::now())?;
                let failure = Failure {
                    body,
                    ..Failure::of(reading)
                };
                Some((judged, failure))
            });
            if let Some((judged, failure)) = failed_first {
                if self.goes_again(&judged, &failure) {
                    return Judgement::Fail(failed(ending::FAILED_ATTEMPT));
                }
                // Final: the provider's own words are the best answer there is.
            } else if !has_output {
                if let Some(error) = error {
                    return Judgement::Fail(error);
                }
                if end {
                    self.failure = Some(Failure::transport());
                    return Judgement::Fail(failed(ending::FAILED_ATTEMPT));
                }
                if !is_full {
                    return Judgement::Hold;
                }
            }
            if let Relay::Stream(stream) = &mut self.relay {
                tasks = std::mem::take(&mut stream.held);
            }
        }
        self.release(tasks, end, error)
    }

    fn judge_plain(
        &mut self,
        mut tasks: Vec<HttpTask>,
        end: bool,
        error: Option<Box<Error>>,
    ) -> Judgement {
        let Relay::Plain(plain) = &mut self.relay else {
            return Judgement::Hold;
        };
        if self.reply == Reply::NotStarted {
            let has_body = tasks
                .iter()
                .any(|task| matches!(task, HttpTask::Body(Some(bytes), _) if !bytes.is_empty()));
            plain.held.append(&mut tasks);
            if !has_body && !end {
                return error.map_or(Judgement::Hold, Judgement::Fail);
            }
            tasks = std::mem::take(&mut plain.held);
        }
        self.release(tasks, end, error)
    }

    fn judge_collected(&mut self) -> Judgement {
        let Relay::Collect(collected) = &mut self.relay else {
            return Judgement::Hold;
        };
        if collected.is_too_large() {
            return self.write_reply(&errors::upstream_response_too_large());
        }
        let Some((head, body)) = collected.take_answer(&mut self.answer) else {
            self.failure = Some(Failure::transport());
            return Judgement::Fail(failed(ending::FAILED_ATTEMPT));
        };
        let tasks = match head {
            Some(head) if self.reply == Reply::NotStarted => whole(head, body),
            _ => vec![HttpTask::Body(Some(body), true)],
        };
        self.release(tasks, true, None)
    }

    /// The way back ends here: the client gets bytes of this answer.
    fn release(&mut self, tasks: Vec<HttpTask>, end: bool, error: Option<Box<Error>>) -> Judgement {
        if self.reply == Reply::NotStarted {
            self.status = self.answer.status;
        }
        self.reply = if end { Reply::Done } else { Reply::Released };
        self.body = None;
        if end {
            // Answered before it had read everything: the rest is not sent.
            self.pieces.clear();
        }
        self.last_written = self.last_upstream;
        match error {
            Some(error) => Judgement::WriteThenFail { tasks, error },
            None => Judgement::Write { tasks, end },
        }
    }

    fn reply_done(&mut self, status: u16) {
        self.status = status;
        self.reply = Reply::Done;
        self.body = None;
        self.pieces.clear();
    }

    /// An error reply of our own, as JSON or as an event, whichever the client can still get.
    pub fn write_reply(&mut self, reply: &ErrorReply) -> Judgement {
        let tasks = match self.reply {
            Reply::NotStarted => {
                let body = reply.body_for(self.to.dialect, self.to.id());
                match answer::error_head(reply, body.len(), &self.to) {
                    Ok(head) => whole(Box::new(head), body),
                    Err(error) => return Judgement::Fail(error),
                }
            }
            _ => vec![HttpTask::Body(Some(self.last_event(reply)), true)],
        };
        let status = match self.reply {
            Reply::NotStarted => reply.status,
            _ => self.status,
        };
        self.reply_done(status);
        self.settle();
        Judgement::Write { tasks, end: true }
    }

    /// A whole answer of our own in place of an upstream's, in the form that the client asked for; as the rest of a
    /// stream where pings have begun one.
    pub fn write_own(&mut self, body: Bytes) -> Judgement {
        let tasks = match self.reply {
            Reply::NotStarted => {
                let content_type = match self.stream {
                    true => "text/event-stream",
                    false => "application/json",
                };
                match answer::whole_head(content_type, body.len(), &self.to) {
                    Ok(head) => whole(Box::new(head), body),
                    Err(error) => return Judgement::Fail(error),
                }
            }
            _ => vec![HttpTask::Body(Some(body), true)],
        };
        self.reply_done(200);
        self.settle();
        Judgement::Write { tasks, end: true }
    }

    /// `reply` as the last event of a stream. Where the upstream was cut off in the middle of a
    /// frame, that frame is ended first, or the event would become part of it.
    fn last_event(&self, reply: &ErrorReply) -> Bytes {
        let event = reply.event_for(self.to.dialect, self.to.id());
        if self.reply != Reply::Released || self.relay.at_frame_end() {
            return event;
        }
        let mut bytes = BytesMut::from(&b"\n\n"[..]);
        bytes.extend_from_slice(&event);
        bytes.freeze()
    }

    /// Whether the client was given (part of) an event stream, so that an event can be its end.
    pub fn takes_events(&self) -> bool {
        match self.reply {
            Reply::Preamble => true,
            Reply::Released => self.relay.is_stream(),
            Reply::NotStarted | Reply::Done => false,
        }
    }
}

fn whole(head: Box<ResponseHeader>, body: Bytes) -> Vec<HttpTask> {
    vec![
        HttpTask::Header(head, false),
        HttpTask::Body(Some(body), true),
    ]
}

/// Takes a header out; one that ended the answer leaves the end behind.
fn drop_header(tasks: &mut Vec<HttpTask>) {
    for task in tasks.iter_mut() {
        if matches!(task, HttpTask::Header(_, true)) {
            *task = HttpTask::Done;
        }
    }
    tasks.retain(|task| !matches!(task, HttpTask::Header(..)));
}

/// Adds bytes at the end of the body, before whatever ends the answer.
fn append_body(tasks: &mut Vec<HttpTask>, tail: Bytes) {
    match tasks.pop() {
        Some(HttpTask::Body(body, true)) => {
            tasks.push(HttpTask::Body(body, false));
            tasks.push(HttpTask::Body(Some(tail), true));
        }
        Some(HttpTask::Header(head, true)) => {
            tasks.push(HttpTask::Header(head, false));
            tasks.push(HttpTask::Body(Some(tail), true));
        }
        Some(last) if last.is_end() => {
            tasks.push(HttpTask::Body(Some(tail), false));
            tasks.push(last);
        }
        Some(last) => {
            tasks.push(last);
            tasks.push(HttpTask::Body(Some(tail), false));
        }
        None => tasks.push(HttpTask::Body(Some(tail), false)),
    }
}
