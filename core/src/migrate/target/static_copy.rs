//! The static copy as it arrives from the storage channel.

use super::{Outstanding, Step, Target};
use crate::message::{AbortReason, run_in_regions, total_pages};
use crate::migrate::target_types::{TargetAction, TargetMessage};
use crate::pageset::Run;

impl Target<'_> {
    pub(super) fn receive_static(&mut self, run: Run) {
        if !self.takes_static() {
            return;
        }
        let inside = run_in_regions(&self.config.regions, run.first, run.count.0);
        if !inside || self.received.insert_run(run).is_err() {
            // The host reads only what belongs to this VM.
            self.trouble(AbortReason::Internal);
        }
    }

    /// A copy that ends without having brought every page is none, unless the rest comes on the migration channel; for that the
    /// source has patience.
    pub(super) fn end_static(&mut self, whole: bool) {
        if self.takes_static() && self.static_end.is_none() {
            let all = self.received.len() == total_pages(&self.config.regions);
            self.static_rest_comes = whole && !all && self.config.split;
            self.static_end = (!self.static_rest_comes).then_some(whole && all);
        }
    }

    /// Pages came on the migration channel: perhaps the last of a static copy.
    pub(super) fn complete_static(&mut self) {
        if self.static_rest_comes && self.received.len() == total_pages(&self.config.regions) {
            self.static_rest_comes = false;
            self.static_end = Some(true);
        }
    }

    /// Before the hand-over, in an attempt that goes on; what the host still reports of it later has no meaning.
    fn takes_static(&self) -> bool {
        self.config.static_copy
            && self.handover.is_none()
            && matches!(
                self.step,
                Step::RecordReceiving | Step::Welcome | Step::AwaitPages | Step::RoundReached
            )
    }

    pub(super) fn tell_static(&mut self) -> Option<TargetAction> {
        let end = self
            .static_end
            .filter(|_| !self.static_told && self.step == Step::AwaitPages)?;
        self.static_told = true;
        self.outstanding = Outstanding::Static;
        Some(TargetAction::Send(if end {
            TargetMessage::StaticMerged
        } else {
            TargetMessage::StaticFailed
        }))
    }
}
