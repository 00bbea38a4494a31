//! What goes wrong, when, and how it is done to the world.

use super::*;

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// All connections break; new ones come about a little later.
    Cut,
    /// The fault channel alone breaks.
    CutFaultChannel,
    /// The connections swallow everything; the ends learn it from silence.
    BlackHole,
    /// Everything on the way stays there for a while, and then arrives after all, perhaps when nobody expects it any more.
    Stall,
    /// The same for the migration channel alone, or for one direction of it: what follows on the fault channel comes first.
    LateMigration,
    /// The same for the fault channel, where pages are demanded and answered.
    LateDemands,
    /// The connections end for the source, and the target learns it from silence.
    HalfOpenAtTarget,
    /// The same the other way round.
    HalfOpenAtSource,
    /// The source's end of the connections closes without reason.
    SourceHangsUp,
    /// The same on the target.
    TargetHangsUp,
    /// What arrives next at the source cannot be decoded.
    DamageToSource,
    /// The same at the target.
    DamageToTarget,
    /// A person cancels.
    Cancel,
    /// The target's process dies and is started anew with its record.
    CrashTarget,
    /// The source's process dies for good.
    CrashSource,
    /// From one record on, the source can write none.
    SourceDiskFull,
    /// The same on the target.
    TargetDiskFull,
    /// Writing one record takes longer than any silence that is endured.
    SlowSourceDisk,
    /// The same on the target.
    SlowTargetDisk,
    /// One action of the source's host fails, with its effect or without.
    SourceActionFails,
    /// The same on the target.
    TargetActionFails,
    /// All connections break, and none ever comes about again.
    NetworkGone,
    /// The source cannot write all of the static copy; or, for a while, the final dirty set.
    StorageFull,
    /// The target cannot read it.
    StorageDamaged,
    /// The target never sees the rest of it.
    StorageElsewhere,
    /// Nothing can be written for longer than any patience, and then it can.
    StorageSlow,
    /// The target sees what is written much later.
    StorageLate,
    /// The directory goes, with all that is in it.
    StorageVanishes,
}

impl Fault {
    const ALL: [Self; 28] = [
        Self::NetworkGone,
        Self::Cut,
        Self::CutFaultChannel,
        Self::BlackHole,
        Self::Stall,
        Self::LateMigration,
        Self::LateDemands,
        Self::HalfOpenAtTarget,
        Self::HalfOpenAtSource,
        Self::SourceHangsUp,
        Self::TargetHangsUp,
        Self::DamageToSource,
        Self::DamageToTarget,
        Self::Cancel,
        Self::CrashTarget,
        Self::CrashSource,
        Self::SourceDiskFull,
        Self::TargetDiskFull,
        Self::SlowSourceDisk,
        Self::SlowTargetDisk,
        Self::SourceActionFails,
        Self::TargetActionFails,
        Self::StorageFull,
        Self::StorageDamaged,
        Self::StorageElsewhere,
        Self::StorageSlow,
        Self::StorageLate,
        Self::StorageVanishes,
    ];

    /// The one that is written so.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| format!("{fault:?}") == name)
    }

    /// Those that can strike a migration by this strategy.
    pub(crate) fn of(strategy: Strategy) -> &'static [Self] {
        let survives_without_network = matches!(strategy.cut, Cut::Pbdata | Cut::Both);
        match (strategy.first, survives_without_network) {
            (First::Serial, false) => &Self::ALL[1..22],
            (First::Serial, true) => &Self::ALL[..23],
            (First::Parallel, false) => &Self::ALL[1..],
            (First::Parallel, true) => &Self::ALL,
        }
    }

    /// About as many boundaries as it meets in a run.
    pub(crate) fn boundaries(self) -> u64 {
        match self {
            Self::SourceDiskFull | Self::TargetDiskFull | Self::SlowSourceDisk | Self::SlowTargetDisk => 3,
            Self::SourceActionFails | Self::TargetActionFails | Self::StorageFull | Self::StorageSlow => 30,
            _ => 80,
        }
    }

    /// It hits a host in the middle of an action, rather than the world between two.
    fn is_of_an_action(self) -> bool {
        matches!(
            self,
            Self::SourceDiskFull
                | Self::TargetDiskFull
                | Self::SlowSourceDisk
                | Self::SlowTargetDisk
                | Self::SourceActionFails
                | Self::TargetActionFails
                | Self::StorageFull
                | Self::StorageDamaged
                | Self::StorageElsewhere
                | Self::StorageSlow
                | Self::StorageLate
                | Self::StorageVanishes
        )
    }
}

/// A fault and the boundary it happens at, counted from 0 at the start, or when the fault before it happened.
pub(crate) type Plan = (Fault, u64);

/// The faults of a run: each waits for the one before.
pub(super) struct Faults {
    plans: Vec<Plan>,
    happened: usize,
    boundary: u64,
}

impl Faults {
    pub(super) fn new(plans: &[Plan]) -> Self {
        Self {
            plans: plans.to_vec(),
            happened: 0,
            boundary: 0,
        }
    }

    pub(super) fn all_happened(&self) -> bool {
        self.happened == self.plans.len()
    }

    pub(super) fn happened(&self, fault: Fault) -> bool {
        self.plans[..self.happened].iter().any(|plan| plan.0 == fault)
    }

    /// A boundary at which the given faults can happen; the one that does now.
    fn strike(&mut self, possible: impl Fn(Fault) -> bool) -> Option<Fault> {
        let &(fault, at) = self.plans.get(self.happened)?;
        if !possible(fault) {
            return None;
        }
        self.boundary += 1;
        if self.boundary <= at {
            return None;
        }
        self.happened += 1;
        self.boundary = 0;
        Some(fault)
    }
}

impl World {
    /// Whether the host's action meets this fault now.
    pub(super) fn strikes(&mut self, fault: Fault) -> bool {
        let struck = self.faults.strike(|possible| possible == fault).is_some();
        if struck {
            self.trace("FAULT", &fault);
            self.last_trouble = self.now;
        }
        struck
    }

    /// A boundary between two actions, or between an action and the report of it.
    pub(super) fn boundary(&mut self) {
        let Some(fault) = self.faults.strike(|fault| !fault.is_of_an_action()) else {
            return;
        };
        self.trace("FAULT", &fault);
        self.last_trouble = self.now;
        let keep = self.below(3);
        match fault {
            Fault::Cut => {
                let down = 1 + self.below(600);
                self.link.cut(keep, self.now.saturating_add(Nanos::from_millis(down)));
            }
            Fault::NetworkGone => self.link.cut(keep, Nanos(u64::MAX)),
            Fault::CutFaultChannel => self.link.fault.cut(keep),
            Fault::BlackHole => self.link.swallow(self.now.saturating_add(Nanos::from_secs(4))),
            Fault::Stall => self.hold(None),
            Fault::LateMigration => self.hold(Some(Lane::Migration)),
            Fault::LateDemands => self.hold(Some(Lane::Fault)),
            Fault::HalfOpenAtTarget => self.link.half_open(true),
            Fault::HalfOpenAtSource => self.link.half_open(false),
            Fault::SourceHangsUp => {
                self.link.source_closes();
                self.tell_source(SourceEvent::LinkLost);
            }
            Fault::TargetHangsUp => {
                self.link.target_closes();
                self.tell_target(TargetEvent::LinkLost);
            }
            Fault::DamageToSource => {
                // Its listener stops there; whatever follows on that connection is not heard.
                self.link.migration.source_stops_reading();
                self.tell_source(SourceEvent::Violation(Violation::Frame));
            }
            Fault::DamageToTarget => self.damage_to_target(),
            Fault::Cancel => self.tell_source(SourceEvent::Cancel),
            Fault::CrashTarget => self.crash_target(),
            Fault::CrashSource => {
                self.link.source_closes();
                self.source_dead = true;
                self.source = None;
                self.source_doing = None;
                if self.owner == Owner::Source {
                    self.owner = Owner::Nobody;
                }
            }
            _ => unreachable!("it hits actions"),
        }
    }

    /// Shorter than the silence that is endured, or longer; both directions, or one.
    fn hold(&mut self, lane: Option<Lane>) {
        let until = self.now.saturating_add(Nanos::from_millis(1 + self.below(6000)));
        let until = match self.below(4) {
            0 => [until, Nanos::ZERO],
            1 => [Nanos::ZERO, until],
            _ => [until; 2],
        };
        self.link.hold(lane, until);
    }

    fn damage_to_target(&mut self) {
        self.tell_target(TargetEvent::Violation(Violation::Frame));
        // The abort can still be said; otherwise the connection is of no more use.
        if self.phase_of_target() != Some(Phase::Aborted) {
            self.link.migration_of_target().target_closes();
            self.tell_target(TargetEvent::LinkLost);
        }
    }

    fn crash_target(&mut self) {
        self.link.target_closes();
        self.crashed_after_taking |=
            self.target.is_some() && matches!(self.target_record, Some(TargetRecord::Taken | TargetRecord::Complete));
        self.target = None;
        self.target_doing = None;
        self.target_outcome = None;
        self.stop_reading();
        self.stop_reading_pb_data();
        self.waiting.clear();
        self.target_memory.fill(Some(0));
        if self.owner == Owner::Target {
            self.owner = Owner::Nobody;
        }
    }
}
