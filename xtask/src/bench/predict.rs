//! Forecasting which pages will be written: what it costs, and what it is worth.

mod quality;
mod rounds;
mod speed;
mod trace;

use super::Setting;
use super::figure::Figure;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut figures = speed::run()?;
    let (quality, table) = quality::run()?;
    figures.extend(quality);
    setting.tables.lock().expect("no group has panicked").push(table);
    Ok(figures)
}
