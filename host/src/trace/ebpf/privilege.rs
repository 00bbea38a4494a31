//! What a process must be allowed to do in order to trace by eBPF.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::TracerError;

/// What `setcap` gives to a program.
pub const GRANT: &str = "cap_bpf,cap_perfmon+ep";

/// Numbers of capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The number of the first PID namespace's inode (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Capabilities that this process lacks for tracing; empty if there are none.
pub fn missing() -> Vec<&'static str> {
    lacking(held())
}

/// Whether this process may ask the kernel to measure how long its eBPF programs run.
pub fn may_measure() -> bool {
    held() >> CAP_SYS_ADMIN & 1 == 1
}

/// Refuses with the missing capabilities by name, and where process numbers mean nothing.
pub(super) fn check() -> Result<(), TracerError> {
    let missing = missing();
    if !missing.is_empty() {
        return Err(denied(&missing));
    }
    // Where /proc is not mounted there is no number to be mistaken about either.
    match fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != FIRST_PID_NAMESPACE => Err(TracerError::PidNamespace),
        _ => Ok(()),
    }
}

fn denied(missing: &[&str]) -> TracerError {
    let program = std::env::current_exe().map_or_else(|_| "dunlin".into(), |path| path.display().to_string());
    TracerError::Denied {
        missing: missing.join(" and "),
        program,
    }
}

/// The mask of effective capabilities: proc(5), `/proc/PID/status`.
fn held() -> u64 {
    effective(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn effective(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// `CAP_SYS_ADMIN` includes the others: capabilities(7).
fn lacking(held: u64) -> Vec<&'static str> {
    let has = |capability: u32| held >> capability & 1 == 1;
    if has(CAP_SYS_ADMIN) {
        return vec![];
    }
    let needed = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")];
    let lacking = needed.into_iter().filter(|(capability, _)| !has(*capability));
    lacking.map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(lacking(0), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(lacking(1 << CAP_BPF), ["CAP_PERFMON"]);
        assert_eq!(lacking(1 << CAP_PERFMON), ["CAP_BPF"]);
        assert!(lacking(1 << CAP_PERFMON | 1 << CAP_BPF).is_empty());
        assert!(lacking(1 << CAP_SYS_ADMIN).is_empty());
        let error = denied(&["CAP_BPF", "CAP_PERFMON"]).to_string();
        assert!(error.contains("needs CAP_BPF and CAP_PERFMON"), "{error}");
        assert!(error.contains("sudo setcap cap_bpf,cap_perfmon+ep /"), "{error}");
    }

    #[test]
    fn the_kernel_s_text_is_understood() {
        assert_eq!(
            effective("Name:\tx\nCapEff:\t000000c000000000\n"),
            1 << CAP_BPF | 1 << CAP_PERFMON
        );
        assert_eq!(effective(""), 0);
    }
}
