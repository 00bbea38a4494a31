//! The ladder of sources of page writes.

use super::Probe;
use crate::trace::ladder;

/// One for each source, best first.
pub(super) fn probes() -> Vec<Probe> {
    let probe = |rung: ladder::Rung| {
        let (name, serves) = (rung.source.name(), rung.serves.words());
        match rung.found {
            Ok(finding) => Probe::ok(name, serves, finding),
            Err(obstacle) => Probe::missing(name, serves, obstacle.finding, &obstacle.fix),
        }
    };
    ladder::probe().into_iter().map(probe).collect()
}
