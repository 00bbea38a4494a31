//! The source of a migration.

mod filter;
mod hints;
mod hold;
mod messages;
mod pb_data;
mod push;
mod rounds;
mod speed;
mod split;
mod static_copy;
mod trouble;
mod view;

use super::advisor::Advisor;
use super::foresight::{Foresight, ForesightStorage, SourceStorageError};
use super::source_types::{
    FaultAnswer, Heard, RoundReport, SourceAction, SourceConfig, SourceEvent, SourceMessage, SourceOutcome,
    SourceRecord,
};
use super::{NotResolvable, Resolution};
use crate::message::{AbortReason, Mode, end_gfn, run_in_regions, total_pages};
use crate::pageset::{PageSet, PageSetError, Run, words_needed};
use crate::switch::Switcher;
use crate::units::{Gfn, Nanos, Pages};
use hints::{HINT_SETS, Hints};
use hold::Holding;
use pb_data::PbData;
use push::Pushing;
use speed::Speed;
use static_copy::{AfterStatic, StaticCopy, switch_setting};

/// Most pages of one data action: a run of the wire, and short enough that events are looked at often.
const CHUNK: Pages = Pages(512);
/// A time that does not come.
const NEVER: Nanos = Nanos(u64::MAX);
/// Pause before a lost target is looked for.
const RECONNECT_FIRST: Nanos = Nanos::from_millis(50);
/// Pause between attempts to reach it.
const RECONNECT_EVERY: Nanos = Nanos::from_millis(500);

/// What is done next. Steps that wait for the host or the target say so in their name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Hello,
    AwaitWelcome {
        since: Nanos,
    },
    OpenFaultChannel,
    StartTracking,
    /// The guest is observed before anything is copied.
    Learn {
        until: Nanos,
    },
    OpenEpoch,
    /// The agent is listened to; the dirty log is not read meanwhile.
    AwaitHints {
        until: Nanos,
    },
    TellHints,
    StartStatic,
    /// The static copy is of no use.
    StopStatic(AfterStatic),
    RoundStart,
    RoundPages,
    RoundEnd,
    AwaitRound,
    RoundIdle {
        until: Nanos,
    },
    RoundHarvest,
    Pause(Mode),
    FinalHarvest(Mode),
    FinalPages(Mode),
    HandOver(Mode),
    AwaitReady {
        since: Nanos,
    },
    RecordGivenUp,
    Commit,
    AwaitRunning {
        since: Nanos,
    },
    /// Before pages are pushed, or while the target is out of reach.
    StartPbData,
    Push,
    Hashes,
    AwaitComplete,
    Bye,
    RecordMovedAway,
    /// Given up, link lost.
    Reconnect {
        not_before: Nanos,
    },
    /// The same, where the strategy waits for the storage channel alone.
    AwaitStorage,
    SendResume,
    AwaitResumed {
        since: Nanos,
    },
    AwaitMissing {
        found: Pages,
    },
    /// On a new connection in post-copy, before whatever comes next.
    ReopenFaultChannel {
        commit: bool,
    },
    /// The way out before the hand-over, or after the target said it never took the VM.
    RecordRunning(AbortReason),
    ResumeGuest(AbortReason),
    StopTracking(AbortReason),
    TellAbort(AbortReason),
    Finished(SourceOutcome),
}

/// The source's state machine: one attempt to move one VM.
///
/// Memory: one [`PageSet`] over the VM, borrowed, two more with `hold=hot`, and three more with hints. Every call is O(1) but for set operations on harvested words and
/// the search for the next run.
#[derive(Debug)]
pub struct Source<'w> {
    config: SourceConfig,
    switcher: Switcher,
    /// Pages the target does not have, or not as they are, without those held back in the present round.
    pending: PageSet<'w>,
    /// If rounds beside a static copy leave pages for later.
    holding: Option<Holding<'w>>,
    /// If an agent gives hints.
    hints: Option<Hints<'w>>,
    /// The rule was told of a round that left some.
    misled: bool,
    /// Of the rounds beside the static copy.
    channel_speed: Speed,
    /// Where a round's next chunk is looked for.
    cursor: Gfn,
    pushing: Pushing<'w>,
    /// `None` if the strategy does not look ahead.
    foresight: Option<Foresight<'w>>,
    /// Chooses the strategy.
    advisor: Option<&'w mut Advisor<'w>>,
    /// When the next sample is to be taken; never with the largest time.
    sample_due: Nanos,
    samples: u64,
    step: Step,
    outstanding: bool,
    /// What is outstanding is a sample, or was the last that was.
    sampling: bool,
    link: bool,
    /// The target answered Hello; before that there is nobody to tell anything.
    welcomed: bool,
    tracking: bool,
    tracking_began: Nanos,
    /// How long the guest was observed.
    learned_for: Nanos,
    static_copy: StaticCopy,
    /// The host may be writing one.
    static_begun: bool,
    static_began: Nanos,
    /// Where the host takes its next pages from, and how many it has taken.
    static_next: Gfn,
    static_taken: Pages,
    /// The pages from here on are the rounds'.
    static_end: Gfn,
    static_too_slow: bool,
    /// When the target must have merged all of it.
    static_due: Option<Nanos>,
    pb_data: PbData,
    paused: bool,
    given_up: bool,
    peer_running: bool,
    /// The way the hand-over was announced.
    mode: Option<Mode>,
    handover_sent: bool,
    hashes_sent: bool,
    /// What is pending comes from the target, after a lost connection.
    resumed: bool,
    last_heard: Nanos,
    /// When the link takes the next push.
    room_at: Nanos,
    round: u32,
    copy_started: Nanos,
    round_started: Nanos,
    round_ended: Nanos,
    round_pages: Pages,
    sent_data: Pages,
    sent_zero: Pages,
    previous_dirty: Pages,
    last_chunk: Option<Run>,
    last_round: Option<RoundReport>,
    pause_requested: Option<Nanos>,
    running_heard: Option<Nanos>,
    served: u64,
    pushed: u64,
    /// Members of the final dirty set when post-copy began or was resumed: served + pushed + pending.
    final_pages: Pages,
    served_first: u64,
    pushed_first: u64,
    heard: Heard,
}

impl<'w> Source<'w> {
    /// Words of storage that a source with this configuration needs: those of a [`PageSet`] up to the VM's last frame, three
    /// times with `hold=hot`, and three times more with hints. `usize::MAX`, which no slice can have, if the number does not fit.
    pub fn words_needed(config: &SourceConfig) -> usize {
        let held_back = if config.strategy.holds_back() { 2 } else { 0 };
        let hints = if config.hint_patience.is_some() { HINT_SETS } else { 0 };
        let sets = 1 + held_back + hints;
        words_needed(Pages(end_gfn(&config.regions).0)).saturating_mul(sets)
    }

    /// A source about to say hello, with a strategy that does not look ahead and at least
    /// [`words_needed`](Self::words_needed) words of storage.
    ///
    /// # Errors
    /// [`SourceStorageError`] if the storage is too small, the regions do not fit it, or the strategy looks ahead.
    pub fn new(config: SourceConfig, storage: &'w mut [u64], now: Nanos) -> Result<Self, SourceStorageError> {
        Self::looking_ahead(config, storage, ForesightStorage::default(), now)
    }

    /// The same with any strategy; what one with a filter or `push=forecast` needs besides tells
    /// [`ForesightNeed::of`](super::ForesightNeed::of).
    ///
    /// # Errors
    /// [`SourceStorageError`] if any of the storage is too small or the regions do not fit it.
    pub fn looking_ahead(
        config: SourceConfig,
        storage: &'w mut [u64],
        foresight: ForesightStorage<'w>,
        now: Nanos,
    ) -> Result<Self, SourceStorageError> {
        let end = Pages(end_gfn(&config.regions).0);
        let (needed, given) = (Self::words_needed(&config), storage.len());
        if given < needed {
            return Err(PageSetError::StorageTooSmall { needed, given }.into());
        }
        let (of_pending, rest) = storage[..needed].split_at_mut(words_needed(end));
        let mut pending = PageSet::new(of_pending, end)?;
        let hints_words = config.hint_patience.map_or(0, |_| HINT_SETS * words_needed(end));
        let (of_hints, of_holding) = rest.split_at_mut(hints_words);
        let hints = match config.hint_patience {
            Some(_) => Some(Hints::new(of_hints, end)?),
            None => None,
        };
        let holding = match config.strategy.holds_back() {
            true => Some(Holding::new(of_holding, end)?),
            false => None,
        };
        for region in &config.regions {
            pending.insert_run(Run::new(region.first, region.pages))?;
        }
        let total = total_pages(&config.regions);
        let switcher = Switcher::new(config.strategy.switch, switch_setting(&config));
        Ok(Self {
            switcher,
            pending,
            holding,
            hints,
            misled: false,
            channel_speed: Speed::default(),
            cursor: Gfn::ZERO,
            pushing: Pushing::new(config.strategy.push),
            foresight: Foresight::new(&config.strategy, end, foresight)?,
            advisor: None,
            sample_due: NEVER,
            samples: 0,
            step: Step::Hello,
            outstanding: false,
            sampling: false,
            link: true,
            welcomed: false,
            tracking: false,
            tracking_began: now,
            learned_for: Nanos::ZERO,
            static_copy: StaticCopy::None,
            static_begun: false,
            static_began: now,
            static_next: Gfn::ZERO,
            static_taken: Pages::ZERO,
            static_end: end_gfn(&config.regions),
            static_too_slow: false,
            static_due: None,
            pb_data: PbData::NotAsked,
            paused: false,
            given_up: false,
            peer_running: false,
            mode: None,
            handover_sent: false,
            hashes_sent: false,
            resumed: false,
            last_heard: now,
            room_at: now,
            round: 0,
            copy_started: now,
            round_started: now,
            round_ended: now,
            round_pages: Pages::ZERO,
            sent_data: Pages::ZERO,
            sent_zero: Pages::ZERO,
            previous_dirty: total,
            last_chunk: None,
            last_round: None,
            pause_requested: None,
            running_heard: None,
            served: 0,
            pushed: 0,
            final_pages: Pages::ZERO,
            served_first: 0,
            pushed_first: 0,
            heard: Heard::default(),
            config,
        })
    }

    /// Leaves the strategy to an advisor: the guest is observed for [`SourceConfig::learning`], then the advisor's choice takes the
    /// place of the configured strategy. That one must be able to enter post-copy, so that any choice can, and must not look ahead.
    #[must_use]
    pub fn advised(self, advisor: &'w mut Advisor<'w>) -> Self {
        Self {
            advisor: Some(advisor),
            ..self
        }
    }

    /// The order for a strategy with `push=recorded`: pages as they were first needed in an earlier migration. Those that the VM does not
    /// have do no harm, and those that are not in it follow in ascending order. Without it all of them do.
    pub fn recorded(mut self, order: &'w [Gfn]) -> Self {
        self.pushing.record(order);
        self
    }

    /// The next action. While one is outstanding, or nothing is to be done, [`SourceAction::Wait`].
    pub fn poll(&mut self, now: Nanos) -> SourceAction {
        if self.outstanding {
            return SourceAction::Wait { until: None };
        }
        self.check_time(now);
        loop {
            if let Some(action) = self.advance(now) {
                self.outstanding = !matches!(action, SourceAction::Wait { .. } | SourceAction::Finish(_));
                self.sampling = action == SourceAction::Sample;
                return action;
            }
        }
    }

    /// One step: an action for the host, or none if the step only led to the next.
    fn advance(&mut self, now: Nanos) -> Option<SourceAction> {
        Some(match self.step {
            Step::Hello => SourceAction::Send(SourceMessage::Hello),
            Step::AwaitWelcome { since } | Step::AwaitReady { since } => {
                wait(since.saturating_add(self.config.handover_timeout))
            }
            Step::AwaitRunning { since } | Step::AwaitResumed { since } => wait(
                since
                    .saturating_add(self.config.handover_timeout)
                    .min(self.silence_at()),
            ),
            Step::OpenFaultChannel | Step::ReopenFaultChannel { .. } => SourceAction::OpenFaultChannel,
            Step::StartTracking => SourceAction::StartTracking,
            Step::Learn { .. } | Step::RoundPages | Step::AwaitRound | Step::RoundIdle { .. }
                if now >= self.sample_due =>
            {
                SourceAction::Sample
            }
            Step::Learn { until } if now < until => wait(until.min(self.sample_due).min(self.silence_at())),
            Step::Learn { .. } => {
                self.step = self.after_learning(now);
                return None;
            }
            Step::OpenEpoch => SourceAction::OpenEpoch,
            Step::AwaitHints { until } if now < until => wait(until.min(self.silence_at())),
            Step::AwaitHints { .. } => {
                self.hints_ended();
                return None;
            }
            Step::TellHints => match self.tell_hint() {
                Some(action) => action,
                None => {
                    self.step = self.begin_copy(now);
                    return None;
                }
            },
            Step::StartStatic => SourceAction::StartStatic,
            Step::StopStatic(AfterStatic::Leave(reason)) if !self.static_begun => {
                self.step = Step::TellAbort(reason);
                return None;
            }
            Step::StopStatic(_) => SourceAction::StopStatic,
            Step::RoundStart if self.must_stop_static() => {
                self.step = Step::StopStatic(AfterStatic::Round);
                return None;
            }
            Step::Pause(mode) if self.must_stop_static() => {
                self.step = Step::StopStatic(AfterStatic::Pause(mode));
                return None;
            }
            Step::RoundStart => {
                self.begin_round(now);
                SourceAction::Send(SourceMessage::RoundStart {
                    round: self.round,
                    pages: self.round_pages,
                })
            }
            Step::RoundPages => match self.next_chunk(None) {
                Some(run) => SourceAction::SendPages { run, round: self.round },
                None => {
                    self.step = Step::RoundEnd;
                    return None;
                }
            },
            Step::RoundEnd => SourceAction::Send(SourceMessage::RoundEnd { round: self.round }),
            Step::AwaitRound => wait(self.silence_at().min(self.sample_due)),
            Step::RoundIdle { until } if now < until => wait(until.min(self.silence_at()).min(self.sample_due)),
            Step::RoundIdle { .. } => {
                self.step = Step::RoundHarvest;
                return None;
            }
            Step::RoundHarvest | Step::FinalHarvest(_) => SourceAction::Harvest,
            Step::Pause(_) => {
                self.pause_requested.get_or_insert(now);
                SourceAction::Pause
            }
            Step::FinalPages(mode) => match self.next_final_chunk(mode) {
                Some(run) => SourceAction::SendPages { run, round: 0 },
                None => {
                    self.step = Step::HandOver(mode);
                    return None;
                }
            },
            Step::HandOver(mode) => {
                self.mode = Some(mode);
                self.handover_sent = true;
                SourceAction::SendHandOver(mode)
            }
            Step::RecordGivenUp => SourceAction::Record(SourceRecord::GivenUp),
            Step::Commit => SourceAction::Send(SourceMessage::Commit),
            Step::StartPbData => SourceAction::StartPbData,
            Step::Push if now < self.room_at && !self.pending.is_empty() => wait(self.room_at.min(self.silence_at())),
            Step::Push => match self.next_push() {
                Some(run) => SourceAction::PushPages(run),
                None => {
                    self.step = self.after_pages();
                    return None;
                }
            },
            Step::Hashes => SourceAction::SendHashes,
            Step::AwaitComplete if self.heard.report.is_some() => {
                self.step = Step::Bye;
                return None;
            }
            Step::AwaitComplete | Step::AwaitMissing { .. } => wait(self.silence_at()),
            Step::Bye if !self.link => {
                self.step = Step::RecordMovedAway;
                return None;
            }
            Step::Bye => SourceAction::Send(SourceMessage::Bye),
            Step::RecordMovedAway => SourceAction::Record(SourceRecord::MovedAway),
            Step::Reconnect { .. } | Step::AwaitStorage if self.peer_running && self.wants_pb_data() => {
                self.step = Step::StartPbData;
                return None;
            }
            Step::AwaitStorage => SourceAction::Wait { until: None },
            Step::Reconnect { not_before } if now < not_before => wait(not_before),
            Step::Reconnect { .. } => SourceAction::Reconnect,
            Step::SendResume => SourceAction::Send(SourceMessage::Resume {
                given_up: self.given_up,
            }),
            Step::RecordRunning(_) => SourceAction::Record(SourceRecord::Running),
            Step::ResumeGuest(reason) if !self.paused => {
                self.step = Step::StopTracking(reason);
                return None;
            }
            Step::ResumeGuest(_) => SourceAction::ResumeGuest,
            Step::StopTracking(reason) if !self.tracking => {
                self.step = Step::StopStatic(AfterStatic::Leave(reason));
                return None;
            }
            Step::StopTracking(_) => SourceAction::StopTracking,
            Step::TellAbort(reason) if !self.link || !self.welcomed => {
                self.step = self.aborted(reason);
                return None;
            }
            Step::TellAbort(reason) => SourceAction::Send(SourceMessage::Abort(reason)),
            Step::Finished(outcome) => SourceAction::Finish(outcome),
        })
    }

    /// Takes an event. What does not belong here ends the attempt (before the hand-over) or drops the link (after it).
    pub fn on(&mut self, now: Nanos, event: SourceEvent<'_>) {
        if matches!(self.step, Step::Finished(_)) {
            return;
        }
        match event {
            SourceEvent::Done => self.done(now),
            SourceEvent::Failed => self.action_failed(now),
            SourceEvent::Harvested(words) => self.harvested(now, words),
            SourceEvent::Sampled(words) => self.sampled(now, words),
            SourceEvent::PagesSent { data, zero } => self.pages_sent(now, data, zero),
            SourceEvent::Hinted(run) => self.on_hint(run),
            SourceEvent::HintsEnded => self.hints_ended(),
            SourceEvent::StaticWritten => self.static_written(now),
            SourceEvent::TargetState { standing, report } => self.target_state(now, standing, report),
            SourceEvent::StaticFailed => self.static_failed(),
            SourceEvent::PbDataFailed => self.pb_data_failed(now),
            SourceEvent::LinkLost => self.link_lost(now, AbortReason::LinkLost),
            SourceEvent::Heard => self.last_heard = now,
            SourceEvent::RoomAt(time) => self.room_at = time,
            SourceEvent::Message(message) => {
                self.last_heard = now;
                self.message(now, message);
            }
            SourceEvent::Cancel => {
                if self.can_cancel() {
                    self.abort(AbortReason::Cancelled);
                }
            }
            SourceEvent::Violation(violation) => self.violation(now, violation),
        }
    }

    /// True until the record says given-up: the attempt can still end with the guest running here, whatever the target does.
    pub fn can_cancel(&self) -> bool {
        !self.given_up && !matches!(self.step, Step::RecordGivenUp | Step::Finished(_))
    }

    /// A person's decision about an unknown hand-over.
    ///
    /// # Errors
    /// [`NotResolvable`] where the protocol itself decides, and for running a VM here that has run on the target.
    pub fn resolve(&mut self, resolution: Resolution) -> Result<(), NotResolvable> {
        let unknown = self.given_up && self.seeks_target();
        match resolution {
            Resolution::RunHere if unknown && !self.peer_running => {
                self.step = Step::RecordRunning(AbortReason::Resolved);
            }
            Resolution::GiveUp if unknown => self.step = Step::Finished(SourceOutcome::GaveUp),
            _ => return Err(NotResolvable),
        }
        self.link = false;
        self.forget_outstanding();
        Ok(())
    }

    /// The target asks for a page on the fault channel. O(1), at most a step for each of the push's seven pivots, or 1024 of a
    /// recorded order.
    pub fn on_fault_request(&mut self, gfn: Gfn) -> FaultAnswer {
        if self.mode != Some(Mode::PostCopy) || !self.given_up || !run_in_regions(&self.config.regions, gfn, 1) {
            return FaultAnswer::Refuse;
        }
        self.served += 1;
        self.pushing.on_fault(gfn);
        if let Some(hints) = &mut self.hints {
            hints.on_fault(gfn);
        }
        // While the link is taken up again what was served before may be lost: only the target knows what it lacks.
        if self.counts_served() && self.pending.remove(gfn) {
            self.served_first += 1;
        }
        FaultAnswer::Send
    }

    pub(super) fn done(&mut self, now: Nanos) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        if self.sampling {
            return self.broken_law(now);
        }
        self.step = match self.step {
            Step::Hello => Step::AwaitWelcome { since: now },
            Step::OpenFaultChannel => self.first_step(),
            Step::StartTracking => {
                self.tracking = true;
                self.after_start(now)
            }
            Step::OpenEpoch => self.epoch_opened(now),
            Step::StartStatic => self.static_started(now),
            Step::StopStatic(after) => {
                self.static_begun = false;
                match after {
                    AfterStatic::Round => Step::RoundStart,
                    AfterStatic::Pause(mode) => Step::Pause(mode),
                    AfterStatic::Leave(reason) => Step::TellAbort(reason),
                }
            }
            Step::RoundStart => {
                self.round_started = now;
                Step::RoundPages
            }
            Step::RoundEnd => Step::AwaitRound,
            Step::Pause(mode) => {
                self.paused = true;
                if self.tracking {
                    Step::FinalHarvest(mode)
                } else {
                    Step::FinalPages(mode)
                }
            }
            Step::HandOver(_) => Step::AwaitReady { since: now },
            Step::RecordGivenUp => {
                self.given_up = true;
                if self.link {
                    Step::Commit
                } else {
                    Step::Reconnect { not_before: now }
                }
            }
            Step::Commit => Step::AwaitRunning { since: now },
            Step::Hashes => {
                self.hashes_sent = true;
                Step::AwaitComplete
            }
            Step::Bye => Step::RecordMovedAway,
            Step::RecordMovedAway => Step::Finished(SourceOutcome::Completed),
            Step::Reconnect { .. } => {
                self.link = true;
                self.last_heard = now;
                Step::SendResume
            }
            Step::SendResume => Step::AwaitResumed { since: now },
            Step::StartPbData => self.pb_data_started(now, true),
            Step::ReopenFaultChannel { commit: true } => Step::Commit,
            Step::ReopenFaultChannel { commit: false } => self.after_running(now),
            Step::RecordRunning(reason) => {
                self.given_up = false;
                Step::ResumeGuest(reason)
            }
            Step::ResumeGuest(reason) => {
                self.paused = false;
                Step::StopTracking(reason)
            }
            Step::StopTracking(reason) => {
                self.tracking = false;
                Step::StopStatic(AfterStatic::Leave(reason))
            }
            Step::TellAbort(reason) => self.aborted(reason),
            // These need an answer of their own: what became of the pages nobody knows.
            Step::RoundPages | Step::FinalPages(_) | Step::Push | Step::RoundHarvest | Step::FinalHarvest(_) => {
                return self.broken_law(now);
            }
            step => step,
        };
    }

    fn action_failed(&mut self, now: Nanos) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        match self.step {
            // The record may or may not have reached the disk: say again that the VM runs here.
            Step::RecordGivenUp => self.step = Step::RecordRunning(AbortReason::Record),
            // A record that cannot be written must not keep a guest from running that may run, nor a finished move from ending.
            Step::RecordRunning(_)
            | Step::RecordMovedAway
            | Step::StopTracking(_)
            | Step::StopStatic(_)
            | Step::TellAbort(_) => {
                self.outstanding = true;
                self.done(now);
            }
            // Nothing else is left to try, and the target must hear of the end.
            Step::ResumeGuest(_) => self.step = Step::StopTracking(AbortReason::SourceGuest),
            // Nobody can be asked: it goes on as without.
            Step::OpenEpoch => self.step = self.begin_copy(now),
            Step::StartStatic => {
                self.static_copy = StaticCopy::Failed;
                self.step = self.static_started(now);
            }
            Step::StartPbData => self.step = self.pb_data_started(now, false),
            Step::Reconnect { .. } => {
                self.step = Step::Reconnect {
                    not_before: now.saturating_add(RECONNECT_EVERY),
                }
            }
            _ if self.given_up => self.link_lost(now, AbortReason::LinkLost),
            step => {
                self.may_have_happened(step);
                self.abort(AbortReason::SourceGuest);
            }
        }
    }
}

fn wait(until: Nanos) -> SourceAction {
    SourceAction::Wait { until: Some(until) }
}
