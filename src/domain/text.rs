//! Names and other texts that end up in lines of output.

use std::fmt;
use std::net::IpAddr;

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

/// An address as it is displayed. Every record has one, so the usual kind is written by hand.
pub fn address(ip: IpAddr) -> String {
    let IpAddr::V4(ip) = ip else {
        return ip.to_string();
    };
    let mut text = String::with_capacity("255.255.255.255".len());
    for octet in ip.octets() {
        if !text.is_empty() {
            text.push('.');
        }
        for (unit, digit) in [(100, octet / 100), (10, octet / 10 % 10), (1, octet % 10)] {
            if octet >= unit || unit == 1 {
                text.push(char::from(b'0' + digit));
            }
        }
    }
    text
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

    #[test]
    fn addresses_are_written_as_they_are_displayed() {
        let octets = (0..=255u8).map(|octet| IpAddr::from([octet, 255 - octet, 10, octet]));
        let others = ["2001:db8::1", "::ffff:192.0.2.7"].map(|ip| ip.parse().unwrap());
        for ip in octets.chain(others) {
            assert_eq!(address(ip), ip.to_string());
        }
    }
}
