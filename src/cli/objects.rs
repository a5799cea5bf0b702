//! `list` and `show`, alike for every kind of object.

use std::path::Path;

use chrono::Utc;
use clap::Subcommand;
use serde::Serialize;

use super::open::{self, Failure};
use super::{Output, table};

/// `list` and `show`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// All of them, as a table.
    List {
        /// How.
        #[command(flatten)]
        output: Output,
    },
    /// One of them, with all fields.
    Show {
        /// Its name.
        name: String,
        /// How.
        #[command(flatten)]
        output: Output,
    },
}

/// Prints what `list` or `show` asks for.
pub fn print<T: Serialize>(
    command: &Command,
    kind: &str,
    objects: &[T],
    columns: &[&str],
) -> Result<(), Failure> {
    match command {
        Command::List { output } => table::list(objects, columns, output.json),
        Command::Show { name, output } => match objects.first() {
            Some(object) => table::show(object, output.json),
            None => Err(Failure::Message(format!("there is no {kind} {name:?}"))),
        },
    }
}

impl Command {
    /// The one name asked for.
    pub fn name(&self) -> Option<&str> {
        match self {
            Command::List { .. } => None,
            Command::Show { name, .. } => Some(name),
        }
    }
}

/// `tollgate groups ...`
pub fn groups(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    let objects = open::with_store(file, async |store| {
        Ok(store.list_groups(command.name()).await?)
    })?;
    let columns = ["name", "platform", "enabled", "rate_multiplier", "accounts"];
    print(&command, "group", &objects, &columns)
}

/// `tollgate channels ...`
pub fn channels(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    let objects = open::with_store(file, async |store| {
        Ok(store.list_channels(command.name()).await?)
    })?;
    let columns = [
        "name",
        "enabled",
        "groups",
        "restrict_models",
        "billing_model_source",
    ];
    print(&command, "channel", &objects, &columns)
}

/// `tollgate subscriptions ...`
pub fn subscriptions(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    let tz = open::config(file)?.timezone;
    let objects = open::with_store(file, async |store| {
        let name = command.name();
        Ok(store.list_subscriptions(name, Utc::now(), tz).await?)
    })?;
    let columns = [
        "name",
        "enabled",
        "status",
        "usable",
        "starts_at",
        "expires_at",
    ];
    print(&command, "subscription", &objects, &columns)
}

/// `tollgate rules ...`
pub fn rules(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    let objects = open::with_store(file, async |store| {
        Ok(store.list_rules(command.name()).await?)
    })?;
    let columns = [
        "name",
        "enabled",
        "priority",
        "error_codes",
        "keywords",
        "match_mode",
        "platforms",
        "response_code",
        "custom_message",
    ];
    print(&command, "rule", &objects, &columns)
}
