//! Names and other texts that end up in lines of output.

use std::fmt;

/// Longest name of anything, in characters: names stand in log lines and tables.
const MAX_NAME_CHARS: usize = 128;

/// What [`is_name`] asks, in words.
pub const NAME_RULE: &str =
    "a name of 1 to 128 characters, without control characters or spaces around it";

/// Whether something may have that name, wherever the name comes from.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.chars().count() <= MAX_NAME_CHARS
        && !text.chars().any(char::is_control)
        && text.trim() == text
}

/// A text with its control characters escaped, so that a line stays one line and a terminal is
/// told nothing.
pub struct OneLine<'a>(pub &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_printable() {
        let (longest, too_long) = ("ü".repeat(128), "ü".repeat(129));
        for (name, fine) in [
            ("a", true),
            ("Zoë's laptop", true),
            (longest.as_str(), true),
            (too_long.as_str(), false),
            ("", false),
            (" ", false),
            (" a", false),
            ("a\u{a0}", false),
            ("a\nb", false),
            ("a\u{1b}[31m", false),
            ("a\u{9b}", false),
        ] {
            assert_eq!(is_name(name), fine, "{name:?}");
        }
    }

    #[test]
    fn control_characters_are_shown_and_nothing_else_is_changed() {
        assert_eq!(
            OneLine("a\nb\u{1b}[0m\u{9b} \"ü\"").to_string(),
            "a\\nb\\u{1b}[0m\\u{9b} \"ü\""
        );
    }
}
