//! Dunlin's guest in stock QEMU with KVM: the same payload, brought to memory by QEMU and to 64-bit mode by a firmware of our own.

mod firmware;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin::guest::{AnyGuest, Fill, Guest as _, GuestConfig};
use dunlin::trace::foreign::Qmp;
use dunlin_core::units::Bytes;
use dunlin_core::workload::layout::{PAYLOAD, PAYLOAD_BYTES, PROGRESS, PROGRESS_LINE, Progress, State, WORKLOAD};
use serde_json::{Value, json};

use crate::qemu::Qemu;

/// Where a PC has no RAM, but video memory and firmware.
const NO_RAM: std::ops::Range<u64> = 0xa_0000..0x10_0000;
const PATIENCE: Duration = Duration::from_secs(120);
/// How often QEMU is asked how far it is.
const PERIOD: Duration = Duration::from_millis(5);

/// A QEMU that runs the guest, which nothing paces: there is nobody at the port for that. Ended with this.
pub struct Stock {
    /// To ask it for what the tests want to know.
    pub qmp: Qmp,
    qemu: Qemu,
    memory: Bytes,
}

impl Stock {
    /// Starts the guest and waits until it has done its first steps.
    ///
    /// # Errors
    /// If QEMU or the guest does not start, with what QEMU says.
    pub fn start(config: &GuestConfig) -> anyhow::Result<Self> {
        Self::start_with(config, &[])
    }

    /// The same, with further arguments of QEMU's.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(config: &GuestConfig, extra: &[&str]) -> anyhow::Result<Self> {
        let mut stock = Self::launch(config, extra)?;
        let deadline = Instant::now() + PATIENCE;
        while stock.steps()? == 0 {
            ensure!(Instant::now() < deadline, "the guest does nothing in QEMU");
            sleep(PERIOD);
        }
        Ok(stock)
    }

    /// Starts a QEMU that waits for such a guest.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn wait_for(config: &GuestConfig) -> anyhow::Result<Self> {
        Self::wait_with(config, &[])
    }

    /// The same, with further arguments of QEMU's.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn wait_with(config: &GuestConfig, extra: &[&str]) -> anyhow::Result<Self> {
        Self::launch(config, &[&["-incoming", "defer"][..], extra].concat())
    }

    /// The same, by a process that may not take page faults of others, so that it cannot do post-copy.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn wait_without_faults_for(config: &GuestConfig) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let arguments = arguments(config, folder.path(), &["-incoming", "defer"])?;
        let (qemu, qmp) = Qemu::start_without_faults(folder, arguments)?;
        Ok(Self {
            qmp,
            qemu,
            memory: config.memory,
        })
    }

    fn launch(config: &GuestConfig, extra: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let arguments = arguments(config, folder.path(), extra)?;
        let (qemu, qmp) = Qemu::start(folder, arguments)?;
        let stock = Self {
            qmp,
            qemu,
            memory: config.memory,
        };
        Ok(stock)
    }

    /// QEMU's process.
    pub fn id(&self) -> u32 {
        self.qemu.id()
    }

    /// Ends QEMU at once.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.qemu.kill()
    }

    /// A QMP socket that nobody uses: QEMU serves one client at each.
    pub fn socket(&self) -> PathBuf {
        self.qemu.socket()
    }

    /// How many steps the guest says that it has done.
    ///
    /// # Errors
    /// If QEMU does not answer, or the guest has found a page that is not as it left it.
    pub fn steps(&mut self) -> anyhow::Result<u64> {
        Ok(self.progress()?.steps)
    }

    /// Waits until the guest has done all its steps, and returns the hash of what it has written.
    ///
    /// # Errors
    /// As [`steps`](Self::steps), and if it does not get there.
    pub fn result(&mut self) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let progress = self.progress()?;
            if progress.state == State::Done {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "the guest does not come to its end: {progress:?}"
            );
            sleep(PERIOD);
        }
        let file = self.qemu.folder().join("workload");
        let arguments = json!({ "val": WORKLOAD, "size": self.memory.0 - WORKLOAD, "filename": file });
        self.qmp.execute("pmemsave", &arguments)?;
        Ok(blake3::hash(&fs::read(&file)?).to_string())
    }

    fn progress(&mut self) -> anyhow::Result<Progress> {
        let file = self.qemu.folder().join("progress");
        let arguments: Value = json!({ "val": PROGRESS, "size": PROGRESS_LINE, "filename": file });
        self.qmp.execute("pmemsave", &arguments)?;
        let bytes = fs::read(&file)?;
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        let progress = Progress::from_words(&words);
        match progress.state {
            State::Starting | State::Running | State::Done => Ok(progress),
            _ => bail!("the guest does not run on in QEMU: {progress:?}"),
        }
    }
}

/// QEMU's arguments for this guest, whose files are put into `folder`.
fn arguments(config: &GuestConfig, folder: &Path, extra: &[&str]) -> anyhow::Result<Vec<String>> {
    let bios = folder.join("firmware");
    fs::write(&bios, firmware::image())?;
    let mut arguments = ["-accel", "kvm", "-nodefaults", "-display", "none"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(["-m".to_owned(), format!("{}B", config.memory.0)]);
    arguments.extend(["-name".to_owned(), format!("{},debug-threads=on", config.name)]);
    arguments.extend(["-bios".to_owned(), bios.display().to_string()]);
    arguments.extend(loaders(config, folder)?);
    arguments.extend(extra.iter().map(|argument| (*argument).to_owned()));
    Ok(arguments)
}

/// The arguments by which QEMU fills the guest as Dunlin does: with what is in one of Dunlin's that never ran.
fn loaders(config: &GuestConfig, folder: &Path) -> anyhow::Result<Vec<String>> {
    let guest = AnyGuest::create(config.clone())?;
    let bytes = match config.fill {
        Fill::Zero => PAYLOAD + PAYLOAD_BYTES,
        Fill::Random => config.memory.0,
    };
    let mut memory = vec![0; usize::try_from(bytes)?];
    guest.memory().read(0, &mut memory)?;
    let (low, rest) = memory.split_at(NO_RAM.start as usize);
    let (none, high) = rest.split_at((NO_RAM.end - NO_RAM.start) as usize);
    ensure!(
        none.iter().all(|byte| *byte == 0),
        "the guest needs memory where a PC has none"
    );
    let mut args = vec![];
    for (name, address, bytes) in [("low", 0, low), ("high", NO_RAM.end, high)] {
        let file = folder.join(name);
        fs::write(&file, bytes)?;
        let loader = format!("loader,file={},addr={address:#x},force-raw=on", file.display());
        args.extend(["-device".to_owned(), loader]);
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Capability, require};
    use dunlin::guest::GuestKind;

    #[test]
    fn the_guest_works_in_stock_qemu() {
        if !require(Capability::Kvm) || !require(Capability::Qemu) {
            return;
        }
        let config = GuestConfig {
            name: "stock".into(),
            kind: GuestKind::Kvm,
            memory: Bytes(64 << 20),
            vcpus: 1,
            workload: "uniform,ws=32MiB".into(),
            seed: 1,
            steps: None,
            fill: Fill::Zero,
            irqchip: false,
        };
        let mut stock = Stock::start(&config).unwrap();
        let first = stock.steps().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while stock.steps().unwrap() < first + 1000 {
            assert!(Instant::now() < deadline, "the guest stands still");
            sleep(PERIOD);
        }
    }
}
