//! What a request body must have before anything is done for it: the checks of each endpoint, in their order, with
//! their messages. Use [`responses`] on the body of `POST /v1/responses`.

pub mod messages;

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use memchr::memmem;

use crate::affinity::Seed;
use crate::json::{Cursor, Malformed, Text};
use crate::peek::{self, Field, ImageTool, Peek, PeekError};

/// What is wrong with a request body. Each is a 400 `invalid_request_error` with its text as the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Invalid {
    /// The body is not JSON.
    #[error("Failed to parse request body")]
    Parse,
    /// `model` is missing, not a string or empty.
    #[error("model is required")]
    ModelRequired,
    /// `model` is given over and over.
    #[error("model is given more than {MODEL_SPANS} times")]
    ModelRepeated,
    /// `max_output_tokens` is given over and over.
    #[error("max_output_tokens is given more than {MODEL_SPANS} times")]
    OutputLimitRepeated,
    /// `stream` is there and not a boolean.
    #[error("invalid stream field type")]
    StreamType,
    /// An answer that is to be made later, where nobody would see what it used.
    #[error(
        "background responses are only served as streams (stream: true): what others use cannot be told"
    )]
    Background,
    /// Tool outputs that answer no call the provider can know of.
    #[error("{0}")]
    FunctionCallOutput(&'static str),
}

/// Repeated keys that are still taken (the last counts, as everywhere): each costs memory.
const MODEL_SPANS: usize = crate::peek::MODEL_SPANS;
/// An output names no call.
const CALL_ID_REQUIRED: &str = "function_call_output requires call_id or previous_response_id; \
     if relying on history, ensure store=true and reuse previous_response_id";
/// An output names a call that nothing in the request refers to.
const ITEM_REFERENCE_REQUIRED: &str = "function_call_output requires item_reference ids matching each call_id, \
     or previous_response_id/tool_call context; if relying on history, ensure store=true and reuse previous_response_id";

/// A valid Responses request, as far as it decides anything. Optional strings that are blank count as absent and
/// come trimmed; of a wrong type they are the provider's to refuse.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResponsesRequest<'a> {
    /// The model asked for, never empty.
    pub model: Cow<'a, str>,
    /// Where its values stand, for [`rewrite`](crate::rewrite::rewrite).
    pub model_spans: Vec<Range<usize>>,
    /// Whether the answer is to be a stream.
    pub stream: bool,
    /// The response this one continues.
    pub previous_response_id: Option<Cow<'a, str>>,
    /// The client's hint which prompt cache to use.
    pub prompt_cache_key: Option<Cow<'a, str>>,
    /// The service tier asked for, as written.
    pub service_tier: Option<Cow<'a, str>>,
    /// `reasoning.effort`, as written.
    pub reasoning_effort: Option<Cow<'a, str>>,
    /// Most output tokens the client allows, if that can be told: given more than once it is the largest.
    pub max_output_tokens: Option<u64>,
    /// Where the values of `max_output_tokens` stand, whatever they are; none = the client does not limit the output.
    pub output_limit_spans: Vec<Range<usize>>,
    /// Whether the provider will read more than stands in the body: files, addresses, what it has stored, what its own
    /// tools find. What can not be told counts as more.
    pub hosted: bool,
    /// Images that stand in the body itself.
    pub inline_images: u32,
    /// The provider's own tool for images, if the request brings it.
    pub image_tool: Option<ImageTool<'a>>,
    /// What tells its conversation where nothing else does.
    pub seed: Seed<'a>,
}

/// Checks the body of a Responses request: JSON, then `model`, then `stream`, then the tool outputs in `input`.
///
/// # Errors
/// The first check that fails.
pub fn responses(body: &[u8]) -> Result<ResponsesRequest<'_>, Invalid> {
    let seen = peek::peek(body).map_err(|error| match error {
        PeekError::NotJson => Invalid::Parse,
        // It did parse; it just has no model.
        PeekError::NotObject => Invalid::ModelRequired,
    })?;
    let model = seen
        .model
        .as_str()
        .filter(|model| !model.is_empty())
        .ok_or(Invalid::ModelRequired)?;
    if seen.model_spans.len() > MODEL_SPANS {
        return Err(Invalid::ModelRepeated);
    }
    if seen.output_limit_spans.len() > MODEL_SPANS {
        return Err(Invalid::OutputLimitRepeated);
    }
    let stream = match seen.stream {
        Field::Absent => false,
        Field::Bool(stream) => stream,
        _ => return Err(Invalid::StreamType),
    };
    if seen.background == Field::Bool(true) && !stream {
        return Err(Invalid::Background);
    }
    let previous_response_id = text(&seen.previous_response_id);
    if previous_response_id.is_none()
        && let Field::Array(input) = seen.input
    {
        function_call_outputs(input)?;
    }
    let stored = [&seen.previous_response_id, &seen.conversation, &seen.prompt];
    let is_given = |field: &&Field<'_>| !matches!(field, Field::Absent | Field::Null);
    let hosted = seen.content.hosted || stored.iter().any(is_given);
    let max_output_tokens = output_limit(body, &seen);
    let seed = Seed::of(&seen);
    Ok(ResponsesRequest {
        model,
        model_spans: seen.model_spans,
        stream,
        previous_response_id,
        prompt_cache_key: text(&seen.prompt_cache_key),
        service_tier: text(&seen.service_tier),
        reasoning_effort: text(&seen.reasoning_effort),
        max_output_tokens,
        output_limit_spans: seen.output_limit_spans,
        hosted,
        inline_images: seen.content.inline_images,
        image_tool: seen.content.image_tool,
        seed,
    })
}

/// The largest of the limits given, so that no reader of the body can come to a larger one; `None` when there is none
/// or one of them is no whole number.
fn output_limit(body: &[u8], seen: &Peek<'_>) -> Option<u64> {
    let mut largest = None;
    for span in &seen.output_limit_spans {
        let limit = Field::Number(body.get(span.clone())?).as_u64()?;
        largest = largest.max(Some(limit));
    }
    largest
}

fn text<'a>(field: &Field<'a>) -> Option<Cow<'a, str>> {
    field.as_str().and_then(trimmed)
}

/// Without surrounding white space; `None` when nothing remains.
fn trimmed(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    let text = match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    };
    (!text.is_empty()).then_some(text)
}

/// The check of tool outputs in an `input` array, for a request that continues no stored response.
fn function_call_outputs(input: &[u8]) -> Result<(), Invalid> {
    // Most requests have none. A second look is needed only where the words occur, plain or with an escaped letter.
    if memmem::find(input, b"function_call_output").is_none()
        && memmem::find(input, b"\\u00").is_none()
    {
        return Ok(());
    }
    let tools = ToolItems::read(input).map_err(|Malformed| Invalid::Parse)?;
    if !tools.has_output || tools.has_call {
        Ok(())
    } else if tools.has_output_without_call_id {
        Err(Invalid::FunctionCallOutput(CALL_ID_REQUIRED))
    } else if tools.call_ids.is_subset(&tools.references) {
        Ok(())
    } else {
        Err(Invalid::FunctionCallOutput(ITEM_REFERENCE_REQUIRED))
    }
}

/// What the items of an `input` array say about tool calls. Ids are trimmed and not blank.
#[derive(Default)]
struct ToolItems<'a> {
    has_output: bool,
    has_output_without_call_id: bool,
    /// A call itself, with a call id: lets every output pass.
    has_call: bool,
    call_ids: HashSet<Cow<'a, str>>,
    references: HashSet<Cow<'a, str>>,
}

impl<'a> ToolItems<'a> {
    fn read(input: &'a [u8]) -> Result<Self, Malformed> {
        let mut tools = ToolItems::default();
        let mut cursor = Cursor::new(input);
        cursor.array()?;
        while cursor.element()? {
            if !cursor.object()? {
                cursor.value()?;
                continue;
            }
            let (mut kind, mut id, mut call_id) = (None, None, None);
            while let Some(key) = cursor.key()? {
                let value = cursor.value()?.text();
                match &*key.name() {
                    b"type" => kind = value,
                    b"id" => id = value,
                    b"call_id" => call_id = value,
                    _ => {}
                }
            }
            tools.note(kind, id, call_id);
        }
        Ok(tools)
    }

    fn note(&mut self, kind: Option<Text<'a>>, id: Option<Text<'a>>, call_id: Option<Text<'a>>) {
        let filled = |text: Option<Text<'a>>| text.and_then(|text| text.decode()).and_then(trimmed);
        let Some(kind) = kind else { return };
        match &*kind.name() {
            b"function_call_output" => {
                self.has_output = true;
                match filled(call_id) {
                    Some(call_id) => drop(self.call_ids.insert(call_id)),
                    None => self.has_output_without_call_id = true,
                }
            }
            b"function_call" | b"tool_call" => self.has_call |= filled(call_id).is_some(),
            b"item_reference" => self.references.extend(filled(id)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARSE: &str = "Failed to parse request body";
    const MODEL: &str = "model is required";
    const STREAM: &str = "invalid stream field type";

    fn message(body: &str) -> Option<String> {
        responses(body.as_bytes())
            .err()
            .map(|error| error.to_string())
    }

    #[test]
    fn checks_come_in_order() {
        for (body, expected) in [
            ("", Some(PARSE)),
            ("{", Some(PARSE)),
            (r#"{"model":"","stream":1,"#, Some(PARSE)),
            (r#"{"model":"m"} x"#, Some(PARSE)),
            ("[]", Some(MODEL)),
            ("null", Some(MODEL)),
            ("{}", Some(MODEL)),
            (r#"{"stream":"yes"}"#, Some(MODEL)),
            (r#"{"model":null}"#, Some(MODEL)),
            (r#"{"model":5}"#, Some(MODEL)),
            (r#"{"model":["m"]}"#, Some(MODEL)),
            (r#"{"model":""}"#, Some(MODEL)),
            (r#"{"model":"m","model":""}"#, Some(MODEL)),
            (r#"{"model":"","model":"m"}"#, None),
            (r#"{"model":" "}"#, None),
            (r#"{"model":"m","stream":null}"#, Some(STREAM)),
            (r#"{"model":"m","stream":1}"#, Some(STREAM)),
            (r#"{"model":"m","stream":"true"}"#, Some(STREAM)),
            (
                r#"{"model":"m","stream":{},"input":[{"type":"function_call_output"}]}"#,
                Some(STREAM),
            ),
            (r#"{"model":"m","stream":false}"#, None),
            (r#"{"model":"m","stream":true}"#, None),
            (r#"{"model":"m"}"#, None),
        ] {
            assert_eq!(message(body).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn tool_outputs_need_their_calls() {
        const OUT: &str = r#"{"type":"function_call_output","call_id":"c1","output":"x"}"#;
        let items = |items: &[&str]| format!("[{}]", items.join(","));
        for (input, expected) in [
            // Nothing to check.
            (r#""function_call_output""#.to_owned(), None),
            (r#"{"type":"function_call_output"}"#.to_owned(), None),
            (items(&[]), None),
            (items(&[r#""function_call_output""#, "5", "null"]), None),
            (
                items(&[r#"{"type":"message","content":"function_call_output"}"#]),
                None,
            ),
            (
                items(&[r#"{"type":"message","content":[{"type":"function_call_output"}]}"#]),
                None,
            ),
            (items(&[r#"{"type":" function_call_output"}"#]), None),
            (
                items(&[r#"{"type":"function_call_output","type":"message"}"#]),
                None,
            ),
            // An output alone.
            (items(&[OUT]), Some(ITEM_REFERENCE_REQUIRED)),
            (
                items(&[r#"{"type":"function\u005fcall_output","call_id":"c1"}"#]),
                Some(ITEM_REFERENCE_REQUIRED),
            ),
            (
                items(&[r#"{"type":"function_call_output"}"#]),
                Some(CALL_ID_REQUIRED),
            ),
            (
                items(&[r#"{"type":"function_call_output","call_id":7}"#]),
                Some(CALL_ID_REQUIRED),
            ),
            (
                items(&[r#"{"type":"function_call_output","call_id":null}"#]),
                Some(CALL_ID_REQUIRED),
            ),
            (
                items(&[r#"{"type":"function_call_output","call_id":" \t "}"#]),
                Some(CALL_ID_REQUIRED),
            ),
            (
                items(&[r#"{"type":"function_call_output","call_id":"\u00a0"}"#]),
                Some(CALL_ID_REQUIRED),
            ),
            (
                items(&[OUT, r#"{"type":"function_call_output"}"#]),
                Some(CALL_ID_REQUIRED),
            ),
            // A call anywhere lets all pass, if it has an id.
            (
                items(&[OUT, r#"{"type":"function_call","call_id":"other"}"#]),
                None,
            ),
            (
                items(&[
                    r#"{"type":"tool_call","call_id":"c9"}"#,
                    r#"{"type":"function_call_output"}"#,
                ]),
                None,
            ),
            (
                items(&[OUT, r#"{"type":"function_call","call_id":" "}"#]),
                Some(ITEM_REFERENCE_REQUIRED),
            ),
            (
                items(&[OUT, r#"{"type":"function_call","id":"c1"}"#]),
                Some(ITEM_REFERENCE_REQUIRED),
            ),
            (
                items(&[OUT, r#"{"type":"custom_tool_call","call_id":"c1"}"#]),
                Some(ITEM_REFERENCE_REQUIRED),
            ),
            // References must cover every call.
            (
                items(&[OUT, r#"{"type":"item_reference","id":" c1 "}"#]),
                None,
            ),
            (
                items(&[OUT, r#"{"type":"item_reference","id":"c2"}"#]),
                Some(ITEM_REFERENCE_REQUIRED),
            ),
            (
                items(&[OUT, r#"{"type":"item_reference","call_id":"c1"}"#]),
                Some(ITEM_REFERENCE_REQUIRED),
            ),
            (
                items(&[
                    OUT,
                    r#"{"type":"function_call_output","call_id":"c2"}"#,
                    r#"{"type":"item_reference","id":"c1"}"#,
                ]),
                Some(ITEM_REFERENCE_REQUIRED),
            ),
            (
                items(&[
                    r#"{"type":"item_reference","id":"c1"}"#,
                    OUT,
                    r#"{"type":"function_call_output"}"#,
                ]),
                Some(CALL_ID_REQUIRED),
            ),
        ] {
            let body = format!(r#"{{"model":"m","input":{input}}}"#);
            assert_eq!(message(&body).as_deref(), expected, "{body}");
            for (id, passes) in [
                (r#""resp_1""#, true),
                (r#"" ""#, false),
                ("null", false),
                ("5", false),
            ] {
                let body =
                    format!(r#"{{"model":"m","input":{input},"previous_response_id":{id}}}"#);
                assert_eq!(
                    message(&body).as_deref(),
                    expected.filter(|_| !passes),
                    "{body}"
                );
            }
        }
    }

    #[test]
    fn messages_are_those_of_the_specification() {
        assert_eq!(
            CALL_ID_REQUIRED,
            "function_call_output requires call_id or previous_response_id; if relying on history, ensure store=true and reuse previous_response_id"
        );
        assert_eq!(
            ITEM_REFERENCE_REQUIRED,
            "function_call_output requires item_reference ids matching each call_id, or previous_response_id/tool_call context; if relying on history, ensure store=true and reuse previous_response_id"
        );
    }

    #[test]
    fn gives_what_decides() {
        let body = br#"{"model":"gpt-5","stream":true,"previous_response_id":" resp_1 ","prompt_cache_key":"k",
            "service_tier":"flex","reasoning":{"effort":"low"},"max_output_tokens":100,"input":"hi"}"#;
        let request = responses(body).unwrap();
        assert_eq!(request.model, "gpt-5");
        assert_eq!(&body[request.model_spans[0].clone()], b"\"gpt-5\"");
        assert!(request.stream);
        assert_eq!(request.previous_response_id.as_deref(), Some("resp_1"));
        assert_eq!(request.prompt_cache_key.as_deref(), Some("k"));
        assert_eq!(request.service_tier.as_deref(), Some("flex"));
        assert_eq!(request.reasoning_effort.as_deref(), Some("low"));
        assert_eq!(request.max_output_tokens, Some(100));
        assert_eq!(&body[request.output_limit_spans[0].clone()], b"100");

        let request = responses(
            br#"{"model":"m","service_tier":null,"reasoning":"high","max_output_tokens":-1}"#,
        )
        .unwrap();
        assert!(!request.stream);
        assert_eq!(request.service_tier, None);
        assert_eq!(request.reasoning_effort, None);
        assert_eq!(request.max_output_tokens, None);
    }

    #[test]
    fn an_answer_that_is_made_later_is_only_served_as_a_stream() {
        for (fields, fine) in [
            (r#""background":true"#, false),
            (r#""background":true,"stream":false"#, false),
            (r#""background":true,"stream":true"#, true),
            (r#""background":false"#, true),
            (r#""background":null"#, true),
            (r#""metadata":{"background":true}"#, true),
        ] {
            let body = format!(r#"{{"model":"m","input":"hi",{fields}}}"#);
            let wrong = responses(body.as_bytes()).err();
            assert_eq!(wrong, (!fine).then_some(Invalid::Background), "{fields}");
        }
    }

    #[test]
    fn of_several_output_limits_the_largest_counts() {
        for (fields, limit, count) in [
            (r#""x":1"#, None, 0),
            (r#""max_output_tokens":16"#, Some(16), 1),
            (
                r#""max_output_tokens":160,"max\u005foutput_tokens":16"#,
                Some(160),
                2,
            ),
            (
                r#""max_output_tokens":16,"max_output_tokens":null"#,
                None,
                2,
            ),
            (r#""max_output_tokens":null"#, None, 1),
            (r#""max_output_tokens":1.5"#, None, 1),
            (r#""max_output_tokens":"16""#, None, 1),
        ] {
            let body = format!(r#"{{"model":"m",{fields}}}"#);
            let request = responses(body.as_bytes()).unwrap();
            assert_eq!(request.max_output_tokens, limit, "{body}");
            assert_eq!(request.output_limit_spans.len(), count, "{body}");
        }
        let nine = r#","max_output_tokens":1"#.repeat(9);
        assert_eq!(
            message(&format!(r#"{{"model":"m"{nine}}}"#)).as_deref(),
            Some("max_output_tokens is given more than 8 times")
        );
    }

    #[test]
    fn stored_things_are_hosted() {
        for (fields, hosted) in [
            (r#""input":"file_id""#, false),
            (r#""previous_response_id":"resp_1""#, true),
            (r#""previous_response_id":null"#, false),
            (r#""conversation":{"id":"conv_1"}"#, true),
            (r#""conversation":"conv_1""#, true),
            (r#""prompt":{"id":"pmpt_1"}"#, true),
            (r#""prompt":null,"conversation":null"#, false),
            (r#""tools":[{"type":"web_search"}]"#, true),
            (r#""input":[{"type":"item_reference","id":"x"}]"#, true),
        ] {
            let body = format!(r#"{{"model":"m",{fields}}}"#);
            assert_eq!(responses(body.as_bytes()).unwrap().hosted, hosted, "{body}");
        }
    }
}
