//! Dunlin's guest in stock QEMU, whose `calc-dirty-rate` measures it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin_tests::stock::Stock;
use serde_json::json;

use super::truth::Truth;
use super::{MIB, Sample, WINDOW};

/// What QEMU can measure by. `dirty-ring` is not among them: where KVM emulates a guest it reports every write, not only the first of
/// a page. QEMU counts them all, and once its ring has been full the guest stands still for good.
pub(super) const MODES: [&str; 2] = ["page-sampling", "dirty-bitmap"];
const PATIENCE: Duration = Duration::from_secs(30);
/// How often QEMU is asked whether it is done.
const PERIOD: Duration = Duration::from_millis(5);

/// One measurement, beside what the guest did meanwhile.
pub(super) fn measure(stock: &mut Stock, mode: &'static str, truth: &Truth) -> anyhow::Result<Sample> {
    let window = WINDOW.as_secs_f64();
    let arguments = json!({ "calc-time": WINDOW.as_secs(), "mode": mode });
    stock.qmp.execute("calc-dirty-rate", &arguments)?;
    let (began, from) = (Instant::now(), stock.steps()?);
    let rate = rate(stock)?;
    let (time, to) = (began.elapsed().as_secs_f64(), stock.steps()?);
    // When QEMU began and ended exactly, it does not say: as long as it was told to, and it is not blamed for the rest.
    let steps = ((to - from) as f64 * window / time).round() as u64;
    ensure!(steps > 0, "the guest stands still in QEMU");
    Ok(Sample {
        measured: rate * MIB,
        actual: truth.rate(from..from + steps, window)?,
    })
}

/// What QEMU has measured when it is done, in whole MiB/s.
fn rate(stock: &mut Stock) -> anyhow::Result<f64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = stock.qmp.execute("query-dirty-rate", &json!({}))?;
        if answer["status"] == "measured" {
            let rate = answer["dirty-rate"].as_f64();
            return rate.with_context(|| format!("QEMU names no rate: {answer}"));
        }
        ensure!(Instant::now() < deadline, "QEMU's measurement does not end: {answer}");
        sleep(PERIOD);
    }
}
