//! Page writes of a virtual machine, seen by eBPF programs in the kernel, in order and with the thread that made them.
//!
//! [`Tracer::attach`] loads the programs that this crate carries, for one process and its guest memory, and attaches one or
//! more families of [`Hooks`]. What they see either streams through a ring buffer ([`Mode::Stream`], [`Tracer::drain`]) or is
//! gathered in tables in the kernel ([`Mode::Windows`], [`Tracer::turn_over`]), which costs less for recordings that take
//! hours. Nothing is pinned: when the tracer is dropped, or its process killed, everything is gone.
//!
//! Whatever was not seen is counted ([`Tracer::counters`]), and what tracing cost is measured ([`Tracer::overhead`]).

mod btf;
mod config;
mod counters;
mod error;
mod load;
pub mod privilege;
mod stream;
mod tables;
mod tracer;

pub use config::{Config, Hooks, Mode, Region};
pub use counters::{Counters, Overhead, ProgramTime};
pub use error::TracerError;
pub use tracer::Tracer;
