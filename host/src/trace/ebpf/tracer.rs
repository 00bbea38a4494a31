//! A recording: programs attached, events coming.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use aya::sys::{Stats, enable_stats};
use aya_log::EbpfLogger;
use dunlin_core::record::{Kind, Record, control, counter};
use dunlin_core::tracefile::Item;
use dunlin_core::units::{Nanos, Pages};
use rustix::time::{ClockId, clock_gettime};

use super::load::{self, Link, Object};
use super::stream::{self, Translator, Vcpus};
use super::tables::Tables;
use super::{Config, Counters, Hooks, Mode, Overhead, ProgramTime, TracerError, privilege};
use crate::memory::SharedWords;

/// Attached eBPF programs and what they see. Dropping it detaches them.
pub struct Tracer {
    // First, so that nothing is written any more when the rest goes.
    links: Vec<Link>,
    object: Object,
    // Descriptors of the programs, which `object` holds.
    programs: Vec<RawFd>,
    config: Config,
    counters: PerCpuArray<MapData, [u64; counter::COUNT]>,
    control: SharedWords,
    output: Output,
    log: EbpfLogger<Diagnostics>,
    diagnostics: Diagnostics,
    // The kernel measures as long as this is open.
    measuring: Option<OwnedFd>,
    started_ns: u64,
    reader: Nanos,
    /// When it was last asked what the programs missed, and the answer.
    missed: (Nanos, u64),
}

#[expect(clippy::large_enum_variant, reason = "there is one for each recording")]
enum Output {
    Stream {
        buffer: RingBuf<MapData>,
        capacity: u64,
        translator: Translator,
    },
    Windows(Tables),
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Tracer {
    /// Loads and attaches the programs. Takes some tenths of a second, most of which goes into reading the kernel's types.
    ///
    /// # Errors
    /// [`TracerError`]: privileges that are missing, hooks that this kernel has not, memory that is too much; nothing is left
    /// behind.
    pub fn attach(config: Config) -> Result<Self, TracerError> {
        Self::attach_of(load::OBJECT, config)
    }

    /// As [`attach`](Self::attach), with programs that were built elsewhere instead of those that are part of this library: the ELF
    /// object of `cargo xtask build`, from this version's source.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach); [`TracerError::Load`] and [`TracerError::Incomplete`] for any other object.
    pub fn attach_of(programs: &[u8], config: Config) -> Result<Self, TracerError> {
        config.check()?;
        load::check_memory(&config)?;
        privilege::check()?;
        let mut object = Object::load(programs, &config)?;
        let diagnostics = Diagnostics::default();
        let log = EbpfLogger::init_with_logger(&mut object.ebpf, diagnostics.clone());
        let log = log.map_err(|_| TracerError::Incomplete("AYA_LOGS"))?;
        let counters = take(&mut object, "COUNTERS")?;
        let counters = PerCpuArray::try_from(counters).map_err(map_error("counters"))?;
        let control = share(&mut object, "CONTROL", control::COUNT)?;
        let started_ns = monotonic();
        let output = match config.mode {
            Mode::Stream { buffer } => {
                let vcpus = Vcpus::new(config.vcpus.clone());
                let events = take(&mut object, "EVENTS")?;
                Output::Stream {
                    buffer: RingBuf::try_from(events).map_err(map_error("events"))?,
                    capacity: load::buffer_bytes(buffer.0) / EVENT_BYTES,
                    translator: Translator::new(vcpus, started_ns),
                }
            }
            Mode::Windows { counts } => Output::Windows(tables(&mut object, config.span(), counts)?),
        };
        let measuring = (config.measure && privilege::may_measure()).then(|| enable_stats(Stats::RunTime).ok());
        let mut tracer = Self {
            links: vec![],
            object,
            programs: vec![],
            config,
            counters,
            control,
            output,
            log,
            diagnostics,
            measuring: measuring.flatten(),
            started_ns,
            reader: Nanos::ZERO,
            missed: (Nanos::ZERO, 0),
        };
        tracer.attach_all()?;
        Ok(tracer)
    }

    fn attach_all(&mut self) -> Result<(), TracerError> {
        for (hooks, kind) in kinds(&self.config.hooks) {
            self.links.push(self.object.attach(hooks, kind)?);
            let program = self.object.program(kind)?.fd().map_err(|source| TracerError::Program {
                hook: kind.hook(),
                source: Box::new(source),
            })?;
            self.programs.push(program.as_fd().as_raw_fd());
        }
        Ok(())
    }

    /// What it does.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// When it was attached, of `CLOCK_MONOTONIC`. All other times count from there.
    pub fn started(&self) -> Nanos {
        Nanos(self.started_ns)
    }

    /// The time since it was attached.
    pub fn now(&self) -> Nanos {
        Nanos(monotonic().saturating_sub(self.started_ns))
    }

    /// How many events the buffer holds; 0 if it makes windows. Reading each time before half of that has come loses nothing.
    pub fn capacity(&self) -> u64 {
        match self.output {
            Output::Stream { capacity, .. } => capacity,
            Output::Windows(_) => 0,
        }
    }

    /// Says that pages are about to be protected anew, so that their first writes are seen again. To be called right before;
    /// resets of a dirty ring are noticed without it, but writes that come while one is going on may then be taken for repeats.
    /// A window of the stream ends here.
    pub fn protect(&mut self) -> Nanos {
        self.control.words()[control::EPOCH].fetch_add(1, Ordering::SeqCst);
        let now = self.now();
        if let Output::Stream { translator, .. } = &mut self.output
            && !self.config.hooks.contains(&Hooks::DirtyRing)
        {
            translator.protected(now);
        }
        now
    }

    /// Says that somebody else protected pages anew, at a time of `CLOCK_MONOTONIC`: a window of the stream ends there. Repeats are
    /// not affected; where pages are protected by others, they are best kept ([`Config::repeats`]).
    pub fn window_ended(&mut self, at: Nanos) {
        if let Output::Stream { translator, .. } = &mut self.output {
            translator.protected(Nanos(at.0.saturating_sub(self.started_ns)));
        }
    }

    /// Gives to `sink` all that the buffer holds, in order, as items of a trace, and returns how many records there were. Takes at
    /// most one buffer full, so that it ends. Never waits; an empty buffer is best looked at again after some milliseconds.
    ///
    /// # Errors
    /// [`TracerError::Mode`]; [`TracerError::Map`] if the count of losses cannot be read.
    pub fn drain(&mut self, mut sink: impl FnMut(Item)) -> Result<u64, TracerError> {
        let (began, until) = (reader_time(), self.now());
        if until.saturating_sub(self.missed.0) >= MISSED_PERIOD {
            self.missed = (until, self.read_missed());
        }
        let lost = self.count(self.missed.1)?.lost();
        let Output::Stream {
            buffer,
            capacity,
            translator,
        } = &mut self.output
        else {
            return Err(not_a_stream());
        };
        let (count, empty) = stream::read(buffer, *capacity, |record| translator.record(record, &mut sink));
        if empty {
            translator.window_ends(until, &mut sink);
        }
        translator.lost(lost, &mut sink);
        self.log.flush();
        self.reader = self.reader.saturating_add(reader_time().saturating_sub(began));
        Ok(count)
    }

    /// As [`drain`](Self::drain), with all that the programs have said, of whatever kind.
    ///
    /// # Errors
    /// [`TracerError::Mode`].
    pub fn drain_records(&mut self, sink: impl FnMut(Record)) -> Result<u64, TracerError> {
        let began = reader_time();
        let Output::Stream { buffer, capacity, .. } = &mut self.output else {
            return Err(not_a_stream());
        };
        let (count, _) = stream::read(buffer, *capacity, sink);
        self.log.flush();
        self.reader = self.reader.saturating_add(reader_time().saturating_sub(began));
        Ok(count)
    }

    /// Ends a window: ORs the pages that were written in it into `written` (bit g is frame g) and adds how often to `counts`. A
    /// write is in exactly one window. Takes some tens of milliseconds, most of which is waiting for the processors.
    ///
    /// # Errors
    /// [`TracerError::Mode`], [`TracerError::TableLength`].
    pub fn turn_over(&mut self, written: &mut [u64], counts: Option<&mut [u64]>) -> Result<(), TracerError> {
        let began = reader_time();
        let Output::Windows(tables) = &self.output else {
            return Err(TracerError::Mode {
                attached: "a stream of events",
                asked: "windows",
            });
        };
        let pages = self.config.span();
        check_length(written.len(), pages.0 / 64, pages)?;
        if let Some(counts) = &counts {
            check_length(counts.len(), pages.0, pages)?;
        }
        tables.turn_over(&self.control, written, counts);
        self.log.flush();
        self.reader = self.reader.saturating_add(reader_time().saturating_sub(began));
        Ok(())
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// [`TracerError::Map`].
    pub fn counters(&self) -> Result<Counters, TracerError> {
        self.count(self.read_missed())
    }

    fn count(&self, missed: u64) -> Result<Counters, TracerError> {
        let processors = self.counters.get(&0, 0).map_err(map_error("counters"))?;
        Ok(Counters::new(processors.iter().copied(), missed))
    }

    /// How often a program did not run because it was interrupted in the middle of itself: the kernel says so of the programs'
    /// descriptors, as of Linux 5.12.
    fn read_missed(&self) -> u64 {
        let programs = self.programs.iter().filter_map(|fd| {
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
            line.trim().parse::<u64>().ok()
        });
        programs.sum()
    }

    /// What tracing has cost so far.
    ///
    /// # Errors
    /// [`TracerError::Program`] if the kernel does not tell.
    pub fn overhead(&mut self) -> Result<Overhead, TracerError> {
        let mut programs = vec![];
        if self.measuring.is_some() {
            for (_, kind) in kinds(&self.config.hooks) {
                let hook = kind.hook();
                let info = self.object.program(kind)?.info();
                let info = info.map_err(|source| TracerError::Program {
                    hook,
                    source: Box::new(source),
                })?;
                programs.push(ProgramTime {
                    hook,
                    runs: info.run_count(),
                    time: Nanos(u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX)),
                });
            }
        }
        Ok(Overhead {
            programs,
            reader: self.reader,
        })
    }

    /// Detaches the programs. What they have seen can still be read.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// What the programs had to say beside events, since the last call; usually nothing.
    pub fn diagnostics(&self) -> Vec<String> {
        std::mem::take(&mut *self.diagnostics.lines())
    }
}

/// Asking the kernel what programs missed takes longer than looking into an empty buffer.
const MISSED_PERIOD: Nanos = Nanos::from_millis(250);

/// What an event takes of the buffer: the record, and the kernel's eight bytes before it.
const EVENT_BYTES: u64 = Record::BYTES as u64 + 8;

/// The tables of a recording by windows.
fn tables(object: &mut Object, pages: Pages, counts: bool) -> Result<Tables, TracerError> {
    let words = |count: u64| usize::try_from(count).expect("a table in memory");
    let written = share(object, "WRITTEN", words(pages.0 / 32))?;
    let counts = counts
        .then(|| share(object, "COUNTS", words(pages.0 * 2)))
        .transpose()?;
    Ok(Tables::new(pages, written, counts))
}

fn kinds(hooks: &[Hooks]) -> Vec<(Hooks, Kind)> {
    let kinds = |hooks: &Hooks| {
        let hooks = *hooks;
        hooks.kinds().iter().map(move |kind| (hooks, *kind))
    };
    hooks.iter().flat_map(kinds).collect()
}

/// Takes a table out of the object. Programs must have been loaded before: they find it by its descriptor.
fn take(object: &mut Object, name: &'static str) -> Result<Map, TracerError> {
    object.ebpf.take_map(name).ok_or(TracerError::Incomplete(name))
}

fn share(object: &mut Object, name: &'static str, words: usize) -> Result<SharedWords, TracerError> {
    let Map::Array(data) = take(object, name)? else {
        return Err(TracerError::Incomplete(name));
    };
    SharedWords::map(data.fd().as_fd(), words).map_err(|source| TracerError::Mapping { what: name, source })
}

fn map_error(what: &'static str) -> impl Fn(aya::maps::MapError) -> TracerError {
    move |source| TracerError::Map {
        what,
        source: Box::new(source),
    }
}

const fn not_a_stream() -> TracerError {
    TracerError::Mode {
        attached: "windows",
        asked: "a stream of events",
    }
}

fn check_length(len: usize, needed: u64, pages: Pages) -> Result<(), TracerError> {
    if (len as u64) < needed {
        return Err(TracerError::TableLength { len, pages });
    }
    Ok(())
}

fn monotonic() -> u64 {
    nanos(ClockId::Monotonic).0
}

/// CPU time of this thread.
fn reader_time() -> Nanos {
    nanos(ClockId::ThreadCPUTime)
}

fn nanos(clock: ClockId) -> Nanos {
    let time = clock_gettime(clock);
    let whole = Nanos::from_secs(time.tv_sec.unsigned_abs());
    whole.saturating_add(Nanos(time.tv_nsec.unsigned_abs()))
}

/// Keeps what the programs log, a bounded number of lines.
#[derive(Clone, Default, Debug)]
struct Diagnostics(Arc<Mutex<Vec<String>>>);

impl Diagnostics {
    const MOST: usize = 1000;

    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl log::Log for Diagnostics {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = self.lines();
        if lines.len() < Self::MOST {
            lines.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}
