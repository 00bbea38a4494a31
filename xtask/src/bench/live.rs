//! The papers' claims, measured once with guests that are moved for real: the short form of `cargo xtask experiment live`.

use super::Setting;
use super::figure::Figure;
use crate::experiment;

pub(super) fn run(_setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let checks = experiment::quick_checks()?.into_iter();
    let measured = checks.filter_map(|check| {
        let figure = Figure::plain(check.name, check.estimate?.value, "").beside("one move by each strategy");
        Some(match check.target {
            Some(target) => figure.target(target),
            None => figure,
        })
    });
    Ok(measured.collect())
}
