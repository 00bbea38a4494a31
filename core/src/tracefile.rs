//! Recorded page writes: what a trace says of itself and what is in it.
//!
//! A trace is a [`Head`] and then [`Item`]s in the order of their times. Two sorts of sources fill it: those that see single
//! writes ([`Item::Write`]), and those that see which pages were written in a window ([`Item::Dirty`], one for each run of pages,
//! closed by an [`Item::WindowEnd`]). Whatever a source missed stands in the trace as well.

mod head;
mod item;

pub use head::{GUEST_NAME_MAX, Head, Resolution, Source, VCPUS_MAX};
pub use item::{Item, VCPU_UNKNOWN};
