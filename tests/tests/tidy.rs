//! Rules for the source tree itself.

use std::path::Path;
use std::process::Command;

use dunlin_tests::process::workspace_root;

/// Longest Rust file, in lines: what is longer holds more than one concept.
const MAX_LINES: usize = 700;

/// Every tracked text file with its path.
fn tracked_files() -> Vec<(String, String)> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(workspace_root())
        .output();
    let output = output.expect("git runs: the rules hold for what it tracks");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let existing = names
        .split_terminator('\0')
        .filter(|name| workspace_root().join(name).is_file());
    let read = existing.map(|name| {
        (
            name.to_owned(),
            std::fs::read(workspace_root().join(name)).expect("readable"),
        )
    });
    let files: Vec<_> = read
        .filter_map(|(name, bytes)| Some((name, String::from_utf8(bytes).ok()?)))
        .collect();
    assert!(
        files.iter().any(|(name, _)| name == "Cargo.toml"),
        "nothing found: no git checkout?"
    );
    files
}

/// Lines of files chosen by `applies` that contain one of `words`, as `file:line: text`.
fn lines_with(words: &[&str], applies: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in tracked_files().iter().filter(|(name, _)| applies(name)) {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

fn is_rust(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "rs")
}

fn is_this_file(name: &str) -> bool {
    Path::new(name).ends_with(file!())
}

fn is_lock(name: &str) -> bool {
    Path::new(name).ends_with("Cargo.lock")
}

fn assert_none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn rust_files_stay_short() {
    let files = tracked_files();
    let lengths = files
        .iter()
        .filter(|(name, _)| is_rust(name))
        .map(|(name, text)| (name, text.lines().count()));
    let long: Vec<_> = lengths
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(name, n)| format!("{name}: {n}"))
        .collect();
    assert_none(&long, "more lines than a file may have");
}

#[test]
fn nothing_is_left_unfinished() {
    let words = ["todo!", "unimplemented!", "FIXME", "TODO", "XXX", "#[ignore"];
    assert_none(
        &lines_with(&words, |name| is_rust(name) && !is_this_file(name)),
        "finish it or leave it out",
    );
}

#[test]
fn lints_are_expected_never_allowed() {
    assert_none(
        &lines_with(&["#[allow(", "#![allow("], |name| is_rust(name) && !is_this_file(name)),
        "use `expect`",
    );
}

#[test]
fn no_machine_is_named() {
    // Home directories, and where build machines keep checkouts and build trees.
    let words = ["home/", "root/", "work/", "tmp/wt", "tmp/target"].map(|folder| format!("/{folder}"));
    let words = words.each_ref().map(String::as_str);
    let text_anywhere = |name: &str| !is_this_file(name) && !name.starts_with("LICENSE");
    assert_none(&lines_with(&words, text_anywhere), "a path of one machine");
}

#[test]
fn no_registry_or_mirror_is_named() {
    let hosts = [
        "index.crates.io",
        "static.crates.io",
        "debian.org",
        "ubuntu.com",
        "mirror",
        "proxy.golang",
    ];
    let found = lines_with(&hosts, |name| !is_this_file(name) && !is_lock(name));
    assert_none(&found, "where packages come from is the machine's configuration");

    let index = "registry+https://github.com/rust-lang/crates.io-index";
    let sources = lines_with(&["source = "], is_lock);
    let foreign: Vec<_> = sources.into_iter().filter(|line| !line.contains(index)).collect();
    assert_none(&foreign, "a dependency from somewhere else");
}

#[test]
fn every_crate_is_described_and_licensed() {
    let files = tracked_files();
    let manifests = files.iter().filter(|(name, _)| name.ends_with("/Cargo.toml"));
    let bare: Vec<_> = manifests
        .filter(|(_, text)| !text.contains("description = ") || !text.contains("license"))
        .map(|(name, _)| name.clone())
        .collect();
    assert_none(&bare, "a manifest without description or license");
}

#[test]
fn core_knows_no_floating_point_and_no_heap() {
    let words = ["f32", "f64", "extern crate alloc", "alloc::", "std::"];
    let mut found = Vec::new();
    for (name, text) in tracked_files()
        .iter()
        .filter(|(name, _)| is_rust(name) && name.starts_with("core/src/"))
    {
        // Tests, at the bottom or in a file of their own, may use what they like.
        if name.ends_with("tests.rs") || name.contains("/tests/") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.trim_start();
            if !line.starts_with("//") && words.iter().any(|word| line.contains(word)) {
                found.push(format!("{name}:{}: {line}", number + 1));
            }
        }
    }
    assert_none(&found, "core has integers and borrowed memory only");
}
