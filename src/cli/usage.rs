//! `tollgate usage` and `tollgate usage records`

pub mod moment;

use std::path::Path;

use chrono::Utc;
use chrono_tz::Tz;
use clap::{Args, Subcommand, ValueEnum};

use super::ledger::{Entry, answer};
use super::open::{self, Failure};
use super::{csv, table};
use crate::storage::{Posted, UsageBy, UsageFilter, UsageRecordView};
use moment::Moment;

/// Records fetched at a time.
const PAGE: u64 = 1_000;

/// Options of `usage`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// About single requests instead of totals.
    #[command(subcommand)]
    single: Option<Single>,
    #[command(flatten)]
    wanted: Wanted,
    /// One line for each of these.
    #[arg(long)]
    by: Option<By>,
    #[command(flatten)]
    form: Form,
}

/// `usage records` and `usage refund`
#[derive(Debug, Subcommand)]
enum Single {
    /// Give back what a request was charged, once: to the balance, if that paid. The key's used quota
    /// and the running windows it was counted in are lowered by it, too. The record stays as it is:
    /// `ledger list` shows the refund.
    Refund {
        /// The request's `request_id`, which is its `x-request-id`.
        request_id: String,
        /// What goes with the entry.
        #[command(flatten)]
        entry: Entry,
    },
    /// One request a line, oldest first.
    Records {
        #[command(flatten)]
        wanted: Wanted,
        /// As JSON, one object a line with all fields; as CSV with all fields.
        #[command(flatten)]
        form: Form,
    },
}

/// Which requests.
#[derive(Debug, Args)]
struct Wanted {
    /// How far back: 30m, 24h, 7d, a day such as 2026-11-01, or a moment such as 2026-11-01T00:00:00Z.
    #[arg(long, default_value = "24h", value_parser = Moment::parse)]
    since: Moment,
    /// Only what arrived before: the same forms; a day is meant to its end.
    #[arg(long, value_parser = Moment::parse)]
    until: Option<Moment>,
    /// Only this user's.
    #[arg(long)]
    user: Option<String>,
    /// Only with this API key.
    #[arg(long)]
    key: Option<String>,
    /// Only where this account made the last attempt.
    #[arg(long)]
    account: Option<String>,
    /// Only billed as this model.
    #[arg(long)]
    model: Option<String>,
    /// Only in this group.
    #[arg(long)]
    group: Option<String>,
}

impl Wanted {
    fn filter(&self, tz: Tz) -> UsageFilter {
        let now = Utc::now();
        UsageFilter {
            since: self.since.begin(now, tz),
            until: self.until.map(|moment| moment.end(now, tz)),
            user: self.user.clone(),
            key: self.key.clone(),
            account: self.account.clone(),
            model: self.model.clone(),
            group: self.group.clone(),
        }
    }
}

/// How it is written.
#[derive(Clone, Copy, Debug, Args)]
struct Form {
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Comma-separated values instead of a table, with all fields and a header.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// What totals are grouped by.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    User,
    Key,
    Account,
    Model,
    Group,
    /// Of the configured time zone.
    Day,
}

impl By {
    fn in_zone(self, tz: Tz) -> UsageBy {
        match self {
            By::User => UsageBy::User,
            By::Key => UsageBy::Key,
            By::Account => UsageBy::Account,
            By::Model => UsageBy::Model,
            By::Group => UsageBy::Group,
            By::Day => UsageBy::Day(tz),
        }
    }
}

/// Runs it.
pub fn run(file: Option<&Path>, options: &Options) -> Result<(), Failure> {
    let tz = open::config(file)?.timezone;
    match &options.single {
        Some(Single::Refund { request_id, entry }) => refund(file, request_id, entry, tz),
        Some(Single::Records { wanted, form }) => records(file, &wanted.filter(tz), *form),
        None => {
            let by = options.by.map(|by| by.in_zone(tz));
            totals(file, &options.wanted.filter(tz), by, options.form)
        }
    }
}

fn refund(file: Option<&Path>, request_id: &str, entry: &Entry, tz: Tz) -> Result<(), Failure> {
    let posting = entry.posting("usage refund");
    let posted = open::with_store(file, async |store| {
        Ok(store.refund(request_id, posting, tz).await?)
    })?;
    table::write_out(&answer(&given_back(&posted), &posted))
}

fn given_back(posted: &Posted) -> String {
    match &posted.subscription {
        Some((name, amount)) => {
            format!("gave {amount} USD back to the limits of the subscription {name}")
        }
        None => format!("gave {} USD back to {}", posted.amount, posted.user),
    }
}

fn totals(
    file: Option<&Path>,
    filter: &UsageFilter,
    by: Option<UsageBy>,
    form: Form,
) -> Result<(), Failure> {
    const ALL: [&str; 13] = [
        "name",
        "requests",
        "input_tokens",
        "output_tokens",
        "cache_creation_tokens",
        "cache_creation_5m_tokens",
        "cache_creation_1h_tokens",
        "cache_read_tokens",
        "image_output_tokens",
        "image_count",
        "unpriced",
        "cost",
        "charge",
    ];
    const TABLE: [&str; 9] = [
        "name",
        "requests",
        "input_tokens",
        "output_tokens",
        "cache_creation_tokens",
        "cache_read_tokens",
        "unpriced",
        "cost",
        "charge",
    ];
    let totals = open::with_store(file, async |store| {
        Ok(store.usage_totals(filter, by).await?)
    })?;
    // Of everything together there is no name.
    let first = usize::from(by.is_none());
    if form.csv {
        let columns = &ALL[first..];
        csv::header(columns)?;
        return csv::rows(&totals, columns);
    }
    table::list(&totals, &TABLE[first..], form.json)
}

fn records(file: Option<&Path>, filter: &UsageFilter, form: Form) -> Result<(), Failure> {
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
    if form.csv {
        csv::header(&UsageRecordView::FIELDS)?;
    }
    open::with_store(file, async |store| {
        let mut cursor = None;
        let mut all = Vec::new();
        loop {
            let page = store.usage_records(filter, cursor, PAGE).await?;
            let Some(last) = page.last() else { break };
            cursor = Some(last.cursor());
            // Written page by page: there may be millions.
            if form.csv {
                csv::rows(&page, &UsageRecordView::FIELDS)?;
            } else if form.json {
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
        if !form.csv && !form.json {
            table::list(&all, &COLUMNS, false)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Money;

    #[test]
    fn it_is_said_to_whom_something_was_given_back() {
        let mut posted = Posted {
            user: "alice".to_owned(),
            amount: Money::from_usd(2),
            subscription: None,
            balance: Money::from_usd(9),
            repeated: false,
        };
        assert_eq!(given_back(&posted), "gave 2 USD back to alice");
        posted.amount = Money::ZERO;
        posted.subscription = Some(("alice/sub".to_owned(), Money::from_usd(3)));
        assert_eq!(
            answer(&given_back(&posted), &posted),
            "gave 3 USD back to the limits of the subscription alice/sub; the balance is 9 USD\n"
        );
    }
}
