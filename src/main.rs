//! The program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use tollgate::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
