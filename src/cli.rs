//! The command line: one file per command (or family of commands).

pub mod accounts;
pub mod apply;
pub mod check;
pub mod csv;
pub mod demo;
pub mod journal;
pub mod keys;
pub mod ledger;
pub mod objects;
pub mod open;
pub mod prices;
pub mod serve;
pub mod table;
pub mod usage;
pub mod users;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use open::Failure;

/// Tollgate stands between AI clients and AI providers: it authenticates API keys, chooses an
/// account for every request, streams the answer, moves to another account when one fails, and
/// records what was used and what it costs.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    arg_required_else_help = true,
    after_help = "Start here:\n  \
        tollgate demo                          see it work, without any provider\n  \
        OPENAI_API_KEY=sk-... tollgate serve   a working proxy for one provider key\n  \
        tollgate apply -f resources.yaml       groups, accounts, users and keys from a file"
)]
pub struct Cli {
    /// Configuration file (YAML). Without it: built-in defaults and TOLLGATE_... variables.
    #[arg(
        short,
        long,
        global = true,
        value_name = "FILE",
        env = "TOLLGATE_CONFIG"
    )]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy until SIGTERM or SIGINT, then drain and exit. SIGHUP re-reads the configuration.
    #[command(after_help = "\
        With OPENAI_API_KEY or ANTHROPIC_API_KEY (or GEMINI_API_KEY: stored, but not served by this \
        version) set and nothing stored yet, a group, an account, a user `default` and a key are \
        made and the key is printed once.")]
    Serve,
    /// See it work: a throw-away server with a simulated provider sends itself a request.
    Demo {
        /// Exit after the one request instead of going on serving.
        #[arg(long)]
        once: bool,
    },
    /// Check the configuration and resource files without starting anything.
    Check {
        /// Resource files to check as well; `-` is standard input.
        #[arg(short = 'f', long = "file", value_name = "RESOURCES")]
        files: Vec<PathBuf>,
    },
    /// Make the store hold what resource files say. A running server follows within a second.
    Apply(apply::Options),
    /// List and show users; add to a balance or take from it.
    #[command(subcommand)]
    Users(users::Command),
    /// List, show and create API keys.
    #[command(subcommand)]
    Keys(keys::Command),
    /// List and show groups.
    #[command(subcommand)]
    Groups(objects::Command),
    /// List and show accounts, with what keeps them from being used; pause and resume them.
    #[command(subcommand)]
    Accounts(accounts::Command),
    /// List and show channels: model mapping, restriction and prices of groups.
    #[command(subcommand)]
    Channels(objects::Command),
    /// List and show subscriptions, named `user/group`, with what has been used of them.
    #[command(subcommand)]
    Subscriptions(objects::Command),
    /// List and show error passthrough rules.
    #[command(subcommand)]
    Rules(objects::Command),
    /// Show what a model costs; take over a new price map.
    #[command(subcommand)]
    Prices(prices::Command),
    /// Totals of what was used; `usage records` lists single requests, `usage refund` gives one back.
    Usage(Box<usage::Options>),
    /// List and check the ledger.
    #[command(subcommand)]
    Ledger(ledger::Command),
    /// Read the journal that stands between requests and the store.
    #[command(subcommand)]
    Journal(journal::Command),
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Runs a command; the exit code is the process's.
pub fn run(cli: Cli) -> ExitCode {
    let config = cli.config.as_deref();
    let done = match cli.command {
        Command::Serve => serve::run(config),
        Command::Demo { once } => demo::run(once),
        Command::Check { files } => check::run(config, &files),
        Command::Apply(options) => apply::run(config, &options),
        Command::Users(command) => users::run(config, command),
        Command::Keys(command) => keys::run(config, command),
        Command::Groups(command) => objects::groups(config, command),
        Command::Accounts(command) => accounts::run(config, command),
        Command::Channels(command) => objects::channels(config, command),
        Command::Subscriptions(command) => objects::subscriptions(config, command),
        Command::Rules(command) => objects::rules(config, command),
        Command::Prices(command) => prices::run(config, command),
        Command::Usage(options) => usage::run(config, &options),
        Command::Ledger(command) => ledger::run(config, command),
        Command::Journal(command) => journal::run(config, &command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Message(message)) => {
            eprintln!("tollgate: {message}");
            ExitCode::FAILURE
        }
    }
}
