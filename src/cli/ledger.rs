//! `tollgate ledger ...`, and what all commands share that make ledger entries.

use std::path::Path;

use clap::{Args, Subcommand};

use super::open::{self, Failure};
use super::{Output, table};
use crate::domain::text::OneLine;
use crate::storage::{Posted, Posting};

/// Commands on the ledger.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check that balances, ledger entries, usage records and used quotas agree; exit 1 if not.
    Verify {
        /// How.
        #[command(flatten)]
        output: Output,
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
    let Command::Verify { output } = command;
    let found = open::with_store(file, async |store| Ok(store.verify_ledger().await?))?;
    if output.json {
        table::list(&found, &[], true)?;
    } else {
        let mut lines = String::new();
        for mismatch in &found {
            lines.push_str(&format!("{}\n", OneLine(&mismatch.to_string())));
        }
        if found.is_empty() {
            lines.push_str("balances, ledger entries, usage records and used quotas agree\n");
        }
        table::write_out(&lines)?;
    }
    match found.len() {
        0 => Ok(()),
        1 => Err(Failure::Message("the ledger has a mismatch".into())),
        count => Err(Failure::Message(format!(
            "the ledger has {count} mismatches"
        ))),
    }
}
