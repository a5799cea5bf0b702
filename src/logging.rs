//! Log output: one line a record on standard error, as text for people or JSON for machines.
//!
//! Rooms log through the `log` macros, with fields as key-value pairs dotted by noun:
//! `info!("account.id" = id; "resumed")`. The access log, which every request writes, uses
//! [`write`]. [`init`] is called once, by the program; [`flush`] before it ends.

mod line;
mod sink;

use std::any::Any;
use std::cell::RefCell;
use std::sync::OnceLock;

use chrono::Utc;
use log::{Level, Log, Metadata, Record};

pub use line::Line;
use sink::Sink;

use crate::config::{LogFormat, LoggingConfig};

/// Libraries that report what we handle and report ourselves (a client that went away, a refused
/// connection). At more than warnings some of them write out request headers and bodies, that is
/// keys and prompts: from these only warnings, whatever the level.
const NOISY: [&str; 6] = ["pingora", "sqlx", "sea_", "hyper", "h2", "rustls"];

static LOGGER: OnceLock<Logger> = OnceLock::new();

thread_local! {
    /// The line this thread is writing, kept for its memory.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Sends log records to standard error from now on, panics among them. A second call changes
/// nothing.
pub fn init(config: &LoggingConfig) {
    let logger = LOGGER.get_or_init(|| Logger {
        format: config.format,
        sink: Sink::standard_error(),
    });
    if log::set_logger(logger).is_ok() {
        // This is what decides, so that a running server can be told to say more.
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

/// Writes out what is still held back. Nothing is lost when this is the last thing a program does.
pub fn flush() {
    if let Some(logger) = LOGGER.get() {
        logger.sink.flush();
    }
}

/// Writes one line at `level` whose fields `fields` adds; cheaper than the `log` macros where there
/// are many. Nothing happens before [`init`], or when the level that is written is lower.
pub fn write(level: Level, target: &str, message: &str, fields: impl FnOnce(&mut Line<'_>)) {
    let Some(logger) = LOGGER.get() else { return };
    if log::max_level() >= level {
        logger.line(level, target, message, fields);
    }
}

/// A panic's text. One put together at run time may hold anything, a client's data among it; one
/// that stands in the program cannot. The location tells the rest.
fn panic_text(payload: &(dyn Any + Send)) -> &'static str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("(message withheld: it was made at run time)")
}

struct Logger {
    format: LogFormat,
    sink: Sink,
}

impl Logger {
    fn line(&self, level: Level, target: &str, message: &str, fields: impl FnOnce(&mut Line<'_>)) {
        LINE.with(|kept| {
            // A value that logs while it is being logged gets a line of its own.
            let mut own = Vec::new();
            let mut kept = kept.try_borrow_mut();
            let text = kept.as_deref_mut().unwrap_or(&mut own);
            text.clear();
            let mut line = Line::begin(text, self.format, Utc::now(), level, target, message);
            fields(&mut line);
            line.end();
            // What is wrong is seen at once, even if nothing else is written any more.
            self.sink.push(text, level <= Level::Warn);
        });
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
            || !NOISY
                .iter()
                .any(|noisy| metadata.target().starts_with(noisy))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Most messages are constants.
        let made;
        let message = match record.args().as_str() {
            Some(constant) => constant,
            None => {
                made = record.args().to_string();
                &made
            }
        };
        self.line(record.level(), record.target(), message, |line| {
            // `Line` never fails; a value that does is left out, the rest is worth having.
            let _ = record.key_values().visit(line);
        });
    }

    fn flush(&self) {
        self.sink.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_only_warn() {
        let logger = Logger {
            format: LogFormat::Text,
            sink: Sink::standard_error(),
        };
        for (target, level, expected) in [
            ("tollgate::proxy", Level::Debug, true),
            ("pingora_core::server", Level::Warn, true),
            ("pingora_core::server", Level::Info, false),
            ("h2::codec", Level::Debug, false),
            ("sqlx::query", Level::Error, true),
        ] {
            let metadata = Metadata::builder().target(target).level(level).build();
            assert_eq!(logger.enabled(&metadata), expected, "{target} {level}");
        }
    }

    #[test]
    fn a_panic_says_only_what_stands_in_the_program() {
        assert_eq!(panic_text(&"a literal"), "a literal");
        let made = String::from("the key sk-123 is bad");
        assert!(panic_text(&made).contains("withheld"));
        assert!(panic_text(&7).contains("withheld"));
    }
}
