//! What is behind `/dev/kvm`: virtualisation of the processor, or something that emulates.

use std::fmt;
use std::fs;
use std::path::Path;

/// The part of KVM that runs guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// `kvm_amd`: SVM of AMD's processors.
    Svm {
        /// Whether the processor translates guest-physical addresses (nested page tables).
        nested_paging: bool,
    },
    /// `kvm_intel`: VMX of Intel's processors.
    Vmx {
        /// Whether the processor translates guest-physical addresses (extended page tables).
        nested_paging: bool,
        /// Whether the processor logs first writes to pages by itself; they then cause no fault that could be traced.
        page_modification_log: bool,
    },
    /// `kvm_pvm`: no virtualisation of the processor; instructions of a guest that was not made for it are emulated.
    Pvm,
}

impl Backend {
    /// Finds it by what the kernel shows of its modules; `None` if there is none that is known here.
    pub fn find() -> Option<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::find_in(Path::new("/sys/module"), &cpuinfo)
    }

    /// Modules that are built into the kernel are shown on every processor, so its flags decide.
    fn find_in(modules: &Path, cpuinfo: &str) -> Option<Self> {
        let is_there = |module: &str| modules.join(module).is_dir();
        let is_on = |module: &str, parameter: &str| {
            let value = fs::read_to_string(modules.join(module).join("parameters").join(parameter));
            value.is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
        };
        if is_there("kvm_amd") && has_flag(cpuinfo, "svm") {
            let nested_paging = is_on("kvm_amd", "npt");
            Some(Self::Svm { nested_paging })
        } else if is_there("kvm_intel") && has_flag(cpuinfo, "vmx") {
            Some(Self::Vmx {
                nested_paging: is_on("kvm_intel", "ept"),
                page_modification_log: is_on("kvm_intel", "pml"),
            })
        } else if is_there("kvm_pvm") {
            Some(Self::Pvm)
        } else {
            None
        }
    }

    /// Whether guests run on the processor itself.
    pub const fn runs_on_the_processor(self) -> bool {
        matches!(self, Self::Svm { .. } | Self::Vmx { .. })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paging = |nested: bool| if nested { "nested paging" } else { "shadow paging" };
        match *self {
            Self::Svm { nested_paging } => write!(f, "kvm_amd (SVM, {})", paging(nested_paging)),
            Self::Vmx {
                nested_paging,
                page_modification_log,
            } => {
                let log = if page_modification_log {
                    ", page-modification log"
                } else {
                    ""
                };
                write!(f, "kvm_intel (VMX, {}{log})", paging(nested_paging))
            }
            Self::Pvm => f.write_str("kvm_pvm (no virtualisation of the processor)"),
        }
    }
}

/// Whether a processor has a feature, in proc(5) `/proc/cpuinfo`.
fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    flags.is_some_and(|flags| flags.split_ascii_whitespace().any(|word| word == flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMD: &str = "processor\t: 0\nflags\t\t: fpu svm npt\n";
    const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vmx\n";
    const NEITHER: &str = "processor\t: 0\nflags\t\t: fpu\n";

    #[test]
    fn modules_and_flags_together_decide() {
        let folder = tempfile::tempdir().unwrap();
        let find = |cpuinfo| Backend::find_in(folder.path(), cpuinfo);
        let set = |module: &str, parameter: &str, value: &str| {
            let parameters = folder.path().join(module).join("parameters");
            fs::create_dir_all(&parameters).unwrap();
            fs::write(parameters.join(parameter), value).unwrap();
        };
        assert_eq!(find(AMD), None);
        set("kvm_intel", "ept", "Y\n");
        set("kvm_intel", "pml", "N\n");
        set("kvm_amd", "npt", "1\n");
        assert_eq!(find(AMD), Some(Backend::Svm { nested_paging: true }));
        let vmx = Backend::Vmx {
            nested_paging: true,
            page_modification_log: false,
        };
        assert_eq!(find(INTEL), Some(vmx));
        assert_eq!(vmx.to_string(), "kvm_intel (VMX, nested paging)");
        assert_eq!(find(NEITHER), None);
        set("kvm_pvm", "none", "");
        assert_eq!(find(NEITHER), Some(Backend::Pvm));
        assert!(vmx.runs_on_the_processor() && !Backend::Pvm.runs_on_the_processor());
    }
}
