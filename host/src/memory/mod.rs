//! Guest RAM: mapping, reading, sending, receiving, installing and dropping its pages.
//!
//! A guest writes its memory whenever it runs, so while it can run no reference to that memory is formed: everything goes
//! through raw pointers, volatile accesses, or the kernel. A copy taken while the guest runs may be torn; whoever takes one
//! has cleared the page's dirty bit first, so the page is sent again.

mod error;
mod fill;
mod layout;
pub(crate) mod pagemap;
mod ram;
mod residency;
mod scan;
mod shared_words;
mod transfer;
mod userfaultfd;

pub use error::MemoryError;
pub use layout::{HOLE_FIRST, HOLE_PAGES, MAX_BYTES, MemoryLayout};
pub use ram::GuestMemory;
pub use scan::RunClass;
pub(crate) use shared_words::SharedWords;
pub use transfer::Part;
pub use userfaultfd::{Fault, FaultOrigin, Installed, Userfaultfd, UserfaultfdError};

pub use dunlin_core::pageset::Run;

#[cfg(test)]
pub(crate) mod tests;
