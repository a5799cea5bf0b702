//! A request body as an account gets it: the client's bytes, but for the model's name and the output limit. Use it
//! where pieces of the body are laid out; everything else is shared with the body, not copied.

use std::ops::Range;

use bytes::Bytes;

use crate::peek::{quoted, replace};

/// What is to be different.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes<'a> {
    /// Another name of the model.
    pub model: Option<&'a str>,
    /// Another limit, in `max_output_tokens`.
    pub output_limit: Option<u64>,
}

/// Where what can be changed stands, as [`Peek`](crate::peek::Peek) and
/// [`ResponsesRequest`](crate::validate::ResponsesRequest) have it: in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Places<'a> {
    /// The values of every top-level `model`.
    pub model: &'a [Range<usize>],
    /// The values of every top-level `max_output_tokens`.
    pub output_limit: &'a [Range<usize>],
}

/// The body with these changes, in pieces. Every occurrence of a field gets the new value. A limit that the body does
/// not have is put in front of its first member; a model's name that it does not have is not.
pub fn rewrite(body: &Bytes, places: Places<'_>, changes: Changes<'_>) -> Vec<Bytes> {
    let model = changes.model.map(quoted);
    let limit = changes
        .output_limit
        .map(|limit| Bytes::from(limit.to_string()));
    let mut all: Vec<(Range<usize>, &Bytes)> = Vec::new();
    if let Some(model) = &model {
        all.extend(places.model.iter().map(|span| (span.clone(), model)));
    }
    let inserted;
    if let Some(limit) = &limit {
        all.extend(places.output_limit.iter().map(|span| (span.clone(), limit)));
        if places.output_limit.is_empty()
            && let Some((at, member)) = first_member(body, limit)
        {
            inserted = member;
            all.push((at..at, &inserted));
        }
    }
    all.sort_by_key(|(span, _)| span.start);
    replace(body, all.into_iter())
}

/// Where an object's first member would stand, and the limit as such; `None` when the body is no object.
fn first_member(body: &[u8], limit: &Bytes) -> Option<(usize, Bytes)> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
    let open = body.iter().position(|byte| !is_space(byte))?;
    if body[open] != b'{' {
        return None;
    }
    let next = body[open + 1..].iter().find(|byte| !is_space(byte));
    let comma = if next == Some(&b'}') { "" } else { "," };
    let mut member = br#""max_output_tokens":"#.to_vec();
    member.extend_from_slice(limit);
    member.extend_from_slice(comma.as_bytes());
    Some((open + 1, member.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Tree;

    use super::*;
    use crate::peek::peek;
    use crate::peek::tests::document;

    fn rewritten(body: &Bytes, changes: Changes<'_>) -> Vec<Bytes> {
        let seen = peek(body).unwrap();
        let places = Places {
            model: &seen.model_spans,
            output_limit: &seen.output_limit_spans,
        };
        rewrite(body, places, changes)
    }

    #[test]
    fn fields_are_replaced_and_a_missing_limit_is_put_in() {
        let both = Changes {
            model: Some("b\""),
            output_limit: Some(7),
        };
        let limit = Changes {
            output_limit: Some(7),
            ..Changes::default()
        };
        let model = Changes {
            model: Some("b"),
            ..Changes::default()
        };
        for (body, changes, expected) in [
            (
                r#"{"model":"a","x":1}"#,
                Changes::default(),
                r#"{"model":"a","x":1}"#,
            ),
            (r#"{"model":"a","x":1}"#, model, r#"{"model":"b","x":1}"#),
            (
                r#" { "model":"a"}"#,
                limit,
                r#" {"max_output_tokens":7, "model":"a"}"#,
            ),
            (
                r#"{"model":"a"}"#,
                both,
                r#"{"max_output_tokens":7,"model":"b\""}"#,
            ),
            (
                r#"{"max_output_tokens":9,"model":"a","max_output_tokens": null }"#,
                both,
                r#"{"max_output_tokens":7,"model":"b\"","max_output_tokens": 7 }"#,
            ),
            (
                r#"{"text":{"max_output_tokens":9}}"#,
                limit,
                r#"{"max_output_tokens":7,"text":{"max_output_tokens":9}}"#,
            ),
            (" {\n} ", both, " {\"max_output_tokens\":7\n} "),
        ] {
            let body = Bytes::from_static(body.as_bytes());
            let new = rewritten(&body, changes).concat();
            assert_eq!(String::from_utf8(new).unwrap(), expected);
        }
        for nothing in ["", " ", "[1]"] {
            let body = Bytes::from_static(nothing.as_bytes());
            assert_eq!(
                rewrite(&body, Places::default(), limit).concat(),
                *nothing.as_bytes()
            );
        }
    }

    #[test]
    fn the_rest_of_the_body_is_shared() {
        let body = Bytes::from_static(br#"{"input":"long","model":"a"}"#);
        let pieces = rewritten(
            &body,
            Changes {
                model: Some("b"),
                output_limit: Some(1),
            },
        );
        assert_eq!(pieces[2].as_ptr(), body[1..].as_ptr());
    }

    proptest! {
        /// Parsed again it is the same but for these fields, and the bytes besides them are untouched.
        #[test]
        fn nothing_else_changes(
            body in document(), model in proptest::option::of(any::<String>()), limit in proptest::option::of(any::<u64>()),
        ) {
            let body = Bytes::from(body);
            let Ok(seen) = peek(&body) else { return Ok(()) };
            let changes = Changes { model: model.as_deref(), output_limit: limit };
            let new = rewritten(&body, changes).concat();
            let mut expected: Tree = serde_json::from_slice(&body).unwrap();
            if let (Some(model), true) = (&model, seen.model.is_present()) {
                expected["model"] = model.as_str().into();
            }
            if let Some(limit) = limit {
                expected["max_output_tokens"] = limit.into();
            }
            prop_assert_eq!(serde_json::from_slice::<Tree>(&new).unwrap(), expected);

            // Without the values of these fields, old and new are the same but for what was put in front.
            let again = peek(&new).unwrap();
            let rest = |bytes: &[u8], models: &[Range<usize>], limits: &[Range<usize>]| {
                let mut spans: Vec<_> = models.iter().chain(limits).cloned().collect();
                spans.sort_by_key(|span| span.start);
                let mut rest = bytes.to_vec();
                for span in spans.into_iter().rev() {
                    rest.drain(span);
                }
                rest
            };
            let old_rest = rest(&body, &seen.model_spans, &seen.output_limit_spans);
            let mut new_rest = rest(&new, &again.model_spans, &again.output_limit_spans);
            if limit.is_some() && seen.output_limit_spans.is_empty() {
                let at = new_rest.iter().position(|byte| *byte == b'{').unwrap() + 1;
                let empty = serde_json::from_slice::<Tree>(&body).unwrap().as_object().unwrap().is_empty();
                let member = if empty { r#""max_output_tokens":"# } else { r#""max_output_tokens":,"# };
                prop_assert_eq!(&new_rest[at..at + member.len()], member.as_bytes());
                new_rest.drain(at..at + member.len());
            }
            prop_assert_eq!(old_rest, new_rest);
        }
    }
}
