//! What can go wrong with guest memory.

use std::io;

use dunlin_core::units::{Bytes, Gfn, Pages};

/// Why guest memory could not be described, mapped or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A guest without memory.
    #[error("A guest needs memory; give a size such as 512MiB")]
    Zero,

    /// The size ends within a page.
    #[error("Guest memory of {bytes} bytes ends within a page; give a multiple of 4096")]
    PartialPage {
        /// The size asked for.
        bytes: Bytes,
    },

    /// More than can be mapped.
    #[error("Guest memory of {bytes} bytes is more than the {limit} this host can describe; give less")]
    TooLarge {
        /// The size asked for.
        bytes: Bytes,
        /// The largest size.
        limit: Bytes,
    },

    /// The kernel refused the mapping.
    #[error(
        "Could not reserve {bytes} bytes for guest memory; give less, or check `ulimit -v` and vm.overcommit_memory"
    )]
    Map {
        /// The size asked for.
        bytes: Bytes,
        /// What the kernel said.
        source: io::Error,
    },

    /// Pages that this guest does not have. From the network it means a wrong or hostile peer.
    #[error("Pages {first}+{count} are not RAM of this guest, which ends at page {end}")]
    OutsideRam {
        /// The first page.
        first: Gfn,
        /// How many.
        count: Pages,
        /// One past the guest's last page.
        end: Gfn,
    },

    /// An offset or buffer that does not fit the pages it belongs to.
    #[error("A buffer of {len} bytes does not fit {count} pages of 4096 bytes")]
    BufferLength {
        /// The buffer's length in bytes.
        len: usize,
        /// The pages it was meant for.
        count: Pages,
    },

    /// The host has no memory left for the guest's pages.
    #[error(
        "The host could not provide memory for pages {first}+{count}; free memory, or raise the memory cgroup's limit"
    )]
    Populate {
        /// The first page.
        first: Gfn,
        /// How many.
        count: Pages,
        /// What the kernel said.
        source: io::Error,
    },

    /// A system call on guest memory failed unexpectedly.
    #[error("{call} failed on pages {first}+{count} of guest memory")]
    Kernel {
        /// The system call.
        call: &'static str,
        /// The first page.
        first: Gfn,
        /// How many.
        count: Pages,
        /// What the kernel said.
        source: io::Error,
    },

    /// The dump file could not be written.
    #[error("Could not write guest memory to a file; check free space and permissions")]
    Dump(#[source] io::Error),
}
