//! Which pages will be written within the next horizon: what pre-copy had better hold back, and what post-copy had better
//! push first.
//!
//! A [`Predictor`] learns from sampling windows (which pages were written in the last 50 ms), or from single writes in
//! their true order, and then gives each page a [`Score`] for one point in time and one horizon. A round lasts seconds
//! where a window lasts milliseconds, so the horizon is the caller's: the time that the round is going to take.
//!
//! | predictor | source | state, bytes per page | window | write | [`aim`](Predictor::aim) | score |
//! |---|---|---|---|---|---|---|
//! | [`Never`] | baseline | 0 | O(1) | O(1) | O(1) | O(1) |
//! | [`Frequency`] | Ma 2010 | 0.5 | O(words) | | O(1) | O(1) |
//! | [`Markov`] | the 2017 paper | 20 of the working set | O(words) | | O(pages of the last window) | O(1), 20 look-ups |
//! | [`Successors`] | Joseph & Grunwald 1997 | 32 | | O(1) | O(writes in the horizon, pages at most) | O(1) |
//! | [`Ppm`] | Yong 2013 | 0.5 | O(words) | | O(1) | O(1) |
//! | [`Hazard`] | ours | 8 | O(words + pages written) | O(1) | O(words), and 65 536 pages | O(1), 6 look-ups |
//!
//! "Words" are bitmap words, 64 pages each. All state is borrowed from the caller, sized by each one's `words_needed`.
//!
//! ```
//! use dunlin_core::predict::{Hazard, Predictor, Score};
//! use dunlin_core::units::{Gfn, Nanos, Pages};
//!
//! let mut storage = vec![0; Hazard::words_needed(Pages(128))];
//! let mut hazard = Hazard::new(&mut storage, Pages(128))?;
//! for window in 1..=100 {
//!     // Page 5 is written in every window of 50 ms, page 6 in every twentieth, page 7 never.
//!     let written = [1 << 5 | u64::from(window % 20 == 0) << 6, 0];
//!     hazard.on_window(&written, Nanos::from_millis(50 * window))?;
//! }
//! hazard.aim(Nanos::from_secs(5), Nanos::from_millis(300));
//! assert!(hazard.score(Gfn(5)) > Score::EVEN);
//! assert!(hazard.score(Gfn(6)) < Score::EVEN);
//! assert_eq!(hazard.score(Gfn(7)), Score::NONE);
//! # Ok::<(), dunlin_core::predict::PredictError>(())
//! ```

mod any;
mod fixed;
mod frequency;
mod hazard;
mod markov;
mod never;
mod ppm;
mod successors;
#[cfg(test)]
mod tests;
mod window;

pub use any::AnyPredictor;
pub use frequency::Frequency;
pub use hazard::Hazard;
pub use markov::Markov;
pub use never::Never;
pub use ppm::Ppm;
pub use successors::Successors;

use core::fmt;

use crate::units::{Gfn, Nanos, Pages};

/// How much a page is expected to be written within the horizon, in units of 2⁻²⁴.
///
/// For all but [`Markov`] it is a probability, at most [`CERTAIN`](Self::CERTAIN) ([`Hazard`] also weighs in what comes soon
/// after the horizon). For `Markov` it is the mean number of
/// transitions into the page, which can be more; it stops at the largest value, 256. [`NONE`](Self::NONE) means that no
/// write is expected.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Score(pub u32);

impl Score {
    /// No write is expected.
    pub const NONE: Self = Self(0);
    /// A write is as likely as not.
    pub const EVEN: Self = Self(1 << 23);
    /// A write is certain.
    pub const CERTAIN: Self = Self(1 << 24);
}

/// Why a predictor could not be made, or could not learn all it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PredictError {
    /// The words handed over are fewer than the predictor's `words_needed`.
    StorageTooSmall {
        /// Words that it needs.
        needed: usize,
        /// Words that were given.
        given: usize,
    },
    /// Pages were written that the predictor has no room for: they lie outside the guest it was made for, or its working
    /// set is full. All others were learned.
    NoRoom {
        /// How many such pages this window or write had.
        pages: Pages,
    },
}

impl fmt::Display for PredictError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StorageTooSmall { needed, given } => write!(
                f,
                "a predictor of this size needs {needed} words of storage but was given {given}: size it with words_needed()"
            ),
            Self::NoRoom { pages } => write!(
                f,
                "{pages} of the pages written have no room in the predictor: make it for more pages"
            ),
        }
    }
}

impl core::error::Error for PredictError {}

/// A write in a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Write {
    /// The page.
    pub gfn: Gfn,
    /// The virtual CPU that wrote it.
    pub vcpu: u16,
    /// When.
    pub at: Nanos,
}

/// Learns which pages are written, and says which will be.
///
/// Give it windows or single writes, whichever it learns from; what it does not learn from it ignores. Times never go
/// back; a time before one already told counts as that one.
pub trait Predictor {
    /// A sampling window ended at `end`. `written` has a bit for each page that was written in it: bit g % 64 of word
    /// g / 64 for page g. Words left out at the end are zero. Empty windows are told as well.
    ///
    /// # Errors
    /// [`PredictError::NoRoom`]; what there is room for is learned all the same.
    fn on_window(&mut self, _written: &[u64], _end: Nanos) -> Result<(), PredictError> {
        Ok(())
    }

    /// vCPU `vcpu` wrote a page, after all writes told before.
    ///
    /// # Errors
    /// [`PredictError::NoRoom`].
    fn on_write(&mut self, _gfn: Gfn, _vcpu: u16, _at: Nanos) -> Result<(), PredictError> {
        Ok(())
    }

    /// Many writes at once, as a trace delivers them: the same as [`on_write`](Self::on_write) for each in turn, and faster where
    /// the state is larger than the cache.
    ///
    /// # Errors
    /// [`PredictError::NoRoom`], once for all.
    fn on_writes(&mut self, writes: &[Write]) -> Result<(), PredictError> {
        let mut left_out = 0;
        for write in writes {
            left_out += u64::from(self.on_write(write.gfn, write.vcpu, write.at).is_err());
        }
        match left_out {
            0 => Ok(()),
            pages => Err(PredictError::NoRoom { pages: Pages(pages) }),
        }
    }

    /// Makes [`score`](Self::score) answer for writes after `now`, until `now` + `horizon`: computes once what all pages
    /// share. Scores are out of date once more has been learned.
    fn aim(&mut self, now: Nanos, horizon: Nanos);

    /// What is expected of a page. [`Score::NONE`] for a page outside the guest.
    fn score(&self, gfn: Gfn) -> Score;

    /// The scores of pages of bitmap word `index`, those whose bits are set in `pages`, lowest first. `scores` has one entry for
    /// each; if it has fewer, the rest is left out.
    fn score_word(&self, index: usize, pages: u64, scores: &mut [u32]) {
        let mut rest = pages;
        for score in scores.iter_mut().take(pages.count_ones() as usize) {
            *score = self.score(Gfn(index as u64 * 64 + u64::from(rest.trailing_zeros()))).0;
            rest &= rest - 1;
        }
    }

    /// How many times a page was written that there was no room for.
    fn overlooked(&self) -> Pages {
        Pages::ZERO
    }
}
