//! A request that Anthropic refused for its thinking blocks or its thinking budget, made acceptable for one
//! more try (SPEC 7.4).
//!
//! A conversation that has been on another account, model or relay holds thinking whose signatures nobody else can
//! verify, and a client cannot mend that. [`Repairs`] is what may still be done for one request: each kind once.
//!
//! The reference goes on to turn tool calls into plain text when the first repair was not enough. This does not:
//! Anthropic signs thinking only, and a model that reads of its calls as text goes on to write its next ones as
//! text, which no client carries out. The upstream's answer is of more use.

use std::ops::Range;

use bytes::Bytes;

use crate::edits::anthropic::numbers;
use crate::edits::{Edits, MOST_EDITS, Members};
use crate::json::{Cursor, Malformed, Text, Value};

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repair {
    /// Thinking becomes plain text or goes, and thinking is switched off.
    Signature,
    /// The thinking budget and the output limit become [`BUDGET_TOKENS`] and [`BUDGET_MAX_TOKENS`].
    Budget,
}

impl Repair {
    /// A short name for logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Repair::Signature => "signature",
            Repair::Budget => "budget",
        }
    }
}

/// The budget that a repaired request has, tokens.
pub const BUDGET_TOKENS: u64 = 32_000;

/// The output limit that a repaired request has, tokens, unless its own was above its budget already.
pub const BUDGET_MAX_TOKENS: u64 = 64_000;

/// How much of an error body is searched: its message stands at the beginning.
const SEARCHED: usize = 8 * 1024;

/// The repairs that one request may still have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repairs {
    /// [`Repair::Signature`]
    pub signature: bool,
    /// [`Repair::Budget`]
    pub budget: bool,
}

impl Default for Repairs {
    /// All, once.
    fn default() -> Self {
        Repairs {
            signature: true,
            budget: true,
        }
    }
}

impl Repairs {
    /// The repair for a request that was answered so, and the edits of its body that it takes. It is used up by
    /// that. `None` where another answer than this one is not to be expected: pass it on.
    pub fn take(&mut self, status: u16, answer: &[u8], request: &[u8]) -> Option<(Repair, Edits)> {
        self.take_within(status, answer, request, BUDGET_MAX_TOKENS)
    }

    /// [`Repairs::take`] for a model whose answers have at most `most` tokens: no limit is raised beyond that, and no
    /// budget to where nothing could follow it.
    pub fn take_within(
        &mut self,
        status: u16,
        answer: &[u8],
        request: &[u8],
        most: u64,
    ) -> Option<(Repair, Edits)> {
        let repair = wanted(status, answer)?;
        let allowed = match repair {
            Repair::Signature => &mut self.signature,
            Repair::Budget => &mut self.budget,
        };
        if !std::mem::take(allowed) {
            return None;
        }
        let edits = match repair {
            Repair::Signature => without_thinking(request),
            Repair::Budget if most <= BUDGET_TOKENS => return None,
            Repair::Budget => with_budget(request, BUDGET_MAX_TOKENS.min(most)),
        };
        let edits = edits.ok().filter(|edits| !edits.is_empty())?;
        Some((repair, edits))
    }
}

/// The repair that an answer's words ask for. They may be the client's own words repeated: all it can bring about
/// is a change of its own request.
pub fn wanted(status: u16, answer: &[u8]) -> Option<Repair> {
    if status != 400 {
        return None;
    }
    let answer = &answer[..answer.len().min(SEARCHED)];
    let text = String::from_utf8_lossy(answer)
        .replace('`', "")
        .to_lowercase();
    let says = |words: &str| text.contains(words);
    if says("budget_tokens") && (says("greater than") || says(">=")) {
        return Some(Repair::Budget);
    }
    let unsigned = says("signature") && (says("thinking") || says("thought"));
    let moved = says("thinking") && says("cannot be modified");
    let missing = says("expected thinking or redacted_thinking");
    (unsigned || moved || missing).then_some(Repair::Signature)
}

/// Thinking out of the history, and switched off: a request with thinking on must have it in its last turn.
fn without_thinking(request: &[u8]) -> Result<Edits, Malformed> {
    let mut found = Thinking::default();
    let mut cursor = Cursor::new(request);
    let mut members = Members::default();
    if !cursor.object()? {
        return Ok(found.edits);
    }
    while let Some(key) = cursor.key()? {
        let start = key.span().start;
        found.remove(members.begin(start));
        let mut keep = true;
        match &*key.name() {
            b"thinking" => keep = is_off(cursor.value()?),
            b"messages" => found.messages(&mut cursor)?,
            b"context_management" => found.context_management(&mut cursor)?,
            _ => {
                cursor.value()?;
            }
        }
        found.remove(members.end(start..cursor.at(), keep));
    }
    found.remove(members.close());
    cursor.finish()?;
    Ok(found.edits)
}

fn is_off(thinking: Value<'_>) -> bool {
    match thinking {
        Value::Object(object) => matches!(kind_of(object), Ok(Some(kind)) if *kind == *b"disabled"),
        value => matches!(value, Value::Null),
    }
}

/// The `type` of an object.
fn kind_of(object: &[u8]) -> Result<Option<std::borrow::Cow<'_, [u8]>>, Malformed> {
    let mut cursor = Cursor::new(object);
    let mut kind = None;
    if cursor.object()? {
        while cursor.seek(b"type")? {
            kind = cursor.value()?.text().map(|text| text.name());
        }
    }
    Ok(kind)
}

/// What a block comes to.
enum Block<'a> {
    Stays,
    /// Its thinking, in words.
    Text(Text<'a>),
    Goes,
}

#[derive(Default)]
struct Thinking {
    edits: Edits,
}

impl Thinking {
    fn remove(&mut self, range: Option<Range<usize>>) {
        if let Some(range) = range {
            self.edits.remove(range);
        }
    }

    fn messages(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
        if !cursor.array()? {
            cursor.value()?;
            return Ok(());
        }
        let mut members = Members::default();
        while cursor.element()? {
            let start = cursor.start();
            self.remove(members.begin(start));
            let before = self.edits.len();
            let keep = self.message(cursor)?;
            if !keep {
                self.edits.truncate(before);
            }
            self.remove(members.end(start..cursor.at(), keep));
        }
        self.remove(members.close());
        Ok(())
    }

    /// `false` for a message that has no other content than what goes. The API takes a conversation without it: it
    /// joins turns of the same role.
    fn message(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Malformed> {
        if !cursor.object()? {
            cursor.value()?;
            return Ok(true);
        }
        let mut keep = true;
        while let Some(key) = cursor.key()? {
            if *key.name() == *b"content" {
                keep = self.content(cursor)?;
            } else {
                cursor.value()?;
            }
        }
        Ok(keep)
    }

    /// `false` when blocks went and none is left.
    fn content(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Malformed> {
        if !cursor.array()? {
            cursor.value()?;
            return Ok(true);
        }
        let mut members = Members::default();
        let (mut kept, mut gone) = (false, false);
        while cursor.element()? {
            let start = cursor.start();
            self.remove(members.begin(start));
            let block = block(cursor)?;
            let keep = !matches!(block, Block::Goes);
            let end = cursor.at();
            if let Block::Text(text) = block {
                // The words themselves stay where they are.
                let words = text.span();
                let head = Bytes::from_static(br#"{"type":"text","text":"#);
                self.edits.replace(start..words.start, head);
                self.edits.replace(words.end..end, &b"}"[..]);
            }
            (kept, gone) = (kept || keep, gone || !keep);
            self.remove(members.end(start..end, keep));
            if self.edits.len() > MOST_EDITS {
                return Err(Malformed);
            }
        }
        self.remove(members.close());
        Ok(kept || !gone)
    }

    /// Edits that clear thinking are refused where there is none.
    fn context_management(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
        if !cursor.object()? {
            cursor.value()?;
            return Ok(());
        }
        while let Some(key) = cursor.key()? {
            if *key.name() != *b"edits" || !cursor.array()? {
                cursor.value()?;
                continue;
            }
            let mut members = Members::default();
            while cursor.element()? {
                let start = cursor.start();
                self.remove(members.begin(start));
                let clears = match cursor.value()? {
                    Value::Object(edit) => {
                        kind_of(edit)?.is_some_and(|kind| kind.starts_with(b"clear_thinking"))
                    }
                    _ => false,
                };
                self.remove(members.end(start..cursor.at(), !clears));
            }
            self.remove(members.close());
        }
        Ok(())
    }
}

fn block<'a>(cursor: &mut Cursor<'a>) -> Result<Block<'a>, Malformed> {
    if !cursor.object()? {
        cursor.value()?;
        return Ok(Block::Stays);
    }
    let (mut kind, mut thinking) = (None, None);
    while let Some(key) = cursor.key()? {
        match &*key.name() {
            b"type" => kind = cursor.value()?.text().map(|text| text.name()),
            b"thinking" => thinking = cursor.value()?.text(),
            _ => {
                cursor.value()?;
            }
        }
    }
    Ok(match kind.as_deref() {
        Some(b"redacted_thinking") => Block::Goes,
        Some(b"thinking") => match thinking {
            // A text without a word is refused as well.
            Some(text) if text.decode().is_some_and(|text| !text.trim().is_empty()) => {
                Block::Text(text)
            }
            _ => Block::Goes,
        },
        _ => Block::Stays,
    })
}

/// A budget that any model with budgets takes, and an output limit that has room for it.
fn with_budget(request: &[u8], most: u64) -> Result<Edits, Malformed> {
    let mut edits = Edits::default();
    let mut cursor = Cursor::new(request);
    if !cursor.object()? {
        return Ok(edits);
    }
    let mut has_budget = false;
    while cursor.seek(b"thinking")? {
        let start = cursor.start();
        let Value::Object(thinking) = cursor.value()? else {
            continue;
        };
        if let Some((spans, budget)) = numbers(thinking, b"budget_tokens")? {
            has_budget = true;
            if budget != BUDGET_TOKENS as f64 {
                let spans: Vec<_> = spans
                    .iter()
                    .map(|s| start + s.start..start + s.end)
                    .collect();
                edits.number(&spans, BUDGET_TOKENS);
            }
        }
    }
    cursor.finish()?;
    if has_budget
        && let Some((spans, limit)) = numbers(request, b"max_tokens")?
        && limit <= BUDGET_TOKENS as f64
    {
        edits.number(&spans, most);
    }
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Tree, json};

    use super::*;

    fn refusal(message: &str) -> Vec<u8> {
        json!({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
            .to_string()
            .into_bytes()
    }

    const SIGNATURE: &str = "messages.1.content.0: Invalid `signature` in `thinking` block";
    const BUDGET: &str = "`max_tokens` must be greater than `thinking.budget_tokens`. Please consult our documentation";

    #[test]
    fn what_is_wanted() {
        use Repair::{Budget, Signature};
        #[rustfmt::skip]
        let rows = [
            (400, SIGNATURE, Some(Signature)),
            (400, "messages.3.content.0.thinking.signature: Field required", Some(Signature)),
            (400, "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`. When \
                   `thinking` is enabled, a final `assistant` message must start with a thinking block", Some(Signature)),
            (400, "messages.5.content.2: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot \
                   be modified.", Some(Signature)),
            (400, "Unable to submit request because Thought signature is not valid.", Some(Signature)),
            (400, BUDGET, Some(Budget)),
            (400, "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024", Some(Budget)),
            (400, "budget_tokens must be >= 1024", Some(Budget)),
            (400, "thinking.enabled.budget_tokens: Field required", None),
            (400, "max_tokens: must be greater than 0", None),
            (400, "Invalid signature", None),
            (400, "messages.0.content: Input should be a valid list", None),
            (400, "", None),
            (401, SIGNATURE, None),
            (422, SIGNATURE, None),
            (500, BUDGET, None),
        ];
        for (status, message, repair) in rows {
            assert_eq!(
                wanted(status, &refusal(message)),
                repair,
                "{status} {message}"
            );
        }
        // However relays wrap it.
        let inner = String::from_utf8(refusal(SIGNATURE)).unwrap();
        let wrapped = json!({"error": {"code": 400, "message": inner}}).to_string();
        assert_eq!(wanted(400, wrapped.as_bytes()), Some(Signature));
        assert_eq!(wanted(400, b"\xff"), None);
    }

    #[test]
    fn each_is_done_once_and_may_be_switched_off() {
        let request = br#"{"thinking":{"type":"enabled","budget_tokens":10},"max_tokens":9}"#;
        let (signature, budget) = (refusal(SIGNATURE), refusal(BUDGET));
        let mut repairs = Repairs::default();
        let first = repairs.take(400, &budget, request).unwrap();
        assert_eq!(first.0, Repair::Budget);
        assert_eq!(repairs.take(400, &budget, request), None);
        let second = repairs.take(400, &signature, request).unwrap();
        assert_eq!((second.0.label(), first.0.label()), ("signature", "budget"));
        assert_eq!(repairs.take(400, &signature, request), None);
        let mut off = Repairs {
            signature: false,
            ..Repairs::default()
        };
        assert_eq!(off.take(400, &signature, request), None);
        assert!(off.take(400, &budget, request).is_some());
        // Nothing that could be changed: the answer would be the same.
        let nothing = br#"{"messages":[],"max_tokens":9}"#;
        for answer in [&signature, &budget] {
            assert_eq!(Repairs::default().take(400, answer, nothing), None);
            assert_eq!(Repairs::default().take(400, answer, b"{"), None);
            assert_eq!(Repairs::default().take(400, answer, b"[]"), None);
        }
    }

    fn repaired(answer: &str, request: &str) -> String {
        let request = Bytes::copy_from_slice(request.as_bytes());
        let taken = Repairs::default().take(400, &refusal(answer), &request);
        let edits = taken.map(|(_, edits)| edits).unwrap_or_default();
        String::from_utf8(edits.joined(&request).to_vec()).unwrap()
    }

    #[test]
    fn thinking_becomes_text_or_goes() {
        #[rustfmt::skip]
        let rows = [
            (r#"{"thinking":{"type":"enabled","budget_tokens":2000},"a":1}"#, r#"{"a":1}"#),
            (r#"{"a":1 , "thinking":{"type":"adaptive"}}"#, r#"{"a":1}"#),
            (r#"{"a":1,"thinking":{"type":"disabled"}}"#, r#"{"a":1,"thinking":{"type":"disabled"}}"#),
            (r#"{"a":1,"thinking":null}"#, r#"{"a":1,"thinking":null}"#),
            (
                r#"{"messages":[{"role":"assistant","content":[{"type":"thinking","thinking":"so\n\u00e9 \"","signature":"x"},{"type":"text","text":"b"}]}]}"#,
                r#"{"messages":[{"role":"assistant","content":[{"type":"text","text":"so\n\u00e9 \""},{"type":"text","text":"b"}]}]}"#,
            ),
            (
                r#"{"messages":[{"content":[{"signature":"x","thinking":"a","cache_control":{},"type":"thinking"}]}]}"#,
                r#"{"messages":[{"content":[{"type":"text","text":"a"}]}]}"#,
            ),
            (
                r#"{"messages":[{"content":[{"type":"redacted_thinking","data":"x"}, {"type":"thinking","thinking":" \n","signature":""} ,{"type":"tool_use","input":{"type":"thinking"}}]}]}"#,
                r#"{"messages":[{"content":[{"type":"tool_use","input":{"type":"thinking"}}]}]}"#,
            ),
            // A message of nothing else goes with it.
            (
                r#"{"messages":[{"content":"a"},{"content":[{"type":"redacted_thinking"}],"role":"assistant"},{"content":"b"}]}"#,
                r#"{"messages":[{"content":"a"},{"content":"b"}]}"#,
            ),
            (
                r#"{"messages":[{"content":[{"type":"redacted_thinking"},{"type":"thinking"}]},{"content":[]}]}"#,
                r#"{"messages":[{"content":[]}]}"#,
            ),
            (
                r#"{"context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"},{"type":"clear_tool_uses_20250919"}]},"thinking":{}}"#,
                r#"{"context_management":{"edits":[{"type":"clear_tool_uses_20250919"}]}}"#,
            ),
            (
                r#"{"context_management":{"edits":[{"type":"clear_thinking_20251015"}]}}"#,
                r#"{"context_management":{"edits":[]}}"#,
            ),
            // Nothing of it.
            (
                r#"{"messages":[{"content":"thinking"},"thinking",{"content":[1,{"type":"text","thinking":"a"}]}],"context_management":{"edits":1}}"#,
                r#"{"messages":[{"content":"thinking"},"thinking",{"content":[1,{"type":"text","thinking":"a"}]}],"context_management":{"edits":1}}"#,
            ),
            (r#"{"messages":7,"context_management":[]}"#, r#"{"messages":7,"context_management":[]}"#),
        ];
        for (request, expected) in rows {
            assert_eq!(repaired(SIGNATURE, request), expected, "{request}");
        }
    }

    #[test]
    fn budgets() {
        #[rustfmt::skip]
        let rows = [
            (
                r#"{"max_tokens":1000,"thinking":{"type":"enabled","budget_tokens":2000,"display":"omitted"}}"#,
                r#"{"max_tokens":64000,"thinking":{"type":"enabled","budget_tokens":32000,"display":"omitted"}}"#,
            ),
            // An output limit with room for the budget is the client's.
            (
                r#"{"thinking": { "budget_tokens": 100 }, "max_tokens": 32001}"#,
                r#"{"thinking": { "budget_tokens": 32000 }, "max_tokens": 32001}"#,
            ),
            (
                r#"{"thinking":{"budget_tokens":32000},"max_tokens":32000}"#,
                r#"{"thinking":{"budget_tokens":32000},"max_tokens":64000}"#,
            ),
            (r#"{"thinking":{"type":"adaptive"},"max_tokens":10}"#, r#"{"thinking":{"type":"adaptive"},"max_tokens":10}"#),
            (r#"{"thinking":true,"max_tokens":10}"#, r#"{"thinking":true,"max_tokens":10}"#),
            (r#"{"budget_tokens":1,"max_tokens":10}"#, r#"{"budget_tokens":1,"max_tokens":10}"#),
        ];
        for (request, expected) in rows {
            assert_eq!(repaired(BUDGET, request), expected, "{request}");
        }
    }

    /// What is left is JSON without thinking, whatever it was; and there is nothing left to do.
    fn any_content() -> impl Strategy<Value = Tree> {
        let block = prop::sample::select(vec![
            json!({"type": "thinking", "thinking": "a\"\\", "signature": "s"}),
            json!({"type": "thinking", "thinking": "", "signature": "s"}),
            json!({"type": "redacted_thinking", "data": "d"}),
            json!({"type": "text", "text": "t"}),
            json!({"type": "tool_use", "id": "1", "input": {"thinking": [{}]}}),
            json!(7),
        ]);
        prop_oneof![
            4 => prop::collection::vec(block, 0..5).prop_map(Tree::from),
            1 => Just(json!("t")),
        ]
    }

    proptest! {
        #[test]
        fn repaired_requests_have_no_thinking(
            contents in prop::collection::vec(any_content(), 0..5), on: bool, pretty: bool,
        ) {
            let mut request = json!({"messages": [], "model": "m"});
            for content in &contents {
                let message = json!({"role": "assistant", "content": content});
                request["messages"].as_array_mut().unwrap().push(message);
            }
            if on {
                request["thinking"] = json!({"type": "adaptive"});
            }
            let written = if pretty { format!("{request:#}") } else { request.to_string() };
            let new = repaired(SIGNATURE, &written);
            let read: Tree = serde_json::from_str(&new).unwrap();
            let mut expected = request;
            expected.as_object_mut().unwrap().remove("thinking");
            let messages = expected["messages"].as_array_mut().unwrap();
            messages.retain_mut(|message| {
                let Some(content) = message["content"].as_array_mut() else { return true };
                let was_empty = content.is_empty();
                content.retain(|b| b["type"] != "redacted_thinking" && b["thinking"] != "");
                for block in content.iter_mut().filter(|b| b["type"] == "thinking") {
                    *block = json!({"type": "text", "text": block["thinking"]});
                }
                was_empty || !content.is_empty()
            });
            prop_assert_eq!(&read, &expected);
            prop_assert_eq!(repaired(SIGNATURE, &new), new);
        }

        #[test]
        fn any_bytes_are_survived(request in ".*", status: u16, answer in ".*") {
            let _ = Repairs::default().take(status, answer.as_bytes(), request.as_bytes());
            let _ = repaired(SIGNATURE, &request);
            let _ = repaired(BUDGET, &request);
        }
    }
}
