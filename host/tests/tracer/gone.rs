//! A tracer that ends, however it ends, leaves nothing in the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aya::programs::loaded_programs;
use dunlin::trace::ebpf::Hooks;
use dunlin_tests::{Capability, require};

use crate::{attach, stream};

/// Tells [`holds_a_tracer`] that it is the child.
const CHILD: &str = "DUNLIN_TEST_TRACER_CHILD";
const READY: &str = "attached";

/// The kernel's numbers of the programs that a process holds.
fn programs_of(process: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let number = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        line?.trim().parse().ok()
    };
    texts.filter_map(number).collect()
}

fn loaded() -> BTreeSet<u32> {
    loaded_programs().filter_map(Result::ok).map(|info| info.id()).collect()
}

/// The kernel lets programs go when all processors have left them.
fn wait_until_gone(programs: &BTreeSet<u32>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !loaded().is_disjoint(programs) {
        assert!(Instant::now() < deadline, "still loaded: {programs:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The body of the child of the test below; alone it does nothing.
#[test]
fn holds_a_tracer() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let _tracer = attach(stream(Hooks::Faults, vec![], vec![])).unwrap();
    println!("\n{READY}");
    // Not for ever, should nobody kill it.
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_tracer_leaves_nothing() {
    if !require(Capability::Ebpf) || !require(Capability::Root) {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gone::holds_a_tracer", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line == READY), "it did not attach");
    let programs = programs_of(child.id());
    assert_eq!(programs.len(), Hooks::Faults.kinds().len());
    assert!(programs.is_subset(&loaded()));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(&programs);
}
