//! The target of a migration.

use super::target_types::{
    FaultDecision, TargetAction, TargetConfig, TargetEvent, TargetMessage, TargetOutcome, TargetRecord, TargetTotals,
};
use super::{NotResolvable, Phase, Resolution};
use crate::message::{
    AbortReason, Message, Mode, STATE_BYTES_MAX, TargetStanding, Violation, end_gfn, run_in_regions, total_pages,
};
use crate::pageset::{PageSet, PageSetError, Run};
use crate::units::{Gfn, Nanos, Pages};

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
    outstanding: bool,
    link: bool,
    /// A source that came back gets this first.
    resume_answer: ResumeAnswer,
    ready_sent: bool,
    running: bool,
    round: u32,
    round_pages: Pages,
    state_received: u32,
    handover: Option<Mode>,
    hashed_to: Gfn,
    hashes_ended: bool,
    verified: Option<(u64, u64)>,
    totals: TargetTotals,
    last_heard: Nanos,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ResumeAnswer {
    None,
    Standing,
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
            outstanding: false,
            link: true,
            resume_answer: ResumeAnswer::None,
            ready_sent: false,
            running: false,
            round: 0,
            round_pages: Pages::ZERO,
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
        if self.outstanding {
            return TargetAction::Wait { until: None };
        }
        if self.link && self.awaits_source() && now >= self.silence_at() {
            self.link_lost(AbortReason::Silence);
        }
        loop {
            if let Some(action) = self.advance() {
                self.outstanding = !matches!(action, TargetAction::Wait { .. } | TargetAction::Finish(_));
                return action;
            }
        }
    }

    fn advance(&mut self) -> Option<TargetAction> {
        match self.resume_answer {
            ResumeAnswer::Standing => return Some(TargetAction::Send(TargetMessage::Resumed(self.standing()))),
            ResumeAnswer::Missing => return Some(TargetAction::SendMissing),
            ResumeAnswer::None => {}
        }
        let next = match self.step {
            Step::Create => return Some(TargetAction::CreateGuest),
            Step::RecordReceiving => return Some(TargetAction::Record(TargetRecord::Receiving)),
            Step::Welcome => {
                return Some(TargetAction::Send(TargetMessage::Welcome {
                    protocol: self.config.protocol,
                }));
            }
            Step::RoundReached => return Some(TargetAction::Send(TargetMessage::RoundReached { round: self.round })),
            Step::PrepareMissing => return Some(TargetAction::PrepareMissing),
            Step::Restore => return Some(TargetAction::RestoreState),
            Step::Ready => return Some(TargetAction::Send(TargetMessage::Ready)),
            Step::RecordTaken => return Some(TargetAction::Record(TargetRecord::Taken)),
            Step::Run => return Some(TargetAction::RunGuest),
            Step::Running if self.link => return Some(TargetAction::Send(TargetMessage::Running)),
            Step::Running => self.after_running(),
            Step::AwaitInstalled if self.missing.is_empty() => Step::FinishPostCopy,
            Step::FinishPostCopy => return Some(TargetAction::FinishPostCopy),
            Step::AwaitHashes if self.hashes_ended => Step::Compare,
            Step::Compare => return Some(TargetAction::CompareHashes),
            Step::RecordComplete => return Some(TargetAction::Record(TargetRecord::Complete)),
            Step::Complete if self.link => {
                return Some(TargetAction::Send(TargetMessage::Complete {
                    verified: self.verified,
                }));
            }
            Step::RecordNeverTaken(_) => return Some(TargetAction::Record(TargetRecord::NeverTaken)),
            Step::Tell(reason) if self.link => return Some(TargetAction::Send(TargetMessage::Abort(reason))),
            Step::Tell(reason) => Step::Finished(TargetOutcome::Aborted(reason)),
            Step::Discard(_) => return Some(TargetAction::Discard),
            Step::Finished(outcome) => return Some(TargetAction::Finish(outcome)),
            Step::AwaitPages
            | Step::AwaitCommit
            | Step::AwaitInstalled
            | Step::AwaitHashes
            | Step::Complete
            | Step::AwaitBye => {
                let until = (self.link && self.awaits_source()).then(|| self.silence_at());
                return Some(TargetAction::Wait { until });
            }
        };
        self.step = next;
        None
    }

    /// Takes an event.
    pub fn on(&mut self, now: Nanos, event: TargetEvent<'_>) {
        match event {
            TargetEvent::Done => self.done(),
            TargetEvent::Failed => self.action_failed(),
            TargetEvent::Compared { pages, mismatches } => {
                self.outstanding = false;
                self.verified = Some((pages, mismatches));
                self.step = Step::RecordComplete;
            }
            TargetEvent::Received(run) => {
                self.last_heard = now;
                self.receive(run);
            }
            TargetEvent::Installed { run, demanded } => {
                self.last_heard = now;
                self.install(run, demanded);
            }
            TargetEvent::LinkLost => self.link_lost(AbortReason::LinkLost),
            TargetEvent::Heard => self.last_heard = now,
            TargetEvent::Message(message) => {
                self.last_heard = now;
                self.message(message);
            }
            TargetEvent::HostFailed if self.running || self.ready_sent => self.link_lost(AbortReason::TargetGuest),
            TargetEvent::HostFailed => self.fail(AbortReason::TargetGuest),
            TargetEvent::Reconnected { given_up } => self.reconnected(now, given_up),
            TargetEvent::Violation(violation) => self.violation(violation),
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
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        match self.resume_answer {
            ResumeAnswer::Standing if self.standing() == TargetStanding::PostCopy => {
                self.resume_answer = ResumeAnswer::Missing;
                return;
            }
            ResumeAnswer::Standing | ResumeAnswer::Missing => {
                self.resume_answer = ResumeAnswer::None;
                return;
            }
            ResumeAnswer::None => {}
        }
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
            Step::FinishPostCopy => self.after_complete(),
            Step::RecordComplete => Step::Complete,
            Step::Complete => Step::AwaitBye,
            Step::Discard(reason) => Step::RecordNeverTaken(reason),
            Step::RecordNeverTaken(reason) => Step::Tell(reason),
            Step::Tell(reason) => Step::Finished(TargetOutcome::Aborted(reason)),
            step => step,
        };
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

    fn action_failed(&mut self) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        match self.step {
            Step::RecordReceiving | Step::RecordTaken => self.fail(AbortReason::Record),
            // The VM is whole and runs here, whatever the record says; and what never ran, never ran.
            Step::RecordComplete | Step::RecordNeverTaken(_) | Step::Discard(_) | Step::Tell(_) => {
                self.outstanding = true;
                self.done();
            }
            _ if self.running => {}
            _ => self.fail(AbortReason::TargetGuest),
        }
    }

    fn receive(&mut self, run: Run) {
        if !run_in_regions(&self.config.regions, run.first, run.count.0) || self.received.insert_run(run).is_err() {
            self.violation(Violation::PageOutside);
        } else if self.step != Step::AwaitPages {
            self.violation(Violation::UnexpectedMessage);
        }
    }

    fn install(&mut self, run: Run, demanded: bool) {
        if !run_in_regions(&self.config.regions, run.first, run.count.0) {
            return self.violation(Violation::PageOutside);
        }
        let removed = self.missing.remove_run(run);
        if demanded {
            self.totals.demanded += removed.0;
        } else {
            self.totals.pushed += removed.0;
        }
        debug_assert!(
            self.handover.is_none()
                || self.totals.demanded + self.totals.pushed + self.missing.len().0 == self.totals.missing_at_start.0
        );
    }

    fn message(&mut self, message: &Message<'_>) {
        match (message, self.step) {
            (Message::RoundStart { round, pages }, Step::AwaitPages) => {
                self.round = *round;
                self.round_pages = *pages;
            }
            (Message::RoundEnd { round }, Step::AwaitPages) if *round == self.round => self.step = Step::RoundReached,
            (Message::FinalSet { first_word, words }, Step::AwaitPages) => self.final_set(*first_word, words),
            (Message::State { offset, bytes }, Step::AwaitPages) => {
                let end = u32::try_from(bytes.len())
                    .ok()
                    .and_then(|length| offset.checked_add(length));
                match end {
                    Some(end) if *offset == self.state_received && end <= STATE_BYTES_MAX => self.state_received = end,
                    _ => self.violation(Violation::StateChunk),
                }
            }
            (
                Message::HandOver {
                    mode,
                    state_bytes,
                    final_dirty,
                },
                Step::AwaitPages,
            ) => {
                self.hand_over(*mode, *state_bytes, *final_dirty);
            }
            (Message::Commit, Step::AwaitCommit) => self.step = Step::RecordTaken,
            (Message::Abort(reason), _) if !self.running => {
                let reason = if *reason == AbortReason::Cancelled {
                    AbortReason::Cancelled
                } else {
                    AbortReason::Peer
                };
                self.link = false;
                self.fail(reason);
            }
            (Message::Hashes { first, bytes }, _) if self.running => self.hashes(*first, bytes),
            (Message::HashesEnd, _) if self.running => self.hashes_ended = true,
            (Message::Bye, Step::AwaitBye) => self.step = self.completed(),
            _ => self.violation(Violation::UnexpectedMessage),
        }
    }

    fn final_set(&mut self, first_word: u64, words: &[u8]) {
        let (chunks, rest) = words.as_chunks::<8>();
        let Ok(first) = usize::try_from(first_word) else {
            return self.violation(Violation::BitmapChunk);
        };
        if !rest.is_empty() {
            return self.violation(Violation::BitmapChunk);
        }
        for (index, bytes) in chunks.iter().enumerate() {
            let at = first.checked_add(index);
            if at.is_none_or(|at| self.missing.union_words(at, &[u64::from_le_bytes(*bytes)]).is_err()) {
                return self.violation(Violation::BitmapChunk);
            }
        }
    }

    /// Fixes what is missing: everything never received, and everything dirty in the end, whichever channel brought an older copy.
    fn hand_over(&mut self, mode: Mode, state_bytes: u32, final_dirty: Pages) {
        if state_bytes != self.state_received {
            return self.violation(Violation::StateChunk);
        }
        if self.missing.len() != final_dirty {
            return self.violation(Violation::DirtyCount);
        }
        let total = total_pages(&self.config.regions);
        if mode == Mode::StopCopy && (self.received.len() != total || !self.missing.is_empty()) {
            return self.violation(Violation::PagesMissing);
        }
        for index in 0..self.config.regions.len() {
            let region = self.config.regions[index];
            let whole = Run::new(region.first, region.pages);
            let final_in_region = self.missing.count_run(whole);
            if self.received.count_run(whole) < region.pages && self.add_never_received(whole).is_err() {
                return self.violation(Violation::BitmapChunk);
            }
            debug_assert!(self.missing.count_run(whole) >= final_in_region);
        }
        self.handover = Some(mode);
        self.totals.missing_at_start = self.missing.len();
        self.step = if mode == Mode::PostCopy {
            Step::PrepareMissing
        } else {
            Step::Restore
        };
    }

    fn add_never_received(&mut self, region: Run) -> Result<(), PageSetError> {
        let mut at = region.first;
        while at < region.end() {
            let next = self
                .received
                .next_run(at, Pages(u64::MAX))
                .filter(|run| run.first < region.end());
            let gap_end = next.map_or(region.end(), |run| run.first);
            if gap_end > at {
                self.missing.insert_run(Run::new(at, Pages(gap_end.0 - at.0)))?;
            }
            at = next.map_or(region.end(), Run::end);
        }
        Ok(())
    }

    fn hashes(&mut self, first: Gfn, bytes: &[u8]) {
        let count = bytes.len() as u64 / 8;
        let whole = bytes.len().is_multiple_of(8) && run_in_regions(&self.config.regions, first, count);
        if !whole || first < self.hashed_to || self.hashes_ended {
            return self.violation(Violation::Hashes);
        }
        self.hashed_to = Gfn(first.0 + count);
    }

    fn reconnected(&mut self, now: Nanos, given_up: bool) {
        self.last_heard = now;
        self.link = true;
        self.hashed_to = Gfn::ZERO;
        self.hashes_ended = false;
        let may_commit = self.running || matches!(self.step, Step::AwaitCommit | Step::RecordTaken | Step::Run);
        if !given_up || !may_commit {
            // The source runs the VM itself, or this side was never ready. A source that claims so of a VM that runs here
            // is not the source of this session.
            self.link = false;
            if !self.running {
                self.fail(AbortReason::Peer);
            }
            return;
        }
        if matches!(self.step, Step::AwaitBye) {
            self.step = Step::Complete;
        }
        if matches!(self.step, Step::AwaitHashes | Step::Compare) {
            self.step = Step::AwaitHashes;
        }
        self.resume_answer = ResumeAnswer::Standing;
    }

    fn standing(&self) -> TargetStanding {
        if self.running && self.missing.is_empty() {
            TargetStanding::Complete
        } else if self.running {
            TargetStanding::PostCopy
        } else if matches!(self.step, Step::AwaitCommit | Step::RecordTaken | Step::Run) {
            TargetStanding::Ready
        } else {
            TargetStanding::NeverTaken
        }
    }

    fn link_lost(&mut self, reason: AbortReason) {
        self.link = false;
        let resuming = core::mem::replace(&mut self.resume_answer, ResumeAnswer::None) != ResumeAnswer::None;
        if resuming {
            self.outstanding = false;
            return;
        }
        match self.step {
            // Its outcome is known to the host alone.
            Step::RecordTaken | Step::Run | Step::RecordComplete | Step::FinishPostCopy | Step::Compare => {}
            Step::RecordNeverTaken(_) | Step::Discard(_) => {}
            // It may have arrived: the source may commit.
            Step::Ready if self.outstanding => {
                self.outstanding = false;
                self.ready_sent = true;
                self.step = Step::AwaitCommit;
            }
            Step::Running | Step::Complete | Step::Tell(_) => self.outstanding = false,
            Step::AwaitCommit | Step::AwaitInstalled | Step::AwaitHashes | Step::Finished(_) => {}
            Step::AwaitBye => self.step = self.completed(),
            _ => {
                self.outstanding = false;
                self.fail(reason);
            }
        }
    }

    fn violation(&mut self, violation: Violation) {
        if self.running || self.ready_sent {
            self.link_lost(AbortReason::Protocol(violation));
        } else {
            self.fail(AbortReason::Protocol(violation));
        }
    }

    /// Before the VM was taken: drop everything, record that, and say so. Order matters: the source may run the VM as soon as it hears.
    fn fail(&mut self, reason: AbortReason) {
        if !matches!(
            self.step,
            Step::RecordNeverTaken(_) | Step::Tell(_) | Step::Discard(_) | Step::Finished(_)
        ) {
            self.outstanding = false;
            self.step = Step::Discard(reason);
        }
    }

    fn completed(&self) -> Step {
        Step::Finished(TargetOutcome::Completed {
            mode: self.handover.unwrap_or(Mode::StopCopy),
        })
    }

    fn awaits_source(&self) -> bool {
        matches!(
            self.step,
            Step::AwaitPages | Step::AwaitCommit | Step::AwaitInstalled | Step::AwaitHashes | Step::AwaitBye
        )
    }

    fn silence_at(&self) -> Nanos {
        self.last_heard.saturating_add(self.config.network_timeout)
    }

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
        self.step == Step::AwaitPages
    }

    /// True from the moment the guest was started here.
    pub fn running(&self) -> bool {
        self.running
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
