//! The end: both settle, settings are put back, and it is said who has the guest.

use std::time::{Duration, Instant};

use dunlin_agent::message::Notice;
use dunlin_core::steer::{Holder, Peer, Standing};
use serde_json::json;

use super::super::link::Link;
use super::super::saving::savings;
use super::super::{GuestStatus, Memo, Outcome, Report, Switch};
use super::{ADVICE, Driver, PERIOD};

/// How long the target may take to run the guest after the source has said that it is done.
const ARRIVAL: Duration = Duration::from_secs(20);
/// How long events are waited for that belong to the end.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// How long QEMU may take to let a migration fail or be cancelled.
const ENDING: Duration = Duration::from_secs(30);

/// What is to be done when the target's QEMU did not take what it was sent.
const NOT_RUNNING: &str = "the source has sent everything, but the target's QEMU does not say that it runs the guest: see its output (both need the \
                           same devices in the same order); if it has ended, `cont` at the source's monitor runs the guest on there";

impl Driver<'_> {
    /// It has ended: waits until both have settled, and puts back what was changed.
    pub(super) fn end(mut self, outcome: Outcome, mut reason: Option<String>) -> Report {
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
                // After the switch, nobody runs it on at the source but who knows that it did not run on the target.
                _ if self.course.is_past_switch() && self.target.is_gone() => true,
                _ => source.is_none_or(|it| it.running || !wants_to_run),
            };
            if settled {
                break;
            }
            if self.may_go_on_at_source(outcome) {
                // QEMU leaves it paused when the target failed late.
                if let Err(error) = self.source.execute("cont", &json!({})) {
                    self.course
                        .warnings
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
        self.end_softening(outcome);
        let statuses = self.statuses();
        let holder = self.standing(outcome, &statuses).holder();
        if holder == Holder::Unknown && self.target.is_gone() && self.course.never_ran_there() {
            let why = reason.take().filter(|why| why != ADVICE);
            reason = Some(why.map_or_else(|| ADVICE.into(), |why| format!("{why}; {ADVICE}")));
        }
        self.put_back();
        self.report(outcome, reason)
    }

    /// The guest gets its memory back where it is now, and hears of it.
    fn end_softening(&mut self, outcome: Outcome) {
        let statuses = self.statuses();
        let standing = self.standing(outcome, &statuses);
        let (link, address, notice) = match standing.holder() {
            Holder::Target | Holder::Both => (&self.target, &self.plan.target_agent, Notice::AfterMigration),
            Holder::Source => (&self.source, &self.plan.agent, Notice::MigrationGivenUp),
            Holder::Nobody | Holder::Unknown => return,
        };
        if let Some(softening) = self.softening.take() {
            let softened = softening.end(link, address.as_ref(), notice, self.plan.agent_timeout);
            if !softened.was_told {
                let whose = match notice {
                    Notice::AfterMigration => "--target-agent",
                    _ => "--agent",
                };
                let why = match address {
                    Some(address) => format!("nobody answers at {address}"),
                    None => format!("no {whose} was given"),
                };
                self.course.warnings.push(format!(
                    "the guest was not told that it is over, so its hooks for that did not run: {why}"
                ));
            }
            self.softened = Some(softened);
        }
    }

    /// Nothing began: the guest, which may be small already, gets its memory back where it is.
    pub(super) fn stay(&mut self) {
        if let Some(softening) = self.softening.take() {
            let (agent, timeout) = (self.plan.agent.as_ref(), self.plan.agent_timeout);
            softening.end(&self.source, agent, Notice::MigrationGivenUp, timeout);
        }
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
    fn may_go_on_at_source(&mut self, outcome: Outcome) -> bool {
        let statuses = self.statuses();
        let stands_still = statuses[0]
            .as_ref()
            .is_some_and(|it| ["postmigrate", "finish-migrate"].contains(&it.name.as_str()));
        stands_still && self.standing(outcome, &statuses).may_run_at_source()
    }

    pub(super) fn put_back(&mut self) {
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
                self.course
                    .warnings
                    .push(format!("settings were not put back: {error}"));
            }
        }
        Memo::remove(self.folder, &self.plan.source);
    }

    fn standing(&self, outcome: Outcome, statuses: &[Option<GuestStatus>; 2]) -> Standing {
        let peer = |link: &Link, status: &Option<GuestStatus>| match status {
            Some(status) => Peer::Answers {
                awaits_guest: status.name == "inmigrate",
                runs: status.running,
            },
            None if link.is_gone() => Peer::Gone,
            None => Peer::Silent,
        };
        Standing {
            completed: outcome == Outcome::Completed,
            switched: self.course.is_past_switch(),
            never_ran_there: self.course.never_ran_there(),
            source: peer(&self.source, &statuses[0]),
            target: peer(&self.target, &statuses[1]),
        }
    }

    pub(super) fn report(mut self, outcome: Outcome, reason: Option<String>) -> Report {
        let now = Instant::now();
        let statuses = self.statuses();
        let holder = self.standing(outcome, &statuses).holder();
        // The source has sent everything, and that is all it knows.
        let (outcome, reason) = match (outcome, holder) {
            (Outcome::Completed, Holder::Unknown | Holder::Nobody) if self.course.resumed_at.is_none() => {
                (Outcome::Failed, Some(NOT_RUNNING.to_owned()))
            }
            _ => (outcome, reason),
        };
        let total_time = match outcome {
            Outcome::Completed if self.course.last.total_time > Duration::ZERO => self.course.last.total_time,
            _ => now.saturating_duration_since(self.course.began),
        };
        let switch = self.course.switched_at.take().map(|(at, round, reason)| Switch {
            round,
            reason,
            lasted: (self.course.began + total_time).saturating_duration_since(at),
        });
        let pause = match (self.course.stopped_at, self.course.resumed_at) {
            (Some(stopped), Some(resumed)) => Some(resumed.saturating_duration_since(stopped)),
            _ => None,
        };
        let savings = self.softened.as_ref().map_or_else(Vec::new, |softening| {
            let course = &self.course;
            savings(softening, course.last.total, &course.rounds, self.plan.bandwidth)
        });
        Report {
            rule: self.plan.rule.to_string(),
            outcome,
            reason,
            holder,
            versions: self.versions,
            total_time,
            pause,
            downtime: self.course.last.downtime,
            rounds: self.course.rounds,
            switch,
            bytes: [
                self.course.last.precopy,
                self.course.last.paused,
                self.course.last.postcopy,
                self.course.last.transferred,
            ],
            requests: self.course.last.requests,
            recoveries: self.reconnect.made(),
            savings,
            softening: self.softened,
            findings: self.course.findings,
            warnings: self.course.warnings,
        }
    }
}
