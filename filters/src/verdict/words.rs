//! Whose words they are: an upstream's message may repeat the client's own, with which a client must not be
//! able to accuse an account.

use serde_json::Value;

/// What stands in place of the client's words. Nothing that is asked for holds it.
const BLANK: char = '…';

/// A text in lower case without these names, which the client chose and relays repeat unquoted.
pub(super) fn without(text: &str, echoed: &[&str]) -> String {
    let mut names: Vec<String> = echoed.iter().map(|n| n.trim().to_lowercase()).collect();
    // One may be a part of the other.
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    let mut text = text.to_lowercase();
    for name in names.iter().filter(|name| !name.is_empty()) {
        text = blank(&text, name);
        // In JSON within a text.
        let escaped = Value::from(name.as_str()).to_string();
        let escaped = escaped.trim_matches('"');
        if escaped != name && !escaped.is_empty() {
            text = blank(&text, escaped);
        }
    }
    text
}

/// All that a body says, in lower case, without these names. JSON comes as tightly and as loosely as it
/// is written, for keywords with punctuation; escapes hide no name.
pub(super) fn of_body(body: &[u8], echoed: &[&str]) -> String {
    match serde_json::from_slice::<Value>(body) {
        Ok(mut value) => {
            each_text(&mut value, &|text| *text = without(text, echoed));
            format!("{value}\n{value:#}").to_lowercase()
        }
        Err(_) => without(&String::from_utf8_lossy(body), echoed),
    }
}

fn each_text(value: &mut Value, change: &impl Fn(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, change)),
        Value::Object(fields) => fields.values_mut().for_each(|item| each_text(item, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Blanks `name` wherever it stands by itself: "gpt" is no part of "gpts".
fn blank(text: &str, name: &str) -> String {
    let glued = |a: Option<char>, b: Option<char>| {
        a.is_some_and(char::is_alphanumeric) && b.is_some_and(char::is_alphanumeric)
    };
    let (first, last) = (name.chars().next(), name.chars().next_back());
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(name) {
        out.push_str(&rest[..at]);
        let behind = &rest[at + name.len()..];
        if glued(out.chars().next_back(), first) || glued(last, behind.chars().next()) {
            let step = first.map_or(name.len(), char::len_utf8);
            out.push_str(&rest[at..at + step]);
            rest = &rest[at + step..];
        } else {
            out.push(BLANK);
            rest = behind;
        }
    }
    out.push_str(rest);
    out
}

/// The upstream's own words of a message: those before the first quotation.
pub(super) fn own(text: &str) -> &str {
    &text[..opening_quote(text).unwrap_or(text.len())]
}

/// Whether the upstream itself says `phrase`. What stands behind a quotation mark may be the
/// client's own words repeated to it, with which it must not be able to accuse an account.
pub(super) fn says(text: &str, phrase: &str) -> bool {
    own(text).contains(phrase)
}

/// Whether the upstream itself says `phrase` of the account. A validation error names what it is about
/// before a colon or behind one, unquoted by some providers, and that name may be the client's: a
/// message with a colon accuses nobody.
pub(super) fn accuses(text: &str, phrase: &str) -> bool {
    !text.contains(": ") && says(text, phrase)
}

/// Whether the message of a 400, in lower case, tells of the provider's bad moment.
pub(super) fn is_transient(text: &str) -> bool {
    let says = |phrase: &str| says(text, phrase);
    let processing = ["your", "the", "this"]
        .iter()
        .any(|which| says(&format!("while processing {which} request")));
    let help = says("retry") && says("help.openai.com") && says("request id");
    (processing && says("error")) || help
}

/// Where the first quotation begins; the apostrophe of "couldn't" begins none.
fn opening_quote(text: &str) -> Option<usize> {
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        let quote = match c {
            '"' | '`' | '\u{201c}' | '\u{2018}' => true,
            '\'' => !before.is_alphanumeric(),
            _ => false,
        };
        if quote {
            return Some(at);
        }
        before = c;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISABLED: &str = "organization has been disabled";

    #[test]
    fn who_accuses() {
        #[rustfmt::skip]
        let rows = [
            ("this organization has been disabled.", true),
            ("organization has been disabled", true),
            ("we couldn't go on as your organization has been disabled", true),
            ("'organization has been disabled' is unknown", false),
            ("organization has been disabled: extra inputs are not permitted", false),
            ("unrecognized request argument supplied: organization has been disabled", false),
            ("organization has been", false),
        ];
        for (text, expected) in rows {
            assert_eq!(accuses(text, DISABLED), expected, "{text}");
        }
    }

    #[test]
    fn names_of_the_request_are_blanked() {
        #[rustfmt::skip]
        let rows: [(&str, &[&str], &str); 14] = [
            ("The model overloaded does not exist", &["Overloaded"], "the model … does not exist"),
            ("OVERLOADED", &["overloaded"], "…"),
            ("overloaded, overloaded", &["overloaded"], "…, …"),
            ("gpts and gpt-5", &["gpt"], "gpts and …-5"),
            ("aaa aa", &["aa"], "aaa …"),
            ("model: overloaded.", &[" overloaded "], "model: …."),
            ("Größe ÜBER", &["größe über"], "…"),
            ("x overloaded y", &["x", "x overloaded"], "… y"),
            (r#"no {"model":"a\"busy"}"#, &["a\"busy"], r#"no {"model":"…"}"#),
            ("over...loaded over-loaded", &["..."], "over…loaded over-loaded"),
            ("busy", &["", " "], "busy"),
            ("busy", &[], "busy"),
            ("", &["busy"], ""),
            ("busy", &["\""], "busy"),
        ];
        for (text, echoed, expected) in rows {
            assert_eq!(without(text, echoed), expected, "{text} {echoed:?}");
        }
    }

    #[test]
    fn what_a_body_says() {
        let name = &["a\"busy", "überlast"];
        for (body, word, expected) in [
            (r#"{"error":{"message":"no a\"busy here"}}"#, "busy", false),
            (
                r#"{"error":{"message":"no \u00fcberlast here"}}"#,
                "überlast",
                false,
            ),
            (r#"{"error":{"code":"Busy"}}"#, "busy", true),
            (r#"{"error":{"code":"Busy"}}"#, r#""code":"busy""#, true),
            (r#"{"error":{"code":"Busy"}}"#, r#""code": "busy""#, true),
            (r#"[["Busy"]]"#, "busy", true),
            ("<p>Busy</p>", "busy", true),
            ("<p>a\"busy</p>", "busy", false),
        ] {
            let said = of_body(body.as_bytes(), name).contains(word);
            assert_eq!(said, expected, "{body} {word}");
        }
        assert!(of_body(b"\xff Busy", &[]).contains("busy"));
    }

    proptest! {
        #[test]
        fn any_text_and_name_are_survived(text in any::<String>(), name in any::<String>()) {
            let _ = without(&text, &[&name]);
        }

        #[test]
        fn a_name_that_stands_alone_never_accuses(
            before in "[a-z ]{0,10}", name in "[!-~]{1,5}", after in "[a-z ]{0,10}",
        ) {
            let name = format!("{DISABLED}{name}");
            let text = format!("{before} {name} {after}");
            prop_assert!(!accuses(&without(&text, &[&name]), DISABLED));
        }

        #[test]
        fn quoted_words_never_accuse(before in "[a-z ]{0,10}", quote in "['\"`]", after in "[ -~]{0,10}") {
            let text = format!("{before} {quote}{DISABLED}{after}");
            prop_assert!(!says(&text, DISABLED));
            prop_assert!(!accuses(&text, DISABLED));
        }
    }
}
