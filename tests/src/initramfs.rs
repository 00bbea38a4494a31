//! The first file system of a Linux that is booted here, without a disk: a shell, the programs to run with their libraries, and
//! a first process.

mod archive;
mod modules;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

pub use archive::Archive;

/// Tools of busybox that its shell does not run by itself.
const TOOLS: [&str; 2] = ["sh", "cttyhack"];

/// Adds what every first file system has: `init`, which is the first process, the folders that it mounts things on, and the
/// tools of `busybox`, a static program.
///
/// # Errors
/// If `busybox` does not run here, or lacks a tool.
pub fn add_base<W: Write>(archive: &mut Archive<W>, busybox: &Path, init: &[u8]) -> anyhow::Result<()> {
    for folder in ["/proc", "/sys", "/tmp", "/run"] {
        archive.folder(Path::new(folder))?;
    }
    // The first process writes to it before it can mount anything.
    archive.character_device(Path::new("/dev/console"), 5, 1)?;
    archive.file(Path::new("/init"), init)?;
    archive.copy(busybox, Path::new("/bin/busybox"))?;
    for tool in tools(busybox)? {
        archive.link(&Path::new("/bin").join(tool), "busybox")?;
    }
    Ok(())
}

/// Adds a program of this machine as `to`, small, with its libraries; `scratch` is a folder for what is not needed afterwards.
///
/// # Errors
/// If one of them cannot be read, or if `strip` or `ldd` does not run.
pub fn add_program<W: Write>(
    archive: &mut Archive<W>,
    program: &Path,
    to: &Path,
    scratch: &Path,
) -> anyhow::Result<()> {
    let small = strip(program, scratch)?;
    archive.copy(&small, to)?;
    add_libraries(archive, program, None)
}

/// Adds the shared libraries of a program that are not there yet, where they are on this machine. Those of packages that were
/// unpacked under `root`, if one is given, come first, and go to where they would be had the packages been installed.
///
/// # Errors
/// As [`add_program`].
pub fn add_libraries<W: Write>(archive: &mut Archive<W>, program: &Path, root: Option<&Path>) -> anyhow::Result<()> {
    for library in libraries(program, root)? {
        let inside = match root.and_then(|root| library.strip_prefix(root).ok()) {
            Some(path) => Path::new("/").join(path),
            None => library.clone(),
        };
        if !archive.has(&inside) {
            archive.copy(&library, &inside)?;
        }
    }
    Ok(())
}

/// Adds kernel modules from below `from` and what they depend on to the folder `to`, and a file `order` there that names them, one a line, each
/// after what it needs.
///
/// # Errors
/// If one is not there, or cannot be read.
pub fn add_modules<W: Write>(archive: &mut Archive<W>, from: &Path, modules: &[&str], to: &Path) -> anyhow::Result<()> {
    let mut order = String::new();
    for module in modules::in_load_order(from, modules)? {
        let name = module.file_name().context("a module has a name")?;
        archive.copy(&module, &to.join(name))?;
        writeln!(order, "{}", name.display())?;
    }
    archive.file(&to.join("order"), order.as_bytes())
}

/// Every tool that this busybox is.
fn tools(busybox: &Path) -> anyhow::Result<BTreeSet<String>> {
    let output = Command::new(busybox)
        .arg("--list")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", busybox.display()))?;
    let list = String::from_utf8_lossy(&output.stdout);
    let tools: BTreeSet<String> = list
        .lines()
        .map(str::to_owned)
        .filter(|tool| tool != "busybox")
        .collect();
    for needed in TOOLS {
        ensure!(tools.contains(needed), "{} has no {needed}", busybox.display());
    }
    Ok(tools)
}

/// A copy of `program` without what only a debugger reads, which is most of it.
fn strip(program: &Path, scratch: &Path) -> anyhow::Result<PathBuf> {
    let name = program.file_name().context("a program has a name")?;
    let to = scratch.join(name);
    let mut command = Command::new("strip");
    command.arg("--strip-debug").arg("-o").arg(&to).arg(program);
    let status = command
        .status()
        .context("cannot start `strip`, which is installed with every linker (binutils)")?;
    ensure!(
        status.success(),
        "`strip` failed for {}; its messages above say why",
        program.display()
    );
    Ok(to)
}

/// Folders of shared libraries in Debian's packages.
const LIBRARY_FOLDERS: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// The shared libraries of a program and what loads them, where it looks for them.
fn libraries(program: &Path, root: Option<&Path>) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    if let Some(root) = root {
        let folders = LIBRARY_FOLDERS.map(|folder| root.join(folder));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(folders)?);
    }
    let output = command
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .context("cannot start `ldd`")?;
    let list = String::from_utf8_lossy(&output.stdout);
    // A static program has none, which ldd calls a failure.
    let found = listed_libraries(&list).with_context(|| format!("libraries of {}", program.display()))?;
    for library in &found {
        fs::metadata(library).with_context(|| format!("cannot read {}", library.display()))?;
    }
    Ok(found)
}

fn listed_libraries(list: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in list.lines() {
        ensure!(!line.contains("not found"), "one is not there:{line}");
        // `name => path (address)`, or `path (address)` for the loader.
        let path = line.rsplit("=> ").next().unwrap_or_default().trim();
        let path = path.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(listed_libraries(list).expect("all there"), expected.map(PathBuf::from));
        assert!(listed_libraries("\tstatically linked\n").expect("none").is_empty());
        assert!(listed_libraries("\tlibx.so => not found\n").is_err());
    }
}
