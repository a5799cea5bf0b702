//! An error of ours → what the client gets: a status and a body, or an event in a stream that has begun.
//!
//! Errors are made in [`errors`], one function for each, and written here in the client's dialect, so
//! that its library raises the exception it would raise for the provider itself.

pub mod errors;
mod keep_alive;

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Value, json};

pub use self::keep_alive::keep_alive;

use crate::route::Dialect;

/// An error for the client, in no dialect yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    /// The HTTP status; inside a stream it is only for the record.
    pub status: u16,
    /// The error's type, as OpenAI names it.
    pub kind: &'static str,
    /// Anthropic's name of the type, where it is not what [`ErrorReply::kind`] and the status come to.
    pub anthropic_kind: Option<&'static str>,
    /// A code programs can tell the error by.
    pub code: Option<&'static str>,
    /// What happened and what to do, for people.
    pub message: Cow<'static, str>,
    /// The value of the `Retry-After` header, in seconds.
    pub retry_after_s: Option<u64>,
}

impl ErrorReply {
    /// An error without a code and without a time to come back.
    pub fn new(status: u16, kind: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            kind,
            anthropic_kind: None,
            code: None,
            message: message.into(),
            retry_after_s: None,
        }
    }

    /// The same error with a code.
    #[must_use]
    pub fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// The same error with a time to come back, in seconds.
    #[must_use]
    pub fn with_retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after_s: Some(seconds),
            ..self
        }
    }

    /// The same error, saying more: what `detail` is follows the message in brackets.
    #[must_use]
    pub fn with_detail(self, detail: &str) -> Self {
        Self {
            message: format!("{} ({detail})", self.message).into(),
            ..self
        }
    }

    /// The body of the reply, as JSON, with our id of the request where the dialect has a place for it.
    pub fn body_for(&self, dialect: Dialect, request_id: &str) -> Bytes {
        match dialect {
            Dialect::Anthropic => Bytes::from(self.anthropic(Some(request_id)).to_string()),
            Dialect::OpenAi | Dialect::Google => self.body(dialect),
        }
    }

    /// The body of the reply, as JSON.
    pub fn body(&self, dialect: Dialect) -> Bytes {
        let body = match dialect {
            Dialect::OpenAi => json!({"error": {
                "message": self.message,
                "type": self.kind,
                "param": null,
                "code": self.code,
            }}),
            Dialect::Anthropic => self.anthropic(None),
            Dialect::Google => self.google(),
        };
        Bytes::from(body.to_string())
    }

    /// The same as [`Self::event`], with our id of the request where the dialect has a place for it.
    pub fn event_for(&self, dialect: Dialect, request_id: &str) -> Bytes {
        match dialect {
            Dialect::Anthropic => frame("event: error\n", &self.anthropic(Some(request_id))),
            Dialect::OpenAi | Dialect::Google => self.event(dialect),
        }
    }

    /// The error as an event of a stream that has begun, with the empty line that ends it.
    pub fn event(&self, dialect: Dialect) -> Bytes {
        // Some readers look for the fields of an error event of the Responses API at the top, others
        // for an `error` object as in a body: both find theirs.
        let (name, data) = match dialect {
            Dialect::OpenAi => (
                "event: error\n",
                json!({
                    "type": "error",
                    "sequence_number": 0,
                    "code": self.code,
                    "message": self.message,
                    "param": null,
                    "error": {
                        "type": self.kind,
                        "message": self.message,
                        "code": self.code,
                    },
                }),
            ),
            Dialect::Anthropic => ("event: error\n", self.anthropic(None)),
            Dialect::Google => ("", self.google()),
        };
        frame(name, &data)
    }

    /// Types by status: <https://platform.claude.com/docs/en/api/errors>.
    fn anthropic(&self, request_id: Option<&str>) -> Value {
        let kind = match (self.anthropic_kind, self.status) {
            (Some(kind), _) => kind,
            (None, 404) => "not_found_error",
            (None, 413) => "request_too_large",
            (None, 529) => "overloaded_error",
            (None, _) => self.kind,
        };
        let mut body = json!({"type": "error", "error": {"type": kind, "message": self.message}});
        if let Some(id) = request_id {
            body["request_id"] = Value::from(id);
        }
        body
    }

    fn google(&self) -> Value {
        let status = match self.status {
            400 => "INVALID_ARGUMENT",
            401 => "UNAUTHENTICATED",
            403 => "PERMISSION_DENIED",
            404 => "NOT_FOUND",
            429 => "RESOURCE_EXHAUSTED",
            500.. => "INTERNAL",
            _ => "UNKNOWN",
        };
        json!({"error": {"code": self.status, "message": self.message, "status": status}})
    }
}

fn frame(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("{name}data: {data}\n\n"))
}

#[cfg(test)]
mod anthropic_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIALECTS: [Dialect; 3] = [Dialect::OpenAi, Dialect::Anthropic, Dialect::Google];

    fn parse(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    /// The data of the only event in `event`.
    fn data(event: &[u8]) -> Value {
        let text = std::str::from_utf8(event).unwrap();
        let lines = text.strip_suffix("\n\n").unwrap();
        assert!(!lines.contains("\n\n"));
        let data = lines.lines().find_map(|l| l.strip_prefix("data: "));
        parse(data.unwrap().as_bytes())
    }

    #[test]
    fn bodies_in_each_dialect() {
        let plain = ErrorReply::new(404, "invalid_request_error", "No \"such\" thing");
        let coded =
            ErrorReply::new(401, "authentication_error", "Who?").with_code("API_KEY_REQUIRED");
        #[rustfmt::skip]
        let rows = [
            (&plain, Dialect::OpenAi, r#"{"error":{"message":"No \"such\" thing","type":"invalid_request_error","param":null,"code":null}}"#),
            (&plain, Dialect::Anthropic, r#"{"type":"error","error":{"type":"not_found_error","message":"No \"such\" thing"}}"#),
            (&plain, Dialect::Google, r#"{"error":{"code":404,"message":"No \"such\" thing","status":"NOT_FOUND"}}"#),
            (&coded, Dialect::OpenAi, r#"{"error":{"message":"Who?","type":"authentication_error","param":null,"code":"API_KEY_REQUIRED"}}"#),
            (&coded, Dialect::Anthropic, r#"{"type":"error","error":{"type":"authentication_error","message":"Who?"}}"#),
            (&coded, Dialect::Google, r#"{"error":{"code":401,"message":"Who?","status":"UNAUTHENTICATED"}}"#),
        ];
        for (error, dialect, expected) in rows {
            assert_eq!(
                parse(&error.body(dialect)),
                parse(expected.as_bytes()),
                "{dialect:?}"
            );
        }
    }

    #[test]
    fn events_in_each_dialect() {
        let error = ErrorReply::new(502, "upstream_error", "Gone").with_code("gone");
        #[rustfmt::skip]
        let rows = [
            (Dialect::OpenAi, "event: error\ndata: {", r#"{"type":"error","sequence_number":0,"code":"gone","message":"Gone","param":null,"error":{"type":"upstream_error","message":"Gone","code":"gone"}}"#),
            (Dialect::Anthropic, "event: error\ndata: {", r#"{"type":"error","error":{"type":"upstream_error","message":"Gone"}}"#),
            (Dialect::Google, "data: {", r#"{"error":{"code":502,"message":"Gone","status":"INTERNAL"}}"#),
        ];
        for (dialect, begins, expected) in rows {
            let event = error.event(dialect);
            assert!(event.starts_with(begins.as_bytes()), "{dialect:?}");
            assert_eq!(data(&event), parse(expected.as_bytes()), "{dialect:?}");
        }
    }

    #[test]
    fn googles_names_of_statuses() {
        #[rustfmt::skip]
        let rows = [
            (400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"),
            (404, "NOT_FOUND"), (429, "RESOURCE_EXHAUSTED"), (405, "UNKNOWN"), (413, "UNKNOWN"),
            (499, "UNKNOWN"), (500, "INTERNAL"), (502, "INTERNAL"), (503, "INTERNAL"), (529, "INTERNAL"),
        ];
        for (status, name) in rows {
            let body = parse(&ErrorReply::new(status, "x", "m").body(Dialect::Google));
            assert_eq!(body["error"]["status"], name, "{status}");
            assert_eq!(body["error"]["code"], status);
        }
    }

    proptest! {
        #[test]
        fn any_message_arrives_whole_and_cannot_break_out(message in any::<String>()) {
            let error = ErrorReply::new(400, "invalid_request_error", message.clone());
            for dialect in DIALECTS {
                let body = parse(&error.body(dialect));
                prop_assert_eq!(&body["error"]["message"], &Value::from(message.clone()));
                let event = data(&error.event(dialect));
                prop_assert_eq!(&event["error"]["message"], &Value::from(message.clone()));
            }
        }
    }
}
