use crate::{Numbers, format};
use dunlin_core::predict::{AnyPredictor, Frequency, Hazard, Markov, Never, Ppm, PredictError, Predictor, Successors};
use dunlin_core::units::{Gfn, Nanos, Pages};
use std::hint::black_box;

const PAGES: Pages = Pages(1000);
const WORDS: usize = 16;

pub(crate) fn drive(scratch: &mut [u64]) {
    let span = Nanos::from_millis(200);
    for number in 0..6 {
        let predictor = match number {
            0 => AnyPredictor::Never(Never),
            1 => AnyPredictor::Frequency(Frequency::new(scratch, PAGES, span).expect("storage fits")),
            2 => AnyPredictor::Markov(Markov::new(scratch, PAGES, PAGES).expect("storage fits")),
            3 => AnyPredictor::Successors(Successors::new(scratch, PAGES).expect("storage fits")),
            4 => AnyPredictor::Ppm(Ppm::new(scratch, PAGES, span).expect("storage fits")),
            _ => AnyPredictor::Hazard(Hazard::new(scratch, PAGES).expect("storage fits")),
        };
        learn_and_score(predictor);
    }
    format(Hazard::new(&mut [], PAGES).expect_err("no storage"));
    format(PredictError::NoRoom { pages: Pages(1) });
}

fn learn_and_score(mut predictor: AnyPredictor<'_>) {
    let mut numbers = Numbers(1);
    for window in 1..400 {
        let end = Nanos::from_millis(50 * window);
        let mut written = [0; WORDS];
        for _ in 0..50 {
            let page = numbers.next() % (PAGES.0 + 10);
            written[(page / 64) as usize] |= 1 << (page % 64);
            _ = black_box(predictor.on_write(Gfn(page), (page % 3) as u16, end));
        }
        _ = black_box(predictor.on_window(&written, end));
        if window % 20 == 0 {
            predictor.aim(end, Nanos::from_secs(1));
            let mut scores = [0; 64];
            predictor.score_word(3, numbers.next(), &mut scores);
            black_box((scores, predictor.score(Gfn(5)), predictor.overlooked()));
        }
    }
}
