//! What recordings ask of a QEMU.

use std::path::Path;

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use serde_json::{Value, json};

use super::ForeignError;
use crate::qemu::{Address, Client};

/// A connection to the QEMU that serves a socket file.
#[derive(Debug)]
pub struct Qmp {
    client: Client,
    process: u32,
}

impl Qmp {
    /// Connects and says hello.
    ///
    /// # Errors
    /// [`ForeignError::Qmp`].
    pub fn connect(path: &Path) -> Result<Self, ForeignError> {
        // Events are of no interest here.
        let client = Client::connect(&Address::Unix(path.to_owned()), |_| ())?;
        let process = client.peer().unwrap_or(0);
        Ok(Self { client, process })
    }

    /// The process at the other end.
    pub const fn process(&self) -> u32 {
        self.process
    }

    /// Whether its guest runs under KVM.
    ///
    /// # Errors
    /// [`ForeignError::Qmp`].
    pub fn uses_kvm(&mut self) -> Result<bool, ForeignError> {
        let answer = self.execute("query-kvm", &json!({}))?;
        Ok(answer.get("enabled").and_then(Value::as_bool) == Some(true))
    }

    /// The threads of its vCPUs, and which vCPU each is.
    ///
    /// # Errors
    /// [`ForeignError::Qmp`].
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

    /// Carries out a command and returns what it returns.
    ///
    /// # Errors
    /// [`ForeignError::Qmp`].
    pub fn execute(&mut self, command: &'static str, arguments: &Value) -> Result<Value, ForeignError> {
        Ok(self.client.execute(command, arguments)?)
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
