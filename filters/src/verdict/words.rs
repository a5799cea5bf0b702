//! Whose words they are: an upstream's message may repeat the client's own, with which a client must not be
//! able to accuse an account.

/// Whether the upstream itself says `phrase`. What stands behind a quotation mark may be the
/// client's own words repeated to it, with which it must not be able to accuse an account.
pub(super) fn says(text: &str, phrase: &str) -> bool {
    let own = match opening_quote(text) {
        Some(start) => &text[..start],
        None => text,
    };
    own.contains(phrase)
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

    proptest! {
        #[test]
        fn quoted_words_never_accuse(before in "[a-z ]{0,10}", quote in "['\"`]", after in "[ -~]{0,10}") {
            let text = format!("{before} {quote}{DISABLED}{after}");
            prop_assert!(!says(&text, DISABLED));
            prop_assert!(!accuses(&text, DISABLED));
        }
    }
}
