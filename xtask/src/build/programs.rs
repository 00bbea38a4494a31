//! The eBPF programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use dunlin_core::record::Kind;
use elf::ElfBytes;
use elf::abi::EM_BPF;
use elf::endian::LittleEndian;

use super::Prebuilt;
use super::toolchain::output;

pub(super) const PROGRAMS: Prebuilt = Prebuilt {
    name: "eBPF object",
    package: "dunlin-ebpf",
    target: "bpfel-unknown-none",
    profile: "ebpf",
    folder: "ebpf/prebuilt",
    file: "dunlin.bpf.o",
    // Version 3 of the machine has the atomic instructions: Linux 5.12. Panics name no line, as in the payload.
    flags: &["-Ctarget-cpu=v3", "-Zlocation-detail=file"],
    environment: &[],
    linker,
    advice: "`rustup toolchain install nightly --component rust-src` and `cargo install bpf-linker`",
    examine,
    test: ["tracer", ""],
    variable: Some("DUNLIN_TEST_PROGRAMS"),
};

/// The committed file must stay small; it is in every binary of Dunlin.
const MAX_BYTES: usize = 64 << 10;

fn linker(_: &Path, _: &str) -> Option<(PathBuf, String)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let linker = std::env::split_paths(&path)
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())?;
    let version = output(Command::new(&linker).arg("--version"))?;
    Some((linker, version))
}

/// Checks that it has a program for every kind of event.
fn examine(bytes: &[u8]) -> anyhow::Result<()> {
    ensure!(
        bytes.len() <= MAX_BYTES,
        "it has {} bytes, more than {MAX_BYTES}",
        bytes.len()
    );
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).context("it is no 64-bit ELF file")?;
    ensure!(file.ehdr.e_machine == EM_BPF, "it is not for eBPF");
    let (symbols, names) = file
        .symbol_table()
        .context("its symbols are wrong")?
        .context("it has no symbols")?;
    for kind in Kind::ALL {
        let is_there = symbols
            .iter()
            .any(|symbol| names.get(symbol.st_name as usize).is_ok_and(|name| name == kind.hook()));
        ensure!(is_there, "it has no program for {}", kind.hook());
    }
    Ok(())
}
