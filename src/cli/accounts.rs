//! `tollgate accounts ...`

use std::path::Path;

use chrono::Utc;
use clap::{Args, Subcommand};

use super::open::{self, Failure};
use super::{objects, table};
use crate::storage::Names;

/// Commands on accounts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List and show: the status says whether an account may be chosen now.
    #[command(flatten)]
    Objects(objects::Command),
    /// Take accounts out of scheduling; running requests finish.
    Pause(Which),
    /// Put accounts back, and lift what has kept them from being used.
    #[command(after_help = "\
        Lifts the pause and every condition that `accounts show` names: errors (which end in no other \
        way), rate limits, overload, temporary exclusions and cool-downs, those of single models too, \
        and forgets the refusals that count towards an error. What the resource file says (enabled, \
        schedulable, expires_at) stays. A running server follows within a second.")]
    Resume(Which),
}

/// Which accounts.
#[derive(Debug, Args)]
pub struct Which {
    /// Their names.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// Every account.
    #[arg(long)]
    all: bool,
}

/// Runs one.
pub fn run(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    match command {
        Command::Objects(command) => {
            let accounts = open::with_store(file, async |store| {
                Ok(store.list_accounts(command.name(), Utc::now()).await?)
            })?;
            let columns = [
                "name",
                "platform",
                "type",
                "status",
                "until",
                "groups",
                "concurrency",
                "priority",
                "base_url",
            ];
            objects::print(&command, "account", &accounts, &columns)
        }
        Command::Pause(which) => set_paused(file, &which, true),
        Command::Resume(which) => set_paused(file, &which, false),
    }
}

fn set_paused(file: Option<&Path>, which: &Which, paused: bool) -> Result<(), Failure> {
    let names = if which.all {
        Names::All
    } else {
        Names::List(&which.names)
    };
    let done = open::with_store(file, async |store| {
        Ok(store.set_paused(names, paused, Utc::now()).await?)
    })?;
    let what = if paused { "paused" } else { "resumed" };
    let mut out: String = done
        .iter()
        .map(|name| format!("{what}  {name}\n"))
        .collect();
    if done.is_empty() {
        out.push_str("there are no accounts\n");
    }
    table::write_out(&out)
}
