//! What eBPF programs see in the kernel, while the process that holds the guest arms and harvests its tracker for them.

use std::collections::VecDeque;
use std::time::Duration;

use dunlin_core::pageset::Run;
use dunlin_core::tracefile::{Item, Source, VCPU_UNKNOWN};
use dunlin_core::units::{Bytes, Gfn, Nanos, Pages};

use super::{Items, Kernel, RecordingError, RecordingSource};
use crate::control::{Message, RecordingAnswer, Service};
use crate::guest::kvm::Backend;
use crate::trace::ebpf::{Config, Hooks, Mode, Region, Tracer, TracerError};

/// How often the programs' buffer is emptied.
const PERIOD: Duration = Duration::from_millis(10);
/// Items of which it is not yet known in which window they lie. Beyond that they are taken for those of the window under way, in which
/// they are unless the process that holds the guest is that far behind.
const WAITING_MAX: usize = 1 << 18;

/// A source that needs programs in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Programs {
    /// What stands in the trace's head.
    pub source: Source,
    /// Where the programs look.
    pub hooks: Hooks,
    /// The tracker that the process has to serve meanwhile.
    pub armed: Source,
}

impl Programs {
    /// What `source` needs for a VM that is tracked by `own`; `None` if it needs no programs.
    pub const fn of(source: Source, own: Source) -> Option<Self> {
        let (hooks, armed) = match source {
            Source::RingPush => (Hooks::DirtyRing, Source::Ring),
            Source::SptePermission => (Hooks::Mmu, own),
            Source::MarkDirty => (Hooks::MarkDirty, own),
            Source::WriteProtectFault => (Hooks::Faults, Source::PagemapScan),
            _ => return None,
        };
        Some(Self { source, hooks, armed })
    }

    /// The best source for a VM that is tracked by `own`, with or without programs.
    ///
    /// Where a processor runs the guest, KVM's page tables tell of each first write (on Intel, the page-modification log keeps them from
    /// it); where it does not, or there is no KVM, page faults do.
    pub const fn best_for(own: Source, backend: Option<Backend>) -> Source {
        match (own, backend) {
            (Source::Ring, _) => Source::RingPush,
            (
                Source::Bitmap,
                Some(
                    Backend::Svm { .. }
                    | Backend::Vmx {
                        page_modification_log: false,
                        ..
                    },
                ),
            ) => Source::SptePermission,
            (Source::Bitmap, Some(Backend::Vmx { .. })) => Source::MarkDirty,
            (Source::Bitmap | Source::PagemapScan, _) => Source::WriteProtectFault,
            _ => own,
        }
    }

    /// What to ask of the process that holds the guest.
    pub const fn service(self) -> Service {
        Service::only_armed(self.armed)
    }

    /// Whether the kernel lets the programs in: attaches them to this process, without memory, and detaches them again. Takes some tenths
    /// of a second.
    ///
    /// # Errors
    /// [`TracerError`].
    pub fn check(self) -> Result<(), TracerError> {
        Tracer::attach(config(self.hooks, std::process::id(), Bytes::ZERO)).map(drop)
    }
}

fn config(hooks: Hooks, process: u32, buffer: Bytes) -> Config {
    Config {
        process,
        hooks: vec![hooks],
        regions: vec![],
        vcpus: vec![],
        mode: Mode::Stream { buffer },
        repeats: false,
        measure: true,
    }
}

/// Programs that are attached for a recording.
#[derive(Debug)]
pub struct Traced {
    programs: Programs,
    tracer: Tracer,
    /// Items of the stream that may belong to a window of which the process has not said the end.
    waiting: VecDeque<Item>,
    unreadable: u64,
}

impl Traced {
    /// What the programs' buffer takes unless something else is asked for: half a million events.
    pub const BUFFER: Bytes = Bytes(16 << 20);

    /// Attaches them to the VM that was answered so. Nothing is tracked yet, so that nothing is missed.
    ///
    /// # Errors
    /// [`TracerError`].
    pub fn attach(programs: Programs, answer: &RecordingAnswer, buffer: Bytes) -> Result<Self, TracerError> {
        let regions = answer.regions.iter().map(|region| Region {
            slot: u16::try_from(region.slot).unwrap_or(u16::MAX),
            address: region.host_address,
            run: Run::new(Gfn(region.first_gfn), Pages(region.pages)),
        });
        let tracer = Tracer::attach(Config {
            regions: regions.collect(),
            vcpus: answer.vcpu_threads.iter().copied().zip(0..).collect(),
            // Pages are protected by the process, which does not tell the programs of it.
            repeats: programs.hooks != Hooks::DirtyRing,
            ..config(programs.hooks, answer.pid, buffer)
        })?;
        Ok(Self {
            programs,
            tracer,
            waiting: VecDeque::new(),
            unreadable: 0,
        })
    }

    /// Takes what the buffer holds.
    fn drain(&mut self) -> Result<(), RecordingError> {
        let waiting = &mut self.waiting;
        self.tracer.drain(|item| waiting.push_back(item))?;
        Ok(())
    }

    /// Passes on what is not later than `until`, of CLOCK_MONOTONIC.
    fn pass(&mut self, until: u64, items: &mut Items<'_>) -> Result<(), RecordingError> {
        let attached = self.tracer.started();
        let time = |at: Nanos| at.saturating_add(attached).0;
        let is_due = |item: &mut Item| item.at().is_none_or(|at| time(at) <= until);
        while let Some(item) = self.waiting.pop_front_if(is_due) {
            // What was before the tracker was on is in no window.
            match item {
                Item::Write { at, vcpu, gfn } if time(at) >= items.started_ns() => {
                    items.write(time(at), Some(vcpu).filter(|vcpu| *vcpu != VCPU_UNKNOWN), gfn)?;
                }
                Item::WindowEnd { at, vcpu } if time(at) >= items.started_ns() => {
                    items.window_end(time(at), Some(vcpu).filter(|vcpu| *vcpu != VCPU_UNKNOWN))?;
                }
                Item::Lost { at, events } => items.lost(time(at), Some(events))?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl RecordingSource for Traced {
    fn source(&self) -> Source {
        self.programs.source
    }

    fn period(&self) -> Option<Duration> {
        Some(PERIOD)
    }

    fn poll(&mut self, items: &mut Items<'_>) -> Result<(), RecordingError> {
        self.drain()?;
        if let Some(item) = self.waiting.get(self.waiting.len().saturating_sub(WAITING_MAX / 2))
            && self.waiting.len() > WAITING_MAX
        {
            let until = item.at().unwrap_or_default().saturating_add(self.tracer.started());
            self.pass(until.0, items)?;
        }
        Ok(())
    }

    fn on(&mut self, message: &Message, items: &mut Items<'_>) -> Result<(), RecordingError> {
        let Message::Window { from_ns, at_ns, .. } = message else {
            return Ok(());
        };
        let is_ring = self.programs.hooks == Hooks::DirtyRing;
        // Pages are protected again one after the other. What is written meanwhile may be for the next window the only sign of its page.
        let end_ns = if is_ring { at_ns } else { from_ns };
        self.drain()?;
        self.pass(*end_ns, items)?;
        let unreadable = self.tracer.counters()?.unreadable();
        if unreadable > self.unreadable {
            items.lost(*end_ns, Some(unreadable - self.unreadable))?;
            self.unreadable = unreadable;
        }
        // The end of a ring's windows is among its events.
        if !is_ring {
            items.window_end(*end_ns, None)?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Option<Kernel> {
        let overhead = self.tracer.overhead().ok()?;
        let runs = overhead.programs.iter().map(|program| program.runs).sum();
        let kernel = overhead.kernel().map(|cpu| Kernel { cpu, runs });
        self.tracer.detach();
        kernel
    }
}
