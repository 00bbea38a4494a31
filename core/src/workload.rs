//! Seeded page writers: what a guest does to its memory, the same in every kind of guest.
//!
//! A [`Spec`] says what to run (`uniform,rate=12000,ws=64MiB`), a [`BootBlock`] adds the seed, the number of steps and
//! the shape of the guest, a [`Plan`] says where in guest memory everything lies, and a [`Runner`] per vCPU carries the
//! steps out over any [`Ram`]. The bare-metal payload in a KVM guest, the thread guest and the simulator run this same
//! code, so that after N steps per vCPU every byte of guest RAM is a pure function of the boot block: that is what
//! migrations are checked against. No clock, no addresses of the host and no order of vCPUs enters it.
//!
//! Every page that is written carries a stamp, and a ledger in guest memory knows which stamp to expect: a page that
//! came back stale, torn, swapped or corrupted is named by a [`StampError`] when it is touched again.
//!
//! ```
//! use dunlin_core::units::{Bytes, Pages};
//! use dunlin_core::workload::{BootBlock, Fill, Ram, Runner, Spec};
//!
//! struct Memory(Vec<u64>);
//! impl Ram for Memory {
//!     fn read_u64(&self, address: u64) -> u64 {
//!         self.0[address as usize / 8]
//!     }
//!     fn write_u64(&mut self, address: u64, value: u64) {
//!         self.0[address as usize / 8] = value;
//!     }
//! }
//!
//! let boot = BootBlock {
//!     spec: "zipf:0.99,ws=1MiB".parse::<Spec>()?,
//!     seed: 7,
//!     steps: 1000,
//!     vcpus: 1,
//!     memory: Bytes(4 << 20),
//!     fill: Fill::Zero,
//! };
//! let mut memory = Memory(vec![0; 4 << 17]);
//! let mut runner = Runner::new(&boot, 0)?;
//! while !runner.finished() {
//!     runner.run_batch(&mut memory)?;
//! }
//! assert_eq!(runner.steps(), 1000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod boot;
mod generator;
pub mod layout;
mod pace;
mod parse;
mod plan;
mod random;
mod runner;
mod spec;
mod stamp;
mod zipf;

#[cfg(test)]
mod tests;

pub use boot::{BootBlock, BootError};
pub use generator::{Generator, GeneratorState, Kind, Step};
pub use layout::{Fill, Progress, State};
pub use pace::Pacer;
pub use parse::{SpecError, SpecErrorKind};
pub use plan::{Plan, PlanError};
pub use random::Random;
pub use runner::{ResumeError, Runner, RunnerState, next_free};
pub use spec::{Conduct, MAX_LIFE, MAX_PHASES, Milli, Pattern, Phase, PhaseAt, Spec};
pub use stamp::{StampError, StampErrorKind};
pub use zipf::Zipf;

/// Guest memory as a workload sees it: aligned words by guest-physical address.
///
/// Addresses are multiples of 8 inside the memory the [`Plan`] was made for and outside its hole. Several vCPUs may
/// work on one memory at the same time; each then has its own `Ram`, and no two of them ever write the same 64-byte
/// line.
pub trait Ram {
    /// The word at this address.
    fn read_u64(&self, address: u64) -> u64;

    /// Replaces the word at this address.
    fn write_u64(&mut self, address: u64, value: u64);

    /// The two bytes at this even address, little-endian as all of guest memory. Worth providing where memory can be
    /// read so directly.
    #[inline]
    fn read_u16(&self, address: u64) -> u16 {
        (self.read_u64(address & !7) >> (8 * (address & 6))) as u16
    }

    /// Replaces the two bytes at this even address. Worth providing where memory can be written so directly; the others
    /// in the same word belong to the same vCPU.
    #[inline]
    fn write_u16(&mut self, address: u64, value: u16) {
        let (word, shift) = (address & !7, 8 * (address & 6));
        let rest = self.read_u64(word) & !(0xffff << shift);
        self.write_u64(word, rest | u64::from(value) << shift);
    }

    /// Fills the page that begins at this address with zeros. Worth providing where one instruction does it.
    fn clear_page(&mut self, start: u64) {
        for address in (start..start + crate::units::PAGE_SIZE).step_by(8) {
            self.write_u64(address, 0);
        }
    }
}
