//! Where the thread of a vCPU waits, and how others tell it to run, stop or end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::GuestError;
use super::progress::{Progress, Reports, RunState};

/// How long a vCPU may take to stop before the host is considered too busy.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of a guest waits for its vCPUs; one that waits for a missing page never comes.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// What a vCPU's thread is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Stop,
    Run,
    Quit,
}

/// What a vCPU's thread is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum VcpuState {
    /// Waiting, able to run.
    Stopped,
    /// Running, or on its way into or out of it.
    Running,
    /// Waiting for the end: the vCPU has halted itself with this code.
    Halted(u32),
    /// Waiting for the end: the vCPU cannot run any more.
    Failed(String),
    /// The thread has ended.
    Gone,
}

/// The gate of one vCPU.
#[derive(Debug)]
pub(super) struct Gate {
    inner: Mutex<(Wanted, VcpuState)>,
    changed: Condvar,
    /// Copy of "not wanted to run", to be looked at without the lock.
    stop: AtomicBool,
    pub(super) reports: Reports,
}

impl Gate {
    /// A gate whose vCPU is stopped.
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::new((Wanted::Stop, VcpuState::Stopped)),
            changed: Condvar::new(),
            stop: AtomicBool::new(true),
            reports: Reports::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Wanted, VcpuState)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The vCPU's thread.

    /// Stops (unless halted or failed) and waits until the vCPU is to run; `false` when the thread is to end.
    pub(super) fn wait_to_run(&self) -> bool {
        let mut inner = self.lock();
        if inner.1 == VcpuState::Running {
            inner.1 = VcpuState::Stopped;
            self.changed.notify_all();
        }
        loop {
            match *inner {
                (Wanted::Quit, _) => {
                    inner.1 = VcpuState::Gone;
                    self.changed.notify_all();
                    return false;
                }
                (Wanted::Run, VcpuState::Stopped) => {
                    inner.1 = VcpuState::Running;
                    self.reports.resumed();
                    return true;
                }
                _ => inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Whether the vCPU is to leave its work.
    pub(super) fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Sleeps until `due`; `false` at once when the vCPU is to leave its work.
    pub(super) fn sleep_until(&self, due: Instant) -> bool {
        if self.stop_wanted() {
            return false;
        }
        if due <= Instant::now() {
            return true;
        }
        let mut inner = self.lock();
        loop {
            if inner.0 != Wanted::Run {
                return false;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The vCPU will not run again: it has halted or failed.
    pub(super) fn finish(&self, state: VcpuState) {
        self.lock().1 = state;
        self.changed.notify_all();
    }

    // Everybody else.

    fn want(&self, wanted: Wanted) {
        let mut inner = self.lock();
        inner.0 = wanted;
        self.stop.store(wanted != Wanted::Run, Ordering::SeqCst);
        // Who is woken finds the lock free.
        drop(inner);
        self.changed.notify_all();
    }

    /// Waits until the state is as `wanted`, at most until `deadline`; the state then.
    fn wait_for(&self, deadline: Instant, wanted: impl Fn(&VcpuState) -> bool) -> VcpuState {
        let mut inner = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if wanted(&inner.1) || left.is_zero() {
                return inner.1.clone();
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The stopped vCPU takes over from one elsewhere that had done `steps`, and perhaps halted.
    pub(super) fn take_over(&self, steps: u64, halted: Option<u32>) {
        self.reports.take_over(steps);
        self.lock().1 = halted.map_or(VcpuState::Stopped, VcpuState::Halted);
        self.changed.notify_all();
    }

    pub(super) fn state(&self) -> VcpuState {
        self.lock().1.clone()
    }
}

/// The gates of all vCPUs of a guest.
pub(super) struct Gates<'a>(Vec<&'a Gate>);

impl<'a> FromIterator<&'a Gate> for Gates<'a> {
    fn from_iter<I: IntoIterator<Item = &'a Gate>>(gates: I) -> Self {
        Self(gates.into_iter().collect())
    }
}

impl<'a> Gates<'a> {
    fn iter(&self) -> impl Iterator<Item = (u32, &'a Gate)> + '_ {
        (0..).zip(self.0.iter().copied())
    }

    /// Stops all vCPUs; `kick` makes one look at its gate.
    pub(super) fn pause(&self, kick: impl Fn(usize)) -> Result<(), GuestError> {
        let running = |state: &VcpuState| *state == VcpuState::Running;
        self.iter().for_each(|(_, gate)| gate.want(Wanted::Stop));
        for (vcpu, gate) in self.iter() {
            if running(&gate.state()) {
                kick(vcpu as usize);
            }
        }
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        for (vcpu, gate) in self.iter() {
            match gate.wait_for(deadline, |state| !running(state)) {
                VcpuState::Running => {
                    self.iter().for_each(|(_, gate)| gate.want(Wanted::Run));
                    return Err(GuestError::PauseTimedOut {
                        vcpu,
                        timeout: PAUSE_TIMEOUT,
                    });
                }
                VcpuState::Failed(reason) => return Err(GuestError::VcpuFailed { vcpu, reason }),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn hold(&self) {
        self.iter().for_each(|(_, gate)| gate.want(Wanted::Stop));
    }

    pub(super) fn resume(&self) -> Result<(), GuestError> {
        self.failure()?;
        self.iter().for_each(|(_, gate)| gate.want(Wanted::Run));
        Ok(())
    }

    /// Whether no vCPU runs, so that state may be read and written.
    pub(super) fn check_paused(&self) -> Result<(), GuestError> {
        self.failure()?;
        if self.iter().any(|(_, gate)| gate.state() == VcpuState::Running) {
            return Err(GuestError::NotPaused);
        }
        Ok(())
    }

    fn failure(&self) -> Result<(), GuestError> {
        self.iter().try_for_each(|(vcpu, gate)| match gate.state() {
            VcpuState::Failed(reason) => Err(GuestError::VcpuFailed { vcpu, reason }),
            _ => Ok(()),
        })
    }

    pub(super) fn mark(&self) {
        self.iter().for_each(|(_, gate)| gate.reports.mark());
    }

    pub(super) fn progress(&self) -> Progress {
        let mut progress = Progress {
            state: RunState::Halted,
            vcpus: Vec::new(),
            longest_gap: Duration::ZERO,
            failure: None,
        };
        for (vcpu, gate) in self.iter() {
            let mut halted = None;
            let state = match gate.state() {
                VcpuState::Halted(code) => {
                    halted = Some(code);
                    RunState::Halted
                }
                VcpuState::Failed(reason) => {
                    progress.failure.get_or_insert(format!("vCPU {vcpu}: {reason}"));
                    RunState::Failed
                }
                VcpuState::Running => RunState::Running,
                VcpuState::Stopped if !gate.stop_wanted() => RunState::Running,
                VcpuState::Stopped | VcpuState::Gone => RunState::Paused,
            };
            progress.state = worse(progress.state, state);
            progress.vcpus.push(gate.reports.snapshot(halted));
            progress.longest_gap = progress.longest_gap.max(gate.reports.longest_gap());
        }
        progress
    }

    pub(super) fn wait_halted(&self, timeout: Duration) -> Result<bool, GuestError> {
        let deadline = Instant::now() + timeout;
        for (vcpu, gate) in self.iter() {
            let ended = |state: &VcpuState| matches!(state, VcpuState::Halted(_) | VcpuState::Failed(_));
            match gate.wait_for(deadline, ended) {
                VcpuState::Halted(_) => {}
                VcpuState::Failed(reason) => return Err(GuestError::VcpuFailed { vcpu, reason }),
                // Another one may have failed, which says more than that this one is late.
                _ => return self.failure().map(|()| false),
            }
        }
        Ok(true)
    }

    /// Ends all threads; whether they have ended.
    pub(super) fn quit(&self, kick: impl Fn(usize)) -> bool {
        self.iter().for_each(|(_, gate)| gate.want(Wanted::Quit));
        (0..self.0.len()).for_each(kick);
        let deadline = Instant::now() + QUIT_TIMEOUT;
        self.iter()
            .all(|(_, gate)| gate.wait_for(deadline, |state| *state == VcpuState::Gone) == VcpuState::Gone)
    }
}

/// What the whole is doing when its parts do this and that.
fn worse(one: RunState, other: RunState) -> RunState {
    let rank = |state| match state {
        RunState::Failed => 3,
        RunState::Running => 2,
        RunState::Paused => 1,
        RunState::Halted => 0,
    };
    if rank(one) >= rank(other) { one } else { other }
}
