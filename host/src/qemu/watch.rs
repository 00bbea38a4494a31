//! Following a migration that somebody else steers: what becomes of it, and what each rule would do. Never acts.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use dunlin_core::steer::{Heading, Outlook, Pass, Passes};
use dunlin_core::strategy::SwitchRule;
use dunlin_core::switch::{Decision, Switcher, Verdict};
use dunlin_core::units::Pages;
use serde_json::{Value, json};

use super::plan::nanos;
use super::{Address, Client, Info, Notice, Phase, QmpError, pass_json};
use crate::channel::Cancel;
use crate::report::{count, duration, rate};

/// How often QEMU is asked: it may not tell of passes, which only the capability `events` makes it do.
const PERIOD: Duration = Duration::from_millis(100);

/// What is looked at.
#[derive(Clone, PartialEq, Debug)]
pub struct Watch {
    /// The source's socket.
    pub source: Address,
    /// The rules that are asked what they would do.
    pub rules: Vec<SwitchRule>,
    /// The longest pause by which they go, and by which pre-copy is taken to end; `None` for what QEMU is told.
    pub downtime: Option<Duration>,
}

/// A round, and what is to be said of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Look {
    /// What happened in it.
    pub pass: Pass,
    /// Where it leads.
    pub outlook: Outlook,
    /// What each rule says, as long as it has not ended pre-copy before.
    pub verdicts: Vec<(SwitchRule, Verdict)>,
}

/// What is seen.
#[derive(Clone, PartialEq, Debug)]
pub enum Sight {
    /// The migration is in this phase now. Its memory, once that is known.
    Phase(Phase, Pages),
    /// A round has ended.
    Look(Look),
    /// How far it is.
    Progress(Info),
}

impl Watch {
    /// Looks until the migration has ended; waits for one, if there is none. `seen` says whether to go on.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn run(&self, interrupt: &Cancel, mut seen: impl FnMut(Sight) -> bool) -> Result<Info, QmpError> {
        let (sender, notices) = mpsc::channel();
        let client = Client::connect(&self.source, move |notice| drop(sender.send(notice)))?;
        let mut state = State::default();
        loop {
            let at = match notices.recv_timeout(PERIOD) {
                Ok(Notice::Event { at, .. }) => at,
                Ok(Notice::Closed) | Err(RecvTimeoutError::Disconnected) => {
                    // The next question says it.
                    Info::ask(&client)?;
                    Instant::now()
                }
                Err(RecvTimeoutError::Timeout) => Instant::now(),
            };
            let info = Info::ask(&client)?;
            let pause = || -> Result<Duration, QmpError> {
                let parameters = client.execute("query-migrate-parameters", &json!({}))?;
                Ok(Duration::from_millis(
                    parameters["downtime-limit"].as_u64().unwrap_or(300),
                ))
            };
            let go_on = state.on_info(self, &info, at, pause, &mut seen)?;
            let has_ended = state.followed && !info.phase.is_going_on();
            if !go_on || has_ended || interrupt.lower() {
                return Ok(info);
            }
        }
    }
}

#[derive(Default)]
struct State {
    phase: Option<Phase>,
    /// A migration was going on.
    followed: bool,
    began: Option<Instant>,
    rounds: Option<Rounds>,
}

struct Rounds {
    passes: Passes,
    heading: Heading,
    /// Each until it ends pre-copy.
    rules: Vec<(SwitchRule, Option<Switcher>)>,
}

impl State {
    fn on_info(
        &mut self,
        watch: &Watch,
        info: &Info,
        at: Instant,
        pause: impl Fn() -> Result<Duration, QmpError>,
        seen: &mut impl FnMut(Sight) -> bool,
    ) -> Result<bool, QmpError> {
        let mut go_on = true;
        if self.phase.as_ref() != Some(&info.phase) {
            self.phase = Some(info.phase.clone());
            go_on &= seen(Sight::Phase(info.phase.clone(), info.total));
        }
        self.followed |= info.phase.is_going_on();
        if info.phase == Phase::Active && info.total > Pages::ZERO {
            let began = *self
                .began
                .get_or_insert_with(|| at.checked_sub(info.total_time).unwrap_or(at));
            if self.rounds.is_none() {
                let downtime = watch.downtime.map_or_else(&pause, Ok)?;
                let setting = dunlin_core::switch::SwitchSetting {
                    downtime: nanos(downtime),
                    ..dunlin_core::switch::SwitchSetting::new(info.total)
                };
                let rules = watch
                    .rules
                    .iter()
                    .map(|rule| (*rule, Some(Switcher::new(*rule, setting))));
                self.rounds = Some(Rounds {
                    passes: Passes::new(info.total),
                    heading: Heading::new(nanos(downtime)),
                    rules: rules.collect(),
                });
            }
            if let Some(Rounds { passes, heading, rules }) = &mut self.rounds
                && let Some(pass) = passes.on_counters(&info.counters(nanos(at.saturating_duration_since(began))))
            {
                let mut verdicts = vec![];
                for (rule, switcher) in rules {
                    let Some(verdict) = switcher.as_mut().map(|switcher| switcher.on_round(&pass.end)) else {
                        continue;
                    };
                    verdicts.push((*rule, verdict));
                    if verdict.decision != Decision::Continue {
                        *switcher = None;
                    }
                }
                go_on &= seen(Sight::Look(Look {
                    pass,
                    outlook: heading.on_round(&pass.end),
                    verdicts,
                }));
            }
        }
        Ok(go_on && seen(Sight::Progress(info.clone())))
    }
}

/// Where it leads, and what could be done, in a sentence.
pub fn outlook_line(outlook: &Outlook) -> String {
    let time = |it: dunlin_core::units::Nanos| duration(Duration::from_nanos(it.0));
    match outlook {
        Outlook::Unknown => "too early to say where it leads".into(),
        Outlook::Ends { rounds: 0, within } => format!("ends now: the rest takes {}", time(*within)),
        Outlook::Ends { rounds, within } => format!("ends in about {}, after {rounds} more rounds", time(*within)),
        Outlook::Never { dirtied, sent, pause } => format!(
            "does not end: {} are dirtied and {} sent; stopped now, the guest would stand still for {}; raise max-bandwidth or \
             downtime-limit, slow the guest down (auto-converge), or switch to post-copy",
            rate(dirtied.0),
            rate(sent.0),
            time(*pause)
        ),
    }
}

/// A round for people.
pub fn look_lines(look: &Look) -> Vec<String> {
    let end = &look.pass.end;
    let mut lines = vec![format!(
        "round {}: {} pages sent in {}, {} dirty: {}",
        end.round,
        count(end.sent.0),
        duration(Duration::from_nanos(end.duration.0)),
        count(end.dirty.0),
        outlook_line(&look.outlook)
    )];
    for (rule, verdict) in &look.verdicts {
        if verdict.decision != Decision::Continue {
            lines.push(format!(
                "  {rule} would say {} now: {}",
                verdict.decision, verdict.reason
            ));
        }
    }
    lines
}

/// The same as a line of a log that `dunlin replay` reads.
pub fn look_json(look: &Look) -> Value {
    let mut line = pass_json(&look.pass);
    line["outlook"] = match look.outlook {
        Outlook::Unknown => json!("unknown"),
        Outlook::Ends { rounds, within } => json!({ "rounds": rounds, "within_us": within.0 / 1000 }),
        Outlook::Never { dirtied, sent, pause } => json!({
            "dirtied_bytes_per_s": dirtied.0,
            "sent_bytes_per_s": sent.0,
            "pause_us": pause.0 / 1000,
        }),
    };
    let verdicts = look.verdicts.iter().map(|(rule, verdict)| {
        json!({
            "rule": rule.to_string(),
            "decision": verdict.decision.to_string(),
            "reason": verdict.reason.to_string(),
        })
    });
    line["rules"] = verdicts.collect();
    line
}
