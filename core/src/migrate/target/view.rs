//! What a target shows of itself.

use super::{Outstanding, Step, Target};
use crate::message::{Mode, TargetStanding};
use crate::migrate::Phase;
use crate::migrate::target_types::{TargetConfig, TargetOutcome, TargetTotals};
use crate::pageset::PageSet;
use crate::units::Pages;

impl<'w> Target<'w> {
    /// What is missing; before the hand-over the final dirty set as far as received.
    pub fn missing(&self) -> &PageSet<'w> {
        &self.missing
    }

    /// What has been received before the guest ran here.
    pub fn received(&self) -> &PageSet<'w> {
        &self.received
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// Whether page data may still be put into memory that nobody runs on.
    pub fn accepts_pages(&self) -> bool {
        match self.step {
            Step::AwaitPages => true,
            // It may have been heard already.
            Step::Welcome | Step::RoundReached => self.outstanding == Outstanding::Step,
            _ => false,
        }
    }

    /// True from the moment the guest was started here.
    pub fn running(&self) -> bool {
        self.running
    }

    /// Pages that were compared and pages that differed, once they were.
    pub fn verified(&self) -> Option<(u64, u64)> {
        self.verified
    }

    /// Totals for the report.
    pub fn totals(&self) -> TargetTotals {
        self.totals
    }

    /// The round being received, and the pages it has.
    pub fn round(&self) -> (u32, Pages) {
        (self.round, self.round_pages)
    }

    /// Whether the migration channel is believed to work.
    pub fn linked(&self) -> bool {
        self.link
    }

    /// How the hand-over was announced.
    pub fn mode(&self) -> Option<Mode> {
        self.handover
    }

    /// What a source that cannot be reached should find in the storage directory: where this side stands for good. Nothing before
    /// that is decided.
    pub fn stored_standing(&self) -> Option<TargetStanding> {
        match self.step {
            Step::Complete | Step::AwaitBye | Step::Finished(TargetOutcome::Completed { .. }) => {
                Some(TargetStanding::Complete)
            }
            Step::Finished(TargetOutcome::Aborted(_)) => Some(TargetStanding::NeverTaken),
            _ if self.running => Some(TargetStanding::PostCopy),
            _ => None,
        }
    }

    /// Where the attempt stands.
    pub fn phase(&self) -> Phase {
        match self.step {
            Step::Create | Step::RecordReceiving | Step::Welcome => Phase::Connecting,
            Step::AwaitPages | Step::RoundReached => Phase::PreCopy,
            Step::AwaitCommit if !self.link => Phase::HandOverUnknown,
            Step::PrepareMissing | Step::Restore | Step::Ready | Step::AwaitCommit | Step::RecordTaken | Step::Run => {
                Phase::HandOver
            }
            Step::RecordNeverTaken(_)
            | Step::Tell(_)
            | Step::Discard(_)
            | Step::Finished(TargetOutcome::Aborted(_)) => Phase::Aborted,
            _ if self.missing.is_empty() => Phase::Complete,
            _ if self.link => Phase::PostCopy,
            _ => Phase::PostCopyPaused,
        }
    }
}
