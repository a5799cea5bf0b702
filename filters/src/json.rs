//! A cursor over JSON bytes: checks the grammar as it goes, builds nothing, copies nothing. Use it (inside this
//! crate) wherever a few fields of a document decide something and the rest only has to be well-formed.
//!
//! It accepts exactly what `serde_json` accepts as a `Value`, except that it does not look at UTF-8: callers to
//! whom that matters check the whole document once. Nesting is followed without recursion, to `serde_json`'s depth.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;

/// Containers that may be open at once; `serde_json` refuses the next one too.
pub(crate) const MAX_DEPTH: u32 = 127;

/// Longest number that cannot overflow an `f64`, whatever its digits, when it has no exponent.
const SAFE_NUMBER_BYTES: usize = 308;

/// The bytes are not JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// A string of the document, still escaped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    /// What stands between the quotes.
    pub raw: &'a [u8],
    /// Where the opening quote stands.
    start: usize,
    escaped: bool,
}

impl<'a> Text<'a> {
    /// Where the string stands in the document, quotes included.
    pub fn span(&self) -> Range<usize> {
        self.start..self.start + self.raw.len() + 2
    }

    /// The bytes meant, escapes resolved.
    pub fn name(&self) -> Cow<'a, [u8]> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        match unescape(self.raw) {
            Some(text) => Cow::Owned(text.into_bytes()),
            None => Cow::Borrowed(self.raw),
        }
    }

    /// The text meant; `None` when it is not UTF-8.
    pub fn decode(&self) -> Option<Cow<'a, str>> {
        if self.escaped {
            unescape(self.raw).map(Cow::Owned)
        } else {
            std::str::from_utf8(self.raw).ok().map(Cow::Borrowed)
        }
    }

    /// How many bytes of UTF-8 the text has, escapes resolved.
    pub fn decoded_len(&self) -> usize {
        if self.escaped {
            decoded_len(self.raw)
        } else {
            self.raw.len()
        }
    }
}

/// The text that `raw`, the inside of a JSON string, means; `None` when it is none.
pub(crate) fn unescape(raw: &[u8]) -> Option<String> {
    let mut quoted = Vec::with_capacity(raw.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(raw);
    quoted.push(b'"');
    serde_json::from_slice(&quoted).ok()
}

/// Bytes of UTF-8 that a valid escaped string stands for.
fn decoded_len(raw: &[u8]) -> usize {
    let mut rest = raw;
    let mut len = 0;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        len += at;
        let escape = &rest[at..];
        let (bytes, skip) = match escape.get(1) {
            Some(b'u') => match escape.get(2..6).and_then(hex4) {
                Some(0..=0x7f) | None => (1, 6),
                Some(0x80..=0x7ff) => (2, 6),
                // Each half of a pair is two of its four bytes.
                Some(0xd800..=0xdfff) => (2, 6),
                Some(_) => (3, 6),
            },
            _ => (1, 2),
        };
        len += bytes;
        rest = escape.get(skip..).unwrap_or_default();
    }
    len + rest.len()
}

/// A value that was read over. Containers are given as their bytes, brackets included.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    String(Text<'a>),
    Number(&'a [u8]),
    Array(&'a [u8]),
    Object(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The text of a string.
    pub fn text(self) -> Option<Text<'a>> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

/// A position in a document.
///
/// Walk with [`object`](Self::object) / [`key`](Self::key) and [`array`](Self::array) / [`element`](Self::element);
/// after every key or element, read exactly one value.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
    /// The container last opened has shown no member yet.
    fresh: bool,
    /// Where it is watched what the document refers to: what has been seen of that.
    watch: Option<References>,
}

/// What a document has in it or refers to besides its text; see [`Cursor::watch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct References {
    /// Something that a reader of the document has to fetch, or a file whose content is not text.
    pub elsewhere: bool,
    /// Images given as data.
    pub images: u32,
}

impl<'a> Cursor<'a> {
    /// At the beginning of a document.
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor {
            bytes,
            at: 0,
            depth: 0,
            fresh: false,
            watch: None,
        }
    }

    /// From here on looks at the keys that are read over, at any depth, for files and images.
    pub fn watch(&mut self) {
        self.watch = Some(References::default());
    }

    /// No longer; what was seen meanwhile.
    pub fn watched(&mut self) -> References {
        self.watch.take().unwrap_or_default()
    }

    /// How many bytes have been read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Steps over white space and tells where the next token begins.
    #[inline]
    pub fn start(&mut self) -> usize {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
        self.at
    }

    /// The document must end here.
    pub fn finish(&mut self) -> Result<(), Malformed> {
        if self.start() == self.bytes.len() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    /// Opens an object; `false`, reading nothing, when something else stands here.
    pub fn object(&mut self) -> Result<bool, Malformed> {
        self.open(b'{')
    }

    /// Opens an array; `false`, reading nothing, when something else stands here.
    pub fn array(&mut self) -> Result<bool, Malformed> {
        self.open(b'[')
    }

    /// The next key of the object that is open; `None` closes it.
    pub fn key(&mut self) -> Result<Option<Text<'a>>, Malformed> {
        if self.close(b'}')? {
            return Ok(None);
        }
        self.member().map(Some)
    }

    /// Whether the array that is open has another element; `false` closes it.
    pub fn element(&mut self) -> Result<bool, Malformed> {
        self.close(b']').map(|closed| !closed)
    }

    /// In an object that is open, goes to the value of the first key called `name`; `false` closes the object.
    pub fn seek(&mut self, name: &[u8]) -> Result<bool, Malformed> {
        while let Some(key) = self.key()? {
            if *key.name() == *name {
                return Ok(true);
            }
            self.value()?;
        }
        Ok(false)
    }

    /// Reads over one value of any kind.
    pub fn value(&mut self) -> Result<Value<'a>, Malformed> {
        let start = self.start();
        match self.peek() {
            Some(b'{') => self.container().map(|()| Value::Object(self.since(start))),
            Some(b'[') => self.container().map(|()| Value::Array(self.since(start))),
            _ => self.scalar(),
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn next(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek().ok_or(Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    fn eat(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        self.at += usize::from(here);
        here
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.eat(byte) {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    /// What has been read from `start` on.
    pub fn since(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.at]
    }

    fn open(&mut self, bracket: u8) -> Result<bool, Malformed> {
        self.start();
        if !self.eat(bracket) {
            return Ok(false);
        }
        if self.depth == MAX_DEPTH {
            return Err(Malformed);
        }
        self.depth += 1;
        self.fresh = true;
        Ok(true)
    }

    /// Closes the container, or steps over the comma before its next member.
    fn close(&mut self, bracket: u8) -> Result<bool, Malformed> {
        self.start();
        let fresh = std::mem::take(&mut self.fresh);
        if self.eat(bracket) {
            self.depth -= 1;
            return Ok(true);
        }
        if !fresh {
            self.expect(b',')?;
        }
        Ok(false)
    }

    /// The key of a member, looked at where that is asked for. Its value is next.
    #[inline]
    fn member(&mut self) -> Result<Text<'a>, Malformed> {
        let key = self.name()?;
        if self.watch.is_some() {
            self.note(key);
        }
        Ok(key)
    }

    /// A key refers to something if its value is not `null`; an image may be given as data instead.
    fn note(&mut self, key: Text<'a>) {
        let name = key.name();
        let is_image = *name == *b"image_url";
        if !is_image && !matches!(&*name, b"file_id" | b"file_url" | b"file_data") {
            return;
        }
        const DATA: &[u8] = b"\"data:";
        let start = self.start();
        let value = &self.bytes[start..];
        let is_data = value
            .get(..DATA.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(DATA));
        let Some(seen) = &mut self.watch else { return };
        if is_image && is_data {
            seen.images = seen.images.saturating_add(1);
        } else if value.first() != Some(&b'n') {
            seen.elsewhere = true;
        }
    }

    /// `"name" :`
    fn name(&mut self) -> Result<Text<'a>, Malformed> {
        self.start();
        let name = self.string()?;
        self.start();
        self.expect(b':')?;
        Ok(name)
    }

    /// Reads over the object or array that begins here, with all that is in it.
    fn container(&mut self) -> Result<(), Malformed> {
        // One bit for each open container, the innermost lowest: set for an object.
        let mut objects: u128 = 0;
        let mut open: u32 = 0;
        loop {
            self.start();
            let bracket = self.peek();
            if let Some(b'{' | b'[') = bracket {
                let is_object = bracket == Some(b'{');
                if self.depth + open == MAX_DEPTH {
                    return Err(Malformed);
                }
                open += 1;
                objects = objects << 1 | u128::from(is_object);
                self.at += 1;
                self.start();
                if self.peek() != Some(if is_object { b'}' } else { b']' }) {
                    if is_object {
                        self.member()?;
                    }
                    continue;
                }
            } else {
                self.scalar()?;
            }
            // A value, or an empty container up to its bracket, has just been read.
            loop {
                self.start();
                let in_object = objects & 1 == 1;
                match self.next()? {
                    b',' => {
                        if in_object {
                            self.member()?;
                        }
                        break;
                    }
                    b'}' if in_object => {}
                    b']' if !in_object => {}
                    _ => return Err(Malformed),
                }
                objects >>= 1;
                open -= 1;
                if open == 0 {
                    return Ok(());
                }
            }
        }
    }

    fn scalar(&mut self) -> Result<Value<'a>, Malformed> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b't') => self.word(b"true", Value::Bool(true)),
            Some(b'f') => self.word(b"false", Value::Bool(false)),
            Some(b'n') => self.word(b"null", Value::Null),
            _ => self.number().map(Value::Number),
        }
    }

    fn word(&mut self, word: &[u8], value: Value<'a>) -> Result<Value<'a>, Malformed> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(Malformed);
        }
        self.at += word.len();
        Ok(value)
    }

    fn number(&mut self) -> Result<&'a [u8], Malformed> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        let mut overflows = self.at - start > SAFE_NUMBER_BYTES;
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
            overflows = true;
        }
        let number = self.since(start);
        if overflows {
            // Out of an f64's range `serde_json` refuses it.
            let value = std::str::from_utf8(number)
                .ok()
                .and_then(|n| n.parse::<f64>().ok());
            if !value.is_some_and(f64::is_finite) {
                return Err(Malformed);
            }
        }
        Ok(number)
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    #[inline]
    fn string(&mut self) -> Result<Text<'a>, Malformed> {
        let start = self.at;
        self.expect(b'"')?;
        // Most strings are short and plain: their end is in one of the next few words.
        let near = self.bytes.get(self.at..).unwrap_or_default();
        let (words, _) = near.as_chunks::<8>();
        for (index, word) in words.iter().take(NEAR / 8).enumerate() {
            let found = special(u64::from_le_bytes(*word));
            if found != 0 {
                let end = index * 8 + found.trailing_zeros() as usize / 8;
                if near.get(end) != Some(&b'"') {
                    break;
                }
                self.at += end + 1;
                return Ok(Text {
                    raw: &near[..end],
                    start,
                    escaped: false,
                });
            }
        }
        self.any_string(start)
    }

    /// A string whose opening quote, at `start`, has been read.
    #[inline(never)]
    fn any_string(&mut self, start: usize) -> Result<Text<'a>, Malformed> {
        let mut escaped = false;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            self.at += stop(rest).ok_or(Malformed)?;
            match self.next()? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return Err(Malformed),
            }
        }
        Ok(Text {
            raw: &self.bytes[start + 1..self.at - 1],
            start,
            escaped,
        })
    }

    /// What follows a backslash. Half a surrogate pair is no text.
    fn escape(&mut self) -> Result<(), Malformed> {
        match self.next()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => match self.hex()? {
                0xdc00..=0xdfff => Err(Malformed),
                0xd800..=0xdbff => {
                    self.expect(b'\\')?;
                    self.expect(b'u')?;
                    match self.hex()? {
                        0xdc00..=0xdfff => Ok(()),
                        _ => Err(Malformed),
                    }
                }
                _ => Ok(()),
            },
            _ => Err(Malformed),
        }
    }

    fn hex(&mut self) -> Result<u16, Malformed> {
        let digits = self.bytes.get(self.at..self.at + 4).ok_or(Malformed)?;
        self.at += 4;
        hex4(digits).ok_or(Malformed)
    }
}

fn hex4(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0, |value, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(value << 4 | digit as u16)
    })
}

const ONES: u64 = u64::MAX / 255;
const HIGH_BITS: u64 = ONES * 0x80;

/// How far into a string whole words are looked at before the vector search takes over.
const NEAR: usize = 64;

/// Where the first byte stands that ends a plain run of a string: a quote, a backslash or a control character.
fn stop(bytes: &[u8]) -> Option<usize> {
    let near = &bytes[..bytes.len().min(NEAR)];
    let (words, tail) = near.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let found = special(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    if bytes.len() <= NEAR {
        let at = tail
            .iter()
            .position(|&byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
        return Some(words.len() * 8 + at);
    }
    let far = &bytes[NEAR..];
    let end = memchr2(b'"', b'\\', far);
    let run = &far[..end.unwrap_or(far.len())];
    if has_control(run) {
        return run.iter().position(|&byte| byte < 0x20).map(|at| NEAR + at);
    }
    end.map(|at| NEAR + at)
}

/// Marks the high bit of bytes that end a plain run. The lowest mark is exact; those above it need not be.
fn special(word: u64) -> u64 {
    let quote = word ^ (ONES * u64::from(b'"'));
    let backslash = word ^ (ONES * u64::from(b'\\'));
    (quote.wrapping_sub(ONES) & !quote
        | backslash.wrapping_sub(ONES) & !backslash
        | below_space(word))
        & HIGH_BITS
}

fn below_space(word: u64) -> u64 {
    word.wrapping_sub(ONES * 0x20) & !word & HIGH_BITS
}

fn has_control(bytes: &[u8]) -> bool {
    // No early exit inside a block, so that the compiler can use vectors.
    let (blocks, tail) = bytes.as_chunks::<64>();
    let block_has = |block: &[u8; 64]| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |seen, word| {
            seen | below_space(u64::from_le_bytes(*word))
        }) != 0
    };
    blocks.iter().any(block_has) || tail.iter().any(|&byte| byte < 0x20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_json(bytes: &[u8]) -> bool {
        let mut cursor = Cursor::new(bytes);
        cursor.value().and_then(|_| cursor.finish()).is_ok()
    }

    #[test]
    fn accepts_what_serde_json_accepts() {
        let cases: &[&[u8]] = &[
            b"",
            b" ",
            b"null",
            b"nul",
            b"nulll",
            b"true",
            b"falsey",
            b"{}",
            b"{ }",
            b"[]",
            b"[ ]",
            b"[,]",
            b"[1,]",
            b"[1 2]",
            b"[1,2]",
            b"{,}",
            br#"{"a"}"#,
            br#"{"a":}"#,
            br#"{"a":1,}"#,
            br#"{"a":1"b":2}"#,
            br#"{a:1}"#,
            br#"{"a":1]"#,
            br#"[1}"#,
            br#"{"a":[{"b":[]}]}"#,
            b"{} {}",
            b"{}x",
            b"\t{}\r\n",
            b"\x0c{}",
            b"\xef\xbb\xbf{}",
            b"0",
            b"-0",
            b"00",
            b"01",
            b"-",
            b"+1",
            b"1.",
            b".5",
            b"1.5",
            b"1e",
            b"1e+",
            b"1E-2",
            b"1e400",
            b"-1e400",
            b"0e400",
            b"1e-400",
            b"1e99999999999",
            b"0e99999999999",
            b"12345678901234567890123",
            br#""a"#,
            br#""\x""#,
            br#""\u12""#,
            br#""\u12G4""#,
            br#""\u00e9""#,
            br#""\ud83d\ude00""#,
            br#""\ud83d""#,
            br#""\ud83dx""#,
            br#""\ud83d\n""#,
            br#""\ud83d\ud83d""#,
            br#""\ude00""#,
            b"\"\x1f\"",
            b"\"\x7f\"",
            b"\"a\nb\"",
            b"\"\\",
            b"\"\\u",
            br#"["\"\\\/\b\f\n\r\t"]"#,
        ];
        for case in cases {
            assert_eq!(
                is_json(case),
                serde_json::from_slice::<serde_json::Value>(case).is_ok(),
                "{}",
                String::from_utf8_lossy(case)
            );
        }
    }

    #[test]
    fn every_control_character_in_a_string_is_found_wherever_it_stands() {
        for length in [0, 1, 7, 8, 63, 64, 65, 127, 128, 129, 200] {
            for at in 0..length {
                for byte in [0x00, 0x1f, 0x20, b'"', 0x7f, 0xc3] {
                    let mut document = vec![b'a'; length + 2];
                    document[0] = b'"';
                    document[length + 1] = b'"';
                    document[at + 1] = byte;
                    let expected = !matches!(byte, 0x00 | 0x1f | b'"');
                    assert_eq!(
                        is_json(&document),
                        expected,
                        "{byte:#x} at {at} of {length}"
                    );
                }
            }
        }
    }

    #[test]
    fn depth_ends_where_it_does_in_serde_json_and_never_overflows() {
        for depth in [126, 127, 128, 129, 1_000_000] {
            for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                let mut document = open.repeat(depth);
                document.push('1');
                document.push_str(&close.repeat(depth));
                assert_eq!(
                    is_json(document.as_bytes()),
                    depth <= MAX_DEPTH as usize,
                    "{open} {depth}"
                );
                let reference = serde_json::from_str::<serde_json::Value>(&document);
                assert_eq!(
                    reference.is_ok(),
                    depth <= MAX_DEPTH as usize,
                    "{open} {depth}"
                );
            }
        }
    }

    #[test]
    fn numbers_without_exponent_overflow_by_their_length() {
        for digits in [308, 309, 310, 400] {
            let number = "9".repeat(digits);
            let reference = serde_json::from_str::<serde_json::Value>(&number).is_ok();
            assert_eq!(is_json(number.as_bytes()), reference, "{digits}");
        }
    }

    #[test]
    fn walks_members_and_elements() {
        let mut cursor = Cursor::new(br#" { "a" : [ 1 , {"x":2}, [] ] , "\u0062":"\u00e9\n" } "#);
        assert_eq!(cursor.array(), Ok(false));
        assert_eq!(cursor.object(), Ok(true));
        assert_eq!(&*cursor.key().unwrap().unwrap().name(), b"a");
        assert_eq!(cursor.array(), Ok(true));
        let mut elements = 0;
        while cursor.element().unwrap() {
            cursor.value().unwrap();
            elements += 1;
        }
        assert_eq!(elements, 3);
        assert_eq!(&*cursor.key().unwrap().unwrap().name(), b"b");
        let text = cursor.value().unwrap().text().unwrap();
        assert_eq!(text.decode().unwrap(), "\u{e9}\n");
        assert_eq!(text.decoded_len(), 3);
        assert!(cursor.key().unwrap().is_none());
        assert_eq!(cursor.finish(), Ok(()));
    }

    #[test]
    fn decoded_length_is_that_of_the_text() {
        for raw in [
            r"",
            r"abc",
            r"\n\t\\",
            r"\u0041\u00e9\u20ac\ud83d\ude00",
            "é\\u00e9€",
        ] {
            let quoted = format!("\"{raw}\"");
            let text: String = serde_json::from_str(&quoted).unwrap();
            let token = Cursor::new(quoted.as_bytes())
                .value()
                .unwrap()
                .text()
                .unwrap();
            assert_eq!(token.decoded_len(), text.len(), "{raw}");
        }
    }
}
