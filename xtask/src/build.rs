//! `cargo xtask build [--check]`: the bare-metal payload, built and committed, or built and compared.
//!
//! The payload needs `core` for a target that most machines have no library for, so it is committed prebuilt under
//! `guest-agent/prebuilt/`, with the toolchain that built it recorded beside. The same toolchain gives the same bytes
//! wherever the checkout lies; with another one the new payload is examined and tested instead of compared.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use dunlin_core::workload::layout::{PAYLOAD, PAYLOAD_BYTES};
use dunlin_tests::process::workspace_root;
use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;

use crate::command::{cargo, describe, succeeds, succeeds_with_lines};

const TARGET: &str = "x86_64-unknown-none";
const PROFILE: &str = "microguest";
/// Positions are fixed by the linker script; the payload has no loader that could relocate it. Panics name their file
/// but not their line, so that comments in `core` do not change the payload (those before a log message of its own do).
const FLAGS: [&str; 2] = ["-Crelocation-model=static", "-Zlocation-detail=file"];
/// What the payload may log.
const LOG_LEVEL: &str = "info";
/// The committed file must stay small; it is in every binary of Dunlin.
const MAX_BYTES: usize = 96 << 10;

/// Builds the payload and puts it under `guest-agent/prebuilt/`; with `check`, builds it and compares it with what is
/// there, changing nothing.
///
/// # Errors
/// If there is no toolchain for it, it does not build, or it is not what is committed.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    run_with(check, run_guests)
}

/// As [`run`]; `test` is given a payload that was built by another toolchain than the committed one and so cannot be
/// compared with it.
pub(crate) fn run_with(check: bool, test: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let prebuilt = workspace_root().join("guest-agent/prebuilt");
    let (committed, record) = (prebuilt.join("microguest.elf"), prebuilt.join("TOOLCHAIN"));
    let recorded = fs::read_to_string(&record).unwrap_or_default();
    let toolchain = Toolchain::find(&recorded)?;
    let built = toolchain.build()?;
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    examine(&bytes).with_context(|| format!("the new payload {} is wrong", built.display()))?;
    if !check {
        fs::create_dir_all(&prebuilt)?;
        fs::write(&committed, &bytes).with_context(|| format!("cannot write {}", committed.display()))?;
        fs::write(&record, toolchain.to_string()).with_context(|| format!("cannot write {}", record.display()))?;
        println!("wrote {} ({} bytes)", committed.display(), bytes.len());
        return Ok(());
    }
    let old = fs::read(&committed)
        .with_context(|| format!("cannot read {}: run `cargo xtask build`", committed.display()))?;
    examine(&old).context("the committed payload is wrong: run `cargo xtask build`")?;
    if toolchain.to_string() == recorded {
        ensure!(
            old == bytes,
            "{} is not what the source gives: run `cargo xtask build` and commit the result (compare with {})",
            committed.display(),
            built.display()
        );
        println!("the committed payload is what the source gives, byte for byte");
    } else {
        println!("the committed payload was built by another toolchain, so bytes are not compared");
        println!("recorded:\n{recorded}here:\n{toolchain}");
        test(&built).context("the payload that this toolchain builds fails its test")?;
        println!("the payload that this toolchain builds passes its test");
    }
    Ok(())
}

/// Why the payload cannot be built here, if it cannot.
pub(crate) fn obstacle() -> Option<anyhow::Error> {
    Toolchain::find("").err()
}

/// A compiler that has the source of its library, the linker that goes with it, and cargo.
struct Toolchain {
    rustc: PathBuf,
    sysroot: PathBuf,
    linker: PathBuf,
    cargo: OsString,
    /// `rustc -vV`, the linker's and cargo's version.
    versions: [String; 4],
}

/// The record of what built a payload: equal records, equal bytes.
impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for version in &self.versions {
            writeln!(f, "{version}")?;
        }
        writeln!(f, "target {TARGET}, core built from source")?;
        writeln!(f, "profile {PROFILE}, flags {}, DEFMT_LOG={LOG_LEVEL}", FLAGS.join(" "))
    }
}

impl Toolchain {
    /// The toolchain of this record if it is here, otherwise any that will do.
    fn find(recorded: &str) -> anyhow::Result<Self> {
        let mut compilers = vec![PathBuf::from("/usr/bin/rustc"), PathBuf::from("rustc")];
        let nightly = output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]));
        compilers.extend(nightly.map(PathBuf::from));
        let mut found: Vec<_> = compilers.into_iter().filter_map(|rustc| Self::of(rustc).ok()).collect();
        let same = found.iter().position(|toolchain| toolchain.to_string() == recorded);
        if found.is_empty() {
            bail!(
                "no Rust compiler with the source of its library and a linker for {TARGET}: run `cargo xtask setup`, \
                 or `rustup toolchain install nightly --component rust-src`"
            );
        }
        Ok(found.swap_remove(same.unwrap_or(0)))
    }

    fn of(rustc: PathBuf) -> anyhow::Result<Self> {
        let sysroot_of = |rustc: &Path| output(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from);
        let sysroot = sysroot_of(&rustc).context("does not run")?;
        ensure!(
            sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists(),
            "has no source of its library"
        );
        let verbose = output(Command::new(&rustc).arg("-vV")).context("does not run")?;
        let host = field(&verbose, "host: ").context("does not say what it runs on")?;
        let in_sysroot = |sysroot: &Path| sysroot.join("lib/rustlib").join(host).join("bin/rust-lld");
        // The distribution's compiler comes without a linker; that of the toolchain that builds this program will do.
        let linkers = [
            Some(in_sysroot(&sysroot)),
            sysroot_of(Path::new("rustc")).map(|sysroot| in_sysroot(&sysroot)),
        ];
        let linkers = linkers
            .into_iter()
            .flatten()
            .chain(["rust-lld".into(), "ld.lld".into()]);
        let version_of = |linker: &Path| {
            let version = output(Command::new(linker).args(["-flavor", "gnu", "--version"]))?;
            // What follows the number differs from build to build of one version.
            Some(version.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        };
        let (linker, linker_version) = linkers
            .filter_map(|linker| version_of(&linker).map(|version| (linker, version)))
            .next()
            .context("no linker")?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let cargo_version = output(Command::new(&cargo).arg("--version")).context("cargo does not run")?;
        let versions = [
            verbose.lines().next().unwrap_or_default().to_owned(),
            format!("LLVM {}", field(&verbose, "LLVM version: ").unwrap_or("unknown")),
            linker_version,
            cargo_version,
        ];
        Ok(Self {
            rustc,
            sysroot,
            linker,
            cargo,
            versions,
        })
    }

    /// Builds the payload and returns where it is.
    fn build(&self) -> anyhow::Result<PathBuf> {
        let root = workspace_root();
        let target_dir = target_dir().join("payload");
        let mut command = Command::new(&self.cargo);
        command
            .current_dir(root)
            .args(["build", "--package", "microguest", "--locked"])
            .args(["--profile", PROFILE, "--target", TARGET, "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(&target_dir)
            .env("RUSTC", &self.rustc)
            // Building `core` needs an option that stable compilers hide.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(root, &target_dir).join("\u{1f}"))
            .env("DEFMT_LOG", LOG_LEVEL);
        for inherited in [
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(inherited);
        }
        // Whoever runs `cargo xtask` may have set options for its own profiles.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PROFILE_")) {
            command.env_remove(name);
        }
        ensure!(
            succeeds(&mut command)?,
            "`{}` failed: its messages are above",
            describe(&command)
        );
        Ok(target_dir.join(TARGET).join(PROFILE).join("microguest"))
    }

    /// Compiler flags; those beside [`FLAGS`] only keep the places of things on this machine out of the payload.
    fn flags(&self, root: &Path, target_dir: &Path) -> Vec<String> {
        let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let cargo_home = cargo_home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
        let library = self.sysroot.join("lib/rustlib/src/rust");
        // Of several that match the last one counts.
        let places = [
            (Some(root), ""),
            (Some(target_dir), "/target"),
            (cargo_home.as_deref(), "/cargo"),
            (Some(&library), "/rust"),
        ];
        let remap = places.into_iter().filter_map(|(from, to)| Some((from?.display(), to)));
        let mut flags: Vec<String> = remap
            .map(|(from, to)| format!("--remap-path-prefix={from}={to}"))
            .collect();
        flags.extend(FLAGS.map(str::to_owned));
        flags.push(format!("-Clinker={}", self.linker.display()));
        flags
    }
}

/// Checks that a payload is one that the host can load and whose log it can read, and that it tells nothing about the
/// machine that built it.
fn examine(bytes: &[u8]) -> anyhow::Result<()> {
    ensure!(
        bytes.len() <= MAX_BYTES,
        "it has {} bytes, more than {MAX_BYTES}",
        bytes.len()
    );
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).context("it is no 64-bit ELF file")?;
    ensure!(file.ehdr.e_machine == EM_X86_64, "it is not for x86-64");
    ensure!(
        file.ehdr.e_entry == PAYLOAD,
        "its entry is at {:#x}, not {PAYLOAD:#x}",
        file.ehdr.e_entry
    );
    let segments = file.segments().context("it has no segments")?;
    for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let room = PAYLOAD..=PAYLOAD + PAYLOAD_BYTES;
        let end = segment.p_paddr.saturating_add(segment.p_memsz);
        ensure!(
            room.contains(&segment.p_paddr) && room.contains(&end),
            "a segment at {:#x}..{end:#x} is outside its room",
            segment.p_paddr
        );
    }
    let table = defmt_decoder::Table::parse(bytes).context("its log symbols are wrong")?;
    ensure!(table.is_some_and(|table| !table.is_empty()), "it has no log symbols");
    let private = [Some(workspace_root().to_path_buf()), std::env::home_dir()]
        .into_iter()
        .flatten();
    for place in private.filter(|place| place.components().count() > 1) {
        let place = place.to_string_lossy().into_owned();
        let found = bytes.windows(place.len()).any(|window| window == place.as_bytes());
        ensure!(!found, "it contains the path {place}");
    }
    Ok(())
}

/// Runs the tests of guests' lives with another payload, in a copy of the checkout, so that nothing here is changed.
fn run_guests(payload: &Path) -> anyhow::Result<()> {
    let root = workspace_root();
    let copy = tempfile::tempdir().context("cannot make a folder for a copy of the checkout")?;
    let files = output(Command::new("git").current_dir(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("`git ls-files` fails: a payload of another toolchain can only be tested in a git checkout")?;
    for file in files
        .split_terminator('\0')
        .map(Path::new)
        .filter(|file| root.join(file).is_file())
    {
        let target = copy.path().join(file);
        fs::create_dir_all(target.parent().context("every file is in a folder")?)?;
        fs::copy(root.join(file), &target).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    fs::copy(payload, copy.path().join("guest-agent/prebuilt/microguest.elf"))?;
    let mut tests = cargo(&["test", "--package", "dunlin", "--test", "guests", "--locked", "life::"]);
    tests.current_dir(copy.path()).env("CARGO_TARGET_DIR", target_dir());
    let mut passed = 0;
    let succeeded = succeeds_with_lines(&mut tests, |line| {
        let count = line
            .strip_prefix("test result: ok. ")
            .and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        passed += count.unwrap_or(0);
    })?;
    ensure!(succeeded, "guests with this payload fail: the messages are above");
    ensure!(passed > 0, "no test ran");
    Ok(())
}

/// Where cargo puts what it builds.
fn target_dir() -> PathBuf {
    let root = workspace_root();
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// What a program prints, without the end of the line, if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The rest of the line that starts with `name`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}
