//! What can go wrong with tracing.

use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use dunlin_core::record::REGIONS_MAX;
use dunlin_core::units::Pages;

use crate::report::bytes;

/// Why a guest cannot be traced by eBPF.
#[derive(Debug, thiserror::Error)]
pub enum TracerError {
    /// Privileges are missing.
    #[error(
        "Tracing by eBPF needs {missing}, which this process lacks; run it as root, or once: sudo setcap {} {program}",
        super::privilege::GRANT
    )]
    Denied {
        /// Names of the capabilities.
        missing: String,
        /// The program that is to get them.
        program: String,
    },

    /// The kernel refused although the capabilities are there.
    #[error(
        "The kernel refused {what} in spite of all capabilities; a container or a security module may forbid eBPF (lockdown=confidentiality, seccomp, SELinux): run outside of it"
    )]
    Forbidden {
        /// What was asked of it.
        what: String,
        /// What it said.
        source: io::Error,
    },

    /// The numbers of processes seen here are not those that the kernel uses.
    #[error(
        "This process runs in a PID namespace of its own, where numbers of processes are not those that eBPF programs see; run it in the host's (docker run --pid=host)"
    )]
    PidNamespace,

    /// No hook at all.
    #[error("Nothing to trace was named; name at least one family of hooks")]
    NoHooks,

    /// Two families that both see writes would report each twice.
    #[error("{first} and {second} both see writes, so that each would be reported twice; trace one at a time")]
    TwoWriteSources {
        /// One.
        first: &'static str,
        /// The other.
        second: &'static str,
    },

    /// A tracepoint does not exist.
    #[error("This kernel has no tracepoint {hook}; load the kvm module, or use a kernel with {since}")]
    NoTracepoint {
        /// Its name.
        hook: &'static str,
        /// What has it.
        since: &'static str,
    },

    /// An old `kvm_page_fault`.
    #[error(
        "kvm_page_fault of this kernel has {parameters} parameters, not 3: it is older than Linux 6.1 and its first one means something else; use a newer kernel, or trace page faults or the dirty ring"
    )]
    OldPageFault {
        /// How many it has.
        parameters: u32,
    },

    /// The kernel does not say what parameters `kvm_page_fault` has.
    #[error(
        "The kernel's type information does not describe kvm_page_fault, so that it cannot be told from the one before Linux 6.1; use a kernel with CONFIG_DEBUG_INFO_BTF and CONFIG_DEBUG_INFO_BTF_MODULES"
    )]
    UnknownPageFault,

    /// A function cannot be traced.
    #[error(
        "The kernel refuses to trace its function {hook}; boot without lockdown=integrity (secure boot may turn it on), or trace tracepoints"
    )]
    FunctionRefused {
        /// Its name.
        hook: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },

    /// A function is in a module, or is not there.
    #[error(
        "The kernel's own type information has no function {hook}; it is in a module (functions of modules cannot be traced), inlined, or of another kernel version: trace tracepoints"
    )]
    NoFunction {
        /// Its name.
        hook: &'static str,
    },

    /// More runs of memory than the programs can tell apart.
    #[error("The guest's memory lies in {runs} runs; at most {REGIONS_MAX} can be traced: name the largest")]
    Regions {
        /// How many there are.
        runs: usize,
    },

    /// A run of memory that is none.
    #[error("Guest memory of {pages} pages at frame {first} is no memory (empty, or beyond the last frame)")]
    Region {
        /// Its first frame.
        first: u64,
        /// Its length.
        pages: u64,
    },

    /// Tables or buffer would take too much memory.
    #[error(
        "{what} would take {} of kernel memory, more than the {} that are allowed; {advice}",
        bytes(*needed),
        bytes(*limit)
    )]
    TooLarge {
        /// What would.
        what: String,
        /// How much, in bytes.
        needed: u64,
        /// How much may be, in bytes.
        limit: u64,
        /// What to do.
        advice: &'static str,
    },

    /// The tables are for another kind of recording.
    #[error("This tracer was attached for {attached}, not for {asked}")]
    Mode {
        /// What it is for.
        attached: &'static str,
        /// What was asked of it.
        asked: &'static str,
    },

    /// The caller's table is too short.
    #[error("A table of {len} words was given for {pages} pages")]
    TableLength {
        /// Its length.
        len: usize,
        /// The pages of guest memory up to the last frame.
        pages: Pages,
    },

    /// The object could not be loaded.
    #[error(
        "The eBPF object in this program cannot be loaded; rebuild it with `cargo xtask build`, or use a newer kernel"
    )]
    Load(#[source] Box<EbpfError>),

    /// A program could not be loaded or attached.
    #[error("The kernel does not accept the eBPF program at {hook}; please report this with the kernel's version")]
    Program {
        /// Where it was to be attached.
        hook: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
    },

    /// The object lacks something.
    #[error("The eBPF object in this program has no {0}: a fault of the build; rebuild it with `cargo xtask build`")]
    Incomplete(&'static str),

    /// A table of the programs cannot be read.
    #[error("The eBPF programs' {what} cannot be read")]
    Map {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },

    /// A table of the programs cannot be shared.
    #[error("The eBPF programs' {what} cannot be mapped")]
    Mapping {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
