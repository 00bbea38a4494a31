//! How often a guest has to wait for a missing page in post-copy: bubbling beside the sequential push.

use dunlin_tests::scene::GuestOptions;

use super::Setting;
use super::dunlin::number;
use super::figure::{Figure, Target};
use super::sampling::{Arm, Samples, interleave};

const REPETITIONS: usize = 5;
/// Of which nearly all is written over and over, page after page.
const MEMORY: &str = "64MiB";
/// Pages the guest has written before it is moved. How many it has to ask for depends most of all on where it stands then
/// from the beginning of memory, where every push begins, so a result is the sum over all of these.
const WRITTEN: [u64; 3] = [4_000, 8_000, 12_000];
/// Pages per second, on a link that carries 15 625: the guest could nearly be followed.
const WORKLOAD: &str = "seq,rate=12000";
const BANDWIDTH: &str = "64MB/s";

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let arm = |name, push| Arm::new(name, move || network_faults(setting, push));
    let arms = vec![
        arm("sequential", "sequential"),
        arm("bubble:1", "bubble:1"),
        arm("bubble:3", "bubble:3"),
        arm("bubble:7", "bubble:7"),
    ];
    let results = interleave(REPETITIONS, arms)?;
    let sequential = results.of("sequential");
    let faults = |what: &str, samples: &Samples| {
        let (least, most) = samples.range();
        Figure::plain(format!("network faults, push={what}"), samples.median(), "pages").beside(format!(
            "median of {}, {least} to {most}; three moves, {WORKLOAD} in {MEMORY} over {BANDWIDTH}",
            samples.len()
        ))
    };
    let mut figures = vec![faults("sequential", sequential)];
    for name in ["bubble:1", "bubble:3", "bubble:7"] {
        let bubble = results.of(name);
        figures.push(faults(name, bubble));
        figures.push(
            Figure::plain(
                format!("network faults, {name} against sequential"),
                bubble.median() / sequential.median(),
                "ratio",
            )
            .target(Target::AtMost(0.5))
            .beside("the sequential push of the same guest"),
        );
    }
    Ok(figures)
}

/// Pages that guests moved by post-copy alone have to ask for, one for each place to begin.
fn network_faults(setting: &Setting, push: &str) -> anyhow::Result<f64> {
    let guest = GuestOptions::new(setting.dunlin.kind, WORKLOAD)
        .memory(MEMORY)
        .with(["--fill", "random"]);
    let strategy = format!("postcopy,push={push}");
    let faults_from = |written: u64| {
        let scene = setting.dunlin.scene()?;
        let target = scene.receiver("target", &[])?;
        let mut source = scene.guest("source", &guest)?;
        scene.poll_status(&mut source, |status| status["steps"].as_u64() >= Some(written))?;
        let report = scene.migrate(&source, &target, &strategy, &["--bandwidth", BANDWIDTH])?;
        number(&report, "/postcopy/faults")
    };
    WRITTEN.into_iter().map(faults_from).sum()
}
