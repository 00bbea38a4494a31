//! Recording a guest of another hypervisor, from outside of it.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use dunlin_core::message::{REGIONS_MAX, Region};
use dunlin_core::pageset::Run;
use dunlin_core::tracefile::{Head, Item, Source, VCPU_UNKNOWN};
use dunlin_core::units::{Bytes, Gfn, Nanos, PAGE_SIZE, Pages};

use super::{DirtyLogging, ForeignError, Qmp, Vmm};
use crate::control::EndReason;
use crate::guest::kvm::Backend;
use crate::trace::ebpf::{Config, Hooks, Mode, Region as Traced, Tracer};
use crate::trace::recording::{Items, Kernel, Limits, Programs, Recorded, RecordingError, Sink, Tally};
use crate::track::process_cpu;

/// How often the programs' buffer is emptied.
const PERIOD: Duration = Duration::from_millis(10);
/// How often it is said how it goes, and looked whether the guest is still there.
const NEWS: Duration = Duration::from_millis(100);

/// Another hypervisor's guest, about to be recorded.
#[derive(Debug)]
pub struct Outside {
    process: u32,
    name: String,
    /// Ascending.
    memory: Vec<Run>,
    /// Which thread is which vCPU.
    vcpus: Vec<(u32, u32)>,
    count: usize,
    /// What switches its dirty log on.
    qmp: Option<Qmp>,
}

impl Outside {
    /// The guest of the QEMU that serves this QMP socket. Its dirty log will be on for the recording.
    ///
    /// # Errors
    /// [`ForeignError`].
    pub fn by_socket(path: &Path) -> Result<Self, ForeignError> {
        let mut qmp = Qmp::connect(path)?;
        let vcpus = qmp.vcpus()?;
        Ok(Self {
            process: qmp.process(),
            name: Vmm::find(qmp.process())?.name,
            memory: qmp.memory()?,
            count: vcpus.len(),
            vcpus,
            qmp: Some(qmp),
        })
    }

    /// The guest of a process. Nobody switches its dirty log on: unless that is on, only the first write of each page since the guest
    /// began is seen. Where its RAM lies is not known from outside: it is taken to be as large as the largest mapping, with whatever hole a
    /// PC may have below 4 GiB.
    ///
    /// # Errors
    /// [`ForeignError`].
    pub fn by_process(process: u32) -> Result<Self, ForeignError> {
        let vmm = Vmm::find(process)?;
        let bytes = largest_mapping(process).map_err(|source| ForeignError::Denied { process, source })?;
        Ok(Self {
            process,
            name: vmm.name,
            memory: guessed_memory(bytes),
            count: vmm.vcpus,
            vcpus: vmm.threads,
            qmp: None,
        })
    }

    /// The hypervisor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What sees the guest's writes: what was asked for, or the best that this host has.
    ///
    /// # Errors
    /// [`ForeignError::Blind`] where there is nothing.
    pub fn programs(asked: Option<Source>) -> Result<Programs, ForeignError> {
        let source = asked.unwrap_or_else(|| Programs::best_for(Source::Bitmap, Backend::find()));
        match Programs::of(source, Source::Bitmap) {
            Some(programs) if matches!(programs.hooks, Hooks::Mmu | Hooks::MarkDirty) => Ok(programs),
            _ => Err(ForeignError::Blind(source.name())),
        }
    }

    /// Records until a limit, or until the guest's process ends. `window` is the time between two protections of its pages, in whole
    /// seconds from 1 to 60; QEMU knows no other.
    ///
    /// # Errors
    /// [`RecordingError`]. QEMU's dirty log is off at the end of the window.
    pub fn record(
        self,
        programs: Programs,
        buffer: Bytes,
        window: u32,
        sink: &mut dyn Sink,
        limits: Limits<'_>,
        news: &mut dyn FnMut(&Tally),
    ) -> Result<Recorded, RecordingError> {
        let cpu = process_cpu();
        let mut tracer = Tracer::attach(self.config(programs.hooks, buffer))?;
        let head = self.head(programs.source, window);
        let process = self.process;
        let logging = self.qmp.map(|qmp| DirtyLogging::start(qmp, window)).transpose()?;
        sink.begin(&head)?;
        let mut items = Items::new(sink, tracer.started().0);
        let reason = follow(&mut tracer, logging.as_ref(), process, &mut items, limits, news)?;
        // Waits for the end of the window.
        drop(logging);
        let overhead = tracer.overhead()?;
        let runs = overhead.programs.iter().map(|program| program.runs).sum();
        let kernel = overhead.kernel().map(|cpu| Kernel { cpu, runs });
        let cpu = process_cpu()
            .saturating_sub(cpu)
            .saturating_add(kernel.map_or(Nanos::ZERO, |kernel| kernel.cpu));
        items.end(tracer.now().saturating_add(tracer.started()).0, cpu)?;
        Ok(Recorded {
            source: programs.source,
            tally: items.tally(),
            cpu,
            kernel,
            reason,
        })
    }

    fn config(&self, hooks: Hooks, buffer: Bytes) -> Config {
        let region = |run: &Run| Traced {
            // Found by guest frames.
            slot: 0,
            address: 0,
            run: *run,
        };
        Config {
            process: self.process,
            hooks: vec![hooks],
            regions: self.memory.iter().map(region).collect(),
            vcpus: self.vcpus.clone(),
            mode: Mode::Stream { buffer },
            repeats: true,
            measure: true,
        }
    }

    fn head(&self, source: Source, window: u32) -> Head {
        let mut guest = heapless::String::new();
        for letter in self.name.chars() {
            if guest.push(letter).is_err() {
                break;
            }
        }
        let regions = self.memory.iter().map(|run| Region {
            first: run.first,
            pages: run.count,
        });
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Head {
            source,
            regions: regions.take(REGIONS_MAX).collect(),
            used: Pages(self.memory.iter().map(|run| run.count.0).sum()),
            vcpus: u32::try_from(self.count).unwrap_or(u32::MAX),
            window: match self.qmp {
                Some(_) => Nanos::from_secs(window.into()),
                None => Nanos::ZERO,
            },
            started_unix_ns: since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
            guest,
        }
    }
}

fn follow(
    tracer: &mut Tracer,
    logging: Option<&DirtyLogging>,
    process: u32,
    items: &mut Items<'_>,
    limits: Limits<'_>,
    news: &mut dyn FnMut(&Tally),
) -> Result<EndReason, RecordingError> {
    let attached = tracer.started();
    let deadline = limits
        .duration
        .and_then(|duration| Instant::now().checked_add(duration));
    let mut next_news = Instant::now() + NEWS;
    loop {
        let stopped = limits.interrupt.is_raised() || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let mut reason = stopped.then_some(EndReason::Stopped);
        for at in logging.map_or(Ok(vec![]), DirtyLogging::begun)? {
            tracer.window_ended(at);
        }
        let mut seen = Vec::new();
        tracer.drain(|item| seen.push(item))?;
        for item in seen {
            let known = |vcpu: u32| Some(vcpu).filter(|vcpu| *vcpu != VCPU_UNKNOWN);
            let time = |at: Nanos| at.saturating_add(attached).0;
            match item {
                Item::Write { at, vcpu, gfn } => items.write(time(at), known(vcpu), gfn)?,
                Item::WindowEnd { at, vcpu } => {
                    items.window_end(time(at), known(vcpu))?;
                    items.count_window(0);
                }
                Item::Lost { at, events } => items.lost(time(at), Some(events))?,
                _ => {}
            }
        }
        if Instant::now() >= next_news {
            next_news += NEWS;
            items.pass(tracer.now().saturating_add(attached).0);
            news(&items.tally());
            if Vmm::find(process).is_err() {
                reason = Some(EndReason::GuestEnded);
            }
        }
        if let Some(reason) = reason {
            items.pass(tracer.now().saturating_add(attached).0);
            return Ok(reason);
        }
        sleep(PERIOD);
    }
}

/// Bytes of the largest mapping of a process: proc_pid_maps(5).
fn largest_mapping(process: u32) -> std::io::Result<u64> {
    let maps = std::fs::read_to_string(PathBuf::from(format!("/proc/{process}/maps")))?;
    let size = |line: &str| {
        let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
        let address = |hex| u64::from_str_radix(hex, 16).ok();
        address(end)?.checked_sub(address(start)?)
    };
    Ok(maps.lines().filter_map(size).max().unwrap_or(0))
}

/// Everywhere a PC with so much RAM may have some: its hole begins somewhere between 2 and 3.5 GiB.
fn guessed_memory(bytes: u64) -> Vec<Run> {
    const HOLE: u64 = 2 << 30;
    const HIGH: u64 = 4 << 30;
    let run = |first: u64, bytes: u64| Run::new(Gfn(first / PAGE_SIZE), Pages((bytes / PAGE_SIZE).max(1)));
    if bytes <= HOLE {
        vec![run(0, bytes)]
    } else {
        vec![run(0, HIGH), run(HIGH, bytes - HOLE)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_guessed_generously() {
        assert_eq!(guessed_memory(64 << 20), [Run::new(Gfn(0), Pages(16384))]);
        let large = guessed_memory(8 << 30);
        assert_eq!(large[0], Run::new(Gfn(0), Pages(1 << 20)));
        assert_eq!(large[1], Run::new(Gfn(1 << 20), Pages(6 << 18)));
        assert!(largest_mapping(std::process::id()).unwrap() >= PAGE_SIZE);
    }

    #[test]
    fn only_kvm_s_own_places_show_guests_of_others() {
        assert!(Outside::programs(Some(Source::SptePermission)).is_ok());
        assert!(Outside::programs(Some(Source::MarkDirty)).is_ok());
        for source in [Source::RingPush, Source::WriteProtectFault, Source::Bitmap] {
            let error = Outside::programs(Some(source)).unwrap_err();
            assert!(error.to_string().contains(source.name()), "{error}");
        }
    }
}
