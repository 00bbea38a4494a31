//! What `dunlin record` says of how fast a guest writes.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin::guest::kvm::Backend;
use dunlin::trace::TraceReader;
use dunlin_core::tracefile::Item;
use dunlin_core::units::Nanos;
use dunlin_tests::Capability;
use dunlin_tests::scene::{GuestOptions, Host, Scene};

use super::super::Setting;
use super::truth::Truth;
use super::{MEMORY, REPETITIONS, SEED, Sample, WINDOW};

/// How a guest is tracked, and the sources that it then has.
const TRACKINGS: [(&str, &[&str]); 2] = [
    ("bitmap", &["bitmap", "pagemap", "ebpf:faults"]),
    ("ring", &["ring", "ebpf:ring"]),
];
const PATIENCE: Duration = Duration::from_secs(60);

/// The sources that this machine has, with how the guest is tracked; what is missing is said.
pub(super) fn sources() -> Vec<(&'static str, Vec<&'static str>)> {
    let missing = |source: &str| {
        let needs = |capability: Capability| capability.probe().err();
        if source.contains("ring")
            && let Some(why) = needs(Capability::DirtyRing)
        {
            return Some(why.to_string());
        }
        if source.starts_with("ebpf")
            && let Some(why) = needs(Capability::Ebpf)
        {
            return Some(why.to_string());
        }
        // KVM then handles the guest's faults without an exception.
        let on_the_processor = || Backend::find().is_none_or(|backend| backend.runs_on_the_processor());
        (source == "ebpf:faults" && on_the_processor()).then(|| "a processor runs the guest".to_owned())
    };
    let available = |source: &&'static str| match missing(source) {
        Some(why) => {
            eprintln!("SKIP --source {source}: {why}");
            false
        }
        None => true,
    };
    let trackings = TRACKINGS.into_iter().map(|(tracking, sources)| {
        let sources = sources.iter().copied().filter(available).collect::<Vec<_>>();
        (tracking, sources)
    });
    trackings.filter(|(_, sources)| !sources.is_empty()).collect()
}

/// A guest that runs, and its folder.
pub(super) struct Recorded {
    host: Host,
    scene: Scene,
}

impl Recorded {
    /// Starts the guest and waits until it has done its first steps.
    pub(super) fn start(setting: &Setting, workload: &str, tracking: &str) -> anyhow::Result<Self> {
        let scene = setting.dunlin.scene()?;
        let mut options = GuestOptions::new(setting.dunlin.kind, workload)
            .memory(&format!("{}B", MEMORY.0))
            .with(["--tracking", tracking]);
        options.seed = SEED;
        let mut host = scene.guest("measured", &options)?;
        scene.poll_status(&mut host, |status| status["steps"].as_u64() > Some(0))?;
        Ok(Self { host, scene })
    }

    /// One recording: a sample for each of its windows.
    pub(super) fn measure(&self, source: &str, truth: &Truth) -> anyhow::Result<Vec<Sample>> {
        let file = self.scene.folder().join("trace");
        // The first window has no steps at its beginning.
        let duration = format!("{}s", WINDOW.as_secs() * (REPETITIONS as u64 + 1));
        let window = format!("{}s", WINDOW.as_secs());
        let limits = ["--window", &window, "--duration", &duration];
        let files = ["--control", text(&self.host.control)?, "--output", text(&file)?];
        let fixed = ["record", "--json", "--source", source];
        let mut recorder = self.scene.dunlin(fixed.into_iter().chain(limits).chain(files))?;
        let finished = recorder.wait(PATIENCE)?;
        ensure!(finished.code == Some(0), "--source {source}: {finished}");
        let items = TraceReader::open(&file)?.collect::<Result<Vec<_>, _>>()?;
        let windows = windows(&items);
        let samples = windows.iter().map(|window| {
            Ok(Sample {
                measured: super::rate(window.pages, window.seconds),
                actual: truth.rate(window.steps.clone(), window.seconds)?,
            })
        });
        let samples = samples.collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!samples.is_empty(), "--source {source}: no window has ended");
        Ok(samples)
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the temporary folder's name is no text")
}

/// What was seen between two looks.
struct Window {
    /// How many different ones.
    pages: u64,
    seconds: f64,
    /// Those that the guest says it did.
    steps: std::ops::Range<u64>,
}

/// The whole windows between one count of steps and the next: a ring may be harvested several times in each.
fn windows(items: &[Item]) -> Vec<Window> {
    let mut windows = vec![];
    let mut pages = BTreeSet::new();
    let mut last: Option<(Nanos, u64)> = None;
    for item in items {
        match *item {
            Item::Dirty { run } => pages.extend(run.first.0..run.end().0),
            Item::Write { gfn, .. } => {
                pages.insert(gfn.0);
            }
            Item::Steps { at, vcpu: 0, steps } => {
                let pages = std::mem::take(&mut pages).len() as u64;
                if let Some((began, from)) = last.replace((at, steps)) {
                    windows.push(Window {
                        pages,
                        seconds: (at.0 - began.0) as f64 / 1e9,
                        steps: from..steps,
                    });
                }
            }
            Item::Steps { .. } | Item::WindowEnd { .. } | Item::Lost { .. } | Item::End { .. } => {}
        }
    }
    // The last one ends with the recording.
    windows.retain(|window| window.seconds > WINDOW.as_secs_f64() / 2.0);
    windows
}

#[cfg(test)]
mod tests {
    use dunlin_core::units::Gfn;

    use super::*;

    #[test]
    fn windows_lie_between_counts_of_steps() {
        let s = |tenths: u64| Nanos(tenths * 100_000_000);
        let steps = |tenths, steps| Item::Steps {
            at: s(tenths),
            vcpu: 0,
            steps,
        };
        let write = |tenths, gfn| Item::Write {
            at: s(tenths),
            vcpu: 0,
            gfn: Gfn(gfn),
        };
        let end = |tenths| Item::WindowEnd { at: s(tenths), vcpu: 0 };
        let items = [
            write(1, 1),
            steps(10, 5),
            write(11, 2),
            end(12),
            write(13, 2),
            write(14, 3),
            end(22),
            steps(22, 8),
            steps(23, 9),
        ];
        let windows = windows(&items);
        assert_eq!(windows.len(), 1);
        assert_eq!(
            (windows[0].pages, windows[0].seconds, windows[0].steps.clone()),
            (2, 1.2, 5..8)
        );
    }
}
