//! The order in which post-copy pushes the pages that are still missing, beside those the target asks for.
//!
//! An order is asked for the next run of the missing pages with `next_run`, and told of every page the target waited for with
//! `on_fault`. It never changes the set: the caller takes out what it sends, pushed or asked for. So whatever an
//! order does, it returns missing pages only, and some as long as there are any: none is lost, none goes twice.
//!
//! | order | where it goes | per call |
//! |---|---|---|
//! | [`Sequential`] | upwards, from the start again after the end | O(1) |
//! | [`Bubble`] | away from the last faults, in one or both directions | O(pivots²), at most 7² |
//! | [`Forecast`] | next to a fault first, then by score | O(1), amortised over the ranking |
//! | [`Recorded`] | as pages were first touched in an earlier run | O(1), amortised over the recording |
//!
//! Finding a run in the set costs O(1) beside its length, see [`PageSet::next_run`]. A page that goes missing again after it was
//! pushed (its frame was lost with the connection) is found in the end by every order.
//!
//! ```
//! use dunlin_core::order::push::{AnyPush, Bubble, Direction};
//! use dunlin_core::pageset::{PageSet, Run, words_needed};
//! use dunlin_core::strategy::Pivots;
//! use dunlin_core::units::{Gfn, Pages};
//!
//! let mut storage = [0; words_needed(Pages(100))];
//! let mut missing = PageSet::new(&mut storage, Pages(100))?;
//! missing.fill();
//! let mut push = AnyPush::Bubble(Bubble::new(Direction::Dual, Pivots::Three));
//! missing.remove(Gfn(50)); // the target asked for it
//! push.on_fault(Gfn(50));
//! for first in [51, 47, 0, 54, 44] { // up, down, the pivot at page 0 where every push begins, and again
//!     let run = push.next_run(&missing, Pages(3));
//!     assert_eq!(run, Some(Run::new(Gfn(first), Pages(3))));
//!     run.map(|run| missing.remove_run(run));
//! }
//! # Ok::<(), dunlin_core::pageset::PageSetError>(())
//! ```

mod bubble;
mod forecast;
mod recorded;
mod sequential;
#[cfg(test)]
mod tests;

pub use bubble::{Bubble, Direction};
pub use forecast::{Forecast, Scored};
pub use recorded::Recorded;
pub use sequential::Sequential;

use crate::pageset::{PageSet, Run};
use crate::units::{Gfn, Pages};

/// One of the orders, dispatched without pointers.
#[derive(Debug)]
pub enum AnyPush<'a> {
    /// `sequential`.
    Sequential(Sequential),
    /// `bubble`.
    Bubble(Bubble),
    /// `forecast`.
    Forecast(Forecast<'a>),
    /// `recorded`.
    Recorded(Recorded<'a>),
}

impl AnyPush<'_> {
    /// The pages to push next, at most `max` of them, all of `missing`. `None` if nothing is missing, or `max` is 0.
    pub fn next_run(&mut self, missing: &PageSet<'_>, max: Pages) -> Option<Run> {
        match self {
            Self::Sequential(order) => order.next_run(missing, max),
            Self::Bubble(order) => order.next_run(missing, max),
            Self::Forecast(order) => order.next_run(missing, max),
            Self::Recorded(order) => order.next_run(missing, max),
        }
    }

    /// The target waited for this page, which is sent at once, whatever the order.
    pub fn on_fault(&mut self, gfn: Gfn) {
        match self {
            Self::Sequential(_) => {}
            Self::Bubble(order) => order.on_fault(gfn),
            Self::Forecast(order) => order.on_fault(gfn),
            Self::Recorded(order) => order.on_fault(gfn),
        }
    }
}
