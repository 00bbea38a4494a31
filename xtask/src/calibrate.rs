//! `cargo xtask calibrate`: the rate at which a workload does to a link what was published of it.
//!
//! Every rate in `tests/plans/` comes from here: the plan says from which numbers.

use std::process::ExitCode;

use anyhow::bail;
use dunlin::cli::values;
use dunlin_core::units::{Bytes, BytesPerSec, PAGE_SIZE};

use crate::experiment::load::Link;

/// A guest, a link, and what is known of them.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The workload without a rate: memcached,ws=4GiB
    workload: String,
    /// All of the guest's memory
    #[arg(long, value_parser = values::size)]
    memory: Bytes,
    /// Rate of the network
    #[arg(long, value_parser = values::rate)]
    bandwidth: BytesPerSec,
    /// The rate with which so much is written in the time of one copy, each page counted once, as a share of memory
    #[arg(long, group = "wanted")]
    share: Option<f64>,
    /// The same, as a size
    #[arg(long, group = "wanted", value_parser = values::size)]
    written: Option<Bytes>,
    /// The rate with which so much is written in the time that it takes to send it: where rounds settle
    #[arg(long, group = "wanted", value_parser = values::size)]
    settles_at: Option<Bytes>,
    /// The load of a rate, instead of the rate of a load
    #[arg(long, group = "wanted")]
    load_of: Option<u64>,
}

/// Prints a number: steps a second of the whole guest, or the load.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let link = Link {
        memory: options.memory,
        bandwidth: options.bandwidth,
    };
    let workload = options.workload.as_str();
    match options {
        Options { share: Some(share), .. } => println!("{}", link.rate_for_share(workload, *share)?),
        Options {
            written: Some(size), ..
        } => {
            let share = size.0 as f64 / options.memory.0 as f64;
            println!("{}", link.rate_for_share(workload, share)?);
        }
        Options {
            settles_at: Some(size), ..
        } => {
            println!("{}", link.rate_to_settle_at(workload, size.0 / PAGE_SIZE)?);
        }
        Options {
            load_of: Some(rate), ..
        } => {
            println!("{:.4}", link.offered_load(workload, *rate as f64)?);
        }
        _ => bail!("say what is known: --share, --written, --settles-at or --load-of"),
    }
    Ok(ExitCode::SUCCESS)
}
