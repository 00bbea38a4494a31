//! The source of a migration.

use super::source_types::{
    FaultAnswer, Heard, RoundReport, SourceAction, SourceConfig, SourceEvent, SourceMessage, SourceOutcome,
    SourceRecord,
};
use super::{NotResolvable, Phase, Resolution};
use crate::message::{
    AbortReason, Message, Mode, TargetReport, TargetStanding, Violation, end_gfn, run_in_regions, total_pages,
};
use crate::pageset::{PageSet, PageSetError, Run};
use crate::switch::{Decision, RoundEnd, Switcher};
use crate::units::{Gfn, Nanos, Pages};

/// Most pages of one data action: a run of the wire, and short enough that events are looked at often.
const CHUNK: Pages = Pages(512);
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
    RoundStart,
    RoundPages,
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
    Push,
    Hashes,
    AwaitComplete,
    Bye,
    RecordMovedAway,
    /// Given up, link lost.
    Reconnect {
        not_before: Nanos,
    },
    SendResume,
    AwaitResumed {
        since: Nanos,
    },
    AwaitMissing {
        found: Pages,
    },
    ReopenFaultChannel,
    /// The way out before the hand-over, or after the target said it never took the VM.
    RecordRunning(AbortReason),
    ResumeGuest(AbortReason),
    StopTracking(AbortReason),
    TellAbort(AbortReason),
    Finished(SourceOutcome),
}

/// The source's state machine: one attempt to move one VM.
///
/// Memory: one [`PageSet`] over the VM, borrowed. Every call is O(1) but for set operations on harvested words and
/// the search for the next run.
#[derive(Debug)]
pub struct Source<'w> {
    config: SourceConfig,
    switcher: Switcher,
    /// Pages the target does not have, or not as they are.
    pending: PageSet<'w>,
    /// Where the next chunk is looked for.
    cursor: Gfn,
    step: Step,
    outstanding: bool,
    link: bool,
    /// The target answered Hello; before that there is nobody to tell anything.
    welcomed: bool,
    tracking: bool,
    paused: bool,
    given_up: bool,
    peer_running: bool,
    /// The way the hand-over was announced.
    mode: Option<Mode>,
    handover_sent: bool,
    hashes_sent: bool,
    fault_channel: bool,
    last_heard: Nanos,
    round: u32,
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
    /// A source about to say hello. `storage` needs [`words_needed`](crate::pageset::words_needed) words for the VM's last
    /// frame plus one.
    ///
    /// # Errors
    /// [`PageSetError`] if the storage is too small or the regions do not fit it.
    pub fn new(config: SourceConfig, storage: &'w mut [u64], now: Nanos) -> Result<Self, PageSetError> {
        let mut pending = PageSet::new(storage, Pages(end_gfn(&config.regions).0))?;
        for region in &config.regions {
            pending.insert_run(Run::new(region.first, region.pages))?;
        }
        let total = total_pages(&config.regions);
        let switcher = Switcher::new(
            config.strategy.switch,
            config.downtime.saturating_sub(config.handover_cost),
            config.max_rounds,
        );
        Ok(Self {
            switcher,
            pending,
            cursor: Gfn::ZERO,
            step: Step::Hello,
            outstanding: false,
            link: true,
            welcomed: false,
            tracking: false,
            paused: false,
            given_up: false,
            peer_running: false,
            mode: None,
            handover_sent: false,
            hashes_sent: false,
            fault_channel: false,
            last_heard: now,
            round: 0,
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

    /// The next action. While one is outstanding, or nothing is to be done, [`SourceAction::Wait`].
    pub fn poll(&mut self, now: Nanos) -> SourceAction {
        if self.outstanding {
            return SourceAction::Wait { until: None };
        }
        self.check_time(now);
        loop {
            if let Some(action) = self.advance(now) {
                self.outstanding = !matches!(action, SourceAction::Wait { .. } | SourceAction::Finish(_));
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
            Step::OpenFaultChannel | Step::ReopenFaultChannel => SourceAction::OpenFaultChannel,
            Step::StartTracking => SourceAction::StartTracking,
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
                    self.round_ended = now;
                    self.step = Step::RoundIdle {
                        until: self.round_started.saturating_add(self.config.min_round),
                    };
                    return None;
                }
            },
            Step::RoundIdle { until } if now < until => wait(until.min(self.silence_at())),
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
            Step::Push => match self.next_chunk(None) {
                Some(run) => SourceAction::PushPages(run),
                None => {
                    self.step = if self.config.verify && !self.hashes_sent {
                        Step::Hashes
                    } else {
                        Step::AwaitComplete
                    };
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
                self.step = Step::TellAbort(reason);
                return None;
            }
            Step::StopTracking(_) => SourceAction::StopTracking,
            Step::TellAbort(reason) if !self.link || !self.welcomed => {
                let target_may_hold = self.handover_sent && self.welcomed && reason != AbortReason::TargetRestarted;
                self.step = Step::Finished(SourceOutcome::Aborted {
                    reason,
                    target_may_hold,
                });
                return None;
            }
            Step::TellAbort(reason) => SourceAction::Send(SourceMessage::Abort(reason)),
            Step::Finished(outcome) => SourceAction::Finish(outcome),
        })
    }

    /// Takes an event. What does not belong here ends the attempt (before the hand-over) or drops the link (after it).
    pub fn on(&mut self, now: Nanos, event: SourceEvent<'_>) {
        match event {
            SourceEvent::Done => self.done(now),
            SourceEvent::Failed => self.action_failed(now),
            SourceEvent::Harvested(words) => self.harvested(words),
            SourceEvent::PagesSent { data, zero } => self.pages_sent(now, data, zero),
            SourceEvent::LinkLost => self.link_lost(now, AbortReason::LinkLost),
            SourceEvent::Heard => self.last_heard = now,
            SourceEvent::Message(message) => {
                self.last_heard = now;
                self.message(now, &message);
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
        let lost = self.given_up && !self.link && !matches!(self.step, Step::Finished(_));
        match resolution {
            Resolution::RunHere if lost && !self.peer_running => {
                self.outstanding = false;
                self.step = Step::RecordRunning(AbortReason::Resolved);
            }
            Resolution::GiveUp if lost => {
                self.outstanding = false;
                self.step = Step::Finished(SourceOutcome::GaveUp);
            }
            _ => return Err(NotResolvable),
        }
        Ok(())
    }

    /// The target asks for a page on the fault channel. O(1).
    pub fn on_fault_request(&mut self, gfn: Gfn) -> FaultAnswer {
        if self.mode != Some(Mode::PostCopy) || !self.given_up || !run_in_regions(&self.config.regions, gfn, 1) {
            return FaultAnswer::Refuse;
        }
        self.served += 1;
        if self.pending.remove(gfn) {
            self.served_first += 1;
        }
        FaultAnswer::Send
    }

    fn done(&mut self, now: Nanos) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        self.step = match self.step {
            Step::Hello => Step::AwaitWelcome { since: now },
            Step::OpenFaultChannel => {
                self.fault_channel = true;
                self.first_step()
            }
            Step::StartTracking => {
                self.tracking = true;
                Step::RoundStart
            }
            Step::RoundStart => {
                self.round_started = now;
                Step::RoundPages
            }
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
            Step::ReopenFaultChannel => self.after_running(),
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
                Step::TellAbort(reason)
            }
            Step::TellAbort(reason) => Step::Finished(SourceOutcome::Aborted {
                reason,
                target_may_hold: false,
            }),
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
            Step::RecordRunning(_) | Step::RecordMovedAway | Step::StopTracking(_) | Step::TellAbort(_) => {
                self.outstanding = true;
                self.done(now);
            }
            Step::Reconnect { .. } => {
                self.step = Step::Reconnect {
                    not_before: now.saturating_add(RECONNECT_EVERY),
                }
            }
            _ if self.given_up => self.link_lost(now, AbortReason::LinkLost),
            _ => self.abort(AbortReason::SourceGuest),
        }
    }

    fn harvested(&mut self, words: &[u64]) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        if self.pending.union_words(0, words).is_err() {
            return self.abort(AbortReason::Internal);
        }
        match self.step {
            Step::RoundHarvest => self.end_round(),
            Step::FinalHarvest(mode) => {
                self.cursor = Gfn::ZERO;
                self.step = Step::FinalPages(mode);
            }
            _ => self.abort(AbortReason::Internal),
        }
    }

    fn pages_sent(&mut self, now: Nanos, data: Pages, zero: Pages) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        let Some(run) = self.last_chunk.take() else {
            return self.broken_law(now);
        };
        self.sent_data = self.sent_data.saturating_add(data);
        self.sent_zero = self.sent_zero.saturating_add(zero);
        if self.step == Step::Push {
            self.pushed += run.count.0;
        }
        if data.saturating_add(zero) != run.count || !self.balanced() {
            self.broken_law(now);
        }
    }

    /// Before the hand-over the attempt ends; afterwards a new connection starts from what the target says it lacks.
    fn broken_law(&mut self, now: Nanos) {
        if self.given_up {
            self.link_lost(now, AbortReason::Internal)
        } else {
            self.abort(AbortReason::Internal)
        }
    }

    /// The conservation law: within a round what was sent and what is pending make the round's pages; after the switch what was
    /// served, pushed and is pending make the final dirty set.
    fn balanced(&self) -> bool {
        match self.step {
            Step::RoundPages => self.sent_data.0 + self.sent_zero.0 + self.pending.len().0 == self.round_pages.0,
            Step::Push => self.served_first + self.pushed_first + self.pending.len().0 == self.final_pages.0,
            _ => true,
        }
    }

    fn begin_round(&mut self, now: Nanos) {
        self.round += 1;
        self.cursor = Gfn::ZERO;
        self.round_pages = self.pending.len();
        self.sent_data = Pages::ZERO;
        self.sent_zero = Pages::ZERO;
        self.round_started = now;
    }

    fn end_round(&mut self) {
        let end = RoundEnd {
            round: self.round,
            sent: self.sent_data,
            dirty: self.pending.len(),
            previous_dirty: self.previous_dirty,
            duration: self.round_ended.saturating_sub(self.round_started),
        };
        let verdict = self.switcher.on_round(&end);
        self.last_round = Some(RoundReport {
            round: end.round,
            duration: end.duration,
            sent: end.sent,
            zero: self.sent_zero,
            dirty: end.dirty,
            lambda_milli: end.lambda_milli(),
            sdf_milli: end.sdf_milli(),
            verdict,
        });
        self.previous_dirty = end.dirty;
        self.step = match verdict.decision {
            Decision::Continue => Step::RoundStart,
            Decision::StopCopy => Step::Pause(Mode::StopCopy),
            Decision::PostCopy => Step::Pause(Mode::PostCopy),
        };
    }

    /// Takes the next chunk out of the pending set, from the cursor upwards, then from the start.
    fn next_chunk(&mut self, within: Option<Run>) -> Option<Run> {
        let from = within.map_or(self.cursor, |run| run.first);
        let mut run = match self.pending.next_run(from, CHUNK) {
            Some(run) => run,
            None if within.is_none() && from > Gfn::ZERO => self.pending.next_run(Gfn::ZERO, CHUNK)?,
            None => return None,
        };
        if let Some(within) = within {
            if run.first >= within.end() {
                return None;
            }
            run.count = run.count.min(Pages(within.end().0 - run.first.0));
        }
        // A run never crosses a region's end: the gap is never pending.
        self.pending.remove_run(run);
        if self.step == Step::Push {
            self.pushed_first += run.count.0;
        }
        self.cursor = run.end();
        self.last_chunk = Some(run);
        Some(run)
    }

    /// Stop-and-copy sends everything; post-copy only what the target's host reads itself.
    fn next_final_chunk(&mut self, mode: Mode) -> Option<Run> {
        if mode == Mode::StopCopy {
            return self.next_chunk(None);
        }
        (0..self.config.host_pages.len()).find_map(|index| self.next_chunk(Some(self.config.host_pages[index])))
    }

    fn first_step(&self) -> Step {
        // `rounds:0` is pure post-copy: nothing is copied before the pause, so nothing needs tracking.
        if self.switcher.starts_with_post_copy() {
            Step::Pause(Mode::PostCopy)
        } else {
            Step::StartTracking
        }
    }

    /// What is left to do once the target runs the VM.
    fn after_running(&mut self) -> Step {
        self.cursor = Gfn::ZERO;
        match self.mode {
            Some(Mode::PostCopy) => {
                self.final_pages = self.pending.len();
                self.served_first = 0;
                self.pushed_first = 0;
                Step::Push
            }
            _ if self.config.verify && !self.hashes_sent => Step::Hashes,
            _ => Step::AwaitComplete,
        }
    }

    fn message(&mut self, now: Nanos, message: &Message<'_>) {
        match (message, self.step) {
            (Message::Welcome { .. }, Step::AwaitWelcome { .. }) => {
                self.welcomed = true;
                self.step = if self.config.strategy.can_post_copy() {
                    Step::OpenFaultChannel
                } else {
                    self.first_step()
                };
            }
            (Message::Refused(refusal), Step::AwaitWelcome { .. }) => {
                self.step = Step::Finished(SourceOutcome::Refused(*refusal));
            }
            (Message::Ready, Step::AwaitReady { .. }) => self.step = Step::RecordGivenUp,
            // A target that says Abort before it took the VM has promised never to run it.
            (Message::Abort(_), _) if self.peer_running => self.violation(now, Violation::UnexpectedMessage),
            (Message::Abort(_), _) if self.given_up => self.take_back(AbortReason::Peer),
            (Message::Abort(reason), _) => {
                let reason = match reason {
                    AbortReason::Protocol(violation) => AbortReason::Protocol(*violation),
                    AbortReason::TargetGuest | AbortReason::Record => *reason,
                    _ => AbortReason::Peer,
                };
                self.handover_sent = false;
                self.abort(reason);
            }
            (Message::Running, Step::AwaitRunning { .. }) => {
                self.running(now);
                self.step = self.after_running();
            }
            (Message::Complete(report), _) if self.peer_running => {
                self.heard.report = Some(*report);
                if self.mode == Some(Mode::PostCopy) && !self.pending.is_empty() {
                    self.violation(now, Violation::PagesMissing);
                }
            }
            (Message::Resumed(standing), Step::AwaitResumed { .. }) => self.resumed(now, *standing),
            (Message::Missing { first_word, words }, Step::AwaitMissing { found }) => {
                match self.missing(*first_word, words) {
                    Some(more) => {
                        self.step = Step::AwaitMissing {
                            found: found.saturating_add(more),
                        }
                    }
                    None => self.violation(now, Violation::BitmapChunk),
                }
            }
            (Message::MissingEnd { pages }, Step::AwaitMissing { found }) if *pages == found => {
                self.step = Step::ReopenFaultChannel;
            }
            _ => self.violation(now, Violation::UnexpectedMessage),
        }
    }

    fn running(&mut self, now: Nanos) {
        self.peer_running = true;
        self.running_heard.get_or_insert(now);
    }

    fn resumed(&mut self, now: Nanos, standing: TargetStanding) {
        match standing {
            TargetStanding::Ready if !self.peer_running => self.step = Step::Commit,
            TargetStanding::Complete => {
                self.running(now);
                self.pending.clear();
                // The target starts its comparison anew with a new connection.
                self.hashes_sent = false;
                self.final_pages = Pages::ZERO;
                self.step = if self.config.verify {
                    Step::Hashes
                } else {
                    Step::AwaitComplete
                };
            }
            TargetStanding::PostCopy if self.mode == Some(Mode::PostCopy) => {
                self.running(now);
                self.pending.clear();
                self.hashes_sent = false;
                self.step = Step::AwaitMissing { found: Pages::ZERO };
            }
            TargetStanding::NeverTaken if !self.peer_running => self.take_back(AbortReason::TargetRestarted),
            // It knows nothing: perhaps another process listens there now. Only a person can tell.
            _ => self.link_lost(now, AbortReason::LinkLost),
        }
    }

    fn missing(&mut self, first_word: u64, words: &[u8]) -> Option<Pages> {
        let mut found = 0u64;
        let (chunks, rest) = words.as_chunks::<8>();
        if !rest.is_empty() {
            return None;
        }
        for (index, bytes) in chunks.iter().enumerate() {
            let word = u64::from_le_bytes(*bytes);
            let at = usize::try_from(first_word).ok()?.checked_add(index)?;
            found += self.pending.union_words(at, &[word]).ok()?.0;
        }
        Some(Pages(found))
    }

    fn link_lost(&mut self, now: Nanos, reason: AbortReason) {
        if matches!(self.step, Step::Finished(_)) {
            return;
        }
        self.link = false;
        if self.step == Step::RecordGivenUp && self.outstanding {
            // The record is being written: its outcome decides, not the link.
            return;
        }
        if !self.given_up {
            return self.abort(reason);
        }
        self.outstanding = false;
        self.last_chunk = None;
        match self.step {
            Step::Bye
            | Step::RecordMovedAway
            | Step::RecordRunning(_)
            | Step::ResumeGuest(_)
            | Step::StopTracking(_)
            | Step::TellAbort(_) => {}
            _ if self.heard.report.is_some() => self.step = Step::RecordMovedAway,
            _ if self.peer_running && self.mode == Some(Mode::PostCopy) && !self.config.strategy.reconnects() => {
                self.step = Step::Finished(SourceOutcome::Lost);
            }
            _ => {
                self.step = Step::Reconnect {
                    not_before: now.saturating_add(RECONNECT_FIRST),
                }
            }
        }
    }

    /// Before the hand-over the guest goes on here; afterwards the connection is not trusted any more.
    fn violation(&mut self, now: Nanos, violation: Violation) {
        if self.given_up || (self.step == Step::RecordGivenUp && self.outstanding) {
            self.link_lost(now, AbortReason::Protocol(violation));
        } else {
            self.abort(AbortReason::Protocol(violation));
        }
    }

    fn take_back(&mut self, reason: AbortReason) {
        self.handover_sent = false;
        self.welcomed = false;
        self.step = Step::RecordRunning(reason);
    }

    fn abort(&mut self, reason: AbortReason) {
        let leaving = matches!(
            self.step,
            Step::ResumeGuest(_)
                | Step::StopTracking(_)
                | Step::TellAbort(_)
                | Step::RecordRunning(_)
                | Step::Finished(_)
        );
        if leaving || self.given_up {
            return;
        }
        if self.outstanding {
            // The host reports an outstanding pause or start of tracking after all: assume that it happened.
            self.paused |= matches!(self.step, Step::Pause(_));
            self.tracking |= self.step == Step::StartTracking;
            self.outstanding = false;
        }
        self.step = if self.step == Step::RecordGivenUp {
            Step::RecordRunning(reason)
        } else {
            Step::ResumeGuest(reason)
        };
    }

    fn check_time(&mut self, now: Nanos) {
        let late = |since: Nanos| now >= since.saturating_add(self.config.handover_timeout);
        let silent = now >= self.silence_at();
        match self.step {
            Step::AwaitWelcome { since } | Step::AwaitReady { since } if late(since) => {
                self.abort(AbortReason::Silence)
            }
            Step::RoundPages | Step::RoundIdle { .. } if silent => self.abort(AbortReason::Silence),
            Step::AwaitRunning { since } | Step::AwaitResumed { since } if late(since) || silent => {
                self.link_lost(now, AbortReason::Silence);
            }
            Step::Push | Step::AwaitComplete | Step::AwaitMissing { .. } if silent => {
                self.link_lost(now, AbortReason::Silence);
            }
            _ => {}
        }
    }

    fn silence_at(&self) -> Nanos {
        self.last_heard.saturating_add(self.config.network_timeout)
    }

    /// Pages the target does not have, or not as they are.
    pub fn pending(&self) -> &PageSet<'w> {
        &self.pending
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &SourceConfig {
        &self.config
    }

    /// Where the attempt stands.
    pub fn phase(&self) -> Phase {
        match self.step {
            Step::Hello | Step::AwaitWelcome { .. } | Step::OpenFaultChannel => Phase::Connecting,
            Step::Finished(SourceOutcome::Completed) | Step::Bye | Step::RecordMovedAway => Phase::Complete,
            Step::Finished(SourceOutcome::Lost) => Phase::PostCopyPaused,
            Step::Finished(_)
            | Step::ResumeGuest(_)
            | Step::StopTracking(_)
            | Step::TellAbort(_)
            | Step::RecordRunning(_) => Phase::Aborted,
            _ if self.peer_running && !self.link => Phase::PostCopyPaused,
            _ if self.peer_running => Phase::PostCopy,
            _ if self.given_up && !self.link => Phase::HandOverUnknown,
            _ if self.paused || matches!(self.step, Step::Pause(_)) => Phase::HandOver,
            _ => Phase::PreCopy,
        }
    }

    /// The current round, from 1; 0 before the first.
    pub fn round(&self) -> u32 {
        self.round
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

    /// True once the record says given-up and until the VM is taken back.
    pub fn given_up(&self) -> bool {
        self.given_up
    }
}

fn wait(until: Nanos) -> SourceAction {
    SourceAction::Wait { until: Some(until) }
}
