//! What a Responses request makes the provider read and make besides its text. Read in the same pass as the rest of the
//! body; nothing is copied.
//!
//! <https://platform.openai.com/docs/api-reference/responses/create>

use std::borrow::Cow;

use crate::json::{Cursor, Malformed, Text, Value};

/// What `input` and `tools` of a request say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content<'a> {
    /// The provider adds to the prompt what is not in the body: the content of a file or an address, of something it
    /// has stored, what its own tools bring. An item of a type that is not known here counts as such.
    pub hosted: bool,
    /// Images that are in the body.
    pub inline_images: u32,
    /// The provider's own tool for images.
    pub image_tool: Option<ImageTool<'a>>,
}

/// What is asked of the `image_generation` tool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ImageTool<'a> {
    /// `size`, as written; `None` when it is not given, or two tools give two.
    pub size: Option<Cow<'a, str>>,
    /// `n`, of several tools the most.
    pub n: Option<u64>,
}

impl<'a> Content<'a> {
    /// Reads over the value of `input`.
    pub(super) fn input(&mut self, cursor: &mut Cursor<'a>) -> Result<Value<'a>, Malformed> {
        let start = cursor.start();
        if !cursor.array()? {
            return cursor.value();
        }
        cursor.watch();
        while cursor.element()? {
            if cursor.object()? {
                self.item(cursor)?;
            } else {
                cursor.value()?;
            }
        }
        let seen = cursor.watched();
        self.hosted |= seen.elsewhere;
        self.inline_images = self.inline_images.saturating_add(seen.images);
        Ok(Value::Array(cursor.since(start)))
    }

    /// An item of the input, whose object is open.
    fn item(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Malformed> {
        let mut kind: Option<Text<'a>> = None;
        let (mut has_id, mut has_content, mut has_data) = (false, false, false);
        while let Some(key) = cursor.key()? {
            let value = cursor.value()?;
            let is_given = !matches!(value, Value::Null);
            match &*key.name() {
                b"type" => kind = value.text(),
                b"id" => has_id |= is_given,
                b"content" => has_content |= is_given,
                b"encrypted_content" | b"result" => has_data |= is_given,
                _ => {}
            }
        }
        let is_whole = match kind.as_ref().map(Text::name).as_deref() {
            // A message may go without; so may a reference.
            None => has_content,
            Some(
                b"message"
                | b"function_call"
                | b"function_call_output"
                | b"custom_tool_call"
                | b"custom_tool_call_output"
                | b"local_shell_call"
                | b"local_shell_call_output"
                | b"shell_call"
                | b"shell_call_output"
                | b"apply_patch_call"
                | b"apply_patch_call_output"
                | b"computer_call"
                | b"computer_call_output",
            ) => true,
            // By their id alone the provider takes from its store what they stand for.
            Some(b"reasoning" | b"compaction") => has_data || !has_id,
            Some(b"image_generation_call") => {
                self.inline_images = self.inline_images.saturating_add(u32::from(has_data));
                has_data
            }
            Some(_) => false,
        };
        self.hosted |= !is_whole;
        Ok(())
    }

    /// Reads over the value of `tools`.
    pub(super) fn tools(&mut self, cursor: &mut Cursor<'a>) -> Result<Value<'a>, Malformed> {
        let start = cursor.start();
        if !cursor.array()? {
            return cursor.value();
        }
        while cursor.element()? {
            if cursor.object()? {
                self.tool(cursor)?;
            } else {
                cursor.value()?;
            }
        }
        Ok(Value::Array(cursor.since(start)))
    }

    /// A tool, whose object is open.
    fn tool(&mut self, cursor: &mut Cursor<'a>) -> Result<(), Malformed> {
        let mut kind: Option<Text<'a>> = None;
        let mut asked = ImageTool::default();
        while let Some(key) = cursor.key()? {
            let value = cursor.value()?;
            match (&*key.name(), value) {
                (b"type", value) => kind = value.text(),
                (b"size", Value::String(size)) => asked.size = size.decode(),
                (b"n", Value::Number(digits)) => {
                    let digits = std::str::from_utf8(digits).ok();
                    asked.n = digits.and_then(|digits| digits.parse().ok());
                }
                _ => {}
            }
        }
        // What the client runs itself costs what stands in the body.
        match kind.as_ref().map(Text::name).as_deref() {
            Some(b"function" | b"custom") => return Ok(()),
            Some(b"image_generation") => {
                self.image_tool = Some(match self.image_tool.take() {
                    None => asked,
                    Some(other) => ImageTool {
                        size: other.size.filter(|size| asked.size.as_ref() == Some(size)),
                        n: other.n.max(asked.n),
                    },
                });
            }
            _ => {}
        }
        self.hosted = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::peek::peek;

    fn content(body: &str) -> Content<'_> {
        peek(body.as_bytes()).unwrap().content
    }

    #[test]
    fn input_that_stands_in_the_body_is_not_hosted() {
        for (input, hosted, images) in [
            (r#""text about \"file_id\"""#, false, 0),
            (r#"[{"role":"user","content":"hi"}]"#, false, 0),
            (
                r#"[{"type":"message","content":[{"type":"input_text","text":"file_id"}]}]"#,
                false,
                0,
            ),
            (
                r#"[{"content":[{"type":"input_file","file_id":"f"}]}]"#,
                true,
                0,
            ),
            (
                r#"[{"content":[{"type":"input_file","file_id":null,"text":""}]}]"#,
                false,
                0,
            ),
            (r#"[{"content":[{"f\u0069le_id":"f"}]}]"#, true, 0),
            (r#"[{"content":[{"file_url":"https://x"}]}]"#, true, 0),
            (
                r#"[{"content":[{"file_data":"data:application/pdf;base64,AA"}]}]"#,
                true,
                0,
            ),
            (r#"[{"content":[{"image_url":"https://x"}]}]"#, true, 0),
            (
                r#"[{"content":[{"image_url" : "DATA:image/png;base64,AA"},{"image_url":"data:x"}]}]"#,
                false,
                2,
            ),
            (r#"[{"content":[{"image_url":null}]}]"#, false, 0),
            (
                r#"[{"content":[{"image_url":{"url":"https://x"}}]}]"#,
                true,
                0,
            ),
            (r#"[{"content":[{"image_url":"\u0064ata:x"}]}]"#, true, 0),
            (
                r#"[{"type":"function_call","id":"fc_1","arguments":"{\"file_id\":1}"}]"#,
                false,
                0,
            ),
            (
                r#"[{"type":"function_call_output","output":[{"image_url":"data:x"}]}]"#,
                false,
                1,
            ),
            (
                r#"[{"type":"computer_call_output","output":{"image_url":"https://x"}}]"#,
                true,
                0,
            ),
            (r#"[{"type":"item_reference","id":"msg_1"}]"#, true, 0),
            (r#"[{"id":"msg_1"}]"#, true, 0),
            (r#"[{"type":null,"id":"msg_1"}]"#, true, 0),
            (
                r#"[{"type":"reasoning","id":"rs_1","summary":[]}]"#,
                true,
                0,
            ),
            (
                r#"[{"type":"reasoning","id":"rs_1","encrypted_content":null}]"#,
                true,
                0,
            ),
            (
                r#"[{"type":"reasoning","id":"rs_1","encrypted_content":"AA"}]"#,
                false,
                0,
            ),
            (
                r#"[{"type":"image_generation_call","id":"ig_1","result":"AA"}]"#,
                false,
                1,
            ),
            (r#"[{"type":"image_generation_call","id":"ig_1"}]"#, true, 0),
            (r#"[{"type":"web_search_call","id":"ws_1"}]"#, true, 0),
            (r#"[{"type":"mcp_list_tools","id":"m"}]"#, true, 0),
            (r#"["text",5,null,[]]"#, false, 0),
            ("{}", false, 0),
        ] {
            // Neither other fields nor a tool's parameters are looked at.
            let other = r#""metadata":{"file_id":"x"},"tools":[{"type":"function","parameters":{"file_id":{}}}]"#;
            let body = format!(r#"{{{other},"input":{input}}}"#);
            let content = content(&body);
            assert_eq!(
                (content.hosted, content.inline_images),
                (hosted, images),
                "{input}"
            );
        }
        let twice = r#"{"input":[{"id":"a"}],"input":[{"content":[{"image_url":"data:x"}]}]}"#;
        assert!(content(twice).hosted);
        assert_eq!(content(twice).inline_images, 1);
    }

    #[test]
    fn tools_of_the_provider_are_hosted() {
        for (tools, hosted) in [
            ("[]", false),
            ("null", false),
            (
                r#"[{"type":"function","name":"f"},{"type":"custom"}]"#,
                false,
            ),
            (r#"[{"type":"web_search"}]"#, true),
            (r#"[{"type":"function"},{"type":"mcp"}]"#, true),
            (r#"[{"name":"f"}]"#, true),
            (r#"["function"]"#, false),
        ] {
            let body = format!(r#"{{"tools":{tools}}}"#);
            assert_eq!(content(&body).hosted, hosted, "{tools}");
            assert_eq!(content(&body).image_tool, None);
        }
    }

    #[test]
    fn what_is_asked_of_the_image_tool_is_read() {
        let tool = |fields| format!(r#"{{"type":"image_generation"{fields}}}"#);
        for (tools, size, n) in [
            (vec![tool("")], None, None),
            (
                vec![tool(r#","size":"1024x1024","n":3"#)],
                Some("1024x1024"),
                Some(3),
            ),
            (vec![tool(r#","size":7,"n":"3""#)], None, None),
            (
                vec![tool(r#","size":"a","n":1"#), tool(r#","size":"a""#)],
                Some("a"),
                Some(1),
            ),
            (
                vec![tool(r#","size":"a","n":1"#), tool(r#","size":"b","n":2"#)],
                None,
                Some(2),
            ),
        ] {
            let body = format!(r#"{{"tools":[{}]}}"#, tools.join(","));
            let content = content(&body);
            assert!(content.hosted);
            let asked = content.image_tool.unwrap();
            assert_eq!((asked.size.as_deref(), asked.n), (size, n), "{body}");
        }
    }

    proptest! {
        /// However deep in whatever item, before and behind whatever else.
        #[test]
        fn what_is_elsewhere_is_found_wherever_it_stands(
            wrappers in prop::collection::vec((any::<bool>(), "[ \n]{0,2}", "[a-z]{0,9}"), 0..40),
            name in prop::sample::select(vec!["file_id", "file_url", "file_data", "image_url"]),
            escape in any::<prop::sample::Index>(), escapes in any::<bool>(), is_image in any::<bool>(),
        ) {
            let at = escape.index(name.len());
            let key = match escapes {
                true => format!("{}\\u{:04x}{}", &name[..at], name.as_bytes()[at], &name[at + 1..]),
                false => name.to_owned(),
            };
            let is_image = is_image && name == "image_url";
            let value = if is_image { "data:x" } else { "x" };
            let mut inner = format!(r#"{{"a":[],"{key}":"{value}","b":{{}}}}"#);
            for (in_array, space, key) in wrappers {
                inner = match in_array {
                    true => format!("[1,{space}{inner},\"file_id\"]"),
                    false => format!(r#"{{"x":{{}},{space}"{key}":{space}{inner}}}"#),
                };
            }
            let body = format!(r#"{{"model":"m","input":[{{"content":{inner}}}]}}"#);
            let content = content(&body);
            prop_assert_eq!((content.hosted, content.inline_images), (!is_image, u32::from(is_image)));
        }
    }
}
