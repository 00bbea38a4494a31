//! The target's fault server: from the guest's fault to the page installed.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use dunlin_core::migrate::{FaultDecision, TargetEvent};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use dunlin_core::wire::FrameKind;
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::SharedTarget;
use super::link::Link;
use crate::channel::{Cancel, FrameError, Wait};
use crate::memory::{Fault, Userfaultfd, UserfaultfdError};

/// The server looks at new channels and at its end at least this often.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};
/// A request is 40 bytes: if it cannot leave for this long the link is dead.
const SEND: Duration = Duration::from_secs(3);
/// Longest fault that is told apart, in nanoseconds: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// Latencies of demand faults, from fault read to page installed.
#[derive(Debug)]
pub(super) struct Latencies(Mutex<Histogram<u64>>);

impl Latencies {
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_max(LONGEST_NS, 3).expect("bounds and precision are valid constants");
        Self(Mutex::new(histogram))
    }

    fn record(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .saturating_record(took);
    }

    /// Median and 99th percentile in nanoseconds; zero without faults.
    pub(super) fn percentiles(&self) -> (u64, u64) {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (histogram.value_at_quantile(0.5), histogram.value_at_quantile(0.99))
    }
}

/// What stops the fault server for good: the guest can then never be completed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FaultServerError {
    #[error("faults of the guest can no longer be answered")]
    Userfaultfd(#[from] UserfaultfdError),
    #[error("waiting for faults failed")]
    Poll(#[from] rustix::io::Errno),
}

/// Serves faults until told to stop. Nothing the guest waits for may be forgotten: what was asked for on a lost
/// channel is asked for again on the next.
pub(super) struct FaultServer<'e, 'w> {
    pub(super) shared: &'e SharedTarget<'w>,
    pub(super) uffd: &'e Userfaultfd,
    pub(super) channels: Receiver<Link>,
    pub(super) stop: &'e AtomicBool,
    pub(super) latencies: &'e Latencies,
}

impl FaultServer<'_, '_> {
    /// Returns its channel, which must stay open until the source knows that nothing is missing: a channel that closes
    /// earlier is a lost link.
    pub(super) fn serve(self) -> Result<Option<Link>, FaultServerError> {
        let never = Cancel::new();
        let mut link: Option<Link> = None;
        let mut asked: HashMap<Gfn, Instant> = HashMap::new();
        let mut faults = [Fault::default(); 32];
        while !self.stop.load(Ordering::Acquire) {
            if let Ok(new) = self.channels.try_recv() {
                link = Some(new);
                let wanted: Vec<Gfn> = asked.keys().copied().collect();
                for gfn in wanted {
                    self.request(&mut link, gfn, &never);
                }
            }
            let (faulted, answered) = self.wait(link.as_ref())?;
            if faulted {
                let read = Instant::now();
                let count = self.uffd.read_events(&mut faults)?;
                for fault in &faults[..count] {
                    match self.shared.lock().on_fault(fault.gfn) {
                        FaultDecision::ZeroFill => {
                            self.uffd.zero(Run::new(fault.gfn, Pages(1)))?;
                            continue;
                        }
                        FaultDecision::Outside => continue,
                        FaultDecision::Request => {}
                    }
                    if asked.insert(fault.gfn, read).is_none() {
                        self.request(&mut link, fault.gfn, &never);
                    }
                }
            }
            if answered && let Err(error) = self.answers(&mut link, &mut asked) {
                match error {
                    AnswerError::Link(error) => self.lost(&mut link, &error),
                    AnswerError::Install(error) => return Err(error.into()),
                }
            }
        }
        Ok(link)
    }

    /// Whether a fault is waiting, and whether an answer is.
    fn wait(&self, link: Option<&Link>) -> Result<(bool, bool), FaultServerError> {
        if link.is_some_and(|link| link.receiver.has_buffered()) {
            return Ok((false, true));
        }
        let uffd = PollFd::from_borrowed_fd(self.uffd.as_fd(), PollFlags::IN);
        let (count, faulted, answered) = match link {
            Some(link) => {
                let mut fds = [
                    uffd,
                    PollFd::from_borrowed_fd(link.receiver.stream().as_fd(), PollFlags::IN),
                ];
                let count = poll(&mut fds, Some(&LOOK));
                (count, !fds[0].revents().is_empty(), !fds[1].revents().is_empty())
            }
            None => {
                let mut fds = [uffd];
                let count = poll(&mut fds, Some(&LOOK));
                (count, !fds[0].revents().is_empty(), false)
            }
        };
        match count {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok((false, false)),
            Ok(_) => Ok((faulted, answered)),
            Err(error) => Err(error.into()),
        }
    }

    fn request(&self, link: &mut Option<Link>, gfn: Gfn, never: &Cancel) {
        let Some(open) = link else { return };
        let (wait, page) = (Wait::within(SEND, never), Run::new(gfn, Pages(1)));
        let sent = open.sender.bare(FrameKind::PageRequest, page, 0, wait);
        let sent = sent.and_then(|()| open.sender.flush(wait));
        if let Err(error) = sent {
            self.lost(link, &error);
        }
    }

    fn lost(&self, link: &mut Option<Link>, error: &FrameError) {
        if let Some(link) = link.take() {
            link.receiver.stream().shutdown();
        }
        self.shared.note(error);
        self.shared.lock().on(self.shared.now(), TargetEvent::LinkLost);
    }

    fn answers(&self, link: &mut Option<Link>, asked: &mut HashMap<Gfn, Instant>) -> Result<(), AnswerError> {
        let Some(link) = link else { return Ok(()) };
        loop {
            let Some(header) = link.receiver.header(Duration::ZERO)? else {
                return Ok(());
            };
            match header.kind {
                FrameKind::Heartbeat => {}
                FrameKind::Pages => {
                    let pages = link.receiver.pages(&header)?;
                    let run = Run::new(header.first, Pages(u64::from(header.count)));
                    self.uffd.copy(header.first, pages)?;
                    for (index, page) in pages.chunks_exact(PAGE_SIZE as usize).enumerate() {
                        let gfn = Gfn(header.first.0 + index as u64);
                        if let Some(read) = asked.remove(&gfn) {
                            self.latencies.record(read.elapsed());
                        }
                        self.shared.keep_hash(gfn, page);
                    }
                    self.shared
                        .lock()
                        .on(self.shared.now(), TargetEvent::Installed { run, demanded: true });
                }
                _ => return Err(AnswerError::Link(FrameError::unexpected(link.receiver.stream().peer()))),
            }
            if !link.receiver.has_buffered() {
                return Ok(());
            }
        }
    }
}

enum AnswerError {
    Link(FrameError),
    Install(UserfaultfdError),
}

impl From<FrameError> for AnswerError {
    fn from(error: FrameError) -> Self {
        Self::Link(error)
    }
}

impl From<UserfaultfdError> for AnswerError {
    fn from(error: UserfaultfdError) -> Self {
        match error {
            // What the source sent does not belong to this VM.
            UserfaultfdError::Memory(error) => Self::Link(error.into()),
            error => Self::Install(error),
        }
    }
}
