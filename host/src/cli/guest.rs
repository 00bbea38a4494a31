//! `dunlin guest`

use super::{CliError, receive::host_memory, tracking::TrackingArgs, trust::TrustArgs, values};
use crate::{
    guest::{Fill, GuestConfig, GuestKind, Tracking},
    journal,
    report::bytes,
    run::{node, options::GuestOptions},
};
use dunlin_core::{
    units::Bytes,
    workload::{Plan, Spec},
};
use std::{path::PathBuf, process::ExitCode};

/// `dunlin guest` as typed.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Args {
    /// Size of the guest's memory: 512MiB, 4GB
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    memory: Bytes,

    /// Number of vCPUs, 1 to 4
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    vcpus: u32,

    /// What the guest does: PATTERN[:ARGUMENT][,rate=STEPS_PER_SECOND][,ws=SIZE]
    ///
    /// Patterns: idle; seq, page after page; uniform, any page; zipf:S, the k-th most popular page with a probability of k^-S; hotset:F,
    /// nine of ten writes in the share F of the pages, 0.1 for example; lmbench, memcached and kernel, like these programs; shared:F, all vCPUs in
    /// the first F of the pages; or phases:(PATTERN)*STEPS+(PATTERN)*STEPS, over and over. The rate is that of the whole guest, 0 for as fast as
    /// it goes; ws is the working set, all free memory by default. With ,life=N at the end a page is free again after about N writes, and an agent in the guest
    /// says so before it is moved. Example: uniform,rate=12000,ws=64MiB
    #[arg(long, value_name = "SPEC")]
    workload: Spec,

    /// Where the workload's random numbers start: the same seed gives the same memory
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Serve the control socket here, for `dunlin migrate`, `status`, `cancel` and `resolve`
    #[arg(long, value_name = "SOCK")]
    control: PathBuf,

    /// Name of the guest, also of its hand-over record
    #[arg(long, default_value = "vm", value_parser = name)]
    name: String,

    /// What runs the guest: a virtual machine, or threads of this process where there is no KVM
    #[arg(long, value_enum, default_value_t = Kind::Kvm)]
    kind: Kind,

    /// What memory holds at the start: zeros, or noise that follows from the seed
    #[arg(long, value_enum, default_value_t = FillArg::Zero)]
    fill: FillArg,

    #[command(flatten)]
    tracking: TrackingArgs,

    /// Let each vCPU halt after that many steps; then the guest ends, with a report of its memory
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Write the guest's memory to this file when it has halted
    #[arg(long, value_name = "FILE", requires = "steps")]
    dump_ram: Option<PathBuf>,

    /// Keep the hand-over record in this directory: it says who may run the guest, whatever dies when
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    #[command(flatten)]
    trust: TrustArgs,

    /// Print results as JSON lines
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    Kvm,
    Thread,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FillArg {
    Zero,
    Random,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let options = self.options()?;
        node::run_guest(options).map_err(|error| CliError::Node(error.into()))
    }

    /// Checks what the parser cannot: whether the parts fit each other.
    fn options(self) -> Result<GuestOptions, CliError> {
        Plan::new(&self.workload, self.memory, self.vcpus)
            .map_err(|error| CliError::Usage(format!("--memory and --workload do not fit: {error}")))?;
        let most = host_memory();
        if self.memory > most {
            return Err(CliError::Usage(format!(
                "--memory: {} are more than the {} of this host: write a smaller size",
                bytes(self.memory.0),
                bytes(most.0)
            )));
        }
        let tracking = self.tracking.tracking()?;
        if tracking != Tracking::Bitmap && matches!(self.kind, Kind::Thread) {
            return Err(CliError::Usage(
                "--tracking ring needs a virtual machine, and --kind thread has none: leave one of them out".into(),
            ));
        }
        Ok(GuestOptions {
            config: GuestConfig {
                name: self.name,
                kind: match self.kind {
                    Kind::Kvm => GuestKind::Kvm,
                    Kind::Thread => GuestKind::Thread,
                },
                memory: self.memory,
                vcpus: self.vcpus,
                workload: self.workload.to_string(),
                seed: self.seed,
                steps: self.steps,
                fill: match self.fill {
                    FillArg::Zero => Fill::Zero,
                    FillArg::Random => Fill::Random,
                },
                irqchip: false,
            },
            control: self.control,
            tracking,
            dump_ram: self.dump_ram,
            trust: self.trust.options(self.state.as_deref()),
            state: self.state,
            json: self.json,
        })
    }
}

fn name(text: &str) -> Result<String, journal::JournalError> {
    journal::check_name(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn options(arguments: &[&str]) -> Result<GuestOptions, CliError> {
        let fixed = ["dunlin", "guest", "--control", "sock"];
        match Cli::try_parse_from(fixed.iter().chain(arguments)).unwrap().command {
            Command::Guest(args) => args.options(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_and_everything_given() {
        let plain = options(&["--memory", "32MiB", "--workload", "seq"]).unwrap();
        assert_eq!(
            (plain.config.vcpus, plain.config.seed, plain.config.name.as_str()),
            (1, 1, "vm")
        );
        assert_eq!(
            (plain.config.kind, plain.config.fill, plain.config.steps),
            (GuestKind::Kvm, Fill::Zero, None)
        );
        let all = "--memory 64MiB --vcpus 2 --workload uniform,rate=5000,ws=16MiB --seed 9 --name web --kind thread --fill random \
                   --tracking bitmap --steps 1000 --dump-ram ram --state dir --json";
        let all = options(&all.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(all.config.memory, Bytes(64 << 20));
        assert_eq!(all.config.workload, "uniform,rate=5000,ws=16MiB");
        assert_eq!(
            (all.config.vcpus, all.config.seed, all.config.steps),
            (2, 9, Some(1000))
        );
        assert_eq!((all.config.kind, all.config.fill), (GuestKind::Thread, Fill::Random));
        assert_eq!(
            (all.dump_ram, all.state, all.json),
            (Some("ram".into()), Some("dir".into()), true)
        );
    }

    #[test]
    fn rings_have_a_size_and_are_of_virtual_machines() {
        let with = |arguments: &str| {
            let plain = ["--memory", "32MiB", "--workload", "seq"];
            options(
                &plain
                    .into_iter()
                    .chain(arguments.split_whitespace())
                    .collect::<Vec<_>>(),
            )
        };
        let tracking = |arguments| with(arguments).unwrap().tracking;
        assert_eq!(tracking(""), Tracking::Bitmap);
        assert_eq!(tracking("--tracking ring"), Tracking::Ring { entries: 65_536 });
        assert_eq!(
            tracking("--tracking ring --ring-size 4096"),
            Tracking::Ring { entries: 4096 }
        );
        for (wrong, part) in [
            ("--ring-size 4096", "add --tracking ring"),
            ("--tracking ring --kind thread", "needs a virtual machine"),
        ] {
            let error = with(wrong).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        for size in ["1024", "3000", "131072", "many"] {
            let arguments = [
                "dunlin",
                "guest",
                "--control",
                "sock",
                "--memory",
                "32MiB",
                "--workload",
                "seq",
            ];
            let error = Cli::try_parse_from(arguments.into_iter().chain(["--ring-size", size])).unwrap_err();
            assert!(
                error.to_string().contains("a power of two from 2048 to 65536"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        for (memory, workload, part) in [
            ("0", "seq", "memory of 0 KiB is too small"),
            ("4097", "seq", "not a multiple of 4096"),
            ("64PiB", "seq", "at most"),
            ("32MiB", "seq,ws=1GiB", "working set"),
        ] {
            let error = options(&["--memory", memory, "--workload", workload]).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
