use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value as Tree, json};

use super::*;

fn tidied(body: &str) -> String {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let new = tidy(&body).joined(&body);
    String::from_utf8(new.to_vec()).unwrap()
}

#[test]
fn short_names_have_dates() {
    #[rustfmt::skip]
    let rows = [
        ("claude-haiku-4-5", Some("claude-haiku-4-5-20251001")),
        ("claude-opus-4-5", Some("claude-opus-4-5-20251101")),
        ("claude-sonnet-4-5", Some("claude-sonnet-4-5-20250929")),
        ("claude-sonnet-4-5-20250929", None),
        ("claude-opus-4-6", None),
        ("claude-sonnet-4", None),
        ("", None),
    ];
    for (short, dated) in rows {
        assert_eq!(dated_model(short), dated, "{short}");
    }
}

#[test]
fn output_limits_are_lowered_only() {
    #[rustfmt::skip]
    let rows = [
        (r#"{"max_tokens":100}"#, r#"{"max_tokens":50}"#),
        (r#"{"a":{"max_tokens":100},"max_tokens": 51 }"#, r#"{"a":{"max_tokens":100},"max_tokens": 50 }"#),
        (r#"{"max_tokens":50}"#, r#"{"max_tokens":50}"#),
        (r#"{"max_tokens":1e9}"#, r#"{"max_tokens":50}"#),
        (r#"{"max_tokens":99999999999999999999999}"#, r#"{"max_tokens":50}"#),
        // The last counts, and no reader shall see another.
        (r#"{"max_tokens":1,"max_tokens":100}"#, r#"{"max_tokens":50,"max_tokens":50}"#),
        (r#"{"max_tokens":100,"max_tokens":1}"#, r#"{"max_tokens":100,"max_tokens":1}"#),
        (r#"{"max_tok\u0065ns":100}"#, r#"{"max_tok\u0065ns":50}"#),
        (r#"{"max_tokens":"100"}"#, r#"{"max_tokens":"100"}"#),
        (r#"{"max_tokens":null}"#, r#"{"max_tokens":null}"#),
        ("{}", "{}"),
        ("[100]", "[100]"),
    ];
    for (body, expected) in rows {
        let bytes = Bytes::from_static(body.as_bytes());
        let edits = max_tokens(&bytes, 50).unwrap();
        assert_eq!(edits.joined(&bytes), expected, "{body}");
    }
    let repeated = |times: usize| format!("{{{}}}", [r#""max_tokens":9"#].repeat(times).join(","));
    assert!(max_tokens(repeated(8).as_bytes(), 5).is_some());
    assert_eq!(max_tokens(repeated(9).as_bytes(), 5), None);
    assert_eq!(max_tokens(br#"{"max_tokens":100"#, 50), None);
}

#[test]
fn more_than_any_client_writes_is_left_alone() {
    let body = |blocks: usize| {
        let block = r#"{"type":"text","text":""}"#;
        let blocks = [block].repeat(blocks).join(",");
        format!(r#"{{"messages":[{{"content":["a",{blocks}]}}]}}"#)
    };
    assert_eq!(tidy(body(MOST_EDITS).as_bytes()).len(), MOST_EDITS);
    assert!(tidy(body(MOST_EDITS + 1).as_bytes()).is_empty());
}

/// In each row the mark `!` stands for a cache mark as the last member, `?` for one as the first.
#[test]
fn what_is_left_out() {
    const MARK: &str = r#""cache_control":{"type":"ephemeral"}"#;
    let text = |text: &str| format!(r#"{{"type":"text","text":"{text}"!}}"#);
    let plain = |body: &str| body.replace(['!', '?'], "");
    let message = |content: &str| {
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":{content}}}]}}"#)
    };
    let rows = [
        // Nothing to do.
        (message("\"\""), message("\"\"")),
        (message("[]"), message("[]")),
        (
            message(&format!("[{}]", [text("a"), text("b")].join(" , "))),
            message(&format!("[{}]", [text("a"), text("b")].join(" , "))),
        ),
        // Four marks are taken, of five the first of the messages goes.
        (
            message(&format!("[{}]", "abcd".split("").filter(|t| !t.is_empty()).map(text).collect::<Vec<_>>().join(","))),
            message(&format!("[{}]", "abcd".split("").filter(|t| !t.is_empty()).map(text).collect::<Vec<_>>().join(","))),
        ),
        (
            message(&format!("[{0},{0},{0},{0},{0}]", text("a"))),
            message(&format!("[{1},{0},{0},{0},{0}]", text("a"), plain(&text("a")))),
        ),
        (
            message(r#"[{?,"type":"x"},{?,"type":"x"},{?,"type":"x"},{?,"type":"x"},{?,"type":"x"}]"#),
            message(r#"[{"type":"x"},{?,"type":"x"},{?,"type":"x"},{?,"type":"x"},{?,"type":"x"}]"#),
        ),
        // From the messages first, then from the end of the system prompt, then the first tools.
        (
            format!(
                r#"{{"tools":[{{"name":"a"!}}],"system":[{0},{0},{0},{0}],"messages":[{{"content":[{0},{0}]}}]}}"#,
                text("a")
            ),
            format!(
                r#"{{"tools":[{{"name":"a"!}}],"system":[{0},{0},{0},{1}],"messages":[{{"content":[{1},{1}]}}]}}"#,
                text("a"),
                plain(&text("a"))
            ),
        ),
        (
            r#"{"tools":[{"name":"a"!},{"name":"b"!},{"name":"c"!},{"name":"d"!},{"name":"e"!}],"system":[{"type":"text","text":"a"!}]}"#.into(),
            r#"{"tools":[{"name":"a"},{"name":"b"!},{"name":"c"!},{"name":"d"!},{"name":"e"!}],"system":[{"type":"text","text":"a"}]}"#.into(),
        ),
        // The request's own counts, and stays.
        (
            r#"{"system":[{"type":"text","text":"a"!}],"messages":[{"content":[{"type":"image"!},{"type":"image"!},{"type":"image"!}]}]!}"#.into(),
            r#"{"system":[{"type":"text","text":"a"!}],"messages":[{"content":[{"type":"image"},{"type":"image"!},{"type":"image"!}]}]!}"#.into(),
        ),
        // Illegal ones go anyway, and count for nothing.
        (
            message(r#"[{"type":"thinking","thinking":"t"!},{?,"type":"redacted_thinking"},{"type":"text","text":"a"!}]"#),
            message(r#"[{"type":"thinking","thinking":"t"},{"type":"redacted_thinking"},{"type":"text","text":"a"!}]"#),
        ),
        (
            message(r#"[{"type":"thinking"!},{"a":1!},{"a":1!},{"a":1!},{"a":1!}]"#),
            message(r#"[{"type":"thinking"},{"a":1!},{"a":1!},{"a":1!},{"a":1!}]"#),
        ),
        (
            message(r#"[{"type":"thinking","cache_control":null},{"a":1,"cache_control":null}]"#),
            message(r#"[{"type":"thinking"},{"a":1,"cache_control":null}]"#),
        ),
        // Twice in one block is one mark.
        (
            message(r#"[{?,"a":1!},{"a":1!},{"a":1!},{"a":1!}]"#),
            message(r#"[{?,"a":1!},{"a":1!},{"a":1!},{"a":1!}]"#),
        ),
        (
            message(r#"[{?,"a":1!},{"a":1!},{"a":1!},{"a":1!},{"a":1!}]"#),
            message(r#"[{"a":1},{"a":1!},{"a":1!},{"a":1!},{"a":1!}]"#),
        ),
        // Empty texts, with their marks.
        (
            message(&format!("[{},{} , {}]", text(""), text("a"), text(""))),
            message(&format!("[{}]", text("a"))),
        ),
        (
            message(&format!("[{0},{0},{1},{1},{1},{1}]", text(""), text("a"))),
            message(&format!("[{0},{0},{0},{0}]", text("a"))),
        ),
        (
            format!(r#"{{"system":[{}]}}"#, text("")),
            r#"{"system":[]}"#.into(),
        ),
        (
            message(r#"[{"type":"tool_result","content":[{"type":"text","text":""}]}]"#),
            message(r#"[{"type":"tool_result","content":[]}]"#),
        ),
        (
            message(r#"[{"content":[{"text":"","type":"text"},{"type":"text","text":"a"}],"type":"tool_result"}]"#),
            message(r#"[{"content":[{"type":"text","text":"a"}],"type":"tool_result"}]"#),
        ),
        // Not a whole message, which the client shall hear of.
        (
            message(r#"[{"type":"text","text":""},{"type":"text","text":""}]"#),
            message(r#"[{"type":"text","text":""},{"type":"text","text":""}]"#),
        ),
        // Nor what only looks so, or is not known.
        (
            message(r#"[{"type":"text","text":" "},{"type":"new","text":""},{"text":""},"",{"type":"tool_use","input":{"type":"text","text":""}}]"#),
            message(r#"[{"type":"text","text":" "},{"type":"new","text":""},{"text":""},"",{"type":"tool_use","input":{"type":"text","text":""}}]"#),
        ),
        (
            message(r#"[{"type":"new","content":[{"type":"text","text":""},{"type":"thinking"!}]},{"type":"text","text":"a"}]"#),
            message(r#"[{"type":"new","content":[{"type":"text","text":""},{"type":"thinking"!}]},{"type":"text","text":"a"}]"#),
        ),
        // What a tool is called with is the client's.
        (
            message(r#"[{"type":"tool_use","input":{"a":[1!,2]!}},{"a":1!},{"a":1!},{"a":1!},{"a":1!}]"#).replace("[1!,2]", "[1,2]"),
            message(r#"[{"type":"tool_use","input":{"a":[1,2]!}},{"a":1!},{"a":1!},{"a":1!},{"a":1!}]"#),
        ),
        // Marks within a tool's result count.
        (
            message(r#"[{"type":"tool_result","content":[{"type":"image"!},{"type":"image"!}]!},{"a":1!},{"a":1!}]"#),
            message(r#"[{"type":"tool_result","content":[{"type":"image"},{"type":"image"!}]!},{"a":1!},{"a":1!}]"#),
        ),
        // Not JSON to its end: nothing is known of it.
        (
            message(r#"[{"type":"thinking"!}]"#) + "}",
            message(r#"[{"type":"thinking"!}]"#) + "}",
        ),
        (r#"["",1]"#.into(), r#"["",1]"#.into()),
        (r#"{"messages":"","system":"","tools":""}"#.into(), r#"{"messages":"","system":"","tools":""}"#.into()),
    ];
    for (body, expected) in rows {
        let write = |text: String| text.replace('!', &format!(",{MARK}")).replace('?', MARK);
        let (body, expected) = (write(body), write(expected));
        assert_eq!(tidied(&body), expected, "{body}");
    }
}

/// What [`tidy`] does, on a tree.
fn reference(mut body: Tree) -> Tree {
    for place in ["tools", "system"] {
        if let Some(blocks) = body.get_mut(place) {
            clean(blocks);
        }
    }
    for message in body["messages"].as_array_mut().into_iter().flatten() {
        let Some(content) = message.get_mut("content") else {
            continue;
        };
        let before = content.clone();
        clean(content);
        if content == &json!([]) {
            *content = before;
        }
    }
    let own = usize::from(
        body.get("cache_control")
            .is_some_and(|mark| !mark.is_null()),
    );
    let mut marks = Vec::new();
    for (number, message) in body["messages"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let all_empty = message["content"]
            .as_array()
            .is_some_and(|blocks| blocks.iter().all(is_empty));
        if !all_empty {
            collect(
                &message["content"],
                format!("/messages/{number}/content"),
                &mut marks,
            );
        }
    }
    let mut system = Vec::new();
    collect(&body["system"], "/system".into(), &mut system);
    marks.extend(system.into_iter().rev());
    collect(&body["tools"], "/tools".into(), &mut marks);
    let excess = (own + marks.len()).saturating_sub(4);
    for pointer in &marks[..excess] {
        body.pointer_mut(pointer)
            .and_then(Tree::as_object_mut)
            .unwrap()
            .remove("cache_control");
    }
    body
}

fn is_empty(block: &Tree) -> bool {
    block["type"] == "text" && block["text"] == ""
}

fn clean(blocks: &mut Tree) {
    let Some(list) = blocks.as_array_mut() else {
        return;
    };
    list.retain(|block| !is_empty(block));
    for block in list {
        if block["type"] == "thinking" {
            block.as_object_mut().unwrap().remove("cache_control");
        }
        if block["type"] == "tool_result" && block.get("content").is_some() {
            clean(&mut block["content"]);
        }
    }
}

fn collect(blocks: &Tree, at: String, marks: &mut Vec<String>) {
    for (number, block) in blocks.as_array().into_iter().flatten().enumerate() {
        let here = format!("{at}/{number}");
        if block["type"] == "tool_result" {
            collect(&block["content"], format!("{here}/content"), marks);
        }
        if block
            .get("cache_control")
            .is_some_and(|mark| !mark.is_null())
        {
            marks.push(here);
        }
    }
}

fn any_block(nested: bool) -> BoxedStrategy<Tree> {
    let leaf = prop::sample::select(vec![
        json!({"type": "text", "text": ""}),
        json!({"type": "text", "text": "a\"\\\n"}),
        json!({"type": "thinking", "thinking": "", "signature": "s"}),
        json!({"type": "tool_use", "input": {"cache_control": 1, "text": ""}}),
        json!({"type": "new", "content": [{"type": "text", "text": ""}]}),
        json!({"type": "tool_result", "content": ""}),
        json!({"type": "tool_result", "content": null}),
        json!({"name": "tool", "description": ""}),
        json!(""),
        json!([[]]),
    ]);
    let mark = prop::sample::select(vec![
        None,
        Some(json!({"type": "ephemeral", "ttl": "1h"})),
        Some(Tree::Null),
    ]);
    let any = match nested {
        false => leaf.boxed(),
        true => {
            let result = prop::collection::vec(any_block(false), 0..4)
                .prop_map(|content| json!({"type": "tool_result", "content": content}));
            prop_oneof![3 => leaf, 1 => result].boxed()
        }
    };
    (any, mark)
        .prop_map(|(mut block, mark)| {
            if let (Some(object), Some(mark)) = (block.as_object_mut(), mark) {
                object.insert("cache_control".into(), mark);
            }
            block
        })
        .boxed()
}

fn any_request() -> impl Strategy<Value = Tree> {
    let blocks = || prop::collection::vec(any_block(true), 0..5);
    let content = prop_oneof![
        4 => blocks().prop_map(Tree::from),
        1 => Just(json!("")),
    ];
    let messages = prop::collection::vec(content, 0..4);
    (blocks(), blocks(), messages, any::<bool>()).prop_map(|(tools, system, messages, own)| {
        let messages: Vec<_> = messages
            .into_iter()
            .map(|content| json!({"role": "user", "content": content}))
            .collect();
        let mut body =
            json!({"tools": tools, "system": system, "messages": messages, "metadata": ""});
        if own {
            body["cache_control"] = json!({"type": "ephemeral"});
        }
        body
    })
}

proptest! {
    /// The edits do to the bytes what is meant for the tree, and only once.
    #[test]
    fn edits_do_what_is_meant(body in any_request(), pretty: bool) {
        let written = if pretty { format!("{body:#}") } else { body.to_string() };
        let new = tidied(&written);
        let read: Tree = serde_json::from_str(&new).unwrap();
        let expected = reference(body.clone());
        if expected == body {
            prop_assert_eq!(&new, &written);
        }
        prop_assert_eq!(&read, &expected);
        prop_assert_eq!(tidied(&new), new);
    }

    #[test]
    fn any_bytes_are_survived(body in ".*", at in 0usize..200) {
        let _ = tidied(&body);
        let cut = json!({"messages": [{"content": [{"type": "text", "text": ""}, {"type": "tool_result",
            "content": [{"type": "thinking", "cache_control": 1}]}]}]}).to_string();
        let cut = &cut[..at.min(cut.len())];
        let new = tidied(cut);
        prop_assert!(new == cut || at >= cut.len());
    }
}
