//! Words that this process shares with eBPF programs in the kernel.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapped eBPF array of 64-bit words. Programs change it at any time, atomically.
#[derive(Debug)]
pub(crate) struct SharedWords {
    base: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping belongs to this value, and its words are only accessed atomically.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the array behind `map`, which has `len` words (at least one) and was made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// What mmap(2) says: the array is of another kind or shorter.
    pub(crate) fn map(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else is affected. The kernel refuses a length
        // beyond the array's last page.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len * size_of::<u64>(),
                protection,
                MapFlags::SHARED,
                map,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { base, len })
    }

    /// The words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `len` aligned words and lasts as long as `self`; whoever else writes them does it with single
        // 64-bit instructions.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this length, and no slice of it outlives `self`.
        let result = unsafe { munmap(self.base.as_ptr().cast(), self.len * size_of::<u64>()) };
        debug_assert!(result.is_ok(), "a mapping of one's own can be removed");
    }
}
