//! Log output: one line a record on standard error, as text for people or JSON for machines.
//!
//! Rooms log through the `log` macros, with fields as key-value pairs dotted by noun:
//! `info!(target: "access", "request.id" = id; "served")`. [`init`] is called once, by the program.

use std::any::Any;
use std::fmt::Display;
use std::io::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{LevelFilter, Record};

use crate::config::{LogFormat, LoggingConfig};

/// Libraries that report what we handle and report ourselves (a client that went away, a refused
/// connection). At more than warnings some of them write out request headers and bodies, that is
/// keys and prompts: from these only warnings, whatever the level.
const NOISY: [&str; 6] = ["pingora", "sqlx", "sea_", "hyper", "h2", "rustls"];
/// Field names that the line itself uses; a pair of that name is written `kv.…`.
const RESERVED: [&str; 4] = ["ts", "level", "target", "msg"];

/// Sends log records to standard error from now on, panics among them. A second call changes
/// nothing.
pub fn init(config: &LoggingConfig) {
    let format = config.format;
    let mut builder = env_logger::Builder::new();
    // `log::set_max_level` is what decides, so that a running server can be told to say more.
    builder.filter_level(LevelFilter::Trace);
    for library in NOISY {
        builder.filter_module(library, LevelFilter::Warn);
    }
    builder.target(env_logger::Target::Stderr);
    builder.format(move |out, record| out.write_all(&line(format, Utc::now(), record)));
    if builder.try_init().is_ok() {
        log::set_max_level(config.level);
        std::panic::set_hook(Box::new(|info| {
            let location = info.location().map(ToString::to_string);
            let location = location.unwrap_or_default();
            let thread = std::thread::current();
            log::error!(
                target: "panic",
                location = location.as_str(),
                thread = thread.name().unwrap_or("unnamed");
                "panicked: {}", panic_text(info.payload())
            );
        }));
    }
}

/// What a panic may say. A text put together at run time may hold anything, a client's data among
/// it; one that stands in the program cannot. The location tells the rest.
fn panic_text(payload: &(dyn Any + Send)) -> &'static str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("(message withheld: it was made at run time)")
}

/// One record, with its newline. Every request writes one: everything goes straight into the line.
fn line(format: LogFormat, now: DateTime<Utc>, record: &Record<'_>) -> Vec<u8> {
    let mut line = Line {
        text: Vec::with_capacity(768),
        format,
    };
    let time = now.to_rfc3339_opts(SecondsFormat::Millis, true);
    // Most messages are constants.
    let made;
    let message = match record.args().as_str() {
        Some(constant) => constant,
        None => {
            made = record.args().to_string();
            &made
        }
    };
    match format {
        LogFormat::Text => {
            line.push(&time);
            line.push(" ");
            line.push(record.level().as_str());
            line.push(" ");
            line.push(record.target());
            line.push(" ");
            line.push_printable(message);
        }
        LogFormat::Json => {
            line.push("{");
            line.pair("ts", &Json::Text(&time));
            line.pair("level", &Json::Text(record.level().as_str()));
            line.pair("target", &Json::Text(record.target()));
            line.pair("msg", &Json::Text(message));
        }
    }
    // `Line` never fails; a value that does is left out, the rest of the line is worth having.
    let _ = record.key_values().visit(&mut line);
    if format == LogFormat::Json {
        line.push("}");
    }
    line.push("\n");
    line.text
}

/// A line that is being written. Writing to memory cannot fail.
struct Line {
    text: Vec<u8>,
    format: LogFormat,
}

/// A value in JSON's terms.
enum Json<'a> {
    Text(&'a str),
    /// A number, `true`, `false` or `null`: stands as it is.
    Bare(&'a dyn Display),
}

impl Line {
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
                    Json::Text(text) if is_plain(text) => self.push(text),
                    Json::Text(text) => self.quoted(text),
                }
            }
            LogFormat::Json => {
                if !self.text.ends_with(b"{") {
                    self.push(",");
                }
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
        // A text always has a JSON form.
        let _ = serde_json::to_writer(&mut self.text, text);
    }
}

/// Whether a value needs no quotes in a text line.
fn is_plain(text: &str) -> bool {
    if text.is_empty() {
        return false;
    }
    if text.is_ascii() {
        return text
            .bytes()
            .all(|b| matches!(b, b'!'..=b'~') && b != b'"' && b != b'=');
    }
    !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}

impl<'kvs> VisitSource<'kvs> for Line {
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
struct Pair<'a> {
    line: &'a mut Line,
    key: &'a str,
}

impl Pair<'_> {
    fn bare(&mut self, value: impl Display) -> Result<(), kv::Error> {
        self.line.pair(self.key, &Json::Bare(&value));
        Ok(())
    }

    fn text(&mut self, value: &str) -> Result<(), kv::Error> {
        self.line.pair(self.key, &Json::Text(value));
        Ok(())
    }
}

impl<'v> VisitValue<'v> for Pair<'_> {
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
    use log::Level;

    fn written(format: LogFormat, message: &str, pairs: &[(&str, Value<'_>)]) -> String {
        let now = "2026-11-21T00:00:00Z".parse().unwrap();
        let line = line(
            format,
            now,
            &Record::builder()
                .level(Level::Info)
                .target("tollgate::proxy")
                .args(format_args!("{message}"))
                .key_values(&pairs)
                .build(),
        );
        String::from_utf8(line).unwrap()
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

    #[test]
    fn a_panic_says_only_what_stands_in_the_program() {
        assert_eq!(panic_text(&"a literal"), "a literal");
        let made = String::from("the key sk-123 is bad");
        assert!(panic_text(&made).contains("withheld"));
        assert!(panic_text(&7).contains("withheld"));
    }
}
