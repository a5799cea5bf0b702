//! `tollgate apply`

use std::path::{Path, PathBuf};

use clap::Args;

use super::open::{self, Failure};
use super::table;
use crate::app::first_start;
use crate::config;
use crate::config::resources::Resources;
use crate::storage::{ApplyOptions, ApplyReport};

/// Options of `apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
    Idempotent, by name: saying the same twice changes nothing. Any mistake in any file and nothing \
    is applied. A user's `balance` counts only when the user is created; afterwards use \
    `tollgate users credit`.")]
pub struct Options {
    /// Resource files (YAML, several documents each if you like); `-` is standard input.
    #[arg(short = 'f', long = "file", value_name = "RESOURCES", required = true)]
    files: Vec<PathBuf>,
    /// Disable every group, account, user, key, subscription, channel and error passthrough rule that
    /// the files do not name, kinds they leave out included, and drop price overrides they do not name.
    /// History stays.
    #[arg(long)]
    prune: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print an object with the lists created, changed, left, removed.
    #[arg(long)]
    json: bool,
}

/// Applies resource files to the store.
pub fn run(file: Option<&Path>, options: &Options) -> Result<(), Failure> {
    let (resources, warnings) = config::load_resources(&options.files, &open::environment())
        .map_err(|mistakes| {
            Failure::Message(format!(
                "the resources have mistakes, nothing was applied:\n{mistakes}"
            ))
        })?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    if options.prune && resources == Resources::default() {
        return Err(Failure::Message(
            "the files name nothing, so --prune would disable everything; nothing was applied"
                .into(),
        ));
    }
    let how = ApplyOptions {
        prune: options.prune,
        dry_run: options.dry_run,
    };
    let config = open::config(file)?;
    if !first_start::has_store(&config) {
        eprintln!("note: a new store in {}", config.data_dir.display());
    }
    let report = open::with_store_of(&config, async |store| {
        Ok(store.apply(&resources, how).await?)
    })?;
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    if options.json {
        table::write_out(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        table::write_out(&text(&report, options.dry_run))?;
    }
    for (name, key) in &report.generated_keys {
        // With --json standard output is for programs; the key is for a person, once.
        let line = format!("API key {name} (shown once): {}", key.expose());
        if options.json {
            eprintln!("{line}");
        } else {
            table::write_out(&format!("{line}\n"))?;
        }
    }
    Ok(())
}

fn text(report: &ApplyReport, dry_run: bool) -> String {
    let mut out = String::new();
    for (what, names) in [
        ("created", &report.created),
        ("changed", &report.changed),
        ("removed", &report.removed),
    ] {
        for name in names {
            out.push_str(&format!("{what}  {name}\n"));
        }
    }
    let would = if dry_run { "would be " } else { "" };
    out.push_str(&format!(
        "{} {would}created, {} {would}changed, {} {would}removed, {} left as they are\n",
        report.created.len(),
        report.changed.len(),
        report.removed.len(),
        report.left.len(),
    ));
    out
}
