//! Stock QEMU as a peer: two processes, steered by QMP, that move a paused guest full of random bytes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

/// How much of the guest's 1 GiB is random: the rest is left to the firmware.
const RANDOM_BYTES: usize = 900_000_000;
/// Where the random bytes begin in the guest's memory.
const RANDOM_ADDRESS: u64 = 0x200_0000;
const PATIENCE: Duration = Duration::from_secs(120);

/// Random bytes in a file, from which QEMU fills a guest.
pub(super) struct RandomGuest {
    folder: tempfile::TempDir,
}

impl RandomGuest {
    /// Uses the beginning of `bytes`.
    pub(super) fn new(bytes: &[u8]) -> anyhow::Result<Self> {
        // A file in memory where there is such a file system: a disk would only add waiting before each repetition.
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory)?,
            false => tempfile::tempdir()?,
        };
        std::fs::write(folder.path().join("random"), &bytes[..RANDOM_BYTES])
            .context("cannot write the random bytes")?;
        Ok(Self { folder })
    }

    /// Moves the guest once by pre-copy on one connection, without any limit. Bytes per second as QEMU counts them.
    pub(super) fn plain_precopy(&self) -> anyhow::Result<f64> {
        let mut source = self.start("source", &[])?;
        let mut target = self.start("target", &["-incoming", "defer"])?;
        let unlimited = json!({ "max-bandwidth": 100_u64 << 30, "downtime-limit": 300 });
        source.execute("migrate-set-parameters", unlimited)?;
        let port = free_port()?;
        let uri = json!({ "uri": format!("tcp:127.0.0.1:{port}") });
        target.execute("migrate-incoming", uri.clone())?;
        source.execute("migrate", uri)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = source.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return transferred_per_second(&state),
                Some("failed" | "cancelled") => bail!("QEMU's migration ended as {state}"),
                _ => ensure!(Instant::now() < deadline, "QEMU's migration takes too long: {state}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn start(&self, name: &str, extra: &[&str]) -> anyhow::Result<Qemu> {
        let random = self.folder.path().join("random");
        let loader = format!("loader,file={},addr={RANDOM_ADDRESS:#x},force-raw=on", random.display());
        let mut args = vec!["-device", &loader];
        args.extend(extra);
        Qemu::start(&self.folder.path().join(name), &args)
    }
}

fn transferred_per_second(state: &Value) -> anyhow::Result<f64> {
    let number = |value: &Value| {
        value
            .as_f64()
            .with_context(|| format!("QEMU's report lacks numbers: {state}"))
    };
    Ok(number(&state["ram"]["transferred"])? / (number(&state["total-time"])? / 1e3))
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    Ok(listener.local_addr()?.port())
}

/// A QEMU with a paused 1 GiB guest; ended when dropped.
struct Qemu {
    child: Child,
    control: BufReader<UnixStream>,
}

impl Qemu {
    fn start(socket: &Path, extra: &[&str]) -> anyhow::Result<Self> {
        let _ = std::fs::remove_file(socket);
        let qmp = format!("unix:{},server=on,wait=off", socket.display());
        let fixed = [
            "-accel",
            "tcg",
            "-machine",
            "q35,usb=off",
            "-m",
            "1024M",
            "-display",
            "none",
            "-nodefaults",
            "-S",
        ];
        let mut child = Command::new("qemu-system-x86_64")
            .args(fixed)
            .args(["-qmp", &qmp])
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        match connect(&mut child, socket.to_owned()) {
            Ok(control) => {
                let mut qemu = Self { child, control };
                qemu.read_line()?;
                qemu.execute("qmp_capabilities", json!({}))?;
                Ok(qemu)
            }
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.control.get_mut(), "{line}").with_context(|| format!("QEMU takes no `{command}`"))?;
        loop {
            let mut answer = self.read_line()?;
            if !answer["error"].is_null() {
                bail!("QEMU refuses `{line}`: {}", answer["error"]);
            }
            // Everything else is an event.
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn read_line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let read = self.control.read_line(&mut line).context("QEMU answers no more")?;
        ensure!(read > 0, "QEMU ended its control connection");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits until QEMU listens, which takes as long as it fills the guest.
fn connect(child: &mut Child, socket: PathBuf) -> anyhow::Result<BufReader<UnixStream>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(BufReader::new(stream));
            }
            Err(error) => {
                let ended = child.try_wait()?;
                ensure!(ended.is_none(), "QEMU ended at once; its message stands above");
                ensure!(Instant::now() < deadline, "QEMU does not listen: {error}");
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
}
