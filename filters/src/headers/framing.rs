//! Where a request ends, judged from its head as it came over the wire.
//!
//! A head that two parties could frame differently lets one request hide in another's body. The
//! parser before us forgives some of these and forgets that it did, so the raw bytes are asked.
//! For HTTP/1 only: HTTP/2 frames its messages itself.

use memchr::{memchr, memchr2};

/// Why the end of a request cannot be told for certain. Answered with 400; the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmbiguousFraming {
    /// A line ends with LF alone.
    #[error("a line of the head does not end with CRLF")]
    BareLf,
    /// A CR or NUL inside a line.
    #[error("a control character in the head")]
    ControlCharacter,
    /// A header continued on the next line.
    #[error("a folded header")]
    ObsFold,
    /// A header without a colon, or something other than a name before it, such as white space.
    #[error("a malformed header name")]
    BadName,
    /// `Content-Length` together with `Transfer-Encoding`.
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    /// More than one `Content-Length`, were they equal.
    #[error("more than one Content-Length")]
    ManyLengths,
    /// A `Content-Length` that is not one decimal number.
    #[error("a malformed Content-Length")]
    BadLength,
    /// A `Transfer-Encoding` that is not exactly one `chunked`, or comes with HTTP/1.0.
    #[error("an unsupported Transfer-Encoding")]
    BadEncoding,
}

impl AmbiguousFraming {
    /// A short name for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            AmbiguousFraming::BareLf => "bare_lf",
            AmbiguousFraming::ControlCharacter => "control_character",
            AmbiguousFraming::ObsFold => "obs_fold",
            AmbiguousFraming::BadName => "bad_name",
            AmbiguousFraming::LengthAndEncoding => "length_and_encoding",
            AmbiguousFraming::ManyLengths => "many_lengths",
            AmbiguousFraming::BadLength => "bad_length",
            AmbiguousFraming::BadEncoding => "bad_encoding",
        }
    }
}

/// Checks the head of an HTTP/1 request: `raw_head` is the request line and the headers as received,
/// with or without the empty line behind them; what follows that line is not looked at.
///
/// # Errors
/// The first ambiguity found, see [`AmbiguousFraming`].
pub fn framing(raw_head: &[u8]) -> Result<(), AmbiguousFraming> {
    let mut lines = Lines(raw_head);
    // Empty lines before the request line are to be ignored (RFC 9112, 2.2).
    let mut request_line: &[u8] = b"";
    while request_line.is_empty() {
        match lines.next() {
            Some(line) => request_line = line?,
            None => return Ok(()),
        }
    }
    let mut length = false;
    let mut encoding = false;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(AmbiguousFraming::ObsFold);
        }
        let colon = memchr(b':', line).ok_or(AmbiguousFraming::BadName)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
            return Err(AmbiguousFraming::BadName);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            // A list is the same as several headers.
            if length || memchr(b',', value).is_some() {
                return Err(AmbiguousFraming::ManyLengths);
            }
            length = true;
            check_length(value)?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if encoding || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(AmbiguousFraming::BadEncoding);
            }
            encoding = true;
        }
    }
    if length && encoding {
        return Err(AmbiguousFraming::LengthAndEncoding);
    }
    // RFC 9112, 6.1: an HTTP/1.0 message with Transfer-Encoding is to be treated as faulty.
    if encoding && request_line.ends_with(b"HTTP/1.0") {
        return Err(AmbiguousFraming::BadEncoding);
    }
    Ok(())
}

/// A length of up to 18 digits: it fits every integer anyone may read it into.
fn check_length(value: &[u8]) -> Result<(), AmbiguousFraming> {
    let number = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    number.then_some(()).ok_or(AmbiguousFraming::BadLength)
}

/// Takes away the only white space HTTP knows around a value; others are left to fail.
fn trim(value: &[u8]) -> &[u8] {
    let visible = |b: &u8| !matches!(b, b' ' | b'\t');
    let Some(start) = value.iter().position(visible) else {
        return b"";
    };
    let end = value.iter().rposition(visible).map_or(start, |i| i + 1);
    &value[start..end]
}

/// The characters of a header name (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(
            byte as u8,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\''
                | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        );
        byte += 1;
    }
    table
};

/// The lines of a head without their CRLF.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], AmbiguousFraming>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let line = match memchr(b'\n', self.0) {
            None => std::mem::take(&mut self.0),
            Some(end) => {
                let line = &self.0[..end];
                self.0 = &self.0[end + 1..];
                match line.strip_suffix(b"\r") {
                    Some(line) => line,
                    None => return Some(Err(AmbiguousFraming::BareLf)),
                }
            }
        };
        Some(match memchr2(b'\r', b'\0', line) {
            Some(_) => Err(AmbiguousFraming::ControlCharacter),
            None => Ok(line),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_that_are_plain() {
        let rows: [&[u8]; 16] = [
            b"",
            b"\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n",
            b"GET / HTTP/1.1\r\nHost: a",
            b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length:5\r\n\r\nabc\n\0",
            b"POST / HTTP/1.1\r\nContent-Length: \t 00005 \t\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 999999999999999999\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nTRANSFER-ENCODING: Chunked \r\n\r\n",
            b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n",
            b"POST / HTTP/1.1\r\nX-Content-Length: a, b\r\nContent-Length: 5\r\n\r\n",
            b"POST / HTTP/1.1\r\nX-A:\r\nX-B: a:b \x80\xff\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nContent-Length: 6\r\n\r\n",
        ];
        for head in rows {
            assert_eq!(framing(head), Ok(()), "{:?}", head.escape_ascii());
        }
    }

    #[test]
    fn heads_that_are_not() {
        use AmbiguousFraming::*;
        #[rustfmt::skip]
        let rows: [(&str, AmbiguousFraming); 35] = [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", BareLf),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", BareLf),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", BareLf),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BareLf),
            ("GET / HTTP/1.1\r\nHost: a\rTransfer-Encoding: chunked\r\n\r\n", ControlCharacter),
            ("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", ControlCharacter),
            ("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", ControlCharacter),
            ("GET /\0 HTTP/1.1\r\n\r\n", ControlCharacter),
            ("GET / HTTP/1.1\r\nHost: a\r", ControlCharacter),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", ObsFold),
            ("GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", ObsFold),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", ObsFold),
            ("POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n", BadName),
            ("POST / HTTP/1.1\r\nTransfer-Encoding\t: chunked\r\n\r\n", BadName),
            ("POST / HTTP/1.1\r\nTransfer-Encoding\u{b}: chunked\r\n\r\n", BadName),
            ("POST / HTTP/1.1\r\n: 5\r\n\r\n", BadName),
            ("POST / HTTP/1.1\r\nContent-Length\r\n\r\n", BadName),
            ("POST / HTTP/1.1\r\nContent Length: 5\r\n\r\n", BadName),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", LengthAndEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: y\r\ncontent-length: 5\r\n\r\n", LengthAndEncoding),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ManyLengths),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\ncontent-LENGTH: 5\r\n\r\n", ManyLengths),
            ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", ManyLengths),
            ("POST / HTTP/1.1\r\nContent-Length: 5,\r\n\r\n", ManyLengths),
            ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", BadLength),
            ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", BadLength),
            ("POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", BadLength),
            ("POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n", BadLength),
            ("POST / HTTP/1.1\r\nContent-Length: 5 5\r\n\r\n", BadLength),
            ("POST / HTTP/1.1\r\nContent-Length: 1000000000000000000\r\n\r\n", BadLength),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", BadEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", BadEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", BadEncoding),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", BadEncoding),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", BadEncoding),
        ];
        for (head, expected) in rows {
            assert_eq!(framing(head.as_bytes()), Err(expected), "{head:?}");
        }
    }

    #[test]
    fn white_space_of_other_worlds_is_not_trimmed() {
        // A vertical tab or a non-breaking space is white space to some parsers and not to others.
        for odd in [&b"\x0bchunked"[..], b"chunked\x0b", b"\xa0chunked"] {
            let head = [b"POST / HTTP/1.1\r\nTransfer-Encoding: ", odd, b"\r\n\r\n"].concat();
            assert_eq!(framing(&head), Err(AmbiguousFraming::BadEncoding));
        }
        // A form feed is what `trim_ascii` would take away and HTTP would not.
        for odd in [&b"\x0cchunked"[..], b"chunked\x0c"] {
            let head = [b"POST / HTTP/1.1\r\nTransfer-Encoding: ", odd, b"\r\n\r\n"].concat();
            assert_eq!(framing(&head), Err(AmbiguousFraming::BadEncoding));
        }
    }

    /// Lines that together reach every rule often, which random bytes would not.
    fn line() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "Content-Length: 5",
            "Content-Length: 5, 5",
            "content-length: x",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding : chunked",
            " folded",
            "X: y",
            "",
            "\r",
            "\n",
            "\0",
        ])
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(head in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = framing(&head);
        }

        #[test]
        fn an_accepted_head_has_one_framing(lines in proptest::collection::vec(line(), 0..6)) {
            let head = format!("POST / HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"));
            if framing(head.as_bytes()).is_ok() {
                let end = head.find("\r\n\r\n").unwrap();
                let accepted = head[..end].to_ascii_lowercase();
                let lengths = accepted.matches("content-length").count();
                let encodings = accepted.matches("transfer-encoding").count();
                prop_assert!(lengths + encodings <= 1, "{:?}", head);
                prop_assert!(!accepted.replace("\r\n", "").contains(['\r', '\n', '\0']));
            }
        }
    }
}
