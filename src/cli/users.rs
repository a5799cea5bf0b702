//! `tollgate users ...`

use std::collections::HashMap;
use std::path::Path;

use clap::{Args, Subcommand};

use super::ledger::{Entry, answer};
use super::open::{self, Failure};
use super::{objects, table};
use crate::billing::journal;
use crate::domain::{Money, UserId};

/// Commands on users.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List and show.
    #[command(flatten)]
    Objects(objects::Command),
    /// Add to a user's balance, with a ledger entry.
    Credit(Correction),
    /// Take from a user's balance, with an adjustment in the ledger. It may go below zero.
    Debit(Correction),
}

/// Whose balance is corrected, and by how much.
#[derive(Debug, Args)]
pub struct Correction {
    /// The user's name.
    name: String,
    /// USD as a decimal, e.g. 25.00.
    amount: String,
    /// What goes with the entry.
    #[command(flatten)]
    entry: Entry,
}

/// Runs one.
pub fn run(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    match command {
        Command::Objects(command) => {
            let journal = open::config(file)?.data_dir.join(journal::DIRECTORY);
            let users = open::with_store(file, async |store| {
                // Read first: what is settled in between is rather counted twice than not at all.
                let reserved = reserved(&journal)?;
                Ok(store.list_users(command.name(), &reserved).await?)
            })?;
            let columns = [
                "name",
                "enabled",
                "balance",
                "reserved",
                "available",
                "concurrency",
            ];
            objects::print(&command, "user", &users, &columns)
        }
        Command::Credit(correction) => correct(file, &correction, true),
        Command::Debit(correction) => correct(file, &correction, false),
    }
}

/// What running requests hold, by their journal. Without one nothing is held.
fn reserved(journal: &Path) -> Result<HashMap<UserId, Money>, Failure> {
    let failed = |error| {
        let path = journal.display();
        Failure::Message(format!("the journal {path} cannot be read: {error}"))
    };
    journal::open_reservations(journal).map_err(failed)
}

fn correct(file: Option<&Path>, correction: &Correction, credit: bool) -> Result<(), Failure> {
    let Correction {
        name,
        amount,
        entry,
    } = correction;
    let amount: Money = amount.parse().map_err(|error| {
        Failure::Message(format!(
            "{amount:?} is no amount: {error}; write USD as a decimal such as 25.00"
        ))
    })?;
    let (a_what, done, command) = if credit {
        (
            "a credit",
            format!("credited {amount} USD to"),
            "users credit",
        )
    } else {
        (
            "a debit",
            format!("debited {amount} USD from"),
            "users debit",
        )
    };
    if !amount.is_positive() {
        return Err(Failure::Message(format!(
            "{a_what} must be more than 0, not {amount}"
        )));
    }
    let posting = entry.posting(command);
    let posted = open::with_store(file, async |store| {
        Ok(if credit {
            store.credit(name, amount, posting).await?
        } else {
            store.debit(name, amount, posting).await?
        })
    })?;
    table::write_out(&answer(&format!("{done} {name}"), &posted))
}
