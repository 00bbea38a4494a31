//! What tracing by eBPF needs.

use super::Probe;
use std::{fs, path::Path};

const USE: &str = "recording page writes by eBPF";

/// Numbers of capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

pub(super) fn probes() -> [Probe; 3] {
    [types(), privilege(), lockdown()]
}

fn types() -> Probe {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Probe::ok("kernel types", USE, "/sys/kernel/btf/vmlinux".into())
    } else {
        Probe::missing(
            "kernel types",
            USE,
            "no /sys/kernel/btf/vmlinux".into(),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF",
        )
    }
}

fn privilege() -> Probe {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = effective_capabilities(&status);
    let has = |capability: u32| held >> capability & 1 == 1;
    if has(CAP_SYS_ADMIN) {
        Probe::ok("eBPF privilege", USE, "CAP_SYS_ADMIN".into())
    } else if has(CAP_BPF) && has(CAP_PERFMON) {
        Probe::ok("eBPF privilege", USE, "CAP_BPF and CAP_PERFMON".into())
    } else {
        Probe::missing(
            "eBPF privilege",
            USE,
            "neither root nor CAP_BPF with CAP_PERFMON".into(),
            "run as root, or setcap cap_bpf,cap_perfmon+ep",
        )
    }
}

fn lockdown() -> Probe {
    const FILES: &str = "/sys/kernel/security";
    let text = fs::read_to_string(Path::new(FILES).join("lockdown")).unwrap_or_default();
    match lockdown_mode(&text) {
        Some("none") => Probe::ok("lockdown", USE, "none".into()),
        Some("integrity") => Probe::limited(
            "lockdown",
            "attaching eBPF programs to kernel functions (tracepoints work)",
            "integrity".into(),
            "boot without lockdown=integrity (secure boot may turn it on)",
        ),
        Some(mode) => Probe::missing("lockdown", USE, mode.into(), "boot without lockdown=confidentiality"),
        // Where the file system is mounted, it is never empty.
        None if fs::read_dir(FILES).is_ok_and(|mut entries| entries.next().is_some()) => {
            Probe::ok("lockdown", USE, "not part of this kernel".into())
        }
        None => Probe::limited(
            "lockdown",
            "knowing beforehand which eBPF programs load",
            format!("not to be seen: nothing is mounted at {FILES}"),
            "mount -t securityfs securityfs /sys/kernel/security",
        ),
    }
}

/// The mask in proc(5) `/proc/PID/status`.
fn effective_capabilities(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// The mode in brackets: `none [integrity] confidentiality`.
fn lockdown_mode(text: &str) -> Option<&str> {
    text.split_ascii_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_texts_are_understood() {
        assert_eq!(lockdown_mode("none [integrity] confidentiality\n"), Some("integrity"));
        assert_eq!(lockdown_mode(""), None);
        assert_eq!(
            effective_capabilities("Name:\tx\nCapEff:\t000000c000000000\n"),
            1 << CAP_BPF | 1 << CAP_PERFMON
        );
        assert_eq!(effective_capabilities(""), 0);
    }
}
