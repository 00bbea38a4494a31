//! Which pages have memory of the host behind them: giving it, taking it away, asking.

use std::io;

use dunlin_core::units::{Bytes, Gfn, PAGE_SIZE, Pages};

use super::pagemap::{self, PRESENT, Query, Region, SWAPPED};
use super::ram::succeeded;
use super::{GuestMemory, MemoryError, Run};

/// Most ranges that one process_madvise(2) takes (UIO_MAXIOV).
const RANGES: usize = 1024;
/// This process, as process_madvise(2) knows it (PIDFD_SELF_THREAD_GROUP, Linux 6.14).
const THIS_PROCESS: libc::c_int = -10001;

impl GuestMemory {
    /// Gives the pages host memory now, zeroed where they had none. Must not be used on pages that userfaultfd watches:
    /// it would wait for the fault handler; and pages so populated never fault again.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`]; [`MemoryError::Populate`] when the host has no memory left.
    pub fn populate(&self, run: Run) -> Result<(), MemoryError> {
        let pointer = self.run_pointer(run)?;
        loop {
            let result = advise(pointer, run, libc::MADV_POPULATE_WRITE);
            match result {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Before Linux 5.14; the pages then come when they are written.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                Err(source) => {
                    return Err(MemoryError::Populate {
                        first: run.first,
                        count: run.count,
                        source,
                    });
                }
            }
        }
    }

    /// As [`populate`](Self::populate), with huge pages where the run covers them whole: for memory that will not be
    /// watched by userfaultfd, which installs small pages.
    ///
    /// # Errors
    /// As [`populate`](Self::populate).
    pub fn populate_huge(&self, run: Run) -> Result<(), MemoryError> {
        const HUGE: usize = 2 << 20;
        let pointer = self.run_pointer(run)?;
        let skipped = pointer.align_offset(HUGE);
        let bytes = usize::try_from(run.count.bytes().0).expect("bounded by the layout");
        if skipped < bytes && bytes - skipped >= HUGE {
            let whole = Run {
                first: Gfn(run.first.0 + skipped as u64 / PAGE_SIZE),
                count: Pages((bytes - skipped) as u64 / HUGE as u64 * (HUGE as u64 / PAGE_SIZE)),
            };
            // A kernel without huge pages, or one that has enough of separate ranges, gives small pages.
            let _ = advise(self.run_pointer(whole)?, whole, libc::MADV_HUGEPAGE);
        }
        self.populate(run)
    }

    /// Drops the pages: they read as zero, or fault as missing where userfaultfd watches.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`], [`MemoryError::Kernel`].
    pub fn discard(&self, run: Run) -> Result<(), MemoryError> {
        let pointer = self.run_pointer(run)?;
        advise(pointer, run, libc::MADV_DONTNEED).map_err(|source| MemoryError::Kernel {
            call: "madvise(MADV_DONTNEED)",
            first: run.first,
            count: run.count,
            source,
        })
    }

    /// Drops the pages of many runs. With Linux 6.14 a thousand of them take one system call, half as long as one by one.
    ///
    /// # Errors
    /// As [`discard`](Self::discard); then some of the runs may have been dropped.
    pub fn discard_runs(&self, runs: &[Run]) -> Result<(), MemoryError> {
        runs.iter().try_for_each(|run| self.check(*run))?;
        let mut ranges = Vec::with_capacity(runs.len().min(RANGES));
        for batch in runs.chunks(RANGES) {
            ranges.clear();
            for run in batch {
                let iov_len = usize::try_from(run.count.bytes().0).expect("bounded by the layout");
                ranges.push(libc::iovec {
                    iov_base: self.run_pointer(*run)?.cast(),
                    iov_len,
                });
            }
            let bytes: usize = ranges.iter().map(|range| range.iov_len).sum();
            // SAFETY: every range is RAM of this memory, of which no reference exists; the call affects this process only.
            let advised = unsafe {
                let (ranges, count) = (ranges.as_ptr(), ranges.len());
                libc::syscall(
                    libc::SYS_process_madvise,
                    THIS_PROCESS,
                    ranges,
                    count,
                    libc::MADV_DONTNEED,
                    0,
                )
            };
            // Dropping again what was dropped changes nothing.
            if usize::try_from(advised) != Ok(bytes) {
                batch.iter().try_for_each(|run| self.discard(*run))?;
            }
        }
        Ok(())
    }

    /// How many pages of the run have host memory behind them, be it the shared zero page or swap: these would not
    /// fault as missing. Costs nothing per page where whole page tables are empty. A page under the asynchronous write
    /// protection of [`track`](crate::track) may count although it is absent.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`], [`MemoryError::Kernel`].
    pub fn present_pages(&self, run: Run) -> Result<Pages, MemoryError> {
        let pointer = self.run_pointer(run)?;
        pagemap::present(self.pagemap(), pointer as u64, run.count).map_err(|(call, source)| MemoryError::Kernel {
            call,
            first: run.first,
            count: run.count,
            source,
        })
    }

    /// The first page of these ascending runs that has host memory behind it, as in [`present_pages`](Self::present_pages);
    /// `None` when every one of them would fault as missing. One question for all runs, so their number hardly matters.
    ///
    /// # Errors
    /// As `present_pages`.
    pub fn first_present(&self, runs: &[Run]) -> Result<Option<Gfn>, MemoryError> {
        runs.iter().try_for_each(|run| self.check(*run))?;
        for region in self.layout().regions() {
            let inside = |run: &&Run| run.first >= region.first && run.first < region.end() && !run.is_empty();
            let runs: Vec<Run> = runs.iter().filter(inside).copied().collect();
            if let Some(gfn) = self.first_present_in_region(&runs)? {
                return Ok(Some(gfn));
            }
        }
        Ok(None)
    }

    fn first_present_in_region(&self, runs: &[Run]) -> Result<Option<Gfn>, MemoryError> {
        let ([first, ..], [.., last], Some(pagemap)) = (runs, runs, self.pagemap()) else {
            return self.first_present_one_by_one(runs);
        };
        let (start, end) = (self.host_address(first.first), self.host_address(last.end()));
        let query = Query {
            flags: 0,
            any_of: PRESENT | SWAPPED,
            also: 0,
        };
        let mut regions = [Region::default(); 256];
        let (mut rest, mut present) = (runs, None);
        let scanned = pagemap.scan(start, end, query, &mut regions, |found| {
            let gfn = |address| Gfn(first.first.0 + (address - start) / PAGE_SIZE);
            let (begin, end) = (gfn(found.start), gfn(found.end));
            while let Some(run) = rest.first().filter(|run| run.end() <= begin) {
                debug_assert!(run.first <= begin, "runs ascend");
                rest = &rest[1..];
            }
            if let Some(run) = rest.first().filter(|run| run.first < end) {
                present.get_or_insert(run.first.max(begin));
            }
        });
        match scanned {
            Ok(()) => Ok(present),
            // A kernel without PAGEMAP_SCAN.
            Err(_) => self.first_present_one_by_one(runs),
        }
    }

    fn first_present_one_by_one(&self, runs: &[Run]) -> Result<Option<Gfn>, MemoryError> {
        for run in runs {
            if self.present_pages(*run)? > Pages::ZERO {
                for gfn in run.first.0..run.end().0 {
                    if self.present_pages(Run::new(Gfn(gfn), Pages(1)))? > Pages::ZERO {
                        return Ok(Some(Gfn(gfn)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// RAM of the guest that has host memory behind it.
    ///
    /// # Errors
    /// [`MemoryError::Kernel`].
    pub fn resident(&self) -> Result<Bytes, MemoryError> {
        let mut pages = Pages::ZERO;
        for region in self.layout().regions() {
            pages = pages.saturating_add(self.present_pages(*region)?);
        }
        Ok(pages.bytes())
    }

    /// Allows transparent huge pages again, for memory that is complete.
    ///
    /// # Errors
    /// [`MemoryError::Kernel`]. A kernel without transparent huge pages is no error.
    pub fn allow_huge_pages(&self) -> Result<(), MemoryError> {
        self.advise_mapping(libc::MADV_HUGEPAGE).or_else(|source| {
            if source.raw_os_error() == Some(libc::EINVAL) {
                return Ok(());
            }
            let count = Pages(self.end_gfn().0);
            Err(MemoryError::Kernel {
                call: "madvise(MADV_HUGEPAGE)",
                first: Gfn(0),
                count,
                source,
            })
        })
    }
}

/// `madvise` on a run whose pointer came from `run_pointer`.
fn advise(pointer: *mut u8, run: Run, advice: libc::c_int) -> io::Result<()> {
    let len = usize::try_from(run.count.bytes().0).expect("bounded by the layout");
    // SAFETY: the caller's pointer and run were checked against the mapping. DONTNEED and POPULATE change the content
    // of guest memory, of which no reference exists.
    succeeded(unsafe { libc::madvise(pointer.cast(), len, advice) })
}
