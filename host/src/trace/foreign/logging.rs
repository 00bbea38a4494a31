//! QEMU's dirty log, on for the time of a recording.
//!
//! QEMU has no command that switches the log on as such. It measures its dirty rate with it (`calc-dirty-rate` with `mode:
//! dirty-bitmap`, QEMU 6.2): that switches the log on, protects all pages, and switches it off after a given time, whatever
//! became of whoever asked. So a recording asks again and again for a short measurement; when it ends, or is killed, the log
//! is off at most one window later.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

use dunlin_core::units::Nanos;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::{ForeignError, Qmp};
use crate::qemu::QmpError;

/// How often QEMU is asked whether it is done.
const PERIOD: Duration = Duration::from_millis(20);

/// What QEMU measured in one window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measured {
    /// When it began (all pages were protected soon after), of `CLOCK_MONOTONIC`.
    pub at: Nanos,
    /// Its length.
    pub window: Nanos,
    /// What QEMU says of it, in whole MiB/s as it does.
    pub mib_per_s: u64,
}

/// The dirty log of a QEMU, on until this is dropped. Dropping waits for the end of the window.
#[derive(Debug)]
pub struct DirtyLogging {
    stop: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// Beginnings that nobody has taken yet.
    begun: Vec<Nanos>,
    measured: Vec<Measured>,
    failure: Option<ForeignError>,
}

impl DirtyLogging {
    /// Switches it on, in windows of 1 to 60 s.
    ///
    /// # Errors
    /// [`ForeignError::Qmp`], for example by a QEMU older than 6.2 or one with a dirty ring; [`ForeignError::NoKvm`],
    /// [`ForeignError::Busy`], [`ForeignError::Thread`].
    pub fn start(mut qmp: Qmp, window_s: u32) -> Result<Self, ForeignError> {
        // Without KVM the measurement ends QEMU 7.2 together with its guest.
        if !qmp.uses_kvm()? {
            return Err(ForeignError::NoKvm);
        }
        let first = begin(&mut qmp, window_s)?;
        let (stop, state) = (Arc::<AtomicBool>::default(), Arc::<Mutex<State>>::default());
        lock(&state).begun.push(first);
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&state));
        let body = move || {
            if let Err(error) = go_on(&mut qmp, window_s, first, &stopped, &shared) {
                lock(&shared).failure = Some(error);
            }
        };
        let thread = Builder::new().name("dirty logging".into()).spawn(body);
        Ok(Self {
            stop,
            state,
            thread: Some(thread.map_err(ForeignError::Thread)?),
        })
    }

    /// When pages were protected anew, of `CLOCK_MONOTONIC`, since this was asked last.
    ///
    /// # Errors
    /// Why the log is off by now, once: QEMU has ended, or refused to go on.
    pub fn begun(&self) -> Result<Vec<Nanos>, ForeignError> {
        let mut state = lock(&self.state);
        match state.failure.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut state.begun)),
        }
    }

    /// What QEMU has measured so far, one for each window that has ended.
    pub fn measured(&self) -> Vec<Measured> {
        lock(&self.state).measured.clone()
    }
}

impl Drop for DirtyLogging {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One measurement after the other, until told to stop.
fn go_on(
    qmp: &mut Qmp,
    window_s: u32,
    first: Nanos,
    stop: &AtomicBool,
    state: &Mutex<State>,
) -> Result<(), ForeignError> {
    let mut at = first;
    loop {
        let mib_per_s = loop {
            if let Some(rate) = result(qmp)? {
                break rate;
            }
            sleep(PERIOD);
        };
        lock(state).measured.push(Measured {
            at,
            window: Nanos::from_secs(window_s.into()),
            mib_per_s,
        });
        if stop.load(Ordering::Acquire) {
            return Ok(());
        }
        at = begin(qmp, window_s)?;
        lock(state).begun.push(at);
    }
}

/// Begins a measurement and says when.
fn begin(qmp: &mut Qmp, window_s: u32) -> Result<Nanos, ForeignError> {
    let arguments = json!({ "calc-time": window_s, "mode": "dirty-bitmap" });
    let time = clock_gettime(ClockId::Monotonic);
    let now = Nanos::from_secs(time.tv_sec.unsigned_abs()).saturating_add(Nanos(time.tv_nsec.unsigned_abs()));
    match qmp.execute("calc-dirty-rate", &arguments) {
        Ok(_) => Ok(now),
        Err(ForeignError::Qmp(QmpError::Refused { reason, .. })) if reason.contains("already") => {
            Err(ForeignError::Busy)
        }
        Err(error) => Err(error),
    }
}

/// The rate, if the measurement has ended.
fn result(qmp: &mut Qmp) -> Result<Option<u64>, ForeignError> {
    let answer = qmp.execute("query-dirty-rate", &json!({}))?;
    let is_done = answer.get("status").and_then(Value::as_str) == Some("measured");
    let rate = answer.get("dirty-rate").and_then(Value::as_u64);
    Ok(rate.filter(|_| is_done))
}
