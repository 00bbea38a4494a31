//! Recording a guest: what the process that holds it says, and what sources of our own see meanwhile, becomes a trace.
//!
//! [`record`] drives a [`RecordingSession`] of the control socket to its end. What comes into the trace is the affair of one
//! [`RecordingSource`]: [`Served`] passes on what the process itself harvested; [`Traced`] looks into the kernel, has the process arm and
//! harvest for it, and puts its events into windows by the times of the looks that it is told of.

mod items;
mod served;
mod traced;

pub use items::Items;
pub use served::Served;
pub use traced::{Programs, Traced};

use std::time::{Duration, Instant};

use dunlin_core::message::Region;
use dunlin_core::tracefile::{Head, Item, Source};
use dunlin_core::units::{Gfn, Nanos, Pages};

use super::TraceError;
use super::ebpf::TracerError;
use super::foreign::ForeignError;
use crate::channel::{Cancel, ChannelError, Wait};
use crate::control::{ControlError, EndReason, Message, RecordingAnswer, RecordingSession, Service};
use crate::track::process_cpu;

/// How long the process may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a trace goes to.
pub trait Sink {
    /// It begins.
    ///
    /// # Errors
    /// [`TraceError`].
    fn begin(&mut self, head: &Head) -> Result<(), TraceError>;

    /// It goes on.
    ///
    /// # Errors
    /// [`TraceError`].
    fn push(&mut self, item: &Item) -> Result<(), TraceError>;
}

/// What sees writes.
pub trait RecordingSource {
    /// What stands in the trace's head.
    fn source(&self) -> Source;

    /// Looking begins, right before the process begins to track.
    ///
    /// # Errors
    /// [`RecordingError`].
    fn start(&mut self, _answer: &RecordingAnswer) -> Result<(), RecordingError> {
        Ok(())
    }

    /// The process says something, other than [`Message::Started`] and [`Message::End`]: adds what is known by now, at each
    /// [`Message::Window`] up to its end, and an [`Item::WindowEnd`] then.
    ///
    /// # Errors
    /// [`RecordingError`].
    fn on(&mut self, message: &Message, items: &mut Items<'_>) -> Result<(), RecordingError>;

    /// How often it has to be [polled](Self::poll) while the process says nothing; `None` for never.
    fn period(&self) -> Option<Duration> {
        None
    }

    /// It is time to look after what has been seen meanwhile.
    ///
    /// # Errors
    /// [`RecordingError`].
    fn poll(&mut self, _items: &mut Items<'_>) -> Result<(), RecordingError> {
        Ok(())
    }

    /// Looking ends; what it took in the kernel, if it was measured.
    fn stop(&mut self) -> Option<Kernel> {
        None
    }
}

/// What programs in the kernel took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// CPU time, with what the measuring itself takes.
    pub cpu: Nanos,
    /// How often they ran.
    pub runs: u64,
}

/// Why a recording cannot be made, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The process that holds the guest.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// What the process says does not fit what it said before.
    #[error("the process that holds the guest contradicts itself ({0}): use the same version for both")]
    Contradiction(&'static str),
    /// Another hypervisor.
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    /// The programs in the kernel.
    #[error(transparent)]
    Tracer(#[from] TracerError),
}

/// When to end.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// After this time; `None` for whenever the flag is raised.
    pub duration: Option<Duration>,
    /// Raised once: ends the recording in order. Raised again: leaves it at once.
    pub interrupt: &'a Cancel,
}

/// How a recording goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Since it began.
    pub duration: Nanos,
    /// Windows.
    pub windows: u64,
    /// Single writes.
    pub writes: u64,
    /// Pages that were written in some window, each counted once for every such window.
    pub dirty_pages: u64,
    /// Writes that are known to be missing; the largest number if it is not known how many.
    pub lost: u64,
    /// Harvests of a dirty ring that may have missed something.
    pub overruns: u64,
}

/// A recording that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// What saw the writes.
    pub source: Source,
    /// What it brought.
    pub tally: Tally,
    /// CPU time it took: in the process that holds the guest, here, and in programs in the kernel. What the kernel itself does for each
    /// write is not in it.
    pub cpu: Nanos,
    /// What of it programs in the kernel took; `None` if there are none, or nobody measured them.
    pub kernel: Option<Kernel>,
    /// Why it is over.
    pub reason: EndReason,
}

/// Records until a limit, or until the process says that it is over.
///
/// # Errors
/// [`RecordingError`]. Whatever was pushed until then can be read; the process that holds the guest switches everything off by itself.
pub fn record(
    session: &mut RecordingSession,
    source: &mut dyn RecordingSource,
    sink: &mut dyn Sink,
    limits: Limits<'_>,
    news: &mut dyn FnMut(&Tally),
) -> Result<Recorded, RecordingError> {
    let cpu = process_cpu();
    source.start(session.answer())?;
    let recorded = follow(session, source, sink, limits, news);
    let kernel = source.stop();
    let (mut items, at, remote_cpu, reason) = recorded?;
    let cpu = process_cpu().saturating_sub(cpu).saturating_add(remote_cpu);
    let cpu = cpu.saturating_add(kernel.map_or(Nanos::ZERO, |kernel| kernel.cpu));
    items.end(at, cpu)?;
    Ok(Recorded {
        source: source.source(),
        tally: items.tally(),
        cpu,
        kernel,
        reason,
    })
}

type Followed<'s> = (Items<'s>, u64, Nanos, EndReason);

fn follow<'s>(
    session: &mut RecordingSession,
    source: &mut dyn RecordingSource,
    sink: &'s mut dyn Sink,
    limits: Limits<'_>,
    news: &mut dyn FnMut(&Tally),
) -> Result<Followed<'s>, RecordingError> {
    let wait = Wait::within(PATIENCE, limits.interrupt);
    session.go(wait)?;
    let (started_ns, started_unix_ns) = match session.next(wait)? {
        Message::Started { at_ns, unix_ns } => (at_ns, unix_ns),
        Message::End { reason, .. } => return Err(ControlError::failed(reason.to_string()).into()),
        _ => return Err(RecordingError::Contradiction("it tells of writes before it has begun")),
    };
    sink.begin(&head(session.answer(), source.source(), started_unix_ns))?;
    let mut items = Items::new(sink, started_ns);
    let deadline = limits
        .duration
        .and_then(|duration| Instant::now().checked_add(duration));
    let mut ending = Ending {
        deadline,
        stopped: false,
    };
    let mut overruns = None;
    loop {
        match ending.next(session, limits.interrupt, source, &mut items)? {
            Message::Started { .. } => return Err(RecordingError::Contradiction("it begins twice")),
            Message::End { at_ns, cpu_ns, reason } => return Ok((items, at_ns, Nanos(cpu_ns), reason)),
            message => {
                source.on(&message, &mut items)?;
                if let Message::Window {
                    at_ns,
                    steps,
                    overruns: now,
                    ..
                } = &message
                {
                    for (steps, vcpu) in steps.iter().zip(0..) {
                        items.steps(*at_ns, vcpu, *steps)?;
                    }
                    items.count_window(now - overruns.unwrap_or(*now).min(*now));
                    overruns = Some(*now);
                    news(&items.tally());
                }
            }
        }
    }
}

/// When the recording is to end.
struct Ending {
    deadline: Option<Instant>,
    /// The process has been told.
    stopped: bool,
}

impl Ending {
    /// The next message. Tells the process to stop when it is time for that, and polls the source until then.
    fn next(
        &mut self,
        session: &mut RecordingSession,
        interrupt: &Cancel,
        source: &mut dyn RecordingSource,
        items: &mut Items<'_>,
    ) -> Result<Message, RecordingError> {
        loop {
            let poll = source.period().map(|period| Instant::now() + period);
            let polls = poll.filter(|poll| self.deadline.is_none_or(|deadline| *poll < deadline));
            let wait = match polls.or(self.deadline) {
                Some(until) => Wait::until(until, interrupt),
                None => Wait::forever(interrupt),
            };
            match session.next(wait) {
                Err(ControlError::Channel(ChannelError::TimedOut { .. })) if polls.is_some() => source.poll(items)?,
                Err(ControlError::Channel(ChannelError::TimedOut { .. } | ChannelError::Cancelled))
                    if !self.stopped =>
                {
                    self.stopped = true;
                    // The second signal is another one.
                    interrupt.lower();
                    let wait = Wait::within(PATIENCE, interrupt);
                    session.stop(wait)?;
                    self.deadline = Some(Instant::now() + PATIENCE);
                }
                message => return Ok(message?),
            }
        }
    }
}

/// The head of a trace of this VM.
fn head(answer: &RecordingAnswer, source: Source, started_unix_ns: u64) -> Head {
    let mut guest = heapless::String::new();
    for letter in answer.name.chars() {
        if guest.push(letter).is_err() {
            break;
        }
    }
    let regions = answer.regions.iter().map(|region| Region {
        first: Gfn(region.first_gfn),
        pages: Pages(region.pages),
    });
    Head {
        source,
        // More than fit are no guest's; the trace then refuses their pages.
        regions: regions.take(dunlin_core::message::REGIONS_MAX).collect(),
        used: Pages(answer.used_pages),
        vcpus: u32::try_from(answer.vcpu_threads.len()).unwrap_or(u32::MAX),
        window: Nanos(answer.window_us.saturating_mul(1000)),
        started_unix_ns,
        guest,
    }
}

/// The tracker to have served for a recording without a source of our own: the one that was asked for, or the VM's own.
pub fn served(asked: Option<Source>) -> Vec<Service> {
    asked.map(Service::with_pages).into_iter().collect()
}

#[cfg(test)]
mod tests;
