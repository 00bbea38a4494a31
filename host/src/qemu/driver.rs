//! The migration, from the first command to the last: events and counters of both QEMUs in, commands out.
//!
//! What is decided is decided by [`Steering`]; what is done here is to hear, to tell, and never to lose the guest:
//!
//! - After the switch nothing is cancelled. QEMU 7.2 does not refuse it, and the guest would be lost (migration_cancel is unconditional).
//! - A connection that breaks in post-copy is made again, until the migration is complete or somebody stops the driver.
//! - The driver can be killed at any moment: QEMU goes on as it was told last, and [`Memo`] tells the next driver what to put back.

mod ending;
mod follow;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use dunlin_core::steer::{Steering, Turn};
use dunlin_core::units::Bytes;
use serde_json::json;

use super::link::{Link, Role};
use super::recover::Reconnect;
use super::settings::{set_capabilities, set_parameters};
use super::soften::{self, Shrinking, Softening};
use super::{
    Finding, GuestStatus, Info, Memo, Notice, Phase, Plan, QmpError, Report, Settings, Severity, Side, SofteningReport,
    preflight,
};
use crate::channel::Cancel;

/// How often the source is asked when it says nothing by itself.
const PERIOD: Duration = Duration::from_millis(100);
/// What is to be done when nobody knows whether the target ran the guest before it ended.
const ADVICE: &str = "the target's QEMU has ended before it said that the guest runs: if nobody has seen the guest there, its memory at \
                      the source is whole, so keep that QEMU: `cont` at the source's monitor runs it on, unless QEMU refuses that because the \
                      migration is paused (7.2 does)";

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

    /// Somebody thought better of it.
    #[error("interrupted before the migration began; the guest is as it was")]
    Interrupted,

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
    /// What was found before the beginning, and is no obstacle.
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
    softening: Option<Softening>,
    softened: Option<SofteningReport>,
    steering: Option<Steering>,
    /// The pause that the source was told to allow last.
    pause_ms: Option<u64>,
    reconnect: Reconnect,
    versions: [super::Version; 2],
    course: Course,
}

/// What has happened so far.
struct Course {
    began: Instant,
    took_over: bool,
    phase: Phase,
    /// By events: since when the guest stands still at the source, and when it ran on the target first.
    stopped_at: Option<Instant>,
    resumed_at: Option<Instant>,
    /// When, after which round, and why.
    switched_at: Option<(Instant, u32, String)>,
    cancelled: bool,
    /// What the source said last, or before it had nothing more to say.
    last: Info,
    rounds: Vec<Turn>,
    findings: Vec<Finding>,
    warnings: Vec<String>,
}

impl Course {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            took_over: false,
            phase: Phase::None,
            stopped_at: None,
            resumed_at: None,
            switched_at: None,
            cancelled: false,
            last: Info::default(),
            rounds: vec![],
            findings: vec![],
            warnings: vec![],
        }
    }

    /// Whether the guest may have run on the target.
    fn is_past_switch(&self) -> bool {
        self.switched_at.is_some() || self.phase.is_past_switch()
    }

    /// Whether nothing says that the guest has run on the target, which this driver has listened to since before the switch. QEMU 7.2 to
    /// 10.1 end there when the connection breaks while they load the state of devices.
    fn never_ran_there(&self) -> bool {
        self.resumed_at.is_none() && !self.took_over && self.switched_at.is_some()
    }
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
            softening: None,
            softened: None,
            steering: None,
            pause_ms: None,
            reconnect: Reconnect::new(plan),
            course: Course::new(),
        })
    }

    /// Begins the migration, and steers it to its end.
    ///
    /// # Errors
    /// [`DriveError`] if it did not begin. What happens later is in the report.
    pub fn migrate(mut self) -> Result<Report, DriveError> {
        let [source, target] = self.ask_both()?;
        let client = self.target.connected().map_err(at(Role::Target))?;
        self.course.findings = preflight::check(self.plan, &source, &target, client).map_err(at(Role::Target))?;
        let (errors, others): (Vec<_>, Vec<_>) =
            (self.course.findings.iter().cloned()).partition(|finding| finding.severity == Severity::Error);
        for finding in others {
            (self.news)(News::Found(finding));
        }
        if !errors.is_empty() {
            return Err(DriveError::Preflight(errors));
        }
        self.set_up(&source, &target)?;
        let begun = self.soften(&source).and_then(|()| match self.interrupt.lower() {
            true => Err(DriveError::Interrupted),
            false => self.begin(&target),
        });
        if let Err(error) = begun {
            self.stay();
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
        self.course.took_over = true;
        self.memo = Memo::read(self.folder, &self.plan.source);
        let original = self.memo.as_ref().and_then(|memo| memo.memory);
        self.softening = original.map(|original| Softening::taken_over(Bytes(original)));
        let info = Info::ask(self.source.connected().map_err(at(Role::Source))?).map_err(at(Role::Source))?;
        let ended_meanwhile = self.memo.is_some() && info.phase != Phase::None;
        if !info.phase.is_going_on() && !ended_meanwhile {
            let [source, target] = [&self.source, &self.target].map(|link| link.client().map(GuestStatus::ask));
            let word = |status: Option<Result<GuestStatus, QmpError>>| match status {
                Some(Ok(status)) => status.name,
                _ => "unknown".into(),
            };
            let (source, target) = (word(source), word(target));
            // Begun or not, whoever began it changed settings, and may have made the guest small.
            self.stay();
            self.put_back();
            return Err(DriveError::Nothing(format!(
                "the source's guest is {source}, the target's {target}; `dunlin qemu migrate` begins one"
            )));
        }
        // A pre-copy that is complete has made no switch.
        if info.phase.is_past_switch() && (info.phase != Phase::Completed || info.postcopy.0 > 0) {
            let reason = "before this driver took over".to_owned();
            self.course.switched_at = Some((Instant::now(), info.syncs.saturating_sub(1), reason));
        }
        self.course.began = Instant::now().checked_sub(info.total_time).unwrap_or_else(Instant::now);
        Ok(self.follow())
    }

    /// Has the guest make itself small, if it has an agent that can be asked.
    fn soften(&mut self, source: &Side) -> Result<(), DriveError> {
        if self.plan.agent.is_none() {
            return Ok(());
        }
        let by_hints = source.hints_free_pages(self.plan);
        // First of all, for whoever comes after this driver.
        let original = soften::size(&self.source).ok().filter(|_| !by_hints);
        if let Some(memo) = &mut self.memo {
            memo.memory = original.map(|Bytes(bytes)| bytes);
            memo.write(self.folder, &self.plan.source)
                .map_err(|source| DriveError::Memo {
                    folder: self.folder.to_owned(),
                    source,
                })?;
        }
        let shrinking = match by_hints {
            true => Shrinking::FreePageHints,
            false => Shrinking::Balloon(original),
        };
        let (warnings, news) = (&mut self.course.warnings, &mut self.news);
        news(News::Message("the guest prepares itself".into()));
        self.softening = Softening::begin(self.plan, &self.source, shrinking, self.interrupt, |warning| {
            news(News::Message(warning.clone()));
            warnings.push(warning);
        });
        Ok(())
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
        self.course.began = Instant::now();
        self.source
            .execute("migrate", &json!({ "uri": self.plan.uri }))
            .map_err(at(Role::Source))?;
        Ok(())
    }
}

fn at(role: Role) -> impl Fn(QmpError) -> DriveError {
    move |source| DriveError::Qmp { role, source }
}
