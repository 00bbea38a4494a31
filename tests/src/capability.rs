//! What a test needs of the machine beyond plain Rust. A missing capability is a *named* skip, never a silent pass.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use dunlin::guest::Tracking;
use dunlin::guest::kvm::{Backend, KvmGuest};
use dunlin::memory::{FaultOrigin, GuestMemory, MemoryLayout, Userfaultfd};
use dunlin::trace::ebpf::{Config, Hooks, Mode, Tracer};
use dunlin_core::units::{Bytes, PAGE_SIZE};
use kvm_ioctls::Kvm;

use crate::lab::{self, Parts};
use crate::linux::packages;

/// Environment variable with the capabilities (comma separated) whose absence is a failure instead of a skip.
pub const REQUIRE: &str = "DUNLIN_REQUIRE";
/// Environment variable naming a file that collects one line per skip, so that a caller can count them.
pub const SKIP_LOG: &str = "DUNLIN_SKIP_LOG";
/// Environment variable that asks for the whole product of the test matrices instead of an all-pairs cover: `1`, or `I/N` for every
/// N-th row of it from the I-th on, so that it can be run in parts.
pub const FULL: &str = "DUNLIN_FULL";

/// Something that not every machine offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// `/dev/kvm` opens and makes a virtual machine.
    Kvm,
    /// KVM tracks written pages by dirty rings.
    DirtyRing,
    /// userfaultfd that also catches the kernel's own accesses, which post-copy of a KVM guest needs.
    Uffd,
    /// Loading and attaching eBPF programs.
    Ebpf,
    /// `qemu-system-x86_64` runs.
    Qemu,
    /// New network namespaces can be made and configured.
    Netns,
    /// Some toolchain builds `core` for `x86_64-unknown-none`.
    Baremetal,
    /// A coverage-guided fuzzer: a nightly toolchain and `cargo fuzz`.
    Fuzz,
    /// The process is root, so it can mount file systems and drop privileges.
    Root,
    /// KVM runs guests on the processor itself: only first writes of a page are noticed, a full dirty ring makes a vCPU stop,
    /// and all tracepoints fire. An emulating KVM differs in each.
    Hardware,
    /// The kernel marks written pages of a process (soft-dirty bits of `/proc/PID/pagemap`).
    SoftDirty,
    /// An emulated machine with such a KVM can be booted (`cargo xtask lab`).
    Lab,
    /// Linux guests with programs of others (memcached, stress-ng, a compiler), or with drivers of virtual devices, can be booted. One with
    /// neither needs a [lab](Self::Lab).
    LinuxGuests,
}

impl Capability {
    /// Every capability, in the order of the documentation.
    pub const ALL: [Self; 13] = [
        Self::Kvm,
        Self::DirtyRing,
        Self::Uffd,
        Self::Ebpf,
        Self::Qemu,
        Self::Netns,
        Self::Baremetal,
        Self::Fuzz,
        Self::Root,
        Self::Hardware,
        Self::SoftDirty,
        Self::Lab,
        Self::LinuxGuests,
    ];

    /// The name used in `DUNLIN_REQUIRE` and in skip messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::DirtyRing => "dirty-ring",
            Self::Uffd => "uffd",
            Self::Ebpf => "ebpf",
            Self::Qemu => "qemu",
            Self::Netns => "netns",
            Self::Baremetal => "baremetal",
            Self::Fuzz => "fuzz",
            Self::Root => "root",
            Self::Hardware => "hardware",
            Self::SoftDirty => "soft-dirty",
            Self::Lab => "lab",
            Self::LinuxGuests => "linux-guests",
        }
    }

    /// Tries the real thing. `Err` says what is missing and how to get it.
    pub fn probe(self) -> Result<(), String> {
        match self {
            Self::Kvm => probe_kvm(),
            Self::DirtyRing => KvmGuest::check_ring(Tracking::RING_ENTRIES).map_err(|error| error.to_string()),
            Self::Uffd => probe_uffd(),
            Self::Ebpf => probe_ebpf(),
            Self::Qemu => probe_qemu(),
            Self::Netns => runs("unshare", &["--net", "ip", "link", "set", "lo", "up"]),
            Self::Baremetal => probe_baremetal(),
            Self::Fuzz => runs("cargo", &["+nightly", "fuzz", "--version"]),
            Self::Root => match rustix::process::geteuid().is_root() {
                true => Ok(()),
                false => Err("not root; run the tests as root to include this one".into()),
            },
            Self::Hardware => probe_kvm().and_then(|()| probe_backend()),
            Self::SoftDirty => probe_soft_dirty(),
            Self::Lab => probe_qemu().and_then(|()| probe_lab()),
            Self::LinuxGuests => Self::Lab.probe().and_then(|()| probe_programs()),
        }
    }

    /// True when `DUNLIN_REQUIRE` lists this capability.
    pub fn is_required(self) -> bool {
        std::env::var(REQUIRE).is_ok_and(|list| list.split(',').any(|name| name.trim() == self.name()))
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// True when the machine has `capability`. Otherwise reports the running test as skipped and returns false, so that a
/// test begins with `if !require(Capability::Kvm) { return; }`.
///
/// # Panics
/// When the capability is missing and `DUNLIN_REQUIRE` lists it.
pub fn require(capability: Capability) -> bool {
    let thread = std::thread::current();
    require_as(thread.name().unwrap_or("unnamed test"), capability)
}

/// [`require`] for a caller that is no test thread and gives its own `name`.
///
/// # Panics
/// When the capability is missing and `DUNLIN_REQUIRE` lists it.
pub fn require_as(name: &str, capability: Capability) -> bool {
    let Err(why) = capability.probe() else { return true };
    assert!(
        !capability.is_required(),
        "{name} needs {capability}, which {REQUIRE} demands: {why}"
    );
    report_skip(name, &format!("needs {capability}: {why}"));
    false
}

/// True when the whole product of the test matrices is asked for.
pub fn full() -> bool {
    std::env::var_os(FULL).is_some_and(|value| value != "0")
}

/// Which part of the product is asked for: the I-th of N, from 1; the first of one unless told otherwise.
///
/// # Panics
/// When it is not written so.
pub fn shard() -> (usize, usize) {
    let text = std::env::var(FULL).unwrap_or_default();
    match text.split_once('/') {
        None => (1, 1),
        Some(parts) => parse_shard(parts)
            .unwrap_or_else(|| panic!("{FULL}={text}: write I/N with I from 1 to N, 2/12 for example")),
    }
}

fn parse_shard((index, count): (&str, &str)) -> Option<(usize, usize)> {
    let (index, count) = (index.parse().ok()?, count.parse().ok()?);
    (1..=count).contains(&index).then_some((index, count))
}

/// Says on stderr, past the capture of the test harness, that `name` did not run, and notes it in the skip log.
pub fn report_skip(name: &str, why: &str) {
    let line = format!("SKIP {name}: {}\n", why.replace('\n', " "));
    // One write call for the whole line, so that parallel tests do not mix theirs. A closed stderr is no reason to fail.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os(SKIP_LOG) {
        let log = OpenOptions::new().create(true).append(true).open(path);
        log.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the skip log can be written");
    }
}

fn probe_kvm() -> Result<(), String> {
    let kvm = Kvm::new().map_err(|e| format!("cannot open /dev/kvm ({e}); load the kvm module or join group kvm"))?;
    kvm.create_vm()
        .map(drop)
        .map_err(|e| format!("/dev/kvm makes no virtual machine ({e})"))
}

fn probe_backend() -> Result<(), String> {
    match Backend::find() {
        Some(backend) if backend.runs_on_the_processor() => Ok(()),
        Some(backend) => Err(format!("{backend} emulates; `cargo xtask lab` has a KVM that does not")),
        None => Err("the kernel does not say what is behind /dev/kvm".into()),
    }
}

fn probe_qemu() -> Result<(), String> {
    runs("qemu-system-x86_64", &["--version"])
}

fn probe_lab() -> Result<(), String> {
    let folder = lab::packages_folder().map_err(|error| format!("{error:#}"))?;
    match Parts::find(&folder) {
        Ok(_) => Ok(()),
        Err(why) => Err(format!("{why}; `cargo xtask setup` fetches the lab's kernel")),
    }
}

fn probe_programs() -> Result<(), String> {
    let folder = |folder: anyhow::Result<PathBuf>| folder.map_err(|error| format!("{error:#}"));
    let (kernel, programs) = (folder(lab::packages_folder())?, folder(packages::folder())?);
    let found = Parts::find(&kernel).and_then(|parts| parts.check_virtio());
    found
        .and_then(|()| packages::find_all(&programs))
        .map_err(|why| format!("{why}; `cargo xtask setup` fetches the guests' drivers and programs"))
}

fn probe_uffd() -> Result<(), String> {
    let layout = MemoryLayout::new(Bytes(PAGE_SIZE)).expect("one page is a memory");
    let memory = GuestMemory::new(layout).map_err(|error| error.to_string())?;
    Userfaultfd::open(Arc::new(memory), FaultOrigin::All)
        .map(drop)
        .map_err(|error| error.to_string())
}

fn probe_soft_dirty() -> Result<(), String> {
    const SOFT_DIRTY: u64 = 1 << 55;
    // Where the kernel has such bits, what is mapped since they were last cleared has them set.
    let page = vec![1_u8; PAGE_SIZE as usize];
    let address = page.as_ptr().addr() as u64;
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").map_err(|error| format!("no /proc/self/pagemap ({error})"))?;
    let read = pagemap.read_exact_at(&mut entry, address / PAGE_SIZE * 8);
    read.map_err(|error| format!("cannot read /proc/self/pagemap ({error})"))?;
    match std::hint::black_box(page)[0] == 1 && u64::from_le_bytes(entry) & SOFT_DIRTY != 0 {
        true => Ok(()),
        false => Err("the kernel is built without CONFIG_MEM_SOFT_DIRTY".into()),
    }
}

fn probe_ebpf() -> Result<(), String> {
    let config = Config {
        process: std::process::id(),
        hooks: vec![Hooks::Faults],
        regions: vec![],
        vcpus: vec![],
        mode: Mode::Stream {
            buffer: Bytes(PAGE_SIZE),
        },
        repeats: true,
        measure: false,
    };
    let tracer = Tracer::attach(config).map_err(|error| error.to_string())?;
    tracer.counters().map(drop).map_err(|error| error.to_string())
}

fn runs(program: &str, args: &[&str]) -> Result<(), String> {
    let result = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = result.map_err(|e| format!("{program} does not start ({e}); see `cargo xtask setup`"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            Err(format!("`{program} {}` failed ({})", args.join(" "), stderr.trim()))
        }
    }
}

/// How to run cargo for the bare-metal target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaremetalToolchain {
    /// Variables to set.
    pub env: Vec<(&'static str, String)>,
    /// Arguments right after `cargo`, before the subcommand.
    pub toolchain: Option<String>,
    /// Arguments after the subcommand.
    pub args: Vec<&'static str>,
}

/// The target that proves `core` to need no operating system.
pub const BAREMETAL_TARGET: &str = "x86_64-unknown-none";

/// Finds a toolchain for [`BAREMETAL_TARGET`]: a rustup target, a nightly with `rust-src`, or the distribution's rustc
/// with its library source.
pub fn baremetal_toolchain() -> Option<BaremetalToolchain> {
    let target = vec!["--target", BAREMETAL_TARGET];
    let build_std = vec!["--target", BAREMETAL_TARGET, "-Z", "build-std=core"];
    let sysroot = |toolchain: Option<&str>, rustc: &str| {
        let output = Command::new(rustc)
            .args(toolchain)
            .args(["--print", "sysroot"])
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let has = |root: &str, path: &str| Path::new(root).join("lib/rustlib").join(path).exists();
    const SOURCE: &str = "src/rust/library/core/src/lib.rs";

    if sysroot(None, "rustc").is_some_and(|root| has(&root, BAREMETAL_TARGET)) {
        return Some(BaremetalToolchain {
            env: vec![],
            toolchain: None,
            args: target,
        });
    }
    if let Some(root) = sysroot(Some("+nightly"), "rustc") {
        let toolchain = Some("+nightly".to_owned());
        if has(&root, BAREMETAL_TARGET) {
            return Some(BaremetalToolchain {
                env: vec![],
                toolchain,
                args: target,
            });
        }
        if has(&root, SOURCE) {
            return Some(BaremetalToolchain {
                env: vec![],
                toolchain,
                args: build_std,
            });
        }
    }
    let distribution = "/usr/bin/rustc";
    let root = sysroot(None, distribution)?;
    has(&root, SOURCE).then(|| BaremetalToolchain {
        env: vec![("RUSTC", distribution.into()), ("RUSTC_BOOTSTRAP", "1".into())],
        toolchain: None,
        args: build_std,
    })
}

fn probe_baremetal() -> Result<(), String> {
    baremetal_toolchain().map(drop).ok_or_else(|| {
        format!(
            "no toolchain for {BAREMETAL_TARGET}; run `cargo xtask setup` or `rustup target add {BAREMETAL_TARGET}`"
        )
    })
}
