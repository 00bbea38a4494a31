//! The object with all programs, loaded for one recording, and attaching its programs.

use std::{fs, io};

use aya::programs::fentry::FEntryLink;
use aya::programs::fexit::FExitLink;
use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::{FEntry, FExit, Program, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfError, EbpfLoader};
use dunlin_core::record::{Kind, REGIONS_MAX};

use super::btf::Btf;
use super::{Config, Hooks, Mode, TracerError};

/// Built by `cargo xtask build`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/prebuilt/dunlin.bpf.o");

/// Kernel memory for one recording, whatever the host has.
const LIMIT_BYTES: u64 = 1 << 30;
/// Of the memory that is available, the part that a recording may take.
const LIMIT_SHARE: u64 = 4;

/// No field of this name, or nobody knows where.
const UNKNOWN: u64 = u64::MAX;

/// An attached program; it is detached when this is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held for what happens when they are dropped")]
pub(super) enum Link {
    Tracepoint(RawTracePointLink),
    Entry(FEntryLink),
    Exit(FExitLink),
}

/// The object in the kernel: its tables exist, its programs do not run yet.
pub(super) struct Object {
    pub(super) ebpf: Ebpf,
    types: Option<Btf>,
}

impl Object {
    /// Creates the tables and loads the programs that `config` asks for, of those in `programs`.
    pub(super) fn load(programs: &[u8], config: &Config) -> Result<Self, TracerError> {
        let types = Btf::kvm();
        let ebpf = create(programs, config, types.as_ref())?;
        let mut object = Self { ebpf, types };
        for hooks in &config.hooks {
            for kind in hooks.kinds() {
                object.load_program(*hooks, *kind)?;
            }
        }
        Ok(object)
    }

    fn load_program(&mut self, hooks: Hooks, kind: Kind) -> Result<(), TracerError> {
        let hook = kind.hook();
        if kind == Kind::GuestFault {
            self.check_page_fault(hooks)?;
        }
        let loaded = match self.program(kind)? {
            Program::RawTracePoint(program) => program.load(),
            Program::FEntry(program) => types_of_functions().and_then(|types| program.load(hook, &types)),
            Program::FExit(program) => types_of_functions().and_then(|types| program.load(hook, &types)),
            _ => return Err(TracerError::Incomplete(hook)),
        };
        loaded.map_err(|error| refusal(hooks, hook, error))
    }

    /// Lets a program run. Its tables must still be open.
    pub(super) fn attach(&mut self, hooks: Hooks, kind: Kind) -> Result<Link, TracerError> {
        let hook = kind.hook();
        let link = match self.program(kind)? {
            Program::RawTracePoint(program) => tracepoint(program, hook).map(Link::Tracepoint),
            Program::FEntry(program) => entry(program).map(Link::Entry),
            Program::FExit(program) => exit(program).map(Link::Exit),
            _ => return Err(TracerError::Incomplete(hook)),
        };
        link.map_err(|error| refusal(hooks, hook, error))
    }

    /// The program for a kind.
    pub(super) fn program(&mut self, kind: Kind) -> Result<&mut Program, TracerError> {
        let name = match kind {
            Kind::WaitEnd => "handle_userfault_exit",
            kind => kind.hook(),
        };
        self.ebpf.program_mut(name).ok_or(TracerError::Incomplete(name))
    }

    /// Before Linux 6.1 the first parameter was the address and not the vCPU.
    fn check_page_fault(&self, hooks: Hooks) -> Result<(), TracerError> {
        let hook = Kind::GuestFault.hook();
        let types = self.types.as_ref().ok_or(TracerError::UnknownPageFault)?;
        let since = hooks.since();
        match types.tracepoint_parameters(hook) {
            Some(3) => Ok(()),
            Some(parameters) => Err(TracerError::OldPageFault { parameters }),
            // Every KVM on x86 has this one; so there is no KVM.
            None if types.tracepoint_parameters("kvm_mmu_set_spte").is_none() => {
                Err(TracerError::NoTracepoint { hook, since })
            }
            None => Err(TracerError::UnknownPageFault),
        }
    }
}

/// Sets globals and sizes and creates the tables.
fn create(programs: &[u8], config: &Config, types: Option<&Btf>) -> Result<Ebpf, TracerError> {
    let regions = |value: fn(&super::Region) -> u64| {
        let mut values = [0_u64; REGIONS_MAX];
        values
            .iter_mut()
            .zip(&config.regions)
            .for_each(|(to, from)| *to = value(from));
        values
    };
    let field = |structure, field| types.and_then(|types| types.field_offset(structure, field));
    let addresses = regions(|region| region.address);
    let lengths = regions(|region| region.run.count.bytes().0);
    let frames = regions(|region| region.run.first.0);
    let slots = regions(|region| region.slot.into());
    let index = field("kvm_dirty_ring", "index").unwrap_or(UNKNOWN);
    let address = field("kvm_page_fault", "addr").unwrap_or(0);
    let marks = types.and_then(|types| types.function_parameters("mark_page_dirty_in_slot"));
    let marks = u64::from(marks.unwrap_or(3));
    let half = config.span().0;
    let (drop_repeats, log_level) = (u32::from(!config.repeats), aya_log::Level::Warn as u8);
    let (aggregate, counts) = match config.mode {
        Mode::Stream { .. } => (0_u32, 0_u32),
        Mode::Windows { counts } => (1, counts.into()),
    };
    let mut loader = EbpfLoader::new();
    loader
        .override_global("TGID", &config.process, true)
        .override_global("REGION_ADDRESS", &addresses[..], true)
        .override_global("REGION_BYTES", &lengths[..], true)
        .override_global("REGION_FRAME", &frames[..], true)
        .override_global("REGION_SLOT", &slots[..], true)
        .override_global("DROP_REPEATS", &drop_repeats, true)
        .override_global("AGGREGATE", &aggregate, true)
        .override_global("COUNT_WRITES", &counts, true)
        .override_global("HALF_PAGES", &half, true)
        .override_global("RING_INDEX_OFFSET", &index, true)
        .override_global("FAULT_ADDRESS_OFFSET", &address, true)
        .override_global("MARK_PARAMETERS", &marks, true)
        .override_global(aya_log::LEVEL, &log_level, true);
    let entries = |count: u64| u32::try_from(count).expect("bounded by the limit of memory and by Config::check");
    match config.mode {
        Mode::Stream { buffer } => {
            loader.map_max_entries("EVENTS", entries(buffer_bytes(buffer.0)));
        }
        Mode::Windows { counts } => {
            loader.map_max_entries("WRITTEN", entries((2 * half / 64).max(1)));
            if counts {
                loader.map_max_entries("COUNTS", entries((2 * half).max(1)));
            }
        }
    }
    loader.load(programs).map_err(|error| match error_number(&error) {
        Some(libc::EPERM | libc::EACCES) => TracerError::Forbidden {
            what: "to create the tables of eBPF programs".into(),
            source: io::Error::other(error),
        },
        _ => TracerError::Load(Box::new(error)),
    })
}

/// The size that the kernel takes: a power of two of at least a page.
pub(super) fn buffer_bytes(wanted: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    wanted.clamp(page, LIMIT_BYTES).next_power_of_two()
}

/// Refuses what would take too much, before anything is allocated.
pub(super) fn check_memory(config: &Config) -> Result<(), TracerError> {
    let (needed, what) = config.kernel_memory();
    let limit = available_bytes().map_or(LIMIT_BYTES, |bytes| LIMIT_BYTES.min(bytes / LIMIT_SHARE));
    if needed <= limit {
        return Ok(());
    }
    let advice = match config.mode {
        Mode::Stream { .. } => "give a smaller buffer",
        Mode::Windows { counts: true } => "record without counts, or less memory at a time",
        Mode::Windows { counts: false } => "record less memory at a time",
    };
    Err(TracerError::TooLarge {
        what,
        needed,
        limit,
        advice,
    })
}

/// Memory that can be had without swapping: proc(5), `/proc/meminfo`.
fn available_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

fn tracepoint(program: &mut RawTracePoint, name: &str) -> Result<RawTracePointLink, ProgramError> {
    let id = program.attach(name)?;
    program.take_link(id)
}

fn entry(program: &mut FEntry) -> Result<FEntryLink, ProgramError> {
    let id = program.attach()?;
    program.take_link(id)
}

fn exit(program: &mut FExit) -> Result<FExitLink, ProgramError> {
    let id = program.attach()?;
    program.take_link(id)
}

/// The kernel's own types, in which functions are looked up by name.
fn types_of_functions() -> Result<aya::Btf, ProgramError> {
    aya::Btf::from_sys_fs().map_err(ProgramError::from)
}

/// What a refusal means.
fn refusal(hooks: Hooks, hook: &'static str, error: ProgramError) -> TracerError {
    let is_function = matches!(hooks, Hooks::MarkDirty | Hooks::Waits);
    match (&error, errno(&error)) {
        (ProgramError::Btf(_), _) if is_function => TracerError::NoFunction { hook },
        (_, Some(libc::EPERM | libc::EACCES)) if is_function => TracerError::FunctionRefused { hook, source: error },
        (_, Some(libc::EPERM)) => TracerError::Forbidden {
            what: format!("the eBPF program at {hook}"),
            source: io::Error::other(error),
        },
        (_, Some(libc::ENOENT)) => TracerError::NoTracepoint {
            hook,
            since: hooks.since(),
        },
        _ => TracerError::Program {
            hook,
            source: Box::new(error),
        },
    }
}

/// The kernel's error number, if the error comes from there.
fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        ProgramError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    }
}

/// The same of the whole object.
fn error_number(error: &EbpfError) -> Option<i32> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(error) = this.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        cause = this.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use dunlin_core::pageset::Run;
    use dunlin_core::units::{Bytes, Gfn, Pages};

    use super::super::Region;
    use super::*;

    fn config(pages: u64, mode: Mode) -> Config {
        let region = Region {
            slot: 0,
            address: 0,
            run: Run::new(Gfn(0), Pages(pages)),
        };
        Config {
            process: 1,
            hooks: vec![Hooks::Faults],
            regions: vec![region],
            vcpus: vec![],
            mode,
            repeats: false,
            measure: false,
        }
    }

    /// Ten thousand guests of 512 MiB each, and a buffer for as many.
    #[test]
    fn what_would_take_too_much_is_refused_before_anything_is_allocated() {
        let tables = config(10_000 << 17, Mode::Windows { counts: true });
        let buffer = config(
            1,
            Mode::Stream {
                buffer: Bytes(10_000 << 22),
            },
        );
        for config in [tables, buffer] {
            let error = super::super::Tracer::attach(config).unwrap_err();
            assert!(matches!(error, TracerError::TooLarge { .. }), "{error:?}");
            let words = error.to_string();
            assert!(words.contains("more than") && words.contains("; "), "{words}");
        }
        check_memory(&config(1 << 17, Mode::Windows { counts: true })).unwrap();
    }

    #[test]
    fn buffers_have_sizes_that_the_kernel_takes() {
        assert_eq!(buffer_bytes(0), 4096);
        assert_eq!(buffer_bytes(4097), 8192);
        assert_eq!(buffer_bytes(u64::MAX), LIMIT_BYTES);
    }
}
