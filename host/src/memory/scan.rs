//! Looking at pages: which are zero, what they hash to, the oracle's digest of all RAM.

use std::hash::Hasher;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::atomic::Ordering;

use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use twox_hash::XxHash3_64;

use super::pagemap::{PFN_ZERO, PRESENT, Query, Region, SWAPPED};
use super::ram::PAGE;
use super::{GuestMemory, MemoryError, Run};

/// Guest memory is copied out in pieces of this size where it may not be looked at in place; fits the second-level cache.
const PIECE_PAGES: u64 = 16;
const PIECE: usize = PIECE_PAGES as usize * PAGE;

/// From this many pages on, one question to the kernel is cheaper than touching pages that were never written.
const ASK_KERNEL_FROM: Pages = Pages(8);

/// What all pages of a run have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunClass {
    /// Nothing but zero bytes.
    Zero,
    /// At least one byte that is not zero in each page.
    Data,
}

impl GuestMemory {
    /// Whether the page holds only zeros. A page that does not is usually recognised by its first words.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`].
    pub fn is_zero(&self, gfn: Gfn) -> Result<bool, MemoryError> {
        let page = self.run_pointer(Run {
            first: gfn,
            count: Pages(1),
        })?;
        Ok(page_is_zero(page.cast()))
    }

    /// Splits a run into maximal runs of zero pages and of others, in order, and hands each to `each`. Pages that never
    /// came into being are recognised without touching them.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`].
    pub fn classify_runs(&self, run: Run, mut each: impl FnMut(Run, RunClass)) -> Result<(), MemoryError> {
        let base = self.run_pointer(run)?;
        let mut pending: Option<(Run, RunClass)> = None;
        let mut put = |first: Gfn, count: Pages, class: RunClass| match &mut pending {
            Some((run, last)) if *last == class => run.count.0 += count.0,
            _ => {
                if let Some((run, class)) = pending.replace((Run { first, count }, class)) {
                    each(run, class);
                }
            }
        };
        let look = |first: u64, end: u64, put: &mut dyn FnMut(Gfn, Pages, RunClass)| {
            for index in first..end {
                let offset = usize::try_from(index).expect("bounded by the layout") * PAGE;
                // SAFETY: `index` is below the run's length, and the run is RAM.
                let zero = page_is_zero(unsafe { base.add(offset) }.cast());
                put(
                    Gfn(run.first.0 + index),
                    Pages(1),
                    if zero { RunClass::Zero } else { RunClass::Data },
                );
            }
        };
        let mut done = 0;
        if run.count >= ASK_KERNEL_FROM
            && let Some(pagemap) = self.pagemap()
        {
            let start = base as u64;
            let query = Query {
                flags: 0,
                any_of: PRESENT | SWAPPED,
                also: PFN_ZERO,
            };
            let mut regions = [Region::default(); 256];
            let scanned = pagemap.scan(start, start + run.count.bytes().0, query, &mut regions, |region| {
                let (first, end) = ((region.start - start) / PAGE_SIZE, (region.end - start) / PAGE_SIZE);
                if first > done {
                    put(Gfn(run.first.0 + done), Pages(first - done), RunClass::Zero);
                }
                if region.categories & PFN_ZERO != 0 {
                    put(Gfn(run.first.0 + first), Pages(end - first), RunClass::Zero);
                } else {
                    look(first, end, &mut put);
                }
                done = end;
            });
            // What lies behind the last page that exists is zero; a scan that failed leaves it to be looked at.
            if scanned.is_ok() && done < run.count.0 {
                put(Gfn(run.first.0 + done), Pages(run.count.0 - done), RunClass::Zero);
                done = run.count.0;
            }
        }
        look(done, run.count.0, &mut put);
        if let Some((run, class)) = pending {
            each(run, class);
        }
        Ok(())
    }

    /// What [`hash_page`](Self::hash_page) says of a page of zeros.
    pub fn hash_of_zero_page() -> u64 {
        XxHash3_64::oneshot(&[0; PAGE_SIZE as usize])
    }

    /// XXH3-64 (seed 0) of one page.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`].
    pub fn hash_page(&self, gfn: Gfn) -> Result<u64, MemoryError> {
        self.hash_run(Run {
            first: gfn,
            count: Pages(1),
        })
    }

    /// XXH3-64 (seed 0) of the bytes of a run. While the guest runs it is the hash of *a* copy, which need not be the
    /// one that is sent: to send with a checksum, copy the run out and hash the copy.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`].
    pub fn hash_run(&self, run: Run) -> Result<u64, MemoryError> {
        let base = self.run_pointer(run)?;
        let len = usize::try_from(run.count.bytes().0).expect("bounded by the layout");
        if !self.guest_runs.load(Ordering::Acquire) {
            // SAFETY: the run is RAM, mapped for as long as `self` is borrowed. The guest is stopped, and the host writes
            // a page only from the thread that owns the page's stream, never while it is being hashed; so the bytes do
            // not change. The reference does not outlive this call, and its result is a number that no memory safety
            // rests on.
            return Ok(XxHash3_64::oneshot(unsafe { std::slice::from_raw_parts(base, len) }));
        }
        let mut buffer = [0u8; PIECE];
        let mut hasher = XxHash3_64::with_seed(0);
        self.each_piece(run, &mut buffer, |piece| {
            hasher.write(piece);
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    /// BLAKE3 of all RAM in page order, the hole left out: equal for equal guests, whatever is behind their pages.
    /// Reads every page, so nothing may be missing.
    ///
    /// # Errors
    /// [`MemoryError::Kernel`].
    pub fn blake3(&self) -> Result<blake3::Hash, MemoryError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = [0u8; PIECE];
        let zeros = [0u8; PIECE];
        for region in self.layout().regions() {
            self.each_class(*region, |run, class| match class {
                RunClass::Data => self.each_piece(run, &mut buffer, |piece| {
                    hasher.update(piece);
                    Ok(())
                }),
                RunClass::Zero => {
                    let mut left = run.count.bytes().0;
                    while left > 0 {
                        let step = left.min(PIECE as u64);
                        hasher.update(&zeros[..usize::try_from(step).expect("a piece")]);
                        left -= step;
                    }
                    Ok(())
                }
            })?;
        }
        Ok(hasher.finalize())
    }

    /// Writes all RAM in page order, the hole left out, to `file` from its beginning. Zero pages become holes of the
    /// file. Reads every page, so nothing may be missing.
    ///
    /// # Errors
    /// [`MemoryError::Dump`].
    pub fn dump(&self, file: &mut std::fs::File) -> Result<(), MemoryError> {
        file.set_len(0).map_err(MemoryError::Dump)?;
        file.set_len(self.layout().bytes().0).map_err(MemoryError::Dump)?;
        let mut buffer = [0u8; PIECE];
        let mut before = 0;
        for region in self.layout().regions() {
            self.each_class(*region, |run, class| {
                if class == RunClass::Zero {
                    return Ok(());
                }
                let position = (before + run.first.0 - region.first.0) * PAGE_SIZE;
                file.seek(SeekFrom::Start(position)).map_err(MemoryError::Dump)?;
                self.each_piece(run, &mut buffer, |piece| {
                    file.write_all(piece).map_err(MemoryError::Dump)
                })
            })?;
            before += region.count.0;
        }
        file.flush().map_err(MemoryError::Dump)
    }

    /// [`classify_runs`](Self::classify_runs) with a visitor that can fail; after a failure the rest is not visited.
    fn each_class(
        &self,
        run: Run,
        mut each: impl FnMut(Run, RunClass) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let mut result = Ok(());
        self.classify_runs(run, |run, class| {
            if result.is_ok() {
                result = each(run, class);
            }
        })?;
        result
    }

    fn each_piece(
        &self,
        run: Run,
        buffer: &mut [u8; PIECE],
        mut each: impl FnMut(&[u8]) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < run.count.0 {
            let count = PIECE_PAGES.min(run.count.0 - done);
            let piece = &mut buffer[..usize::try_from(count).expect("a piece") * PAGE];
            self.copy_run(
                Run {
                    first: Gfn(run.first.0 + done),
                    count: Pages(count),
                },
                piece,
            )?;
            each(piece)?;
            done += count;
        }
        Ok(())
    }
}

/// Whether the 4096 bytes at `page`, aligned and mapped, are zero.
fn page_is_zero(page: *const u64) -> bool {
    const WORDS: usize = PAGE / 8;
    const STEP: usize = 16;
    // SAFETY: the caller's pointer is the start of a mapped page and `index` stays below its 512 words; volatile because
    // a guest may write them at the same time.
    let word = |index: usize| unsafe { page.add(index).read_volatile() };
    if [0, 1, WORDS / 2, WORDS - 1].into_iter().any(|index| word(index) != 0) {
        return false;
    }
    (0..WORDS)
        .step_by(STEP)
        .all(|first| (first..first + STEP).fold(0, |bits, index| bits | word(index)) == 0)
}

impl From<MemoryError> for io::Error {
    fn from(error: MemoryError) -> Self {
        let kind = match error {
            MemoryError::Populate { .. } | MemoryError::Map { .. } => io::ErrorKind::OutOfMemory,
            MemoryError::Kernel { .. } | MemoryError::Dump(_) => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
