//! Traces as a person or a script meets them: `dunlin convert`, and guests that write what was recorded.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// Exit code, stdout, stderr.
type Ran = (Option<i32>, Vec<u8>, String);

fn command(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
    command.current_dir(folder).args(words).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ran(output: Output) -> Ran {
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), output.stdout, errors)
}

fn convert(folder: &Path, words: &[&str]) -> Ran {
    ran(command(folder, &[&["convert"], words].concat()).output().unwrap())
}

fn convert_piped(folder: &Path, words: &[&str], input: &[u8]) -> Ran {
    let mut command = command(folder, &[&["convert"], words].concat());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // What refuses its input does not read it.
    let _ = stdin.write_all(input);
    drop(stdin);
    ran(child.wait_with_output().unwrap())
}

/// A folder with a CSV of another program: 3000 writes of 64 pages by two vCPUs in 3 s.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut text = "at_us,vcpu,address\n".to_owned();
    for number in 0..3000_u64 {
        let address = number * 7 % 64 * 4096 + number % 4096;
        text += &format!("{},{},{address:#x}\n", 1_700_000_000_000 + number * 1000, number % 2);
    }
    fs::write(folder.path().join("other.csv"), text).unwrap();
    folder
}

fn read(folder: &TempDir, name: &str) -> Vec<u8> {
    fs::read(folder.path().join(name)).unwrap()
}

#[test]
fn every_form_leads_to_every_other() {
    let folder = folder();
    let good = |from: &str, to: &str| {
        let (code, stdout, stderr) = convert(folder.path(), &[from, to]);
        assert_eq!((code, stdout.len()), (Some(0), 0), "{from} {to}: {stderr}");
        assert_eq!(stderr, "3,001 items, 3,000 of them writes, in 3.00 s\n");
    };
    good("other.csv", "a.dtrace");
    for (from, to) in [
        ("a.dtrace", "b.csv"),
        ("b.csv", "c.jsonl"),
        ("c.jsonl", "d.dtrace"),
        ("d.dtrace", "e.jsonl"),
        ("e.jsonl", "f.csv"),
        ("f.csv", "g.dtrace"),
    ] {
        good(from, to);
    }
    assert_eq!(read(&folder, "a.dtrace"), read(&folder, "d.dtrace"));
    assert_eq!(read(&folder, "a.dtrace"), read(&folder, "g.dtrace"));
    assert_eq!(read(&folder, "b.csv"), read(&folder, "f.csv"));
    assert!(read(&folder, "a.dtrace").len() < 20_000);
    let csv = String::from_utf8(read(&folder, "b.csv")).unwrap();
    assert!(
        csv.contains("# regions=0+64\n") && csv.contains("\nwrite,1000000,1,7,,\n"),
        "{csv}"
    );
}

#[test]
fn streams_are_read_and_written() {
    let folder = folder();
    let csv = read(&folder, "other.csv");
    let (code, ..) = convert(folder.path(), &["other.csv", "a.dtrace"]);
    assert_eq!(code, Some(0));
    let words = ["-", "-", "--to", "dtrace", "--memory", "256KiB", "--vcpus", "2"];
    let (code, trace, stderr) = convert_piped(folder.path(), &words, &csv);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(trace, read(&folder, "a.dtrace"));
    let (code, text, _) = convert_piped(folder.path(), &["-", "-", "--to", "csv"], &trace);
    assert_eq!(code, Some(0));
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 9 + 3001);
    let (code, _, stderr) = convert_piped(folder.path(), &["-", "-", "--to", "csv"], &csv);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("say it with --memory and --vcpus"), "{stderr}");
    // Whoever has read enough is no error.
    let mut child = command(folder.path(), &["convert", "a.dtrace", "-", "--to", "jsonl"])
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_texts_are_named_with_file_line_and_column_and_leave_nothing() {
    let folder = folder();
    let wrong = |text: &str, expected: &str| {
        fs::write(folder.path().join("wrong.csv"), text).unwrap();
        let (code, _, stderr) = convert(folder.path(), &["wrong.csv", "wrong.dtrace"]);
        assert_eq!(code, Some(2));
        assert!(stderr.contains(expected), "{stderr}");
        assert!(!folder.path().join("wrong.dtrace").exists());
    };
    wrong(
        "at_us,page\n",
        "error: wrong.csv, line 1, column 7: \"page\" has no meaning here",
    );
    wrong(
        "at_us,gfn\n5,3\n4,3\n",
        "wrong.csv, line 3, column 1 (at_us): this is before",
    );
    wrong(
        "# regions=0+3\n# vcpus=1\nat_us,gfn\n5,2\n6,3\n",
        "line 5, column 3 (gfn): page 3 is outside",
    );
    wrong("", "there is no header");
}

#[test]
fn wrong_usage_says_what_to_do() {
    let folder = folder();
    for (words, hint) in [
        (&["other.csv", "a.txt"][..], "end it with .dtrace, .csv or .jsonl"),
        (&["other.csv", "-"], "say it with --to"),
        (&["other.csv", "other.csv"], "written over while it is read"),
        (&["none.csv", "a.dtrace"], "cannot open none.csv: No such file"),
        (
            &["other.csv", "none/a.dtrace"],
            "cannot make none/a.dtrace: No such file",
        ),
        (
            &["other.csv", "a.dtrace", "--memory", "5000"],
            "no whole number of pages",
        ),
        (&["other.csv", "a.dtrace", "--memory", "64KiB"], "page 21 is outside"),
        (&["other.csv", "a.dtrace", "--vcpus", "1"], "there is no vCPU 1"),
        (&["other.csv", "a.dtrace", "--vcpus", "0"], "0 is not in 1..=1024"),
    ] {
        let (code, _, stderr) = convert(folder.path(), words);
        assert_eq!(code, Some(2), "{words:?}: {stderr}");
        assert!(stderr.contains(hint), "{words:?}: {stderr}");
    }
    convert(folder.path(), &["other.csv", "a.dtrace"]);
    let (code, _, stderr) = convert(folder.path(), &["a.dtrace", "b.csv", "--vcpus", "2"]);
    assert_eq!((code, stderr.contains("says itself")), (Some(2), true), "{stderr}");
}

#[test]
fn damage_is_told_and_the_rest_is_converted() {
    let folder = folder();
    convert(folder.path(), &["other.csv", "a.dtrace"]);
    let mut trace = read(&folder, "a.dtrace");
    let whole = trace.len();
    trace[whole / 2] ^= 4;
    fs::write(folder.path().join("damaged.dtrace"), &trace).unwrap();
    let (code, stdout, stderr) = convert(folder.path(), &["damaged.dtrace", "-", "--to", "csv"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("after 0.999 s of the trace, are of no use"), "{stderr}");
    assert!(stderr.contains("an unknown number of events is lost"), "{stderr}");
    let text = String::from_utf8(stdout).unwrap();
    assert!(text.contains("\nlost,999000000,,,,18446744073709551615\n"));
    assert_eq!(text.lines().filter(|line| line.starts_with("write")).count(), 2001);
    fs::write(folder.path().join("cut.dtrace"), &trace[..whole / 2]).unwrap();
    let (code, _, stderr) = convert(folder.path(), &["cut.dtrace", "cut.csv"]);
    assert_eq!(code, Some(0));
    assert_eq!(
        stderr,
        "1,000 items, 1,000 of them writes, in 999 ms, where the trace is cut off\n"
    );
    let (code, _, stderr) = convert(folder.path(), &["cut.csv", "again.dtrace"]);
    assert_eq!((code, stderr.contains("cut off")), (Some(0), true), "{stderr}");
    let (code, _, stderr) = convert_piped(folder.path(), &["-", "x.csv"], &trace[..60]);
    assert_eq!(
        (code, stderr.contains("ends within its head")),
        (Some(2), true),
        "{stderr}"
    );
}

fn simulate(folder: &Path, words: &[&str]) -> (Value, String) {
    let fixed = ["simulate", "--strategy", "precopy", "--bandwidth", "1MB/s", "--json"];
    let (code, stdout, stderr) = ran(command(folder, &[&fixed, words].concat()).output().unwrap());
    assert_eq!(code, Some(0), "{stderr}");
    (serde_json::from_slice(&stdout).unwrap(), stderr)
}

#[test]
fn recorded_guests_are_simulated() {
    let folder = folder();
    convert(folder.path(), &["other.csv", "a.dtrace"]);
    let (report, stderr) = simulate(folder.path(), &["--workload", "trace:a.dtrace"]);
    assert!(
        stderr.contains("trace of 3.00 s, 3,000 writes, source imported; what it cannot see: "),
        "{stderr}"
    );
    assert_eq!(
        (&report["outcome"], &report["total_pages"]),
        (&"completed".into(), &64.into())
    );
    assert_eq!(report["warnings"], Value::Array(Vec::new()));
    // A text does as well, and more memory than was recorded.
    let words = [
        "--workload",
        "trace:other.csv",
        "--memory",
        "1MiB",
        "--warm-up",
        "7s",
        "--vcpus",
        "4",
    ];
    let (report, _) = simulate(folder.path(), &words);
    assert_eq!(report["total_pages"], 256);
    assert!(
        report["warnings"][0].as_str().unwrap().contains("started over 2 times"),
        "{report}"
    );
    for (words, hint) in [
        (
            "--workload trace:a.dtrace --memory 64KiB",
            "give as much, or leave --memory out",
        ),
        ("--workload trace:a.dtrace --vcpus 1", "2 vCPUs: give as many"),
        ("--workload trace:none.dtrace", "cannot open none.dtrace: No such file"),
        ("--workload seq", "say what to simulate"),
    ] {
        let fixed = "simulate --strategy precopy --bandwidth 1MB/s ".to_owned() + words;
        let words: Vec<&str> = fixed.split_whitespace().collect();
        let (code, _, stderr) = ran(command(folder.path(), &words).output().unwrap());
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(hint), "{stderr}");
    }
    let text = "title = \"recorded\"\n[guest]\nworkload = \"trace:a.dtrace\"\nmemory = \"256KiB\"\n[link]\nbandwidth = \"1MB/s\"\n[[arm]]\nname = \"a\"\nstrategy = \"precopy\"\n";
    fs::write(folder.path().join("plan.toml"), text).unwrap();
    let words = ["simulate", "--plan", "plan.toml"];
    let (code, _, stderr) = ran(command(folder.path(), &words).output().unwrap());
    assert_eq!(code, Some(0), "{stderr}");
}
