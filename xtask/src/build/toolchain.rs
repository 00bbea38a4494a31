//! Compilers that can build `core` for other targets, and the linkers that go with them.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use dunlin_tests::process::workspace_root;

use super::Prebuilt;
use crate::command::{describe, succeeds};

/// A compiler that has the source of its library, the linker that goes with it, and cargo.
pub(super) struct Toolchain<'a> {
    prebuilt: &'a Prebuilt,
    rustc: PathBuf,
    sysroot: PathBuf,
    linker: PathBuf,
    cargo: OsString,
    /// `rustc -vV`, the linker's and cargo's version.
    versions: [String; 4],
}

/// The record of what built something: equal records, equal bytes.
impl fmt::Display for Toolchain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for version in &self.versions {
            writeln!(f, "{version}")?;
        }
        let Prebuilt {
            target, profile, flags, ..
        } = self.prebuilt;
        writeln!(f, "target {target}, core built from source")?;
        write!(f, "profile {profile}, flags {}", flags.join(" "))?;
        for (name, value) in self.prebuilt.environment {
            write!(f, ", {name}={value}")?;
        }
        writeln!(f)
    }
}

impl<'a> Toolchain<'a> {
    /// The toolchain of this record if it is here, otherwise any that will do.
    pub(super) fn find(prebuilt: &'a Prebuilt, recorded: &str) -> anyhow::Result<Self> {
        let mut compilers = vec![PathBuf::from("/usr/bin/rustc"), PathBuf::from("rustc")];
        let nightly = output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]));
        compilers.extend(nightly.map(PathBuf::from));
        let of = |rustc| Self::of(prebuilt, rustc).ok();
        let mut found: Vec<_> = compilers.into_iter().filter_map(of).collect();
        let same = found.iter().position(|toolchain| toolchain.to_string() == recorded);
        if found.is_empty() {
            bail!(
                "no Rust compiler with the source of its library and a linker for {}: run `cargo xtask setup`, or {}",
                prebuilt.target,
                prebuilt.advice
            );
        }
        Ok(found.swap_remove(same.unwrap_or(0)))
    }

    fn of(prebuilt: &'a Prebuilt, rustc: PathBuf) -> anyhow::Result<Self> {
        let sysroot = sysroot_of(&rustc).context("does not run")?;
        ensure!(
            sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists(),
            "has no source of its library"
        );
        let verbose = output(Command::new(&rustc).arg("-vV")).context("does not run")?;
        let host = field(&verbose, "host: ").context("does not say what it runs on")?;
        let (linker, linker_version) = (prebuilt.linker)(&sysroot, host).context("no linker")?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let cargo_version = output(Command::new(&cargo).arg("--version")).context("cargo does not run")?;
        let versions = [
            verbose.lines().next().unwrap_or_default().to_owned(),
            format!("LLVM {}", field(&verbose, "LLVM version: ").unwrap_or("unknown")),
            linker_version,
            cargo_version,
        ];
        Ok(Self {
            prebuilt,
            rustc,
            sysroot,
            linker,
            cargo,
            versions,
        })
    }

    /// Builds and returns where the result is.
    pub(super) fn build(&self) -> anyhow::Result<PathBuf> {
        let root = workspace_root();
        let Prebuilt {
            package,
            target,
            profile,
            ..
        } = self.prebuilt;
        let target_dir = target_dir().join("prebuilt");
        let mut command = Command::new(&self.cargo);
        command
            .current_dir(root)
            .args(["build", "--package", package, "--locked"])
            .args(["--profile", profile, "--target", target, "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(&target_dir)
            .env("RUSTC", &self.rustc)
            // Building `core` needs an option that stable compilers hide.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(root, &target_dir).join("\u{1f}"))
            .envs(self.prebuilt.environment.iter().copied());
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
        Ok(target_dir.join(target).join(profile).join(package))
    }

    /// Compiler flags; those beside the recorded ones only keep the places of things on this machine out of the result.
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
        flags.extend(self.prebuilt.flags.iter().map(|flag| (*flag).to_owned()));
        flags.push(format!("-Clinker={}", self.linker.display()));
        flags
    }
}

/// Where cargo puts what it builds.
pub(super) fn target_dir() -> PathBuf {
    let root = workspace_root();
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Where a compiler has its library.
pub(super) fn sysroot_of(rustc: &Path) -> Option<PathBuf> {
    output(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

/// What a program prints, without the end of the line, if it succeeds.
pub(super) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The rest of the line that starts with `name`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}
