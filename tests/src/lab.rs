//! What the lab is made of: a kernel of its own and a shell, unpacked from the distribution's packages, never installed.
//!
//! The lab is an emulated machine (`cargo xtask lab`) whose processor has virtualisation, so that KVM inside behaves as on
//! hardware, whatever the machine around it offers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process;

/// The package that depends on the newest kernel of the distribution.
pub const KERNEL_PACKAGE: &str = "linux-image-amd64";
/// The package with a shell and its tools in one static file.
pub const SHELL_PACKAGE: &str = "busybox-static";

/// A kernel with its modules, and a shell, as files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parts {
    /// The kernel's name for itself (`uname -r`).
    pub release: String,
    /// What is booted.
    pub kernel: PathBuf,
    /// The folder under which its modules lie.
    pub modules: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

impl Parts {
    /// Looks for the packages' files under `root`.
    ///
    /// # Errors
    /// What is not there.
    pub fn find(root: &Path) -> Result<Self, String> {
        let busybox = root.join("bin/busybox");
        let (release, kernel) =
            newest_kernel(&root.join("boot")).ok_or_else(|| format!("no kernel in {}", root.join("boot").display()))?;
        let modules = root.join("lib/modules").join(&release).join("kernel");
        for (path, is_there) in [(&busybox, busybox.is_file()), (&modules, modules.is_dir())] {
            if !is_there {
                return Err(format!("there is no {}", path.display()));
            }
        }
        Ok(Self {
            release,
            kernel,
            modules,
            busybox,
        })
    }

    /// Looks for the drivers of virtual devices, which what was unpacked of the packages some time ago has not.
    ///
    /// # Errors
    /// That they are not there.
    pub fn check_virtio(&self) -> Result<(), String> {
        let folder = self.modules.join("drivers/virtio");
        match folder.is_dir() {
            true => Ok(()),
            false => Err(format!("there is no {}", folder.display())),
        }
    }
}

/// Where the lab's files are: in the target directory of the running program.
///
/// # Errors
/// If the program lies in none.
pub fn folder() -> anyhow::Result<PathBuf> {
    Ok(process::target_folder()?.join("lab"))
}

/// Where `cargo xtask setup` unpacks the lab's packages.
///
/// # Errors
/// As [`folder`].
pub fn packages_folder() -> anyhow::Result<PathBuf> {
    Ok(folder()?.join("packages"))
}

/// The release and the file of the newest kernel in a folder like `/boot`.
fn newest_kernel(boot: &Path) -> Option<(String, PathBuf)> {
    let files = fs::read_dir(boot).ok()?.flatten();
    let kernels = files.filter_map(|file| {
        let release = file.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        Some((release, file.path()))
    });
    kernels.max_by_key(|(release, _)| numbers(release))
}

/// The numbers in a release, in its order: `6.1.0-9-amd64` is older than `6.1.0-57-amd64`.
fn numbers(release: &str) -> Vec<u64> {
    let digits = release.split(|letter: char| !letter.is_ascii_digit());
    digits.filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_with_everything_beside_it_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        assert!(Parts::find(root).is_err());
        let files = [
            "boot/vmlinuz-6.1.0-9-amd64",
            "boot/vmlinuz-6.1.0-57-amd64",
            "boot/config-7",
            "bin/busybox",
        ];
        for file in files.map(|file| root.join(file)) {
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, "").expect("written");
        }
        let why = Parts::find(root).expect_err("no modules");
        assert!(why.contains("6.1.0-57-amd64/kernel"), "{why}");
        fs::create_dir_all(root.join("lib/modules/6.1.0-57-amd64/kernel")).expect("made");
        assert_eq!(Parts::find(root).expect("complete").release, "6.1.0-57-amd64");
    }
}
