//! Every input that is kept for the fuzzers, through the same checks, with the stable compiler: what was found once stays found.
//!
//! The seeds are made by this program. `DUNLIN_WRITE_SEEDS=1 cargo test --test corpus` writes them anew after a change of a format.

use std::fs;
use std::path::{Path, PathBuf};

use dunlin::trace::text;
use dunlin::{qemu, replay, storage, trust};
use dunlin_tests::process::workspace_root;

#[path = "../../fuzz/checks/agent.rs"]
mod agent;
#[path = "../../fuzz/checks/frames.rs"]
mod frames;
#[path = "../../fuzz/checks/policy.rs"]
mod policy;
#[path = "../../fuzz/checks/qmp.rs"]
mod qmp;
#[path = "../../fuzz/checks/rounds.rs"]
mod rounds;
mod seeds;
#[path = "../../fuzz/checks/storage.rs"]
mod stored;
#[path = "../../fuzz/checks/texts.rs"]
mod texts;
#[path = "../../fuzz/checks/traces.rs"]
mod traces;

/// Longest seed in bytes: they are read by people, too.
const SEED_BYTES_MAX: usize = 2048;

/// A target, its check, and the seeds it begins with.
type Target = (&'static str, fn(&[u8]), fn() -> seeds::Seeds);

const TARGETS: [Target; 8] = [
    ("agent", agent::check, seeds::agent),
    ("frames", frames::check, seeds::frames),
    ("policy", policy::check, seeds::policy),
    ("qmp", qmp::check, seeds::qmp),
    ("rounds", rounds::check, seeds::rounds),
    ("storage", stored::check, seeds::storage),
    ("texts", texts::check, seeds::texts),
    ("traces", traces::check, seeds::traces),
];

fn folder(target: &str) -> PathBuf {
    workspace_root().join("tests/fuzz/corpus").join(target)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

#[test]
fn every_kept_input_passes() {
    for (target, check, _) in TARGETS {
        let files = files(&folder(target));
        assert!(files.len() >= 2, "{target} has no corpus");
        for file in files {
            let input = fs::read(&file).expect("readable");
            println!("{}", file.display());
            check(&input);
        }
    }
}

#[test]
fn every_seed_is_kept_as_it_is_made() {
    let write = std::env::var_os("DUNLIN_WRITE_SEEDS").is_some();
    for (target, _, seeds) in TARGETS {
        for (name, bytes) in seeds() {
            assert!(
                bytes.len() <= SEED_BYTES_MAX,
                "{target}/{name} has {} bytes",
                bytes.len()
            );
            let path = folder(target).join(format!("seed-{name}"));
            if write {
                fs::create_dir_all(folder(target)).expect("a folder");
                fs::write(&path, &bytes).expect("room");
            }
            let kept = fs::read(&path).unwrap_or_default();
            assert!(
                kept == bytes,
                "{} is not what is made: write the seeds anew",
                path.display()
            );
        }
    }
}

/// A target without a corpus, or a corpus without a target, would be forgotten.
#[test]
fn every_fuzz_target_is_replayed() {
    let names = |folder: &str, suffix: &str| -> Vec<String> {
        let files = files(&workspace_root().join("tests/fuzz").join(folder));
        let names = files.iter().filter_map(|file| file.file_name()?.to_str());
        names.map(|name| name.trim_end_matches(suffix).to_owned()).collect()
    };
    let replayed = TARGETS.map(|(target, ..)| target.to_owned());
    assert_eq!(names("fuzz_targets", ".rs"), replayed);
    assert_eq!(names("checks", ".rs"), replayed);
    assert_eq!(names("corpus", ""), replayed);
}
