//! A process that holds a VM, or waits for one: what its control socket answers, and how migrations begin and end there.

pub use super::receive::run_receive;
pub use super::serve::{NodeError, run_guest};

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dunlin_core::choose::{Goal, GoalError};
use dunlin_core::message::VmId;
use dunlin_core::migrate::{ForesightNeed, Phase, Resolution, SourceOutcome, check_strategy};
use dunlin_core::strategy::{Cut, First, Push, Strategy, SwitchRule};
use dunlin_core::units::{BytesPerSec, Pages};

use super::guard::Guard;
use super::permit::{self, Permit};
use super::recorder::Recorder;
use super::recording::{self, Place, Recordings};
use super::source::{Snapshot, SourceHandle, SourceOptions, SourceRun};
use super::target::TargetHandle;
use crate::control::{self, Caller, ControlError, Handler, MigrateRequest, RecordRequest, Subscriber};
use crate::guest::{AnyGuest, Guest, RunState};
use crate::journal::Role;
use crate::push_order;
use crate::report::{MigrationReport, Progress, State, Status, TrackingStatus};
use crate::trust::sandbox::Folders;
use crate::trust::{self, Files, Name, Security, TrustError};

/// How far back the guest's speed is remembered.
const SPEED_WINDOW: Duration = Duration::from_secs(1);
/// How often it is looked at.
const SPEED_EVERY: Duration = Duration::from_millis(50);

/// The strategy that is to be chosen.
const AUTO: &str = "auto";

/// What the process holds.
pub(super) enum Holding {
    /// No VM.
    Nothing,
    /// A VM on its way here.
    Incoming(Arc<TargetHandle>),
    /// A VM that runs here, or has halted here.
    Guest(Arc<AnyGuest>),
    /// A VM on its way to somewhere else.
    Outgoing(Arc<AnyGuest>, Arc<SourceHandle>),
    /// The VM runs elsewhere; why, in words, if it did not simply move.
    Gone(Option<String>),
}

/// The process as its control socket sees it.
pub(super) struct Node {
    pub(super) name: Mutex<String>,
    pub(super) vm: Mutex<VmId>,
    holding: Mutex<Holding>,
    changed: Condvar,
    pub(super) recorder: Mutex<Recorder>,
    speed: Mutex<VecDeque<(Instant, u64)>>,
    warned: AtomicBool,
    recordings: Recordings,
    pub(super) guard: Guard,
}

impl Node {
    pub(super) fn new(name: String, vm: VmId, holding: Holding, recorder: Recorder, guard: Guard) -> Self {
        Self {
            name: Mutex::new(name),
            vm: Mutex::new(vm),
            holding: Mutex::new(holding),
            changed: Condvar::new(),
            recorder: Mutex::new(recorder),
            speed: Mutex::new(VecDeque::new()),
            warned: AtomicBool::new(false),
            recordings: Recordings::default(),
            guard,
        }
    }

    /// True the first time: for what is said once to a person who wants the process to end.
    pub(super) fn warns(&self) -> bool {
        !self.warned.swap(true, Ordering::AcqRel)
    }

    pub(super) fn holding(&self) -> MutexGuard<'_, Holding> {
        lock(&self.holding)
    }

    pub(super) fn hold(&self, holding: Holding) {
        *self.holding() = holding;
        self.changed.notify_all();
    }

    /// Whether a VM is on its way here.
    pub(super) fn is_receiving(&self) -> bool {
        matches!(*self.holding(), Holding::Incoming(_))
    }

    /// Waits a moment, or until something changes; looks at the guest's speed meanwhile.
    pub(super) fn idle(&self) {
        let holding = self.holding();
        if let Holding::Guest(guest) = &*holding {
            self.observe(guest);
        }
        drop(self.changed.wait_timeout(holding, SPEED_EVERY));
    }

    /// Looks at the guest's speed, if one runs here.
    pub(super) fn observe_guest(&self) {
        if let Holding::Guest(guest) = &*self.holding() {
            self.observe(guest);
        }
    }

    fn observe(&self, guest: &AnyGuest) {
        let mut speed = lock(&self.speed);
        let now = Instant::now();
        let steps = guest.progress().steps();
        if steps == 0 {
            // It has not begun yet.
            return;
        }
        speed.push_back((now, steps));
        while speed.len() > 2
            && speed
                .get(1)
                .is_some_and(|(at, _)| now.duration_since(*at) >= SPEED_WINDOW)
        {
            speed.pop_front();
        }
    }

    /// Steps per second in the last second; 0 for a guest that has not run that long here.
    fn steps_per_second(&self, guest: &AnyGuest) -> u64 {
        self.observe(guest);
        let speed = lock(&self.speed);
        let (Some((from, before)), Some((to, after))) = (speed.front(), speed.back()) else {
            return 0;
        };
        if to.duration_since(*from) < SPEED_WINDOW * 9 / 10 {
            return 0;
        }
        let micros = u64::try_from(to.duration_since(*from).as_micros()).unwrap_or(u64::MAX);
        (after - before)
            .saturating_mul(1_000_000)
            .checked_div(micros)
            .unwrap_or(0)
    }

    fn options(request: &MigrateRequest) -> Result<SourceOptions, ControlError> {
        let goal = goal(request)?;
        let strategy = match &goal {
            // Until one is chosen: one that can enter post-copy, so that whatever is chosen can.
            Some(_) => Strategy::with_switch(SwitchRule::OPTIMAL),
            None => Strategy::parse_for(&request.strategy, request.storage.is_some())
                .map_err(|error| ControlError::refused(error.to_string()))?,
        };
        check_strategy(&strategy).map_err(|error| ControlError::refused(error.to_string()))?;
        if request.bandwidth == Some(0) {
            return Err(ControlError::refused(
                "a bandwidth of 0 never ends; leave --bandwidth out for no limit",
            ));
        }
        if strategy.needs_storage() && request.storage.is_none() {
            let part = match strategy.first {
                First::Parallel => "first=parallel".to_owned(),
                First::Serial => format!("cut={}", strategy.cut),
            };
            return Err(ControlError::refused(format!(
                "{part} needs a directory that both hosts mount: give it with --storage here and at `dunlin receive`"
            )));
        }
        if let Some(storage) = request.storage.as_ref().filter(|storage| !storage.is_dir()) {
            return Err(ControlError::refused(format!(
                "there is no directory {}: make or mount it first, or correct --storage",
                storage.display()
            )));
        }
        let folders = request.storage.iter().map(|storage| Folders::check(storage));
        let files = request.record_order.iter().chain(&request.push_order);
        let read = request
            .tls_dir
            .iter()
            .map(|directory| Folders::check_reading(directory));
        for checked in folders.chain(files.map(|file| Folders::check_file(file))).chain(read) {
            checked.map_err(|error| ControlError::refused(error.to_string()))?;
        }
        let push_order = match (&request.push_order, strategy.push) {
            (Some(path), Push::Recorded) => {
                push_order::read(path).map_err(|error| ControlError::refused(super::chain(&error)))?
            }
            (None, Push::Recorded) => {
                return Err(ControlError::refused(
                    "push=recorded needs an order: write push=recorded:FILE, with a file that --record-order wrote",
                ));
            }
            _ => Vec::new(),
        };
        if request.record_order.is_some() && !strategy.can_post_copy() {
            return Err(ControlError::refused(
                "--record-order writes what the guest waits for in post-copy, which this strategy never enters: leave it out, or choose another strategy",
            ));
        }
        if let Some(path) = &request.record_order {
            push_order::check(path).map_err(|error| ControlError::refused(super::chain(&error)))?;
        }
        let looks_ahead = ForesightNeed::of(&strategy, Pages(1)) != ForesightNeed::default();
        if request.profile_us.is_some() && !looks_ahead && goal.is_none() {
            return Err(ControlError::refused(
                "--profile observes the guest before it is moved, and this strategy would not use it: leave --profile out, or add a filter \
                 or push=forecast",
            ));
        }
        Ok(SourceOptions {
            to: request.to.clone(),
            tls: tls(request).map_err(|error| ControlError::refused(super::chain(&error)))?,
            storage: request.storage.clone(),
            push_order,
            record_order: request.record_order.clone(),
            storage_bandwidth: request.storage_bandwidth.map(BytesPerSec),
            strategy,
            bandwidth: request.bandwidth.map(BytesPerSec),
            downtime: Duration::from_micros(request.downtime_us),
            max_rounds: request.max_rounds.max(1),
            min_round: Duration::from_micros(request.min_round_us),
            learning: request.profile_us.map(Duration::from_micros),
            goal,
            network_timeout: Duration::from_micros(request.network_timeout_us.max(1)),
            hint_timeout: Duration::from_micros(request.hint_timeout_us),
            verify: request.verify,
            checksum: request.checksum,
        })
    }

    fn begin(&self) -> Result<(Arc<AnyGuest>, Arc<SourceHandle>), ControlError> {
        let mut holding = self.holding();
        let guest = match &*holding {
            Holding::Guest(guest) => Arc::clone(guest),
            Holding::Nothing => {
                return Err(ControlError::refused(
                    "there is no VM here yet; ask the process that holds it",
                ));
            }
            Holding::Incoming(_) => {
                return Err(ControlError::refused(
                    "the VM is still on its way here; wait until it has arrived",
                ));
            }
            Holding::Outgoing(..) => {
                return Err(ControlError::refused(
                    "the VM is being migrated already; `dunlin cancel` ends that migration",
                ));
            }
            Holding::Gone(_) => {
                return Err(ControlError::refused(
                    "the VM has moved away; ask the process that holds it now",
                ));
            }
        };
        let progress = guest.progress();
        match progress.state {
            RunState::Failed => {
                let failure = progress.failure.unwrap_or_default();
                return Err(ControlError::refused(format!(
                    "the VM has failed and cannot be moved: {failure}"
                )));
            }
            RunState::Halted => {
                return Err(ControlError::refused(
                    "the VM has halted and its process is about to end with a report of it; start the VM again to move it",
                ));
            }
            RunState::Paused | RunState::Running => {}
        }
        let handle = Arc::new(SourceHandle::default());
        *holding = Holding::Outgoing(Arc::clone(&guest), Arc::clone(&handle));
        drop(holding);
        // From here on no recording begins.
        if !self.recordings.end() {
            self.hold(Holding::Guest(guest));
            return Err(ControlError::failed(
                "the recording of the VM did not end, and both need its tracker: end that first, then try again",
            ));
        }
        Ok((guest, handle))
    }

    /// The guest to record, and the place for it.
    fn begin_recording(&self, client_pid: Option<u32>) -> Result<(Arc<AnyGuest>, Place<'_>), ControlError> {
        let holding = self.holding();
        let guest = match &*holding {
            Holding::Guest(guest) => Arc::clone(guest),
            Holding::Nothing => {
                return Err(ControlError::refused(
                    "there is no VM here yet; ask the process that holds it",
                ));
            }
            Holding::Incoming(_) | Holding::Outgoing(..) => {
                return Err(ControlError::refused(
                    "the VM is being migrated, which needs its tracker: record it before or afterwards",
                ));
            }
            Holding::Gone(_) => {
                return Err(ControlError::refused(
                    "the VM has moved away; ask the process that holds it now",
                ));
            }
        };
        if !matches!(guest.progress().state, RunState::Paused | RunState::Running) {
            return Err(ControlError::refused("the VM has ended and writes nothing any more"));
        }
        // While the holding is locked: no migration can begin in between.
        let place = self.recordings.begin(client_pid)?;
        drop(holding);
        Ok((guest, place))
    }
}

impl Handler for Node {
    fn status(&self) -> Status {
        let mut status = match &*self.holding() {
            Holding::Nothing => Status::new(Role::Target, State::Waiting),
            Holding::Guest(guest) => guest_status(guest),
            Holding::Gone(reason) => {
                let mut status = Status::new(Role::Source, State::MovedAway);
                status.reason.clone_from(reason);
                status
            }
            Holding::Outgoing(guest, handle) => match handle.snapshot() {
                Some(snapshot) => Status {
                    steps: Some(guest.progress().steps()),
                    tracking: Some(tracking_status(guest)),
                    ..source_status(&snapshot)
                },
                None => guest_status(guest),
            },
            Holding::Incoming(handle) => target_status(handle),
        };
        let name = lock(&self.name).clone();
        status.name = (!name.is_empty()).then_some(name);
        status.pid = Some(std::process::id());
        status.recording = self.recordings.status();
        status
    }

    fn record(&self, request: RecordRequest, subscriber: &mut Subscriber<'_>) -> Result<(), ControlError> {
        let (guest, place) = self.begin_recording(subscriber.pid())?;
        let name = lock(&self.name).clone();
        recording::record(&guest, &name, &request, &place, subscriber)
    }

    fn migrate(
        &self,
        caller: Caller,
        request: MigrateRequest,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<MigrationReport, ControlError> {
        let mut options = Self::options(&request)?;
        let (guest, handle) = self.begin()?;
        let speed = self.steps_per_second(&guest);
        let permit = match self.permit(caller, &request, &mut options, &guest) {
            Ok(permit) => permit,
            Err(error) => {
                self.hold(Holding::Guest(guest));
                return Err(error);
            }
        };
        let Permit {
            session,
            mut recorder,
            turn: _turn,
        } = permit;
        let mut total = 0;
        let mut phase = None;
        let run = SourceRun {
            guest: &*guest,
            vm: *lock(&self.vm),
            session,
            options: &options,
            recorder: &mut recorder,
            handle: &handle,
            progress: &mut |snapshot| {
                if phase != Some((snapshot.phase, snapshot.round)) {
                    phase = Some((snapshot.phase, snapshot.round));
                    total = snapshot.remaining.0;
                }
                progress(&progress_of(snapshot, total));
            },
        };
        let result = match run.run() {
            Ok(result) => result,
            Err(error) => {
                self.hold(Holding::Guest(guest));
                let reason = super::chain(&error);
                permit::end(&recorder, session, None, Some(reason.clone()));
                return Err(ControlError::refused(reason));
            }
        };
        if matches!(result.outcome, SourceOutcome::GaveUp | SourceOutcome::Lost) {
            // Whatever becomes of the VM now, nobody shall look for it here.
            if let Err(error) = recorder.write(result.session, Role::Source, crate::journal::Phase::MovedAway) {
                eprintln!("dunlin: {}", super::chain(&error));
            }
        }
        let mut report = super::result::report(&options, &result, speed);
        if result.outcome == SourceOutcome::Completed {
            eprintln!("dunlin: VM {:?} has moved to {}", *lock(&self.name), options.to);
        }
        report.strategy = request.strategy;
        permit::end(&recorder, session, Some(result.outcome), report.reason.clone());
        lock(&self.speed).clear();
        let reason = match result.outcome {
            SourceOutcome::Completed => None,
            SourceOutcome::GaveUp | SourceOutcome::Lost => report.reason.clone(),
            SourceOutcome::Aborted { .. } | SourceOutcome::Refused(_) => {
                self.hold(Holding::Guest(guest));
                return Ok(report);
            }
        };
        self.hold(Holding::Gone(reason));
        // The kernel takes its time to end a virtual machine, on a loaded host more than a client waits for its answer.
        thread::spawn(move || drop(guest));
        Ok(report)
    }

    fn cancel(&self, caller: Caller) -> Result<Status, ControlError> {
        let handle = match &*self.holding() {
            Holding::Outgoing(_, handle) => Arc::clone(handle),
            Holding::Incoming(_) => {
                return Err(ControlError::refused(
                    "this side only receives; cancel at the process that sends the VM",
                ));
            }
            _ => return Err(ControlError::refused("no migration is going on here")),
        };
        if !handle.cancel() {
            return Err(ControlError::failed(
                "too late to cancel: the VM has been given up, and runs or will run at the target; `dunlin status` says more",
            ));
        }
        self.tell_decision(caller, "cancel the migration");
        let holding = self.holding();
        let waited = self.changed.wait_timeout_while(
            holding,
            Duration::from_secs(5),
            |holding| matches!(holding, Holding::Outgoing(_, now) if Arc::ptr_eq(now, &handle)),
        );
        drop(waited);
        Ok(self.status())
    }

    fn resolve(&self, caller: Caller, resolution: control::Resolution) -> Result<Status, ControlError> {
        let decided = match resolution {
            control::Resolution::RunHere => Resolution::RunHere,
            control::Resolution::GiveUp => Resolution::GiveUp,
        };
        let nothing = || {
            ControlError::refused(
                "there is nothing to resolve: only a hand-over whose outcome is unknown can be decided by hand",
            )
        };
        match &*self.holding() {
            Holding::Outgoing(_, handle) => {
                let known = handle.snapshot().map(|snapshot| snapshot.phase);
                match (known, decided) {
                    (Some(Phase::HandOverUnknown), _) | (Some(Phase::PostCopyPaused), Resolution::GiveUp) => {
                        handle.resolve(decided)
                    }
                    (Some(Phase::PostCopyPaused), Resolution::RunHere) => {
                        return Err(ControlError::failed(
                            "the VM has run at the target since; what is left here is old memory, which must not run",
                        ));
                    }
                    _ => return Err(nothing()),
                }
            }
            Holding::Incoming(handle) => match (handle.snapshot(), decided) {
                (Some(snapshot), Resolution::RunHere)
                    if snapshot.phase == Phase::HandOverUnknown && snapshot.missing.0 > 0 =>
                {
                    return Err(ControlError::failed(
                        "pages of the VM are still at the source only; a VM that lacks memory must not run",
                    ));
                }
                (Some(snapshot), _) if snapshot.phase == Phase::HandOverUnknown => handle.resolve(decided),
                _ => return Err(nothing()),
            },
            _ => return Err(nothing()),
        }
        self.tell_decision(
            caller,
            match decided {
                Resolution::RunHere => "run the VM here: the other side is dead",
                Resolution::GiveUp => "give the VM up here",
            },
        );
        // The runner looks every few milliseconds; what it made of the decision is in the status.
        std::thread::sleep(Duration::from_millis(200));
        Ok(self.status())
    }
}

fn guest_status(guest: &AnyGuest) -> Status {
    let progress = guest.progress();
    let mut status = match progress.state {
        RunState::Halted => Status::new(Role::Source, State::Ended),
        _ => Status::new(Role::Source, State::Running),
    };
    status.steps = Some(progress.steps());
    status.reason = progress.failure;
    status.tracking = Some(tracking_status(guest));
    status
}

fn tracking_status(guest: &AnyGuest) -> TrackingStatus {
    let state = guest.tracking_state();
    TrackingStatus {
        source: state.source.name().to_owned(),
        on: state.on,
        overruns: state.overruns,
    }
}

pub(super) fn state_of(phase: Phase) -> State {
    match phase {
        Phase::Connecting | Phase::PreCopy => State::PreCopy,
        Phase::HandOver => State::Handover,
        Phase::HandOverUnknown => State::HandoverUnknown,
        Phase::PostCopy => State::PostCopy,
        Phase::PostCopyPaused => State::PostCopyPaused,
        Phase::Complete => State::MovedAway,
        Phase::Aborted => State::Running,
    }
}

fn source_status(snapshot: &Snapshot) -> Status {
    let mut status = Status::new(Role::Source, state_of(snapshot.phase));
    status.session = Some(snapshot.session.to_string());
    status.round = (snapshot.phase == Phase::PreCopy).then_some(snapshot.round);
    status.remaining_pages = Some(snapshot.remaining.0);
    status.eta_us = snapshot
        .eta
        .map(|eta| u64::try_from(eta.as_micros()).unwrap_or(u64::MAX));
    if matches!(snapshot.phase, Phase::PostCopy | Phase::PostCopyPaused) {
        status.missing_pages = status.remaining_pages;
    }
    status.reason = match snapshot.phase {
        Phase::HandOverUnknown => Some(
            "the VM was given up, but the target cannot be reached to say whether it runs there: paused here with all memory; \
             this side goes on trying. If the target is dead for certain: `dunlin resolve --run-here --other-side-is-dead`"
                .to_owned(),
        ),
        Phase::PostCopyPaused => Some(format!(
            "the network to the target is cut while the VM there lacks pages; its vCPUs wait for them; {}",
            match snapshot.cut {
                Cut::Pbdata => "the target takes them from the storage directory",
                Cut::Both => "the target takes them from the storage directory, and this side goes on trying to reach it",
                Cut::Reconnect => "this side goes on trying to reach it",
                Cut::Fail => "with cut=fail nobody brings them",
            }
        )),
        _ => None,
    };
    status
}

fn target_status(handle: &TargetHandle) -> Status {
    let Some(snapshot) = handle.snapshot() else {
        return Status::new(Role::Target, State::Waiting);
    };
    let state = match snapshot.phase {
        Phase::Complete => State::Running,
        Phase::Aborted => State::Waiting,
        phase => state_of(phase),
    };
    let mut status = Status::new(Role::Target, state);
    status.session = Some(snapshot.session.to_string());
    status.round = (snapshot.phase == Phase::PreCopy && snapshot.round > 0).then_some(snapshot.round);
    let running = matches!(snapshot.phase, Phase::PostCopy | Phase::PostCopyPaused);
    let lacking = snapshot.phase == Phase::HandOverUnknown && snapshot.missing.0 > 0;
    status.missing_pages = (running || lacking).then_some(snapshot.missing.0);
    status.reason = match snapshot.phase {
        Phase::HandOverUnknown if lacking => Some(
            "the source cannot be reached to say whether it gave the VM up, and pages of it are still there only: paused; this side goes on \
             waiting. If the source is dead for certain the VM is lost: `dunlin resolve --give-up` frees what is here"
                .to_owned(),
        ),
        Phase::HandOverUnknown => Some(
            "everything is ready to run here, but the source cannot be reached to say whether it gave the VM up: paused with all memory; \
             this side goes on waiting. If the source is dead for certain: `dunlin resolve --run-here --other-side-is-dead`"
                .to_owned(),
        ),
        Phase::PostCopyPaused if snapshot.pb_data => Some(
            "the network to the source is cut while pages are missing; vCPUs that need them wait; they are taken from the storage \
             directory as far as the source has written them there, and from the source if it comes back"
                .to_owned(),
        ),
        Phase::PostCopyPaused => {
            Some(
                "the network to the source is cut while pages are missing; vCPUs that need them wait; this side goes on waiting for \
                 the source. If the source is dead for certain the VM is lost: end this process by interrupting it twice"
                    .to_owned(),
            )
        }
        _ => None,
    };
    status
}

fn progress_of(snapshot: &Snapshot, total: u64) -> Progress {
    Progress {
        phase: state_of(snapshot.phase),
        round: if snapshot.phase == Phase::PreCopy {
            snapshot.round
        } else {
            0
        },
        total_pages: total.max(snapshot.remaining.0),
        remaining_pages: snapshot.remaining.0,
        remaining_bytes: snapshot.remaining.bytes().0,
        rate: snapshot.rate.0,
        eta_us: snapshot.eta.map(micros),
        observing_us: snapshot.observing.map(micros),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// How the target's connections are secured. The files are read here for the first time, so that what is wrong with them shows before
/// anything is begun.
fn tls(request: &MigrateRequest) -> Result<Option<(Files, Name)>, TrustError> {
    let to = &request.to;
    let security = Security::choose(to, request.tls_dir.as_deref(), request.insecure)?;
    if let Some(warning) = security.warning(to) {
        eprintln!("dunlin: {warning}");
    }
    let Security::Tls(files) = security else {
        return Ok(None);
    };
    let name = trust::expected(to, request.peer.as_ref())?;
    files.load()?;
    Ok(Some((files, name)))
}

/// The goal that a strategy is chosen by: without one, the wanted downtime as a bound. `None` if the strategy is given.
fn goal(request: &MigrateRequest) -> Result<Option<Goal>, ControlError> {
    let auto = request.strategy == AUTO;
    if request.goal.is_some() && !auto {
        return Err(ControlError::refused(
            "--goal is what --strategy auto chooses by, and this strategy is chosen already: leave one of them out",
        ));
    }
    if !auto {
        return Ok(None);
    }
    if request.bandwidth.is_none() {
        return Err(ControlError::refused(
            "--strategy auto forecasts what each strategy would cost over the link: say with --bandwidth how fast that is",
        ));
    }
    if request.storage.is_some() {
        return Err(ControlError::refused(
            "--strategy auto chooses among strategies without storage: leave --storage out, or name a strategy with first=parallel",
        ));
    }
    let wanted = || format!("downtime<{}us", request.downtime_us);
    let goal = request.goal.clone().unwrap_or_else(wanted);
    goal.parse()
        .map(Some)
        .map_err(|error: GoalError| ControlError::refused(error.to_string()))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
