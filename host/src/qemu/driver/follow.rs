//! From the beginning to the end: what both say, and what is done about it.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Instant;

use dunlin_core::steer::{Order, Steering};
use dunlin_core::switch::Reason;
use dunlin_core::units::Bytes;
use serde_json::{Map, json};

use super::super::link::Role;
use super::super::plan::nanos;
use super::super::settings::set_parameters;
use super::super::{GuestStatus, Info, Notice, Outcome, Phase, QmpError, Report};
use super::{ADVICE, Driver, News, PERIOD};

/// A source learns only that the target has hung up.
const NO_REASON: &str =
    "QEMU does not say why: the target's own output may; both need the same devices in the same order";

impl Driver<'_> {
    /// Until the end.
    pub(super) fn follow(mut self) -> Report {
        let mut next_poll = Instant::now();
        loop {
            let mut pass_at = None;
            match self
                .notices
                .recv_timeout(next_poll.saturating_duration_since(Instant::now()))
            {
                Ok((role, notice)) => pass_at = self.on_notice(role, notice),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this holds a sender"),
            }
            if self.interrupt.lower() && !self.on_interrupt() {
                return self.report(
                    Outcome::Left,
                    Some("the driver was stopped; `dunlin qemu resume` goes on".into()),
                );
            }
            if pass_at.is_none() && Instant::now() < next_poll {
                continue;
            }
            next_poll = Instant::now() + PERIOD;
            self.target.keep();
            let info = match self.source.keep().then(|| self.source.connected().and_then(Info::ask)) {
                Some(Ok(info)) => info,
                Some(Err(error)) if error.is_broken() => {
                    self.source.lost();
                    continue;
                }
                // Its main loop hangs, or it is being reached again. What it was told last it does meanwhile.
                Some(Err(_)) => continue,
                None => match self.without_source() {
                    Some((outcome, reason)) => return self.end(outcome, reason),
                    None => continue,
                },
            };
            if let Some((outcome, reason)) = self.on_info(info, pass_at.unwrap_or_else(Instant::now)) {
                return self.end(outcome, reason);
            }
        }
    }

    /// The time, if it is that of the source having read its dirty log.
    pub(super) fn on_notice(&mut self, role: Role, notice: Notice) -> Option<Instant> {
        match notice {
            Notice::Closed => match role {
                Role::Source => self.source.lost(),
                Role::Target => self.target.lost(),
            },
            Notice::Event { name, at, .. } => match (role, name.as_str()) {
                (Role::Source, "MIGRATION_PASS" | "MIGRATION") => return Some(at),
                (Role::Source, "STOP") => self.course.stopped_at = Some(at),
                (Role::Source, "RESUME") => self.course.stopped_at = None,
                (Role::Target, "RESUME") => {
                    self.course.resumed_at.get_or_insert(at);
                }
                _ => {}
            },
        }
        None
    }

    /// Whether the driver goes on.
    fn on_interrupt(&mut self) -> bool {
        if self.course.cancelled {
            return false;
        }
        // Somebody else may have switched since it was asked last.
        let phase = self.source.connected().and_then(Info::ask).map(|info| info.phase);
        let is_past_switch = phase.is_ok_and(|phase| phase.is_past_switch());
        if is_past_switch || self.course.is_past_switch() {
            self.course.cancelled = true;
            (self.news)(News::Message(
                "too late to cancel: the guest runs on the target, and cancelling would lose it; interrupt again to leave it to itself".into(),
            ));
            return true;
        }
        self.course.cancelled = true;
        (self.news)(News::Message(
            "cancelling; interrupt again to leave the migration to itself".into(),
        ));
        if let Err(error) = self.source.execute("migrate_cancel", &json!({})) {
            self.course.warnings.push(format!("it could not be cancelled: {error}"));
        }
        true
    }

    /// What the source says; how it ended, if it has.
    fn on_info(&mut self, info: Info, at: Instant) -> Option<(Outcome, Option<String>)> {
        if info.phase != self.course.phase {
            self.course.phase = info.phase.clone();
            (self.news)(News::Phase(info.phase.clone()));
        }
        let ended = match &info.phase {
            Phase::Active => {
                self.steer(&info, at);
                if let Some(softening) = &mut self.softening {
                    softening.attend(&self.source);
                }
                None
            }
            Phase::PostCopy | Phase::Paused | Phase::Recovering => self.recover(&info),
            Phase::Completed => Some((Outcome::Completed, None)),
            // QEMU cancels by ending the connection, and may see that as a failure first.
            Phase::Failed if self.course.cancelled && self.course.switched_at.is_none() => {
                Some((Outcome::Cancelled, Some("it was cancelled".into())))
            }
            Phase::Failed => {
                let reason = info.error.clone().unwrap_or_else(|| NO_REASON.into());
                Some((Outcome::Failed, Some(reason)))
            }
            Phase::Cancelled | Phase::None if self.course.cancelled => {
                Some((Outcome::Cancelled, Some("it was cancelled".into())))
            }
            Phase::Cancelled => Some((Outcome::Cancelled, Some("somebody else cancelled it".into()))),
            _ => None,
        };
        (self.news)(News::Progress(info.clone()));
        // Of what was cancelled or has failed, QEMU may keep no count.
        if info.transferred > Bytes::ZERO || self.course.last.transferred == Bytes::ZERO {
            self.course.last = info;
        }
        ended
    }

    fn steer(&mut self, info: &Info, at: Instant) {
        // The last reading of the dirty log, while the guest is paused, ends no round.
        if info.total.0 == 0 || self.course.stopped_at.is_some() {
            return;
        }
        let plan = self.plan;
        let steering = self
            .steering
            .get_or_insert_with(|| Steering::new(plan.rule, plan.setting(info.total), plan.limits()));
        if steering.starts_with_post_copy() && self.course.switched_at.is_none() {
            self.switch(0, "the rule begins with post-copy".into());
            return;
        }
        let elapsed = nanos(at.saturating_duration_since(self.course.began));
        let Some(turn) = steering.on_counters(&info.counters(elapsed)) else {
            return;
        };
        self.course.rounds.push(turn);
        (self.news)(News::Turn(turn));
        // What was told is on its way; it may have been the last thing before the switch.
        if self.course.switched_at.is_some() || self.course.cancelled {
            return;
        }
        let told = match turn.order {
            Order::Continue => self.allow_pause(self.plan.first_pause_ms()),
            Order::LetStop => {
                let pause = match turn.verdict.reason {
                    Reason::FitsStep { downtime } => downtime.0.div_ceil(1_000_000),
                    _ => self.plan.pause_ms(),
                };
                self.allow_pause(pause)
            }
            Order::Stop => self.allow_pause(self.plan.any_pause_ms()),
            Order::PostCopy => {
                self.switch(turn.pass.end.round, turn.verdict.reason.to_string());
                Ok(())
            }
        };
        if let Err(error) = told {
            self.course
                .warnings
                .push(format!("after round {}: {error}", turn.pass.end.round));
        }
    }

    fn switch(&mut self, round: u32, reason: String) {
        match self.source.execute("migrate-start-postcopy", &json!({})) {
            Ok(_) => self.course.switched_at = Some((Instant::now(), round, reason)),
            Err(error) => self
                .course
                .warnings
                .push(format!("the switch after round {round}: {error}")),
        }
    }

    fn allow_pause(&mut self, ms: u64) -> Result<(), QmpError> {
        if self.pause_ms == Some(ms) {
            return Ok(());
        }
        let mut parameters = Map::new();
        parameters.insert("downtime-limit".into(), json!(ms));
        set_parameters(self.source.connected()?, &parameters)?;
        self.pause_ms = Some(ms);
        Ok(())
    }

    fn recover(&mut self, info: &Info) -> Option<(Outcome, Option<String>)> {
        if info.phase == Phase::Paused && self.target.is_gone() {
            let reason = if self.course.never_ran_there() {
                ADVICE
            } else {
                "the target's QEMU has ended in post-copy, and with it what the guest had written there"
            };
            return Some((Outcome::Failed, Some(reason.into())));
        }
        if self.course.switched_at.is_none() {
            self.course.switched_at = Some((
                Instant::now(),
                info.syncs.saturating_sub(1),
                "somebody else switched".into(),
            ));
        }
        let [version, _] = self.versions;
        if let Some(message) = self.reconnect.attend(info, &self.source, &self.target, version) {
            (self.news)(News::Message(message));
        }
        None
    }

    /// There is no source to be asked. How it ended, if it has.
    fn without_source(&mut self) -> Option<(Outcome, Option<String>)> {
        // It needs the source no more, if it has everything.
        let target = self
            .target
            .connected()
            .and_then(|client| Ok((GuestStatus::ask(client)?, Info::ask(client)?)));
        if let Ok((status, info)) = &target
            && status.running
            && info.phase == Phase::Completed
        {
            return Some((Outcome::Completed, Some("the source does not answer any more".into())));
        }
        if !self.source.is_gone() {
            return None;
        }
        let reason = match target {
            Ok((status, _)) if status.running => {
                "the source's QEMU has ended in post-copy, and with it what had not been sent yet"
            }
            _ => "the source's QEMU has ended, and its guest with it",
        };
        Some((Outcome::Failed, Some(reason.into())))
    }
}
