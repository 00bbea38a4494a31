//! The mapping itself, single accesses, copies in and out.

use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

use super::pagemap::Pagemap;
use super::{MemoryError, MemoryLayout, Run};

pub(super) const PAGE: usize = PAGE_SIZE as usize;

/// The RAM of one guest: an anonymous private mapping of guest-physical `0..end_gfn`.
///
/// Nothing is reserved or touched when it is made; pages come into being when they are first written. Transparent
/// huge pages are off, so that each page can be missing by itself. The hole of the layout is mapped without access.
#[derive(Debug)]
pub struct GuestMemory {
    base: NonNull<u8>,
    mapped: usize,
    layout: MemoryLayout,
    /// Set while a guest may write; decides whether memory may be looked at in place.
    pub(super) guest_runs: AtomicBool,
    pagemap: OnceLock<Option<Pagemap>>,
}

// SAFETY: the mapping belongs to this value alone and lives as long as it does. Access goes through raw pointers
// (but for `hash_run`, which says why it may look at a stopped guest in place), bytes have no invariants, and a racing
// guest or thread can at worst make a copy torn.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; no method relies on exclusive access.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps memory of this layout; all of it reads as zero.
    ///
    /// # Errors
    /// [`MemoryError::Map`] when the kernel refuses.
    pub fn new(layout: MemoryLayout) -> Result<Self, MemoryError> {
        let bytes = Pages(layout.end_gfn().0).bytes();
        let map_error = |source| MemoryError::Map { bytes, source };
        let mapped = usize::try_from(bytes.0).expect("bounded by the layout");
        // SAFETY: a new anonymous mapping at an address the kernel chooses touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(map_error(io::Error::last_os_error()));
        }
        let base = NonNull::new(address.cast::<u8>()).ok_or_else(|| map_error(io::Error::last_os_error()))?;
        let memory = Self {
            base,
            mapped,
            layout,
            guest_runs: AtomicBool::new(false),
            pagemap: OnceLock::new(),
        };
        memory.advise_mapping(libc::MADV_NOHUGEPAGE).or_else(|error| {
            // A kernel built without transparent huge pages does not know the advice and needs none.
            if error.raw_os_error() == Some(libc::EINVAL) {
                Ok(())
            } else {
                Err(map_error(error))
            }
        })?;
        // Never in a core dump, whoever asks for one.
        memory.advise_mapping(libc::MADV_DONTDUMP).map_err(map_error)?;
        memory.close_hole().map_err(map_error)?;
        Ok(memory)
    }

    /// Where RAM lies.
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// One past the last RAM page.
    pub fn end_gfn(&self) -> Gfn {
        self.layout.end_gfn()
    }

    /// Told by the guest before its vCPUs start and after they have stopped.
    pub(crate) fn set_guest_runs(&self, runs: bool) {
        self.guest_runs.store(runs, Ordering::SeqCst);
    }

    /// The process's page tables, if the kernel shows them.
    pub(super) fn pagemap(&self) -> Option<&Pagemap> {
        self.pagemap.get_or_init(|| Pagemap::open().ok()).as_ref()
    }

    /// Host virtual address of guest-physical 0, for the kernel's tables (KVM slots, userfaultfd ranges).
    pub(crate) fn host_address(&self, gfn: Gfn) -> u64 {
        self.base.as_ptr() as u64 + gfn.0 * PAGE_SIZE
    }

    /// The page a host virtual address lies in, if it is RAM.
    pub(crate) fn gfn_of(&self, address: u64) -> Option<Gfn> {
        let gfn = Gfn(address.checked_sub(self.base.as_ptr() as u64)? / PAGE_SIZE);
        self.layout
            .contains(Run {
                first: gfn,
                count: Pages(1),
            })
            .then_some(gfn)
    }

    /// Checks that `run` is RAM.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`].
    pub fn check(&self, run: Run) -> Result<(), MemoryError> {
        if self.layout.contains(run) {
            return Ok(());
        }
        Err(MemoryError::OutsideRam {
            first: run.first,
            count: run.count,
            end: self.end_gfn(),
        })
    }

    /// Pointer to the first byte of a run that is RAM in all its length.
    pub(super) fn run_pointer(&self, run: Run) -> Result<*mut u8, MemoryError> {
        self.check(run)?;
        let offset = usize::try_from(run.first.0 * PAGE_SIZE).expect("bounded by the layout");
        // SAFETY: the run lies in the layout, so the offset is inside the mapping (or one past it, for an empty run).
        Ok(unsafe { self.base.as_ptr().add(offset) })
    }

    /// Pointer to `len` bytes at a guest-physical address, all of them RAM.
    fn bytes_pointer(&self, address: u64, len: usize) -> Result<*mut u8, MemoryError> {
        let within = address % PAGE_SIZE;
        let first = Gfn(address / PAGE_SIZE);
        let count = Pages(within.saturating_add(len as u64).div_ceil(PAGE_SIZE));
        let pointer = self.run_pointer(Run { first, count })?;
        // SAFETY: `within` is less than one page and the run covers it, or the run is empty and so is `within + len`.
        Ok(unsafe { pointer.add(usize::try_from(within).expect("less than a page")) })
    }

    /// Reads eight bytes at a guest-physical address, as the guest would: little-endian, in one access.
    ///
    /// # Panics
    /// If the address is not RAM or not a multiple of 8. Addresses from outside are checked before.
    pub fn read_u64(&self, address: u64) -> u64 {
        u64::from_le(
            // SAFETY: `word` hands out a pointer to eight aligned bytes of the mapping; volatile because a guest may
            // write them at the same time.
            unsafe { self.word(address).read_volatile() },
        )
    }

    /// Writes eight bytes at a guest-physical address in one access. KVM's tracking does not see it: whoever writes into
    /// a guest that is being moved marks the page dirty too.
    ///
    /// # Panics
    /// If the address is not RAM or not a multiple of 8.
    pub fn write_u64(&self, address: u64, value: u64) {
        // SAFETY: as in `read_u64`.
        unsafe { self.word(address).write_volatile(value.to_le()) }
    }

    fn word(&self, address: u64) -> *mut u64 {
        assert!(
            address.is_multiple_of(8),
            "guest-physical address {address:#x} is no multiple of 8"
        );
        match self.bytes_pointer(address, 8) {
            Ok(pointer) => pointer.cast(),
            Err(_) => panic!("guest-physical address {address:#x} is no RAM of this guest"),
        }
    }

    /// Copies bytes out of guest memory.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`].
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.bytes_pointer(address, into.len())?;
        // SAFETY: source and length were checked against the mapping; the destination is host memory, so disjoint.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies bytes into guest memory. KVM's tracking does not see it (as for [`write_u64`](Self::write_u64)).
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`].
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let into = self.bytes_pointer(address, from.len())?;
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    /// Copies whole pages out; `into` must be exactly as long as they are.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`], [`MemoryError::BufferLength`].
    pub fn copy_run(&self, run: Run, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.run_pointer(run)?;
        if into.len() as u64 != run.count.bytes().0 {
            return Err(MemoryError::BufferLength {
                len: into.len(),
                count: run.count,
            });
        }
        // SAFETY: the run is RAM and `into` has its length; host memory and guest memory are disjoint.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies whole pages in; `from` must be exactly as long as they are.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`], [`MemoryError::BufferLength`].
    pub fn write_run(&self, run: Run, from: &[u8]) -> Result<(), MemoryError> {
        let into = self.run_pointer(run)?;
        if from.len() as u64 != run.count.bytes().0 {
            return Err(MemoryError::BufferLength {
                len: from.len(),
                count: run.count,
            });
        }
        // SAFETY: as in `copy_run`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    pub(super) fn advise_mapping(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is exactly this value's mapping; the advice passed here only changes huge-page policy, and what dumps have.
        succeeded(unsafe { libc::madvise(self.base.as_ptr().cast(), self.mapped, advice) })
    }

    fn close_hole(&self) -> io::Result<()> {
        let [low, high] = self.layout.regions() else {
            return Ok(());
        };
        let first = low.first.0 + low.count.0;
        let hole = Run {
            first: Gfn(first),
            count: Pages(high.first.0 - first),
        };
        let len = usize::try_from(hole.count.bytes().0).expect("bounded by the layout");
        // SAFETY: the hole lies between two regions, so inside the mapping, and no pointer into it is ever handed out.
        succeeded(unsafe { libc::mprotect(self.host_address(hole.first) as *mut libc::c_void, len, libc::PROT_NONE) })
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length; every user of it borrows or shares this value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

pub(super) fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
