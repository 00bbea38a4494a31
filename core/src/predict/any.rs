//! One of the predictors, dispatched without pointers.

use super::{Frequency, Hazard, Markov, Never, Ppm, PredictError, Predictor, Score, Successors, Write};
use crate::units::{Gfn, Nanos, Pages};

/// One of the predictors, chosen at run time.
#[derive(Debug)]
pub enum AnyPredictor<'a> {
    /// Nothing is expected.
    Never(Never),
    /// The bitmap of frequently updated pages.
    Frequency(Frequency<'a>),
    /// The paper's Markov model over windows.
    Markov(Markov<'a>),
    /// Likeliest successors from true write order.
    Successors(Successors<'a>),
    /// Prediction by partial matching.
    Ppm(Ppm<'a>),
    /// Renewal times per page.
    Hazard(Hazard<'a>),
}

/// Calls the same method of whichever predictor it is.
macro_rules! each {
    ($any:expr, $predictor:ident => $call:expr) => {
        match $any {
            AnyPredictor::Never($predictor) => $call,
            AnyPredictor::Frequency($predictor) => $call,
            AnyPredictor::Markov($predictor) => $call,
            AnyPredictor::Successors($predictor) => $call,
            AnyPredictor::Ppm($predictor) => $call,
            AnyPredictor::Hazard($predictor) => $call,
        }
    };
}

impl Predictor for AnyPredictor<'_> {
    fn on_window(&mut self, written: &[u64], end: Nanos) -> Result<(), PredictError> {
        each!(self, predictor => predictor.on_window(written, end))
    }

    fn on_write(&mut self, gfn: Gfn, vcpu: u16, at: Nanos) -> Result<(), PredictError> {
        each!(self, predictor => predictor.on_write(gfn, vcpu, at))
    }

    fn on_writes(&mut self, writes: &[Write]) -> Result<(), PredictError> {
        each!(self, predictor => predictor.on_writes(writes))
    }

    fn aim(&mut self, now: Nanos, horizon: Nanos) {
        each!(self, predictor => predictor.aim(now, horizon));
    }

    fn score(&self, gfn: Gfn) -> Score {
        each!(self, predictor => predictor.score(gfn))
    }

    fn score_word(&self, index: usize, pages: u64, scores: &mut [u32]) {
        each!(self, predictor => predictor.score_word(index, pages, scores));
    }

    fn overlooked(&self) -> Pages {
        each!(self, predictor => predictor.overlooked())
    }
}
