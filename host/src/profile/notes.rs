//! What a reader has to know beside the numbers.

use std::time::Duration;

use dunlin_core::tracefile::Resolution;
use dunlin_core::units::Nanos;

use super::analysis::{Analysis, Writes};
use super::report::{basis, unresolved};
use crate::report::{OrderBasis, count, duration};

pub(super) fn of(analysis: &Analysis<'_>, span: Nanos) -> Vec<String> {
    let mut notes = Vec::new();
    if analysis.end.is_none() {
        notes.push(format!(
            "cut off after {}: what came later is not in the trace, nor what tracing took",
            time(span)
        ));
    }
    match analysis.lost {
        Some(0) => {}
        Some(lost) => notes.push(format!(
            "{} events were lost: rates, working sets and shares are lower bounds",
            count(lost)
        )),
        None => notes.push(
            "events were lost, and nobody knows how many: rates, working sets and shares are lower bounds".into(),
        ),
    }
    notes.extend(analysis.gaps.iter().map(|gap| format!("a part is missing: {gap}")));
    if analysis.rejected > 0 {
        notes.push(format!(
            "{} events are of pages outside the guest's RAM and were left out",
            count(analysis.rejected)
        ));
    }
    notes.extend(of_source(analysis, span));
    if let (Writes::Windows(_), 1..) = (&analysis.writes, analysis.open) {
        notes.push(
            "the trace ends within a window, which counts as a whole one in the working sets and not in the rate"
                .into(),
        );
    }
    if let Writes::Times(intervals) = &analysis.writes
        && intervals.disordered() > 0
    {
        notes.push(format!(
            "{} events came out of order and count as simultaneous with the one before of their page",
            count(intervals.disordered())
        ));
    }
    notes
}

/// What follows from what the source tells apart.
fn of_source(analysis: &Analysis<'_>, span: Nanos) -> Vec<String> {
    let resolution = analysis.resolution();
    let mut notes = Vec::new();
    let mean = time(unresolved(analysis, span));
    match (resolution, analysis.harvest.mean()) {
        (Resolution::EveryWrite, _) => {}
        (Resolution::FirstWrites, None) => notes.push(
            "pages were never harvested or protected anew: of each only the first write is seen, so that what is written again is unknown"
                .into(),
        ),
        (Resolution::FirstWrites, Some(_)) => notes.push(format!(
            "a page that is written again before the next harvest, {mean} later in the mean, is one event: shorter re-dirty intervals are \
             not resolved, and working sets are lower bounds, the more so for windows of about that length and below"
        )),
        (Resolution::Windows, None) => notes.push("no window is whole: there are no rates yet".into()),
        (Resolution::Windows, Some(_)) => notes.push(format!(
            "a page that is written again within a window of {mean} is one event: shorter windows and intervals are not resolved"
        )),
    }
    match basis(analysis) {
        OrderBasis::FirstWrites => notes.push(
            "the order is that of first writes after each harvest: pages written far more often than others look like the others".into(),
        ),
        OrderBasis::Nothing if resolution == Resolution::Windows && analysis.events > 0 => {
            notes.push("this source tells neither the order of writes within a window nor who wrote".into());
        }
        OrderBasis::Nothing | OrderBasis::Writes => {}
    }
    notes
}

fn time(nanos: Nanos) -> String {
    duration(Duration::from_nanos(nanos.0))
}
