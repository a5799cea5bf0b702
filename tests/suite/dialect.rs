//! The dialects that clients speak: what a test has to know of one to hold for all of them.
//!
//! A test takes a [`Dialect`] and is named in [`in_each_dialect!`], which makes a test of it for each:
//! `waiting::a_line_has_an_end::messages`. The answers here are the same in every dialect (see [`INPUT`]), so that what
//! is expected of a record hardly ever differs.

use bytes::Bytes;
use serde_json::{Value, json};
use tollgate_test_support::anthropic::{self, Block, Message};
use tollgate_test_support::{Answer, Request, openai};

use crate::harness::{KEY, Setup, ask, ask_anew};

/// A wire format, and with it the platform it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI's Responses API.
    Responses,
    /// Anthropic's Messages API.
    Messages,
}

/// Every dialect.
pub const DIALECTS: [Dialect; 2] = [Dialect::Responses, Dialect::Messages];

/// Input tokens that every answer reports, cached ones not counted.
pub const INPUT: u64 = 100;
/// Input tokens that every answer reports as read from the cache.
pub const CACHED: u64 = 20;
/// Output tokens that every answer reports.
pub const OUTPUT: u64 = 30;

/// Makes a test for each dialect of a function that takes one.
macro_rules! in_each_dialect {
    ($test:ident) => {
        mod $test {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn responses() {
                super::$test($crate::dialect::Dialect::Responses).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn messages() {
                super::$test($crate::dialect::Dialect::Messages).await;
            }
        }
    };
}
pub(crate) use in_each_dialect;

/// What goes wrong within a stream, under the names of each dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The provider failed.
    Server,
    /// A limit of the account is reached.
    Limited,
}

impl Dialect {
    /// The dialect of a request to this path.
    pub fn of(path: &str) -> Dialect {
        let is_here = |dialect: &Dialect| dialect.path() == path;
        DIALECTS.into_iter().find(is_here).expect("a known path")
    }

    /// The platform of its groups and accounts.
    pub fn platform(self) -> &'static str {
        match self {
            Dialect::Responses => "openai",
            Dialect::Messages => "anthropic",
        }
    }

    /// Where its requests go.
    pub fn path(self) -> &'static str {
        match self {
            Dialect::Responses => "/v1/responses",
            Dialect::Messages => "/v1/messages",
        }
    }

    /// The model of its answers.
    pub fn model(self) -> &'static str {
        match self {
            Dialect::Responses => "gpt-5-mini",
            Dialect::Messages => "claude-sonnet-4-5",
        }
    }

    /// What an answer costs: 100 × 0.25 + 20 × 0.025 + 30 × 2 millionths, or, with 40 tokens written to a cache for
    /// five minutes and 7 for an hour, 100 × 3 + 40 × 3.75 + 7 × 6 + 20 × 0.3 + 30 × 15.
    pub fn charge(self) -> &'static str {
        match self {
            Dialect::Responses => "0.0000855",
            Dialect::Messages => "0.000948",
        }
    }

    // ---- what is asked

    /// The body of a request. All with the same model are one conversation, by their content.
    pub fn ask(self, model: &str, stream: bool) -> Value {
        match self {
            Dialect::Responses => ask(model, stream),
            Dialect::Messages => self.saying("hi", model, stream),
        }
    }

    /// The body of a request that begins a conversation of its own.
    pub fn ask_anew(self, model: &str, stream: bool) -> Value {
        let body = ask_anew(model, stream);
        match self {
            Dialect::Responses => body,
            Dialect::Messages => self.saying(body["input"].as_str().unwrap(), model, stream),
        }
    }

    /// The body of a request with this text in it.
    pub fn saying(self, text: &str, model: &str, stream: bool) -> Value {
        match self {
            Dialect::Responses => json!({ "model": model, "input": text, "stream": stream }),
            Dialect::Messages => json!({
                "model": model, "max_tokens": 1024, "stream": stream,
                "messages": [{ "role": "user", "content": text }],
            }),
        }
    }

    /// The text in the body of a request.
    pub fn said(self, body: &Value) -> &str {
        let text = match self {
            Dialect::Responses => &body["input"],
            Dialect::Messages => &body["messages"][0]["content"],
        };
        text.as_str().unwrap()
    }

    /// A request with this body, its key where current SDKs put it.
    pub fn post(self, body: impl Into<Bytes>, key: &str) -> Request {
        let request = Request::post(self.path(), body);
        match self {
            Dialect::Responses => request.bearer(key),
            Dialect::Messages => request
                .header("x-api-key", key)
                .header("anthropic-version", "2023-06-01"),
        }
    }

    /// A request with this key.
    pub fn request(self, model: &str, stream: bool, key: &str) -> Request {
        self.post(self.ask(model, stream).to_string(), key)
    }

    /// A request of the standard client for a stream.
    pub fn streamed(self, model: &str) -> Request {
        self.request(model, true, KEY)
    }

    /// A request of the standard client for JSON.
    pub fn plain(self, model: &str) -> Request {
        self.request(model, false, KEY)
    }

    /// As [`Dialect::plain`], in a conversation of its own.
    pub fn apart(self, model: &str) -> Request {
        self.post(self.ask_anew(model, false).to_string(), KEY)
    }

    // ---- what is answered

    /// A whole stream.
    pub fn stream(self, id: &str, deltas: &[&str]) -> Vec<Bytes> {
        match self {
            Dialect::Responses => {
                openai::responses_stream(self.model(), id, deltas, Default::default())
            }
            Dialect::Messages => Message::new(self.model(), id, &[Block::Text(deltas)]).stream(),
        }
    }

    /// A whole answer in JSON.
    pub fn json(self, id: &str, text: &str) -> Bytes {
        match self {
            Dialect::Responses => {
                openai::responses_json(self.model(), id, text, Default::default())
            }
            Dialect::Messages => Message::new(self.model(), id, &[Block::Text(&[text])]).json(),
        }
    }

    /// The beginning of a stream, up to the last of these deltas.
    pub fn cut(self, id: &str, deltas: &[&str]) -> Vec<Bytes> {
        match self {
            Dialect::Responses => openai::responses_cut(self.model(), id, deltas),
            Dialect::Messages => {
                let blocks = [Block::Text(deltas)];
                let message = Message::new(self.model(), id, &blocks);
                message.cut(PREAMBLE_OF_MESSAGES + deltas.len())
            }
        }
    }

    /// The beginning of a stream that has nothing of an answer yet.
    pub fn preamble(self, id: &str) -> Vec<Bytes> {
        match self {
            Dialect::Responses => openai::preamble(self.model(), id),
            Dialect::Messages => self.cut(id, &[]),
        }
    }

    /// An event that says that something went wrong.
    pub fn error_event(self, trouble: Trouble, text: &str) -> Bytes {
        match (self, trouble) {
            (Dialect::Responses, Trouble::Server) => openai::error_event("server_error", text),
            (Dialect::Responses, Trouble::Limited) => {
                openai::error_event("rate_limit_exceeded", text)
            }
            (Dialect::Messages, Trouble::Server) => anthropic::error_event("api_error", text),
            (Dialect::Messages, Trouble::Limited) => {
                anthropic::error_event("rate_limit_error", text)
            }
        }
    }

    /// A stream that says after these deltas (none: after its preamble) that something went wrong, in the way this
    /// dialect ends one.
    pub fn failed(self, id: &str, deltas: &[&str], trouble: Trouble, text: &str) -> Vec<Bytes> {
        let code = match trouble {
            Trouble::Server => "server_error",
            Trouble::Limited => "rate_limit_exceeded",
        };
        match self {
            Dialect::Responses => {
                openai::responses_failed(self.model(), id, deltas, code, text, None)
            }
            Dialect::Messages => {
                let mut frames = self.cut(id, deltas);
                frames.push(self.error_event(trouble, text));
                frames
            }
        }
    }

    /// [`Dialect::stream`] as an answer.
    pub fn sse(self, id: &str, deltas: &[&str]) -> Answer {
        Answer::sse(self.stream(id, deltas))
    }

    /// [`Dialect::json`] as an answer.
    pub fn body(self, id: &str, text: &str) -> Answer {
        Answer::body(200, "application/json", self.json(id, text))
    }

    /// An error status; `words` stand in its body.
    pub fn error(self, status: u16, words: &str) -> Answer {
        Answer::body(status, "application/json", self.error_body(status, words))
    }

    /// The body of [`Dialect::error`].
    pub fn error_body(self, status: u16, words: &str) -> Bytes {
        match self {
            Dialect::Responses => openai::error(status, words),
            Dialect::Messages => anthropic::error(status, words),
        }
    }

    // ---- what is read

    /// What keeps a silent stream alive.
    pub fn ping(self) -> &'static str {
        match self {
            Dialect::Responses => ":\n\n",
            Dialect::Messages => "event: ping\ndata: {\"type\": \"ping\"}\n\n",
        }
    }

    /// A stream without our pings; those of the answers here are spelled in another way.
    pub fn without_pings(self, stream: &[u8]) -> String {
        String::from_utf8_lossy(stream).replace(self.ping(), "")
    }

    /// The type of the event that begins a stream.
    pub fn begins(self) -> &'static str {
        match self {
            Dialect::Responses => "response.created",
            Dialect::Messages => "message_start",
        }
    }

    /// The type of the event that ends a stream.
    pub fn ends(self) -> &'static str {
        match self {
            Dialect::Responses => "response.completed",
            Dialect::Messages => "message_stop",
        }
    }

    /// The type of an event that brings text.
    pub fn delta(self) -> &'static str {
        match self {
            Dialect::Responses => "response.output_text.delta",
            Dialect::Messages => "content_block_delta",
        }
    }

    /// The text of an answer in JSON.
    pub fn text(self, answer: &Value) -> &str {
        let text = match self {
            Dialect::Responses => &answer["output"][0]["content"][0]["text"],
            Dialect::Messages => &answer["content"][0]["text"],
        };
        text.as_str().unwrap()
    }

    /// Whether this is the last event of a good stream, or a good answer in JSON.
    pub fn is_good(self, last: &Value) -> bool {
        match self {
            Dialect::Responses => last["type"] == self.ends() || last["status"] == "completed",
            Dialect::Messages => {
                last["type"] == self.ends()
                    || last["type"] == "message" && last["stop_reason"] == "end_turn"
            }
        }
    }

    /// Type and message of an error, which must have the form of this dialect and nothing more.
    pub fn refusal(self, error: &Value) -> (&str, &str) {
        let fields: Vec<&String> = error.as_object().expect("an object").keys().collect();
        match self {
            // An error event has more at the top.
            Dialect::Responses if error["type"] == "error" => {}
            Dialect::Responses => assert_eq!(fields, ["error"], "{error}"),
            Dialect::Messages => {
                assert_eq!(error["type"], "error", "{error}");
                assert_eq!(fields, ["error", "request_id", "type"], "{error}");
            }
        }
        let text = |name: &str| {
            let text = error["error"][name].as_str();
            text.unwrap_or_else(|| panic!("no {name}: {error}"))
        };
        (text("type"), text("message"))
    }

    /// The type that an error of ours has in this dialect; `kind` is that of the Responses API.
    pub fn kind(self, status: u16, kind: &'static str) -> &'static str {
        match (self, status) {
            (Dialect::Messages, 404) => "not_found_error",
            (Dialect::Messages, 413) => "request_too_large",
            _ => kind,
        }
    }
}

/// `message_start`, `content_block_start`, `ping`.
const PREAMBLE_OF_MESSAGES: usize = 3;

impl Setup {
    /// The same for clients of this dialect: every group and account is of its platform.
    pub fn speaking(self, dialect: Dialect) -> Setup {
        self.resources(|all| {
            for kind in ["groups", "accounts"] {
                for one in all[kind].as_array_mut().unwrap() {
                    one["platform"] = json!(dialect.platform());
                }
            }
        })
    }
}
