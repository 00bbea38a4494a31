//! `cargo xtask setup`: what the full test set needs beyond stable Rust, from the distribution's packages. Quick and
//! harmless when everything is there.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use dunlin_tests::Capability;
use dunlin_tests::capability::baremetal_toolchain;
use dunlin_tests::lab::{KERNEL_PACKAGE, SHELL_PACKAGE};
use dunlin_tests::linux::packages::PACKAGES;

use crate::command::{cargo, describe, succeeds};
use crate::lab::packages;

/// Packages that are installed together, and what for.
struct Group {
    purpose: &'static str,
    packages: &'static [&'static str],
    /// True when something else than these packages already serves the purpose.
    is_served: fn() -> bool,
    /// Another way, for distributions without these packages.
    otherwise: &'static str,
}

const GROUPS: [Group; 5] = [
    Group {
        purpose: "stock QEMU, which the benchmarks measure beside Dunlin",
        packages: &["qemu-system-x86"],
        is_served: || false,
        otherwise: "install QEMU 7 or later with the x86-64 system emulator",
    },
    Group {
        purpose: "network namespaces for tests of links",
        packages: &["iproute2", "util-linux"],
        is_served: || false,
        otherwise: "install `ip` and `unshare`",
    },
    Group {
        purpose: "compiling the fuzzing engine",
        packages: &["g++"],
        is_served: || false,
        otherwise: "install a C++ compiler",
    },
    Group {
        purpose: "building core and the guest payload for bare metal: a rustc with its library's source",
        packages: &["rustc-web", "rust-web-src"],
        is_served: || baremetal_toolchain().is_some(),
        otherwise: "rustup target add x86_64-unknown-none",
    },
    Group {
        purpose: "linking eBPF programs",
        packages: &["rust-web-llvm", "llvm-22-dev", "zlib1g-dev", "libzstd-dev"],
        is_served: || has_program("bpf-linker"),
        otherwise: "cargo install bpf-linker",
    },
];

/// Runs the task. Fails when something could not be installed that the distribution offers.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let packages_are_there = install_packages()?;
    install_cargo_tools()?;
    fetch_lab()?;
    fetch_programs()?;
    println!("\nWhat the tests find on this machine:");
    for capability in Capability::ALL {
        match capability.probe() {
            Ok(()) => println!("  {capability:<12} yes"),
            Err(why) => println!("  {capability:<12} no: {why}"),
        }
    }
    Ok(if packages_are_there {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// True when nothing is missing any more that could be installed.
fn install_packages() -> anyhow::Result<bool> {
    println!("Packages of the distribution:");
    let missing: Vec<&Group> = GROUPS.iter().filter(|group| is_missing(group)).collect();
    for group in &GROUPS {
        let state = if missing.iter().any(|other| other.purpose == group.purpose) {
            "missing"
        } else {
            "there"
        };
        println!("  {state:<8} {}: {}", group.packages.join(" "), group.purpose);
    }
    if missing.is_empty() {
        return Ok(true);
    }
    if !has_program("apt-get") {
        println!("There is no apt-get here. Instead:");
        missing.iter().for_each(|group| println!("  {}", group.otherwise));
        return Ok(false);
    }
    if !rustix::process::geteuid().is_root() {
        let names = missing
            .iter()
            .flat_map(|group| group.packages)
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        println!("Run this once, then `cargo xtask setup` again:");
        println!("  sudo sh -c 'apt-get update && apt-get install --yes --no-install-recommends {names}'");
        return Ok(false);
    }
    apt_get(&["update"])?;
    let (offered, unknown): (Vec<&Group>, Vec<&Group>) = missing.into_iter().partition(|group| is_offered(group));
    for group in &unknown {
        println!(
            "Not in this distribution: {}. Instead: {}",
            group.packages.join(" "),
            group.otherwise
        );
    }
    let names: Vec<&str> = offered.iter().flat_map(|group| group.packages).copied().collect();
    if !names.is_empty() {
        apt_get(&[&["install", "--yes", "--no-install-recommends"], names.as_slice()].concat())?;
    }
    let still: Vec<&str> = offered
        .iter()
        .filter(|group| is_missing(group))
        .map(|group| group.purpose)
        .collect();
    ensure!(
        still.is_empty(),
        "still missing after the installation: {}",
        still.join("; ")
    );
    Ok(true)
}

/// The LLVM of the distribution that understands the output of its Rust compiler.
const LLVM: &str = "/usr/lib/llvm-22";

fn install_cargo_tools() -> anyhow::Result<()> {
    println!("\nCargo tools:");
    let purpose = "cargo-fuzz: coverage-guided fuzzing of the parsers";
    if Capability::Fuzz.probe().is_ok() {
        println!("  there    {purpose}");
    } else if output("cargo", &["+nightly", "--version"]).is_none() {
        println!("  left out {purpose}; it needs a nightly toolchain (rustup toolchain install nightly)");
    } else {
        install(purpose, &mut cargo(&["install", "--locked", "cargo-fuzz"]))?;
    }
    let purpose = "bpf-linker: linking eBPF programs";
    if has_program("bpf-linker") {
        println!("  there    {purpose}");
    } else if Path::new(LLVM).is_dir() {
        let own_llvm = ["--no-default-features", "--features", "llvm-22"];
        let mut command = cargo(&[&["install", "--locked", "bpf-linker"], &own_llvm[..]].concat());
        install(purpose, command.env("LLVM_PREFIX", LLVM))?;
    } else {
        println!("  left out {purpose}; it needs LLVM (or: cargo install bpf-linker)");
    }
    Ok(())
}

fn fetch_lab() -> anyhow::Result<()> {
    println!("\nPackages that are unpacked into the target directory and not installed:");
    let purpose =
        format!("{KERNEL_PACKAGE} {SHELL_PACKAGE}: a KVM that behaves as on hardware, in an emulated machine");
    if packages::are_there() {
        println!("  there    {purpose}");
        return Ok(());
    }
    println!("  missing  {purpose}");
    if packages::kernel().is_none() && has_program("apt-get") && rustix::process::geteuid().is_root() {
        apt_get(&["update"])?;
    }
    let Some(kernel) = packages::kernel() else {
        println!("Not in this distribution, or unknown before `apt-get update`. The lab is Debian's.");
        return Ok(());
    };
    packages::fetch(&kernel)
}

fn fetch_programs() -> anyhow::Result<()> {
    let names = PACKAGES.map(|(package, _)| package).join(" ");
    let purpose = format!("{names} and their libraries: what Linux guests run");
    if packages::programs_are_there() {
        println!("  there    {purpose}");
        return Ok(());
    }
    println!("  missing  {purpose}");
    let unknown: Vec<&str> = packages::program_packages()
        .filter(|package| !is_package_offered(package))
        .collect();
    if !unknown.is_empty() {
        println!(
            "Not in this distribution: {}. The guests' programs are those of Debian 12.",
            unknown.join(" ")
        );
        return Ok(());
    }
    packages::fetch_programs()
}

fn install(purpose: &str, command: &mut Command) -> anyhow::Result<()> {
    println!("  missing  {purpose}\n> {}", describe(command));
    ensure!(
        succeeds(command)?,
        "`{}` failed; its messages above say why",
        describe(command)
    );
    Ok(())
}

fn is_missing(group: &Group) -> bool {
    !(group.is_served)() && !group.packages.iter().all(|package| is_installed(package))
}

fn is_installed(package: &str) -> bool {
    output("dpkg-query", &["--show", "--showformat=${Status}", package])
        .is_some_and(|status| status.contains("install ok installed"))
}

/// True when the distribution has all packages of the group.
fn is_offered(group: &Group) -> bool {
    group.packages.iter().all(|package| is_package_offered(package))
}

fn is_package_offered(package: &str) -> bool {
    let policy = output("apt-cache", &["policy", package]).unwrap_or_default();
    policy
        .lines()
        .any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)"))
}

fn apt_get(args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    println!("\n> {}", describe(&command));
    ensure!(
        succeeds(&mut command)?,
        "`{}` failed; its messages above say why",
        describe(&command)
    );
    Ok(())
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Stdout of a program that succeeded.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context(program.to_owned())
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
