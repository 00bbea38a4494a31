//! What a relay does to a migration.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Longer than the silence that a migration endures which meets a deed that is not gentle.
pub const LONG: Duration = Duration::from_millis(2600);
/// Longest wait for the end of a killed process.
const DEATH: Duration = Duration::from_secs(20);

/// One of the processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Where the guest comes from.
    Source,
    /// Where it goes.
    Target,
}

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// All connections are reset; what is on its way is lost.
    Reset,
    /// All connections end as if either side had closed them; what is on its way arrives.
    Close,
    /// All connections end for one side; the other learns nothing.
    HalfOpen(Side),
    /// Nothing arrives any more, nobody is told, and new connections are as dead for a while.
    BlackHole,
    /// Nothing passes for a moment.
    Stall,
    /// Nothing passes for longer than the silence that is endured, and then all of it does.
    LongStall,
    /// From here on every frame takes its time and comes in small pieces.
    Trickle,
    /// From here on the connections run ahead of each other.
    Reorder,
    /// A bit of this frame is turned.
    Corrupt,
    /// The process is killed.
    Kill(Side),
    /// The process stands still for longer than the silence that is endured, and goes on.
    Freeze(Side),
    /// A person interrupts `dunlin migrate`.
    Interrupt,
}

impl Deed {
    /// Every deed.
    pub const ALL: [Self; 15] = [
        Self::Reset,
        Self::Close,
        Self::HalfOpen(Side::Source),
        Self::HalfOpen(Side::Target),
        Self::BlackHole,
        Self::Stall,
        Self::LongStall,
        Self::Trickle,
        Self::Reorder,
        Self::Corrupt,
        Self::Kill(Side::Source),
        Self::Kill(Side::Target),
        Self::Freeze(Side::Source),
        Self::Freeze(Side::Target),
        Self::Interrupt,
    ];

    /// A migration that endures it must not even notice.
    pub const fn is_gentle(self) -> bool {
        matches!(self, Self::Stall | Self::Trickle | Self::Reorder)
    }

    /// The side that is no more.
    pub const fn kills(self) -> Option<Side> {
        match self {
            Self::Kill(side) => Some(side),
            _ => None,
        }
    }
}

/// Kills a process and waits until it is dead: what it has open is closed then.
pub(super) fn kill(pid: Pid) -> anyhow::Result<()> {
    kill_process(pid, Signal::KILL).context("cannot kill a process of the test")?;
    let deadline = Instant::now() + DEATH;
    // Asked of the kernel without taking the answer away from who started it: only a process all of whose threads have ended
    // is one, while `/proc` calls it a zombie when the first has.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while waitid(WaitId::Pid(pid), options).is_ok_and(|status| status.is_none()) {
        ensure!(
            Instant::now() < deadline,
            "process {} outlives its kill",
            pid.as_raw_nonzero()
        );
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A process that stands still until this value is dropped.
pub struct Frozen(Pid);

impl Frozen {
    /// Stops the process.
    ///
    /// # Errors
    /// If it cannot be stopped.
    pub fn new(pid: Pid) -> anyhow::Result<Self> {
        kill_process(pid, Signal::STOP).context("cannot stop a process of the test")?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that has ended meanwhile needs no more.
        let _ = kill_process(self.0, Signal::CONT);
    }
}
