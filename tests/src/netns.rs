//! A network of a test's own: two network namespaces, each a host, and a shaped link between them. Needs root.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};

/// The interface of either host.
const LINK: &str = "link0";
/// Their addresses; each pair of namespaces has a world of its own, so that these never clash.
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

static MADE: AtomicU32 = AtomicU32::new(0);

/// Two hosts and a link; gone at the end.
pub struct Network {
    names: [String; 2],
}

impl Network {
    /// A link of this rate, as `tc` writes it: `200mbit`.
    ///
    /// # Errors
    /// If the kernel or the tools refuse.
    pub fn new(rate: &str) -> anyhow::Result<Self> {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = |side: &str| format!("dunlin-{}-{number}-{side}", std::process::id());
        let network = Self {
            names: [name("source"), name("target")],
        };
        for name in &network.names {
            run("ip", &["netns", "add", name])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        let [source, target] = &network.names;
        run(
            "ip",
            &[
                "-n", source, "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", target,
            ],
        )?;
        for (name, address) in network.names.iter().zip(ADDRESSES) {
            run(
                "ip",
                &["-n", name, "address", "add", &format!("{address}/24"), "dev", LINK],
            )?;
            run("ip", &["-n", name, "link", "set", LINK, "up"])?;
            let shape = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "20ms"];
            run("tc", &[&["-n", name, "qdisc", "add", "dev", LINK][..], &shape].concat())?;
        }
        Ok(network)
    }

    /// The namespace of the source's host.
    pub fn source(&self) -> &str {
        &self.names[0]
    }

    /// The namespace of the target's host.
    pub fn target(&self) -> &str {
        &self.names[1]
    }

    /// Where the target can listen, at a port the system chooses.
    pub fn target_address(&self) -> String {
        format!("{}:0", ADDRESSES[1])
    }

    /// Takes the link away: nothing passes, and nobody is told.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cut(&self) -> anyhow::Result<()> {
        run("ip", &["-n", self.source(), "link", "set", LINK, "down"])
    }

    /// Brings it back.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn mend(&self) -> anyhow::Result<()> {
        run("ip", &["-n", self.source(), "link", "set", LINK, "up"])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
