//! What the lab boots: a first file system with the modules, the programs with their libraries, and a plan.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin_tests::capability::{FULL, REQUIRE};
use dunlin_tests::lab::Parts;
use dunlin_tests::process::BINARY;

use super::archive::Archive;
use super::modules;
use super::programs::Tests;
use crate::command::describe;

/// KVM for the emulated processor, which is one of AMD's.
const MODULES: [&str; 1] = ["kvm-amd"];

/// What the machine has whatever it is short of otherwise: a test that needs one of these fails where it would be skipped.
const REQUIRED: &str = "kvm,uffd,ebpf,qemu,root,hardware,soft-dirty";

/// Every N-th row of the tests' matrices: an emulated processor runs each as slowly as a quarter of the whole elsewhere.
const PART_OF_MATRICES: &str = "1/25";

/// Tools of busybox that its shell does not run by itself.
const TOOLS: [&str; 2] = ["sh", "cttyhack"];

/// Whose guest is recorded: where it is outside, it is inside, and with it the one file that it does not start without.
const QEMU: [&str; 2] = ["/usr/bin/qemu-system-x86_64", "/usr/share/qemu/kvmvapic.bin"];

/// Inside, as in a target directory: tests find their caches by where they are.
const DUNLIN: &str = "/lab/target/debug/dunlin";
const TESTS: &str = "/lab/target/debug/deps";

/// What goes into the image.
pub(super) struct Image<'a> {
    pub(super) parts: &'a Parts,
    pub(super) dunlin: &'a Path,
    pub(super) tests: &'a Tests,
    /// After which a single test is ended.
    pub(super) test_limit: Duration,
    /// After which the machine ends itself.
    pub(super) limit: Duration,
}

impl Image<'_> {
    /// Writes the image to `path`; `scratch` is a folder for what is not needed afterwards.
    pub(super) fn write(&self, path: &Path, scratch: &Path) -> anyhow::Result<()> {
        let out = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Archive::new(BufWriter::new(out));
        for folder in ["/proc", "/sys", "/tmp", "/run"] {
            archive.folder(Path::new(folder))?;
        }
        // The first process writes to it before it can mount anything.
        archive.character_device(Path::new("/dev/console"), 5, 1)?;
        archive.file(Path::new("/init"), include_bytes!("init.sh"))?;
        archive.copy(&self.parts.busybox, Path::new("/bin/busybox"))?;
        for tool in tools(&self.parts.busybox)? {
            archive.link(&Path::new("/bin").join(tool), "busybox")?;
        }
        self.add_modules(&mut archive)?;
        let mut programs = vec![(self.dunlin, PathBuf::from(DUNLIN))];
        for (index, program) in self.tests.programs.iter().enumerate() {
            programs.push((program, test_program(index)));
        }
        for (program, inside) in programs {
            let small = strip(program, scratch)?;
            archive.copy(&small, &inside)?;
            add_libraries(&mut archive, program)?;
        }
        for file in QEMU.map(Path::new) {
            archive.copy(file, file)?;
        }
        add_libraries(&mut archive, Path::new(QEMU[0]))?;
        archive.file(Path::new("/lab/environment"), self.environment().as_bytes())?;
        archive.file(Path::new("/lab/plan"), self.plan().as_bytes())?;
        archive.finish()
    }

    fn add_modules(&self, archive: &mut Archive<BufWriter<File>>) -> anyhow::Result<()> {
        let mut order = String::new();
        for module in modules::in_load_order(&self.parts.modules, &MODULES)? {
            let name = module.file_name().context("a module has a name")?.to_owned();
            archive.copy(&module, &Path::new("/lab/modules").join(&name))?;
            writeln!(order, "{}", name.to_string_lossy())?;
        }
        archive.file(Path::new("/lab/modules/order"), order.as_bytes())
    }

    /// What the first process reads as a part of itself.
    fn environment(&self) -> String {
        let limit_s = self.limit.as_secs();
        format!(
            "LAB_LIMIT_S={limit_s}\nexport {BINARY}={DUNLIN}\nexport {REQUIRE}={REQUIRED}\nexport {FULL}={PART_OF_MATRICES}\n"
        )
    }

    /// One test a line: number, seconds it may take, program, name.
    fn plan(&self) -> String {
        let limit_s = self.test_limit.as_secs();
        let lines = self.tests.tests.iter().enumerate().map(|(number, test)| {
            let program = test_program(test.program);
            format!("{number} {limit_s} {} {}\n", program.display(), test.path)
        });
        lines.collect()
    }
}

fn add_libraries(archive: &mut Archive<BufWriter<File>>, program: &Path) -> anyhow::Result<()> {
    for library in libraries(program)? {
        if !archive.has(&library) {
            archive.copy(&library, &library)?;
        }
    }
    Ok(())
}

fn test_program(index: usize) -> PathBuf {
    Path::new(TESTS).join(format!("tests-{index}"))
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
    ensure!(status.success(), "`{}` failed", describe(&command));
    Ok(to)
}

/// The shared libraries of a program and what loads them, where it looks for them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
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
