//! Which program a request comes from, by what it says of itself, for rules that are about a client: who may use a
//! group, which versions are served, what is answered here. It is recognised only, never imitated, and anybody may
//! claim to be it.

use std::fmt;
use std::str::FromStr;

use http::HeaderMap;
use http::header::USER_AGENT;

use crate::affinity::claude::UserId;
use crate::validate::messages::MessagesRequest;

/// How Claude Code's `User-Agent` begins; its version follows.
const CLAUDE_CODE: &str = "claude-cli/";

/// What Claude Code sends with every message.
const CLAUDE_CODE_HEADERS: [&str; 3] = ["x-app", "anthropic-beta", "anthropic-version"];

/// What stands in the `User-Agent` of a Codex program, in lower case.
const CODEX_AGENTS: [&str; 8] = [
    "codex_cli_rs/",
    "codex_vscode/",
    "codex_app/",
    "codex_chatgpt_desktop/",
    "codex_atlas/",
    "codex_exec/",
    "codex_sdk_ts/",
    "codex ",
];

/// How the `originator` of a Codex program begins, in lower case.
const CODEX_ORIGINATORS: [&str; 2] = ["codex_", "codex "];

/// How Claude Code is brought to another version.
const UPDATE: &str = "npm update -g @anthropic-ai/claude-code";

/// A version of three parts, as `2.0.14`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version([u32; 3]);

/// The text is not a version of three numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected three numbers such as 2.0.14")]
pub struct NotAVersion;

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let mut parts = text.split('.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse().ok().filter(|_| digits)
        });
        let mut next = || parts.next().flatten().ok_or(NotAVersion);
        let version = Version([next()?, next()?, next()?]);
        match parts.next() {
            None => Ok(version),
            Some(_) => Err(NotAVersion),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// A request that comes from Claude Code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaudeCode {
    /// Its version; `None` when its numbers are beyond reason.
    pub version: Option<Version>,
}

/// Whether a request to `path` comes from Claude Code. `request` is its body, where that is a Messages request.
///
/// Its `User-Agent` must say so with a version of three parts. Of requests that are about messages the headers and the
/// user id that go with them are wanted too (no user id where tokens are only counted), except of the probe by which it
/// looks whether its key is good.
pub fn claude_code(
    headers: &HeaderMap,
    path: &str,
    request: Option<&MessagesRequest<'_>>,
) -> Option<ClaudeCode> {
    let agent = headers.get(USER_AGENT)?.to_str().ok()?;
    let version = agent
        .get(..CLAUDE_CODE.len())
        .filter(|begin| begin.eq_ignore_ascii_case(CLAUDE_CODE))
        .and_then(|begin| three_parts(&agent[begin.len()..]))?;
    let client = ClaudeCode {
        version: version.parse().ok(),
    };
    if !path.contains("messages") || request.is_some_and(is_probe) {
        return Some(client);
    }
    let has = |name: &&str| {
        headers
            .get(*name)
            .is_some_and(|value| !value.as_bytes().trim_ascii().is_empty())
    };
    let user_id = request.and_then(|request| request.user_id.as_deref());
    // Counting takes no `metadata` (https://platform.claude.com/docs/en/api/messages/count_tokens).
    let is_named = path.ends_with("/count_tokens") || user_id.and_then(UserId::parse).is_some();
    (is_named && CLAUDE_CODE_HEADERS.iter().all(has)).then_some(client)
}

/// The three numbers that `text` begins with, whatever follows.
fn three_parts(text: &str) -> Option<&str> {
    let mut end = 0;
    for part in 0..3 {
        if part > 0 {
            end += text[end..].starts_with('.').then_some(1)?;
        }
        let rest = &text[end..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        end += (digits > 0).then_some(digits)?;
    }
    Some(&text[..end])
}

/// Whether a request only asks whether it would be answered: for one token of a small model, at once.
pub fn is_probe(request: &MessagesRequest<'_>) -> bool {
    request.max_tokens == Some(1)
        && !request.stream
        && request.model.to_ascii_lowercase().contains("haiku")
}

/// Why a version of Claude Code is not served: 400, with this message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VersionError {
    /// It cannot be told.
    #[error("The version of Claude Code could not be determined, update it: {UPDATE}")]
    Unknown,
    /// It is too old.
    #[error(
        "Claude Code {client} is older than the required version {required}, update it: {UPDATE}"
    )]
    TooOld {
        /// What the client is.
        client: Version,
        /// The oldest that is served.
        required: Version,
    },
    /// It is too new.
    #[error(
        "Claude Code {client} is newer than the latest supported version {supported}, install that one: \
         npm install -g @anthropic-ai/claude-code@{supported} (`{UPDATE}` would install the newest)"
    )]
    TooNew {
        /// What the client is.
        client: Version,
        /// The newest that is served.
        supported: Version,
    },
}

/// Checks the version of a recognised Claude Code against bounds, both of them still served. Without bounds every
/// version is, known or not.
///
/// # Errors
/// Why it is not served.
pub fn check_version(
    client: &ClaudeCode,
    min: Option<Version>,
    max: Option<Version>,
) -> Result<(), VersionError> {
    if min.is_none() && max.is_none() {
        return Ok(());
    }
    let client = client.version.ok_or(VersionError::Unknown)?;
    match (min, max) {
        (Some(required), _) if client < required => Err(VersionError::TooOld { client, required }),
        (_, Some(supported)) if client > supported => {
            Err(VersionError::TooNew { client, supported })
        }
        _ => Ok(()),
    }
}

/// Whether a request comes from a Codex program.
pub fn is_codex(headers: &HeaderMap) -> bool {
    let lower = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(value.to_ascii_lowercase())
    };
    let agent = lower("user-agent").unwrap_or_default();
    let originator = lower("originator").unwrap_or_default();
    CODEX_AGENTS.iter().any(|known| agent.contains(known))
        || CODEX_ORIGINATORS
            .iter()
            .any(|known| originator.trim().starts_with(known))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::validate::messages::messages;

    const AGENT: &str = "claude-cli/2.0.14 (external, cli)";

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    fn complete() -> Vec<(&'static str, &'static str)> {
        vec![
            ("user-agent", AGENT),
            ("x-app", "cli"),
            ("anthropic-beta", "claude-code-20250219"),
            ("anthropic-version", "2023-06-01"),
        ]
    }

    fn body() -> Value {
        let id = json!({"device_id": "d", "session_id": "s"}).to_string();
        json!({"model": "claude-sonnet", "max_tokens": 10, "stream": true, "metadata": {"user_id": id}})
    }

    fn found(list: &[(&'static str, &str)], path: &str, body: &Value) -> Option<ClaudeCode> {
        let body = body.to_string();
        claude_code(
            &headers(list),
            path,
            messages(body.as_bytes()).ok().as_ref(),
        )
    }

    #[test]
    fn claude_code_is_recognised_by_all_it_sends() {
        const PATH: &str = "/v1/messages";
        let version = Some("2.0.14".parse().unwrap());
        assert_eq!(
            found(&complete(), PATH, &body()),
            Some(ClaudeCode { version })
        );
        for missing in 0..4 {
            let mut list = complete();
            list[missing].1 = " ";
            assert_eq!(found(&list, PATH, &body()), None, "{list:?}");
            list.remove(missing);
            assert_eq!(found(&list, PATH, &body()), None, "{list:?}");
        }
        for user_id in [json!(null), json!("user-1"), json!({"session_id": "s"})] {
            let mut body = body();
            body["metadata"]["user_id"] = user_id;
            assert_eq!(found(&complete(), PATH, &body), None, "{body}");
        }
        assert_eq!(claude_code(&headers(&complete()), PATH, None), None);
        // Elsewhere its name is enough.
        let named = [("user-agent", AGENT)];
        assert!(claude_code(&headers(&named), "/v1/models", None).is_some());
        assert_eq!(found(&named, "/v1/messages/count_tokens", &body()), None);
        let counting = json!({"model": "claude-sonnet", "messages": []});
        let counted = found(&complete(), "/v1/messages/count_tokens", &counting);
        assert_eq!(counted, Some(ClaudeCode { version }));
        assert_eq!(found(&complete(), PATH, &counting), None);
    }

    #[test]
    fn of_a_probe_only_the_name_is_wanted() {
        let probe = json!({"model": "claude-3-5-HAIKU-x", "max_tokens": 1});
        let named = [("user-agent", AGENT)];
        assert!(found(&named, "/v1/messages", &probe).is_some());
        assert!(found(&[("user-agent", "curl/8")], "/v1/messages", &probe).is_none());
        for other in [
            json!({"model": "claude-3-5-haiku", "max_tokens": 2}),
            json!({"model": "claude-3-5-haiku", "max_tokens": 1, "stream": true}),
            json!({"model": "claude-3-5-haiku"}),
            json!({"model": "claude-sonnet", "max_tokens": 1}),
        ] {
            assert!(found(&named, "/v1/messages", &other).is_none(), "{other}");
        }
    }

    #[test]
    fn names_with_a_version_of_three_parts() {
        for (agent, expected) in [
            ("claude-cli/1.2.3", Some(Some([1, 2, 3]))),
            ("Claude-CLI/10.20.30-beta.1 (x)", Some(Some([10, 20, 30]))),
            ("claude-cli/1.2.3.4", Some(Some([1, 2, 3]))),
            ("claude-cli/1.2.99999999999", Some(None)),
            ("claude-cli/1.2", None),
            ("claude-cli/1.2.", None),
            ("claude-cli/1.2.x", None),
            ("claude-cli/v1.2.3", None),
            ("claude-cli/", None),
            ("claude-cli", None),
            (" claude-cli/1.2.3", None),
            ("x claude-cli/1.2.3", None),
        ] {
            let client = claude_code(&headers(&[("user-agent", agent)]), "/v1/models", None);
            let found = client.map(|client| client.version.map(|version| version.0));
            assert_eq!(found, expected, "{agent}");
        }
    }

    #[test]
    fn bounds_are_served_and_the_message_says_what_to_do() {
        let check = |client: Option<&str>, min: Option<&str>, max: Option<&str>| {
            let version = |text: &str| text.parse().unwrap();
            let client = ClaudeCode {
                version: client.map(version),
            };
            check_version(&client, min.map(version), max.map(version)).map_err(|e| e.to_string())
        };
        for (client, min, max) in [
            (None, None, None),
            (Some("0.0.1"), None, None),
            (Some("2.0.0"), Some("2.0.0"), Some("2.0.0")),
            (Some("2.0.10"), Some("2.0.9"), Some("2.1.0")),
            (Some("10.0.0"), Some("9.9.9"), None),
            (Some("1.99.99"), None, Some("2.0.0")),
        ] {
            assert_eq!(
                check(client, min, max),
                Ok(()),
                "{client:?} {min:?} {max:?}"
            );
        }
        #[rustfmt::skip]
        let rows = [
            (None, Some("1.0.0"), None, ["could not be determined", "npm update -g @anthropic-ai/claude-code", ""]),
            (None, None, Some("1.0.0"), ["could not be determined", "npm update -g @anthropic-ai/claude-code", ""]),
            (Some("1.9.99"), Some("2.0.0"), None, ["1.9.99", "required version 2.0.0", "npm update -g @anthropic-ai/claude-code"]),
            (Some("1.0.9"), Some("1.0.10"), Some("9.0.0"), ["1.0.9", "1.0.10", "older"]),
            (Some("2.0.1"), None, Some("2.0.0"), ["2.0.1", "newer", "@anthropic-ai/claude-code@2.0.0"]),
            // Bounds that exclude everything say the first.
            (Some("2.0.0"), Some("3.0.0"), Some("1.0.0"), ["2.0.0", "older", "3.0.0"]),
        ];
        for (client, min, max, words) in rows {
            let message = check(client, min, max).unwrap_err();
            for word in words {
                assert!(message.contains(word), "{message}: {word}");
            }
        }
    }

    #[test]
    fn versions_are_three_numbers() {
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.x",
            "1..3",
            "+1.2.3",
            "1.2.3 ",
            "v1.2.3",
            "1.2.4294967296",
        ] {
            assert_eq!(text.parse::<Version>(), Err(NotAVersion), "{text}");
        }
        assert_eq!("01.2.003".parse::<Version>().unwrap().to_string(), "1.2.3");
    }

    #[test]
    fn codex_is_recognised_by_either_header() {
        for (list, expected) in [
            (&[][..], false),
            (&[("user-agent", "codex_cli_rs/0.50.0 (Linux)")], true),
            (&[("user-agent", "Mozilla Codex_VSCode/1")], true),
            (&[("user-agent", "Codex Desktop/1")], true),
            (&[("user-agent", "codex_sdk_ts/1")], true),
            (&[("user-agent", "codex-like/1")], false),
            (&[("user-agent", "codex")], false),
            (&[("originator", " Codex_exec ")], true),
            (&[("originator", "codex desktop")], true),
            (&[("originator", "codex")], false),
            (&[("originator", "my codex_exec")], false),
            (&[("originator", "x"), ("user-agent", "codex_app/1")], true),
        ] {
            assert_eq!(is_codex(&headers(list)), expected, "{list:?}");
        }
    }

    proptest! {
        #[test]
        fn versions_compare_as_numbers(a in any::<[u32; 3]>(), b in any::<[u32; 3]>()) {
            let [x, y] = [a, b].map(|v| format!("{}.{}.{}", v[0], v[1], v[2]).parse::<Version>().unwrap());
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn any_name_is_survived(agent in "(claude-cli/)?[0-9.]{0,8}[ -~é]{0,12}") {
            let headers: HeaderMap = HeaderValue::from_str(&agent)
                .into_iter()
                .map(|value| (USER_AGENT, value))
                .collect();
            claude_code(&headers, "/v1/models", None);
            is_codex(&headers);
        }
    }
}
