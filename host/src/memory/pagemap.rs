//! Asking the kernel about page tables: the PAGEMAP_SCAN ioctl (Linux 6.7), with mincore(2) where it is missing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use dunlin_core::units::{PAGE_SIZE, Pages};

// include/uapi/linux/fs.h
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// The page was written since it was last write-protected.
pub(crate) const WRITTEN: u64 = 1 << 1;
/// The page is in memory.
pub(crate) const PRESENT: u64 = 1 << 3;
/// The page is in swap.
pub(crate) const SWAPPED: u64 = 1 << 4;
/// The page is the shared zero page.
pub(crate) const PFN_ZERO: u64 = 1 << 5;
/// Write-protect what matches, in the same step.
pub(crate) const WRITE_PROTECT: u64 = 1 << 0;
/// Fail unless the range is registered for asynchronous write protection.
pub(crate) const CHECK_WP_ASYNC: u64 = 1 << 1;

/// A range of host addresses that matched.
#[repr(C)]
#[derive(Default, Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// What to look for.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    /// `WRITE_PROTECT | CHECK_WP_ASYNC`, or 0.
    pub(crate) flags: u64,
    /// Pages match if they have one of these categories.
    pub(crate) any_of: u64,
    /// Further categories that are reported (and end a region where they change).
    pub(crate) also: u64,
}

const PATH: &str = "/proc/self/pagemap";

/// Opened in advance, for a process that hides its memory.
static OWN: OnceLock<Option<File>> = OnceLock::new();

/// Opens the page tables of this process now, for later, when the kernel may give them to root alone.
pub(crate) fn keep() {
    OWN.get_or_init(|| File::open(PATH).ok());
}

/// The page tables of this process.
#[derive(Debug)]
pub(crate) struct Pagemap(File);

impl Pagemap {
    pub(crate) fn open() -> io::Result<Self> {
        match OWN.get().and_then(Option::as_ref) {
            Some(own) => own.try_clone().map(Self),
            None => File::open(PATH).map(Self),
        }
    }

    /// Calls `found` with each matching range in `start..end`, ascending; `regions` is scratch space.
    pub(crate) fn scan(
        &self,
        start: u64,
        end: u64,
        query: Query,
        regions: &mut [Region],
        mut found: impl FnMut(Region),
    ) -> io::Result<()> {
        let mut start = start;
        while start < end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: query.flags,
                start,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                category_anyof_mask: query.any_of,
                return_mask: query.any_of | query.also,
                ..ScanArgument::default()
            };
            // SAFETY: the kernel reads `argument`, writes its `walk_end`, and writes at most `vec_len` regions to `vec`,
            // which borrows `regions`. Write protection changes no content.
            let count = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            let Ok(count) = usize::try_from(count) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            };
            regions[..count].iter().copied().for_each(&mut found);
            if argument.walk_end <= start {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            start = argument.walk_end;
        }
        Ok(())
    }
}

/// How many of the pages from host address `start` on would not fault as missing. An error names the call.
pub(super) fn present(pagemap: Option<&Pagemap>, start: u64, pages: Pages) -> Result<Pages, (&'static str, io::Error)> {
    let Some(pagemap) = pagemap else {
        return resident(start, pages);
    };
    let mut regions = [Region::default(); 64];
    let mut present = 0;
    let query = Query {
        flags: 0,
        any_of: PRESENT | SWAPPED,
        also: 0,
    };
    let scanned = pagemap.scan(start, start + pages.bytes().0, query, &mut regions, |region| {
        present += (region.end - region.start) / PAGE_SIZE;
    });
    match scanned {
        Ok(()) => Ok(Pages(present)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => resident(start, pages),
        Err(error) => Err(("ioctl(PAGEMAP_SCAN)", error)),
    }
}

/// The same by mincore(2), which does not see pages in swap.
fn resident(start: u64, pages: Pages) -> Result<Pages, (&'static str, io::Error)> {
    const CHUNK: u64 = 4096;
    let mut states = [0u8; CHUNK as usize];
    let mut present = 0;
    let mut done = 0;
    while done < pages.0 {
        let count = CHUNK.min(pages.0 - done);
        let address = (start + done * PAGE_SIZE) as *mut libc::c_void;
        let len = usize::try_from(count * PAGE_SIZE).expect("a chunk");
        // SAFETY: mincore only looks at page tables and writes one byte per page, `count` of them, to `states`.
        if unsafe { libc::mincore(address, len, states.as_mut_ptr()) } != 0 {
            return Err(("mincore", io::Error::last_os_error()));
        }
        let chunk = &states[..usize::try_from(count).expect("a chunk")];
        present += chunk.iter().filter(|state| **state & 1 != 0).count() as u64;
        done += count;
    }
    Ok(Pages(present))
}
