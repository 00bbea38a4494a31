//! The emulated machine: QEMU with an emulated processor of AMD's, whose virtualisation KVM inside makes use of.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::command::describe;

const QEMU: &str = "qemu-system-x86_64";
/// One. QEMU 7.2 emulates each processor with a thread of its own, and one that was translating an instruction while another patched it
/// may execute the old one for ever: as soon as KVM has patched the scheduler for its first guest, both processors turn in circles.
const PROCESSORS: &str = "1";
/// For the image, which stays in memory, and for guests.
const MEMORY: &str = "3G";
/// No mitigations: they cost an emulated processor much and protect nobody. No checks of timers and no watchdog: on a busy machine
/// nothing is in time. A panic ends the machine.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 mitigations=off no_timer_check tsc=reliable nowatchdog panic=-1";

/// How often somebody who waits is called although nothing has come.
const TICK: Duration = Duration::from_millis(250);

/// How the machine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// By itself.
    Off,
    /// It was ended because it took too long.
    TimedOut,
}

/// A machine that can be started.
pub(super) struct Machine {
    pub(super) kernel: PathBuf,
    pub(super) image: PathBuf,
    /// A folder for what is written on the way.
    pub(super) logs: PathBuf,
}

impl Machine {
    /// What the kernel and the first process say.
    pub(super) fn console(&self) -> PathBuf {
        self.logs.join("console.log")
    }

    /// What QEMU says.
    fn messages(&self) -> PathBuf {
        self.logs.join("qemu.log")
    }

    /// The machine that runs the tests: its console goes to a file, and what the tests say to stdout.
    pub(super) fn tests(&self) -> Command {
        let mut command = self.command(KERNEL_ARGUMENTS);
        command.arg("-serial").arg(format!("file:{}", self.console().display()));
        command.args(["-serial", "stdio", "-monitor", "none"]);
        command
    }

    /// The machine with a shell on this terminal.
    pub(super) fn shell(&self) -> Command {
        let mut command = self.command(&format!("{KERNEL_ARGUMENTS} quiet lab.shell"));
        command.args(["-serial", "mon:stdio"]);
        command
    }

    fn command(&self, kernel_arguments: &str) -> Command {
        let mut command = Command::new(QEMU);
        command.args(["-accel", "tcg", "-cpu", "max", "-smp", PROCESSORS, "-m", MEMORY]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.image);
        command.arg("-append").arg(kernel_arguments);
        command
    }

    /// Runs the machine of the tests until it ends or `deadline` has come. `on_event` is given each line of the tests as
    /// it comes, and nothing from time to time.
    ///
    /// # Errors
    /// If QEMU does not start, or fails.
    pub(super) fn run(&self, deadline: Instant, mut on_event: impl FnMut(Option<&str>)) -> anyhow::Result<End> {
        let mut command = self.tests();
        let messages = File::create(self.messages()).context("cannot write the lab's logs")?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(messages);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`; see `cargo xtask setup`", describe(&command)))?;
        let mut running = Running(child);
        let stdout = running.0.stdout.take().context("stdout is piped")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Ends with the pipe. A receiver that is gone has seen enough.
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Ok(End::TimedOut);
            }
            match lines.recv_timeout(TICK.min(deadline - now)) {
                Ok(line) => on_event(Some(&line)),
                Err(RecvTimeoutError::Timeout) => on_event(None),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = running.0.wait()?;
        ensure!(
            status.success(),
            "`{}` failed ({status}): {}",
            describe(&command),
            std::fs::read_to_string(self.messages()).unwrap_or_default().trim()
        );
        Ok(End::Off)
    }
}

/// The command for somebody to type.
pub(super) fn as_typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:,=+".contains(letter);
        if word.chars().all(is_plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// A process that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_typed() {
        let machine = Machine {
            kernel: "/boot/vmlinuz".into(),
            image: "/a folder/it's".into(),
            logs: "/tmp".into(),
        };
        let typed = as_typed(&machine.shell());
        assert!(
            typed.contains(r"-kernel /boot/vmlinuz -initrd '/a folder/it'\''s' -append 'console=ttyS0 "),
            "{typed}"
        );
        assert!(typed.ends_with("lab.shell' -serial mon:stdio"), "{typed}");
    }
}
