//! The final dirty set on the storage channel, for when the network dies in post-copy.
//!
//! Li & Cao 2023, "Data reliability" (Algorithm 2, PbData): the pages that are dirty when the guest moves are also written to
//! shared storage, so that the target can be completed without the migration network. The paper computes them before its
//! loop and speaks of the switch; here they are what was dirty when the guest was paused, frozen since. The directory is a slow
//! control path as well: either side reads the other's state there while the network is down.

use super::{RECONNECT_EVERY, Source, Step};
use crate::message::{AbortReason, Mode, TargetReport, TargetStanding};
use crate::units::Nanos;

/// Whether the target can count on the storage channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PbData {
    /// The host was not asked yet to write the final dirty set.
    NotAsked,
    /// It writes, or has written.
    Asked,
    /// It cannot.
    Failed,
}

impl Source<'_> {
    /// Whether the host is still to be asked to write what is missing at the target.
    pub(super) fn wants_pb_data(&self) -> bool {
        self.pb_data == PbData::NotAsked && self.mode == Some(Mode::PostCopy) && self.config.strategy.has_pb_data()
    }

    /// Begun or not, it is not asked for again.
    pub(super) fn pb_data_started(&mut self, now: Nanos, begun: bool) -> Step {
        self.pb_data = if begun { PbData::Asked } else { PbData::Failed };
        if self.link { Step::Push } else { self.seek(now) }
    }

    /// With the network alone left, it is the network that is waited for, whatever the strategy says.
    pub(super) fn pb_data_failed(&mut self, now: Nanos) {
        if self.pb_data == PbData::Asked {
            self.pb_data = PbData::Failed;
            if self.step == Step::AwaitStorage {
                self.step = self.seek(now);
            }
        }
    }

    /// How a target out of reach is looked for.
    pub(super) fn seek(&self, not_before: Nanos) -> Step {
        let by_storage_alone = self.peer_running && self.mode == Some(Mode::PostCopy) && self.pb_data != PbData::Failed;
        if by_storage_alone && !self.config.strategy.reconnects() {
            Step::AwaitStorage
        } else {
            Step::Reconnect { not_before }
        }
    }

    /// Counts while the link is lost; what is said over a link is newer.
    pub(super) fn target_state(&mut self, now: Nanos, standing: TargetStanding, report: TargetReport) {
        if self.link || !self.given_up || !self.seeks_target() {
            return;
        }
        match standing {
            TargetStanding::Complete => {
                self.running(now);
                self.pending.clear();
                self.heard.report = Some(report);
                self.forget_outstanding();
                self.step = Step::RecordMovedAway;
            }
            TargetStanding::PostCopy if self.mode == Some(Mode::PostCopy) => {
                self.running(now);
                if !self.outstanding && matches!(self.step, Step::Reconnect { .. }) {
                    self.step = self.seek(now.saturating_add(RECONNECT_EVERY));
                }
            }
            TargetStanding::NeverTaken if !self.peer_running => self.take_back(AbortReason::TargetRestarted),
            _ => {}
        }
    }
}
