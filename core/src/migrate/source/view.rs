//! What a source shows of itself.

use super::pb_data::PbData;
use super::static_copy::AfterStatic;
use super::{Source, Step};
use crate::message::{Mode, TargetReport};
use crate::migrate::source_types::{RoundReport, SourceConfig, SourceOutcome};
use crate::migrate::{Advisor, Phase};
use crate::pageset::{PageSet, Run};
use crate::strategy::Cut;
use crate::units::{Nanos, Pages};

impl<'w> Source<'w> {
    /// Pages the target does not have, or not as they are.
    pub fn pending(&self) -> &PageSet<'w> {
        &self.pending
    }

    /// What the next chunk of a round would be, as far as known: for hosts that make memory ready ahead of the data.
    pub fn next_pages(&self) -> Option<Run> {
        self.pending.next_run(self.cursor, self.chunk())
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &SourceConfig {
        &self.config
    }

    /// Where the attempt stands.
    pub fn phase(&self) -> Phase {
        match self.step {
            Step::Hello | Step::AwaitWelcome { .. } | Step::OpenFaultChannel => Phase::Connecting,
            // Given up by hand, the VM is at the target or nowhere.
            Step::Finished(SourceOutcome::Completed | SourceOutcome::GaveUp) | Step::Bye | Step::RecordMovedAway => {
                Phase::Complete
            }
            Step::Finished(SourceOutcome::Lost) => Phase::PostCopyPaused,
            Step::Finished(_)
            | Step::ResumeGuest(_)
            | Step::StopTracking(_)
            | Step::StopStatic(AfterStatic::Leave(_))
            | Step::TellAbort(_)
            | Step::RecordRunning(_) => Phase::Aborted,
            _ if self.peer_running && self.seeks_target() => Phase::PostCopyPaused,
            _ if self.peer_running && self.mode == Some(Mode::StopCopy) => Phase::Complete,
            _ if self.peer_running => Phase::PostCopy,
            _ if self.seeks_target() => Phase::HandOverUnknown,
            _ if self.paused || matches!(self.step, Step::Pause(_)) => Phase::HandOver,
            _ => Phase::PreCopy,
        }
    }

    /// The current round, from 1; 0 before the first.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// What can bring what is missing in post-copy without the network: as the strategy says, unless the storage channel has failed.
    pub fn cut(&self) -> Cut {
        match self.config.strategy.cut {
            Cut::Pbdata | Cut::Both if self.pb_data == PbData::Failed => Cut::Reconnect,
            cut => cut,
        }
    }

    /// Whether the connections are believed to work. Those of a link that is lost are to be closed, so that the target learns it, too.
    pub const fn linked(&self) -> bool {
        self.link
    }

    /// The round at whose end something is decided for the first time, because a static copy goes on before; 0 without one.
    pub const fn static_done_after(&self) -> u32 {
        self.switcher.static_done_after()
    }

    /// How long the guest was observed before anything was copied.
    pub const fn learned_for(&self) -> Nanos {
        self.learned_for
    }

    /// Samples that were taken of what the guest writes, before and in the rounds; 0 for a strategy that does not look ahead.
    pub const fn samples(&self) -> u64 {
        self.samples
    }

    /// Who chooses the strategy, if it is not given.
    pub fn advisor(&self) -> Option<&Advisor<'w>> {
        self.advisor.as_deref()
    }

    /// Pages that go over the wire in this round.
    pub fn round_pages(&self) -> Pages {
        self.round_pages
    }

    /// The round that ended since the last call.
    pub fn take_round(&mut self) -> Option<RoundReport> {
        self.last_round.take()
    }

    /// From the pause request to `Running`, once both happened.
    pub fn downtime(&self) -> Option<Nanos> {
        Some(self.running_heard?.saturating_sub(self.pause_requested?))
    }

    /// How the hand-over was announced.
    pub fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Pages served to faults, including pages that had been sent before.
    pub fn served(&self) -> u64 {
        self.served
    }

    /// Pages pushed in the background.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// What the target reported at its end.
    pub fn target_report(&self) -> Option<&TargetReport> {
        self.heard.report.as_ref()
    }

    /// What a target that cannot be reached should find in the storage directory, as [`TargetEvent::SourceState`] tells it: whether
    /// this side gave the VM up, or runs it itself again. Nothing before that is decided.
    ///
    /// [`TargetEvent::SourceState`]: crate::migrate::TargetEvent::SourceState
    pub fn stored_given_up(&self) -> Option<bool> {
        match self.step {
            Step::Finished(SourceOutcome::Aborted { .. }) => Some(false),
            _ => (self.given_up && !self.leaving()).then_some(true),
        }
    }

    /// True once the record says given-up and until the VM is taken back.
    pub fn given_up(&self) -> bool {
        self.given_up
    }
}
