//! Memory, processors, limits, the state directory, and QEMU.

use super::Probe;
use crate::report::bytes;
use rustix::{
    fs::{Access, access, statfs},
    process::{Resource, getrlimit},
};
use std::{fs, num::NonZero, path::Path, process::Command, thread};

/// Below this, no guest of a useful size starts.
const LITTLE_MEMORY_BYTES: u64 = 256 << 20;

/// Below this, older kernels refuse eBPF maps.
const LITTLE_LOCKED_BYTES: u64 = 8 << 20;

pub(super) fn probes(state: &Path) -> [Probe; 5] {
    [memory(), processors(), locked_memory(), state_directory(state), qemu()]
}

fn memory() -> Probe {
    const USE: &str = "guests, and receiving them";
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (Some(total), Some(available)) = (kibibytes(&info, "MemTotal"), kibibytes(&info, "MemAvailable")) else {
        return Probe::limited("memory", USE, "/proc/meminfo does not say".into(), "mount /proc");
    };
    let finding = format!("{} available of {}", bytes(available << 10), bytes(total << 10));
    if available << 10 < LITTLE_MEMORY_BYTES {
        return Probe::limited("memory", USE, finding, "end other programs");
    }
    Probe::ok("memory", USE, finding)
}

fn processors() -> Probe {
    const USE: &str = "a guest that runs while it is being moved";
    match thread::available_parallelism().map_or(1, NonZero::get) {
        1 => Probe::limited(
            "processors",
            USE,
            "1: guest and migration take turns".into(),
            "allow this process more (taskset, cgroup)",
        ),
        count => Probe::ok("processors", USE, count.to_string()),
    }
}

fn locked_memory() -> Probe {
    const USE: &str = "eBPF maps on kernels before 5.11";
    match getrlimit(Resource::Memlock).current {
        None => Probe::ok("locked memory", USE, "unlimited".into()),
        Some(limit) if limit >= LITTLE_LOCKED_BYTES => {
            Probe::ok("locked memory", USE, format!("up to {}", bytes(limit)))
        }
        Some(limit) => Probe::limited(
            "locked memory",
            USE,
            format!("up to {}", bytes(limit)),
            "ulimit -l unlimited",
        ),
    }
}

fn state_directory(path: &Path) -> Probe {
    const USE: &str = "hand-over records that outlive a crash";
    let shown = path.display();
    let kind = match statfs(path) {
        Ok(found) => file_system(found.f_type as u64),
        Err(errno) => {
            return Probe::missing(
                "state directory",
                USE,
                format!("{shown}: {errno}"),
                "create it, or name another with --state",
            );
        }
    };
    if let Err(errno) = access(path, Access::WRITE_OK | Access::EXEC_OK) {
        let fix = "change its owner or mode, or name another with --state";
        return Probe::missing("state directory", USE, format!("{shown}: {errno}"), fix);
    }
    match kind {
        FileSystem::Volatile(name) => {
            let finding = format!("{shown} is on {name}, which a reboot empties");
            Probe::limited("state directory", USE, finding, "name one on a disk with --state")
        }
        FileSystem::Lasting(name) => Probe::ok("state directory", USE, format!("{shown} is on {name}")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystem {
    Lasting(&'static str),
    Volatile(&'static str),
}

/// By the magic numbers of statfs(2).
const fn file_system(magic: u64) -> FileSystem {
    match magic {
        0x0102_1994 => FileSystem::Volatile("tmpfs"),
        0x8584_58f6 => FileSystem::Volatile("ramfs"),
        0xef53 => FileSystem::Lasting("ext4"),
        0x5846_5342 => FileSystem::Lasting("xfs"),
        0x9123_683e => FileSystem::Lasting("btrfs"),
        0x2fc1_2fc1 => FileSystem::Lasting("zfs"),
        0x794c_7630 => FileSystem::Lasting("overlayfs"),
        0x6969 => FileSystem::Lasting("nfs"),
        _ => FileSystem::Lasting("a file system that is not known here"),
    }
}

fn qemu() -> Probe {
    const USE: &str = "steering QEMU";
    const FIX: &str = "install qemu-system-x86 (Debian, Ubuntu) or qemu-system-x86-core (Fedora)";
    match Command::new("qemu-system-x86_64").arg("--version").output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Probe::ok("QEMU", USE, text.lines().next().unwrap_or("version unknown").to_owned())
        }
        Ok(output) => Probe::missing(
            "QEMU",
            USE,
            format!("qemu-system-x86_64 --version ended with {}", output.status),
            FIX,
        ),
        Err(_) => Probe::missing("QEMU", USE, "no qemu-system-x86_64 on the PATH".into(), FIX),
    }
}

/// A line of proc(5) `/proc/meminfo`.
fn kibibytes(info: &str, field: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_texts_are_understood() {
        let info = "MemTotal:       24524668 kB\nMemFree:   1 kB\nMemAvailable:   22334455 kB\n";
        assert_eq!(kibibytes(info, "MemTotal"), Some(24_524_668));
        assert_eq!(kibibytes(info, "MemAvailable"), Some(22_334_455));
        assert_eq!(kibibytes(info, "Mem"), None);
    }

    #[test]
    fn a_state_directory_that_is_not_there_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(state_directory(dir.path()).works());
        assert!(!state_directory(&dir.path().join("absent")).works());
        assert_eq!(file_system(0x0102_1994), FileSystem::Volatile("tmpfs"));
    }
}
