//! `cargo xtask bench`: every figure beside the baseline it is compared with, both measured in the same run with their
//! repetitions interleaved. Nothing here passes or fails by time alone: `met` says how a figure compares with its target.

mod agent;
pub(crate) mod blackout;
mod bucket;
mod choose;
mod dataplane;
mod dirtyrate;
pub(crate) mod dunlin;
pub(crate) mod fault;
pub(crate) mod figure;
mod live;
mod pageset;
mod predict;
mod predicted;
mod push;
mod qemu;
mod report;
mod rules;
pub(crate) mod sampling;
mod scale;
mod sealed;
mod sim;
mod switch;
mod tls;
mod tracefile;
mod tracer;
mod tracking;

use std::process::ExitCode;
use std::sync::LazyLock;
use std::sync::Mutex;

use anyhow::ensure;

use crate::command::{cargo, succeeds};
use figure::{Figure, Table};

/// What to measure.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// One JSON object on stdout instead of a table
    #[arg(long)]
    json: bool,
    /// Only groups of figures with this in their name; `rules` and `agent` run only if this is their whole name
    filter: Option<String>,
}

const AFTER_HELP: &str = "`cargo xtask bench rules` moves real guests by every switch rule, which takes up to 40 minutes, so it is no part of \
                          `cargo xtask bench`. DUNLIN_RULES_REPETITIONS (3) and DUNLIN_RULES_GUESTS (memcached,compile,stress-vm,idle) \
                          make it shorter. Nor is `cargo xtask bench agent`, which takes 7 minutes.";

/// Figures that are measured together.
struct Group {
    name: &'static str,
    run: fn(&Setting) -> anyhow::Result<Vec<Figure>>,
}

/// What the groups share.
struct Setting {
    /// Built when the first group asks for it.
    dunlin: LazyLock<dunlin::Dunlin>,
    /// What groups have to show beside their figures.
    tables: Mutex<Vec<Table>>,
}

const GROUPS: &[Group] = &[
    Group {
        name: "pageset",
        run: pageset::run,
    },
    Group {
        name: "switch",
        run: switch::run,
    },
    Group {
        name: "predict",
        run: predict::run,
    },
    Group {
        name: "tracefile",
        run: tracefile::run,
    },
    Group {
        name: "tracking",
        run: tracking::run,
    },
    Group {
        name: "tracer",
        run: tracer::run,
    },
    Group {
        name: "dirtyrate",
        run: dirtyrate::run,
    },
    Group {
        name: "bucket",
        run: bucket::run,
    },
    Group {
        name: "choose",
        run: choose::run,
    },
    Group {
        name: "report",
        run: report::run,
    },
    Group {
        name: "sim",
        run: sim::run,
    },
    Group {
        name: "scale",
        run: scale::run,
    },
    Group {
        name: "sealed",
        run: sealed::run,
    },
    Group {
        name: "tls",
        run: tls::run,
    },
    Group {
        name: "blackout",
        run: blackout::run,
    },
    Group {
        name: "fault",
        run: fault::run,
    },
    Group {
        name: "push",
        run: push::run,
    },
    Group {
        name: "live",
        run: live::run,
    },
    Group {
        name: "predicted",
        run: predicted::run,
    },
    Group {
        name: "dataplane",
        run: dataplane::run,
    },
];

/// Those that take so long that they are run by their whole names only.
const LONG_GROUPS: &[Group] = &[
    Group {
        name: "agent",
        run: agent::run,
    },
    Group {
        name: "rules",
        run: rules::run,
    },
];

/// Measures and prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) {
        return run_optimised(options);
    }
    let chosen = |name: &str| options.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let named = |name: &str| options.filter.as_deref() == Some(name);
    let short = GROUPS.iter().filter(|group| chosen(group.name));
    let groups: Vec<&Group> = short
        .chain(LONG_GROUPS.iter().filter(|group| named(group.name)))
        .collect();
    let names = GROUPS.iter().chain(LONG_GROUPS).map(|group| group.name);
    let names = names.collect::<Vec<_>>().join(", ");
    ensure!(
        !groups.is_empty(),
        "no group of figures has such a name; there are: {names}"
    );
    let setting = Setting {
        dunlin: LazyLock::new(|| dunlin::Dunlin::build().unwrap_or_else(|error| panic!("{error:#}"))),
        tables: Mutex::default(),
    };
    let mut figures = Vec::new();
    for group in groups {
        eprintln!("measuring {} …", group.name);
        figures.extend((group.run)(&setting)?);
    }
    let tables = setting.tables.into_inner().expect("no group has panicked");
    if options.json {
        println!("{}", figure::to_json(&figures, &tables));
    } else {
        println!("{}", figure::to_table(&figures));
        for table in &tables {
            println!("\n{table}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The baselines are part of this program, so it must be as fast as what they are compared with.
fn run_optimised(options: &Options) -> anyhow::Result<ExitCode> {
    let mut command = cargo(&["run", "--quiet", "--release", "--package", "xtask", "--", "bench"]);
    command.args(options.json.then_some("--json")).args(&options.filter);
    Ok(if succeeds(&mut command)? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
