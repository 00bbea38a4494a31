//! The bare-metal guest payload.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use dunlin_core::workload::layout::{PAYLOAD as ENTRY, PAYLOAD_BYTES};
use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;

use super::Prebuilt;
use super::toolchain::{output, sysroot_of};

pub(super) const PAYLOAD: Prebuilt = Prebuilt {
    name: "payload",
    package: "microguest",
    target: "x86_64-unknown-none",
    profile: "microguest",
    folder: "guest-agent/prebuilt",
    file: "microguest.elf",
    // Positions are fixed by the linker script; the payload has no loader that could relocate it. Panics name their file but
    // not their line, so that comments in `core` do not change the payload (those before a log message of its own do).
    flags: &["-Crelocation-model=static", "-Zlocation-detail=file"],
    // What the payload may log.
    environment: &[("DEFMT_LOG", "info")],
    linker,
    advice: "`rustup toolchain install nightly --component rust-src`",
    examine,
    test: ["guests", "life::"],
    variable: None,
};

/// The committed file must stay small; it is in every binary of Dunlin.
const MAX_BYTES: usize = 96 << 10;

fn linker(sysroot: &Path, host: &str) -> Option<(PathBuf, String)> {
    let in_sysroot = |sysroot: &Path| sysroot.join("lib/rustlib").join(host).join("bin/rust-lld");
    // The distribution's compiler comes without a linker; that of the toolchain that builds this program will do.
    let linkers = [
        Some(in_sysroot(sysroot)),
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
    linkers
        .filter_map(|linker| version_of(&linker).map(|version| (linker, version)))
        .next()
}

/// Checks that it is one that the host can load and whose log it can read.
fn examine(bytes: &[u8]) -> anyhow::Result<()> {
    ensure!(
        bytes.len() <= MAX_BYTES,
        "it has {} bytes, more than {MAX_BYTES}",
        bytes.len()
    );
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).context("it is no 64-bit ELF file")?;
    ensure!(file.ehdr.e_machine == EM_X86_64, "it is not for x86-64");
    ensure!(
        file.ehdr.e_entry == ENTRY,
        "its entry is at {:#x}, not {ENTRY:#x}",
        file.ehdr.e_entry
    );
    let segments = file.segments().context("it has no segments")?;
    for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let room = ENTRY..=ENTRY + PAYLOAD_BYTES;
        let end = segment.p_paddr.saturating_add(segment.p_memsz);
        ensure!(
            room.contains(&segment.p_paddr) && room.contains(&end),
            "a segment at {:#x}..{end:#x} is outside its room",
            segment.p_paddr
        );
    }
    let table = defmt_decoder::Table::parse(bytes).context("its log symbols are wrong")?;
    ensure!(table.is_some_and(|table| !table.is_empty()), "it has no log symbols");
    Ok(())
}
