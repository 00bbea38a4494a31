//! The `dunlin` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    dunlin::cli::run(std::env::args_os())
}
