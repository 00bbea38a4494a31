//! What a notice asks for.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dunlin_agent::message::{Notice, Work};

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
/// How often a program is looked after.
const LOOK: Duration = Duration::from_millis(10);

/// Whether this process may have the kernel forget what it can read again.
pub(super) fn can_drop_caches() -> bool {
    fs::OpenOptions::new().write(true).open(DROP_CACHES).is_ok()
}

/// In the order that makes sense: programs write what they keep, then the kernel does, then it forgets.
pub(super) fn carry_out(notice: Notice, work: Work, timeout: Duration, hooks: &Path) -> (Work, Work) {
    let deadline = Instant::now() + timeout;
    let (mut done, mut failed) = (Work::empty(), Work::empty());
    let mut note = |what: Work, result: io::Result<()>| match result {
        Ok(()) => done |= what,
        Err(error) => {
            eprintln!("dunlin-agent: {what:?}: {error}");
            failed |= what;
        }
    };
    if work.contains(Work::HOOKS) {
        note(Work::HOOKS, run_hooks(hooks, notice, deadline));
    }
    if work.intersects(Work::FLUSH | Work::DROP_CACHES) {
        rustix::fs::sync();
        if work.contains(Work::FLUSH) {
            note(Work::FLUSH, Ok(()));
        }
    }
    if work.contains(Work::DROP_CACHES) {
        // 1: page cache, 2: dentries and inodes (Documentation/admin-guide/sysctl/vm.rst).
        note(Work::DROP_CACHES, fs::write(DROP_CACHES, "3"));
    }
    (done, failed)
}

const fn name(notice: Notice) -> &'static str {
    match notice {
        Notice::BeforeMigration => "before-migration",
        Notice::AfterMigration => "after-migration",
        Notice::MigrationGivenUp => "migration-given-up",
    }
}

/// Runs every program of a folder, in the order of their names; a folder that is not there has none. The first that fails, or takes
/// longer than there is time for all, is the error; the others are run all the same, as long as there is time.
fn run_hooks(folder: &Path, notice: Notice, deadline: Instant) -> io::Result<()> {
    let programs = match programs(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let mut first = Ok(());
    for program in programs {
        let ran = run_hook(&program, notice, deadline);
        if first.is_ok() {
            first = ran;
        }
    }
    first
}

fn programs(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut programs = vec![];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let about = fs::metadata(&path)?;
        if about.is_file() && about.permissions().mode() & 0o111 != 0 {
            programs.push(path);
        }
    }
    programs.sort();
    Ok(programs)
}

fn run_hook(program: &Path, notice: Notice, deadline: Instant) -> io::Result<()> {
    let about = |what: &str| io::Error::other(format!("{}: {what}", program.display()));
    let mut child = Command::new(program)
        .arg(name(notice))
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| about(&error.to_string()))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(about(&status.to_string()))
            };
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(about("took too long, and was ended"));
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(folder: &Path, name: &str, script: &str, mode: u32) {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn hooks_are_run_in_order_and_ended_in_time() {
        let folder = std::env::temp_dir().join(format!("dunlin-agent-hooks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = folder.join("log");
        let note = |what: &str| format!("echo {what} $1 >> {}", log.display());
        hook(&folder, "20-second", &note("second"), 0o755);
        hook(&folder, "10-first", &note("first"), 0o755);
        hook(&folder, "30-no-program", &note("never"), 0o644);
        let (flush, hooks) = (Work::FLUSH, Work::HOOKS);
        let soon = Duration::from_secs(20);
        assert_eq!(
            carry_out(Notice::BeforeMigration, flush | hooks, soon, &folder),
            (flush | hooks, Work::empty())
        );
        assert_eq!(
            fs::read_to_string(&log).unwrap(),
            "first before-migration\nsecond before-migration\n"
        );
        hook(&folder, "15-fails", "exit 3", 0o755);
        assert_eq!(
            carry_out(Notice::AfterMigration, hooks, soon, &folder),
            (Work::empty(), hooks)
        );
        assert!(
            fs::read_to_string(&log).unwrap().ends_with("second after-migration\n"),
            "the others are run"
        );
        hook(&folder, "15-fails", "sleep 1000", 0o755);
        let began = Instant::now();
        assert_eq!(
            carry_out(Notice::AfterMigration, hooks, Duration::ZERO, &folder),
            (Work::empty(), hooks)
        );
        assert!(began.elapsed() < Duration::from_secs(500));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            carry_out(Notice::AfterMigration, hooks, soon, &folder),
            (hooks, Work::empty()),
            "nothing to run"
        );
    }
}
