//! `cargo xtask lab`: tests on a KVM that behaves as on hardware, in an emulated machine with a kernel of its own.
//!
//! The machine is QEMU's with an emulated processor that has virtualisation (AMD's SVM with nested paging), so it needs
//! neither KVM nor privileges outside. It is slow, some tenth of the speed of the machine around it; what runs inside is
//! chosen for that.

mod boot;
mod image;
pub(crate) mod packages;
mod programs;
mod results;

use std::fs::{self, File, TryLockError};
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin_tests::lab::{self, Parts};
use dunlin_tests::{Capability, process};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use crate::command::describe;
use boot::{End, Machine, as_typed};
use image::Image;
use programs::Tests;
use results::{Collector, Event};
pub(crate) use results::{Outcome, TestResult};

/// Longest time that the machine may run.
const LIMIT: Duration = Duration::from_secs(570);
/// Longest time for one test: several times what the slowest needs while nothing else runs.
const TEST_LIMIT: Duration = Duration::from_secs(150);

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only tests with this in their name
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// A shell in the machine instead of tests
    #[arg(long, conflicts_with = "json")]
    shell: bool,
    /// Keep what was booted, and print the command that boots it
    #[arg(long)]
    keep: bool,
    /// One JSON object on stdout instead of a line per test
    #[arg(long)]
    json: bool,
}

/// How a run went.
pub(crate) struct Report {
    /// The kernel's name.
    kernel: String,
    /// From the start to the first test, by the machine's clock; `None` if it never got there.
    booted_ms: Option<u64>,
    /// From the start to the end.
    elapsed: Duration,
    pub(crate) results: Vec<TestResult>,
}

impl Report {
    fn count(&self, outcome: Outcome) -> usize {
        self.results.iter().filter(|result| result.outcome == outcome).count()
    }
}

/// Runs the task. Fails when a test did, and when all were skipped.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    Capability::Lab.probe().map_err(anyhow::Error::msg)?;
    let lab = Lab::prepare(options.filter.as_deref())?;
    if options.shell {
        return lab.shell(options.keep);
    }
    let progress = Progress::new(!options.json);
    let report = lab.run(options.keep, &progress)?;
    let (passed, failed) = (report.count(Outcome::Ok), report.count(Outcome::Failed));
    let skipped = report.count(Outcome::Skipped);
    if options.json {
        let object = json!({
            "schema": "dunlin.lab.v1",
            "kernel": report.kernel,
            "boot_ms": report.booted_ms,
            "time_ms": u64::try_from(report.elapsed.as_millis())?,
            "passed": passed,
            "failed": failed,
            "skipped": skipped,
            "tests": report.results,
        });
        println!("{object}");
    } else {
        println!(
            "{passed} passed, {failed} failed, {skipped} skipped after {:.0} s on Linux {}",
            report.elapsed.as_secs_f64(),
            report.kernel
        );
    }
    Ok(if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Begins to run all tests, telling on stdout how it goes, for a caller that counts and does something else meanwhile.
pub(crate) fn begin() -> anyhow::Result<JoinHandle<anyhow::Result<Report>>> {
    let lab = Lab::prepare(None)?;
    Ok(thread::spawn(|| lab.run(false, &Progress::new(true))))
}

/// A machine with its image.
struct Lab {
    parts: Parts,
    tests: Tests,
    /// For the image and logs.
    folder: PathBuf,
    /// Held while the folder is in use.
    _lock: File,
}

impl Lab {
    fn prepare(filter: Option<&str>) -> anyhow::Result<Self> {
        let parts = Parts::find(&lab::packages_folder()?).map_err(anyhow::Error::msg)?;
        let folder = lab::folder()?;
        let lock = lock(&folder)?;
        eprintln!("building the lab's programs …");
        let dunlin = process::binary()?;
        let tests = Tests::build(filter)?;
        let lab = Self {
            parts,
            tests,
            folder,
            _lock: lock,
        };
        let scratch = tempfile::tempdir().context("cannot make a folder")?;
        let image = Image {
            parts: &lab.parts,
            dunlin,
            tests: &lab.tests,
            test_limit: TEST_LIMIT,
            limit: LIMIT,
        };
        image.write(&lab.image(), scratch.path())?;
        Ok(lab)
    }

    fn image(&self) -> PathBuf {
        self.folder.join("image.cpio")
    }

    fn machine(&self) -> Machine {
        Machine {
            kernel: self.parts.kernel.clone(),
            image: self.image(),
            logs: self.folder.clone(),
        }
    }

    fn run(self, keep: bool, progress: &Progress) -> anyhow::Result<Report> {
        let machine = self.machine();
        let started = Instant::now();
        let mut collector = Collector::new(&self.tests.tests);
        progress.now(&format!(
            "booting Linux {} on an emulated processor",
            self.parts.release
        ));
        let end = machine.run(started + LIMIT, |line| {
            match line.and_then(|line| collector.line(line)) {
                Some(event) => progress.event(&event, started.elapsed()),
                None => progress.tick(),
            }
        })?;
        let elapsed = started.elapsed();
        let how_ended = match end {
            End::Off => "the machine ended".to_owned(),
            End::TimedOut => format!("the machine was ended after {} s", LIMIT.as_secs()),
        };
        let booted_ms = collector.booted_ms();
        let console = fs::read(machine.console()).unwrap_or_default();
        let given = self.tests.tests.len();
        let results = collector.finish(&how_ended, &String::from_utf8_lossy(&console));
        ensure!(results.len() == given, "{given} tests have {} results", results.len());
        progress.end(&results, &machine.console());
        self.end(keep)?;
        Ok(Report {
            kernel: self.parts.release,
            booted_ms,
            elapsed,
            results,
        })
    }

    fn shell(&self, keep: bool) -> anyhow::Result<ExitCode> {
        let mut command = self.machine().shell();
        eprintln!("booting Linux {}; this takes half a minute …", self.parts.release);
        let status = command
            .status()
            .with_context(|| format!("cannot start `{}`; see `cargo xtask setup`", describe(&command)))?;
        self.end(keep)?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// Removes the image, or says how to boot it again.
    fn end(&self, keep: bool) -> anyhow::Result<()> {
        if keep {
            eprintln!("a shell in the same machine: {}", as_typed(&self.machine().shell()));
            return Ok(());
        }
        let image = self.image();
        fs::remove_file(&image).with_context(|| format!("cannot remove {}", image.display()))
    }
}

/// Keeps others out of the lab's folder as long as the file is open.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another lab is running in {}", folder.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// How far the machine is: a line per test on stdout, and on a terminal's stderr what happens now.
struct Progress {
    spinner: Option<ProgressBar>,
    prints_results: bool,
}

impl Progress {
    fn new(prints_results: bool) -> Self {
        let spinner = io::stderr()
            .is_terminal()
            .then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4)));
        Self {
            spinner,
            prints_results,
        }
    }

    fn event(&self, event: &Event, elapsed: Duration) {
        match event {
            Event::Booted => self.print(&format!("booted   after {:.1} s", elapsed.as_secs_f64())),
            Event::Begun(name) => {
                if let Some(spinner) = &self.spinner {
                    spinner.set_message(name.clone());
                }
            }
            Event::Ended(result) => self.print(&result.to_string()),
        }
    }

    fn tick(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.tick();
        }
    }

    /// Results that came without an event: of tests that never ended.
    fn end(&self, results: &[TestResult], console: &Path) {
        for result in results.iter().filter(|result| result.time_ms.is_none()) {
            self.print(&result.to_string());
        }
        if results.iter().any(|result| result.outcome == Outcome::Failed) {
            self.now(&format!("all that the machine said: {}", console.display()));
        }
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }

    fn now(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| eprintln!("{text} …")),
            None => eprintln!("{text} …"),
        }
    }

    fn print(&self, line: &str) {
        let print = || match self.prints_results {
            true => println!("{line}"),
            false => eprintln!("{line}"),
        };
        match &self.spinner {
            Some(spinner) => spinner.suspend(print),
            None => print(),
        }
    }
}
