//! What a guest knows of its memory, told to whoever moves it.
//!
//! Most of a guest's memory need not move: pages that belong to nobody, and what can be read again. Only its kernel knows which. An *agent* in
//! the guest says so, page by page, over a serial line ([`frame`], [`message`]); [`guest`] is its side, [`host`] the other one.
//!
//! **Hint epochs.** The host switches dirty tracking on, then opens an epoch; the agent names pages that are *soft* at some instant after
//! that: nobody will read them before they are written. Whatever is written later is in the dirty log, so a hint is never wrong about it: it
//! only ever takes a page out of the first full copy, and no page that any reading of the log has shown as written.
//!
//! **Trust.** The agent is part of the guest. If it lies, its own guest loses what it called soft; nothing else can come of it.
//!
//! No allocation, no clock, no unsafe: it runs in a kernel, in a bare-metal payload, and in a host.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod frame;
pub mod guest;
pub mod host;
pub mod message;

#[cfg(test)]
pub(crate) mod tests {
    use dunlin_core::pageset::Run;
    use dunlin_core::units::{Gfn, Pages};
    use heapless::String;

    use crate::guest::Guest;
    use crate::message::{Abilities, Facts, KERNEL_MAX, Notice, Refusal, SoftKind, Work};

    /// A made-up guest.
    pub(crate) struct Made {
        pub(crate) pages: u64,
        pub(crate) refuses: Option<Refusal>,
    }

    impl Made {
        /// Whose even pages are free.
        pub(crate) fn with_every_other_page(pages: u64) -> Self {
            Self { pages, refuses: None }
        }
    }

    impl Guest for Made {
        fn abilities(&self) -> Abilities {
            Abilities::SOFT_PAGES | Abilities::FACTS
        }

        fn kernel(&self) -> String<KERNEL_MAX> {
            String::try_from("made up").expect("short")
        }

        fn page_size(&self) -> u32 {
            4096
        }

        fn begin_epoch(&mut self) -> Result<(), Refusal> {
            self.refuses.map_or(Ok(()), Err)
        }

        fn next_soft(&mut self, from: Gfn) -> Option<(Option<(Run, SoftKind)>, Gfn)> {
            let first = from.0.next_multiple_of(2);
            // Looks at ten pages at a time.
            if first % 10 == 8 && from.0 % 2 == 1 {
                return Some((None, Gfn(first)));
            }
            (first < self.pages).then(|| {
                let run = Run::new(Gfn(first), Pages(1));
                (Some((run, SoftKind::Free)), Gfn(first + 1))
            })
        }

        fn cpu_us(&self) -> u64 {
            7
        }

        fn work(&mut self, _: Notice, work: Work, _: u32) -> (Work, Work) {
            (work & Work::FLUSH, work - Work::FLUSH)
        }

        fn facts(&mut self) -> Facts {
            Facts::default()
        }
    }
}
