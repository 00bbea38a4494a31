//! `dunlin receive`

use super::{CliError, security::SecurityArgs, tracking::TrackingArgs, trust::TrustArgs, values};
use crate::{
    channel::Address,
    run::{node, options::ReceiveOptions},
};
use dunlin_core::units::Bytes;
use std::{path::PathBuf, process::ExitCode};

/// `dunlin receive` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Wait for a migration at host:port or unix:PATH; 0.0.0.0:PORT is every interface, port 0 any free one
    #[arg(long, value_name = "ADDR")]
    listen: Address,

    #[command(flatten)]
    security: SecurityArgs,

    /// Serve the control socket here, for `dunlin migrate`, `status` and `resolve`
    #[arg(long, value_name = "SOCK")]
    control: PathBuf,

    #[command(flatten)]
    tracking: TrackingArgs,

    /// A directory that the source's host mounts, too, for strategies that use one: first=parallel, cut=pbdata, cut=both
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,

    /// Refuse guests with more memory than this [default: the memory of this host]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    max_memory: Option<Bytes>,

    /// Bring all memory of a guest into being before it is copied: a faster copy, but what the guest never used is used up too
    #[arg(long)]
    populate: bool,

    /// Write the guest's memory to this file when it has halted here
    #[arg(long, value_name = "FILE")]
    dump_ram: Option<PathBuf>,

    /// Keep the hand-over record in this directory: it says who may run the guest, whatever dies when
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    #[command(flatten)]
    trust: TrustArgs,

    /// Print results as JSON lines; the first says where it listens
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        if let Some(storage) = self.storage.as_ref().filter(|storage| !storage.is_dir()) {
            return Err(CliError::Usage(format!(
                "--storage: there is no directory {}: make or mount it first",
                storage.display()
            )));
        }
        let max_memory = match self.max_memory {
            Some(Bytes(0)) => {
                return Err(CliError::Usage(
                    "--max-memory 0 would refuse every guest: write a larger size".into(),
                ));
            }
            Some(given) => given,
            None => host_memory(),
        };
        let protection = self.security.protect(&self.listen)?;
        let options = ReceiveOptions {
            listen: self.listen,
            tls_dir: protection.tls_dir,
            insecure: protection.insecure,
            control: self.control,
            tracking: self.tracking.tracking()?,
            max_memory,
            populate: self.populate,
            storage: self.storage,
            dump_ram: self.dump_ram,
            trust: self.trust.options(self.state.as_deref()),
            state: self.state,
            json: self.json,
        };
        node::run_receive(options).map_err(|error| CliError::Node(error.into()))
    }
}

/// All memory of this host.
pub(super) fn host_memory() -> Bytes {
    let info = rustix::system::sysinfo();
    Bytes((info.totalram as u64).saturating_mul(info.mem_unit.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_memory() {
        let Bytes(bytes) = host_memory();
        assert!((1 << 20..1 << 60).contains(&bytes), "{bytes}");
    }
}
