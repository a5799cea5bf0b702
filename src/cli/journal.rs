//! `tollgate journal inspect`

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::open::{self, Failure};
use super::table;
use crate::billing::journal::replay::{Request, Requests};
use crate::billing::journal::scan::Blank;
use crate::billing::journal::{self, Entry, Scan};
use crate::domain::Money;

/// Commands about the journal.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read the journal in the data directory, also while a server runs: what it has by kind, what
    /// running requests hold, what cannot be read, and its last entries.
    Inspect(Inspect),
}

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Show so many of the last entries (with --open: of the open requests); 0 = none.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// The requests without an end instead of the last entries.
    #[arg(long)]
    open: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The id, 16 hexadecimal digits; null when there is no journal.
    journal: Option<String>,
    /// The id of the database that it goes to, likewise; null when no segment says it.
    database: Option<String>,
    segments: usize,
    /// By kind.
    entries: BTreeMap<&'static str, u64>,
    open_requests: usize,
    /// What they hold, USD.
    reserved: Money,
    /// The place behind the last entry.
    end: Option<String>,
    /// Behind it: an entry that was being written at a crash, or is being written now.
    torn_bytes: u64,
    damage: Vec<String>,
    /// Segments without a header and without entries.
    blank: Vec<String>,
    lines: VecDeque<Line>,
}

/// One entry, or one open request.
#[derive(Debug, Serialize)]
struct Line {
    /// Segment and offset; null for an open request.
    at: Option<String>,
    kind: &'static str,
    request_id: String,
    user_id: Option<i64>,
    user: Option<String>,
    api_key: Option<String>,
    account: Option<String>,
    model: Option<String>,
    /// What is held, USD.
    reserved: Option<Money>,
    /// What is paid, USD.
    charge: Option<Money>,
    output_bytes: Option<u64>,
    created_at: Option<String>,
}

/// Runs it.
pub fn run(file: Option<&Path>, command: &Command) -> Result<(), Failure> {
    let Command::Inspect(options) = command;
    let directory = open::config(file)?.data_dir.join(journal::DIRECTORY);
    if !directory.is_dir() {
        return Err(Failure::Message(format!(
            "there is no journal in {}; is a -c FILE missing?",
            directory.display()
        )));
    }
    let report = inspect(&directory, options)?;
    if options.json {
        return table::write_out(&format!("{}\n", serde_json::to_string_pretty(&report)?));
    }
    table::write_out(&text(&report, options.open)?)
}

fn inspect(directory: &Path, options: &Inspect) -> Result<Report, Failure> {
    let mut report = Report::default();
    let mut requests = Requests::default();
    let mut scan = Scan::new(directory)?;
    for scanned in scan.by_ref() {
        let at = scanned.at;
        match scanned.entry {
            Ok(entry) => {
                *report.entries.entry(entry.kind()).or_default() += 1;
                if !options.open && options.limit > 0 {
                    if report.lines.len() == options.limit {
                        report.lines.pop_front();
                    }
                    let at = format!("{}:{}", at.segment, at.offset);
                    report.lines.push_back(Line::of_entry(at, &entry));
                }
                requests.take(entry);
            }
            Err(damage) => report.damage.push(format!("{at}: {damage}")),
        }
    }
    report.journal = scan.journal().map(|id| format!("{id:016x}"));
    report.database = scan.database().map(|id| format!("{id:016x}"));
    report.segments = scan.segments();
    report.blank = scan.blank().iter().map(blank).collect();
    report.torn_bytes = scan.tail().map_or(0, |tail| tail.torn_bytes);
    report.end = scan.tail().map(|tail| tail.at.to_string());
    let open = requests.into_open();
    report.open_requests = open.len();
    report.reserved = open.iter().map(|request| request.held().1).sum();
    if options.open {
        let last = open.len().saturating_sub(options.limit);
        report.lines = open[last..].iter().map(Line::of_request).collect();
    }
    Ok(report)
}

fn blank(blank: &Blank) -> String {
    format!(
        "segment {} has no header and no entries, only {} bytes of zeros: a power cut can leave such a \
         segment as the last one; any other has been emptied",
        blank.segment, blank.bytes
    )
}

impl Line {
    fn empty(kind: &'static str, request_id: &str) -> Line {
        Line {
            at: None,
            kind,
            request_id: request_id.to_owned(),
            user_id: None,
            user: None,
            api_key: None,
            account: None,
            model: None,
            reserved: None,
            charge: None,
            output_bytes: None,
            created_at: None,
        }
    }

    fn of_entry(at: String, entry: &Entry) -> Line {
        let line = Line::empty(entry.kind(), entry.request_id());
        let line = match entry {
            Entry::Reserved(reserved) => line.reserved(reserved),
            Entry::Sent(draft) => line.record(&draft.record).held(draft.reserved),
            Entry::Settled(record) => Line {
                charge: Some(record.charge),
                ..line.record(record)
            },
            Entry::Progress { progress, .. } => Line {
                output_bytes: Some(progress.output_bytes),
                ..line
            },
            Entry::Voided { .. } => line,
        };
        Line {
            at: Some(at),
            ..line
        }
    }

    fn of_request(request: &Request) -> Line {
        let (reserved, draft, progress) = request.parts();
        let line = match (reserved, draft) {
            (Some(reserved), _) => Line::empty("reserved", &reserved.request_id).reserved(reserved),
            (None, Some(draft)) => Line::empty("sent", &draft.record.request_id)
                .record(&draft.record)
                .held(draft.reserved),
            (None, None) => Line::empty("reserved", ""),
        };
        Line {
            output_bytes: progress.map(|progress| progress.output_bytes),
            ..line
        }
    }

    fn reserved(self, reserved: &journal::Reserved) -> Line {
        Line {
            user_id: Some(reserved.user_id.0),
            created_at: Some(reserved.at.to_rfc3339()),
            ..self.held(reserved.amount)
        }
    }

    fn held(self, amount: Money) -> Line {
        Line {
            reserved: Some(amount),
            ..self
        }
    }

    fn record(self, record: &crate::domain::UsageRecord) -> Line {
        Line {
            user_id: Some(record.user_id.0),
            user: Some(record.user.clone()),
            api_key: Some(record.api_key.clone()),
            account: Some(record.account.clone()),
            model: Some(record.model.clone()),
            created_at: Some(record.created_at.to_rfc3339()),
            ..self
        }
    }
}

fn text(report: &Report, open: bool) -> Result<String, Failure> {
    let mut kinds: Vec<String> = Vec::new();
    for (kind, count) in &report.entries {
        kinds.push(format!("{count} {kind}"));
    }
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let mut out = String::new();
    for (name, value) in [
        ("journal", or_none(report.journal.as_deref())),
        ("database", or_none(report.database.as_deref())),
        ("segments", report.segments.to_string()),
        (
            "entries",
            or_none(Some(kinds.join(", ").as_str()).filter(|kinds| !kinds.is_empty())),
        ),
        ("open requests", report.open_requests.to_string()),
        ("reserved", format!("{} USD", report.reserved)),
        ("end", or_none(report.end.as_deref())),
        ("torn bytes", report.torn_bytes.to_string()),
    ] {
        out.push_str(&format!("{name:15}{value}\n"));
    }
    for damage in &report.damage {
        out.push_str(&format!("{:15}{damage}\n", "damage"));
    }
    for blank in &report.blank {
        out.push_str(&format!("{:15}{blank}\n", "blank"));
    }
    if report.lines.is_empty() {
        return Ok(out);
    }
    let mut columns = vec![
        "kind",
        "request_id",
        "user",
        "account",
        "model",
        "reserved",
        "charge",
        "output_bytes",
    ];
    columns.insert(0, if open { "created_at" } else { "at" });
    out.push('\n');
    out.push_str(&table::rows(report.lines.iter(), &columns)?);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::billing::journal::{Journal, Options, Reserved};
    use crate::domain::{ApiKeyId, UserId};

    #[test]
    fn what_cannot_be_read_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            directory: directory.path().to_owned(),
            segment_bytes: 1 << 16,
            sync_interval: Duration::from_millis(1),
            database: 0xd1,
        };
        let (journal, _) = Journal::open(options, None).unwrap();
        for request in ["req_1", "req_2", "req_3"] {
            journal.reserved(&Reserved {
                request_id: request.to_owned(),
                user_id: UserId(4),
                api_key_id: ApiKeyId(5),
                amount: "0.25".parse().unwrap(),
                at: chrono::DateTime::UNIX_EPOCH,
            });
        }
        journal.close();
        let path = directory.path().join("00000001.journal");
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.windows(5).position(|it| it == b"req_2").unwrap();
        bytes[second] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        std::fs::write(directory.path().join("00000002.journal"), []).unwrap();
        std::fs::write(directory.path().join("00000003.journal"), [0; 99]).unwrap();
        let options = Inspect {
            limit: 9,
            open: true,
            json: false,
        };
        let report = inspect(directory.path(), &options).unwrap();
        let open: Vec<_> = report.lines.iter().map(|l| &*l.request_id).collect();
        assert_eq!(open, ["req_1", "req_3"]);
        assert_eq!((report.torn_bytes, report.damage.len()), (0, 1));
        let shown = text(&report, false).unwrap();
        for line in [
            "bytes cannot be read; what follows them can\n",
            "blank          segment 2 has no header and no entries, only 0 bytes",
            "blank          segment 3 has no header and no entries, only 99 bytes",
        ] {
            assert!(shown.contains(line), "{shown}");
        }
    }

    #[test]
    fn a_running_journal_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            directory: directory.path().to_owned(),
            segment_bytes: 1 << 16,
            sync_interval: Duration::from_millis(1),
            database: 0xd1,
        };
        let (journal, _) = Journal::open(options, None).unwrap();
        for request in ["req_1", "req_2", "req_3"] {
            journal.reserved(&Reserved {
                request_id: request.to_owned(),
                user_id: UserId(4),
                api_key_id: ApiKeyId(5),
                amount: "0.25".parse().unwrap(),
                at: chrono::DateTime::UNIX_EPOCH,
            });
        }
        journal.voided("req_2");
        journal.close();
        let options = |open, limit| Inspect {
            limit,
            open,
            json: false,
        };
        let report = inspect(directory.path(), &options(false, 2)).unwrap();
        assert_eq!(report.entries, [("reserved", 3), ("voided", 1)].into());
        let last: Vec<_> = report
            .lines
            .iter()
            .map(|l| (l.kind, &*l.request_id))
            .collect();
        assert_eq!(last, [("reserved", "req_3"), ("voided", "req_2")]);
        let shown = text(&report, false).unwrap();
        assert!(
            shown.contains("entries        3 reserved, 1 voided\n"),
            "{shown}"
        );
        assert!(shown.contains("reserved       0.5 USD\n"), "{shown}");
        assert!(
            shown.contains("database       00000000000000d1\n"),
            "{shown}"
        );

        let report = inspect(directory.path(), &options(true, 20)).unwrap();
        let open: Vec<_> = report.lines.iter().map(|l| &*l.request_id).collect();
        assert_eq!(open, ["req_1", "req_3"]);
        assert_eq!(report.segments, 1);
    }
}
