//! The program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use tollgate::cli::{self, Cli};
use tollgate::logging;

/// Records are made on one thread and freed on another, buffers are larger than what the C library
/// keeps at hand per thread: measured with benches/load, this takes an eighth off the instructions
/// of a request, at the same memory a stream.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let code = cli::run(Cli::parse());
    logging::flush();
    code
}
