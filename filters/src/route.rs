//! Method and path of a request → the operation it asks for, and the dialect to answer it in.
//!
//! The first filter of every request. Even a "no" carries a [`Dialect`], so that a client's library
//! can read the error of a path that does not exist.

use std::borrow::Cow;

use http::{HeaderMap, Method};

use crate::headers::anthropic;

/// The wire format a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI: Responses, chat completions, images, models.
    OpenAi,
    /// Anthropic: messages.
    Anthropic,
    /// Google: the native Gemini paths.
    Google,
}

impl Dialect {
    /// The name used in logs and as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Dialect::OpenAi => "openai",
            Dialect::Anthropic => "anthropic",
            Dialect::Google => "google",
        }
    }
}

/// One API operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /v1/responses` and what lies below it.
    Responses,
    /// `GET /v1/responses`: the Responses API over a WebSocket.
    ResponsesSocket,
    /// `POST /v1/messages`.
    Messages,
    /// `POST /v1/messages/count_tokens`.
    CountTokens,
    /// `GET /v1/models`, and `GET /v1/models/{id}`, whose id is the sub-path.
    Models,
    /// `GET /v1/usage`: what a key has used and has left.
    Usage,
}

impl Endpoint {
    /// The name used in logs and as a metric label: a fixed set, whatever clients ask for.
    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Responses => "responses",
            Endpoint::ResponsesSocket => "responses_ws",
            Endpoint::Messages => "messages",
            Endpoint::CountTokens => "count_tokens",
            Endpoint::Models => "models",
            Endpoint::Usage => "usage",
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'p> {
    /// The operation.
    pub endpoint: Endpoint,
    /// The dialect of the answer.
    pub dialect: Dialect,
    /// What follows `/responses` and is appended to the upstream's path as it is: empty, or
    /// `/compact` and the like, without a trailing slash. Of one model its id, as it stands in the path
    /// ([`model_id`]); empty for the list.
    pub subpath: &'p str,
    /// The endpoint as usage records name it; aliases and sub-paths are folded into it.
    pub path: &'static str,
}

/// Why a request goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No operation has this path: 404.
    #[error("no such path")]
    NotFound {
        /// The dialect of the answer.
        dialect: Dialect,
    },
    /// The path exists, for other methods: 405.
    #[error("method not allowed, use {allow}")]
    MethodNotAllowed {
        /// The dialect of the answer.
        dialect: Dialect,
        /// The value of the answer's `Allow` header.
        allow: &'static str,
    },
}

const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const COUNT_TOKENS: &str = "/v1/messages/count_tokens";
const MODELS: &str = "/v1/models";
const USAGE: &str = "/v1/usage";

/// Finds the operation for `method` and `path` (without the query). Trailing slashes do not count.
///
/// # Errors
/// [`RouteError::NotFound`] for unknown paths and for sub-paths that an upstream could read as
/// something else, [`RouteError::MethodNotAllowed`] for known paths with another method.
pub fn route<'p>(method: &Method, path: &'p str) -> Result<Route<'p>, RouteError> {
    let dialect = dialect(path);
    let trimmed = path.trim_end_matches('/');
    if let Some(id) = below_models(trimmed) {
        return match *method {
            Method::GET => Ok(found(Endpoint::Models, id, MODELS)),
            _ => Err(not_allowed(dialect, "GET")),
        };
    }
    if trimmed == USAGE || trimmed == "/usage" {
        return match *method {
            Method::GET => Ok(found(Endpoint::Usage, "", USAGE)),
            _ => Err(not_allowed(dialect, "GET")),
        };
    }
    for (path, endpoint) in [
        (MESSAGES, Endpoint::Messages),
        (COUNT_TOKENS, Endpoint::CountTokens),
    ] {
        if trimmed == path {
            return match *method {
                Method::POST => Ok(Route {
                    dialect,
                    ..found(endpoint, "", path)
                }),
                _ => Err(not_allowed(dialect, "POST")),
            };
        }
    }
    let Some(subpath) = below_responses(trimmed) else {
        return Err(RouteError::NotFound { dialect });
    };
    match *method {
        Method::POST => Ok(found(Endpoint::Responses, subpath, RESPONSES)),
        Method::GET if subpath.is_empty() => Ok(found(Endpoint::ResponsesSocket, "", RESPONSES)),
        _ if subpath.is_empty() => Err(not_allowed(dialect, "GET, POST")),
        _ => Err(not_allowed(dialect, "POST")),
    }
}

fn found<'p>(endpoint: Endpoint, subpath: &'p str, path: &'static str) -> Route<'p> {
    Route {
        endpoint,
        dialect: Dialect::OpenAi,
        subpath,
        path,
    }
}

fn not_allowed(dialect: Dialect, allow: &'static str) -> RouteError {
    RouteError::MethodNotAllowed { dialect, allow }
}

/// The dialect of the answer to a request for `path` with these headers, where `dialect` is what the path alone
/// says: the path of the models is shared by the libraries of several providers, and their headers tell them apart.
pub fn shared_dialect(path: &str, dialect: Dialect, headers: &HeaderMap) -> Dialect {
    if below_models(path).is_none() {
        return dialect;
    }
    if headers.contains_key(anthropic::VERSION) {
        Dialect::Anthropic
    } else if headers.contains_key(GOOGLE_KEY) {
        Dialect::Google
    } else {
        dialect
    }
}

/// Where Google's libraries put their key.
const GOOGLE_KEY: &str = "x-goog-api-key";

/// What stands behind `/v1/models`: nothing, or the id of a model, which may have slashes in it.
fn below_models(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(MODELS)?;
    if rest.is_empty() {
        return Some(rest);
    }
    rest.strip_prefix('/')
}

/// The id of a model that stands in a path, its percent escapes undone: libraries escape what ids may have in them,
/// such as `/` and `:`. `None` when that makes no text.
pub fn model_id(escaped: &str) -> Option<Cow<'_, str>> {
    if !escaped.contains('%') {
        return Some(escaped.into());
    }
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let [first, more @ ..] = rest {
        let (byte, after) = match (first, more) {
            (b'%', [high, low, after @ ..]) => (hex(*high)? * 16 + hex(*low)?, after),
            (b'%', _) => return None,
            (byte, after) => (*byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).ok().map(Cow::from)
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// Bytes of the longest sub-path: an id of a response, twice as long as they are, and a word or two.
/// It is the client's, and is sent on, recorded and logged.
const LONGEST_SUBPATH: usize = 128;

/// What stands behind `/responses`, with or without the version before it, if it is fit to be sent on.
fn below_responses(path: &str) -> Option<&str> {
    let rest = path
        .strip_prefix(RESPONSES)
        .or_else(|| path.strip_prefix("/responses"))?;
    match rest.strip_prefix('/') {
        None => rest.is_empty().then_some(rest),
        Some(segments) => {
            let fit = rest.len() <= LONGEST_SUBPATH && segments.split('/').all(plain_segment);
            fit.then_some(rest)
        }
    }
}

/// A segment is appended to the upstream's URL unread, so nothing in it may mean anything to a URL:
/// no escapes, no dots that climb.
fn plain_segment(segment: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    !segment.is_empty() && !matches!(segment, "." | "..") && segment.bytes().all(plain)
}

/// The dialect in which the client of a path will want its error.
pub fn dialect(path: &str) -> Dialect {
    let path = path.strip_prefix("/antigravity").unwrap_or(path);
    if path.starts_with("/v1beta") {
        Dialect::Google
    } else if path.starts_with("/v1/messages") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_subpath_has_a_longest_length() {
        for base in ["/v1/responses", "/responses"] {
            let longest = format!("/{}/cancel", "r".repeat(LONGEST_SUBPATH - "//cancel".len()));
            let path = format!("{base}{longest}//");
            assert_eq!(route(&Method::POST, &path).unwrap().subpath, longest);
            for path in [
                format!("{base}/r{}", &longest[1..]),
                format!("{base}/{}", "a/".repeat(9_999)),
            ] {
                let error = route(&Method::POST, &path).unwrap_err();
                assert!(matches!(error, RouteError::NotFound { .. }), "{path}");
            }
        }
    }

    #[test]
    fn known_paths() {
        use Endpoint::{CountTokens, Messages, Models, Responses, ResponsesSocket, Usage};
        #[rustfmt::skip]
        let rows = [
            ("POST", "/v1/responses", Responses, "", RESPONSES),
            ("POST", "/v1/responses/", Responses, "", RESPONSES),
            ("POST", "/responses", Responses, "", RESPONSES),
            ("POST", "/v1/responses/compact", Responses, "/compact", RESPONSES),
            ("POST", "/v1/responses/compact//", Responses, "/compact", RESPONSES),
            ("POST", "/responses/compact/", Responses, "/compact", RESPONSES),
            ("POST", "/v1/responses/resp_1.a-B/cancel", Responses, "/resp_1.a-B/cancel", RESPONSES),
            ("POST", "/v1/responses/a..b", Responses, "/a..b", RESPONSES),
            ("GET", "/v1/responses", ResponsesSocket, "", RESPONSES),
            ("GET", "/v1/responses/", ResponsesSocket, "", RESPONSES),
            ("GET", "/responses", ResponsesSocket, "", RESPONSES),
            ("POST", "/v1/messages", Messages, "", MESSAGES),
            ("POST", "/v1/messages/", Messages, "", MESSAGES),
            ("POST", "/v1/messages/count_tokens", CountTokens, "", COUNT_TOKENS),
            ("GET", "/v1/models", Models, "", MODELS),
            ("GET", "/v1/models/", Models, "", MODELS),
            ("GET", "/v1/models/gpt-5", Models, "gpt-5", MODELS),
            ("GET", "/v1/models/meta/llama:4%2Fx/", Models, "meta/llama:4%2Fx", MODELS),
            ("GET", "/v1/usage", Usage, "", USAGE),
            ("GET", "/v1/usage/", Usage, "", USAGE),
            ("GET", "/usage", Usage, "", USAGE),
        ];
        for (method, path, endpoint, subpath, record_path) in rows {
            let method: Method = method.parse().unwrap();
            let route = route(&method, path).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
            assert_eq!(route.endpoint, endpoint, "{method} {path}");
            assert_eq!(route.subpath, subpath, "{method} {path}");
            assert_eq!(route.path, record_path, "{method} {path}");
            let dialect = match endpoint {
                Messages | CountTokens => Dialect::Anthropic,
                _ => Dialect::OpenAi,
            };
            assert_eq!(route.dialect, dialect, "{method} {path}");
        }
    }

    #[test]
    fn paths_that_do_not_exist() {
        use Dialect::{Anthropic, Google, OpenAi};
        #[rustfmt::skip]
        let rows = [
            ("POST", "", OpenAi),
            ("POST", "/", OpenAi),
            ("POST", "*", OpenAi),
            ("POST", "/v1", OpenAi),
            ("POST", "/v1/responsesx", OpenAi),
            ("POST", "/v1/Responses", OpenAi),
            ("POST", "/v1//responses", OpenAi),
            ("POST", "/v1/responses//compact", OpenAi),
            ("POST", "/v1/responses/..", OpenAi),
            ("POST", "/v1/responses/../models", OpenAi),
            ("POST", "/v1/responses/a/../b", OpenAi),
            ("POST", "/v1/responses/.", OpenAi),
            ("POST", "/v1/responses/%2e%2e/x", OpenAi),
            ("POST", "/v1/responses/a b", OpenAi),
            ("POST", "/v1/responses/a;b", OpenAi),
            ("POST", "/v1/responses/a\\b", OpenAi),
            ("POST", "/v1/responses/é", OpenAi),
            ("GET", "/models", OpenAi),
            ("GET", "/v1/usage/today", OpenAi),
            ("GET", "/v1/usages", OpenAi),
            ("GET", "/v1/modelsx", OpenAi),
            ("POST", "/v1/messages/batches", Anthropic),
            ("POST", "/v1/messages/count_tokens/x", Anthropic),
            ("POST", "/messages", OpenAi),
            ("POST", "/antigravity/v1/messages", Anthropic),
            ("GET", "/v1beta/models", Google),
            ("POST", "/v1beta/models/gemini-2.5-pro:generateContent", Google),
            ("POST", "/antigravity/v1beta/models", Google),
        ];
        for (method, path, dialect) in rows {
            let method: Method = method.parse().unwrap();
            assert_eq!(
                route(&method, path),
                Err(RouteError::NotFound { dialect }),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn methods_that_do_not_fit() {
        let rows = [
            ("HEAD", "/v1/responses", "GET, POST"),
            ("PUT", "/v1/responses", "GET, POST"),
            ("OPTIONS", "/responses", "GET, POST"),
            ("DELETE", "/v1/responses/resp_1", "POST"),
            ("GET", "/v1/responses/resp_1", "POST"),
            ("HEAD", "/v1/models", "GET"),
            ("POST", "/v1/models", "GET"),
            ("DELETE", "/v1/models/gpt-5", "GET"),
            ("POST", "/v1/usage", "GET"),
            ("HEAD", "/usage", "GET"),
            ("BREW", "/v1/models", "GET"),
            ("GET", "/v1/messages", "POST"),
            ("GET", "/v1/messages/count_tokens", "POST"),
        ];
        for (method, path, allow) in rows {
            let method: Method = method.parse().unwrap();
            let dialect = dialect(path);
            assert_eq!(
                route(&method, path),
                Err(RouteError::MethodNotAllowed { dialect, allow }),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn headers_tell_the_dialects_of_one_path_apart() {
        let (version, key) = ("anthropic-version", "x-goog-api-key");
        let (open_ai, anthropic) = (Dialect::OpenAi, Dialect::Anthropic);
        #[rustfmt::skip]
        let rows = [
            ("/v1/models", &[][..], open_ai),
            ("/v1/models", &["authorization"], open_ai),
            ("/v1/models", &[version], anthropic),
            ("/v1/models", &[version, key], anthropic),
            ("/v1/models", &[key], Dialect::Google),
            ("/v1/models/a/b", &[key], Dialect::Google),
            ("/v1/models/", &[version], anthropic),
            ("/v1/modelsx", &[version], open_ai),
            ("/v1/responses", &[version, key], open_ai),
        ];
        for (path, names, expected) in rows {
            let headers: HeaderMap = names
                .iter()
                .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x")))
                .collect();
            let found = shared_dialect(path, Dialect::OpenAi, &headers);
            assert_eq!(found, expected, "{path} {names:?}");
        }
    }

    #[test]
    fn ids_of_models_are_unescaped() {
        for (escaped, id) in [
            ("gpt-5", Some("gpt-5")),
            ("meta/llama:4", Some("meta/llama:4")),
            ("meta%2Fllama%3a4", Some("meta/llama:4")),
            ("%C3%A9", Some("é")),
            ("%25", Some("%")),
            ("a%", None),
            ("a%2", None),
            ("a%2x", None),
            ("%+1", None),
            ("%ff", None),
        ] {
            assert_eq!(model_id(escaped).as_deref(), id, "{escaped}");
        }
    }

    #[test]
    fn labels_are_bounded_names() {
        assert_eq!(Endpoint::Responses.as_str(), "responses");
        assert_eq!(Endpoint::ResponsesSocket.as_str(), "responses_ws");
        assert_eq!(Endpoint::Messages.as_str(), "messages");
        assert_eq!(Endpoint::CountTokens.as_str(), "count_tokens");
        assert_eq!(Endpoint::Models.as_str(), "models");
        assert_eq!(Endpoint::Usage.as_str(), "usage");
        assert_eq!(Dialect::OpenAi.as_str(), "openai");
        assert_eq!(Dialect::Anthropic.as_str(), "anthropic");
        assert_eq!(Dialect::Google.as_str(), "google");
    }
}
