//! What an upstream's error body says, in words that may be shown to a client.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::retry_after::Resets;
use super::words;
use crate::usage::Failure;

/// The longest message passed on, in characters.
const LONGEST: usize = 1000;

/// The longest reason of an effect, in characters: it is shown in tables, logged and kept.
pub const LONGEST_REASON: usize = 300;

/// What stands in place of a secret.
const MASK: &str = "***";

/// Beginnings of tokens that are secrets wherever they stand: provider keys, sessions, JWTs.
const KEY_PREFIXES: [&str; 5] = ["sk-", "sess-", "tg-", "AIza", "eyJ"];

/// Words behind which a secret stands as a parameter of a URL or a form.
const KEY_PARAMETERS: [&str; 9] = [
    "access_token=",
    "api-key=",
    "api_key=",
    "apikey=",
    "client_secret=",
    "key=",
    "password=",
    "refresh_token=",
    "token=",
];

/// The message of an upstream's error body: `error.message` (if that is itself JSON, the message in
/// it), `error` where it is a string, else `detail`, else `message`. Secrets are masked, control
/// characters gone and the length bounded. None if the body has no such thing.
pub fn upstream_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let message = sanitise(&extract(&body)?);
    (!message.is_empty()).then_some(message)
}

/// Whether a body is an error as OpenAI writes it, so that a client of that dialect can read it as it is.
pub fn is_openai_error(body: &[u8]) -> bool {
    let body = serde_json::from_slice::<Value>(body).unwrap_or_default();
    body.pointer("/error/message").is_some_and(Value::is_string)
}

/// Whether a body is an error as Anthropic writes it, so that a client of that dialect can read it as it is.
pub fn is_anthropic_error(body: &[u8]) -> bool {
    let body = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let is_text = |pointer: &str| body.pointer(pointer).is_some_and(Value::is_string);
    body.get("type").is_some_and(|kind| kind == "error")
        && is_text("/error/type")
        && is_text("/error/message")
}

/// What an error says, in whatever form it came.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// For judging only, not for showing; of a body that is not an object, its text.
    pub text: Option<String>,
    /// `detail`, where it is a string.
    pub detail: Option<String>,
    /// Its codes and types, as written.
    names: Vec<String>,
    /// Whether it is an error of an API rather than just any text, such as the page of a firewall.
    pub is_error: bool,
    resets: Resets,
}

impl Said {
    pub fn by_body(body: &[u8]) -> Said {
        let body = match serde_json::from_slice::<Value>(body) {
            Ok(body) => body,
            // An object cut short has a text nobody can tell the parts of.
            Err(_) if body.trim_ascii_start().starts_with(b"{") => return Said::default(),
            Err(_) => {
                return Said {
                    text: std::str::from_utf8(body).ok().map(str::to_owned),
                    ..Said::default()
                };
            }
        };
        if let Value::String(text) = body {
            return Said {
                text: Some(text),
                ..Said::default()
            };
        }
        let string = |pointer: &str| body.pointer(pointer)?.as_str().map(str::to_owned);
        let names = ["/error/code", "/error/type", "/detail/code"];
        let text = extract(&body);
        let names: Vec<String> = names.into_iter().filter_map(string).collect();
        Said {
            is_error: text.is_some() || !names.is_empty(),
            text,
            detail: string("/detail"),
            names,
            resets: body.get("error").map(Resets::of).unwrap_or_default(),
        }
    }

    pub fn by_failure(failure: &Failure) -> Said {
        Said {
            text: failure.message.clone(),
            detail: None,
            names: [&failure.code, &failure.kind]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            is_error: true,
            resets: Resets::default(),
        }
    }

    /// Whether its code or type is one of these, in lower case.
    pub fn is_any(&self, names: &[&str]) -> bool {
        let is = |said: &String| names.iter().any(|name| said.eq_ignore_ascii_case(name));
        self.names.iter().any(is)
    }

    /// Whether its message begins so, in lower case.
    pub fn begins(&self, words: &str) -> bool {
        let text = self.text.as_deref().unwrap_or_default();
        starts_with_ignoring_case(text, words)
    }

    /// When it says that a limit ends.
    pub fn resets_in(&self, now: SystemTime) -> Option<Duration> {
        self.resets.wait(now)
    }

    /// `what`, with the upstream's own words behind it if there are any: for the operator, kept and
    /// logged. What it quotes, and what stands behind a colon, may be the client's.
    pub fn explain(&self, what: &str) -> String {
        let message = self.text.as_deref().filter(|_| self.is_error);
        let own = message.map(|text| {
            let own = words::own(text);
            own.find(": ").map_or(own, |end| &own[..end]).trim_end()
        });
        match own.map(|own| mask_ids(&sanitise(own))) {
            Some(own) if !own.is_empty() => reason(&format!("{what}: {own}")),
            _ => what.to_owned(),
        }
    }
}

/// A text made fit to be a reason.
pub(super) fn reason(text: &str) -> String {
    cut(sanitise(text), LONGEST_REASON)
}

fn cut(mut text: String, longest: usize) -> String {
    if text.chars().nth(longest).is_some() {
        let last = text.char_indices().nth(longest.saturating_sub(1));
        text.truncate(last.map_or(0, |(at, _)| at));
        text.push('…');
    }
    text
}

fn extract(body: &Value) -> Option<String> {
    let text = |value: Option<&Value>| {
        let text = value.and_then(Value::as_str)?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let error = body.get("error");
    text(error.and_then(|e| e.get("message")))
        .map(|message| inner(&message).unwrap_or(message))
        .or_else(|| text(error))
        .or_else(|| text(body.get("detail")))
        .or_else(|| text(body.get("message")))
}

/// The message inside a message that is itself an error object, as relays make them; one level deep.
fn inner(message: &str) -> Option<String> {
    if !message.starts_with('{') {
        return None;
    }
    let value: Value = serde_json::from_str(message).ok()?;
    let inner = value
        .pointer("/error/message")
        .or_else(|| value.get("message"))?;
    inner.as_str().map(|text| text.trim().to_owned())
}

/// Masks secrets, makes control characters spaces, bounds the length.
fn sanitise(text: &str) -> String {
    let masked = mask(text);
    let mut out: String = masked
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
    if masked.chars().nth(LONGEST).is_some() {
        out.push('…');
    }
    out
}

fn mask(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        // A secret begins where a word begins: "task-force" is none.
        let at_word = !before.is_ascii_alphanumeric();
        if let Some((kept, secret)) = at_word.then(|| secret_at(rest)).flatten() {
            out.push_str(&rest[..kept]);
            out.push_str(MASK);
            rest = &rest[kept + secret..];
            before = '*';
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            before = c;
        }
    }
    out
}

/// If a secret begins here: how many bytes of introduction may be shown, and how many it has itself.
fn secret_at(text: &str) -> Option<(usize, usize)> {
    for word in KEY_PREFIXES {
        if let Some(token) = text.strip_prefix(word) {
            let length = token_length(token);
            if length >= 4 {
                return Some((word.len(), length));
            }
        }
    }
    for word in KEY_PARAMETERS {
        if starts_with_ignoring_case(text, word) {
            let length = token_length(&text[word.len()..]);
            if length > 0 {
                return Some((word.len(), length));
            }
        }
    }
    const BEARER: &str = "bearer ";
    if starts_with_ignoring_case(text, BEARER) {
        let value = &text[BEARER.len()..];
        let length = token_length(value);
        // "bearer token" and "bearer authentication" are words of an explanation.
        let word = length < 20 && value[..length].bytes().all(|b| b.is_ascii_alphabetic());
        if length > 0 && !word {
            return Some((BEARER.len(), length));
        }
    }
    None
}

/// Tokens of this many characters that mix letters and digits are taken for secrets, characters.
const ID_LENGTH: usize = 20;

/// Beginnings of identifiers that an operator needs to ask the provider.
const KNOWN_IDS: [&str; 3] = ["org-", "proj_", "req_"];

/// Masks what may be a secret without looking like one.
fn mask_ids(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let (before, from) = rest.split_at(start);
        let (run, behind) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
        let token = run.trim_end_matches('.');
        out.push_str(before);
        out.push_str(if is_id(token) { MASK } else { token });
        out.push_str(&run[token.len()..]);
        rest = behind;
    }
    out.push_str(rest);
    out
}

fn is_id(token: &str) -> bool {
    let is_long = |part: &str| part.len() >= ID_LENGTH;
    // As the names of models and hosts are.
    let is_name = token.contains('.') && !token.split(['.', '-', '_']).any(is_long);
    if is_name || KNOWN_IDS.iter().any(|known| token.starts_with(known)) {
        return false;
    }
    token.split('.').any(|part| {
        is_long(part)
            && part.bytes().any(|b| b.is_ascii_alphabetic())
            && part.bytes().any(|b| b.is_ascii_digit())
    })
}

fn starts_with_ignoring_case(text: &str, word: &str) -> bool {
    let head = text.as_bytes().get(..word.len());
    head.is_some_and(|head| head.eq_ignore_ascii_case(word.as_bytes()))
}

/// Bytes up to the end of the token; providers print parts of keys as stars.
fn token_length(text: &str) -> usize {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"-_.*~+/%=".contains(&b);
    let length = text.bytes().take_while(|&b| token(b)).count();
    // The full stop that ends the sentence is not part of it.
    text[..length].trim_end_matches('.').len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn where_the_message_stands() {
        #[rustfmt::skip]
        let rows = [
            (r#"{"error":{"message":"a"}}"#, Some("a")),
            (r#"{"error":{"message":"a"},"detail":"b","message":"c"}"#, Some("a")),
            (r#"{"error":{"message":" a "}}"#, Some("a")),
            (r#"{"error":{"message":"{\"error\":{\"message\":\"inner\"}}"}}"#, Some("inner")),
            (r#"{"error":{"message":"{\"message\":\"inner\"}"}}"#, Some("inner")),
            (r#"{"error":{"message":"{\"code\":7}"}}"#, Some(r#"{"code":7}"#)),
            (r#"{"error":{"message":"{braces}"}}"#, Some("{braces}")),
            (r#"{"error":{"message":"{\"message\":7}"}}"#, Some(r#"{"message":7}"#)),
            (r#"{"error":"a","message":"c"}"#, Some("a")),
            (r#"{"error":{"message":""},"detail":"b","message":"c"}"#, Some("b")),
            (r#"{"error":{"message":null},"message":"c"}"#, Some("c")),
            (r#"{"detail":"b","message":"c"}"#, Some("b")),
            (r#"{"detail":[{"msg":"x"}],"message":"c"}"#, Some("c")),
            (r#"{"message":"c"}"#, Some("c")),
            (r#"{"message":"line\nline\u0000"}"#, Some("line line ")),
            (r#"{"message":7}"#, None),
            (r#"{"message":"  "}"#, None),
            (r#"{}"#, None),
            (r#"[]"#, None),
            (r#""text""#, None),
            ("<html>no</html>", None),
            (r#"{"error":{"message":"a"}"#, None),
            ("", None),
        ];
        for (body, expected) in rows {
            assert_eq!(
                upstream_message(body.as_bytes()).as_deref(),
                expected,
                "{body}"
            );
        }
        assert_eq!(upstream_message(b"{\"message\":\"\xff\"}"), None);
    }

    #[test]
    fn errors_that_need_no_translation() {
        let rows = [
            (
                r#"{"error":{"message":"a","type":"t","param":null,"code":null}}"#,
                true,
            ),
            (r#"{"error":{"message":"a"}}"#, true),
            (r#"{"error":{"message":null}}"#, false),
            (r#"{"error":"a"}"#, false),
            (r#"{"error":["message"]}"#, false),
            (r#"{"detail":"a"}"#, false),
            (r#"{"error":{"message":"a"}"#, false),
            ("null", false),
            ("<html>", false),
            ("", false),
        ];
        for (body, expected) in rows {
            assert_eq!(is_openai_error(body.as_bytes()), expected, "{body}");
        }
        #[rustfmt::skip]
        let rows = [
            (r#"{"type":"error","error":{"type":"t","message":"a"},"request_id":"r"}"#, true),
            (r#"{"error":{"message":"a","type":"t"},"type":"error"}"#, true),
            (r#"{"error":{"type":"t","message":"a"}}"#, false),
            (r#"{"type":"error","error":{"message":"a"}}"#, false),
            (r#"{"type":"error","error":{"type":"t"}}"#, false),
            (r#"{"type":"error","error":"a"}"#, false),
            (r#"{"type":"message","error":{"type":"t","message":"a"}}"#, false),
            ("[]", false),
            ("<html>", false),
        ];
        for (body, expected) in rows {
            assert_eq!(is_anthropic_error(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn secrets_are_masked() {
        #[rustfmt::skip]
        let rows = [
            ("Incorrect API key provided: sk-proj-abc_DEF123. You can", "Incorrect API key provided: sk-***. You can"),
            ("Incorrect API key provided: sk-abc*****xyz.", "Incorrect API key provided: sk-***."),
            ("'sk-ant-api03-xxxx'", "'sk-***'"),
            ("sk-1234 and sk-5678", "sk-*** and sk-***"),
            ("key AIzaSyA1234567", "key AIza***"),
            ("jwt eyJhbGciOi.eyJzdWIi.sig_na-ture", "jwt eyJ***"),
            ("tg-alice-0123456789", "tg-***"),
            ("sess-abcdef12", "sess-***"),
            ("Authorization: Bearer abc123/+=", "Authorization: Bearer ***"),
            ("Bearer abcdefghijklmnopqrst", "Bearer ***"),
            ("authorization: bearer a.b-c", "authorization: bearer ***"),
            ("https://x/v1?key=abc&alt=sse", "https://x/v1?key=***&alt=sse"),
            ("https://x/v1?alt=sse&API_KEY=abc", "https://x/v1?alt=sse&API_KEY=***"),
            ("?access_token=a%20b refresh_token=c", "?access_token=*** refresh_token=***"),
            // Not secrets.
            ("a task-force of risk-takers", "a task-force of risk-takers"),
            ("use a key such as sk-...", "use a key such as sk-..."),
            ("You must send a bearer token", "You must send a bearer token"),
            ("monkey=business", "monkey=business"),
            ("key=", "key="),
            ("sk-", "sk-"),
            ("AIza", "AIza"),
            ("schön sk-ö", "schön sk-ö"),
        ];
        for (text, expected) in rows {
            assert_eq!(sanitise(text), expected, "{text}");
        }
    }

    #[test]
    fn reasons_hold_the_upstreams_own_words() {
        #[rustfmt::skip]
        let rows = [
            ("Your workspace is gone.", "W: Your workspace is gone."),
            ("Incorrect API key provided: sk-proj-abcdefgh.", "W: Incorrect API key provided"),
            ("Project `proj_x` has no access to model `gpt`", "W: Project"),
            ("Key \"abc\" is wrong", "W: Key"),
            ("It couldn't be: ours", "W: It couldn't be"),
            ("'all of it'", "W"),
            (": x", "W"),
            ("See https://example.com", "W: See https://example.com"),
            // Tokens: 19 and 20 characters, of both kinds.
            ("key a234567890123456789 bad", "W: key a234567890123456789 bad"),
            ("key a2345678901234567890 bad", "W: key *** bad"),
            ("key a234567890-23456789_.", "W: key ***."),
            ("(a2345678901234567890)", "W: (***)"),
            ("abcdefghijklmnopqrstuvwxyz 12345678901234567890", "W: abcdefghijklmnopqrstuvwxyz 12345678901234567890"),
            ("org-a2345678901234567890 of proj_a2345678901234567890", "W: org-a2345678901234567890 of proj_a2345678901234567890"),
            ("request req_011a2345678901234567890", "W: request req_011a2345678901234567890"),
            ("xorg-a2345678901234567890", "W: ***"),
            ("model claude-3.5-sonnet-20241022-v2 gone", "W: model claude-3.5-sonnet-20241022-v2 gone"),
            ("a.a2345678901234567890", "W: ***"),
            ("schön größe123456789012345678", "W: schön größe123456789012345678"),
            ("größe1234567890123456789", "W: größ***"),
        ];
        for (message, expected) in rows {
            let body = serde_json::json!({"error": {"message": message}}).to_string();
            assert_eq!(
                Said::by_body(body.as_bytes()).explain("W"),
                expected,
                "{message}"
            );
        }
    }

    #[test]
    fn long_messages_are_cut() {
        for (length, cut) in [(LONGEST, false), (LONGEST + 1, true)] {
            let body = serde_json::json!({"message": "é".repeat(length)}).to_string();
            let message = upstream_message(body.as_bytes()).unwrap();
            assert_eq!(message.ends_with('…'), cut);
            assert_eq!(message.trim_end_matches('…').chars().count(), LONGEST);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_bounded(text in any::<String>()) {
            prop_assert!(sanitise(&text).chars().count() <= LONGEST + 1);
            let said = Said::by_body(text.as_bytes());
            prop_assert!(said.explain("").chars().count() <= LONGEST_REASON);
            let _ = upstream_message(text.as_bytes());
            let _ = mask_ids(&text);
        }

        #[test]
        fn a_key_never_shows(
            before in "[ -~]{0,20}",
            secret in "[a-zA-Z0-9]{12,40}",
            intro in prop::sample::select(vec!["sk-", "AIza", "Bearer 1", "?key=", "&api_key="]),
        ) {
            let shown = sanitise(&format!("{before} {intro}{secret} after"));
            prop_assert!(!shown.contains(&secret), "{}", shown);
        }
    }
}
