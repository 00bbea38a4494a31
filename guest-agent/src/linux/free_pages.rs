//! Which pages the kernel says belong to nobody.
//!
//! /proc/kpageflags has a word of flags for each page frame (Documentation/admin-guide/mm/pagemap.rst); on x86 a guest's page frames are what
//! its host calls guest frame numbers. A free page shows as `BUDDY`, whichever part of a free block it is (fs/proc/page.c,
//! stable_page_flags), one that a balloon driver has taken as `OFFLINE`, called `BALLOON` before Linux 5.1. Both are read as they are at
//! that moment; the kernel may use the page in the next.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use dunlin_agent::message::{Refusal, SoftKind};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};

const FLAGS: &str = "/proc/kpageflags";
const BUDDY: u64 = 1 << 10;
const OFFLINE: u64 = 1 << 23;
/// Frames that are read at a time: 64 KiB of flags, for 32 MiB of memory.
const CHUNK: usize = 8192;
/// Runs that are shorter are not worth their words: they take as long to tell as a part of a page to send.
const SHORTEST: u64 = 2;

/// A look at the flags of some frames.
#[derive(Debug)]
pub(super) struct FreePages {
    file: Option<File>,
    poisoned: bool,
    /// The frames from `first` on.
    chunk: Box<[u8]>,
    first: u64,
    count: usize,
}

impl FreePages {
    pub(super) fn new() -> Self {
        let parameters = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        Self {
            file: File::open(FLAGS).ok(),
            poisoned: is_poisoned(&parameters),
            chunk: vec![0; CHUNK * 8].into_boxed_slice(),
            first: 0,
            count: 0,
        }
    }

    /// Whether there will be any hints.
    pub(super) fn can(&self) -> bool {
        self.file.is_some() && !self.poisoned && is_like_the_host()
    }

    pub(super) fn begin(&mut self) -> Result<(), Refusal> {
        self.count = 0;
        match self.file {
            _ if !is_like_the_host() => Err(Refusal::Unlike),
            None => Err(Refusal::Hidden),
            Some(_) if self.poisoned => Err(Refusal::Poisoned),
            Some(_) => Ok(()),
        }
    }

    /// As [`Guest::next_soft`](dunlin_agent::guest::Guest::next_soft): no run if there is none in the frames that were read last.
    pub(super) fn next(&mut self, from: Gfn) -> Option<(Option<(Run, SoftKind)>, Gfn)> {
        if !(self.first..self.first + self.count as u64).contains(&from.0) {
            self.read(from.0)?;
        }
        let kinds = |from: u64| {
            let words = self.chunk.as_chunks::<8>().0[..self.count].iter();
            let skipped = (from - self.first) as usize;
            words.skip(skipped).map(|word| kind(u64::from_le_bytes(*word)))
        };
        let end = self.first + self.count as u64;
        let mut at = from.0;
        while at < end {
            let free = kinds(at).position(|kind| kind.is_some());
            let Some(skipped) = free else { break };
            let first = at + skipped as u64;
            let kind = kinds(first).next().flatten()?;
            let pages = kinds(first).take_while(|other| *other == Some(kind)).count() as u64;
            at = first + pages;
            if pages >= SHORTEST {
                return Some((Some((Run::new(Gfn(first), Pages(pages)), kind)), Gfn(at)));
            }
        }
        Some((None, Gfn(end)))
    }

    fn read(&mut self, first: u64) -> Option<()> {
        let offset = first.checked_mul(8)?;
        let read = self.file.as_ref()?.read_at(&mut self.chunk, offset).ok()?;
        (self.first, self.count) = (first, read / 8);
        (self.count > 0).then_some(())
    }
}

const fn kind(flags: u64) -> Option<SoftKind> {
    if flags & BUDDY != 0 {
        Some(SoftKind::Free)
    } else if flags & OFFLINE != 0 {
        Some(SoftKind::Balloon)
    } else {
        None
    }
}

/// Whether free pages are filled with a pattern that is looked at when they are used again (Documentation/admin-guide/kernel-parameters.txt). A
/// kernel that clears them (`init_on_free`) does not mind zeros.
fn is_poisoned(parameters: &str) -> bool {
    let on = |value: &str| matches!(value, "1" | "on" | "y" | "Y");
    let last = parameters
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("page_poison="))
        .next_back();
    last.is_some_and(on)
}

fn is_like_the_host() -> bool {
    cfg!(target_arch = "x86_64") && rustix::param::page_size() == 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(flags: &[u64]) -> FreePages {
        let mut pages = FreePages::new();
        pages.file = None;
        for (word, flags) in pages.chunk.as_chunks_mut::<8>().0.iter_mut().zip(flags) {
            *word = flags.to_le_bytes();
        }
        (pages.first, pages.count) = (100, flags.len());
        pages
    }

    #[test]
    fn runs_are_of_one_kind_and_not_too_short() {
        let mut pages = of(&[0, BUDDY, 0, BUDDY, BUDDY | 1, OFFLINE, OFFLINE, 4, BUDDY, BUDDY]);
        let mut found = vec![];
        let mut at = Gfn(100);
        while let Some((run, next)) = pages.next(at) {
            found.extend(run);
            at = next;
        }
        let run = |first, count| Run::new(Gfn(first), Pages(count));
        assert_eq!(
            found,
            [
                (run(103, 2), SoftKind::Free),
                (run(105, 2), SoftKind::Balloon),
                (run(108, 2), SoftKind::Free)
            ]
        );
        assert_eq!(at, Gfn(110));
    }

    #[test]
    fn poisoned_kernels_are_known_by_their_parameters() {
        assert!(is_poisoned("quiet page_poison=1"));
        assert!(is_poisoned("page_poison=0 page_poison=on"));
        assert!(!is_poisoned("page_poison=1 page_poison=0 init_on_free=1"));
        assert!(!is_poisoned("xpage_poison=1"));
    }
}
