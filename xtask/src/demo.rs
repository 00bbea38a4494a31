//! `cargo xtask demo`: a steady guest and one whose load grows while it is moved, each moved by four strategies.

mod load;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin_core::units::{Bytes, BytesPerSec};
use dunlin_tests::Capability;
use dunlin_tests::process;
use dunlin_tests::scene::{GuestOptions, Kind, Scene};
use serde_json::{Value, json};

/// How to print.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// One JSON object on stdout instead of a table
    #[arg(long)]
    json: bool,
    /// Guests that are threads of a process, even where there is KVM
    #[arg(long)]
    threads: bool,
}

/// Small enough that one copy of it takes about a second at [`BANDWIDTH`].
const MEMORY: Bytes = Bytes(64 << 20);
const BANDWIDTH: BytesPerSec = BytesPerSec(64_000_000);
/// Longer than what the steady guest dirties in the shortest round takes to send, so that its pre-copy can end.
const DOWNTIME: &str = "100ms";
const STRATEGIES: [&str; 4] = ["precopy", "hybrid:1", "as-hybrid", "postcopy"];
/// How long a guest runs before it is moved: its speed in the last second is what slow-down is measured against.
const WARM_UP: Duration = Duration::from_millis(2500);

/// One vCPU cannot write twice the bandwidth where every instruction of the guest is emulated.
const GROWING_VCPUS: u32 = 2;

/// A load with a name for the table.
struct Load {
    name: &'static str,
    workload: String,
    vcpus: u32,
    /// Whether the guest does the same all the time, so that its speed before and during a migration can be compared.
    is_steady: bool,
}

/// One migration.
struct Run {
    load: usize,
    report: Value,
}

/// Moves guests and shows what it cost. Fails when a migration did, or when a byte differs.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let kind = if options.threads { Kind::Thread } else { choose_kind()? };
    let loads = [
        Load {
            name: "steady, load 0.5",
            workload: load::steady_uniform(MEMORY, BANDWIDTH, 500)?,
            vcpus: 1,
            is_steady: true,
        },
        Load {
            name: "growing, load 0.4 to 2",
            workload: load::growing_seq(MEMORY, BANDWIDTH, WARM_UP, GROWING_VCPUS),
            vcpus: GROWING_VCPUS,
            is_steady: false,
        },
    ];
    eprintln!("building dunlin …");
    let program = process::build(false)?;
    let mut runs = Vec::new();
    for (index, load) in loads.iter().enumerate() {
        for strategy in STRATEGIES {
            eprintln!("moving a {} guest ({}) by {strategy} …", kind.name(), load.name);
            let report = migrate(&program, kind, load, strategy)
                .with_context(|| format!("moving `{}` by {strategy}", load.workload))?;
            runs.push(Run { load: index, report });
        }
    }
    if options.json {
        println!("{}", to_json(kind, &loads, &runs));
    } else {
        print!("{}{}", explanation(kind), table::render(&loads, &runs));
    }
    let verified = runs.iter().all(|run| run.report["verified"]["mismatches"] == 0);
    Ok(if verified { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn choose_kind() -> anyhow::Result<Kind> {
    match Capability::Kvm.probe() {
        Ok(()) => {
            let faults = Capability::Uffd.probe();
            ensure!(
                faults.is_ok(),
                "post-copy of a KVM guest needs more: {}",
                faults.unwrap_err()
            );
            Ok(Kind::Kvm)
        }
        Err(why) => {
            eprintln!("There is no KVM here ({why}): the guests are threads of a process instead.");
            Ok(Kind::Thread)
        }
    }
}

fn explanation(kind: Kind) -> String {
    let guests = match kind {
        Kind::Kvm => "KVM guests",
        Kind::Thread => "guests that are threads",
    };
    format!(
        "\n{} MiB {guests} with random memory, over a link of {} MB/s: one copy takes about a second. Wanted downtime: {DOWNTIME}.\n\
         load: the distinct pages the guest writes while one copy is sent, over the pages sent in that time; above 1, copying never \
         catches up\n\
         longest gap: without progress of the guest · faults: pages it asked for after it had moved, - without post-copy\n",
        MEMORY.0 >> 20,
        BANDWIDTH.0 / 1_000_000
    )
}

/// One guest, one receiver, one migration between them.
fn migrate(program: &Path, kind: Kind, load: &Load, strategy: &str) -> anyhow::Result<Value> {
    let scene = Scene::with_program(program)?;
    let memory = format!("{}MiB", MEMORY.0 >> 20);
    let guest = GuestOptions::new(kind, &*load.workload)
        .vcpus(load.vcpus)
        .memory(&memory)
        .with(["--fill", "random"]);
    let target = scene.receiver("target", &[])?;
    let source = scene.guest("source", &guest)?;
    thread::sleep(WARM_UP);
    let bandwidth = format!("{}MB/s", BANDWIDTH.0 / 1_000_000);
    scene.migrate(
        &source,
        &target,
        strategy,
        &["--bandwidth", &bandwidth, "--downtime", DOWNTIME, "--verify"],
    )
}

fn to_json(kind: Kind, loads: &[Load], runs: &[Run]) -> Value {
    let runs: Vec<Value> = runs
        .iter()
        .map(|run| {
            let mut object = json!({ "workload": loads[run.load].workload, "load": loads[run.load].name });
            if let (Some(object), Some(report)) = (object.as_object_mut(), run.report.as_object()) {
                object.extend(report.clone());
            }
            object
        })
        .collect();
    json!({ "schema": "dunlin.demo.v1", "guest_kind": kind.name(), "runs": runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_a_migration_with_its_workload() {
        let loads = [Load {
            name: "steady",
            workload: "uniform".into(),
            vcpus: 1,
            is_steady: true,
        }];
        let report = json!({ "schema": "dunlin.migration.v1", "strategy": "precopy", "total_time_us": 5 });
        let object = to_json(Kind::Thread, &loads, &[Run { load: 0, report }]);
        assert_eq!(
            (&object["schema"], &object["guest_kind"]),
            (&json!("dunlin.demo.v1"), &json!("thread"))
        );
        assert_eq!(object["runs"][0]["workload"], "uniform");
        assert_eq!(object["runs"][0]["total_time_us"], 5);
    }
}
