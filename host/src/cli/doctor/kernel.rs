//! What tracing by eBPF needs.

use super::Probe;
use crate::trace::ebpf::privilege;
use std::{fs, path::Path};

const USE: &str = "recording page writes by eBPF";

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
    let missing = privilege::missing();
    if missing.is_empty() {
        Probe::ok("eBPF privilege", USE, "all capabilities".into())
    } else {
        let fix = format!("run as root, or setcap {}", privilege::GRANT);
        Probe::missing("eBPF privilege", USE, format!("no {}", missing.join(", no ")), &fix)
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
    }
}
