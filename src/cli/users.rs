//! `tollgate users ...`

use std::path::Path;

use clap::Subcommand;

use super::open::{self, Failure};
use super::{objects, table};
use crate::domain::Money;

/// Commands on users.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List and show.
    #[command(flatten)]
    Objects(objects::Command),
    /// Add to a user's balance, with a ledger entry.
    Credit {
        /// The user's name.
        name: String,
        /// USD as a decimal, e.g. 25.00.
        amount: String,
    },
}

/// Runs one.
pub fn run(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    match command {
        Command::Objects(command) => {
            let users = open::with_store(file, async |store| {
                Ok(store.list_users(command.name()).await?)
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
        Command::Credit { name, amount } => {
            let amount: Money = amount.parse().map_err(|error| {
                Failure::Message(format!(
                    "{amount:?} is no amount: {error}; write USD as a decimal such as 25.00"
                ))
            })?;
            if !amount.is_positive() {
                return Err(Failure::Message(format!(
                    "a credit must be more than 0, not {amount}"
                )));
            }
            let balance =
                open::with_store(file, async |store| Ok(store.credit(&name, amount).await?))?;
            table::write_out(&format!(
                "credited {amount} USD to {name}; the balance is {balance} USD\n"
            ))
        }
    }
}
