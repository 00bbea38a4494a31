//! QEMU's machine protocol, as far as recordings need it: QEMU 7.2, docs/interop/qmp-spec.txt.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use serde_json::{Value, json};

use super::ForeignError;

/// QEMU answers at once, unless its main loop hangs.
const PATIENCE: Duration = Duration::from_secs(10);
/// No answer is nearly as long.
const LINE_MAX: u64 = 16 << 20;

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    process: u32,
}

impl Qmp {
    /// Connects and says hello.
    ///
    /// # Errors
    /// [`ForeignError::Connect`], [`ForeignError::NoQmp`].
    pub fn connect(path: &Path) -> Result<Self, ForeignError> {
        let failed = |source| ForeignError::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| failed(error.into()))?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
            process: peer.pid.as_raw_nonzero().get().unsigned_abs(),
        };
        let greeting = qmp.read().map_err(|error| match error {
            ForeignError::Broken(source) => failed(source),
            error => error,
        })?;
        if greeting.get("QMP").is_none() {
            return Err(ForeignError::NoQmp(greeting.to_string()));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// The process at the other end.
    pub const fn process(&self) -> u32 {
        self.process
    }

    /// Whether its guest runs under KVM.
    ///
    /// # Errors
    /// [`ForeignError::Refused`], [`ForeignError::Broken`].
    pub fn uses_kvm(&mut self) -> Result<bool, ForeignError> {
        let answer = self.execute("query-kvm", &json!({}))?;
        Ok(answer.get("enabled").and_then(Value::as_bool) == Some(true))
    }

    /// The threads of its vCPUs, and which vCPU each is.
    ///
    /// # Errors
    /// [`ForeignError::Refused`], [`ForeignError::Broken`].
    pub fn vcpus(&mut self) -> Result<Vec<(u32, u32)>, ForeignError> {
        let answer = self.execute("query-cpus-fast", &json!({}))?;
        let number = |cpu: &Value, field| u32::try_from(cpu.get(field)?.as_u64()?).ok();
        let cpus = answer.as_array().into_iter().flatten();
        Ok(cpus
            .filter_map(|cpu| Some((number(cpu, "thread-id")?, number(cpu, "cpu-index")?)))
            .collect())
    }

    /// Where the guest has RAM, ascending.
    ///
    /// # Errors
    /// As [`vcpus`](Self::vcpus).
    pub fn memory(&mut self) -> Result<Vec<Run>, ForeignError> {
        let arguments = json!({ "command-line": "info mtree -f" });
        let answer = self.execute("human-monitor-command", &arguments)?;
        Ok(ram_of(answer.as_str().unwrap_or_default()))
    }

    /// Carries out a command and returns what it returns. Events that come meanwhile are dropped.
    ///
    /// # Errors
    /// [`ForeignError::Refused`] when QEMU says why it does not, [`ForeignError::Broken`], [`ForeignError::NoQmp`].
    pub fn execute(&mut self, command: &'static str, arguments: &Value) -> Result<Value, ForeignError> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let mut stream = self.reader.get_ref();
        stream.write_all(line.as_bytes()).map_err(ForeignError::Broken)?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(ForeignError::Refused {
                    command,
                    reason: reason.to_owned(),
                });
            }
            if answer.get("event").is_none() {
                return Err(ForeignError::NoQmp(answer.to_string()));
            }
        }
    }

    fn read(&mut self) -> Result<Value, ForeignError> {
        let mut line = String::new();
        let mut limited = io::Read::take(&mut self.reader, LINE_MAX);
        if limited.read_line(&mut line).map_err(ForeignError::Broken)? == 0 {
            return Err(ForeignError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_str(&line).map_err(|error| ForeignError::NoQmp(error.to_string()))
    }
}

/// The runs of RAM in the human monitor's flat views: those of the first view of address space `memory`, neighbours joined.
///
/// `  00000000000c0000-0000000003ffffff (prio 0, ram): pc.ram @00000000000c0000 KVM`
fn ram_of(text: &str) -> Vec<Run> {
    let views = text.split("FlatView #");
    let view = views
        .into_iter()
        .find(|view| view.contains("AS \"memory\""))
        .unwrap_or_default();
    let mut runs: Vec<Run> = Vec::new();
    for run in view.lines().filter_map(ram_line) {
        match runs.last_mut() {
            Some(last) if last.end() == run.first => last.count.0 += run.count.0,
            _ => runs.push(run),
        }
    }
    runs
}

fn ram_line(line: &str) -> Option<Run> {
    let (range, what) = line.trim().split_once(" (prio ")?;
    if !what.contains(", ram): ") {
        return None;
    }
    let (first, last) = range.split_once('-')?;
    let address = |hex| u64::from_str_radix(hex, 16).ok();
    let (first, end) = (address(first)?, address(last)?.checked_add(1)?);
    let pages = (end / PAGE_SIZE).checked_sub(first.div_ceil(PAGE_SIZE))?;
    (pages > 0).then_some(Run::new(Gfn(first.div_ceil(PAGE_SIZE)), Pages(pages)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_found_in_the_monitor_s_words() {
        let text = "FlatView #0\r\n AS \"I/O\", root: io\r\n  0000000000000000-0000000000000fff (prio 0, ram): not this\r\n\
                    \r\nFlatView #1\r\n AS \"memory\", root: system\r\n AS \"cpu-memory-0\", root: system\r\n \
                    Root memory region: system\r\n  \
                    0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\r\n  \
                    00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\r\n  \
                    00000000000c0000-00000000000dffff (prio 0, rom): pc.ram @00000000000c0000 KVM\r\n  \
                    00000000000e0000-0000000000ffffff (prio 0, ram): pc.ram @00000000000e0000 KVM\r\n  \
                    0000000001000000-0000000003ffffff (prio 0, ram): pc.ram @0000000001000000 KVM\r\n  \
                    00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM\r\n";
        let expected = [Run::new(Gfn(0), Pages(0xa0)), Run::new(Gfn(0xe0), Pages(0x4000 - 0xe0))];
        assert_eq!(ram_of(text), expected);
        assert_eq!(ram_of(""), []);
        assert_eq!(ram_line("ffffffffffffffff-0 (prio 0, ram): x"), None);
        assert_eq!(ram_line("0000000000000800-00000000000017ff (prio 0, ram): x"), None);
    }
}
