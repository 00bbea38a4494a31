//! How long to wait, and what ends the wait early.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The longest time until a blocked operation notices a raised [`Cancel`].
pub const CANCEL_LATENCY: Duration = Duration::from_millis(50);

/// How long a thread sleeps between two looks at the flag: well under [`CANCEL_LATENCY`], because a busy host wakes it
/// late.
const SLICE: Duration = Duration::from_millis(20);

/// A flag, shared between threads, that ends blocking operations.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag; every operation that waits with it returns [`Cancelled`](super::ChannelError::Cancelled).
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Takes the flag down again, for the next operation; returns whether it was raised.
    pub fn lower(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }

    /// Whether the flag is raised.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl From<Arc<AtomicBool>> for Cancel {
    /// Wraps a flag that somebody else raises, a signal handler for example.
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }
}

/// The patience of one operation. The deadline covers the operation as a whole; to bound the silence between two pieces
/// of a long transfer instead, transfer it in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Wait<'a> {
    started: Instant,
    deadline: Option<Instant>,
    cancel: &'a Cancel,
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Cancelled,
    TimedOut,
}

impl<'a> Wait<'a> {
    /// Until `cancel` is raised.
    pub fn forever(cancel: &'a Cancel) -> Self {
        Self {
            started: Instant::now(),
            deadline: None,
            cancel,
        }
    }

    /// For `patience` from now on, or until `cancel` is raised. A patience too long for the clock means for ever.
    pub fn within(patience: Duration, cancel: &'a Cancel) -> Self {
        let started = Instant::now();
        Self {
            started,
            deadline: started.checked_add(patience),
            cancel,
        }
    }

    /// Until `deadline`, or until `cancel` is raised.
    pub fn until(deadline: Instant, cancel: &'a Cancel) -> Self {
        Self {
            started: Instant::now(),
            deadline: Some(deadline),
            cancel,
        }
    }

    /// The flag that ends this wait.
    pub const fn cancel(&self) -> &'a Cancel {
        self.cancel
    }

    /// The time since this wait began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The time left; `None` without a deadline, zero when it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The whole time this wait was ready to take, in milliseconds' resolution; without a deadline, what it took so
    /// far.
    pub(super) fn patience(&self) -> Duration {
        let whole = self.deadline.map_or_else(
            || self.elapsed(),
            |deadline| deadline.saturating_duration_since(self.started),
        );
        Duration::from_millis(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX))
    }

    /// Sleeps for `duration`, or less when the wait ends before. Returns whether the whole duration passed.
    pub fn sleep(&self, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            match self.slice() {
                Ok(slice) => std::thread::sleep(slice.min(left)),
                Err(_) => return false,
            }
        }
    }

    /// How long to sleep before looking again.
    pub(super) fn slice(&self) -> Result<Duration, Ended> {
        if self.cancel.is_raised() {
            return Err(Ended::Cancelled);
        }
        match self.remaining() {
            Some(Duration::ZERO) => Err(Ended::TimedOut),
            Some(left) => Ok(left.min(SLICE)),
            None => Ok(SLICE),
        }
    }

    /// Waits for one of `events` on `fd`. Errors and hang-ups count as readiness: the next system call on `fd` names
    /// them.
    pub(super) fn poll(&self, fd: BorrowedFd<'_>, events: PollFlags) -> Result<Result<(), Ended>, Errno> {
        loop {
            // The descriptor is looked at once even when the deadline has passed: a zero patience is a test for
            // readiness.
            let slice = match self.slice() {
                Ok(slice) => slice,
                Err(Ended::TimedOut) => Duration::ZERO,
                Err(ended) => return Ok(Err(ended)),
            };
            let timeout = Timespec::try_from(slice).expect("a slice is shorter than a second");
            match poll(&mut [PollFd::from_borrowed_fd(fd, events)], Some(&timeout)) {
                Ok(0) if slice.is_zero() => return Ok(Err(Ended::TimedOut)),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(Ok(())),
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_flag_ends_a_sleep_at_once() {
        let cancel = Cancel::new();
        cancel.raise();
        assert!(!Wait::forever(&cancel).sleep(Duration::from_secs(3600)));
        assert!(cancel.lower());
        assert!(!cancel.is_raised());
        assert!(Wait::forever(&cancel).sleep(Duration::from_millis(1)));
    }

    #[test]
    fn a_passed_deadline_ends_a_sleep_at_once() {
        let cancel = Cancel::new();
        assert!(!Wait::within(Duration::ZERO, &cancel).sleep(Duration::from_secs(3600)));
        assert_eq!(Wait::within(Duration::MAX, &cancel).remaining(), None);
    }

    #[test]
    fn slices_are_short_enough_for_the_promise() {
        assert!(SLICE * 2 < CANCEL_LATENCY);
    }
}
