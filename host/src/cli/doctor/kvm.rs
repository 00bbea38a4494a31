//! /dev/kvm and what its guests need of it.

use super::Probe;
use crate::guest::kvm::Backend;
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_READONLY_MEM, KVM_CAP_USER_MEMORY, KVM_CAP_XSAVE2, kvm_dirty_gfn,
};
use kvm_ioctls::Kvm;
use rustix::io::Errno;

/// The only version of the interface there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

const GUESTS: &str = "guests of --kind kvm";
const NEWER_KERNEL: &str = "use a newer kernel";

pub(super) fn probes() -> Vec<Probe> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return vec![not_opened(error.errno())],
    };
    let version = kvm.get_api_version();
    let device = if version != API_VERSION {
        Probe::missing(
            "/dev/kvm",
            GUESTS,
            format!("API version {version}, not {API_VERSION}"),
            NEWER_KERNEL,
        )
    } else if let Err(error) = kvm.create_vm() {
        let fix = "see the kernel log (dmesg); another hypervisor may hold the processor's virtualisation";
        Probe::missing(
            "/dev/kvm",
            GUESTS,
            format!("opens, but makes no virtual machine: {error}"),
            fix,
        )
    } else {
        Probe::ok(
            "/dev/kvm",
            GUESTS,
            format!("API version {version}, makes virtual machines"),
        )
    };
    vec![
        device,
        backend(),
        basics(&kvm),
        dirty_log(&kvm),
        dirty_ring(&kvm),
        state(&kvm),
    ]
}

fn not_opened(errno: i32) -> Probe {
    let (finding, fix) = match Errno::from_raw_os_error(errno) {
        Errno::NOENT | Errno::NXIO | Errno::NODEV => (
            "not there".into(),
            "enable virtualisation in the firmware (or nested virtualisation on the host of this virtual machine), then \
             modprobe kvm_intel or kvm_amd",
        ),
        Errno::ACCESS | Errno::PERM => (
            "there, but denied to this user".into(),
            "run as root, or join the group that owns it (usermod -aG kvm USER, then log in again)",
        ),
        errno => (format!("does not open: {errno}"), "see the kernel log (dmesg)"),
    };
    Probe::missing("/dev/kvm", GUESTS, finding, fix)
}

fn backend() -> Probe {
    const NAME: &str = "kvm backend";
    const USE: &str = "guests at the speed of the processor, and tracing each first write to a page";
    match Backend::find() {
        Some(backend) if backend.runs_on_the_processor() => Probe::ok(NAME, USE, backend.to_string()),
        Some(backend) => Probe::limited(
            NAME,
            USE,
            format!("{backend}; instructions of guests are emulated, about a million a second"),
            "use a host with virtualisation in the processor (nested, if it is a virtual machine itself)",
        ),
        None => Probe::limited(
            NAME,
            USE,
            "none of kvm_amd, kvm_intel, kvm_pvm is to be seen".into(),
            "mount -t sysfs sysfs /sys",
        ),
    }
}

fn basics(kvm: &Kvm) -> Probe {
    let needed = [
        ("user memory", KVM_CAP_USER_MEMORY),
        ("immediate exit", KVM_CAP_IMMEDIATE_EXIT),
    ];
    let lacking: Vec<_> = needed
        .iter()
        .filter(|(_, cap)| has(kvm, *cap) == 0)
        .map(|(name, _)| *name)
        .collect();
    if lacking.is_empty() {
        Probe::ok("kvm basics", GUESTS, "user memory, immediate exit".into())
    } else {
        Probe::missing(
            "kvm basics",
            GUESTS,
            format!("no {}", lacking.join(", no ")),
            NEWER_KERNEL,
        )
    }
}

fn dirty_log(kvm: &Kvm) -> Probe {
    const USE: &str = "clearing dirty bits late, in small pieces";
    match has(kvm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) {
        0 => Probe::limited(
            "kvm dirty log",
            USE,
            "bitmap, without manual protection".into(),
            NEWER_KERNEL,
        ),
        flags => Probe::ok("kvm dirty log", USE, format!("bitmap, manual protection {flags}")),
    }
}

fn dirty_ring(kvm: &Kvm) -> Probe {
    const USE: &str = "guests of --tracking ring, which tell the order of their writes";
    let bytes = has(kvm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL).max(has(kvm, KVM_CAP_DIRTY_LOG_RING));
    match usize::try_from(bytes).unwrap_or(0) / size_of::<kvm_dirty_gfn>() {
        // A guest can be tracked by bitmaps as well.
        0 => Probe::limited("kvm dirty ring", USE, "not there".into(), "use Linux 5.11 or newer"),
        entries => Probe::ok("kvm dirty ring", USE, format!("up to {entries} entries for each vCPU")),
    }
}

fn state(kvm: &Kvm) -> Probe {
    const USE: &str = "moving guests that use large vector registers";
    let read_only = if has(kvm, KVM_CAP_READONLY_MEM) == 0 {
        "no read-only memory"
    } else {
        "read-only memory"
    };
    match has(kvm, KVM_CAP_XSAVE2) {
        0 => Probe::limited(
            "kvm state",
            USE,
            format!("XSAVE of 4096 bytes only, {read_only}"),
            NEWER_KERNEL,
        ),
        bytes => Probe::ok("kvm state", USE, format!("XSAVE of {bytes} bytes, {read_only}")),
    }
}

/// The capability's value; 0 if it is not there.
fn has(kvm: &Kvm, capability: u32) -> i32 {
    kvm.check_extension_raw(capability.into()).max(0)
}
