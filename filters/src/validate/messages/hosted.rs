//! What makes the prompt more than the bytes of the body: things the provider holds, fetches or finds. Where there is
//! any, the length of the body is no bound on what a request may cost.

use crate::json::{Cursor, Malformed, Value};

/// Tools of Anthropic's own form that the client runs itself: the definition is all they bring. Every other typed tool
/// is taken for one that runs at the provider, which puts what it finds into the prompt.
/// <https://platform.claude.com/docs/en/agents-and-tools/tool-use/tool-reference>
const CLIENT_TOOLS: [&[u8]; 7] = [
    b"bash_",
    b"browser_toolset_",
    b"computer_",
    b"custom",
    b"function",
    b"memory_",
    b"text_editor_",
];

/// What a request has beside the bytes of its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hosted {
    /// Files, addresses, containers, stored conversations, tools that run at the provider, servers it asks:
    /// the prompt may be as long as the model reads.
    pub things: bool,
    /// Images in the body itself: they count by their size in pixels, not in bytes.
    pub inline_images: u32,
    /// Another model than the one asked for may answer, or be asked in between: its price may be another.
    pub other_models: bool,
}

impl Hosted {
    /// Takes in what a part has.
    pub(super) fn add(&mut self, part: &Hosted) {
        self.things |= part.things;
        self.inline_images = self.inline_images.saturating_add(part.inline_images);
        self.other_models |= part.other_models;
    }

    /// A field at the top of the body.
    pub(super) fn note_field(&mut self, name: &[u8], value: Value<'_>) {
        let said = match value {
            Value::Null => false,
            Value::Array(bytes) => !is_empty(bytes),
            _ => true,
        };
        match name {
            b"container" | b"mcp_servers" | b"thread" => self.things |= said,
            b"fallbacks" => self.other_models |= said,
            _ => {}
        }
    }

    /// Reads over the `tools` at the cursor and tells whether there is one.
    pub(super) fn read_tools(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Malformed> {
        if !cursor.array()? {
            cursor.value()?;
            return Ok(false);
        }
        let mut any = false;
        while cursor.element()? {
            any = true;
            let Some(kind) = super::member(cursor, b"type")? else {
                continue;
            };
            let kind = kind.name();
            self.things |= !CLIENT_TOOLS.iter().any(|tool| kind.starts_with(tool));
            self.other_models |= kind.starts_with(b"advisor_");
        }
        Ok(any)
    }
}

fn is_empty(array: &[u8]) -> bool {
    array
        .iter()
        .all(|byte| matches!(byte, b'[' | b']') || byte.is_ascii_whitespace())
}
