//! Nothing is ever expected.

use super::{Predictor, Score};
use crate::units::{Gfn, Nanos};

/// Expects no write: with it a filter holds back by page number alone. The baseline below which no forecast is worth its
/// cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl Predictor for Never {
    fn aim(&mut self, _now: Nanos, _horizon: Nanos) {}

    fn score(&self, _gfn: Gfn) -> Score {
        Score::NONE
    }
}
