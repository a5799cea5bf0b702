//! What a fake upstream is told to answer. A test composes an [`Answer`] from a [`Response`] (or
//! from one of the ways not to answer at all) and from when it is given.
//!
//! ```
//! use tollgate_test_support::{Answer, Gate};
//!
//! let gate = Gate::new();
//! let limited = Answer::error(429, "rate_limit_exceeded").header("retry-after", "7");
//! let late = Answer::error(503, "server_error").chunked(&[1, 5]).after(&gate);
//! let cut = Answer::sse(vec!["data: 1\n\n".into(), "data: 2\n\n".into()]).then_reset();
//! # let _ = (limited, late, cut);
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use crate::anthropic;
use crate::gate::Gate;
use crate::openai;
use crate::received::Received;

/// One answer: what, and when.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What is answered.
    pub reply: Reply,
    /// Nothing is answered before this gate is passed (the request is read first, unless
    /// `early`).
    pub gate: Option<Gate>,
    /// Nothing is answered before this time has passed.
    pub delay: Duration,
    /// Answer before reading the body.
    pub early: Option<Early>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A response, or the beginning of one.
    Response(Response),
    /// The connection is closed in place of an answer (HTTP/2: the whole connection).
    CloseBeforeHeader,
    /// The connection is reset (RST) in place of an answer (HTTP/2: the stream, INTERNAL_ERROR).
    ResetBeforeHeader,
    /// Nothing at all until the peer leaves, which [`Received::peer_left`] then tells.
    NeverAnswer,
    /// Whatever [`crate::echo`] finds suitable.
    Echo,
}

/// A response, piece by piece.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Fields in order; content-length and transfer-encoding come from `framing`.
    pub headers: Vec<(String, String)>,
    /// The body; every piece is one write (and one chunk, when chunked).
    pub pieces: Vec<Bytes>,
    /// How the body's end is told.
    pub framing: Framing,
    /// What is waited for between the pieces.
    pub pace: Pace,
    /// What follows the last piece.
    pub ending: Ending,
}

/// How the body's end is told on HTTP/1.1. On HTTP/2 only `ContentLength` means anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A content-length of the whole body, or of so many bytes whatever is sent.
    ContentLength(Option<u64>),
    /// Chunked, one chunk a piece.
    Chunked,
    /// No length; the connection closes at the end.
    Close,
}

/// What is waited for between the pieces.
#[derive(Clone, Debug)]
pub enum Pace {
    /// Nothing.
    AtOnce,
    /// So long before every piece but the first.
    Every(Duration),
    /// The gate is passed before every piece but the first `free` ones (and before the ending,
    /// when there are no more pieces than `free`).
    Gated {
        /// Pieces sent without the gate; 0 = even the first waits, after the header was sent.
        free: usize,
        /// The gate.
        gate: Gate,
    },
}

/// What follows the last piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The proper end; the connection stays usable when its framing allows.
    End,
    /// The connection is closed without the proper end (HTTP/2: the whole connection).
    HangUp,
    /// The connection is reset without the proper end (HTTP/2: the stream, INTERNAL_ERROR).
    Reset,
    /// Nothing more until the peer leaves.
    Stall,
}

/// What becomes of a request's body that was answered before it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// The connection is closed, unread bytes and all: the peer may see a reset.
    Close,
    /// It is read afterwards, and the connection stays usable.
    Drain,
    /// It is never read, and the connection is never closed from this side.
    Hold,
}

impl Answer {
    /// Any reply, at once.
    pub fn new(reply: Reply) -> Self {
        Self {
            reply,
            gate: None,
            delay: Duration::ZERO,
            early: None,
        }
    }

    /// A status and a body of this content type, with its length.
    pub fn body(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self::new(Reply::Response(Response {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            pieces: if body.is_empty() { vec![] } else { vec![body] },
            framing: Framing::ContentLength(None),
            pace: Pace::AtOnce,
            ending: Ending::End,
        }))
    }

    /// A JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::body(status, "application/json", body.to_string())
    }

    /// An OpenAI error object with this `code`.
    pub fn error(status: u16, code: &str) -> Self {
        Self::body(status, "application/json", openai::error(status, code))
    }

    /// An Anthropic error object with this message and the type that goes with the status.
    pub fn anthropic_error(status: u16, text: &str) -> Self {
        Self::body(status, "application/json", anthropic::error(status, text))
    }

    /// A status with an empty body and nothing else.
    pub fn empty(status: u16) -> Self {
        let mut answer = Self::body(status, "", Bytes::new());
        answer.response().headers.clear();
        answer
    }

    /// 200 with an event stream, chunked, one frame a chunk, at once.
    pub fn sse(frames: Vec<Bytes>) -> Self {
        let mut answer = Self::body(200, "text/event-stream; charset=utf-8", Bytes::new());
        let response = answer.response();
        response.pieces = frames;
        response.framing = Framing::Chunked;
        answer
    }

    /// [`Reply::CloseBeforeHeader`].
    pub fn close() -> Self {
        Self::new(Reply::CloseBeforeHeader)
    }

    /// [`Reply::ResetBeforeHeader`].
    pub fn reset() -> Self {
        Self::new(Reply::ResetBeforeHeader)
    }

    /// [`Reply::NeverAnswer`].
    pub fn never() -> Self {
        Self::new(Reply::NeverAnswer)
    }

    /// [`Reply::Echo`].
    pub fn echo() -> Self {
        Self::new(Reply::Echo)
    }

    /// Adds a field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let headers = &mut self.response().headers;
        headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends the body in pieces of these sizes, what is left as the last one; the framing stays.
    pub fn split(mut self, sizes: &[usize]) -> Self {
        let response = self.response();
        let mut rest = concat(&response.pieces);
        response.pieces.clear();
        for size in sizes {
            let piece = rest.split_to((*size).min(rest.len()));
            if !piece.is_empty() {
                response.pieces.push(piece);
            }
        }
        if !rest.is_empty() {
            response.pieces.push(rest);
        }
        self
    }

    /// Sends the body in pieces of this many bytes, frames or not; the framing stays.
    ///
    /// # Panics
    /// When `size` is 0.
    pub fn split_every(mut self, size: usize) -> Self {
        assert!(size > 0, "pieces of no bytes never end");
        let response = self.response();
        let mut rest = concat(&response.pieces);
        response.pieces.clear();
        while !rest.is_empty() {
            let piece = rest.split_to(size.min(rest.len()));
            response.pieces.push(piece);
        }
        self
    }

    /// Chunked, in chunks of these sizes, what is left as the last one; none = one chunk.
    pub fn chunked(self, sizes: &[usize]) -> Self {
        let mut answer = self.split(sizes);
        answer.response().framing = Framing::Chunked;
        answer
    }

    /// Delimited by the connection's close.
    pub fn close_delimited(mut self) -> Self {
        self.response().framing = Framing::Close;
        self
    }

    /// Announces the whole content length, sends only the first `at` bytes, and hangs up.
    pub fn truncated(mut self, at: usize) -> Self {
        let response = self.response();
        let whole = concat(&response.pieces);
        response.framing = Framing::ContentLength(Some(whole.len() as u64));
        response.pieces = match at {
            0 => vec![],
            _ => vec![whole.slice(..at.min(whole.len()))],
        };
        response.ending = Ending::HangUp;
        self
    }

    /// Waits so long before every piece but the first.
    pub fn every(mut self, gap: Duration) -> Self {
        self.response().pace = Pace::Every(gap);
        self
    }

    /// Sends the header and `free` pieces, then passes the gate before each further one.
    pub fn gated(mut self, free: usize, gate: &Gate) -> Self {
        self.response().pace = Pace::Gated {
            free,
            gate: gate.clone(),
        };
        self
    }

    /// Closes the connection after the last piece, without the proper end.
    pub fn then_hang_up(self) -> Self {
        self.ending(Ending::HangUp)
    }

    /// Resets the connection after the last piece, without the proper end.
    pub fn then_reset(self) -> Self {
        self.ending(Ending::Reset)
    }

    /// Sends nothing more after the last piece, until the peer leaves.
    pub fn then_stall(self) -> Self {
        self.ending(Ending::Stall)
    }

    fn ending(mut self, ending: Ending) -> Self {
        self.response().ending = ending;
        self
    }

    /// Answers nothing before this gate is passed.
    pub fn after(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// Answers nothing before this time has passed (for load and demonstrations; tests use
    /// [`Answer::after`]).
    pub fn delayed(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Answers before reading the body.
    pub fn early(mut self, early: Early) -> Self {
        self.early = Some(early);
        self
    }

    fn response(&mut self) -> &mut Response {
        match &mut self.reply {
            Reply::Response(response) => response,
            other => panic!("{other:?} is no response to change"),
        }
    }
}

fn concat(pieces: &[Bytes]) -> Bytes {
    if let [only] = pieces {
        return only.clone();
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        whole.extend_from_slice(piece);
    }
    whole.freeze()
}

type Handler = Arc<dyn Fn(&Received) -> Answer + Send + Sync>;

/// Which answer is next. The first of these that has one: the queue of the request's credential,
/// the common queue, the credential's own answer, the handler or default answer (at first: echo).
#[derive(Clone)]
pub struct Plans {
    queue: VecDeque<Answer>,
    queues: HashMap<String, VecDeque<Answer>>,
    always: HashMap<String, Answer>,
    otherwise: Otherwise,
}

#[derive(Clone)]
enum Otherwise {
    Answer(Answer),
    Handler(Handler),
}

/// What to do with a request of which only the head is known.
pub(crate) enum Next {
    Answer(Answer),
    /// Wants to see the whole request first.
    Handler(Handler),
}

impl Default for Plans {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            queues: HashMap::new(),
            always: HashMap::new(),
            otherwise: Otherwise::Answer(Answer::echo()),
        }
    }
}

impl Plans {
    pub(crate) fn push(&mut self, answer: Answer) {
        self.queue.push_back(answer);
    }

    pub(crate) fn push_for(&mut self, credential: &str, answer: Answer) {
        let queue = self.queues.entry(credential.to_owned()).or_default();
        queue.push_back(answer);
    }

    pub(crate) fn always_for(&mut self, credential: &str, answer: Answer) {
        self.always.insert(credential.to_owned(), answer);
    }

    pub(crate) fn otherwise(&mut self, answer: Answer) {
        self.otherwise = Otherwise::Answer(answer);
    }

    pub(crate) fn handler(&mut self, handler: Handler) {
        self.otherwise = Otherwise::Handler(handler);
    }

    pub(crate) fn left(&self) -> usize {
        self.queue.len() + self.queues.values().map(VecDeque::len).sum::<usize>()
    }

    pub(crate) fn next(&mut self, credential: Option<&str>) -> Next {
        let planned = credential
            .and_then(|key| self.queues.get_mut(key))
            .and_then(VecDeque::pop_front)
            .or_else(|| self.queue.pop_front())
            .or_else(|| credential.and_then(|key| self.always.get(key)).cloned());
        match (planned, &self.otherwise) {
            (Some(answer), _) => Next::Answer(answer),
            (None, Otherwise::Answer(answer)) => Next::Answer(answer.clone()),
            (None, Otherwise::Handler(handler)) => Next::Handler(handler.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(answer: &Answer) -> Vec<String> {
        let Reply::Response(response) = &answer.reply else {
            panic!("a response");
        };
        let text = |piece: &Bytes| String::from_utf8_lossy(piece).into_owned();
        response.pieces.iter().map(text).collect()
    }

    #[test]
    fn splits_bodies() {
        let whole = || Answer::body(200, "text/plain", "abcdef");
        assert_eq!(pieces(&whole().split(&[1, 3])), ["a", "bcd", "ef"]);
        assert_eq!(pieces(&whole().split(&[6])), ["abcdef"]);
        assert_eq!(pieces(&whole().split(&[9])), ["abcdef"]);
        assert_eq!(pieces(&whole().split_every(4)), ["abcd", "ef"]);
        assert_eq!(pieces(&whole().truncated(2)), ["ab"]);
        assert_eq!(pieces(&whole().truncated(0)), [""; 0]);
        let frames = Answer::sse(vec!["ab".into(), "cd".into()]);
        assert_eq!(pieces(&frames.split_every(3)), ["abc", "d"]);
    }

    #[test]
    fn answers_in_turn() {
        let mut plans = Plans::default();
        plans.otherwise(Answer::empty(200));
        plans.push(Answer::empty(201));
        plans.push_for("a", Answer::empty(202));
        plans.always_for("b", Answer::empty(203));
        let mut status = |credential| match plans.next(credential) {
            Next::Answer(Answer {
                reply: Reply::Response(response),
                ..
            }) => response.status,
            _ => 0,
        };
        let credentials = [Some("a"), Some("a"), Some("a"), Some("b"), None];
        assert_eq!(credentials.map(&mut status), [202, 201, 200, 203, 200]);
        assert_eq!(plans.left(), 0);
    }
}
