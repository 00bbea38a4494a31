//! `dunlin qemu migrate`, and what it shares with `resume`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use dunlin_core::strategy::{Slow, SwitchRule};
use dunlin_core::units::{Bytes, BytesPerSec};

use super::super::CliError;
use super::super::migrate::catch_signals;
use super::super::values::{self, Micros};
use super::view::View;
use super::{Rule, finish};
use crate::qemu::{Address, DriveError, Driver, Memo, Plan, Report, Steered, usual_folder};

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// QMP socket of the QEMU that has the guest: unix:PATH or HOST:PORT
    #[arg(long, value_name = "QMP")]
    source: Address,

    /// QMP socket of the QEMU that is to have it, as reached from here: of another host's, by `ssh -L`
    #[arg(long, value_name = "QMP")]
    target: Address,

    /// Where the source's QEMU reaches the target's, which listens there from now on: tcp:HOST:PORT or unix:PATH; not needed by `resume`
    #[arg(long, value_name = "URI", value_parser = uri)]
    to: Option<String>,

    /// Where the target listens, if it calls that otherwise: tcp:0:4444
    #[arg(long, value_name = "URI", value_parser = uri)]
    listen: Option<String>,

    /// Where the two may meet again after a cut in post-copy, tried in turn [default: where they met]
    #[arg(long, value_name = "URI", value_parser = uri, value_delimiter = ',')]
    recover: Vec<String>,

    /// When pre-copy ends: a rule (optimal, lambda, sdf:auto, kubevirt-stall, rounds:2, …) or a strategy (precopy, postcopy, as-hybrid, precopy,slow=auto-converge) [default: optimal]
    #[arg(long, value_name = "RULE", value_parser = super::rule)]
    strategy: Option<Rule>,

    /// Most that is sent per second [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    bandwidth: Option<BytesPerSec>,

    /// The same for what nobody waits for in post-copy [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    postcopy_bandwidth: Option<BytesPerSec>,

    /// Longest pause [default: 300ms]
    #[arg(long, value_name = "TIME", value_parser = values::positive_time)]
    downtime: Option<Micros>,

    /// Rounds of pre-copy after which it ends [default: 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: Option<u32>,

    /// Longest post-copy: no switch while more is left than can be sent in this time [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = values::positive_time)]
    drain: Option<Micros>,

    /// In post-copy, give a connection up on which nothing moves for this time, and make it again
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = values::positive_time)]
    network_timeout: Micros,

    /// Port of dunlin-agent in the guest, as the source serves it: the guest makes itself small before it is moved
    ///
    /// It writes what it keeps, forgets what it can read again, and lends what it does not use to its balloon (-device virtio-balloon), whose pages
    /// cost next to nothing. Afterwards it gets everything back. unix:PATH or HOST:PORT of -chardev socket,…
    #[arg(long, value_name = "SOCK")]
    agent: Option<Address>,

    /// The same port as the target serves it, to tell the guest that it has arrived; its hooks for that do not run without
    #[arg(long, value_name = "SOCK", requires = "agent")]
    target_agent: Option<Address>,

    /// How long the guest may take to make itself small
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::positive_time)]
    agent_timeout: Micros,

    /// Memory that the guest keeps to use at once [default: a sixteenth of all, at least 32MiB]
    #[arg(long, value_name = "SIZE", requires = "agent", value_parser = values::size)]
    reserve: Option<Bytes>,

    /// Connections for pages, 1 to 255 (with post-copy from QEMU 10.1 on)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    multifd: Option<u8>,

    /// A connection of its own for pages that the guest waits for in post-copy
    #[arg(long)]
    preempt: bool,

    /// The id under which both QEMUs have TLS credentials (-object tls-creds-x509,id=ID,…)
    #[arg(long, value_name = "ID")]
    tls_creds: Option<String>,

    /// The name in the target's certificate, if it is not the host's in --to; needed with unix:PATH
    #[arg(long, value_name = "NAME", requires = "tls_creds")]
    tls_hostname: Option<String>,

    /// Folder for what `dunlin qemu resume` needs, should this be killed [default: dunlin-qemu in $XDG_RUNTIME_DIR, or in the temporary folder]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        self.check()?;
        match self.to.clone() {
            Some(to) => self.drive(usual(to), |driver| driver.migrate()),
            None => Err(CliError::Usage(
                "say where the source reaches the target: --to tcp:HOST:PORT".into(),
            )),
        }
    }

    /// What the driver before this one was told; it is told so again unless there are other options now.
    pub(super) fn resume(&self) -> Result<ExitCode, CliError> {
        self.check()?;
        let memo = Memo::read(&self.folder(), &self.source);
        let steered = match (memo, self.to.clone()) {
            (Some(memo), _) => memo.steering,
            (None, Some(to)) => usual(to),
            (None, None) => {
                return Err(CliError::Usage(format!(
                    "there is no note of a migration from {} in {}: name the folder of the first command with --state, or say with --to \
                     where the source reaches the target",
                    self.source,
                    self.folder().display()
                )));
            }
        };
        self.drive(steered, |driver| driver.resume())
    }

    fn drive(
        &self,
        usual: Steered,
        how: impl FnOnce(Driver<'_>) -> Result<Report, DriveError>,
    ) -> Result<ExitCode, CliError> {
        let interrupt = catch_signals()?;
        let plan = self.plan(usual);
        let folder = self.folder();
        let view = View::new();
        let mut news = |news| view.show(&news);
        let report = Driver::connect(&plan, &folder, &interrupt, &mut news).and_then(how);
        view.finish();
        finish(&report?, self.json)
    }

    /// Checks what the parser cannot.
    fn check(&self) -> Result<(), CliError> {
        for (option, agent) in [("--agent", &self.agent), ("--target-agent", &self.target_agent)] {
            if agent
                .as_ref()
                .is_some_and(|it| [&self.source, &self.target].contains(&it))
            {
                return Err(CliError::Usage(format!(
                    "{option} is a QMP socket (--source, --target): give the socket of the agent's port, that of -chardev socket,…"
                )));
            }
        }
        Ok(())
    }

    fn folder(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(usual_folder)
    }

    fn plan(&self, usual: Steered) -> Plan {
        let time = |Micros(micros)| Duration::from_micros(micros);
        let rule = self.strategy.unwrap_or_else(|| Rule {
            switch: usual.rule.parse().unwrap_or(SwitchRule::OPTIMAL),
            slow: Slow::None,
        });
        Plan {
            source: self.source.clone(),
            target: self.target.clone(),
            uri: self.to.clone().unwrap_or(usual.uri),
            listen: self.listen.clone().or(usual.listen),
            recover: match &self.recover[..] {
                [] => usual.recover,
                given => given.to_vec(),
            },
            rule: rule.switch,
            slow: rule.slow,
            bandwidth: self.bandwidth,
            postcopy_bandwidth: self.postcopy_bandwidth,
            downtime: time(self.downtime.unwrap_or(Micros(usual.downtime_us))),
            max_rounds: self.max_rounds.unwrap_or(usual.max_rounds),
            drain: self.drain.or(usual.drain_us.map(Micros)).map(time),
            network_timeout: time(self.network_timeout),
            agent: self.agent.clone(),
            target_agent: self.target_agent.clone(),
            agent_timeout: time(self.agent_timeout),
            reserve: self.reserve,
            multifd: self.multifd,
            preempt: self.preempt,
            tls_creds: self.tls_creds.clone(),
            tls_hostname: self.tls_hostname.clone(),
        }
    }
}

/// What holds unless something else is said.
fn usual(to: String) -> Steered {
    Steered {
        uri: to,
        listen: None,
        recover: vec![],
        rule: SwitchRule::OPTIMAL.to_string(),
        downtime_us: 300_000,
        max_rounds: 30,
        drain_us: Some(300_000_000),
    }
}

/// As QEMU has it; host and port alone are TCP's.
fn uri(text: &str) -> Result<String, String> {
    let known = ["tcp:", "unix:", "exec:", "fd:", "rdma:", "vsock:", "file:"];
    if known.iter().any(|scheme| text.starts_with(scheme)) {
        return Ok(text.to_owned());
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(format!("tcp:{text}")),
        _ if text.contains('/') => Ok(format!("unix:{text}")),
        _ => Err("write tcp:HOST:PORT, or unix:PATH where both are on this host".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_qemu_s() {
        assert_eq!(uri("host:4444").as_deref(), Ok("tcp:host:4444"));
        assert_eq!(uri("tcp:0:4444").as_deref(), Ok("tcp:0:4444"));
        assert_eq!(uri("/run/a").as_deref(), Ok("unix:/run/a"));
        assert!(uri("host").is_err() && uri(":1").is_err());
    }
}
