//! `dunlin doctor`: tries what this host offers, and says how to get what it lacks.

mod kernel;
mod kvm;
mod memory;
mod sandbox;
mod sources;
mod system;

use super::{CliError, output};
use crate::report::Paint;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// `dunlin doctor` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Look at this directory's suitability for hand-over records
    #[arg(long, value_name = "DIR", default_value = ".")]
    state: PathBuf,

    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// What trying something showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// It works.
    Ok,
    /// It works, with something less.
    Limited,
    /// It does not work.
    Missing,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Probe {
    /// What, in a word or two.
    name: &'static str,
    /// How it went.
    verdict: Verdict,
    /// What was found.
    finding: String,
    /// How to get what is lacking; `None` if nothing is.
    fix: Option<String>,
    /// What is not possible without it.
    needed_for: &'static str,
}

impl Probe {
    const fn ok(name: &'static str, needed_for: &'static str, finding: String) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            finding,
            fix: None,
            needed_for,
        }
    }

    fn limited(name: &'static str, needed_for: &'static str, finding: String, fix: &str) -> Self {
        Self {
            name,
            verdict: Verdict::Limited,
            finding,
            fix: Some(fix.into()),
            needed_for,
        }
    }

    fn missing(name: &'static str, needed_for: &'static str, finding: String, fix: &str) -> Self {
        Self {
            name,
            verdict: Verdict::Missing,
            finding,
            fix: Some(fix.into()),
            needed_for,
        }
    }

    fn works(&self) -> bool {
        self.verdict != Verdict::Missing
    }
}

/// `dunlin doctor --json`.
#[derive(Clone, Debug, Serialize)]
struct Report {
    schema: &'static str,
    /// What a guest can be on this host.
    guests: Vec<&'static str>,
    /// What a migration can be on this host, as a source or a target of such guests.
    migrations: Vec<&'static str>,
    /// What can see such guests' page writes on this host, best first.
    sources: Vec<&'static str>,
    probes: Vec<Probe>,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let report = examine(&self.state);
        if self.json {
            output::json(&report)?;
        } else {
            output::result(&table(&report, output::paint()))?;
        }
        Ok(if report.guests.is_empty() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn examine(state: &Path) -> Report {
    let kvm = kvm::probes();
    let [fault, user_fault, pagemap] = memory::probes();
    let kvm_works = kvm.iter().all(Probe::works);
    let mut guests = Vec::new();
    let mut migrations = Vec::new();
    if kvm_works {
        guests.push("kvm");
        migrations.push("kvm pre-copy");
        if fault.works() {
            migrations.push("kvm post-copy");
        }
    }
    if pagemap.works() {
        guests.push("thread");
        migrations.push("thread pre-copy");
        if user_fault.works() {
            migrations.push("thread post-copy");
        }
    }
    let mut probes = kvm;
    probes.extend([fault, user_fault, pagemap]);
    probes.extend(kernel::probes());
    probes.extend(sandbox::probes());
    probes.extend(system::probes(state));
    let ladder = sources::probes();
    let sources = ladder
        .iter()
        .filter(|probe| probe.works())
        .map(|probe| probe.name)
        .collect();
    probes.extend(ladder);
    Report {
        schema: "dunlin.doctor.v1",
        guests,
        migrations,
        sources,
        probes,
    }
}

fn table(report: &Report, paint: Paint) -> String {
    let width = report.probes.iter().map(|probe| probe.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for probe in &report.probes {
        let verdict = match probe.verdict {
            Verdict::Ok => paint.good("ok     "),
            Verdict::Limited => paint.warn("limited"),
            Verdict::Missing => paint.bad("missing"),
        };
        text += &format!("{verdict}  {:width$}  {}\n", probe.name, probe.finding);
        if let Some(fix) = &probe.fix {
            let column = " ".repeat(width + 11);
            text += &format!("{column}needed for {}\n{column}to get it: {fix}\n", probe.needed_for);
        }
    }
    let list = |items: &[&str]| {
        if items.is_empty() {
            paint.bad("none")
        } else {
            items.join(", ")
        }
    };
    text += &format!("\nGuests this host can run: {}\n", list(&report.guests));
    text += &format!("Migrations it can do: {}\n", list(&report.migrations));
    text += &format!("What sees page writes, best first: {}\n", list(&report.sources));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_is_not_ok_says_what_to_do() {
        let report = examine(Path::new("/"));
        for probe in &report.probes {
            assert_eq!(probe.verdict == Verdict::Ok, probe.fix.is_none(), "{probe:?}");
            assert!(!probe.finding.is_empty() && !probe.needed_for.is_empty(), "{probe:?}");
        }
        let mut names: Vec<_> = report.probes.iter().map(|probe| probe.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), report.probes.len(), "every name once");
    }

    #[test]
    fn the_table_names_fixes_where_there_are_any() {
        let report = Report {
            schema: "dunlin.doctor.v1",
            guests: vec!["thread"],
            migrations: vec![],
            sources: vec!["pagemap-scan"],
            probes: vec![
                Probe::ok("first", "a", "fine".into()),
                Probe::missing("second one", "b", "not there".into(), "fetch it"),
            ],
        };
        let expected = "\
ok       first       fine
missing  second one  not there
                     needed for b
                     to get it: fetch it

Guests this host can run: thread
Migrations it can do: none
What sees page writes, best first: pagemap-scan
";
        assert_eq!(table(&report, Paint::Plain), expected);
    }
}
