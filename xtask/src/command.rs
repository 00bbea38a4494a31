//! Running other programs.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use dunlin_tests::process::{self, workspace_root};

/// A `cargo` command in the workspace's root folder.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = process::cargo();
    command.args(args).current_dir(workspace_root());
    command
}

/// A `cargo +toolchain` command: only rustup's proxy knows toolchains, not the `cargo` that runs this program.
pub(crate) fn cargo_of(toolchain: &str, args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    process::forget_package(&mut command);
    command.arg(toolchain).args(args).current_dir(workspace_root());
    // What rustup set for the toolchain of this program.
    command
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env_remove("RUSTC");
    command
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let name = std::path::Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs to the end; true when it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> anyhow::Result<bool> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    Ok(status.success())
}

/// Runs to the end, passing each line of stdout on as it comes and to `on_line`; true when it succeeded.
pub(crate) fn succeeds_with_lines(command: &mut Command, mut on_line: impl FnMut(&str)) -> anyhow::Result<bool> {
    let words = describe(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{words}`"))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        // Nobody left to read is no reason to stop the tests.
        let _ = writeln!(io::stdout(), "{line}");
        on_line(&line);
    }
    Ok(child.wait()?.success())
}
