//! The program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use tollgate::cli::{self, Cli};
use tollgate::logging;

fn main() -> ExitCode {
    let code = cli::run(Cli::parse());
    logging::flush();
    code
}
