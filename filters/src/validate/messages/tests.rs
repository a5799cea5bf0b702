use proptest::prelude::*;
use serde_json::{Value as Tree, json};

use super::*;

fn refused(body: &str) -> Option<String> {
    messages(body.as_bytes())
        .err()
        .map(|error| error.to_string())
}

#[test]
fn checks_come_in_order() {
    const PARSE: Option<&str> = Some("Failed to parse request body");
    const MODEL: Option<&str> = Some("model is required");
    for (body, expected) in [
        ("", PARSE),
        ("{", PARSE),
        (r#"{"model":"m"} x"#, PARSE),
        (r#"{"model":"m","messages":[{"role":"user",}]}"#, PARSE),
        ("[]", MODEL),
        ("null", MODEL),
        ("{}", MODEL),
        (r#"{"model":""}"#, MODEL),
        (r#"{"model":"m","model":""}"#, MODEL),
        (r#"{"model":"","model":"m"}"#, None),
        (r#"{"model":null}"#, PARSE),
        (r#"{"model":5}"#, PARSE),
        (r#"{"model":["m"]}"#, PARSE),
        (r#"{"model":"m","stream":null}"#, PARSE),
        (r#"{"model":"m","stream":1}"#, PARSE),
        (r#"{"model":"","stream":"true"}"#, PARSE),
        (r#"{"stream":"true"}"#, MODEL),
        (r#"{"model":"m","stream":"true","stream":true}"#, None),
        // Whatever else is odd is the provider's to refuse.
        (r#"{"model":"m"}"#, None),
        (r#"{"model":"m","messages":"hi","max_tokens":"x"}"#, None),
        (
            r#"{"model":"m","messages":[1,"x",null,{"content":7}],"system":5}"#,
            None,
        ),
        (
            r#"{"model":"m","metadata":null,"thinking":[],"output_config":"x","tools":{}}"#,
            None,
        ),
        (
            r#"{"model":"m","messages":[{"role":"system","content":[{"type":"brand_new"}]}]}"#,
            None,
        ),
    ] {
        assert_eq!(refused(body).as_deref(), expected, "{body}");
    }
    assert_eq!(messages(b"{\"model\":\"\xff\"}"), Err(Invalid::Parse));
}

#[test]
fn what_is_kept_of_every_value_is_bounded() {
    let body = |field: &str, count: usize| {
        format!(
            r#"{{"model":"m"{}}}"#,
            format!(r#","{field}":"m""#).repeat(count)
        )
    };
    assert_eq!(refused(&body("model", MODEL_SPANS - 1)), None);
    assert_eq!(
        refused(&body("model", MODEL_SPANS)).unwrap(),
        "model is given more than 8 times"
    );
    assert_eq!(refused(&body("max_tokens", MODEL_SPANS)), None);
    assert_eq!(
        refused(&body("max_tokens", MODEL_SPANS + 1)).unwrap(),
        "max_tokens is given more than 8 times"
    );
}

#[test]
fn gives_what_decides() {
    let body = br#"{"model":"claude-x","max_tokens":5,"stream":true,"system":null,"mod\u0065l":"claude-y",
        "metadata":{"user_id":"{\"a\":1}"},"thinking":{"type":"adaptive"},"output_config":{"effort":"max"},
        "service_tier":"auto","speed":" ","tools":[{"name":"t"}],"max_tokens": 1024.0 ,
        "messages":[{"role":"user","content":"hi"}]}"#;
    let request = messages(body).unwrap();
    assert_eq!(request.model, "claude-y");
    let at = |spans: &[Range<usize>]| -> Vec<&str> {
        let text = |span: &Range<usize>| std::str::from_utf8(&body[span.clone()]).unwrap();
        spans.iter().map(text).collect()
    };
    assert_eq!(at(&request.model_spans), [r#""claude-x""#, r#""claude-y""#]);
    assert_eq!(at(&request.max_tokens_spans), ["5", "1024.0"]);
    assert_eq!(request.max_tokens, Some(1024));
    assert!(request.stream && request.thinking && request.has_tools && request.has_system());
    assert_eq!(request.system, b"null");
    assert_eq!(request.user_id.as_deref(), Some(r#"{"a":1}"#));
    assert_eq!(request.effort.as_deref(), Some("max"));
    assert_eq!(request.service_tier.as_deref(), Some("auto"));
    assert_eq!(request.speed, None);
    assert_eq!(request.messages, br#"[{"role":"user","content":"hi"}]"#);
    assert!(request.last.is_real_user());
    assert_eq!(request.hosted, Hosted::default());

    let request = messages(br#"{"model":"m","thinking":{"type":"disabled"},"tools":[]}"#).unwrap();
    assert!(!request.stream && !request.thinking && !request.has_tools && !request.has_system());
    assert_eq!((request.max_tokens, request.user_id), (None, None));
    for (max_tokens, expected) in [
        ("0", Some(0)),
        ("1", Some(1)),
        ("1.5", None),
        ("-1", None),
        ("\"1\"", None),
        ("null", None),
    ] {
        let body = format!(r#"{{"model":"m","max_tokens":{max_tokens}}}"#);
        let request = messages(body.as_bytes()).unwrap();
        assert_eq!(request.max_tokens, expected, "{max_tokens}");
    }
}

#[test]
fn the_last_message_may_be_somebodys_or_a_tools() {
    // From the user, a tool's result, something else, a suggestion.
    #[rustfmt::skip]
    let rows = [
        (json!([]), [false; 4]),
        (json!([{"role": "user", "content": "hi"}]), [true, false, true, false]),
        (json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]), [true, false, true, false]),
        (json!([{"role": "user", "content": [{"type": "image"}]}]), [true, false, true, false]),
        (json!([{"role": "user", "content": []}]), [true, false, false, false]),
        (json!([{"role": "user"}]), [true, false, false, false]),
        (json!([{"role": "user", "content": [{"type": "tool_result"}]}]), [true, true, false, false]),
        (json!([{"role": "user", "content": [{"type": "tool_result"}, {"type": "text"}]}]), [true, true, true, false]),
        (json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]), [false, false, true, false]),
        (json!([{"role": "assistant", "content": "ho"}, {"role": "user", "content": "hi"}]), [true, false, true, false]),
        (json!([{"role": "user", "content": "hi"}, 5]), [false; 4]),
        (json!([{"role": "user", "content": "[SUGGESTION MODE: x]"}]), [true, false, true, true]),
        (json!([{"role": "user", "content": " [SUGGESTION MODE: x]"}]), [true, false, true, false]),
        (json!([{"role": "assistant", "content": "[SUGGESTION MODE: x]"}]), [false, false, true, false]),
        (json!([{"role": "user", "content": "[SUGGESTION MODE: x]"}, {"role": "user", "content": "hi"}]), [true, false, true, false]),
        (json!([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "[SUGGESTION MODE: x]"}]}]), [true, false, true, true]),
        (json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "[SUGGESTION MODE: x]"}]}]), [true, false, true, false]),
        (json!([{"role": "user", "content": [{"type": "thinking", "text": "[SUGGESTION MODE: x]"}]}]), [true, false, true, false]),
    ];
    for (list, expected) in rows {
        let body = json!({"model": "m", "messages": list}).to_string();
        let last = messages(body.as_bytes()).unwrap().last;
        let found = [
            last.from_user,
            last.has_tool_result,
            last.has_other,
            last.asks_suggestion,
        ];
        assert_eq!(found, expected, "{body}");
        assert_eq!(last.is_real_user(), expected[0] && !expected[1], "{body}");
    }
    // Of two contents the last counts, and a role may come behind.
    let body = br#"{"model":"m","messages":[{"content":"[SUGGESTION MODE:","content":[{"type":"tool_result"}],"role":"user"}]}"#;
    let last = messages(body).unwrap().last;
    assert!(last.from_user && last.has_tool_result && !last.has_other && !last.asks_suggestion);
}

#[test]
fn what_is_not_in_the_body_is_told() {
    let of = |field: &str, value: Tree| {
        let mut body = json!({"model": "m"});
        body[field] = value;
        messages(body.to_string().as_bytes()).unwrap().hosted
    };
    let block = |block: Tree| of("messages", json!([{"role": "user", "content": [block]}]));
    let tool = |kind: &str| of("tools", json!([{"name": "t"}, {"type": kind, "name": "t"}]));

    #[rustfmt::skip]
    let things = [
        tool("web_search_20250305"), tool("web_fetch_20260318"), tool("code_execution_20250825"),
        tool("tool_search_tool_bm25_20251119"), tool("mcp_toolset"), tool("brand_new_20300101"),
        of("container", json!("container_1")), of("container", json!({"skills": []})),
        of("mcp_servers", json!([{"type": "url", "url": "https://x"}])),
        of("thread", json!({"type": "create"})),
        block(json!({"type": "image", "source": {"type": "url", "url": "https://x"}})),
        block(json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}})),
        block(json!({"source": {"file_id": "file_1", "type": "file"}, "type": "document"})),
        block(json!({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"}})),
        block(json!({"type": "container_upload", "file_id": "file_1"})),
        block(json!({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]})),
        block(json!({"type": "document", "source": {"type": "content", "content": [{"type": "image", "source": {"type": "url"}}]}})),
    ];
    for (index, hosted) in things.iter().enumerate() {
        assert!(hosted.things, "row {index}");
        assert!(
            !hosted.other_models && hosted.inline_images == 0,
            "row {index}"
        );
    }
    let advisor = tool("advisor_20260301");
    assert!(advisor.things && advisor.other_models);
    let fallbacks = of("fallbacks", json!([{"model": "n"}]));
    assert!(fallbacks.other_models && !fallbacks.things);
    assert!(of("fallbacks", json!("default")).other_models);

    let image = json!({"type": "image", "source": {"type": "base64", "data": "AA"}});
    let images = block(json!({"type": "tool_result", "content": [image, image]}));
    assert_eq!((images.inline_images, images.things), (2, false));

    #[rustfmt::skip]
    let nothing = [
        tool("custom"), tool("bash_20250124"), tool("text_editor_20250728"), tool("computer_20251124"),
        tool("computer_toolset_20260801"), tool("browser_toolset_20260801"), tool("memory_20250818"),
        of("container", json!(null)), of("mcp_servers", json!([])), of("thread", json!(null)), of("fallbacks", json!([])),
        block(json!({"type": "text", "text": "{\"type\":\"url\"}"})),
        block(json!({"type": "tool_use", "input": {"source": {"type": "url"}, "file_id": "file_1"}})),
        block(json!({"type": "search_result", "source": "https://x", "content": [{"type": "text", "text": "x"}]})),
        block(json!({"type": "document", "source": {"type": "text", "data": "x"}})),
        of("messages", json!([{"role": "user", "content": "file_id"}])),
        of("metadata", json!({"container": "c", "mcp_servers": [1]})),
    ];
    for (index, hosted) in nothing.iter().enumerate() {
        assert_eq!(*hosted, Hosted::default(), "row {index}");
    }
}

/// The same by a tree: what the pass over bytes is held against.
fn by_tree(body: &Tree) -> (Option<String>, LastMessage) {
    let mut last = LastMessage::default();
    if let Some(message) = body["messages"].as_array().and_then(|list| list.last()) {
        last.from_user = message["role"] == "user";
        let mut blocks = match &message["content"] {
            Tree::String(text) => vec![json!({"type": "text", "text": text})],
            Tree::Array(blocks) => blocks.clone(),
            _ => Vec::new(),
        };
        last.has_tool_result = blocks.iter().any(|block| block["type"] == "tool_result");
        last.has_other = blocks.iter().any(|block| block["type"] != "tool_result");
        blocks.retain(|block| block["type"] == "text" && block["text"].is_string());
        let first = blocks.first().and_then(|block| block["text"].as_str());
        last.asks_suggestion =
            last.from_user && first.is_some_and(|text| text.starts_with("[SUGGESTION MODE:"));
    }
    let user_id = body["metadata"]["user_id"].as_str().map(str::to_owned);
    (user_id, last)
}

fn any_content() -> impl Strategy<Value = Tree> {
    let text = prop_oneof![Just("[SUGGESTION MODE: x".to_owned()), "\\PC{0,12}"];
    let kind = prop::sample::select(vec![
        "text",
        "tool_result",
        "tool_use",
        "image",
        "brand_new",
    ]);
    let block = (kind, text.clone()).prop_map(|(kind, text)| json!({"type": kind, "text": text}));
    prop_oneof![
        text.prop_map(Tree::from),
        prop::collection::vec(block, 0..4).prop_map(Tree::from),
        Just(Tree::Null),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_tree(
        list in prop::collection::vec(("user|assistant|system", any_content()), 0..5),
        user_id in prop::option::of("\\PC{0,20}"),
        model in "\\PC{1,12}",
        stream in any::<bool>(),
    ) {
        let list: Vec<Tree> = list
            .into_iter()
            .map(|(role, content)| json!({"role": role, "content": content}))
            .collect();
        let body = json!({"model": model, "stream": stream, "messages": list, "metadata": {"user_id": user_id}});
        for text in [body.to_string(), serde_json::to_string_pretty(&body).unwrap()] {
            let request = messages(text.as_bytes()).unwrap();
            let (user_id, last) = by_tree(&body);
            prop_assert_eq!(&*request.model, &*model);
            prop_assert_eq!(request.stream, stream);
            prop_assert_eq!(request.user_id.as_deref(), user_id.as_deref());
            prop_assert_eq!(request.last, last);
            prop_assert_eq!(serde_json::from_slice::<Tree>(request.messages).unwrap(), body["messages"].clone());
        }
    }

    /// Whatever the body: it is refused as JSON exactly when a parser refuses it.
    #[test]
    fn damaged_bodies_are_no_json(
        content in any_content(),
        at in any::<prop::sample::Index>(),
        byte in prop::sample::select(&b"\"\\{}[],:0-e. \n\x00\xffn"[..]),
        how in 0..3,
    ) {
        let body = json!({
            "model": "m",
            "tools": [{"type": "x"}],
            "system": content,
            "messages": [{"role": "user", "content": content}, {"role": "user", "content": [{"source": {"type": "url"}, "content": [1]}]}],
        });
        let mut body = body.to_string().into_bytes();
        let at = at.index(body.len());
        match how {
            0 => body.truncate(at),
            1 => body[at] = byte,
            _ => body.insert(at, byte),
        }
        match (messages(&body), serde_json::from_slice::<Tree>(&body)) {
            (Ok(request), Ok(tree)) => prop_assert_eq!(&*request.model, tree["model"].as_str().unwrap()),
            (Err(Invalid::Parse), Ok(tree)) => {
                prop_assert!(!tree["model"].is_string() || tree.get("stream").is_some_and(|s| !s.is_boolean()))
            }
            (Err(Invalid::ModelRequired), Ok(tree)) => {
                prop_assert!(tree.get("model").is_none_or(|model| model == ""))
            }
            (Err(Invalid::Repeated(_)), _) => unreachable!("one of each"),
            (found, tree) => prop_assert!(found == Err(Invalid::Parse) && tree.is_err(), "{:?} {:?}", found, tree),
        }
    }
}
