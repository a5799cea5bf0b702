//! Between an event stream and a single JSON answer of the Responses API, both ways.

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tollgate_filters::sse::SseScanner;
use tollgate_filters::usage::openai::{ResponsesObserver, Seen};

/// The response object of a whole event stream: that of its terminal event, with the output items
/// that went before it where the provider left them out. `None` when there is no terminal event.
pub fn to_json(stream: &Bytes) -> Option<(Bytes, ResponsesObserver)> {
    let mut scanner = SseScanner::new(stream.len());
    let mut observer = ResponsesObserver::new();
    let mut items = Vec::new();
    let mut response = None;
    let mut see = |event: tollgate_filters::sse::Event<'_>| {
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
    };
    scanner.feed(stream, &mut see).ok()?;
    scanner.finish(&mut see);
    let mut response = response?;
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
    let json = serde_json::to_vec(&response).ok()?;
    Some((json.into(), observer))
}

/// A whole answer as the one event a client needs.
pub fn to_event(response: &Bytes) -> Bytes {
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
    use super::*;

    #[test]
    fn a_stream_becomes_the_response_it_ends_with() {
        let stream = Bytes::from_static(
            b"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n\
              event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"item\":{\"n\":1}}\n\n\
              event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"output\":[],\
              \"usage\":{\"input_tokens\":5,\"output_tokens\":7}}}\n\n",
        );
        let (json, observer) = to_json(&stream).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["output"], serde_json::json!([{"n": 1}]));
        assert_eq!(observer.usage().unwrap().output, 7);
    }

    #[test]
    fn a_stream_without_an_end_is_no_answer() {
        assert!(
            to_json(&Bytes::from_static(
                b"data: {\"type\":\"response.created\"}\n\n"
            ))
            .is_none()
        );
    }

    #[test]
    fn json_becomes_one_event_that_reads_back() {
        let json = Bytes::from_static(b"{\n  \"id\": \"r\",\r\n  \"output\": []\n}");
        let (back, _) = to_json(&to_event(&json)).unwrap();
        let (back, json): (Value, Value) = (
            serde_json::from_slice(&back).unwrap(),
            serde_json::from_slice(&json).unwrap(),
        );
        assert_eq!(back, json);
    }
}
