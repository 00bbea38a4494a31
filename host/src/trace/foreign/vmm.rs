//! A hypervisor as `/proc` shows it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ForeignError;

/// A process that runs a virtual machine under KVM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vmm {
    /// Its number.
    pub process: u32,
    /// Its name, as the kernel keeps it: at most 15 bytes.
    pub name: String,
    /// How many virtual machines it has.
    pub machines: usize,
    /// How many vCPUs they have together.
    pub vcpus: usize,
    /// The threads that are known to be vCPUs, by their names, and which vCPU each is; sorted by vCPU.
    pub threads: Vec<(u32, u32)>,
}

impl Vmm {
    /// Looks at a process.
    ///
    /// # Errors
    /// [`ForeignError`]: it is not there, belongs to somebody else, or has no virtual machine.
    pub fn find(process: u32) -> Result<Self, ForeignError> {
        let folder = PathBuf::from(format!("/proc/{process}"));
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ForeignError::NoProcess(process),
            _ => ForeignError::Denied { process, source },
        };
        let name = name(&folder).map_err(failed)?;
        let links = links(&folder.join("fd")).map_err(failed)?;
        let count = |what: fn(&str) -> bool| links.iter().filter(|link| what(link)).count();
        let machines = count(|link| link == "anon_inode:kvm-vm");
        if machines == 0 {
            return Err(ForeignError::NoMachine { process, name });
        }
        let mut threads = threads(&folder.join("task")).map_err(failed)?;
        threads.sort_unstable_by_key(|(_, vcpu)| *vcpu);
        Ok(Self {
            process,
            name,
            machines,
            vcpus: count(|link| link.starts_with("anon_inode:kvm-vcpu")),
            threads,
        })
    }
}

fn name(folder: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(folder.join("comm"))?.trim_end().to_owned())
}

/// What the links of a folder point to; those that vanish meanwhile are left out.
fn links(folder: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(targets.map(|target| target.to_string_lossy().into_owned()).collect())
}

/// The threads that are vCPUs by their names.
fn threads(folder: &Path) -> io::Result<Vec<(u32, u32)>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok);
    let thread = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, vcpu_of(&name(&entry.path()).ok()?)?))
    };
    Ok(entries.filter_map(thread).collect())
}

/// Which vCPU a thread of this name is: QEMU (with `-name debug-threads=on`) and crosvm, Firecracker, Cloud Hypervisor, Dunlin.
fn vcpu_of(name: &str) -> Option<u32> {
    let number = |text: &str| text.parse().ok();
    if let Some(rest) = name.strip_prefix("CPU ") {
        return number(rest.strip_suffix("/KVM")?);
    }
    if let Some(rest) = name
        .strip_prefix("fc_vcpu ")
        .or_else(|| name.strip_prefix("crosvm_vcpu"))
    {
        return number(rest);
    }
    number(name.strip_prefix("vcpu")?.split(' ').next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_tell_their_vcpu_by_their_names() {
        for (name, vcpu) in [
            ("CPU 0/KVM", Some(0)),
            ("CPU 17/KVM", Some(17)),
            ("CPU 0/TCG", None),
            ("fc_vcpu 3", Some(3)),
            ("vcpu2", Some(2)),
            ("vcpu1 my guest", Some(1)),
            ("crosvm_vcpu4", Some(4)),
            ("vcpus", None),
            ("qemu-system-x86", None),
        ] {
            assert_eq!(vcpu_of(name), vcpu, "{name}");
        }
    }

    #[test]
    fn a_process_without_a_machine_is_refused_by_name() {
        // A process of its own, since tests beside this one may have guests.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = Vmm::find(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(found, Err(ForeignError::NoMachine { .. })), "{found:?}");
        assert!(matches!(Vmm::find(u32::MAX), Err(ForeignError::NoProcess(u32::MAX))));
    }
}
