use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::sse::SseScanner;

/// What one event means, and the observer after it.
fn observe(name: &str, data: &str) -> (Seen, MessagesObserver) {
    let mut observer = MessagesObserver::new();
    let seen = see(&mut observer, name, data);
    (seen, observer)
}

fn see(observer: &mut MessagesObserver, name: &str, data: &str) -> Seen {
    observer.event(&Event {
        name: (!name.is_empty()).then_some(name.as_bytes()),
        data: data.as_bytes(),
    })
}

#[test]
fn tells_events_apart_by_name_or_type() {
    #[rustfmt::skip]
    let rows = [
        (json!({"type": "message_start", "message": {"id": "msg_1", "content": []}}), Seen::Preamble),
        (json!({"type": "ping"}), Seen::Preamble),
        (json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}), Seen::Preamble),
        (json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "a"}}), Seen::Output),
        (json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}), Seen::Preamble),
        (json!({"type": "content_block_start", "index": 0, "content_block": {"type": "compaction", "content": null}}), Seen::Preamble),
        (json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "n", "input": {}}}), Seen::Output),
        (json!({"type": "content_block_start", "index": 0, "content_block": {"type": "redacted_thinking", "data": "AA"}}), Seen::Output),
        (json!({"type": "content_block_start", "index": 0, "content_block": {"type": "brand_new"}}), Seen::Output),
        (json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}), Seen::Output),
        (json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ""}}), Seen::Preamble),
        (json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "a"}}), Seen::Output),
        (json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": ""}}), Seen::Preamble),
        (json!({"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{"}}), Seen::Output),
        (json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}}), Seen::Output),
        (json!({"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {}}}), Seen::Output),
        (json!({"type": "content_block_stop", "index": 0}), Seen::Preamble),
        (json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}), Seen::Output),
        (json!({"type": "message_stop"}), Seen::Terminal(Terminal::Completed)),
        (json!({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}), Seen::Error),
        (json!({"type": "brand_new"}), Seen::Output),
    ];
    for (data, expected) in rows {
        let name = data["type"].as_str().unwrap();
        let pretty = serde_json::to_string_pretty(&data).unwrap();
        for text in [data.to_string(), pretty] {
            assert_eq!(observe(name, &text).0, expected, "{text}");
            assert_eq!(observe("", &text).0, expected, "{text}, unnamed");
            assert_eq!(observe("message", &text).0, expected, "{text}, as message");
        }
    }
}

#[test]
fn tells_what_has_no_type() {
    for (name, data, expected) in [
        ("", "[DONE]", Seen::Done),
        ("", " [DONE] ", Seen::Done),
        ("", "", Seen::Preamble),
        ("ping", "", Seen::Preamble),
        ("", "{}", Seen::Output),
        ("", "hello", Seen::Output),
        ("", r#"{"error":null}"#, Seen::Output),
        ("", r#"{"error":{"message":"m"}}"#, Seen::Error),
        ("", r#"{"error":"stream_timeout"}"#, Seen::Error),
        ("error", "overloaded", Seen::Error),
        ("message_stop", "{}", Seen::Terminal(Terminal::Completed)),
        ("message_stop", r#"{"type":"mess"#, Seen::Output),
        ("message_stop", "", Seen::Output),
    ] {
        assert_eq!(observe(name, data).0, expected, "{name} {data}");
    }
}

#[test]
fn an_end_may_be_cut_short() {
    for (reason, expected) in [
        ("end_turn", Terminal::Completed),
        ("tool_use", Terminal::Completed),
        ("stop_sequence", Terminal::Completed),
        ("pause_turn", Terminal::Completed),
        ("max_tokens", Terminal::Incomplete),
        ("model_context_window_exceeded", Terminal::Incomplete),
        ("refusal", Terminal::Incomplete),
        ("brand_new", Terminal::Completed),
    ] {
        let mut observer = MessagesObserver::new();
        let delta = json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}});
        see(&mut observer, "message_delta", &delta.to_string());
        assert_eq!(observer.stop_reason(), Some(reason));
        let seen = see(&mut observer, "message_stop", r#"{"type":"message_stop"}"#);
        assert_eq!(seen, Seen::Terminal(expected), "{reason}");
    }
}

#[test]
fn later_counts_take_the_place_of_former_ones_where_they_are_more_than_nothing() {
    let tokens = |input, output, cache_creation, m5, h1, cache_read| TokenUsage {
        input,
        output,
        cache_creation,
        cache_creation_5m: m5,
        cache_creation_1h: h1,
        cache_read,
        image_output: 0,
    };
    let full = json!({
        "input_tokens": 10, "output_tokens": 1, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 40,
        "cache_creation": {"ephemeral_5m_input_tokens": 12, "ephemeral_1h_input_tokens": 18},
        "server_tool_use": {"web_search_requests": 3, "input_tokens": 99}, "service_tier": "standard",
        "output_tokens_details": {"thinking_tokens": 5}, "inference_geo": "eu",
    });
    #[rustfmt::skip]
    let rows = [
        (full.clone(), json!({"output_tokens": 50}), tokens(10, 50, 30, 12, 18, 40)),
        (full.clone(), json!({"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}), tokens(10, 1, 30, 12, 18, 40)),
        (full.clone(), json!({"input_tokens": 11, "output_tokens": 51, "cache_creation_input_tokens": 31, "cache_read_input_tokens": 41}), tokens(11, 51, 31, 12, 18, 41)),
        (full.clone(), json!({"output_tokens": 50, "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 25}}), tokens(10, 50, 37, 12, 25, 40)),
        (full.clone(), json!({"output_tokens": null, "input_tokens": "7"}), tokens(10, 1, 30, 12, 18, 40)),
        (full.clone(), json!(null), tokens(10, 1, 30, 12, 18, 40)),
        (json!({"input_tokens": 5}), json!({"output_tokens": 2}), tokens(5, 2, 0, 0, 0, 0)),
        (json!({}), json!({"input_tokens": 5, "output_tokens": 2}), tokens(5, 2, 0, 0, 0, 0)),
        // What others call the tokens read from a cache, and a sum that is left out.
        (json!({"input_tokens": 5, "cached_tokens": 9}), json!({"output_tokens": 2}), tokens(5, 2, 0, 0, 0, 9)),
        (json!({"input_tokens": 5, "cached_tokens": 9, "cache_read_input_tokens": 8}), json!({"output_tokens": 2}), tokens(5, 2, 0, 0, 0, 8)),
        (json!({"input_tokens": 5, "cache_read_input_tokens": 0}), json!({"output_tokens": 2, "cached_tokens": 9}), tokens(5, 2, 0, 0, 0, 9)),
        (json!({"input_tokens": 5, "cache_creation": {"ephemeral_1h_input_tokens": 4}}), json!({"output_tokens": 2.0}), tokens(5, 2, 4, 0, 4, 0)),
    ];
    for (start, delta, expected) in rows {
        let mut observer = MessagesObserver::new();
        let event = json!({"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": start}});
        see(&mut observer, "message_start", &event.to_string());
        assert!(!observer.is_final());
        let event = json!({"type": "message_delta", "delta": {}, "usage": delta});
        see(&mut observer, "message_delta", &event.to_string());
        assert_eq!(observer.usage(), Some(expected), "{start} {delta}");
        assert_eq!(
            observer.is_final(),
            delta["output_tokens"].is_number(),
            "{delta}"
        );
        assert_eq!(
            (observer.message_id(), observer.model()),
            (Some("msg_1"), Some("m"))
        );
    }
}

#[test]
fn nothing_reported_is_no_usage() {
    for usage in [
        json!(null),
        json!({}),
        json!(5),
        json!({"server_tool_use": {"web_search_requests": 1}}),
        json!({"input_tokens": -1}),
    ] {
        let event = json!({"type": "message_start", "message": {"usage": usage}}).to_string();
        assert_eq!(observe("message_start", &event).1.usage(), None, "{usage}");
    }
    let zeros = json!({"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}});
    let observer = observe("", &zeros.to_string()).1;
    assert_eq!(observer.usage(), Some(TokenUsage::default()));
}

#[test]
fn summaries_made_in_between_are_counted_with_the_rest() {
    let usage = json!({
        "input_tokens": 23, "output_tokens": 10, "cache_read_input_tokens": 1,
        "iterations": [
            {"type": "compaction", "input_tokens": 180, "output_tokens": 35, "cache_creation_input_tokens": 7,
                "cache_creation": {"ephemeral_1h_input_tokens": 7}, "cache_read_input_tokens": 2},
            {"type": "message", "input_tokens": 23, "output_tokens": 10},
            {"type": "advisor_message", "model": "other", "input_tokens": 500, "output_tokens": 500},
            {"input_tokens": 1, "output_tokens": 1, "type": "compaction"},
            5,
        ],
    });
    let expected = TokenUsage {
        input: 23 + 181,
        output: 10 + 36,
        cache_creation: 7,
        cache_creation_1h: 7,
        cache_read: 3,
        ..TokenUsage::default()
    };
    let mut plain = MessagesObserver::new();
    plain.json(
        json!({"type": "message", "usage": usage})
            .to_string()
            .as_bytes(),
    );
    assert_eq!(plain.usage(), Some(expected));
    // Each report has all of them so far: they are not added up.
    let mut observer = MessagesObserver::new();
    let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 23, "output_tokens": 1,
        "iterations": [{"type": "compaction", "input_tokens": 180, "output_tokens": 35}]}}});
    see(&mut observer, "", &start.to_string());
    for _ in 0..2 {
        let delta = json!({"type": "message_delta", "delta": {}, "usage": usage});
        see(&mut observer, "", &delta.to_string());
        assert_eq!(observer.usage(), Some(expected));
    }
    // A report without them leaves them.
    let delta = json!({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 11, "iterations": null}});
    see(&mut observer, "", &delta.to_string());
    assert_eq!(observer.usage().unwrap().output, 11 + 36);
}

#[test]
fn an_event_cut_off_keeps_what_it_got_to_say() {
    let whole = r#"{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":5},"model":"m"}}"#;
    let (id, usage) = (
        whole.find(r#","usage"#).unwrap(),
        whole.find(r#","model"#).unwrap(),
    );
    for cut in 0..whole.len() {
        let observer = observe("message_start", &whole[..cut]).1;
        assert_eq!(observer.message_id().is_some(), cut >= id, "cut at {cut}");
        assert_eq!(observer.usage().is_some(), cut >= usage, "cut at {cut}");
    }
}

#[test]
fn failures_say_what_they_say() {
    let failure = |kind: Option<&str>, message: Option<&str>| Failure {
        kind: kind.map(str::to_owned),
        code: None,
        message: message.map(str::to_owned),
    };
    for (data, expected) in [
        (
            r#"{"type":"error","error":{"type":"overloaded_error","message":"m"},"request_id":"r"}"#,
            failure(Some("overloaded_error"), Some("m")),
        ),
        (
            r#"{"type":"error","error":{"details":null,"message":"m","type":"t"}}"#,
            failure(Some("t"), Some("m")),
        ),
        (
            r#"{"error":"stream_timeout"}"#,
            failure(None, Some("stream_timeout")),
        ),
        (r#"{"type":"error"}"#, failure(None, None)),
        (r#"{"type":"error","error":null}"#, failure(None, None)),
        (r#"{"type":"error","error":"#, failure(None, None)),
        ("overloaded", failure(None, None)),
    ] {
        let (seen, observer) = observe("error", data);
        assert_eq!(
            (seen, observer.failure()),
            (Seen::Error, Some(&expected)),
            "{data}"
        );
    }
    let mut observer = MessagesObserver::new();
    observer.json(br#"{"type":"error","error":{"type":"api_error","message":"m"}}"#);
    assert_eq!(
        observer.failure(),
        Some(&failure(Some("api_error"), Some("m")))
    );
    assert_eq!((observer.usage(), observer.is_final()), (None, false));
    let long = format!(r#"{{"error":{{"message":"x{}"}}}}"#, "é".repeat(5000));
    let message = observe("error", &long).1.failure().unwrap().message.clone();
    assert_eq!(message.unwrap().len(), 4095);
}

#[test]
fn output_is_counted_as_text() {
    let mut observer = MessagesObserver::new();
    for (data, total) in [
        (
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"héy"}}"#,
            4,
        ),
        (
            r#"{"type":"content_block_delta","index":0,"delta":{"text":"\u00e9\n","type":"text_delta"}}"#,
            7,
        ),
        (
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"thinking_delta","thinking":"ab"}}"#,
            9,
        ),
        (
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"thinking_delta","thinking":"","estimated_tokens":7}}"#,
            9,
        ),
        (
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"delta\":1"}}"#,
            19,
        ),
        (
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"abcdef"}}"#,
            19,
        ),
        (
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"odd_delta","text":{"x":"y"}}}"#,
            19,
        ),
        (r#"{"type":"content_block_delta","index":0}"#, 19),
        (
            r#"{ "type": "content_block_delta", "delta" : { "text" : "x" } }"#,
            20,
        ),
        (
            r#"{"type":"content_block_start","index":3,"content_block":{"type":"text","text":"yz"}}"#,
            22,
        ),
        (
            r#"{"type":"content_block_start","index":4,"content_block":{"type":"tool_use","id":"i","name":"n","input":{}}}"#,
            22,
        ),
    ] {
        see(&mut observer, "", data);
        assert_eq!(observer.output_bytes(), total, "{data}");
    }
}

#[test]
fn a_plain_answer_reports_at_the_top() {
    let mut observer = MessagesObserver::new();
    observer.json(
        br#"{"id":"msg_9","type":"message","role":"assistant","model":"claude-x","stop_reason":"tool_use","content":[
        {"type":"thinking","thinking":"ab","signature":"zzz"},{"type":"text","text":"c\u00e9"},
        {"type":"tool_use","id":"t","name":"n","input":{"a":1}},{"type":"redacted_thinking","data":"AA"}],
        "usage":{"input_tokens":3,"output_tokens":12,"service_tier":"priority","speed":"fast"}}"#,
    );
    let expected = TokenUsage {
        input: 3,
        output: 12,
        ..TokenUsage::default()
    };
    assert_eq!(observer.usage(), Some(expected));
    assert!(observer.is_final());
    assert_eq!(
        (observer.message_id(), observer.model()),
        (Some("msg_9"), Some("claude-x"))
    );
    assert_eq!(observer.stop_reason(), Some("tool_use"));
    assert_eq!(
        (observer.service_tier(), observer.speed()),
        (Some("priority"), Some("fast"))
    );
    assert_eq!(
        (observer.failure(), observer.output_bytes()),
        (None, 2 + 3 + 7)
    );

    for body in ["", "null", "[]", "{}", "not json"] {
        let mut observer = MessagesObserver::new();
        observer.json(body.as_bytes());
        assert_eq!(
            (observer.usage(), observer.message_id()),
            (None, None),
            "{body}"
        );
        assert!(!observer.is_final());
    }
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![0..100_000u64, Just(0), any::<u64>()]
}

/// A usage object with any of its fields.
fn usage() -> impl Strategy<Value = Value> {
    let names = [
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cached_tokens",
    ];
    let lifetimes = prop::option::of((count(), count()));
    (
        prop::collection::vec(prop::option::of(count()), 5),
        lifetimes,
    )
        .prop_map(move |(counts, lifetimes)| {
            let mut usage = json!({});
            for (name, count) in names.iter().zip(counts) {
                if let Some(count) = count {
                    usage[name] = json!(count);
                }
            }
            if let Some((m5, h1)) = lifetimes {
                usage["cache_creation"] =
                    json!({"ephemeral_5m_input_tokens": m5, "ephemeral_1h_input_tokens": h1});
            }
            usage
        })
}

/// The usage that two reports come to: the rule, field by field.
fn merged(start: &Value, delta: &Value) -> Value {
    let mut merged = start.clone();
    for (name, value) in delta.as_object().unwrap() {
        match value {
            Value::Object(lifetimes) => {
                for (lifetime, value) in lifetimes {
                    if value.as_u64() > Some(0) {
                        merged[name][lifetime] = value.clone();
                    }
                }
            }
            _ if value.as_u64() > Some(0) => merged[name] = value.clone(),
            _ => {}
        }
    }
    merged
}

/// A stream as the provider writes it.
fn stream(start: &Value, delta: &Value, texts: &[String], line_end: &str, named: bool) -> String {
    let mut stream = String::new();
    let mut push = |data: Value| {
        if named {
            stream += &format!("event: {}{line_end}", data["type"].as_str().unwrap());
        }
        stream += &format!("data: {data}{line_end}{line_end}");
    };
    push(
        json!({"type": "message_start", "message": {"id": "msg_1", "model": "m", "content": [], "usage": start}}),
    );
    push(json!({"type": "ping"}));
    push(
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    );
    for text in texts {
        push(
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
        );
    }
    push(json!({"type": "content_block_stop", "index": 0}));
    push(json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta}));
    push(json!({"type": "message_stop"}));
    stream
}

proptest! {
    // Every case is split at every byte.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_of_a_stream_gives_the_same_usage(
        texts in prop::collection::vec("[a-z \\\\\"é]{0,20}", 0..4),
        (start, delta) in (usage(), usage()),
        line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        named in any::<bool>(),
        sizes in prop::collection::vec(1..40usize, 1..6),
    ) {
        let stream = stream(&start, &delta, &texts, line_end, named);
        let watch = |chunks: &[&[u8]]| {
            let mut scanner = SseScanner::new(1 << 20);
            let mut observer = MessagesObserver::new();
            let mut seen = Vec::new();
            for chunk in chunks {
                scanner.feed(chunk, |event| seen.push(observer.event(&event))).unwrap();
            }
            assert!(scanner.at_boundary());
            let id = observer.message_id().map(str::to_owned);
            (seen, observer.usage(), observer.output_bytes(), id)
        };
        let stream = stream.as_bytes();
        let whole = watch(&[stream]);
        prop_assert_eq!(whole.0.last(), Some(&Seen::Terminal(Terminal::Completed)));
        prop_assert_eq!(whole.3.as_deref(), Some("msg_1"));
        let bytes: usize = texts.iter().map(String::len).sum();
        prop_assert_eq!(whole.2, bytes as u64);
        let first = whole.0.iter().position(|seen| *seen == Seen::Output).unwrap();
        let first_text = texts.iter().position(|text| !text.is_empty());
        prop_assert_eq!(first, first_text.map_or(4 + texts.len(), |at| 3 + at));

        // A plain answer with the counts that these come to reports the same.
        let mut plain = MessagesObserver::new();
        let content = json!([{"type": "text", "text": texts.concat()}]);
        let body = json!({"id": "msg_1", "content": content, "usage": merged(&start, &delta)});
        plain.json(body.to_string().as_bytes());
        prop_assert_eq!(plain.usage(), whole.1);
        prop_assert_eq!(plain.output_bytes(), whole.2);

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

}

proptest! {
    #[test]
    fn no_event_upsets_it(
        name in "(message_start|message_delta|message_stop|content_block_start|content_block_delta|error|)",
        data in "\\PC{0,60}",
        json in "[\\[\\]{}\",:a-z0-9 ]{0,60}",
    ) {
        for data in [data, json] {
            let (_, mut observer) = observe(&name, &data);
            observer.json(data.as_bytes());
        }
    }
}
