//! Programs that others wrote for Linux guests: where they are, and which packages of the distribution have them. `cargo xtask
//! setup` unpacks these, like the kernel's, and installs nothing.

use std::path::{Path, PathBuf};

use crate::lab;

/// A program for a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// The cache server.
    Memcached,
    /// The stressors.
    StressNg,
    /// The C compiler proper, without preprocessor, assembler and linker, which are programs of their own.
    Compiler,
}

/// Packages with programs, and which file of each is wanted.
pub const PACKAGES: [(&str, &str); 3] = [
    ("memcached", "./usr/bin/memcached"),
    ("stress-ng", "./usr/bin/stress-ng"),
    ("cpp-12", "*/cc1"),
];

/// Packages with libraries of these programs, of which only the libraries are wanted. What is missing here, a system with packages
/// of this kind always has.
pub const LIBRARY_PACKAGES: [&str; 24] = [
    "libevent-2.1-7",
    "libsasl2-2",
    "libssl3",
    "libapparmor1",
    "libbsd0",
    "libdrm2",
    "libegl1",
    "libexpat1",
    "libffi8",
    "libgbm1",
    "libgles2",
    "libglvnd0",
    "libgmp10",
    "libipsec-mb1",
    "libisl23",
    "libjpeg62-turbo",
    "libjudydebian1",
    "libkmod2",
    "libmd0",
    "libmpc3",
    "libmpfr6",
    "libsctp1",
    "libwayland-server0",
    "libxxhash0",
];

impl Program {
    const ALL: [Self; 3] = [Self::Memcached, Self::StressNg, Self::Compiler];

    /// Where its package has it.
    const fn path(self) -> &'static str {
        match self {
            Self::Memcached => "usr/bin/memcached",
            Self::StressNg => "usr/bin/stress-ng",
            Self::Compiler => "usr/lib/gcc/x86_64-linux-gnu/12/cc1",
        }
    }

    /// Where it is.
    ///
    /// # Errors
    /// That it is not.
    pub fn find(self, root: &Path) -> Result<PathBuf, String> {
        let path = root.join(self.path());
        match path.is_file() {
            true => Ok(path),
            false => Err(format!("there is no {}", path.display())),
        }
    }

    /// Where it is in a guest.
    pub(super) fn inside(self) -> &'static Path {
        Path::new(match self {
            Self::Memcached => "/usr/bin/memcached",
            Self::StressNg => "/usr/bin/stress-ng",
            Self::Compiler => "/usr/bin/cc1",
        })
    }
}

/// Where `cargo xtask setup` unpacks the packages.
///
/// # Errors
/// As [`lab::folder`].
pub fn folder() -> anyhow::Result<PathBuf> {
    Ok(lab::folder()?.join("programs"))
}

/// Looks for all programs under `root`.
///
/// # Errors
/// What is not there.
pub fn find_all(root: &Path) -> Result<(), String> {
    Program::ALL
        .into_iter()
        .try_for_each(|program| program.find(root).map(drop))
}
