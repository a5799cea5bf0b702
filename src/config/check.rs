//! From configuration as written to configuration as checked: defaults, then the file, then the
//! environment, with every mistake named at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono_tz::Tz;

use super::field::{Field, Table};
use super::mistakes::{Mistake, Mistakes};
use super::node::Node;
use super::raw::Input;
use super::report::{Origin, Report};
use super::secrets::{long_secret, secret};
use super::{
    BillingConfig, BillingMode, Config, JournalConfig, LogFormat, LoggingConfig, Reservation,
    StrictOutput, env, gateway, keys, server,
};
use crate::domain::Multiplier;

/// Beside the configuration file, or where the program was started.
const DEFAULT_DATA_DIR: &str = "./data";
/// Days and windows begin at the same moment everywhere.
const DEFAULT_TIMEZONE: Tz = Tz::UTC;

/// Reserved for output by `available`: longer than nearly every answer, and a small part of what models
/// allow themselves.
const DEFAULT_RESERVE_OUTPUT_TOKENS: u64 = 8_192;
/// As long as for a slot: to a client it is the same wait.
const DEFAULT_MONEY_WAIT: Duration = Duration::from_secs(30);
/// Some ten thousand requests; two such files are set aside on disk.
const DEFAULT_SEGMENT_BYTES: u64 = 16 << 20;
/// Below the smallest a request would hardly fit; above the largest a replay would be long.
const SEGMENT_BYTES: std::ops::RangeInclusive<i128> = 65_536..=1_073_741_824;
/// What a power cut may lose, against a flush to the disk every time.
const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_millis(50);

static EMPTY: Node = Node::Map(Vec::new());

/// Reads the configuration: built-in defaults, over them `file`, over that the `TOLLGATE_`
/// variables of `env` (which is also where secrets written `${NAME}` come from).
///
/// # Errors
/// Every mistake of the file and the environment.
pub fn load(file: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Config, Mistakes> {
    let mut mistakes = Vec::new();
    let inputs: Vec<Input> = file
        .and_then(|path| Input::read(path, &mut mistakes))
        .into_iter()
        .collect();
    let base = working_directory(&mut mistakes);
    load_from(&inputs, &base, env, mistakes)
}

/// The built-in defaults with this data directory.
pub fn default_with(data_dir: impl Into<PathBuf>) -> Config {
    let data_dir = data_dir.into();
    // Only an empty path cannot be made absolute; it stays as it is.
    let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
    let env = BTreeMap::new();
    let report = Report::new(&[], &env, &data_dir);
    let config = check(&EMPTY, &report);
    Config { data_dir, ..config }
}

/// The folder relative paths are relative to where no file says otherwise.
pub(super) fn working_directory(mistakes: &mut Vec<Mistake>) -> PathBuf {
    std::env::current_dir().unwrap_or_else(|error| {
        mistakes.push(Mistake {
            place: "working directory".into(),
            value: None,
            problem: error.to_string(),
            expected: "a directory that exists".into(),
        });
        PathBuf::from("/")
    })
}

fn load_from(
    inputs: &[Input],
    base: &Path,
    env: &BTreeMap<String, String>,
    mut mistakes: Vec<Mistake>,
) -> Result<Config, Mistakes> {
    let documents = inputs.first().map_or(&[][..], |input| &input.documents);
    if let (Some(input), true) = (inputs.first(), documents.len() > 1) {
        mistakes.push(Mistake {
            place: input.name.clone(),
            value: None,
            problem: format!("holds {} YAML documents", documents.len()),
            expected: "one".into(),
        });
    }
    let mut root = documents.first().cloned().unwrap_or(Node::Null);
    env::lay_over(&mut root, env, &mut mistakes);
    let report = Report::new(inputs, env, base);
    let config = check(&root, &report);
    mistakes.extend(report.finish().0);
    if mistakes.is_empty() {
        Ok(config)
    } else {
        Err(Mistakes(mistakes))
    }
}

fn check<'a>(root: &'a Node, report: &'a Report<'a>) -> Config {
    let origin = Origin {
        input: Some(0),
        document: 0,
        env: None,
    };
    let root = if *root == Node::Null { &EMPTY } else { root };
    let top = Field::top(root, origin, report);
    let or_empty = |table: Option<Table<'a>>| {
        table.unwrap_or_else(|| Table::empty(Field::top(&EMPTY, origin, report)))
    };
    let top = or_empty(top.table(&keys::children("")));
    let of = |name: &'static str| or_empty(section(&top, name, name));

    let (server_table, admin_table) = (of("server"), of("admin"));
    let (server, admin) = (server::server(&server_table), server::admin(&admin_table));
    server::admin_beside_server(&server, &admin, &server_table, &admin_table);
    for (section, why) in [
        ("database", "SQLite in data_dir"),
        ("redis", "live state in this process"),
    ] {
        if let Some(url) = of(section).given("url") {
            no_url_yet(&url, why);
        }
    }
    Config {
        server,
        admin,
        data_dir: top.or("data_dir", default_data_dir(&top), data_dir),
        gateway: gateway::gateway(&of("gateway")),
        concurrency: gateway::concurrency(&of("concurrency")),
        scheduling: gateway::scheduling(&of("scheduling")),
        billing: billing(&of("billing")),
        timezone: top.or("timezone", DEFAULT_TIMEZONE, timezone),
        secret: of("security").or_null("secret", long_secret),
        logging: logging(&of("logging")),
    }
}

/// A section; one with nothing in it (`server:`) is as good as none.
pub(super) fn section<'a>(parent: &Table<'a>, name: &'static str, path: &str) -> Option<Table<'a>> {
    parent.given(name)?.table(&keys::children(path))
}

fn default_data_dir(top: &Table<'_>) -> PathBuf {
    top.field.resolve(DEFAULT_DATA_DIR)
}

fn data_dir(field: &Field<'_>) -> Option<PathBuf> {
    const EXPECTED: &str = "the path of a directory; it is created when it is not there";
    let text = field.text(EXPECTED)?;
    let path = field.resolve(text);
    if text.is_empty() {
        field.bad("empty", EXPECTED);
    } else if path.exists() && !path.is_dir() {
        field.bad(format!("{} is not a directory", path.display()), EXPECTED);
    }
    Some(path)
}

/// One message for what a later version brings; never the URL itself, it may hold a password.
fn no_url_yet(field: &Field<'_>, why: &str) {
    const EXPECTED: &str = "null";
    let field = field.clone().secretly();
    let Some(url) = secret(&field, EXPECTED) else {
        return;
    };
    let scheme = url.expose().split(':').next().unwrap_or_default();
    let problem = match scheme {
        "postgres" | "postgresql" => "PostgreSQL is not supported by this version",
        "redis" | "rediss" => "Redis is not supported by this version",
        "sqlite" => "the SQLite file is always the one in data_dir",
        _ => "not a URL this version knows",
    };
    field.bad(problem, format!("{EXPECTED}, which stands for {why}"));
}

fn billing(table: &Table<'_>) -> BillingConfig {
    BillingConfig {
        mode: table.or("mode", BillingMode::Standard, |f| {
            f.choice(&[
                ("standard", BillingMode::Standard),
                ("simple", BillingMode::Simple),
            ])
        }),
        reservation: table.or("reservation", Reservation::Available, |f| {
            f.choice(&[
                ("available", Reservation::Available),
                ("strict", Reservation::Strict),
                ("none", Reservation::None),
            ])
        }),
        prices: table.or_null("prices", prices_file),
        default_rate_multiplier: table.or("default_rate_multiplier", Multiplier::ONE, |f| {
            f.decimal("a decimal number of at most 6 digits behind the point, such as \"1.0\"")
        }),
        reserve_output_tokens: table.or(
            "reserve_output_tokens",
            DEFAULT_RESERVE_OUTPUT_TOKENS,
            |f| f.whole(0..=10_000_000, "0 to 10000000 tokens"),
        ),
        strict_output: table.or("strict_output", StrictOutput::Lower, |f| {
            f.choice(&[
                ("lower", StrictOutput::Lower),
                ("refuse", StrictOutput::Refuse),
            ])
        }),
        wait: table.or("wait_ms", DEFAULT_MONEY_WAIT, gateway::wait_ms),
        journal: journal(table),
    }
}

fn journal(table: &Table<'_>) -> JournalConfig {
    let section = section(table, "journal", "billing.journal");
    let mut config = JournalConfig {
        segment_bytes: DEFAULT_SEGMENT_BYTES,
        sync_interval: DEFAULT_SYNC_INTERVAL,
    };
    if let Some(section) = section {
        config.segment_bytes = section.or("segment_bytes", config.segment_bytes, |f| {
            f.whole(SEGMENT_BYTES, "65536 (64 KiB) to 1073741824 (1 GiB)")
        });
        config.sync_interval = section.or("sync_interval_ms", config.sync_interval, |f| {
            gateway::milliseconds(f, 1..=1000, "1 to 1000 milliseconds")
        });
    }
    config
}

fn prices_file(field: &Field<'_>) -> Option<PathBuf> {
    const EXPECTED: &str = "a readable price map (JSON), or null for the built-in one";
    let path = field.resolve(field.text(EXPECTED)?);
    let opened = std::fs::File::open(&path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_file() => Some(path),
        Ok(_) => {
            field.bad(format!("{} is not a file", path.display()), EXPECTED);
            None
        }
        Err(error) => {
            field.bad(
                format!("{} cannot be read: {error}", path.display()),
                EXPECTED,
            );
            None
        }
    }
}

/// A name of the time zone database.
pub(super) fn timezone(field: &Field<'_>) -> Option<Tz> {
    const EXPECTED: &str = "UTC, or a name of the time zone database such as Europe/Berlin";
    let text = field.text(EXPECTED)?;
    if let Ok(zone) = text.parse() {
        return Some(zone);
    }
    field.bad("not a time zone", EXPECTED);
    None
}

fn logging(table: &Table<'_>) -> LoggingConfig {
    use log::LevelFilter;
    LoggingConfig {
        format: table.or("format", LogFormat::Text, |f| {
            f.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
        }),
        level: table.or("level", LevelFilter::Info, |f| {
            f.choice(&[
                ("off", LevelFilter::Off),
                ("error", LevelFilter::Error),
                ("warn", LevelFilter::Warn),
                ("info", LevelFilter::Info),
                ("debug", LevelFilter::Debug),
                ("trace", LevelFilter::Trace),
            ])
        }),
    }
}
