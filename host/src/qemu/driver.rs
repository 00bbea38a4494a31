//! The migration, from the first command to the last: events and counters of both QEMUs in, commands out.
//!
//! What is decided is decided by [`Steering`]; what is done here is to hear, to tell, and never to lose the guest:
//!
//! - After the switch nothing is cancelled. QEMU 7.2 does not refuse it, and the guest would be lost (migration_cancel is unconditional).
//! - A connection that breaks in post-copy is made again, until the migration is complete or somebody stops the driver.
//! - The driver can be killed at any moment: QEMU goes on as it was told last, and [`Memo`] tells the next driver what to put back.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use dunlin_core::steer::{Order, Steering, Turn};
use dunlin_core::switch::Reason;
use dunlin_core::units::Bytes;
use serde_json::{Map, json};

use super::link::{Link, Role};
use super::plan::nanos;
use super::recover::Recovery;
use super::settings::{set_capabilities, set_parameters};
use super::{
    Finding, GuestStatus, Holder, Info, Memo, Notice, Outcome, Phase, Plan, QmpError, Report, Settings, Severity, Side,
    Switch, preflight,
};
use crate::channel::Cancel;

/// How often the source is asked when it says nothing by itself.
const PERIOD: Duration = Duration::from_millis(100);
/// How long the target may take to run the guest after the source has said that it is done.
const ARRIVAL: Duration = Duration::from_secs(20);
/// How long events are waited for that belong to the end.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// How long QEMU may take to let a migration fail or be cancelled.
const ENDING: Duration = Duration::from_secs(30);

/// Why a migration did not begin, or is not steered any more.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// Something stands in its way.
    #[error("the migration was not begun, nothing was changed:{}", list(.0))]
    Preflight(Vec<Finding>),

    /// A QEMU.
    #[error("the {}", role.name())]
    Qmp {
        /// Which.
        role: Role,
        /// What it is.
        source: QmpError,
    },

    /// The memo for the next driver.
    #[error("cannot write what a later `dunlin qemu resume` needs into {}; name another folder with --state", folder.display())]
    Memo {
        /// Where.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// There is nothing to be taken over.
    #[error("no migration is going on: {0}")]
    Nothing(String),
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("\n  {finding}")).collect()
}

/// What happens meanwhile, for whoever watches.
#[derive(Clone, PartialEq, Debug)]
pub enum News {
    /// What was found before the beginning.
    Found(Finding),
    /// The migration is in this phase now.
    Phase(Phase),
    /// A round has ended.
    Turn(Turn),
    /// How far it is.
    Progress(Info),
    /// Something else, in a sentence.
    Message(String),
}

/// A migration that is steered.
pub struct Driver<'a> {
    plan: &'a Plan,
    folder: &'a Path,
    interrupt: &'a Cancel,
    news: &'a mut dyn FnMut(News),
    source: Link,
    target: Link,
    notices: Receiver<(Role, Notice)>,
    memo: Option<Memo>,
    steering: Option<Steering>,
    began: Instant,
    phase: Phase,
    pause_ms: Option<u64>,
    stopped_at: Option<Instant>,
    resumed_at: Option<Instant>,
    switched_at: Option<(Instant, u32, String)>,
    last: Info,
    recovery: Recovery,
    cancelled: bool,
    took_over: bool,
    rounds: Vec<Turn>,
    findings: Vec<Finding>,
    warnings: Vec<String>,
    versions: [super::Version; 2],
}

impl<'a> Driver<'a> {
    /// Connects to both.
    ///
    /// # Errors
    /// [`DriveError::Qmp`].
    pub fn connect(
        plan: &'a Plan,
        folder: &'a Path,
        interrupt: &'a Cancel,
        news: &'a mut dyn FnMut(News),
    ) -> Result<Self, DriveError> {
        let (sender, notices) = mpsc::channel();
        let link = |role, address| {
            Link::connect(role, address, sender.clone()).map_err(|source| DriveError::Qmp { role, source })
        };
        let (source, target) = (link(Role::Source, &plan.source)?, link(Role::Target, &plan.target)?);
        let version = |link: &Link| link.client().map(super::Client::version).unwrap_or_default();
        Ok(Self {
            versions: [version(&source), version(&target)],
            plan,
            folder,
            interrupt,
            news,
            source,
            target,
            notices,
            memo: None,
            steering: None,
            began: Instant::now(),
            phase: Phase::None,
            pause_ms: None,
            stopped_at: None,
            resumed_at: None,
            switched_at: None,
            last: Info::default(),
            recovery: Recovery::new(plan),
            cancelled: false,
            took_over: false,
            rounds: vec![],
            findings: vec![],
            warnings: vec![],
        })
    }

    /// Begins the migration, and steers it to its end.
    ///
    /// # Errors
    /// [`DriveError`] if it did not begin. What happens later is in the report.
    pub fn migrate(mut self) -> Result<Report, DriveError> {
        let [source, target] = self.ask_both()?;
        let client = self.target.connected().map_err(at(Role::Target))?;
        self.findings = preflight::check(self.plan, &source, &target, client).map_err(at(Role::Target))?;
        for finding in &self.findings {
            (self.news)(News::Found(finding.clone()));
        }
        if self.findings.iter().any(|finding| finding.severity == Severity::Error) {
            let errors = self.findings.into_iter();
            return Err(DriveError::Preflight(
                errors.filter(|finding| finding.severity == Severity::Error).collect(),
            ));
        }
        self.set_up(&source, &target)?;
        let begun = self.begin(&target);
        if let Err(error) = begun {
            self.put_back();
            return Err(error);
        }
        Ok(self.follow())
    }

    /// Takes over a migration that is going on, and steers it to its end.
    ///
    /// # Errors
    /// [`DriveError::Nothing`] if there is none.
    pub fn resume(mut self) -> Result<Report, DriveError> {
        self.took_over = true;
        self.memo = Memo::read(self.folder, &self.plan.source);
        let info = Info::ask(self.source.connected().map_err(at(Role::Source))?).map_err(at(Role::Source))?;
        let ended_meanwhile = self.memo.is_some() && info.phase != Phase::None;
        if !info.phase.is_going_on() && !ended_meanwhile {
            let [source, target] = [&self.source, &self.target].map(|link| link.client().map(GuestStatus::ask));
            let word = |status: Option<Result<GuestStatus, QmpError>>| match status {
                Some(Ok(status)) => status.name,
                _ => "unknown".into(),
            };
            let (source, target) = (word(source), word(target));
            // Begun or not, whoever began it changed settings.
            self.put_back();
            return Err(DriveError::Nothing(format!(
                "the source's guest is {source}, the target's {target}; `dunlin qemu migrate` begins one"
            )));
        }
        if info.phase.is_past_switch() {
            let reason = "before this driver took over".to_owned();
            self.switched_at = Some((Instant::now(), info.syncs.saturating_sub(1), reason));
        }
        self.began = Instant::now().checked_sub(info.total_time).unwrap_or_else(Instant::now);
        Ok(self.follow())
    }

    fn ask_both(&self) -> Result<[Side; 2], DriveError> {
        let ask = |link: &Link, role| {
            let side = link.connected().and_then(Side::ask);
            side.map_err(at(role))
        };
        Ok([ask(&self.source, Role::Source)?, ask(&self.target, Role::Target)?])
    }

    /// Writes down what both have, and sets what the plan needs.
    fn set_up(&mut self, source: &Side, target: &Side) -> Result<(), DriveError> {
        let capabilities = self.plan.capabilities();
        let parameters = [self.plan.source_parameters(), self.plan.target_parameters()];
        let memo = Memo::new(
            self.plan,
            Settings::of(source, &capabilities, &parameters[0]),
            Settings::of(target, &capabilities, &parameters[1]),
            source.guest.running,
        );
        memo.write(self.folder, &self.plan.source)
            .map_err(|source| DriveError::Memo {
                folder: self.folder.to_owned(),
                source,
            })?;
        self.memo = Some(memo);
        let set = |role, link: &Link, parameters| {
            let set = link.connected().and_then(|client| {
                set_capabilities(client, capabilities.iter().map(|name| (*name, true)))?;
                set_parameters(client, parameters)
            });
            set.map_err(at(role))
        };
        let done = set(Role::Target, &self.target, &parameters[1])
            .and_then(|()| set(Role::Source, &self.source, &parameters[0]));
        if let Err(error) = done {
            self.put_back();
            return Err(error);
        }
        self.pause_ms = Some(self.plan.first_pause_ms());
        Ok(())
    }

    fn begin(&mut self, target: &Side) -> Result<(), DriveError> {
        // One that was started with an address listens already.
        if target.migration.phase == Phase::None {
            let incoming = json!({ "uri": self.plan.incoming() });
            self.target
                .execute("migrate-incoming", &incoming)
                .map_err(at(Role::Target))?;
        }
        self.began = Instant::now();
        self.source
            .execute("migrate", &json!({ "uri": self.plan.uri }))
            .map_err(at(Role::Source))?;
        Ok(())
    }

    /// Until the end.
    fn follow(mut self) -> Report {
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
    fn on_notice(&mut self, role: Role, notice: Notice) -> Option<Instant> {
        match notice {
            Notice::Closed => match role {
                Role::Source => self.source.lost(),
                Role::Target => self.target.lost(),
            },
            Notice::Event { name, at, .. } => match (role, name.as_str()) {
                (Role::Source, "MIGRATION_PASS" | "MIGRATION") => return Some(at),
                (Role::Source, "STOP") => self.stopped_at = Some(at),
                (Role::Source, "RESUME") => self.stopped_at = None,
                (Role::Target, "RESUME") => {
                    self.resumed_at.get_or_insert(at);
                }
                _ => {}
            },
        }
        None
    }

    /// Whether the driver goes on.
    fn on_interrupt(&mut self) -> bool {
        if self.cancelled {
            return false;
        }
        // Somebody else may have switched since it was asked last.
        let phase = self.source.connected().and_then(Info::ask).map(|info| info.phase);
        let is_past_switch = phase.as_ref().unwrap_or(&self.phase).is_past_switch();
        if is_past_switch || self.phase.is_past_switch() || self.switched_at.is_some() {
            self.cancelled = true;
            (self.news)(News::Message(
                "too late to cancel: the guest runs on the target, and cancelling would lose it; interrupt again to leave it to itself".into(),
            ));
            return true;
        }
        self.cancelled = true;
        (self.news)(News::Message(
            "cancelling; interrupt again to leave the migration to itself".into(),
        ));
        if let Err(error) = self.source.execute("migrate_cancel", &json!({})) {
            self.warnings.push(format!("it could not be cancelled: {error}"));
        }
        true
    }

    /// What the source says; how it ended, if it has.
    fn on_info(&mut self, info: Info, at: Instant) -> Option<(Outcome, Option<String>)> {
        if info.phase != self.phase {
            self.phase = info.phase.clone();
            (self.news)(News::Phase(info.phase.clone()));
        }
        let ended = match &info.phase {
            Phase::Active => {
                self.steer(&info, at);
                None
            }
            Phase::PostCopy | Phase::Paused | Phase::Recovering => self.recover(&info),
            Phase::Completed => Some((Outcome::Completed, None)),
            // QEMU cancels by ending the connection, and may see that as a failure first.
            Phase::Failed if self.cancelled && self.switched_at.is_none() => {
                Some((Outcome::Cancelled, Some("it was cancelled".into())))
            }
            Phase::Failed => {
                let reason = info.error.clone().unwrap_or_else(|| "QEMU does not say why".into());
                Some((Outcome::Failed, Some(reason)))
            }
            Phase::Cancelled | Phase::None if self.cancelled => {
                Some((Outcome::Cancelled, Some("it was cancelled".into())))
            }
            Phase::Cancelled => Some((Outcome::Cancelled, Some("somebody else cancelled it".into()))),
            _ => None,
        };
        (self.news)(News::Progress(info.clone()));
        // Of what was cancelled or has failed, QEMU may keep no count.
        if info.transferred > Bytes::ZERO || self.last.transferred == Bytes::ZERO {
            self.last = info;
        }
        ended
    }

    fn steer(&mut self, info: &Info, at: Instant) {
        // The last reading of the dirty log, while the guest is paused, ends no round.
        if info.total.0 == 0 || self.stopped_at.is_some() {
            return;
        }
        let plan = self.plan;
        let steering = self
            .steering
            .get_or_insert_with(|| Steering::new(plan.rule, plan.setting(info.total), plan.limits()));
        if steering.starts_with_post_copy() && self.switched_at.is_none() {
            self.switch(0, "the rule begins with post-copy".into());
            return;
        }
        let elapsed = nanos(at.saturating_duration_since(self.began));
        let Some(turn) = steering.on_counters(&info.counters(elapsed)) else {
            return;
        };
        self.rounds.push(turn);
        (self.news)(News::Turn(turn));
        // What was told is on its way; it may have been the last thing before the switch.
        if self.switched_at.is_some() || self.cancelled {
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
            self.warnings
                .push(format!("after round {}: {error}", turn.pass.end.round));
        }
    }

    fn switch(&mut self, round: u32, reason: String) {
        match self.source.execute("migrate-start-postcopy", &json!({})) {
            Ok(_) => self.switched_at = Some((Instant::now(), round, reason)),
            Err(error) => self.warnings.push(format!("the switch after round {round}: {error}")),
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
            let reason = if self.never_ran_there() {
                "the target's QEMU has ended before it said that the guest runs: if nobody has seen the guest there, its memory at the \
                 source is whole, and `cont` at the source's monitor runs it on"
            } else {
                "the target's QEMU has ended in post-copy, and with it what the guest had written there"
            };
            return Some((Outcome::Failed, Some(reason.into())));
        }
        if self.switched_at.is_none() {
            self.switched_at = Some((
                Instant::now(),
                info.syncs.saturating_sub(1),
                "somebody else switched".into(),
            ));
        }
        for message in self.recovery.attend(info, &self.source, &self.target) {
            (self.news)(News::Message(message));
        }
        None
    }

    /// Whether nothing says that the guest has run on the target, which this driver has listened to since before the switch. QEMU 7.2 to
    /// 10.1 end there when the connection breaks while they load the state of devices.
    fn never_ran_there(&self) -> bool {
        self.resumed_at.is_none() && !self.took_over && self.switched_at.is_some()
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

    /// It has ended: waits until both have settled, and puts back what was changed.
    fn end(mut self, outcome: Outcome, reason: Option<String>) -> Report {
        let deadline = Instant::now()
            + match outcome {
                Outcome::Completed => ARRIVAL,
                _ => ENDING,
            };
        let wants_to_run = self.memo.as_ref().is_none_or(|memo| memo.was_running);
        while Instant::now() < deadline {
            while let Ok((role, notice)) = self.notices.try_recv() {
                self.on_notice(role, notice);
            }
            let [source, target] = self.statuses();
            let settled = match outcome {
                Outcome::Completed => target.is_some_and(|it| it.name != "inmigrate" && it.running == wants_to_run),
                _ => source.is_none_or(|it| it.running || !wants_to_run),
            };
            if settled {
                break;
            }
            if outcome != Outcome::Completed && self.may_go_on_at_source() {
                // QEMU leaves it paused when the target failed late.
                if let Err(error) = self.source.execute("cont", &json!({})) {
                    self.warnings
                        .push(format!("the guest could not be resumed at the source: {error}"));
                    break;
                }
            }
            if self.source.client().is_none() && self.target.client().is_none() {
                break;
            }
            std::thread::sleep(PERIOD);
            self.target.keep();
        }
        // Events of the last moment; a guest may be the cause of others without end.
        let last = Instant::now() + LAST_EVENTS;
        while let Ok((role, notice)) = self.notices.recv_timeout(PERIOD)
            && Instant::now() < last
        {
            self.on_notice(role, notice);
        }
        self.put_back();
        self.report(outcome, reason)
    }

    fn statuses(&mut self) -> [Option<GuestStatus>; 2] {
        [&mut self.source, &mut self.target].map(|link| match link.client().map(GuestStatus::ask)? {
            Ok(status) => Some(status),
            Err(error) => {
                if error.is_broken() {
                    link.lost();
                }
                None
            }
        })
    }

    /// Whether the guest stands still at the source, and certainly does not run on the target.
    fn may_go_on_at_source(&mut self) -> bool {
        if self.switched_at.is_some() || self.phase.is_past_switch() {
            return false;
        }
        let [source, target] = self.statuses();
        let stands_still = source.is_some_and(|it| ["postmigrate", "finish-migrate"].contains(&it.name.as_str()));
        let never_ran = target.map_or(self.target.is_gone(), |it| !it.running && it.name == "inmigrate");
        stands_still && never_ran
    }

    fn put_back(&mut self) {
        let Some(memo) = self.memo.take() else {
            return;
        };
        for (link, settings) in [(&self.source, &memo.source), (&self.target, &memo.target)] {
            let Some(client) = link.client() else {
                continue;
            };
            if let Err(error) = settings.apply(client)
                && !error.is_broken()
            {
                self.warnings.push(format!("settings were not put back: {error}"));
            }
        }
        Memo::remove(self.folder, &self.plan.source);
    }

    fn holder(&mut self, outcome: Outcome) -> Holder {
        let switched = self.switched_at.is_some() || self.phase.is_past_switch();
        let (source_gone, target_gone) = (self.source.is_gone(), self.target.is_gone());
        let [source, target] = self.statuses();
        let is_complete = outcome == Outcome::Completed;
        match (source, target) {
            (_, Some(target)) if is_complete && target.name != "inmigrate" => Holder::Target,
            _ if target_gone && !is_complete && self.never_ran_there() => Holder::Unknown,
            _ if switched && !is_complete && (source_gone || target_gone) => Holder::Nobody,
            (Some(_), Some(_)) if switched && !is_complete => Holder::Both,
            (Some(_), _) if !switched && !is_complete => Holder::Source,
            (None, _) if !switched && source_gone => Holder::Nobody,
            _ => Holder::Unknown,
        }
    }

    fn report(mut self, outcome: Outcome, reason: Option<String>) -> Report {
        let now = Instant::now();
        let holder = self.holder(outcome);
        let total_time = match outcome {
            Outcome::Completed if self.last.total_time > Duration::ZERO => self.last.total_time,
            _ => now.saturating_duration_since(self.began),
        };
        let switch = self.switched_at.take().map(|(at, round, reason)| Switch {
            round,
            reason,
            lasted: (self.began + total_time).saturating_duration_since(at),
        });
        let pause = match (self.stopped_at, self.resumed_at) {
            (Some(stopped), Some(resumed)) => Some(resumed.saturating_duration_since(stopped)),
            _ => None,
        };
        Report {
            rule: self.plan.rule.to_string(),
            outcome,
            reason,
            holder,
            versions: self.versions,
            total_time,
            pause,
            downtime: self.last.downtime,
            rounds: self.rounds,
            switch,
            bytes: [
                self.last.precopy,
                self.last.paused,
                self.last.postcopy,
                self.last.transferred,
            ],
            requests: self.last.requests,
            recoveries: self.recovery.made(),
            findings: self.findings,
            warnings: self.warnings,
        }
    }
}

fn at(role: Role) -> impl Fn(QmpError) -> DriveError {
    move |source| DriveError::Qmp { role, source }
}
