//! The papers' claims, measured once with guests that are moved for real: the short form of `cargo xtask experiment live`.

use super::Setting;
use super::figure::Figure;
use crate::experiment;

pub(super) fn run(_setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let checks = experiment::quick_checks()?.into_iter();
    let measured = checks.map(|check| {
        // What could not be measured is not met.
        let value = check.estimate.map_or(f64::NAN, |estimate| estimate.value);
        let figure = Figure::plain(check.name, value, "").beside("one move by each strategy");
        match check.target {
            Some(target) => figure.target(target),
            None => figure,
        }
    });
    Ok(measured.collect())
}
