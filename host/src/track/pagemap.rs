//! Written pages of memory that threads of this process write: asynchronous write protection (userfaultfd WP_ASYNC)
//! read by PAGEMAP_SCAN. Linux 6.7.
//!
//! All pages are write-protected. The first write to one takes the protection away, in the kernel and without waiting for
//! anybody; a scan reports the pages without protection and protects them again, each in one step under the page
//! table's lock. So a write is either before that step, and its page is reported, or after it, and is in the next scan.

use std::sync::{Arc, Mutex, PoisonError};

use dunlin_core::units::PAGE_SIZE;

use crate::guest::GuestError;
use crate::memory::pagemap::{CHECK_WP_ASYNC, Pagemap, Query, Region, WRITE_PROTECT, WRITTEN};
use crate::memory::{GuestMemory, Userfaultfd};

/// Ranges that one system call reports; more take more calls.
const REGIONS: usize = 1024;

/// Tracks writes to all RAM of one guest. Writes by the host count like those of the guest.
#[derive(Debug)]
pub struct PagemapTracker {
    memory: Arc<GuestMemory>,
    // Held so that the protection lasts.
    _protection: Userfaultfd,
    pagemap: Pagemap,
    scratch: Mutex<Vec<Region>>,
}

impl PagemapTracker {
    /// Starts tracking. Ends when the value is dropped.
    ///
    /// # Errors
    /// [`GuestError::TrackingUserfaultfd`], [`GuestError::Tracking`] where the kernel cannot do it.
    pub fn start(memory: Arc<GuestMemory>) -> Result<Self, GuestError> {
        let protection = Userfaultfd::open_write_protection(memory.clone())?;
        let pagemap = Pagemap::open().map_err(|source| GuestError::Tracking {
            call: "open(/proc/self/pagemap)",
            source,
        })?;
        protection.write_protect()?;
        Ok(Self {
            memory,
            _protection: protection,
            pagemap,
            scratch: Mutex::new(vec![Region::default(); REGIONS]),
        })
    }

    /// ORs the pages written since the last harvest into `dirty` and protects them again.
    ///
    /// # Errors
    /// [`GuestError::Tracking`]; pages may then have been protected without being reported.
    ///
    /// # Panics
    /// If `dirty` is shorter than the layout's words.
    pub fn harvest(&self, dirty: &mut [u64]) -> Result<(), GuestError> {
        assert!(
            dirty.len() >= self.memory.layout().words(),
            "the bitmap is shorter than guest memory"
        );
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let query = Query {
            flags: WRITE_PROTECT | CHECK_WP_ASYNC,
            any_of: WRITTEN,
            also: 0,
        };
        for region in self.memory.layout().regions() {
            let base = self.memory.host_address(region.first);
            let end = base + region.count.bytes().0;
            self.pagemap
                .scan(base, end, query, &mut scratch, |found| {
                    let first = region.first.0 + (found.start - base) / PAGE_SIZE;
                    set_bits(dirty, first, region.first.0 + (found.end - base) / PAGE_SIZE);
                })
                .map_err(|source| GuestError::Tracking {
                    call: "ioctl(PAGEMAP_SCAN)",
                    source,
                })?;
        }
        Ok(())
    }
}

/// Sets the bits `first..end`.
pub(crate) fn set_bits(words: &mut [u64], first: u64, end: u64) {
    let mut bit = first;
    while bit < end {
        let offset = bit % 64;
        let count = (64 - offset).min(end - bit);
        let index = usize::try_from(bit / 64).expect("an index of the bitmap");
        words[index] |= (u64::MAX >> (64 - count)) << offset;
        bit += count;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use dunlin_core::units::{Gfn, Pages};

    use super::*;
    use crate::memory::tests::{memory, run};
    use crate::memory::{MemoryLayout, Run};

    const MIB: u64 = 1 << 20;

    /// A tracker, or a word about the kernel that has none.
    fn tracker(memory: &Arc<GuestMemory>) -> Option<PagemapTracker> {
        match PagemapTracker::start(memory.clone()) {
            Ok(tracker) => Some(tracker),
            Err(error) => {
                let name = std::thread::current().name().unwrap_or("a test").to_owned();
                let required = std::env::var("DUNLIN_REQUIRE").is_ok_and(|list| list.split(',').any(|it| it == "uffd"));
                assert!(!required, "{name}: {error:?}");
                println!("SKIP {name}: {error}");
                None
            }
        }
    }

    fn pages(words: &[u64]) -> Vec<u64> {
        (0..words.len() as u64 * 64)
            .filter(|bit| words[(bit / 64) as usize] >> (bit % 64) & 1 == 1)
            .collect()
    }

    fn harvest(tracker: &PagemapTracker, layout: &MemoryLayout) -> Vec<u64> {
        let mut words = vec![0; layout.words()];
        tracker.harvest(&mut words).unwrap();
        pages(&words)
    }

    #[test]
    fn a_run_of_bits_is_set_and_no_other() {
        for (first, end) in [(0, 0), (0, 1), (63, 65), (64, 128), (3, 190), (0, 192), (191, 192)] {
            let mut words = [0; 3];
            set_bits(&mut words, first, end);
            assert_eq!(pages(&words), (first..end).collect::<Vec<_>>());
        }
    }

    #[test]
    fn each_write_is_harvested_once_wherever_it_lies() {
        let memory = Arc::new(memory(4100 * MIB));
        memory.populate(run(0, 64)).unwrap();
        let Some(tracker) = tracker(&memory) else { return };
        assert_eq!(harvest(&tracker, memory.layout()), [0u64; 0]);
        // Populated and not, read before and not, on both sides of the hole.
        assert_eq!(memory.read_u64(70 * PAGE_SIZE), 0);
        let written = [3, 4, 63, 70, 1000, 0xfedff, 0xfee40, memory.end_gfn().0 - 1];
        for gfn in written {
            memory.write_u64(gfn * PAGE_SIZE + 8, 1);
        }
        assert_eq!(harvest(&tracker, memory.layout()), written);
        assert_eq!(harvest(&tracker, memory.layout()), [0u64; 0]);
        memory.write_u64(4 * PAGE_SIZE, 2);
        memory.write(5 * PAGE_SIZE, b"by the host").unwrap();
        memory.discard(run(70, 1)).unwrap();
        memory.write_u64(70 * PAGE_SIZE, 2);
        assert_eq!(harvest(&tracker, memory.layout()), [4, 5, 70]);
        drop(tracker);
        memory.write_u64(0, 1);
    }

    #[test]
    fn many_scattered_pages_need_several_calls() {
        let memory = Arc::new(memory(64 * MIB));
        let Some(tracker) = tracker(&memory) else { return };
        let written: Vec<u64> = (0..64 * 256).step_by(3).collect();
        assert!(written.len() > 4 * REGIONS);
        for gfn in &written {
            memory.write_u64(gfn * PAGE_SIZE, 1);
        }
        assert_eq!(harvest(&tracker, memory.layout()), written);
    }

    /// Copies what each harvest names while a thread writes at random; after the last harvest nothing may differ.
    #[test]
    fn nothing_written_during_harvests_is_missed() {
        let (source, copy) = (Arc::new(memory(16 * MIB)), memory(16 * MIB));
        let whole = Run::new(Gfn(0), Pages(16 * 256));
        let Some(tracker) = tracker(&source) else { return };
        let mut buffer = vec![0; 4096];
        let mut transfer = |gfn: u64| {
            source.copy_run(run(gfn, 1), &mut buffer).unwrap();
            copy.write_run(run(gfn, 1), &buffer).unwrap();
        };
        let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = 1u64;
                while !stop.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let address = (state >> 20) % (16 * MIB / 8) * 8;
                    source.write_u64(address, source.read_u64(address).wrapping_add(state));
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
            // Enough that every page has been written often, whatever the pace.
            while writes.load(Ordering::Relaxed) < 40 * 16 * 256 {
                harvest(&tracker, source.layout()).into_iter().for_each(&mut transfer);
            }
            stop.store(true, Ordering::Relaxed);
        });
        harvest(&tracker, source.layout()).into_iter().for_each(&mut transfer);
        let pages = whole.count.0;
        let differing: Vec<u64> = (0..pages)
            .filter(|gfn| source.hash_page(Gfn(*gfn)).unwrap() != copy.hash_page(Gfn(*gfn)).unwrap())
            .collect();
        assert_eq!(differing, [0; 0]);
    }
}
