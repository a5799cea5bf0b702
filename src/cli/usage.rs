//! `tollgate usage` and `tollgate usage records`

use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand, ValueEnum};

use super::ledger::{Entry, answer};
use super::open::{self, Failure};
use super::table;
use crate::storage::{UsageBy, UsageFilter};

/// Records fetched at a time.
const PAGE: u64 = 1_000;

/// Options of `usage`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// About single requests instead of totals.
    #[command(subcommand)]
    single: Option<Single>,
    /// How far back: 30m, 24h, 7d, or a moment such as 2026-11-01T00:00:00Z.
    #[arg(long, default_value = "24h", value_parser = since)]
    since: DateTime<Utc>,
    /// One line for each of these.
    #[arg(long)]
    by: Option<By>,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// `usage records` and `usage refund`
#[derive(Debug, Subcommand)]
enum Single {
    /// Give back what a request was charged, once: to the balance, if that paid. The key's used quota
    /// and the running windows it was counted in are lowered by it, too.
    Refund {
        /// The request's `request_id`, which is its `x-request-id`.
        request_id: String,
        /// What goes with the entry.
        #[command(flatten)]
        entry: Entry,
    },
    /// One request a line, oldest first.
    Records {
        /// How far back: 30m, 24h, 7d, or a moment such as 2026-11-01T00:00:00Z.
        #[arg(long, default_value = "24h", value_parser = since)]
        since: DateTime<Utc>,
        /// Only this user's.
        #[arg(long)]
        user: Option<String>,
        /// One JSON object a line, with all fields.
        #[arg(long)]
        json: bool,
    },
}

/// What totals are grouped by.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    User,
    Key,
    Account,
    Model,
    Group,
}

impl From<By> for UsageBy {
    fn from(by: By) -> UsageBy {
        match by {
            By::User => UsageBy::User,
            By::Key => UsageBy::Key,
            By::Account => UsageBy::Account,
            By::Model => UsageBy::Model,
            By::Group => UsageBy::Group,
        }
    }
}

fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
        return Ok(moment.with_timezone(&Utc));
    }
    let wrong = || "write a span such as 30m, 24h, 7d or a moment such as 2026-11-01T00:00:00Z";
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let count: i64 = text[..at].parse().map_err(|_| wrong())?;
    let seconds = match &text[at..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong().to_owned()),
    };
    count
        .checked_mul(seconds)
        .and_then(TimeDelta::try_seconds)
        .and_then(|span| Utc::now().checked_sub_signed(span))
        .ok_or_else(|| "that is too long ago".to_owned())
}

/// Runs it.
pub fn run(file: Option<&Path>, options: &Options) -> Result<(), Failure> {
    match &options.single {
        Some(Single::Refund { request_id, entry }) => refund(file, request_id, entry),
        Some(Single::Records { since, user, json }) => {
            let filter = UsageFilter {
                since: *since,
                user: user.clone(),
            };
            records(file, &filter, *json)
        }
        None => totals(file, options),
    }
}

fn refund(file: Option<&Path>, request_id: &str, entry: &Entry) -> Result<(), Failure> {
    let tz = open::config(file)?.timezone;
    let posting = entry.posting("usage refund");
    let posted = open::with_store(file, async |store| {
        Ok(store.refund(request_id, posting, tz).await?)
    })?;
    let done = format!("gave {} USD back to {}", posted.amount, posted.user);
    table::write_out(&answer(&done, &posted))
}

fn totals(file: Option<&Path>, options: &Options) -> Result<(), Failure> {
    let totals = open::with_store(file, async |store| {
        let by = options.by.map(UsageBy::from);
        Ok(store.usage_totals(options.since, by).await?)
    })?;
    let mut columns = vec![
        "requests",
        "input_tokens",
        "output_tokens",
        "cache_creation_tokens",
        "cache_read_tokens",
        "cost",
        "charge",
    ];
    if options.by.is_some() {
        columns.insert(0, "name");
    }
    table::list(&totals, &columns, options.json)
}

fn records(file: Option<&Path>, filter: &UsageFilter, json: bool) -> Result<(), Failure> {
    const COLUMNS: [&str; 12] = [
        "created_at",
        "request_id",
        "user",
        "account",
        "model",
        "status",
        "outcome",
        "input_tokens",
        "output_tokens",
        "cost",
        "charge",
        "duration_ms",
    ];
    open::with_store(file, async |store| {
        let mut cursor = None;
        let mut all = Vec::new();
        loop {
            let page = store.usage_records(filter, cursor, PAGE).await?;
            let Some(last) = page.last() else { break };
            cursor = Some(last.cursor());
            if json {
                // Written page by page: there may be millions.
                let mut lines = String::new();
                for record in &page {
                    lines.push_str(&serde_json::to_string(record)?);
                    lines.push('\n');
                }
                table::write_out(&lines)?;
            } else {
                all.extend(page);
            }
        }
        if !json {
            table::list(&all, &COLUMNS, false)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_moments() {
        let near = |text: &str, seconds: i64| {
            let span = Utc::now() - since(text).unwrap();
            assert!((span.num_seconds() - seconds).abs() <= 1, "{text}: {span}");
        };
        near("30m", 1_800);
        near("24h", 86_400);
        near("7d", 604_800);
        assert_eq!(
            since("2026-11-01T00:00:00Z").unwrap().timestamp(),
            1_793_491_200
        );
        for wrong in ["", "24", "h", "1y", "-1h", "99999999999999d"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }
}
