//! `dunlin record`: a client of the process that holds the guest, and the writer of a trace.

use super::{
    ANSWER_PATIENCE, CliError,
    migrate::catch_signals,
    output,
    values::{self, Micros},
};
use crate::{
    channel::{Cancel, Wait},
    control::{Client, EndReason, RecordRequest, RecordingSession},
    guest::kvm::Backend,
    report::{KernelReport, OverheadReport, RecordReport, RecordSchema, count, duration, record_summary},
    trace::{
        TraceError, TraceWriter,
        foreign::{ForeignError, Outside},
        recording::{
            Limits, Programs, Recorded, RecordingError, RecordingSource, Served, Sink, Tally, Traced, record, served,
        },
    },
    trust::sandbox::{self, Duty, Folders},
};
use dunlin_core::tracefile::{Head, Item, Source};
use dunlin_core::units::{Bytes, PAGE_SIZE};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    fs::File,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// `dunlin record` as typed.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Args {
    #[command(flatten)]
    watched: Watched,

    /// How long to record; an interrupt ends it before, with a whole file
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::positive_time, allow_hyphen_values = true)]
    duration: Micros,

    /// Write the trace to this file
    #[arg(short, long, value_name = "FILE.dtrace")]
    output: PathBuf,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Which guest is watched, and by what.
#[derive(Debug, clap::Args)]
pub(super) struct Watched {
    /// Ask the process that serves this control socket
    #[arg(long, value_name = "SOCK", required_unless_present_any = ["qmp", "pid"])]
    control: Option<PathBuf>,

    /// Look at the guest of the QEMU that serves this QMP socket, and keep its dirty log on meanwhile
    #[arg(long, value_name = "SOCK", conflicts_with_all = ["control", "pid", "exact"])]
    qmp: Option<PathBuf>,

    /// Look at the guest of this process, of whatever hypervisor on KVM. Unless its dirty log is on, only the first write of each page since
    /// it began is seen
    #[arg(long, value_name = "PID", conflicts_with_all = ["control", "exact"])]
    pid: Option<u32>,

    /// The time between two looks at what was written; with --qmp whole seconds, and at least one
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = window, allow_hyphen_values = true)]
    window: Micros,

    /// What is to see the writes
    ///
    /// ring and bitmap are KVM's, of which a guest has the one that it was started with (`dunlin guest --tracking`); pagemap write-protects
    /// the guest's memory anew in each window, and works with every guest. They tell which pages were written in a window. Those that
    /// begin with ebpf look into the kernel, need privileges, and tell order, time and vCPU of the writes: ebpf:ring at the pushes into
    /// the dirty ring, ebpf:faults at the page faults of memory that is write-protected, ebpf:mmu at KVM's page tables, ebpf:mark at its
    /// marking of dirty pages. auto is the best one that works for the guest; `dunlin doctor` lists them.
    #[arg(long, value_enum, default_value_t = SourceArg::Auto)]
    source: SourceArg,

    /// The buffer between the kernel and this process; a write takes 32 bytes of it. Sources of eBPF only
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = buffer, allow_hyphen_values = true)]
    ring_size: Bytes,

    /// Stop all vCPUs for each look, so that pages and the guest's own step counts speak of the same moment
    #[arg(long)]
    exact: bool,

    /// Keep all rights of the process, instead of those it needs: to find out whether a failure is due to their lack
    #[arg(long)]
    no_sandbox: bool,
}

impl Watched {
    /// Gives up what a recording does not need, before there are other threads.
    pub(super) fn confine(&self) -> Result<(), CliError> {
        if self.no_sandbox {
            return Ok(());
        }
        // It uses the files of whoever typed the command, which may be anywhere.
        let entered = sandbox::enter(Duty::Tracer, &Folders::default());
        entered.map(drop).map_err(|error| CliError::Node(error.into()))
    }

    /// Asks for a recording; it begins when somebody follows it.
    pub(super) fn start(&self, interrupt: &Cancel) -> Result<Watching, CliError> {
        if let Some(control) = &self.control {
            return self.ask(control, interrupt);
        }
        let guest = match (&self.qmp, self.pid) {
            (Some(socket), _) => Outside::by_socket(socket),
            (None, process) => Outside::by_process(process.unwrap_or_default()),
        };
        let failed = |error: ForeignError| CliError::from(RecordingError::from(error));
        Ok(Watching::Outside {
            guest: guest.map_err(failed)?,
            programs: Outside::programs(self.source.source()).map_err(failed)?,
            buffer: self.ring_size,
            window_s: u32::try_from(self.window.0.div_ceil(1_000_000)).unwrap_or(u32::MAX),
        })
    }

    fn ask(&self, control: &Path, interrupt: &Cancel) -> Result<Watching, CliError> {
        let wait = Wait::within(ANSWER_PATIENCE, interrupt);
        let mut client = Client::connect(control, wait)?;
        let own = client.status(wait)?.tracking;
        let own = own.and_then(|tracking| Source::from_name(&tracking.source));
        let programs = match own {
            Some(own) => self.programs(own)?,
            // It waits for a guest, and will say so.
            None => None,
        };
        let request = RecordRequest {
            serve: match programs {
                Some(programs) => vec![programs.service()],
                None => served(self.source.served()),
            },
            window_us: self.window.0,
            exact: self.exact,
        };
        let session = client.start_recording(&request, wait)?;
        let source: Box<dyn RecordingSource> = match programs {
            Some(programs) => {
                let traced = Traced::attach(programs, session.answer(), self.ring_size);
                Box::new(traced.map_err(RecordingError::from)?)
            }
            None => Box::new(Served::new(session.answer())?),
        };
        Ok(Watching::Session {
            session: Box::new(session),
            source,
        })
    }

    /// The programs that are to look into the kernel, if any. Where nothing else was asked for and they are not let in, it is said why.
    fn programs(&self, own: Source) -> Result<Option<Programs>, CliError> {
        if self.source != SourceArg::Auto {
            return Ok(self.source.traced().and_then(|source| Programs::of(source, own)));
        }
        let Some(programs) = Programs::of(Programs::best_for(own, Backend::find()), own) else {
            return Ok(None);
        };
        match programs.check() {
            Ok(()) => Ok(Some(programs)),
            Err(error) => {
                output::message(&format!("recording without order and vCPUs: {error}"));
                Ok(None)
            }
        }
    }
}

/// A guest that is about to be recorded.
pub(super) enum Watching {
    /// One of ours.
    Session {
        session: Box<RecordingSession>,
        source: Box<dyn RecordingSource>,
    },
    /// Somebody else's.
    Outside {
        guest: Outside,
        programs: Programs,
        buffer: Bytes,
        window_s: u32,
    },
}

impl Watching {
    /// The guest's name, or its hypervisor's.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Session { session, .. } => session.answer().name.clone(),
            Self::Outside { guest, .. } => guest.name().to_owned(),
        }
    }

    /// The time between two looks.
    pub(super) fn window_us(&self) -> u64 {
        match self {
            Self::Session { session, .. } => session.answer().window_us,
            Self::Outside { window_s, .. } => u64::from(*window_s) * 1_000_000,
        }
    }

    /// Records until a limit, or until it is over.
    pub(super) fn record(
        self,
        sink: &mut dyn Sink,
        limits: Limits<'_>,
        news: &mut dyn FnMut(&Tally),
    ) -> Result<Recorded, RecordingError> {
        match self {
            Self::Session {
                mut session,
                mut source,
            } => record(&mut session, &mut *source, sink, limits, news),
            Self::Outside {
                guest,
                programs,
                buffer,
                window_s,
            } => guest.record(programs, buffer, window_s, sink, limits, news),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SourceArg {
    Auto,
    // As reports call them.
    #[value(alias = "kvm-dirty-ring")]
    Ring,
    #[value(alias = "kvm-dirty-bitmap")]
    Bitmap,
    #[value(alias = "pagemap-scan")]
    Pagemap,
    #[value(name = "ebpf:ring", alias = "ebpf:kvm_dirty_ring_push")]
    EbpfRing,
    #[value(name = "ebpf:faults", alias = "ebpf:page_fault_kernel")]
    EbpfFaults,
    #[value(name = "ebpf:mmu", alias = "ebpf:kvm_mmu")]
    EbpfMmu,
    #[value(name = "ebpf:mark", alias = "ebpf:mark_page_dirty_in_slot")]
    EbpfMark,
}

impl SourceArg {
    /// The tracker of the process that holds the guest.
    const fn served(self) -> Option<Source> {
        match self {
            Self::Ring => Some(Source::Ring),
            Self::Bitmap => Some(Source::Bitmap),
            Self::Pagemap => Some(Source::PagemapScan),
            _ => None,
        }
    }

    /// Whatever was asked for.
    const fn source(self) -> Option<Source> {
        match self.served() {
            Some(source) => Some(source),
            None => self.traced(),
        }
    }

    /// The programs in the kernel.
    const fn traced(self) -> Option<Source> {
        match self {
            Self::EbpfRing => Some(Source::RingPush),
            Self::EbpfFaults => Some(Source::WriteProtectFault),
            Self::EbpfMmu => Some(Source::SptePermission),
            Self::EbpfMark => Some(Source::MarkDirty),
            _ => None,
        }
    }
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        self.watched.confine()?;
        let interrupt = catch_signals()?;
        let watching = self.watched.start(&interrupt)?;
        let (guest, window_us) = (watching.name(), watching.window_us());
        let mut sink = FileSink {
            path: &self.output,
            writer: None,
        };
        let mut view = View::new(Duration::from_micros(self.duration.0));
        let limits = Limits {
            duration: Some(Duration::from_micros(self.duration.0)),
            interrupt: &interrupt,
        };
        let recorded = watching.record(&mut sink, limits, &mut |tally| view.show(tally));
        view.finish();
        // What there is of it can be read, however it ended.
        let file_bytes = sink.finish()?;
        let report = self.report(guest, window_us, &recorded?, file_bytes);
        if let Some(warning) = warning(&report) {
            output::message(&format!("warning: {warning}"));
        }
        if self.json {
            output::json(&report)?;
        } else {
            output::result(&record_summary(&report))?;
        }
        Ok(if report.ended_early.is_none() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn report(&self, guest: String, window_us: u64, recorded: &Recorded, file_bytes: u64) -> RecordReport {
        let tally = recorded.tally;
        let duration_us = tally.duration.0 / 1000;
        RecordReport {
            schema: RecordSchema,
            guest,
            source: recorded.source.name().to_owned(),
            cannot_see: recorded.source.cannot_see().to_owned(),
            file: self.output.clone(),
            file_bytes,
            duration_us,
            window_us,
            windows: tally.windows,
            events: tally.writes,
            dirty_pages: tally.dirty_pages,
            lost_events: (tally.lost != u64::MAX).then_some(tally.lost),
            overruns: tally.overruns,
            overhead: OverheadReport {
                kernel: recorded.kernel.map(|kernel| KernelReport {
                    cpu_us: kernel.cpu.0 / 1000,
                    runs: kernel.runs,
                }),
                ..OverheadReport::new(recorded.cpu.0 / 1000, duration_us)
            },
            ended_early: (recorded.reason != EndReason::Stopped).then(|| recorded.reason.to_string()),
        }
    }
}

/// What somebody who recorded has to know at once.
fn warning(report: &RecordReport) -> Option<&'static str> {
    let by_programs = report.source.starts_with("ebpf:");
    if by_programs && report.lost_events != Some(0) {
        Some("the buffer was too small for what was written; record again with a larger --ring-size")
    } else if by_programs && report.events == 0 {
        Some(
            "no write was seen: the guest stands still, or this source is silent on this host (`dunlin doctor` tries all of them)",
        )
    } else {
        None
    }
}

/// A time that a window may take.
fn window(text: &str) -> Result<Micros, String> {
    let window = values::positive_time(text).map_err(|error| error.to_string())?;
    let windows = RecordRequest::WINDOW_MIN_US..=RecordRequest::WINDOW_MAX_US;
    if windows.contains(&window.0) {
        Ok(window)
    } else {
        Err("write a time from 1ms to 60s".into())
    }
}

/// A size that the programs' buffer may have.
fn buffer(text: &str) -> Result<Bytes, String> {
    let size = values::size(text).map_err(|error| error.to_string())?;
    let sizes = PAGE_SIZE..=1 << 30;
    if sizes.contains(&size.0) {
        Ok(size)
    } else {
        Err("write a size from 4KiB to 1GiB".into())
    }
}

/// The file, made when the recording begins.
struct FileSink<'a> {
    path: &'a Path,
    writer: Option<TraceWriter<File>>,
}

impl Sink for FileSink<'_> {
    fn begin(&mut self, head: &Head) -> Result<(), TraceError> {
        self.writer = Some(TraceWriter::create(self.path, head)?);
        Ok(())
    }

    fn push(&mut self, item: &Item) -> Result<(), TraceError> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.push(item))
    }
}

impl FileSink<'_> {
    /// Writes what is left; the bytes of the file.
    fn finish(&mut self) -> Result<u64, TraceError> {
        let writer = self.writer.take();
        writer.map_or(Ok(0), |writer| Ok(writer.finish()?.bytes))
    }
}

/// How far the recording is, on a terminal.
struct View {
    bar: Option<ProgressBar>,
    last: Tally,
}

impl View {
    fn new(whole: Duration) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let whole = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
            let bar = ProgressBar::with_draw_target(Some(whole), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("{bar:24} {msg}").expect("a valid template");
            bar.set_style(style.progress_chars("█▌░"));
            bar
        });
        Self {
            bar,
            last: Tally::default(),
        }
    }

    fn show(&mut self, tally: &Tally) {
        let Some(bar) = &self.bar else { return };
        let passed = tally.duration.saturating_sub(self.last.duration);
        let seen = |tally: &Tally| tally.writes + tally.dirty_pages;
        let rate = (u128::from(seen(tally) - seen(&self.last)) * 1_000_000_000)
            .checked_div(passed.0.into())
            .unwrap_or(0);
        let lost = match tally.lost {
            0 => String::new(),
            u64::MAX => " · some lost".to_owned(),
            lost => format!(" · {} lost", count(lost)),
        };
        bar.set_message(format!(
            "recording {} · {} pages/s{lost}",
            duration(Duration::from_nanos(tally.duration.0)),
            count(u64::try_from(rate).unwrap_or(u64::MAX)),
        ));
        bar.set_position(tally.duration.0 / 1_000_000);
        self.last = *tally;
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn args(text: &str) -> Args {
        let fixed = ["dunlin", "record", "--control", "sock", "-o", "out.dtrace"];
        match Cli::try_parse_from(fixed.into_iter().chain(text.split_whitespace()))
            .unwrap()
            .command
        {
            Command::Record(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_and_limits() {
        let plain = args("");
        assert_eq!(
            (plain.duration, plain.watched.window),
            (Micros(10_000_000), Micros(50_000))
        );
        assert_eq!(
            (plain.watched.source, plain.watched.exact, plain.json),
            (SourceArg::Auto, false, false)
        );
        let given = args("--duration 2s --window 1ms --source ring --exact --json");
        assert_eq!(
            (given.duration, given.watched.window),
            (Micros(2_000_000), Micros(1_000))
        );
        assert_eq!(given.watched.source.served(), Some(Source::Ring));
        let traced = args("--source ebpf:faults --ring-size 64KiB").watched;
        assert_eq!(
            (traced.source.traced(), traced.ring_size),
            (Some(Source::WriteProtectFault), Bytes(64 << 10))
        );
        assert!(buffer("2GiB").unwrap_err().contains("from 4KiB to 1GiB"));
        assert!(window("61s").unwrap_err().contains("from 1ms to 60s"));
        assert!(window("999us").is_err());
    }
}
