//! The few fields of a JSON request body that decide things, read in one pass over its bytes: the whole document is
//! checked, no tree is built, and what is found borrows from the body. Use [`peek`] on a request,
//! [`rewrite`](crate::rewrite) to give it another model name or output limit, [`find_string_at`] to find one string in
//! an answer.

mod content;

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

pub use self::content::{Content, ImageTool};
use crate::json::{self, Cursor, Malformed, Value};

/// Why there was nothing to peek at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeekError {
    /// Not one JSON document in UTF-8, or nested deeper than 127 containers.
    #[error("the body is not valid JSON")]
    NotJson,
    /// Valid JSON, but not an object.
    #[error("the body is not a JSON object")]
    NotObject,
}

impl From<Malformed> for PeekError {
    fn from(_: Malformed) -> Self {
        PeekError::NotJson
    }
}

/// The value of one field, as it stands in the body.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Field<'a> {
    /// The key does not occur.
    #[default]
    Absent,
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A string.
    String {
        /// What stands between the quotes, still escaped.
        raw: &'a [u8],
        /// Where it stands in the body, quotes included.
        span: Range<usize>,
    },
    /// A number as written.
    Number(&'a [u8]),
    /// An array, brackets included.
    Array(&'a [u8]),
    /// An object, braces included.
    Object(&'a [u8]),
}

impl<'a> Field<'a> {
    /// The text of a string, unescaped; `None` for everything else.
    pub fn as_str(&self) -> Option<Cow<'a, str>> {
        let Field::String { raw, .. } = self else {
            return None;
        };
        if memchr::memchr(b'\\', raw).is_some() {
            json::unescape(raw).map(Cow::Owned)
        } else {
            std::str::from_utf8(raw).ok().map(Cow::Borrowed)
        }
    }

    /// The value as it stands in the body, a string without its quotes; empty for words and for nothing.
    pub fn raw(&self) -> &'a [u8] {
        match self {
            Field::String { raw, .. } => raw,
            Field::Number(raw) | Field::Array(raw) | Field::Object(raw) => raw,
            Field::Absent | Field::Null | Field::Bool(_) => &[],
        }
    }

    /// Where a string stands in the body, quotes included; `None` for everything else.
    pub fn span(&self) -> Option<Range<usize>> {
        match self {
            Field::String { span, .. } => Some(span.clone()),
            _ => None,
        }
    }

    /// The value of a whole number that fits; `None` for everything else.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Field::Number(digits) => std::str::from_utf8(digits).ok()?.parse().ok(),
            _ => None,
        }
    }

    /// Whether the key occurs at all, with whatever value.
    pub fn is_present(&self) -> bool {
        !matches!(self, Field::Absent)
    }
}

impl<'a> From<Value<'a>> for Field<'a> {
    fn from(value: Value<'a>) -> Self {
        match value {
            Value::Null => Field::Null,
            Value::Bool(value) => Field::Bool(value),
            Value::String(text) => Field::String {
                raw: text.raw,
                span: text.span(),
            },
            Value::Number(digits) => Field::Number(digits),
            Value::Array(bytes) => Field::Array(bytes),
            Value::Object(bytes) => Field::Object(bytes),
        }
    }
}

/// Occurrences of `model` and of `max_output_tokens` that are remembered; a body with more of them is remembered to
/// have one more.
pub const MODEL_SPANS: usize = 8;

/// What [`peek`] saw. Where a key occurs more than once its last value counts, as in every common parser.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peek<'a> {
    /// `model`
    pub model: Field<'a>,
    /// Where the values of *every* top-level `model` stand, in order: all of them are replaced, so that no reader
    /// of the body can come to another model than we did.
    pub model_spans: Vec<Range<usize>>,
    /// `stream`
    pub stream: Field<'a>,
    /// `previous_response_id`
    pub previous_response_id: Field<'a>,
    /// `prompt_cache_key`
    pub prompt_cache_key: Field<'a>,
    /// `service_tier`
    pub service_tier: Field<'a>,
    /// `reasoning.effort`
    pub reasoning_effort: Field<'a>,
    /// `max_output_tokens`
    pub max_output_tokens: Field<'a>,
    /// Where the values of every top-level `max_output_tokens` stand, in order.
    pub output_limit_spans: Vec<Range<usize>>,
    /// `background`
    pub background: Field<'a>,
    /// `conversation`
    pub conversation: Field<'a>,
    /// `prompt`
    pub prompt: Field<'a>,
    /// What `input` and `tools` say of what else the provider will read and make. Of keys that occur more than once
    /// all values count.
    pub content: Content<'a>,
    /// `input`
    pub input: Field<'a>,
    /// `instructions`
    pub instructions: Field<'a>,
    /// `tools`
    pub tools: Field<'a>,
    /// `functions`
    pub functions: Field<'a>,
}

/// Reads the fields of [`Peek`] from a body and checks all of it.
///
/// # Errors
/// [`PeekError::NotJson`] for what `serde_json` would refuse too, [`PeekError::NotObject`] for other documents.
pub fn peek(body: &[u8]) -> Result<Peek<'_>, PeekError> {
    if std::str::from_utf8(body).is_err() {
        return Err(PeekError::NotJson);
    }
    let mut cursor = Cursor::new(body);
    if !cursor.object()? {
        cursor.value()?;
        cursor.finish()?;
        return Err(PeekError::NotObject);
    }
    let mut seen = Peek::default();
    let mut reasoning = Field::Absent;
    let mut reasoning_at = 0;
    while let Some(key) = cursor.key()? {
        let start = cursor.start();
        let value = match &*key.name() {
            b"input" => seen.content.input(&mut cursor)?,
            b"tools" => seen.content.tools(&mut cursor)?,
            _ => cursor.value()?,
        };
        let field = match &*key.name() {
            b"model" => {
                if seen.model_spans.len() <= MODEL_SPANS {
                    seen.model_spans.push(start..cursor.at());
                }
                &mut seen.model
            }
            b"stream" => &mut seen.stream,
            b"previous_response_id" => &mut seen.previous_response_id,
            b"prompt_cache_key" => &mut seen.prompt_cache_key,
            b"service_tier" => &mut seen.service_tier,
            b"reasoning" => {
                reasoning_at = start;
                &mut reasoning
            }
            b"max_output_tokens" => {
                if seen.output_limit_spans.len() <= MODEL_SPANS {
                    seen.output_limit_spans.push(start..cursor.at());
                }
                &mut seen.max_output_tokens
            }
            b"background" => &mut seen.background,
            b"conversation" => &mut seen.conversation,
            b"prompt" => &mut seen.prompt,
            b"input" => &mut seen.input,
            b"instructions" => &mut seen.instructions,
            b"tools" => &mut seen.tools,
            b"functions" => &mut seen.functions,
            _ => continue,
        };
        *field = value.into();
    }
    cursor.finish()?;
    if let Field::Object(object) = reasoning {
        seen.reasoning_effort = member(object, b"effort")?;
        if let Field::String { span, .. } = &mut seen.reasoning_effort {
            *span = span.start + reasoning_at..span.end + reasoning_at;
        }
    }
    Ok(seen)
}

/// The last member of `object` called `name`.
fn member<'a>(object: &'a [u8], name: &[u8]) -> Result<Field<'a>, Malformed> {
    let mut found = Field::Absent;
    let mut cursor = Cursor::new(object);
    if cursor.object()? {
        while cursor.seek(name)? {
            found = cursor.value()?.into();
        }
    }
    Ok(found)
}

/// The body with the values at `spans` replaced by the string `text`, as pieces to be sent one after another.
/// Everything else is shared with `body`, not copied.
///
/// `text` is plain: it is quoted and escaped here. `spans` come in order, as [`Peek::model_spans`] has them; one that
/// overlaps its predecessor or leaves the body is ignored.
pub fn splice(body: &Bytes, spans: &[Range<usize>], text: &str) -> Vec<Bytes> {
    let quoted = quoted(text);
    replace(body, spans.iter().map(|span| (span.clone(), &quoted)))
}

/// A string as it stands in JSON.
pub(crate) fn quoted(text: &str) -> Bytes {
    Bytes::from(serde_json::Value::from(text).to_string())
}

/// The body with every range replaced by what is given with it, as [`splice`] does it.
pub(crate) fn replace<'b>(
    body: &Bytes,
    changes: impl Iterator<Item = (Range<usize>, &'b Bytes)>,
) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(changes.size_hint().0 * 2 + 1);
    let mut at = 0;
    for (span, new) in changes {
        if span.start < at || span.end < span.start || span.end > body.len() {
            continue;
        }
        if span.start > at {
            pieces.push(body.slice(at..span.start));
        }
        pieces.push(new.clone());
        at = span.end;
    }
    if at < body.len() {
        pieces.push(body.slice(at..));
    }
    pieces
}

/// Where the string at `path` stands, quotes included, such as `["response", "model"]`.
///
/// Stops as soon as it is found: of keys that occur twice the first counts, and what follows is not looked at. `None`
/// when it is absent, not a string, or something before it is malformed.
pub fn find_string_at(json: &[u8], path: &[&str]) -> Option<Range<usize>> {
    let mut cursor = Cursor::new(json);
    for name in path {
        if !cursor.object().ok()? || !cursor.seek(name.as_bytes()).ok()? {
            return None;
        }
    }
    Some(cursor.value().ok()?.text()?.span())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Tree;

    use super::*;

    const NAMES: [&str; 14] = [
        "model",
        "stream",
        "previous_response_id",
        "prompt_cache_key",
        "service_tier",
        "reasoning",
        "max_output_tokens",
        "input",
        "instructions",
        "tools",
        "functions",
        "background",
        "conversation",
        "prompt",
    ];

    #[test]
    fn reads_the_fields_and_nothing_else() {
        let body = br#" {"metadata":{"model":"no"},"model":"gpt-\u0035","stream":true,"input":[1,"x"],
            "reasoning":{"summary":"auto","effort":"high"},"max_output_tokens":16,"prompt_cache_key":null} "#;
        let seen = peek(body).unwrap();
        assert_eq!(seen.model.as_str().unwrap(), "gpt-5");
        assert_eq!(&body[seen.model.span().unwrap()], br#""gpt-\u0035""#);
        assert_eq!(seen.model_spans, [seen.model.span().unwrap()]);
        assert_eq!(seen.stream, Field::Bool(true));
        assert_eq!(seen.input, Field::Array(br#"[1,"x"]"#));
        assert_eq!(seen.reasoning_effort.as_str().unwrap(), "high");
        assert_eq!(&body[seen.reasoning_effort.span().unwrap()], b"\"high\"");
        assert_eq!(seen.max_output_tokens.as_u64(), Some(16));
        assert_eq!(seen.prompt_cache_key, Field::Null);
        assert!(seen.prompt_cache_key.is_present());
        assert!(!seen.service_tier.is_present());
    }

    #[test]
    fn tells_bad_json_from_other_json() {
        for (body, error) in [
            (&b""[..], PeekError::NotJson),
            (b"[1,2]", PeekError::NotObject),
            (b"\"x\"", PeekError::NotObject),
            (b"[1,2", PeekError::NotJson),
            (b"{\"a\":\"\xff\"}", PeekError::NotJson),
            (b"{\"a\":\"\xed\xa0\x80\"}", PeekError::NotJson),
            (b"{} x", PeekError::NotJson),
            (b"\xef\xbb\xbf{}", PeekError::NotJson),
        ] {
            assert_eq!(peek(body), Err(error), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn whole_numbers_only() {
        for (digits, value) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-1", None),
            ("1.0", None),
            ("1e3", None),
        ] {
            assert_eq!(Field::Number(digits.as_bytes()).as_u64(), value, "{digits}");
        }
    }

    #[test]
    fn the_last_of_two_keys_counts_and_both_are_replaced() {
        let body = Bytes::from_static(br#"{"model":1,"a":"model","mod\u0065l":"b"}"#);
        let seen = peek(&body).unwrap();
        assert_eq!(seen.model.as_str().unwrap(), "b");
        let new = splice(&body, &seen.model_spans, "q\"\\\n").concat();
        assert_eq!(
            new,
            br#"{"model":"q\"\\\n","a":"model","mod\u0065l":"q\"\\\n"}"#
        );
    }

    #[test]
    fn splice_shares_the_body_and_ignores_nonsense() {
        let body = Bytes::from_static(b"0123456789");
        let pieces = splice(&body, &[2..4, 3..5, 20..21, 8..10], "x");
        assert_eq!(pieces, ["01", "\"x\"", "4567", "\"x\""]);
        assert_eq!(pieces[2].as_ptr(), body[4..].as_ptr());
        assert_eq!(splice(&body, &[], "x"), [body]);
    }

    #[test]
    fn finds_a_string_by_its_path() {
        let json = br#"{"model":"no","response":{"x":[{"model":"no"}],"model":"yes","n":1},"response":{}}"#;
        let find = |path: &[&str]| find_string_at(json, path).map(|span| &json[span]);
        assert_eq!(find(&["response", "model"]), Some(&b"\"yes\""[..]));
        assert_eq!(find(&["model"]), Some(&b"\"no\""[..]));
        assert_eq!(find(&["response", "n"]), None);
        assert_eq!(find(&["response", "absent"]), None);
        assert_eq!(find(&["model", "x"]), None);
        assert_eq!(find(&[]), None);
        assert_eq!(find_string_at(br#"{"a":tru,"b":"x"}"#, &["b"]), None);
        assert_eq!(find_string_at(br#"{"b":"x","a":tru"#, &["b"]), Some(5..8));
    }

    /// The inside of a string literal, escapes in every spelling.
    fn literal() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            6 => "[ -!#-\\[\\]-~]{0,12}",
            1 => "[a-z]{60,140}",
            2 => any::<char>().prop_filter("needs no escape", |c| !matches!(c, '"' | '\\') && *c >= ' ').prop_map(String::from),
            1 => prop::sample::select(vec![r"\n", r"\t", r"\/", r"\\", "\\\"", r"\b", r"\f", r"\r"]).prop_map(String::from),
            2 => any::<char>().prop_map(|c| {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
            }),
        ];
        prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
    }

    fn space() -> impl Strategy<Value = String> {
        prop_oneof![4 => Just(String::new()), 1 => "[ \t\r\n]{1,3}"]
    }

    fn key() -> impl Strategy<Value = String> {
        let known = prop::sample::select(
            NAMES
                .into_iter()
                .chain(["effort"])
                .collect::<Vec<&'static str>>(),
        );
        prop_oneof![
            4 => known.clone().prop_map(|name| format!("\"{name}\"")),
            1 => known.prop_map(|name| format!("\"\\u{:04X}{}\"", name.as_bytes()[0], &name[1..])),
            2 => literal(),
        ]
    }

    fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let member = (space(), key(), space(), space(), value, space())
            .prop_map(|(a, key, b, c, value, d)| format!("{a}{key}{b}:{c}{value}{d}"));
        (prop::collection::vec(member, 0..8), space())
            .prop_map(|(members, space)| format!("{{{space}{}}}", members.join(",")))
    }

    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|b| b.to_string()),
            any::<i64>().prop_map(|n| n.to_string()),
            "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,3})?",
            literal(),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                (
                    prop::collection::vec((space(), inner.clone(), space()), 0..5),
                    space()
                )
                    .prop_map(|(items, space)| {
                        let items: Vec<String> = items
                            .into_iter()
                            .map(|(a, item, b)| a + &item + &b)
                            .collect();
                        format!("[{space}{}]", items.join(","))
                    }),
                object(inner),
            ]
        })
    }

    pub(crate) fn document() -> impl Strategy<Value = String> {
        (space(), object(value()), space()).prop_map(|(a, object, b)| a + &object + &b)
    }

    fn assert_same(field: &Field<'_>, tree: Option<&Tree>) {
        let raw = match field {
            Field::Absent => return assert_eq!(None, tree),
            Field::Null => return assert_eq!(Some(&Tree::Null), tree),
            Field::Bool(value) => return assert_eq!(Some(&Tree::Bool(*value)), tree),
            Field::String { .. } => {
                return assert_eq!(field.as_str().as_deref(), tree.and_then(Tree::as_str));
            }
            Field::Number(raw) | Field::Array(raw) | Field::Object(raw) => raw,
        };
        let parsed: Tree = serde_json::from_slice(raw).unwrap();
        assert_eq!(Some(&parsed), tree);
    }

    /// Peek and serde_json must come to the same answer on any bytes.
    fn assert_agreement(body: &[u8]) {
        let tree = serde_json::from_slice::<Tree>(body);
        let seen = match (peek(body), tree) {
            (Ok(seen), Ok(Tree::Object(tree))) => (seen, tree),
            (Err(PeekError::NotObject), Ok(tree)) => return assert!(!tree.is_object()),
            (Err(PeekError::NotJson), Err(_)) => return,
            (seen, tree) => panic!("peek: {seen:?}, serde_json: {tree:?}"),
        };
        let (seen, tree) = seen;
        let reasoning = tree.get("reasoning").and_then(|r| r.get("effort"));
        for (field, tree) in [
            (&seen.model, tree.get("model")),
            (&seen.stream, tree.get("stream")),
            (&seen.previous_response_id, tree.get("previous_response_id")),
            (&seen.prompt_cache_key, tree.get("prompt_cache_key")),
            (&seen.service_tier, tree.get("service_tier")),
            (&seen.reasoning_effort, reasoning),
            (&seen.max_output_tokens, tree.get("max_output_tokens")),
            (&seen.input, tree.get("input")),
            (&seen.instructions, tree.get("instructions")),
            (&seen.tools, tree.get("tools")),
            (&seen.functions, tree.get("functions")),
            (&seen.background, tree.get("background")),
            (&seen.conversation, tree.get("conversation")),
            (&seen.prompt, tree.get("prompt")),
        ] {
            assert_same(field, tree);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(body in document()) {
            prop_assert!(serde_json::from_str::<Tree>(&body).is_ok() || body.contains(['e', 'E']), "{}", body);
            assert_agreement(body.as_bytes());
        }

        #[test]
        fn agrees_with_serde_json_on_damaged_documents(
            body in document(),
            at in any::<prop::sample::Index>(),
            damage in prop_oneof![
                Just(None),
                any::<u8>().prop_map(Some),
                prop::sample::select(&b"\"\\{}[],:0-e. \n\x00\x1f\xff\xc3ud8"[..]).prop_map(Some),
            ],
            how in 0..3,
        ) {
            let mut body = body.into_bytes();
            let at = at.index(body.len());
            match (how, damage) {
                (0, _) => body.truncate(at),
                (_, None) => drop(body.remove(at)),
                (1, Some(byte)) => body[at] = byte,
                (_, Some(byte)) => body.insert(at, byte),
            }
            assert_agreement(&body);
        }

        #[test]
        fn agrees_with_serde_json_on_any_bytes(body in prop::collection::vec(any::<u8>(), 0..64)) {
            assert_agreement(&body);
        }

        #[test]
        fn splice_then_peek_gives_the_new_model_and_leaves_the_rest(body in document(), model in any::<String>()) {
            let body = Bytes::from(body);
            let Ok(seen) = peek(&body) else { return Ok(()) };
            let new = Bytes::from(splice(&body, &seen.model_spans, &model).concat());
            let again = peek(&new).unwrap();
            prop_assert_eq!(again.model_spans.len(), seen.model_spans.len());
            if seen.model.is_present() {
                prop_assert_eq!(&*again.model.as_str().unwrap(), &*model);
            }
            // What lies between the models is the same, byte for byte.
            let (mut old_at, mut new_at) = (0, 0);
            for (old_span, new_span) in seen.model_spans.iter().zip(&again.model_spans) {
                prop_assert_eq!(&body[old_at..old_span.start], &new[new_at..new_span.start]);
                (old_at, new_at) = (old_span.end, new_span.end);
            }
            prop_assert_eq!(&body[old_at..], &new[new_at..]);
        }

        #[test]
        fn finds_what_serde_json_finds(body in document(), name in prop::sample::select(&NAMES[..])) {
            let Ok(Tree::Object(tree)) = serde_json::from_str(&body) else { return Ok(()) };
            // With keys that occur twice the first counts here, the last there.
            let seen = peek(body.as_bytes()).unwrap();
            prop_assume!(name != "model" || seen.model_spans.len() < 2);
            prop_assume!(body.matches(&name[1..]).count() < 2);
            let found = find_string_at(body.as_bytes(), &[name]).map(|span| &body[span]);
            let found = found.map(|quoted| serde_json::from_str::<String>(quoted).unwrap());
            prop_assert_eq!(found.as_deref(), tree.get(name).and_then(Tree::as_str));
        }
    }
}
