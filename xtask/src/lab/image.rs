//! What the lab boots: a first file system with the modules, the programs with their libraries, and a plan.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use dunlin_tests::capability::{FULL, REQUIRE};
use dunlin_tests::initramfs::{Archive, add_base, add_libraries, add_modules, add_program};
use dunlin_tests::lab::Parts;
use dunlin_tests::process::BINARY;

use super::programs::Tests;

/// KVM for the emulated processor, which is one of AMD's.
const MODULES: [&str; 1] = ["kvm-amd"];

/// What the machine has whatever it is short of otherwise: a test that needs one of these fails where it would be skipped.
const REQUIRED: &str = "kvm,uffd,ebpf,qemu,root,hardware,soft-dirty";

/// Every N-th row of the tests' matrices: an emulated processor runs each as slowly as a quarter of the whole elsewhere.
const PART_OF_MATRICES: &str = "1/25";

/// Whose guest is recorded: where it is outside, it is inside, and with it the one file that it does not start without.
const QEMU: [&str; 2] = ["/usr/bin/qemu-system-x86_64", "/usr/share/qemu/kvmvapic.bin"];

/// Inside, as in a target directory: tests find their caches by where they are.
const DUNLIN: &str = "/lab/target/debug/dunlin";
const TESTS: &str = "/lab/target/debug/deps";

/// What goes into the image.
pub(super) struct Image<'a> {
    pub(super) parts: &'a Parts,
    pub(super) dunlin: &'a Path,
    pub(super) tests: &'a Tests,
    /// After which a single test is ended.
    pub(super) test_limit: Duration,
    /// After which the machine ends itself.
    pub(super) limit: Duration,
}

impl Image<'_> {
    /// Writes the image to `path`; `scratch` is a folder for what is not needed afterwards.
    pub(super) fn write(&self, path: &Path, scratch: &Path) -> anyhow::Result<()> {
        let out = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Archive::new(BufWriter::new(out));
        add_base(&mut archive, &self.parts.busybox, include_bytes!("init.sh"))?;
        add_modules(&mut archive, &self.parts.modules, &MODULES, Path::new("/lab/modules"))?;
        let mut programs = vec![(self.dunlin, PathBuf::from(DUNLIN))];
        for (index, program) in self.tests.programs.iter().enumerate() {
            programs.push((program, test_program(index)));
        }
        for (program, inside) in programs {
            add_program(&mut archive, program, &inside, scratch)?;
        }
        for file in QEMU.map(Path::new) {
            archive.copy(file, file)?;
        }
        add_libraries(&mut archive, Path::new(QEMU[0]), None)?;
        archive.file(Path::new("/lab/environment"), self.environment().as_bytes())?;
        archive.file(Path::new("/lab/plan"), self.plan().as_bytes())?;
        archive.finish()
    }

    /// What the first process reads as a part of itself.
    fn environment(&self) -> String {
        let limit_s = self.limit.as_secs();
        format!(
            "LAB_LIMIT_S={limit_s}\nexport {BINARY}={DUNLIN}\nexport {REQUIRE}={REQUIRED}\nexport {FULL}={PART_OF_MATRICES}\n"
        )
    }

    /// One test a line: number, seconds it may take, program, name.
    fn plan(&self) -> String {
        let limit_s = self.test_limit.as_secs();
        let lines = self.tests.tests.iter().enumerate().map(|(number, test)| {
            let program = test_program(test.program);
            format!("{number} {limit_s} {} {}\n", program.display(), test.path)
        });
        lines.collect()
    }
}

fn test_program(index: usize) -> PathBuf {
    Path::new(TESTS).join(format!("tests-{index}"))
}
