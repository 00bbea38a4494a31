//! The target of a migration.

mod messages;
mod static_copy;
mod trouble;
mod view;

use super::target_types::{
    FaultDecision, TargetAction, TargetConfig, TargetEvent, TargetMessage, TargetOutcome, TargetRecord, TargetTotals,
};
use super::{NotResolvable, Resolution};
use crate::message::{AbortReason, Mode, TargetStanding, end_gfn, run_in_regions};
use crate::pageset::{PageSet, PageSetError};
use crate::units::{Gfn, Nanos, Pages};

/// Timeouts of the network after which a complete VM no longer waits for a source that is gone, be it to compare hashes or to say
/// so.
const TIMEOUTS_FOR_THE_END: u64 = 10;

/// What is done next. Steps that wait for the source say so in their name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Create,
    RecordReceiving,
    Welcome,
    AwaitPages,
    RoundReached,
    PrepareMissing,
    Restore,
    Ready,
    AwaitCommit,
    RecordTaken,
    Run,
    Running,
    AwaitInstalled,
    ReadPbData,
    FinishPostCopy,
    AwaitHashes,
    Compare,
    RecordComplete,
    Complete,
    AwaitBye,
    RecordNeverTaken(AbortReason),
    Tell(AbortReason),
    Discard(AbortReason),
    Finished(TargetOutcome),
}

/// The target's state machine: one attempt to receive one VM.
///
/// Memory: two [`PageSet`]s over the VM, borrowed. Every call is O(1) but for set operations.
#[derive(Debug)]
pub struct Target<'w> {
    config: TargetConfig,
    /// Pages that have been received, ever.
    received: PageSet<'w>,
    /// Before the switch the final dirty set, afterwards what is missing.
    missing: PageSet<'w>,
    step: Step,
    outstanding: Outstanding,
    link: bool,
    /// A source that came back gets this first.
    answer: Answer,
    /// Whether the static copy is merged, or failed, once that is known.
    static_end: Option<bool>,
    static_told: bool,
    /// The host was asked to install what the storage channel has.
    reads_pb_data: bool,
    /// The storage channel has brought its part of a static copy, the migration channel not yet all of the other.
    static_rest_comes: bool,
    ready_sent: bool,
    running: bool,
    round: u32,
    round_pages: Pages,
    /// It began, and has not ended.
    in_round: bool,
    state_received: u32,
    handover: Option<Mode>,
    hashed_to: Gfn,
    hashes_ended: bool,
    verified: Option<(u64, u64)>,
    totals: TargetTotals,
    last_heard: Nanos,
}

/// What the host is carrying out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outstanding {
    Nothing,
    /// What the step asked for.
    Step,
    /// The answer to a source that came back.
    Standing(TargetStanding),
    /// The rest of it.
    Missing,
    /// What became of the static copy.
    Static,
}

/// How a page that was missing came.
#[derive(Clone, Copy, Debug)]
enum Via {
    Demand,
    Push,
    Storage,
}

/// What a source that came back is still to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Nothing,
    /// Where this side stands.
    Standing,
    /// What is missing, after it was told that something is.
    Missing,
}

impl<'w> Target<'w> {
    /// A target that has accepted a VM and is about to build it. `received` and `missing` each need
    /// [`words_needed`](crate::pageset::words_needed) words for the VM's last frame plus one.
    ///
    /// # Errors
    /// [`PageSetError`] if the storage is too small.
    pub fn new(
        config: TargetConfig,
        received: &'w mut [u64],
        missing: &'w mut [u64],
        now: Nanos,
    ) -> Result<Self, PageSetError> {
        let pages = Pages(end_gfn(&config.regions).0);
        Ok(Self {
            received: PageSet::new(received, pages)?,
            missing: PageSet::new(missing, pages)?,
            step: Step::Create,
            outstanding: Outstanding::Nothing,
            link: true,
            answer: Answer::Nothing,
            static_end: None,
            static_told: false,
            reads_pb_data: false,
            static_rest_comes: false,
            ready_sent: false,
            running: false,
            round: 0,
            round_pages: Pages::ZERO,
            in_round: false,
            state_received: 0,
            handover: None,
            hashed_to: Gfn::ZERO,
            hashes_ended: false,
            verified: None,
            totals: TargetTotals::default(),
            last_heard: now,
            config,
        })
    }

    /// The next action. While one is outstanding, or nothing is to be done, [`TargetAction::Wait`].
    pub fn poll(&mut self, now: Nanos) -> TargetAction {
        if self.outstanding != Outstanding::Nothing {
            return TargetAction::Wait { until: None };
        }
        self.check_time(now);
        if let Some(action) = self.answer() {
            return action;
        }
        loop {
            if let Some(action) = self.advance() {
                if !matches!(action, TargetAction::Wait { .. } | TargetAction::Finish(_)) {
                    self.outstanding = Outstanding::Step;
                }
                return action;
            }
        }
    }

    /// What a source that came back hears first. Once told to run the VM this side runs it before it answers.
    fn answer(&mut self) -> Option<TargetAction> {
        if matches!(self.step, Step::RecordTaken | Step::Run) {
            return None;
        }
        match self.answer {
            Answer::Nothing => self.tell_static(),
            Answer::Standing => {
                let standing = self.standing();
                self.outstanding = Outstanding::Standing(standing);
                Some(TargetAction::Send(TargetMessage::Resumed(standing)))
            }
            Answer::Missing => {
                self.outstanding = Outstanding::Missing;
                Some(TargetAction::SendMissing)
            }
        }
    }

    /// One step: an action for the host, or none if the step only led to the next.
    fn advance(&mut self) -> Option<TargetAction> {
        self.step = match self.step {
            Step::Running if !self.link => self.after_running(),
            Step::AwaitInstalled if self.missing.is_empty() => Step::FinishPostCopy,
            Step::AwaitInstalled if !self.link && self.config.pb_data && !self.reads_pb_data => Step::ReadPbData,
            Step::AwaitHashes if self.hashes_ended => Step::Compare,
            Step::Tell(reason) if !self.link => Step::Finished(TargetOutcome::Aborted(reason)),
            step => return Some(self.action_of(step)),
        };
        None
    }

    fn action_of(&self, step: Step) -> TargetAction {
        match step {
            Step::Create => TargetAction::CreateGuest,
            Step::RecordReceiving => TargetAction::Record(TargetRecord::Receiving),
            Step::Welcome => TargetAction::Send(TargetMessage::Welcome {
                protocol: self.config.protocol,
            }),
            Step::RoundReached => TargetAction::Send(TargetMessage::RoundReached { round: self.round }),
            Step::PrepareMissing => TargetAction::PrepareMissing,
            Step::Restore => TargetAction::RestoreState,
            Step::Ready => TargetAction::Send(TargetMessage::Ready),
            Step::RecordTaken => TargetAction::Record(TargetRecord::Taken),
            Step::Run => TargetAction::RunGuest,
            Step::Running => TargetAction::Send(TargetMessage::Running),
            Step::ReadPbData => TargetAction::ReadPbData,
            Step::FinishPostCopy => TargetAction::FinishPostCopy,
            Step::Compare => TargetAction::CompareHashes,
            Step::RecordComplete => TargetAction::Record(TargetRecord::Complete),
            Step::Complete if self.link => TargetAction::Send(TargetMessage::Complete {
                verified: self.verified,
            }),
            Step::RecordNeverTaken(_) => TargetAction::Record(TargetRecord::NeverTaken),
            Step::Tell(reason) => TargetAction::Send(TargetMessage::Abort(reason)),
            Step::Discard(_) => TargetAction::Discard,
            Step::Finished(outcome) => TargetAction::Finish(outcome),
            Step::AwaitPages
            | Step::AwaitCommit
            | Step::AwaitInstalled
            | Step::AwaitHashes
            | Step::Complete
            | Step::AwaitBye => TargetAction::Wait { until: self.patience() },
        }
    }

    /// Takes an event.
    pub fn on(&mut self, now: Nanos, event: TargetEvent<'_>) {
        if matches!(self.step, Step::Finished(_)) {
            return;
        }
        match event {
            TargetEvent::Done => self.done(),
            TargetEvent::Failed => self.action_failed(),
            TargetEvent::Compared { pages, mismatches } => self.compared(pages, mismatches),
            TargetEvent::Received(run) => {
                self.last_heard = now;
                self.receive(run);
            }
            TargetEvent::StaticReceived(run) => self.receive_static(run),
            TargetEvent::StaticEnded => self.end_static(true),
            TargetEvent::StaticFailed => self.end_static(false),
            TargetEvent::Installed { run, demanded } => {
                self.last_heard = now;
                self.install(run, if demanded { Via::Demand } else { Via::Push });
            }
            TargetEvent::InstalledFromStorage(run) => self.install(run, Via::Storage),
            TargetEvent::LinkLost => self.link_lost(AbortReason::LinkLost),
            TargetEvent::Heard => self.last_heard = now,
            TargetEvent::Message(message) => {
                self.last_heard = now;
                self.message(message);
            }
            TargetEvent::HostFailed => self.trouble(AbortReason::TargetGuest),
            TargetEvent::SourceState { given_up } => self.source_state(given_up),
            TargetEvent::SourceEnded => self.source_ended(),
            TargetEvent::Reconnected { given_up } => self.reconnected(now, given_up),
            TargetEvent::Violation(violation) => self.trouble(AbortReason::Protocol(violation)),
        }
    }

    /// Whether a fault of the guest must be asked for. O(1).
    pub fn on_fault(&self, gfn: Gfn) -> FaultDecision {
        if self.missing.contains(gfn) {
            FaultDecision::Request
        } else if run_in_regions(&self.config.regions, gfn, 1) {
            FaultDecision::ZeroFill
        } else {
            FaultDecision::Outside
        }
    }

    /// A person's decision about an unknown hand-over.
    ///
    /// # Errors
    /// [`NotResolvable`] unless this side is ready, was not told to run, and lost its source.
    pub fn resolve(&mut self, resolution: Resolution) -> Result<(), NotResolvable> {
        if self.link || self.step != Step::AwaitCommit {
            return Err(NotResolvable);
        }
        match resolution {
            // In post-copy the rest of the memory is at the source: a VM that lacks pages must not run.
            Resolution::RunHere if !self.missing.is_empty() => return Err(NotResolvable),
            Resolution::RunHere => self.step = Step::RecordTaken,
            Resolution::GiveUp => self.fail(AbortReason::Resolved),
        }
        Ok(())
    }

    fn done(&mut self) {
        match core::mem::replace(&mut self.outstanding, Outstanding::Nothing) {
            Outstanding::Nothing => {}
            Outstanding::Standing(TargetStanding::PostCopy) => self.answer = Answer::Missing,
            Outstanding::Standing(_) | Outstanding::Missing => self.answer = Answer::Nothing,
            Outstanding::Static => {}
            Outstanding::Step => self.step_done(),
        }
    }

    fn step_done(&mut self) {
        self.step = match self.step {
            Step::Create => Step::RecordReceiving,
            Step::RecordReceiving => Step::Welcome,
            Step::Welcome | Step::RoundReached => Step::AwaitPages,
            Step::PrepareMissing => Step::Restore,
            Step::Restore => Step::Ready,
            Step::Ready => {
                self.ready_sent = true;
                Step::AwaitCommit
            }
            Step::RecordTaken => Step::Run,
            Step::Run => {
                self.running = true;
                Step::Running
            }
            Step::Running => self.after_running(),
            Step::ReadPbData => {
                self.reads_pb_data = true;
                Step::AwaitInstalled
            }
            Step::FinishPostCopy => self.after_complete(),
            Step::RecordComplete => Step::Complete,
            Step::Complete => Step::AwaitBye,
            Step::Discard(reason) => Step::RecordNeverTaken(reason),
            Step::RecordNeverTaken(reason) => Step::Tell(reason),
            Step::Tell(reason) => Step::Finished(TargetOutcome::Aborted(reason)),
            step => step,
        };
    }

    fn compared(&mut self, pages: u64, mismatches: u64) {
        if self.outstanding == Outstanding::Step && self.step == Step::Compare {
            self.outstanding = Outstanding::Nothing;
            self.verified = Some((pages, mismatches));
            self.step = Step::RecordComplete;
        }
    }

    fn after_running(&self) -> Step {
        if self.handover == Some(Mode::PostCopy) {
            Step::AwaitInstalled
        } else {
            self.after_complete()
        }
    }

    fn after_complete(&self) -> Step {
        if self.config.verify {
            Step::AwaitHashes
        } else {
            Step::RecordComplete
        }
    }

    fn completed(&self) -> Step {
        Step::Finished(TargetOutcome::Completed {
            mode: self.handover.unwrap_or(Mode::StopCopy),
        })
    }

    /// Told to run the VM: nobody but this side's host can keep it from running here.
    fn committed(&self) -> bool {
        self.running || matches!(self.step, Step::RecordTaken | Step::Run)
    }

    fn standing(&self) -> TargetStanding {
        if !self.running {
            TargetStanding::Ready
        } else if self.missing.is_empty() {
            TargetStanding::Complete
        } else {
            TargetStanding::PostCopy
        }
    }
}
