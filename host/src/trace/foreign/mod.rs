//! Guests of other hypervisors: their processes, their vCPUs' threads, their memory, and their dirty log.
//!
//! [`Vmm`] finds what every hypervisor on KVM shows in `/proc`. A QEMU with a QMP socket tells more ([`Qmp`]), and switches its
//! dirty log on for a recording ([`DirtyLogging`]). [`Outside`] records such a guest.

mod error;
mod logging;
mod outside;
mod qmp;
mod vmm;

pub use error::ForeignError;
pub use logging::{DirtyLogging, Measured};
pub use outside::Outside;
pub use qmp::Qmp;
pub use vmm::Vmm;
