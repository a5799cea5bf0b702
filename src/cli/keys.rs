//! `tollgate keys ...`

use std::io::Write;
use std::path::Path;

use chrono::Utc;
use clap::Subcommand;

use super::objects;
use super::open::{self, Failure};

/// Commands on API keys.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List and show.
    #[command(flatten)]
    Objects(objects::Command),
    /// Make a key and print it, alone on standard output. It is shown this once: only a keyed hash
    /// is stored.
    Create {
        /// Its owner.
        #[arg(long)]
        user: String,
        /// Its group.
        #[arg(long)]
        group: String,
        /// Its name; without it, the user's name and a number.
        #[arg(long)]
        name: Option<String>,
    },
}

/// Runs one.
pub fn run(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    match command {
        Command::Objects(command) => {
            let tz = open::config(file)?.timezone;
            let keys = open::with_store(file, async |store| {
                Ok(store.list_keys(command.name(), Utc::now(), tz).await?)
            })?;
            let columns = [
                "name",
                "hint",
                "user",
                "group",
                "status",
                "quota",
                "quota_used",
                "expires_at",
            ];
            objects::print(&command, "key", &keys, &columns)
        }
        Command::Create { user, group, name } => {
            let key = open::with_store(file, async |store| {
                Ok(store.create_key(&user, &group, name.as_deref()).await?)
            })?;
            // A key that nobody got to see is of no use: unlike elsewhere a closed pipe is a failure.
            writeln!(std::io::stdout().lock(), "{}", key.expose()).map_err(|error| {
                Failure::Message(format!(
                    "the key was made, but could not be written ({error}); disable it and make another"
                ))
            })
        }
    }
}
