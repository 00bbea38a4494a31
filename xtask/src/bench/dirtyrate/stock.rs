//! Dunlin's guest in stock QEMU, whose `calc-dirty-rate` measures it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin::guest::{AnyGuest, Guest as _, GuestConfig};
use dunlin::trace::foreign::Qmp;
use dunlin_core::workload::layout::{PAYLOAD, PAYLOAD_BYTES, PROGRESS, PROGRESS_LINE, Progress, State};
use serde_json::{Value, json};

use super::truth::Truth;
use super::{MIB, Sample, WINDOW, firmware};

/// What QEMU can measure by. `dirty-ring` is not among them: where KVM emulates a guest it reports every write, not only the first of
/// a page. QEMU counts them all, and once its ring has been full the guest stands still for good.
pub(super) const MODES: [&str; 2] = ["page-sampling", "dirty-bitmap"];
/// Where a PC has no RAM, but video memory and firmware.
const NO_RAM: std::ops::Range<u64> = 0xa_0000..0x10_0000;
/// What QEMU says on its error output, which is of interest only when it does not start.
const MESSAGES: &str = "messages";
const PATIENCE: Duration = Duration::from_secs(30);
/// How often QEMU is asked whether it is done.
const PERIOD: Duration = Duration::from_millis(5);

/// A QEMU that runs the guest, which nothing paces: there is nobody at the port for that.
pub(super) struct Stock {
    qmp: Qmp,
    _process: Process,
    folder: tempfile::TempDir,
}

/// Ended with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Stock {
    /// Starts the guest and waits until it has done its first steps.
    pub(super) fn start(config: &GuestConfig) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let bios = folder.path().join("firmware");
        fs::write(&bios, firmware::image())?;
        let socket = folder.path().join("qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "kvm", "-nodefaults", "-display", "none"])
            .args(["-m", &format!("{}B", config.memory.0)])
            .arg("-bios")
            .arg(&bios)
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(loaders(config, folder.path())?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join(MESSAGES))?);
        let mut process = Process(command.spawn().context("qemu-system-x86_64 does not start")?);
        let mut stock = Self {
            qmp: connect(&socket, &mut process.0).with_context(|| {
                let said = fs::read_to_string(folder.path().join(MESSAGES)).unwrap_or_default();
                format!("QEMU says: {said}")
            })?,
            _process: process,
            folder,
        };
        let deadline = Instant::now() + PATIENCE;
        while stock.steps()? == 0 {
            ensure!(Instant::now() < deadline, "the guest does nothing in QEMU");
            sleep(PERIOD);
        }
        Ok(stock)
    }

    /// One measurement, beside what the guest did meanwhile.
    pub(super) fn measure(&mut self, mode: &'static str, truth: &Truth) -> anyhow::Result<Sample> {
        let window = WINDOW.as_secs_f64();
        let arguments = json!({ "calc-time": WINDOW.as_secs(), "mode": mode });
        self.qmp.execute("calc-dirty-rate", &arguments)?;
        let (began, from) = (Instant::now(), self.steps()?);
        let rate = self.rate()?;
        let (time, to) = (began.elapsed().as_secs_f64(), self.steps()?);
        // When QEMU began and ended exactly, it does not say: as long as it was told to, and it is not blamed for the rest.
        let steps = ((to - from) as f64 * window / time).round() as u64;
        ensure!(steps > 0, "the guest stands still in QEMU");
        Ok(Sample {
            measured: rate * MIB,
            actual: truth.rate(from..from + steps, window)?,
        })
    }

    /// What QEMU has measured when it is done, in whole MiB/s.
    fn rate(&mut self) -> anyhow::Result<f64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.qmp.execute("query-dirty-rate", &json!({}))?;
            if answer["status"] == "measured" {
                let rate = answer["dirty-rate"].as_f64();
                return rate.with_context(|| format!("QEMU names no rate: {answer}"));
            }
            ensure!(Instant::now() < deadline, "QEMU's measurement does not end: {answer}");
            sleep(PERIOD);
        }
    }

    /// How many steps the guest says that it has done.
    fn steps(&mut self) -> anyhow::Result<u64> {
        let file = self.folder.path().join("progress");
        let arguments: Value = json!({ "val": PROGRESS, "size": PROGRESS_LINE, "filename": file });
        self.qmp.execute("pmemsave", &arguments)?;
        let bytes = fs::read(&file)?;
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        let progress = Progress::from_words(&words);
        match progress.state {
            State::Starting | State::Running => Ok(progress.steps),
            _ => bail!("the guest does not run on in QEMU: {progress:?}"),
        }
    }
}

/// The arguments by which QEMU fills the guest as Dunlin does: with what is in one of Dunlin's that never ran.
fn loaders(config: &GuestConfig, folder: &Path) -> anyhow::Result<Vec<String>> {
    let guest = AnyGuest::create(config.clone())?;
    let mut memory = vec![0; (PAYLOAD + PAYLOAD_BYTES) as usize];
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

/// It takes a while until QEMU listens.
fn connect(socket: &Path, child: &mut Child) -> anyhow::Result<Qmp> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Qmp::connect(socket) {
            Ok(qmp) => return Ok(qmp),
            Err(error) => {
                let ended = child.try_wait()?;
                ensure!(ended.is_none(), "QEMU ended at once");
                ensure!(Instant::now() < deadline, "QEMU does not listen: {error}");
            }
        }
        sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use dunlin_tests::{Capability, require};

    use super::super::config;
    use super::*;

    #[test]
    fn the_guest_works_in_stock_qemu() {
        if !require(Capability::Kvm) || !require(Capability::Qemu) {
            return;
        }
        let mut stock = Stock::start(&config("uniform,ws=32MiB")).unwrap();
        let first = stock.steps().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while stock.steps().unwrap() < first + 1000 {
            assert!(Instant::now() < deadline, "the guest stands still");
            sleep(PERIOD);
        }
    }
}
