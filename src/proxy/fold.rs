//! Between an event stream and a single JSON answer, both ways: for an upstream that gives the one where the other
//! was asked for.

mod messages;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tollgate_filters::peek;
use tollgate_filters::route::Dialect;
use tollgate_filters::sse::{Event, SseScanner};
use tollgate_filters::usage::openai::Seen;

use self::messages::Assembly;
use super::observe::Observer;

/// The answer that a whole event stream of this dialect comes to. `None` when the stream does not reach its end.
pub fn to_json(dialect: Dialect, stream: &Bytes) -> Option<(Bytes, Observer)> {
    let mut observer = Observer::of(dialect);
    let answer = match dialect {
        Dialect::Anthropic => {
            let mut message = Assembly::default();
            scan(stream, |event| {
                observer.event(&event);
                message.take(event.data);
            })?;
            message.finish()?
        }
        Dialect::OpenAi | Dialect::Google => response(stream, &mut observer)?,
    };
    let json = serde_json::to_vec(&answer).ok()?;
    Some((json.into(), observer))
}

/// The events that a client of this dialect needs of a whole answer. `None` for what is no answer.
pub fn to_events(dialect: Dialect, answer: &Bytes) -> Option<Bytes> {
    match dialect {
        Dialect::Anthropic => messages::to_events(answer),
        // Something that is not an answer cannot become an event.
        Dialect::OpenAi | Dialect::Google => {
            peek::peek(answer).is_ok().then(|| response_event(answer))
        }
    }
}

fn scan(stream: &Bytes, mut see: impl FnMut(Event<'_>)) -> Option<()> {
    let mut scanner = SseScanner::new(stream.len());
    scanner.feed(stream, &mut see).ok()?;
    scanner.finish(&mut see);
    Some(())
}

/// The response object of an event stream of the Responses API: that of its terminal event, with the output items
/// that went before it where the provider left them out.
fn response(stream: &Bytes, observer: &mut Observer) -> Option<Value> {
    let mut items = Vec::new();
    let mut response = None;
    scan(stream, |event| {
        let seen = observer.event(&event);
        match seen {
            Seen::Terminal(_) => {
                response = serde_json::from_slice::<Value>(event.data)
                    .ok()
                    .and_then(|mut event| event.get_mut("response").map(Value::take));
            }
            Seen::Output => {
                if memchr::memmem::find(event.data, b"response.output_item.done").is_some()
                    && let Ok(mut event) = serde_json::from_slice::<Value>(event.data)
                    && let Some(item) = event.get_mut("item")
                {
                    items.push(item.take());
                }
            }
            Seen::Preamble | Seen::Error | Seen::Done => {}
        }
    })?;
    let mut response: Value = response?;
    let is_empty = response
        .get("output")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty);
    if is_empty
        && !items.is_empty()
        && let Some(object) = response.as_object_mut()
    {
        object.insert("output".into(), Value::Array(items));
    }
    Some(response)
}

/// A response as the one event a client needs.
fn response_event(response: &Bytes) -> Bytes {
    let mut event = BytesMut::with_capacity(response.len() + 128);
    event.extend_from_slice(
        b"event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":0,\"response\":",
    );
    // One line of data: JSON has no line breaks outside of white space between its tokens.
    for line in response.split(|b| matches!(b, b'\n' | b'\r')) {
        event.extend_from_slice(line);
    }
    event.extend_from_slice(b"}\n\n");
    event.freeze()
}

#[cfg(test)]
mod tests {
    use tollgate_filters::usage::TokenUsage;

    use super::*;
    use crate::proxy::relay::Answer;

    fn usage(observer: &Observer) -> TokenUsage {
        let mut answer = Answer::default();
        observer.tell(&mut answer);
        answer.usage.unwrap()
    }

    #[test]
    fn a_stream_becomes_the_response_it_ends_with() {
        let stream = Bytes::from_static(
            b"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n\
              event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"item\":{\"n\":1}}\n\n\
              event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"output\":[],\
              \"usage\":{\"input_tokens\":5,\"output_tokens\":7}}}\n\n",
        );
        let (json, observer) = to_json(Dialect::OpenAi, &stream).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["output"], serde_json::json!([{"n": 1}]));
        assert_eq!(usage(&observer).output, 7);
    }

    #[test]
    fn a_stream_without_an_end_is_no_answer() {
        assert!(
            to_json(
                Dialect::OpenAi,
                &Bytes::from_static(b"data: {\"type\":\"response.created\"}\n\n")
            )
            .is_none()
        );
    }

    #[test]
    fn json_becomes_one_event_that_reads_back() {
        let json = Bytes::from_static(b"{\n  \"id\": \"r\",\r\n  \"output\": []\n}");
        let (back, _) = to_json(Dialect::OpenAi, &response_event(&json)).unwrap();
        let (back, json): (Value, Value) = (
            serde_json::from_slice(&back).unwrap(),
            serde_json::from_slice(&json).unwrap(),
        );
        assert_eq!(back, json);
    }

    #[test]
    fn a_message_becomes_events_and_they_become_the_message() {
        let message = serde_json::json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [
                { "type": "thinking", "thinking": "hm", "signature": "c2ln" },
                { "type": "text", "text": "Hel\nlo", "citations": null },
                { "type": "tool_use", "id": "t", "name": "n", "input": { "a": [1, "ü"] } },
                { "type": "something_new", "text": { "x": 1 } },
            ],
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": { "input_tokens": 5, "output_tokens": 7 },
        });
        let events = to_events(Dialect::Anthropic, &message.to_string().into()).unwrap();
        let (json, observer) = to_json(Dialect::Anthropic, &events).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), message);
        assert_eq!((usage(&observer).input, usage(&observer).output), (5, 7));

        let cut = events.slice(..events.len() - 20);
        assert!(to_json(Dialect::Anthropic, &cut).is_none());
        for body in ["{}", "[1]", "", r#"{"type":"error","error":{}}"#] {
            assert!(
                to_events(Dialect::Anthropic, &body.into()).is_none(),
                "{body}"
            );
        }
    }
}
