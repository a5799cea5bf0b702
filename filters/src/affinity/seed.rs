//! What tells a conversation by its content, where the client gives it no name: all that comes before its second
//! turn and is sent again with every one.

use xxhash_rust::xxh3::xxh3_128;

use super::StickyKey;
use crate::json::{Cursor, Malformed};
use crate::peek::{Field, Peek};

/// Most bytes of one part that count. What two conversations do not share by then they may well have in the same
/// prompt cache.
const PART_LIMIT: usize = 64 * 1024;

/// How far into `input` the first user message is looked for, bytes. With [`PART_LIMIT`] the bound on all work.
const INPUT_LIMIT: usize = 64 * 1024;

/// The parts of an OpenAI request that are the same in every turn of its conversation, as they stand in its body:
/// `model`, `tools`, `functions`, `instructions`, and the beginning of `input`. Costs nothing until [`Seed::key`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seed<'a> {
    parts: [&'a [u8]; 4],
    input: Field<'a>,
}

impl<'a> Seed<'a> {
    /// Of a body that was peeked at.
    pub fn of(seen: &Peek<'a>) -> Self {
        Seed {
            parts: [
                seen.model.raw(),
                seen.tools.raw(),
                seen.functions.raw(),
                seen.instructions.raw(),
            ],
            input: seen.input.clone(),
        }
    }

    /// The sticky key. Besides the four fields it is made of the system and developer messages of `input` up to the
    /// first user message, and that one; of each part the first 64 KiB, as they are written. `None` when no user message
    /// begins within the first 64 KiB of `input`: the rest alone would tie every user of a program to one account.
    pub fn key(&self) -> Option<StickyKey> {
        let mut chain = Chain::default();
        for part in self.parts {
            chain.add(part);
        }
        match self.input {
            Field::String { raw, .. } if !raw.is_empty() => chain.add(raw),
            Field::Array(input) => add_input(&mut chain, input)?,
            _ => return None,
        }
        Some(StickyKey(chain.0))
    }
}

/// The hash of all parts so far: each by itself, so that none can run into another, and then chained. For parts as
/// short as most are that is faster than hashing them in one stream.
#[derive(Default)]
struct Chain(u128);

impl Chain {
    fn add(&mut self, part: &[u8]) {
        let part = &part[..part.len().min(PART_LIMIT)];
        let mut link = [0; 32];
        link[..16].copy_from_slice(&self.0.to_le_bytes());
        link[16..].copy_from_slice(&xxh3_128(part).to_le_bytes());
        self.0 = xxh3_128(&link);
    }
}

/// What counts of an `input` array; `None` when there is no user message.
fn add_input(chain: &mut Chain, input: &[u8]) -> Option<()> {
    // Of a longer array the end is cut off. The array is known to be well-formed, so that what cannot be read is what
    // the cut went through. Turns to come are behind it or behind the first user message: either way they change
    // nothing.
    let window = &input[..input.len().min(INPUT_LIMIT)];
    let mut cursor = Cursor::new(window);
    cursor.array().ok()?;
    while cursor.element().ok()? {
        let start = cursor.start();
        let mut item = Item::default();
        if item.read(&mut cursor, window).is_ok() {
            match item.role {
                Role::User => {
                    chain.add(item.content);
                    return Some(());
                }
                Role::System => chain.add(item.content),
                Role::Other => {}
            }
            continue;
        }
        // Of a message that is cut before it tells its role, most are the user's: the prompts of programs are short,
        // what users paste is long.
        return match item.role {
            Role::System => None,
            Role::User | Role::Other => {
                chain.add(&window[start..]);
                Some(())
            }
        };
    }
    None
}

/// Whose message an item is.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Role {
    User,
    /// Or the developer's.
    System,
    /// The model's, or no message, or not told.
    #[default]
    Other,
}

#[derive(Default)]
struct Item<'a> {
    role: Role,
    /// Its `content`, brackets or quotes included.
    content: &'a [u8],
}

impl<'a> Item<'a> {
    /// Reads the item at the cursor; malformed = it goes on beyond the window.
    fn read(&mut self, cursor: &mut Cursor<'a>, window: &'a [u8]) -> Result<(), Malformed> {
        if !cursor.object()? {
            return cursor.value().map(drop);
        }
        while let Some(key) = cursor.key()? {
            let start = cursor.start();
            let value = cursor.value()?;
            match &*key.name() {
                b"content" => self.content = &window[start..cursor.at()],
                b"role" => {
                    self.role = match value.text().map(|text| text.name()).as_deref() {
                        Some(b"user") => Role::User,
                        Some(b"system" | b"developer") => Role::System,
                        _ => Role::Other,
                    };
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::peek::peek;

    fn key(body: &Value) -> Option<StickyKey> {
        key_of(&body.to_string())
    }

    fn key_of(body: &str) -> Option<StickyKey> {
        Seed::of(&peek(body.as_bytes()).unwrap()).key()
    }

    fn message(role: &str, text: &str) -> Value {
        json!({"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]})
    }

    fn base() -> Value {
        json!({
            "model": "gpt-5", "instructions": "be kind", "tools": [{"name": "t"}], "functions": [{"name": "f"}],
            "input": [message("developer", "d"), message("system", "s"), message("user", "u")],
        })
    }

    #[test]
    fn every_part_counts_and_nothing_else() {
        let of_base = key(&base());
        assert!(of_base.is_some());
        let with = |pointer: &str, value: Value| {
            let mut body = base();
            *body.pointer_mut(pointer).unwrap() = value;
            key(&body)
        };
        #[rustfmt::skip]
        let different = [
            ("/model", json!("gpt-6")), ("/instructions", json!("be rude")), ("/tools", json!([])),
            ("/functions", json!([{"name": "g"}])), ("/input/0", message("developer", "x")),
            ("/input/0", message("user", "x")), ("/input/1", message("system", "x")), ("/input/2", message("user", "x")),
        ];
        let mut seen = vec![of_base];
        for (pointer, value) in different {
            let key = with(pointer, value.clone());
            assert!(key.is_some() && !seen.contains(&key), "{pointer} {value}");
            seen.push(key);
        }
        let mut body = base();
        body["stream"] = json!(true);
        body["reasoning"] = json!({"effort": "high"});
        body["input"][2]["id"] = json!("msg_1");
        assert_eq!(key(&body), of_base);
        // A text for input is a user message too, if another one.
        let text = |text: &str| key(&json!({"model": "gpt-5", "input": text}));
        assert!(text("u").is_some() && text("u") != text("v") && text("u") != of_base);
    }

    #[test]
    fn parts_do_not_run_into_one_another() {
        let a = json!({"model": "ab", "instructions": "c", "input": "x"});
        let b = json!({"model": "a", "instructions": "bc", "input": "x"});
        assert_ne!(key(&a), key(&b));
    }

    #[test]
    fn without_a_user_message_there_is_none() {
        for input in [
            json!([]),
            json!(""),
            json!(null),
            json!(7),
            json!([message("developer", "d")]),
            json!([message("assistant", "a"), {"type": "function_call_output", "call_id": "c", "output": "o"}]),
            json!(["user", 7]),
        ] {
            assert_eq!(key(&json!({"model": "m", "input": input})), None, "{input}");
        }
        assert_eq!(key(&json!({"model": "m"})), None);
    }

    #[test]
    fn what_stands_before_the_user_message_and_is_no_instruction_is_stepped_over() {
        let plain = json!({"model": "m", "input": [message("user", "u")]});
        let other = json!({"model": "m", "input": [7, {"type": "reasoning"}, message("assistant", "a"), message("user", "u")]});
        assert!(key(&plain).is_some());
        assert_eq!(key(&plain), key(&other));
        // Keys in another order and spelling.
        let spelt = r#"{"input":[{"content":[{"type":"input_text","text":"u"}],"rol\u0065":"\u0075ser"}],"model":"m"}"#;
        let body = r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"u"}]}]}"#;
        assert_eq!(key_of(spelt), key_of(body));
    }

    #[test]
    fn long_messages_count_by_their_beginning() {
        let long = |before: usize, mark: &str, after: usize| {
            let text = format!("{}{mark}{}", "a".repeat(before), "b".repeat(after));
            json!({"model": "m", "input": [message("user", &text)]})
        };
        let all = 2 * INPUT_LIMIT;
        assert_ne!(key(&long(10, "x", all)), key(&long(10, "y", all)));
        assert_ne!(key(&long(10, "x", 10)), key(&long(10, "y", 10)));
        assert!(key(&long(all, "x", 1)).is_some());
        assert_eq!(key(&long(all, "x", 1)), key(&long(all, "y", 1)));
        // The same with a text, and with instructions that come first.
        let text =
            |mark: &str| json!({"model": "m", "input": format!("{}{mark}", "a".repeat(all))});
        assert_eq!(key(&text("x")), key(&text("y")));
        let hidden = |role: &str, user: &str| {
            let long = "a".repeat(all);
            key_of(&format!(
                r#"{{"input":[{{"role":"{role}","content":"{long}"}},{{"role":"user","content":"{user}"}}]}}"#
            ))
        };
        assert_eq!(hidden("system", "u"), None);
        assert_eq!(hidden("developer", "u"), None);
        assert!(hidden("assistant", "u").is_some());
        assert_eq!(hidden("assistant", "u"), hidden("assistant", "v"));
    }

    proptest! {
        /// At whatever length the window cuts, a conversation keeps its key.
        #[test]
        fn later_turns_change_nothing(
            lengths in prop::collection::vec(prop_oneof![0..100usize, 30_000..70_000usize], 1..4),
            first in 0..4usize,
            later in prop::collection::vec(("user|assistant|developer", 0..40_000usize), 1..4),
        ) {
            let mut input: Vec<Value> = lengths
                .iter()
                .enumerate()
                .map(|(at, length)| message(if at == first { "user" } else { "assistant" }, &"a".repeat(*length)))
                .collect();
            if !lengths.iter().enumerate().any(|(at, _)| at == first) {
                input.push(message("user", "u"));
            }
            let before = key(&json!({"model": "m", "input": input}));
            input.extend(later.iter().map(|(role, length)| message(role, &"b".repeat(*length))));
            prop_assert_eq!(before, key(&json!({"model": "m", "input": input})));
        }

        #[test]
        fn any_body_is_survived(input in "[\\[\\]{}\",:a-z0-9 ]{0,60}") {
            let body = format!(r#"{{"input":[{input}]}}"#);
            if let Ok(seen) = peek(body.as_bytes()) {
                let _ = Seed::of(&seen).key();
            }
        }
    }
}
