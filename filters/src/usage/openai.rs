//! What an answer of the Responses API reports: its usage, its id, how it ended. Use [`ResponsesObserver`] on every
//! event of a stream, or on the body of a plain answer.
//!
//! Names of events and fields: <https://platform.openai.com/docs/api-reference/responses-streaming>.

mod answer;

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;

use self::answer::Answer;
use super::{Failure, TokenUsage};
use crate::json::Cursor;
use crate::peek::find_string_at;
use crate::sse::Event;

/// What an event means for the stream it stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Nothing of the answer yet: it was created, is queued or in progress, or the connection is kept alive.
    Preamble,
    /// Part of the answer, or something unknown.
    Output,
    /// The answer has ended.
    Terminal(Terminal),
    /// An `error` event: the stream has failed.
    Error,
    /// `[DONE]`
    Done,
}

/// How an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Terminal {
    /// In full.
    Completed,
    /// Cut short by a limit or a filter.
    Incomplete,
    /// It failed; see [`ResponsesObserver::failure`].
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// Made once: that costs more than a search in a small event.
static DELTA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"delta\":"));

/// Watches one answer of the Responses API go by.
#[derive(Clone, Debug)]
pub struct ResponsesObserver {
    delta_bytes: u64,
    /// Images that finished in the stream, by their own events and as output items.
    images_completed: u32,
    image_items: u32,
    answer: Answer,
}

impl Default for ResponsesObserver {
    fn default() -> Self {
        Self::new()
    }
}

impl ResponsesObserver {
    /// An observer of an answer of which nothing has been seen.
    pub fn new() -> Self {
        ResponsesObserver {
            delta_bytes: 0,
            images_completed: 0,
            image_items: 0,
            answer: Answer::default(),
        }
    }

    /// Takes the next event of a stream and tells what it means.
    ///
    /// A terminal event counts as such only when its data is whole: one cut off leaves the stream unfinished, though
    /// a usage it still got to report is kept.
    pub fn event(&mut self, event: &Event<'_>) -> Seen {
        let data = event.data;
        match event.name {
            Some(name) if name.starts_with(b"response.") || name == b"error" => {
                self.named(name, data)
            }
            _ => match kind(data) {
                Kind::Named(span) => self.named(&data[span], data),
                Kind::Done => Seen::Done,
                Kind::Nothing => Seen::Preamble,
                Kind::Error => self.error(data),
                Kind::Unknown => Seen::Output,
            },
        }
    }

    /// Takes the whole body of a plain answer. A body that is no response object reports nothing.
    pub fn json(&mut self, body: &[u8]) {
        let mut cursor = Cursor::new(body);
        // What stands before a flaw is kept.
        let _ = self.answer.read(&mut cursor);
    }

    /// The tokens reported by the end of the answer, however it ended; the last report wins.
    pub fn usage(&self) -> Option<TokenUsage> {
        self.answer.usage
    }

    /// The id of the response.
    pub fn response_id(&self) -> Option<&str> {
        self.answer.id.as_deref()
    }

    /// The service tier that the end of the answer reported.
    pub fn service_tier(&self) -> Option<&str> {
        self.answer.service_tier.as_deref()
    }

    /// What went wrong, by an `error` event or a failed response.
    pub fn failure(&self) -> Option<&Failure> {
        self.answer.failure.as_ref()
    }

    /// Bytes of output seen (texts, arguments, reasoning), as UTF-8: what to estimate from when no usage was reported.
    pub fn output_bytes(&self) -> u64 {
        self.delta_bytes.max(self.answer.output_bytes)
    }

    /// Images the answer brought.
    pub fn image_count(&self) -> u32 {
        self.images_completed
            .max(self.image_items)
            .max(self.answer.images)
    }

    fn named(&mut self, name: &[u8], data: &[u8]) -> Seen {
        match name {
            b"response.created" | b"response.queued" | b"response.in_progress" => {
                if self.answer.id.is_none() {
                    self.answer.id = find_string_at(data, &["response", "id"])
                        .and_then(|span| serde_json::from_slice(&data[span]).ok());
                }
                Seen::Preamble
            }
            b"keepalive" | b"ping" | b"codex.rate_limits" => Seen::Preamble,
            b"response.completed" | b"response.done" => self.terminal(Terminal::Completed, data),
            b"response.incomplete" => self.terminal(Terminal::Incomplete, data),
            b"response.failed" => self.terminal(Terminal::Failed, data),
            b"response.cancelled" | b"response.canceled" => {
                self.terminal(Terminal::Cancelled, data)
            }
            b"error" => self.error(data),
            b"response.image_generation_call.completed" => {
                self.images_completed += 1;
                Seen::Output
            }
            b"response.output_item.done" => {
                let kind = find_string_at(data, &["item", "type"]);
                self.image_items +=
                    u32::from(kind.is_some_and(|span| answer::is_image(&data[span])));
                Seen::Output
            }
            _ => {
                if name.ends_with(b".delta") {
                    self.delta_bytes += self.delta_len(data);
                }
                Seen::Output
            }
        }
    }

    /// The length of the string called `delta`.
    fn delta_len(&self, data: &[u8]) -> u64 {
        // Inside a string the quotes would be escaped: this is the key.
        let delta = DELTA.find(data).and_then(|at| {
            let value = &data[at + DELTA.needle().len()..];
            Cursor::new(value).value().ok()?.text()
        });
        delta.map_or(0, |text| text.decoded_len() as u64)
    }

    fn terminal(&mut self, named: Terminal, data: &[u8]) -> Seen {
        let Ok(status) = self.answer.read_event(data) else {
            return Seen::Output;
        };
        // `response.done` is the end whatever it was; the response knows.
        let terminal = match status.as_deref() {
            Some("incomplete") => Terminal::Incomplete,
            Some("failed") => Terminal::Failed,
            Some("cancelled" | "canceled") => Terminal::Cancelled,
            _ => named,
        };
        if terminal == Terminal::Failed {
            self.answer.failure.get_or_insert_default();
        }
        Seen::Terminal(terminal)
    }

    fn error(&mut self, data: &[u8]) -> Seen {
        self.answer.failure = Some(answer::error_event(data));
        Seen::Error
    }
}

/// What the data of an event says it is.
enum Kind {
    /// Its `type`, as a place in the data.
    Named(Range<usize>),
    Done,
    Nothing,
    /// No type, but an error object: relays write these.
    Error,
    Unknown,
}

fn kind(data: &[u8]) -> Kind {
    // As OpenAI writes it; no need to walk.
    const HEAD: &[u8] = b"{\"type\":\"";
    if let Some(rest) = data.strip_prefix(HEAD)
        && let Some(length) = memchr::memchr2(b'"', b'\\', rest)
        && rest[length] == b'"'
    {
        return Kind::Named(HEAD.len()..HEAD.len() + length);
    }
    match data.trim_ascii() {
        b"" => return Kind::Nothing,
        b"[DONE]" => return Kind::Done,
        _ => {}
    }
    if let Some(span) = find_string_at(data, &["type"]) {
        return Kind::Named(span.start + 1..span.end - 1);
    }
    let mut cursor = Cursor::new(data);
    let has_error = cursor.object().is_ok_and(|is_object| is_object)
        && cursor.seek(b"error").is_ok_and(|found| found)
        && cursor.object().is_ok_and(|is_object| is_object);
    if has_error {
        Kind::Error
    } else {
        Kind::Unknown
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sse::SseScanner;

    fn event<'a>(name: &'a str, data: &'a str) -> Event<'a> {
        Event {
            name: (!name.is_empty()).then_some(name.as_bytes()),
            data: data.as_bytes(),
        }
    }

    /// What one event means, and the observer after it.
    fn observe(name: &str, data: &str) -> (Seen, ResponsesObserver) {
        let mut observer = ResponsesObserver::new();
        let seen = observer.event(&event(name, data));
        (seen, observer)
    }

    #[test]
    fn tells_events_apart_by_name_or_type() {
        use Terminal::*;
        for (kind, expected) in [
            ("response.created", Seen::Preamble),
            ("response.queued", Seen::Preamble),
            ("response.in_progress", Seen::Preamble),
            ("keepalive", Seen::Preamble),
            ("response.output_item.added", Seen::Output),
            ("response.output_text.delta", Seen::Output),
            ("response.reasoning_summary_part.added", Seen::Output),
            ("response.brand_new", Seen::Output),
            ("brand_new", Seen::Output),
            ("response.completed", Seen::Terminal(Completed)),
            ("response.done", Seen::Terminal(Completed)),
            ("response.incomplete", Seen::Terminal(Incomplete)),
            ("response.failed", Seen::Terminal(Failed)),
            ("response.cancelled", Seen::Terminal(Cancelled)),
            ("response.canceled", Seen::Terminal(Cancelled)),
            ("error", Seen::Error),
        ] {
            let data = format!(r#"{{"type":"{kind}","response":{{}}}}"#);
            assert_eq!(observe(kind, &data).0, expected, "{kind}");
            assert_eq!(observe("", &data).0, expected, "{kind}, unnamed");
            assert_eq!(observe("message", &data).0, expected, "{kind}, as message");
            let data = format!(r#"{{ "response": {{"type":"x"}}, "type" : "{kind}" }}"#);
            assert_eq!(observe("", &data).0, expected, "{kind}, type last");
        }
    }

    #[test]
    fn tells_what_has_no_type() {
        for (data, expected) in [
            ("[DONE]", Seen::Done),
            (" [DONE] ", Seen::Done),
            ("", Seen::Preamble),
            ("{}", Seen::Output),
            ("hello", Seen::Output),
            (r#"{"error":null}"#, Seen::Output),
            (r#"{"error":{"message":"m"}}"#, Seen::Error),
        ] {
            assert_eq!(observe("", data).0, expected, "{data}");
        }
    }

    #[test]
    fn response_done_ends_as_its_status_says() {
        for (status, expected) in [
            ("completed", Terminal::Completed),
            ("incomplete", Terminal::Incomplete),
            ("failed", Terminal::Failed),
            ("cancelled", Terminal::Cancelled),
            ("odd", Terminal::Completed),
        ] {
            let data = format!(r#"{{"type":"response.done","response":{{"status":"{status}"}}}}"#);
            assert_eq!(observe("", &data).0, Seen::Terminal(expected), "{status}");
        }
    }

    #[test]
    fn every_end_reports_its_usage() {
        for name in ["completed", "done", "incomplete", "failed", "cancelled"] {
            let data = format!(
                r#"{{"type":"response.{name}","response":{{"id":"resp_1","service_tier":"flex","usage":
                {{"input_tokens":10,"input_tokens_details":{{"cached_tokens":4}},"output_tokens":7}}}}}}"#
            );
            let observer = observe("", &data).1;
            let expected = TokenUsage {
                input: 6,
                cache_read: 4,
                output: 7,
                ..TokenUsage::default()
            };
            assert_eq!(observer.usage(), Some(expected), "{name}");
            assert_eq!(observer.response_id(), Some("resp_1"));
            assert_eq!(observer.service_tier(), Some("flex"));
        }
        let created = r#"{"type":"response.created","response":{"id":"resp_1","service_tier":"auto","usage":{"input_tokens":1}}}"#;
        let observer = observe("", created).1;
        assert_eq!(observer.usage(), None);
        assert_eq!(observer.service_tier(), None);
        assert_eq!(observer.response_id(), Some("resp_1"));
    }

    #[test]
    fn the_last_report_wins_and_null_is_no_report() {
        let mut observer = ResponsesObserver::new();
        for (usage, expected) in [
            ("null", None),
            (r#"{"input_tokens":1}"#, Some(1)),
            ("null", Some(1)),
            (r#"{"input_tokens":2}"#, Some(2)),
        ] {
            let data = format!(r#"{{"response":{{"usage":{usage}}}}}"#);
            observer.event(&event("response.completed", &data));
            assert_eq!(observer.usage().map(|usage| usage.input), expected);
        }
    }

    #[test]
    fn a_terminal_event_cut_off_is_no_end_but_its_usage_counts() {
        let whole =
            r#"{"type":"response.completed","response":{"usage":{"output_tokens":5},"user":null}}"#;
        let reported = whole.find(r#","user"#).unwrap();
        for cut in 0..whole.len() {
            let (seen, observer) = observe("response.completed", &whole[..cut]);
            assert_eq!(seen, Seen::Output, "cut at {cut}");
            assert_eq!(observer.usage().is_some(), cut >= reported, "cut at {cut}");
        }
        assert_eq!(observe("", whole).0, Seen::Terminal(Terminal::Completed));
    }

    #[test]
    fn failures_say_what_they_say() {
        let failure = |kind: Option<&str>, code: Option<&str>, message: Option<&str>| Failure {
            kind: kind.map(str::to_owned),
            code: code.map(str::to_owned),
            message: message.map(str::to_owned),
        };
        for (data, expected) in [
            (
                r#"{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"m"}}}"#,
                failure(None, Some("rate_limit_exceeded"), Some("m")),
            ),
            (
                r#"{"type":"response.failed","response":{"error":null}}"#,
                failure(None, None, None),
            ),
            (
                r#"{"type":"error","code":"c","message":"m","param":null}"#,
                failure(None, Some("c"), Some("m")),
            ),
            (
                r#"{"type":"error","error":{"type":"t","code":null,"message":"n"},"message":"m","code":"c"}"#,
                failure(Some("t"), Some("c"), Some("n")),
            ),
            (
                r#"{"error":{"type":"t","code":503,"message":"m"}}"#,
                failure(Some("t"), Some("503"), Some("m")),
            ),
            (
                r#"{"type":"error","error":"text"}"#,
                failure(None, None, Some("text")),
            ),
            (r#"{"type":"error","message":"#, failure(None, None, None)),
        ] {
            assert_eq!(observe("", data).1.failure(), Some(&expected), "{data}");
        }
        assert_eq!(
            observe(
                "",
                r#"{"type":"response.completed","response":{"error":null}}"#
            )
            .1
            .failure(),
            None
        );
        assert_eq!(
            observe(
                "",
                r#"{"type":"response.incomplete","response":{"error":null}}"#
            )
            .1
            .failure(),
            None
        );
    }

    #[test]
    fn output_is_counted_as_text() {
        let mut observer = ResponsesObserver::new();
        for (data, total) in [
            (
                r#"{"type":"response.output_text.delta","item_id":"\"delta\":","delta":"héy","logprobs":[]}"#,
                4,
            ),
            (
                r#"{"type":"response.function_call_arguments.delta","delta": "{\"a\":\u00e9}"}"#,
                4 + 8,
            ),
            (r#"{"type":"response.reasoning_text.delta","delta":""}"#, 12),
            (r#"{"type":"response.odd.delta","delta":{"x":"y"}}"#, 12),
            (r#"{"type":"response.odd.delta"}"#, 12),
            (
                r#"{"type":"response.output_text.done","text":"hey","delta":"x"}"#,
                12,
            ),
            (
                r#"{"type":"response.completed","response":{"output":[{"content":[{"text":"short"}]}]}}"#,
                12,
            ),
        ] {
            observer.event(&event("", data));
            assert_eq!(observer.output_bytes(), total, "{data}");
        }
    }

    #[test]
    fn images_are_counted_once() {
        let mut observer = ResponsesObserver::new();
        for data in [
            r#"{"type":"response.image_generation_call.completed","item_id":"ig_1"}"#,
            r#"{"type":"response.output_item.done","item":{"id":"ig_1","type":"image_generation_call","result":"AAAA"}}"#,
            r#"{"type":"response.output_item.done","item":{"id":"m","type":"message"}}"#,
        ] {
            observer.event(&event("", data));
            assert_eq!(observer.image_count(), 1, "{data}");
        }
        let end = r#"{"type":"response.completed","response":{"output":[
            {"type":"image_generation_call","status":"completed","result":"AAAA"},
            {"type":"message"},
            {"type":"image_generation_call","status":"generating","result":"AAAA"},
            {"type":"image_generation_call","status":"failed","result":null}]}}"#;
        observer.event(&event("", end));
        assert_eq!(observer.image_count(), 2);
    }

    #[test]
    fn a_plain_answer_reports_at_the_top() {
        let mut observer = ResponsesObserver::new();
        observer.json(
            br#"{"id":"resp_9","object":"response","service_tier":"priority","error":null,"output":[
            {"type":"reasoning","summary":[{"type":"summary_text","text":"ab"}]},
            {"type":"function_call","arguments":"cd"},
            {"type":"message","content":[{"type":"output_text","text":"e\u00e9"},{"type":"refusal","refusal":"f"}]}],
            "usage":{"input_tokens":3,"output_tokens":12,"output_tokens_details":{"image_tokens":5},"total_tokens":15}}"#,
        );
        let expected = TokenUsage {
            input: 3,
            output: 7,
            image_output: 5,
            ..TokenUsage::default()
        };
        assert_eq!(observer.usage(), Some(expected));
        assert_eq!(observer.response_id(), Some("resp_9"));
        assert_eq!(observer.service_tier(), Some("priority"));
        assert_eq!(observer.failure(), None);
        assert_eq!(observer.output_bytes(), 8);

        for body in ["", "null", "[]", "{}", "not json"] {
            let mut observer = ResponsesObserver::new();
            observer.json(body.as_bytes());
            assert_eq!(observer.usage(), None, "{body}");
            assert_eq!(observer.response_id(), None, "{body}");
        }
    }

    fn count() -> impl Strategy<Value = u64> {
        prop_oneof![0..100_000u64, Just(0), any::<u64>()]
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_gives_the_same_usage(
            deltas in prop::collection::vec("[a-z \\\\\"é]{0,20}", 0..8),
            (input, cached, output, images) in (count(), count(), count(), count()),
            line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            named in any::<bool>(),
            sizes in prop::collection::vec(1..40usize, 1..6),
        ) {
            let mut stream = String::new();
            let mut push = |kind: &str, data: serde_json::Value| {
                if named {
                    stream += &format!("event: {kind}{line_end}");
                }
                stream += &format!("data: {data}{line_end}{line_end}");
            };
            push("response.created", serde_json::json!({"type": "response.created", "response": {"id": "resp_1"}}));
            for delta in &deltas {
                push("response.output_text.delta", serde_json::json!({"type": "response.output_text.delta", "delta": delta}));
            }
            push("response.completed", serde_json::json!({"type": "response.completed", "response": {
                "id": "resp_1",
                "usage": {
                    "input_tokens": input, "input_tokens_details": {"cached_tokens": cached},
                    "output_tokens": output, "output_tokens_details": {"image_tokens": images},
                },
            }}));
            let watch = |chunks: &[&[u8]]| {
                let mut scanner = SseScanner::new(1 << 20);
                let mut observer = ResponsesObserver::new();
                let mut seen = Vec::new();
                for chunk in chunks {
                    scanner.feed(chunk, |event| seen.push(observer.event(&event))).unwrap();
                }
                assert!(scanner.at_boundary());
                (seen, observer.usage(), observer.output_bytes(), observer.response_id().map(str::to_owned))
            };
            let stream = stream.as_bytes();
            let whole = watch(&[stream]);
            prop_assert_eq!(whole.0.last(), Some(&Seen::Terminal(Terminal::Completed)));
            prop_assert_eq!(whole.1, Some(TokenUsage {
                input: input.saturating_sub(cached),
                cache_read: cached,
                output: output.saturating_sub(images),
                image_output: images,
                ..TokenUsage::default()
            }));
            prop_assert_eq!(whole.2, deltas.iter().map(|delta| delta.len() as u64).sum::<u64>());
            prop_assert_eq!(whole.3.as_deref(), Some("resp_1"));

            for at in 0..=stream.len() {
                let (head, tail) = stream.split_at(at);
                prop_assert_eq!(&watch(&[head, tail]), &whole, "split at {}", at);
            }
            let mut rest = stream;
            let mut chunks = Vec::new();
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at((*size).min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            prop_assert_eq!(&watch(&chunks), &whole);
        }

        #[test]
        fn no_event_upsets_it(name in "(response\\.(completed|created|failed|x\\.delta)|error|)", data in "\\PC{0,60}") {
            let mut observer = ResponsesObserver::new();
            observer.event(&event(&name, &data));
            observer.json(data.as_bytes());
        }
    }
}
