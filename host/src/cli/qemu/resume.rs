//! `dunlin qemu resume`: a migration whose driver has ended.

use std::process::ExitCode;

use super::super::CliError;
use super::migrate::Args;

pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    args.drive(|driver| driver.resume())
}
