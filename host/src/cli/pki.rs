//! `dunlin pki`: an authority for hosts that have none.

use super::{CliError, output};
use crate::trust::{Name, pki};
use std::{path::PathBuf, process::ExitCode};

/// `dunlin pki` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make an authority: its certificate and its key, in a new directory that should stay on one safe host
    Init {
        /// The authority's directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Make a key and a certificate for a host, in a directory of its own, ready to be copied there
    Issue {
        /// The authority's directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// The host's name, as `migrate` names it in --to or --peer: a DNS name, or a URI if it has a colon
        #[arg(value_name = "NAME")]
        name: String,

        /// NAME is a URI
        #[arg(long, conflicts_with = "dns")]
        uri: bool,

        /// NAME is a DNS name
        #[arg(long)]
        dns: bool,

        /// How long the certificate is good
        #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
        days: u64,
    },
    /// Take a certificate back: hosts with the new crl.pem refuse whoever shows it
    Revoke {
        /// The authority's directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// The name it was issued for, or the file of the certificate
        #[arg(value_name = "NAME|FILE")]
        whose: String,
    },
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let said = match self.command {
            Command::Init { directory } => {
                pki::init(&directory)?;
                format!(
                    "made an authority in {0}; its key {0}/ca-key.pem must stay secret\nnext: dunlin pki issue {0} NAME, for each host\n",
                    directory.display()
                )
            }
            Command::Issue {
                directory,
                name,
                uri,
                dns,
                days,
            } => {
                let name = match (uri, dns) {
                    (true, _) => Name::uri(&name),
                    (_, true) => Name::dns(&name),
                    _ => name.parse(),
                };
                let name = name.map_err(|error| CliError::Usage(error.to_string()))?;
                let made = pki::issue(&directory, &name, days)?;
                format!(
                    "made {0}: {name}, for {days} days\nnext: copy the files in it into /etc/dunlin/tls on that host, over a connection that nobody reads, or into another directory for --tls-dir\n",
                    made.display()
                )
            }
            Command::Revoke { directory, whose } => {
                pki::revoke(&directory, &whose)?;
                format!(
                    "revoked {whose}\nnext: copy {}/crl.pem into the directory of every host; it counts there from the next connection on\n",
                    directory.display()
                )
            }
        };
        output::result(&said)?;
        Ok(ExitCode::SUCCESS)
    }
}
