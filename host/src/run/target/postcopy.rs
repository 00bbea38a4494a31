//! The target's fault server: from the guest's fault to the page installed.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dunlin_core::migrate::{FaultDecision, TargetEvent};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use dunlin_core::wire::FrameKind;
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::SharedTarget;
use super::link::Link;
use super::pb_reader::Asked;
use crate::channel::{Cancel, FrameError, Stream, Wait};
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

    pub(super) fn record(&self, took: Duration) {
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
    Poll(#[from] Errno),
}

/// Serves faults until told to stop. Nothing the guest waits for may be forgotten: what was asked for on a lost
/// channel is asked for again on the next.
pub(super) struct FaultServer<'e, 'w> {
    pub(super) shared: &'e SharedTarget<'w>,
    pub(super) uffd: &'e Userfaultfd,
    pub(super) channels: Receiver<Link>,
    pub(super) stop: &'e AtomicBool,
    pub(super) latencies: &'e Latencies,
    /// What was asked for, also by way of nothing while there is no channel.
    pub(super) asked: &'e Asked,
}

impl FaultServer<'_, '_> {
    /// Returns its channel, which must stay open until the source knows that nothing is missing: a channel that closes
    /// earlier is a lost link.
    pub(super) fn serve(self) -> Result<Option<Link>, FaultServerError> {
        let never = Cancel::new();
        ask_for_short_turns();
        let mut watch = Watch::new(self.uffd)?;
        let mut faults = [Fault::default(); 32];
        while !self.stop.load(Ordering::Acquire) {
            if let Ok(new) = self.channels.try_recv() {
                watch.open(new)?;
                let wanted: Vec<Gfn> = self.asked().keys().copied().collect();
                for gfn in wanted {
                    self.request(&mut watch, gfn, &never);
                }
            }
            let ready = watch.wait()?;
            if ready.faulted {
                let count = self.uffd.read_events(&mut faults)?;
                let read = Instant::now();
                for fault in &faults[..count] {
                    match self.shared.lock().on_fault(fault.gfn) {
                        FaultDecision::ZeroFill => {
                            self.uffd.zero(Run::new(fault.gfn, Pages(1)))?;
                            continue;
                        }
                        FaultDecision::Outside => continue,
                        FaultDecision::Request => {}
                    }
                    if self.asked().insert(fault.gfn, read).is_none() {
                        self.request(&mut watch, fault.gfn, &never);
                    }
                }
            }
            if ready.answered
                && let Err(error) = self.answers(&mut watch.link)
            {
                match error {
                    AnswerError::Link(error) => self.lost(&mut watch, &error),
                    AnswerError::Install(error) => return Err(error.into()),
                }
            }
        }
        Ok(watch.link)
    }

    fn request(&self, watch: &mut Watch, gfn: Gfn, never: &Cancel) {
        let Some(open) = &mut watch.link else { return };
        let (wait, page) = (Wait::within(SEND, never), Run::new(gfn, Pages(1)));
        let sent = open.sender.bare(FrameKind::PageRequest, page, 0, wait);
        let sent = sent.and_then(|()| open.sender.flush(wait));
        if let Err(error) = sent {
            self.lost(watch, &error);
        }
    }

    fn lost(&self, watch: &mut Watch, error: &FrameError) {
        watch.close();
        self.shared.say_if_distrusted(error);
        self.shared.note(error);
        self.shared.lock().on(self.shared.now(), TargetEvent::LinkLost);
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<Gfn, Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self, link: &mut Option<Link>) -> Result<(), AnswerError> {
        let Some(link) = link else { return Ok(()) };
        loop {
            let Some(header) = link.receiver.header_by(Stream::read_now)? else {
                return Ok(());
            };
            match header.kind {
                FrameKind::Heartbeat => {}
                // Only what was asked for comes here, page by page.
                FrameKind::Pages | FrameKind::Zero if header.count == 1 => {
                    let (gfn, run) = (header.first, Run::new(header.first, Pages(1)));
                    if header.kind == FrameKind::Zero {
                        self.uffd.zero(run)?;
                        self.shared.keep_hash(gfn, &[0; PAGE_SIZE as usize]);
                    } else {
                        let page = link.receiver.pages(&header)?;
                        self.uffd.copy(gfn, page)?;
                        self.shared.keep_hash(gfn, page);
                    }
                    if let Some(read) = self.asked().remove(&gfn) {
                        self.latencies.record(read.elapsed());
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

/// What the server waits for: faults, and answers on its present channel. The kernel keeps the list, since handing it over
/// with every wait costs each fault a third of a microsecond.
struct Watch {
    epoll: OwnedFd,
    link: Option<Link>,
}

#[derive(Clone, Copy, Default)]
struct Ready {
    faulted: bool,
    answered: bool,
}

const FAULTS: EventData = EventData::new_u64(0);
const ANSWERS: EventData = EventData::new_u64(1);

impl Watch {
    fn new(uffd: &Userfaultfd) -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, uffd, FAULTS, EventFlags::IN)?;
        Ok(Self { epoll, link: None })
    }

    fn open(&mut self, link: Link) -> Result<(), Errno> {
        self.close();
        epoll::add(&self.epoll, link.receiver.stream(), ANSWERS, EventFlags::IN)?;
        self.link = Some(link);
        Ok(())
    }

    fn close(&mut self) {
        if let Some(link) = self.link.take() {
            // It was added; and whatever became of the connection, it is of no more interest.
            let _ = epoll::delete(&self.epoll, link.receiver.stream());
            link.receiver.stream().shutdown();
        }
    }

    fn wait(&self) -> Result<Ready, Errno> {
        if self.link.as_ref().is_some_and(|link| link.receiver.has_buffered()) {
            return Ok(Ready {
                faulted: false,
                answered: true,
            });
        }
        let mut events = [MaybeUninit::uninit(); 2];
        match epoll::wait(&self.epoll, &mut events, Some(&LOOK)) {
            Ok((events, _)) => Ok(events.iter().fold(Ready::default(), |ready, event| Ready {
                faulted: ready.faulted || event.data.u64() == FAULTS.u64(),
                answered: ready.answered || event.data.u64() == ANSWERS.u64(),
            })),
            Err(Errno::INTR) => Ok(Ready::default()),
            Err(error) => Err(error),
        }
    }
}

/// Asks the scheduler to run this thread in short turns and therefore soon: an answer that arrives is installed before others
/// have finished their turn (a custom slice, Documentation/scheduler/sched-eevdf.rst, since Linux 6.12). Saves a fortieth of a
/// fault where the sender of the answer shares the processor.
fn ask_for_short_turns() {
    const SHORTEST_NS: u64 = 100_000;
    // SAFETY: the structure is plain numbers, for which zero means "as it is by default".
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_policy = libc::SCHED_OTHER as u32;
    attributes.sched_runtime = SHORTEST_NS;
    // SAFETY: the call reads `attributes`, of the size it names, and changes nothing but the scheduling of this thread. Older
    // kernels ignore the time; where the call is refused the thread stays as it is.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
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
