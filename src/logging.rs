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
    let format = config.format;
    let logger = LOGGER.get_or_init(|| Logger {
        format,
        sink: Sink::standard_error(move |lost| lost_lines(format, lost)),
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
        let write = |text: &mut Vec<u8>| {
            text.clear();
            let mut line = Line::begin(text, self.format, Utc::now(), level, target, message);
            fields(&mut line);
            line.end();
            // What is wrong is seen at once, even if nothing else is written any more.
            self.sink.push(text, level <= Level::Warn);
        };
        let mut write = Some(write);
        let mut once = |text: &mut Vec<u8>| {
            if let Some(write) = write.take() {
                write(text);
            }
        };
        // A value that logs while it is being logged gets a line of its own, and so does what a
        // thread logs when its line is gone already, at its end.
        let kept = LINE.try_with(|kept| kept.try_borrow_mut().map(|mut kept| once(&mut kept)));
        if !matches!(kept, Ok(Ok(()))) {
            once(&mut Vec::new());
        }
    }
}

/// The line that says that the lines before it are not all there.
fn lost_lines(format: LogFormat, lost: u64) -> Vec<u8> {
    let mut text = Vec::new();
    let message = "lines were lost: nobody took them";
    let target = module_path!();
    let mut line = Line::begin(&mut text, format, Utc::now(), Level::Warn, target, message);
    line.number("lines", lost);
    line.end();
    text
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
    use std::sync::Arc;

    #[test]
    fn libraries_only_warn() {
        let logger = Logger {
            format: LogFormat::Text,
            sink: Sink::standard_error(|_| vec![]),
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
    fn a_thread_that_logs_at_its_end_is_heard() {
        /// Logs when it is dropped, and says whether the thread still had its line then.
        struct AtTheEnd(std::sync::mpsc::Sender<bool>, Arc<Logger>);
        impl Drop for AtTheEnd {
            fn drop(&mut self) {
                self.1.line(Level::Warn, "here", "the end", |_| {});
                let _ = self.0.send(LINE.try_with(|_| ()).is_ok());
            }
        }
        thread_local! {
            static BEFORE: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) };
            static AFTER: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) };
        }
        let (lines, written) = std::sync::mpsc::channel();
        let (had_line, seen) = std::sync::mpsc::channel();
        let logger = Arc::new(Logger {
            format: LogFormat::Text,
            sink: Sink::to(lines),
        });
        let thread = std::thread::spawn(move || {
            // In whichever order they are dropped, one of the two comes after the line.
            BEFORE.set(Some(AtTheEnd(had_line.clone(), logger.clone())));
            logger.line(Level::Warn, "here", "the beginning", |_| {});
            AFTER.set(Some(AtTheEnd(had_line, logger)));
        });
        thread.join().unwrap();
        assert!(seen.try_iter().any(|had_line| !had_line));
        let text = String::from_utf8(written.try_iter().flatten().collect()).unwrap();
        let messages: Vec<&str> = text
            .lines()
            .filter_map(|l| l.split(" here ").nth(1))
            .collect();
        assert_eq!(messages, ["the beginning", "the end", "the end"]);
    }

    #[test]
    fn the_line_about_lost_ones_has_the_form_of_all_lines() {
        let text = |format| String::from_utf8(lost_lines(format, 7)).unwrap();
        let line = text(LogFormat::Text);
        assert!(
            line.ends_with(" WARN tollgate::logging lines were lost: nobody took them lines=7\n")
        );
        let line: serde_json::Value = serde_json::from_str(&text(LogFormat::Json)).unwrap();
        assert_eq!(
            (&line["level"], &line["lines"]),
            (&"WARN".into(), &7.into())
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
