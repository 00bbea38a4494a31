//! The lab's kernel and shell, and programs for Linux guests: packages of the distribution, unpacked into the target directory and
//! not installed, for a machine whose own kernel is another one keeps it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use dunlin_tests::lab::{KERNEL_PACKAGE, Parts, SHELL_PACKAGE, packages_folder};
use dunlin_tests::linux::packages as programs;

use crate::command::describe;

/// What the lab needs of a package: a whole kernel package is some 400 MB.
const WANTED: [&str; 6] = [
    "./boot/vmlinuz-*",
    "./lib/modules/*/kernel/arch/x86/*",
    "./lib/modules/*/kernel/virt/*",
    "./lib/modules/*/kernel/drivers/char/*",
    "./lib/modules/*/kernel/drivers/crypto/*",
    "./lib/modules/*/kernel/drivers/virtio/*",
];
const WANTED_SHELL: [&str; 1] = ["./bin/busybox"];

/// What is wanted of a package of libraries.
const WANTED_LIBRARIES: [&str; 1] = ["*.so*"];

/// True when the lab's packages are unpacked.
pub(crate) fn are_there() -> bool {
    packages_folder().is_ok_and(|folder| check(&folder).is_ok())
}

/// True when the programs for Linux guests are unpacked.
pub(crate) fn programs_are_there() -> bool {
    programs::folder().is_ok_and(|folder| programs::find_all(&folder).is_ok())
}

/// The packages of programs for Linux guests and of their libraries.
pub(crate) fn program_packages() -> impl Iterator<Item = &'static str> {
    let packages = programs::PACKAGES.iter().map(|(package, _)| *package);
    packages.chain(programs::LIBRARY_PACKAGES)
}

/// The package with the newest kernel itself, which [`KERNEL_PACKAGE`] depends on, if the distribution offers one.
pub(crate) fn kernel() -> Option<String> {
    let output = Command::new("apt-cache")
        .args(["depends", KERNEL_PACKAGE])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    depended_kernel(&String::from_utf8_lossy(&output.stdout))
}

/// Downloads the lab's packages, `kernel` being that of the kernel, and unpacks what the lab needs of them.
///
/// # Errors
/// As [`fetch_programs`].
pub(crate) fn fetch(kernel: &str) -> anyhow::Result<()> {
    let wanted = [(kernel, &WANTED[..]), (SHELL_PACKAGE, &WANTED_SHELL)];
    fetch_into(&packages_folder()?, &wanted, check)
}

/// Whether all that was wanted is there.
fn check(root: &Path) -> Result<(), String> {
    Parts::find(root)?.check_virtio()
}

/// Downloads the packages of programs for Linux guests, and unpacks what these need of them.
///
/// # Errors
/// If they cannot be had, or have something else than expected inside.
pub(crate) fn fetch_programs() -> anyhow::Result<()> {
    let packages = programs::PACKAGES.iter();
    let mut wanted: Vec<(&str, &[&str])> = packages
        .map(|(package, file)| (*package, std::slice::from_ref(file)))
        .collect();
    wanted.extend(programs::LIBRARY_PACKAGES.map(|package| (package, &WANTED_LIBRARIES[..])));
    fetch_into(&programs::folder()?, &wanted, programs::find_all)
}

/// Downloads packages and unpacks what is wanted of each into `folder`. Needs no privilege; the packages are checked by the
/// signatures of the distribution, as in an installation.
fn fetch_into(
    folder: &Path,
    packages: &[(&str, &[&str])],
    check: impl Fn(&Path) -> Result<(), String>,
) -> anyhow::Result<()> {
    let lab = folder.parent().context("the folder lies in the lab's")?;
    fs::create_dir_all(lab).with_context(|| format!("cannot make {}", lab.display()))?;
    let download = tempfile::tempdir_in(lab)?;
    let mut command = Command::new("apt-get");
    command
        // The user that downloads otherwise may not write here.
        .args(["--option", "APT::Sandbox::User=root"])
        .args(["download", "--quiet"])
        .args(packages.iter().map(|(package, _)| package))
        .current_dir(download.path());
    println!("> {}", describe(&command));
    run(&mut command)?;
    let unpacked = download.path().join("unpacked");
    fs::create_dir(&unpacked)?;
    for (package, wanted) in packages {
        unpack(download.path(), package, wanted, &unpacked)?;
    }
    check(&unpacked).map_err(|why| anyhow::anyhow!("the packages are not as expected: {why}"))?;
    // Only complete: what an interrupted run left is replaced.
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::rename(&unpacked, folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn depended_kernel(depends: &str) -> Option<String> {
    let lines = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    lines.map(str::to_owned).find(|name| name.starts_with("linux-image-"))
}

/// Unpacks what is `wanted` of the file of `package` in `download`.
fn unpack(download: &Path, package: &str, wanted: &[&str], to: &Path) -> anyhow::Result<()> {
    let mut files = fs::read_dir(download)?.flatten().map(|file| file.path());
    let prefix = format!("{package}_");
    let file = files
        .find(|file| {
            file.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| format!("`apt-get download` left no file of {package}"))?;
    let mut contents = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start `dpkg-deb`")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--wildcards", "--no-same-owner", "--directory"])
        .arg(to)
        .args(wanted)
        .stdin(contents.stdout.take().context("stdout is piped")?);
    let unpacked = run(&mut tar);
    ensure!(contents.wait()?.success(), "`dpkg-deb` cannot read {}", file.display());
    unpacked
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", describe(command)))?;
    ensure!(
        status.success(),
        "`{}` failed; its messages above say why",
        describe(command)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::depended_kernel;

    #[test]
    fn the_kernel_behind_the_package_that_names_the_newest_is_found() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-57-amd64\n  Suggests: firmware\n";
        assert_eq!(depended_kernel(text).as_deref(), Some("linux-image-6.1.0-57-amd64"));
        assert_eq!(depended_kernel("N: Unable to locate package\n"), None);
    }
}
