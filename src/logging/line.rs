//! One line of the log, as it is being written.

use std::fmt::Display;
use std::io::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use log::Level;
use log::kv::{self, Key, Value, VisitSource, VisitValue};

use crate::config::LogFormat;

/// Field names that the line itself uses; a pair of that name is written `kv.…`.
const RESERVED: [&str; 4] = ["ts", "level", "target", "msg"];

thread_local! {
    /// The last second that was written on this thread, and its text up to the point.
    static SECOND: std::cell::RefCell<(i64, String)> =
        const { std::cell::RefCell::new((i64::MIN, String::new())) };
}

/// A line that is being written. Writing to memory cannot fail.
#[derive(Debug)]
pub struct Line<'a> {
    text: &'a mut Vec<u8>,
    format: LogFormat,
}

/// A value in JSON's terms.
enum Json<'a> {
    Text(&'a str),
    /// A number, `true`, `false` or `null`: stands as it is.
    Bare(&'a dyn Display),
}

impl<'a> Line<'a> {
    /// Writes to `text`, which is empty, everything but the fields.
    pub(super) fn begin(
        text: &'a mut Vec<u8>,
        format: LogFormat,
        now: DateTime<Utc>,
        level: Level,
        target: &str,
        message: &str,
    ) -> Line<'a> {
        let mut line = Line { text, format };
        match format {
            LogFormat::Text => {
                line.time(now);
                line.push(" ");
                line.push(level.as_str());
                line.push(" ");
                line.push(target);
                line.push(" ");
                line.push_printable(message);
            }
            LogFormat::Json => {
                line.push("{\"ts\":\"");
                line.time(now);
                line.push("\"");
                line.pair("level", &Json::Text(level.as_str()));
                line.pair("target", &Json::Text(target));
                line.pair("msg", &Json::Text(message));
            }
        }
        line
    }

    /// The line is complete.
    pub(super) fn end(self) {
        self.text.extend_from_slice(match self.format {
            LogFormat::Text => b"\n",
            LogFormat::Json => b"}\n",
        });
    }

    /// A field that is a text. As with the others here, `key` has no characters that need escapes.
    pub fn text(&mut self, key: &'static str, value: &str) {
        self.plain_key(key);
        self.value(value);
    }

    /// A field that is a text, made by `value` and without characters that need quotes or escapes.
    pub fn plain(&mut self, key: &'static str, value: impl Display) {
        self.plain_key(key);
        let quote = if self.format == LogFormat::Json {
            "\""
        } else {
            ""
        };
        self.push(quote);
        self.display(&value);
        self.push(quote);
    }

    /// A field that is a number.
    pub fn number(&mut self, key: &'static str, value: u64) {
        self.plain_key(key);
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = value;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.text.extend_from_slice(&digits[at..]);
    }

    /// A field that is true or false.
    pub fn flag(&mut self, key: &'static str, value: bool) {
        self.plain_key(key);
        self.push(if value { "true" } else { "false" });
    }

    fn plain_key(&mut self, key: &'static str) {
        match self.format {
            LogFormat::Text => {
                self.push(" ");
                self.push(key);
                self.push("=");
            }
            LogFormat::Json => {
                self.push(",\"");
                self.push(key);
                self.push("\":");
            }
        }
    }

    fn value(&mut self, text: &str) {
        match self.format {
            LogFormat::Text if is_plain(text) => self.push(text),
            _ => self.quoted(text),
        }
    }

    /// The time, in milliseconds; the text of a second is made once.
    fn time(&mut self, now: DateTime<Utc>) {
        let second = now.timestamp();
        let made = || {
            let mut text = now.to_rfc3339_opts(SecondsFormat::Secs, true);
            text.pop();
            text
        };
        let kept = SECOND.try_with(|kept| {
            let (known, text) = &mut *kept.borrow_mut();
            if *known != second {
                *text = made();
                *known = second;
            }
            self.push(text);
        });
        // At the end of a thread what it kept is gone.
        if kept.is_err() {
            self.push(&made());
        }
        // A leap second is written as the end of the second before it.
        let millis = now.timestamp_subsec_millis().min(999);
        let digit = |n: u32| b'0' + (n % 10) as u8;
        self.text.extend_from_slice(&[
            b'.',
            digit(millis / 100),
            digit(millis / 10),
            digit(millis),
            b'Z',
        ]);
    }

    fn push(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    /// A text without anything that would end the line or steer a terminal.
    fn push_printable(&mut self, text: &str) {
        if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
            return self.push(text);
        }
        for c in text.chars() {
            if c.is_control() {
                let _ = write!(self.text, "{}", c.escape_default());
            } else {
                let _ = write!(self.text, "{c}");
            }
        }
    }

    fn pair(&mut self, key: &str, value: &Json<'_>) {
        match self.format {
            LogFormat::Text => {
                self.push(" ");
                self.push_printable(key);
                self.push("=");
                match value {
                    Json::Bare(value) => self.display(value),
                    Json::Text(text) => self.value(text),
                }
            }
            LogFormat::Json => {
                self.push(",");
                self.quoted(key);
                self.push(":");
                match value {
                    Json::Bare(value) => self.display(value),
                    Json::Text(text) => self.quoted(text),
                }
            }
        }
    }

    fn display(&mut self, value: &dyn Display) {
        let _ = write!(self.text, "{value}");
    }

    fn quoted(&mut self, text: &str) {
        if text
            .bytes()
            .all(|b| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\')
        {
            self.push("\"");
            self.push(text);
            self.push("\"");
        } else {
            // A text always has a JSON form.
            let _ = serde_json::to_writer(&mut *self.text, text);
        }
    }
}

/// Whether a value needs no quotes in a text line.
fn is_plain(text: &str) -> bool {
    if text.is_empty() {
        return false;
    }
    // Without a way out in the middle: that is many bytes at once.
    let plain = |b: u8| b > b' ' && b < 0x7f && b != b'"' && b != b'=';
    if text.bytes().fold(true, |all, b| all & plain(b)) {
        return true;
    }
    if text.is_ascii() {
        return false;
    }
    !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}

impl<'kvs> VisitSource<'kvs> for Line<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let key = key.as_str();
        let renamed;
        let key = if self.format == LogFormat::Json && RESERVED.contains(&key) {
            renamed = format!("kv.{key}");
            &renamed
        } else {
            key
        };
        value.visit(Pair { line: self, key })
    }
}

/// One pair whose value is about to be seen.
struct Pair<'a, 'line> {
    line: &'a mut Line<'line>,
    key: &'a str,
}

impl Pair<'_, '_> {
    fn bare(&mut self, value: impl Display) -> Result<(), kv::Error> {
        self.line.pair(self.key, &Json::Bare(&value));
        Ok(())
    }

    fn text(&mut self, value: &str) -> Result<(), kv::Error> {
        self.line.pair(self.key, &Json::Text(value));
        Ok(())
    }
}

impl<'v> VisitValue<'v> for Pair<'_, '_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.text(&value.to_string())
    }
    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.bare("null")
    }
    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.bare(value)
    }
    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.bare(value)
    }
    fn visit_u128(&mut self, value: u128) -> Result<(), kv::Error> {
        self.bare(value)
    }
    fn visit_i128(&mut self, value: i128) -> Result<(), kv::Error> {
        self.bare(value)
    }
    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        if value.is_finite() {
            self.bare(value)
        } else {
            self.text(&value.to_string())
        }
    }
    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.bare(value)
    }
    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.text(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::kv::Source;

    fn line(format: LogFormat, message: &str, fields: impl FnOnce(&mut Line<'_>)) -> String {
        let now = "2026-11-21T00:00:00Z".parse().unwrap();
        let mut text = Vec::new();
        let mut line = Line::begin(
            &mut text,
            format,
            now,
            Level::Info,
            "tollgate::proxy",
            message,
        );
        fields(&mut line);
        line.end();
        String::from_utf8(text).unwrap()
    }

    fn written(format: LogFormat, message: &str, pairs: &[(&str, Value<'_>)]) -> String {
        line(format, message, |line| pairs.visit(line).unwrap())
    }

    /// The fields the access log adds by itself are written as the macros would.
    #[test]
    fn direct_fields_look_like_pairs() {
        let texts = [
            "plain",
            "",
            "two words",
            "a=b",
            "q\"q",
            "b\\s",
            "new\nline",
            "é",
            "\u{2028} x",
        ];
        let numbers = [0, 7, 10, 999, 1_000_000, u64::MAX];
        for format in [LogFormat::Text, LogFormat::Json] {
            for text in texts {
                let direct = line(format, "m", |line| line.text("a.key", text));
                assert_eq!(direct, written(format, "m", &[("a.key", text.into())]));
            }
            for number in numbers {
                let direct = line(format, "m", |line| line.number("n", number));
                assert_eq!(direct, written(format, "m", &[("n", number.into())]));
            }
            let direct = line(format, "m", |line| {
                line.flag("yes", true);
                line.flag("no", false);
                line.plain("usd", "0.25");
            });
            let pairs = [
                ("yes", true.into()),
                ("no", false.into()),
                ("usd", "0.25".into()),
            ];
            assert_eq!(direct, written(format, "m", &pairs));
        }
    }

    #[test]
    fn times_are_written_to_the_millisecond() {
        for text in [
            "2026-11-21T00:00:00.000Z",
            "2026-11-21T00:00:00.999Z",
            "2026-11-21T23:59:59.007Z",
            "1969-12-31T23:59:59.040Z",
        ] {
            let mut line = Vec::new();
            Line {
                text: &mut line,
                format: LogFormat::Text,
            }
            .time(text.parse().unwrap());
            assert_eq!(line, text.as_bytes());
        }
    }

    #[test]
    fn text_lines_are_for_people() {
        let pairs = [
            ("request.id", Value::from("r-1")),
            ("user_agent", Value::from("a \"b\"\nc")),
            ("status", Value::from(200)),
            ("ratio", Value::from(0.5)),
            ("stream", Value::from(true)),
            ("empty", Value::from("")),
        ];
        assert_eq!(
            written(LogFormat::Text, "served\nforged \x1b[31m", &pairs),
            "2026-11-21T00:00:00.000Z INFO tollgate::proxy served\\nforged \\u{1b}[31m \
             request.id=r-1 user_agent=\"a \\\"b\\\"\\nc\" status=200 ratio=0.5 stream=true empty=\"\"\n"
        );
    }

    #[test]
    fn json_lines_are_objects_with_typed_fields() {
        let pairs = [
            ("request.id", Value::from("r-1")),
            ("status", Value::from(200u16)),
            ("cost", Value::from(-1i64)),
            ("nan", Value::from(f64::NAN)),
            ("any", Value::from_debug(&Some(1))),
            ("null", Value::null()),
            ("msg", Value::from("mine")),
        ];
        let line = written(LogFormat::Json, "a \"message\"\nin two lines", &pairs);
        assert_eq!(line.matches('\n').count(), 1);
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            object,
            serde_json::json!({
                "ts": "2026-11-21T00:00:00.000Z", "level": "INFO", "target": "tollgate::proxy",
                "msg": "a \"message\"\nin two lines", "request.id": "r-1", "status": 200,
                "cost": -1, "nan": "NaN", "any": "Some(1)", "null": null, "kv.msg": "mine",
            })
        );
    }
}
