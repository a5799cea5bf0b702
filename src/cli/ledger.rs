//! `tollgate ledger ...`, and what all commands share that make ledger entries.

use std::path::Path;

use chrono::Utc;
use clap::{Args, Subcommand};

use super::open::{self, Failure};
use super::usage::moment::Moment;
use super::{Output, table};
use crate::domain::text::OneLine;
use crate::storage::{LedgerMismatch, Posted, Posting};

/// Entries fetched at a time.
const PAGE: u64 = 1_000;

/// Commands on the ledger.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check that balances, ledger entries, usage records and used quotas agree; exit 1 if not.
    Verify {
        /// How.
        #[command(flatten)]
        output: Output,
    },
    /// List entries with their notes, oldest first: charges, credits, adjustments (debits) and reversals
    /// (refunds).
    List {
        /// How far back: 30m, 24h, 7d, a day such as 2026-11-01, or a moment such as 2026-11-01T00:00:00Z.
        #[arg(long, default_value = "24h", value_parser = Moment::parse)]
        since: Moment,
        /// Only this user's.
        #[arg(long)]
        user: Option<String>,
        /// JSON instead of a table, one entry a line.
        #[arg(long)]
        json: bool,
    },
}

/// What goes with an entry that a command makes.
#[derive(Debug, Args)]
pub struct Entry {
    /// A name for this command: given again with the same name, nothing is entered a second time.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// A line for whoever reads the ledger.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

impl Entry {
    /// As the store takes it.
    pub fn posting(&self, command: &'static str) -> Posting<'_> {
        Posting {
            idempotency_key: self.idempotency_key.as_deref(),
            note: self.note.as_deref(),
            command: Some(command),
        }
    }
}

/// What was done, as a line.
pub fn answer(done: &str, posted: &Posted) -> String {
    let balance = posted.balance;
    if posted.repeated {
        format!("done before with this key: {done}; the balance after it was {balance} USD\n")
    } else {
        format!("{done}; the balance is {balance} USD\n")
    }
}

/// Runs one.
pub fn run(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    match command {
        Command::Verify { output } => verify(file, output),
        Command::List { since, user, json } => list(file, since, user.as_deref(), json),
    }
}

fn list(file: Option<&Path>, since: Moment, user: Option<&str>, json: bool) -> Result<(), Failure> {
    const COLUMNS: [&str; 7] = [
        "created_at",
        "user",
        "kind",
        "amount",
        "request_id",
        "command",
        "note",
    ];
    let since = since.begin(Utc::now(), open::config(file)?.timezone);
    open::with_store(file, async |store| {
        let (mut after, mut all) = (0, Vec::new());
        loop {
            let page = store.ledger_entries(user, since, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.entry;
            if !json {
                all.extend(page);
                continue;
            }
            // Written page by page: there may be millions.
            let mut lines = String::new();
            for entry in &page {
                lines.push_str(&serde_json::to_string(entry)?);
                lines.push('\n');
            }
            table::write_out(&lines)?;
        }
        if !json {
            table::list(&all, &COLUMNS, false)?;
        }
        Ok(())
    })
}

fn verify(file: Option<&Path>, output: Output) -> Result<(), Failure> {
    let found = open::with_store(file, async |store| Ok(store.verify_ledger().await?))?;
    if output.json {
        table::list(&found, &[], true)?;
    } else {
        table::write_out(&lines(&found))?;
    }
    verdict(found.len())
}

/// One mismatch a line.
fn lines(found: &[LedgerMismatch]) -> String {
    if found.is_empty() {
        return "balances, ledger entries, usage records and used quotas agree\n".to_owned();
    }
    let lines = found.iter();
    let lines = lines.map(|mismatch| format!("{}\n", OneLine(&mismatch.to_string())));
    lines.collect()
}

fn verdict(mismatches: usize) -> Result<(), Failure> {
    match mismatches {
        0 => Ok(()),
        1 => Err(Failure::Message("the ledger has a mismatch".into())),
        count => Err(Failure::Message(format!(
            "the ledger has {count} mismatches"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Money;

    #[test]
    fn a_ledger_that_does_not_agree_is_a_failure_with_its_rows() {
        assert!(verdict(0).is_ok());
        assert!(lines(&[]).contains("agree"));
        let mismatch = |user: &str| LedgerMismatch::Balance {
            user: user.to_owned(),
            balance: Money(1),
            entries: Money::ZERO,
        };
        let found = [mismatch("a\nb"), mismatch("c")];
        assert_eq!(
            lines(&found),
            "user a\\nb: balance 0.000000001, sum of entries 0\n\
             user c: balance 0.000000001, sum of entries 0\n"
        );
        for (count, said) in [(1, "a mismatch"), (2, "2 mismatches")] {
            let Err(Failure::Message(message)) = verdict(count) else {
                panic!("{count} are no failure");
            };
            assert!(message.contains(said), "{message}");
        }
    }
}
