//! What a record says.

use dunlin_core::message::{SessionId, VmId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which side of a migration a process is, or was in its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The VM runs here, or ran here until it moved away.
    Source,
    /// The VM comes here, or has come.
    Target,
}

/// How far a hand-over has come. New phases go to the end: records keep their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The VM runs here and nowhere else.
    Running,
    /// Target: memory is arriving; the VM belongs to the source.
    Receiving,
    /// Target: everything is in place, but the source has not given the VM up as far as is known here.
    Ready,
    /// Source: the VM will not run here again unless the target is known not to have taken it.
    GivenUp,
    /// Target: the source has given the VM up; it runs here and nowhere else.
    Taken,
    /// The VM runs at the target while pages are still on their way.
    PostCopy,
    /// The target has everything.
    Complete,
    /// Source: the VM runs elsewhere and this host keeps nothing of it.
    MovedAway,
    /// The migration is over without a hand-over; the VM stayed at the source.
    Aborted,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Receiving => "receiving",
            Self::Ready => "ready",
            Self::GivenUp => "given-up",
            Self::Taken => "taken",
            Self::PostCopy => "post-copy",
            Self::Complete => "complete",
            Self::MovedAway => "moved-away",
            Self::Aborted => "aborted",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// Where a VM's hand-over stands, as one side knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// The VM, on whatever host it is.
    pub vm_id: VmId,
    /// The migration; of a VM that was never moved, all zero.
    pub session: SessionId,
    /// This side.
    pub role: Role,
    /// How far it is.
    pub phase: Phase,
    /// The other side's address, as far as known.
    pub peer: Option<String>,
    /// The control socket of the process, to find it again while it lives.
    pub control: Option<String>,
}

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts the records of this file.
    pub sequence: u64,
    /// The VM's name, also the file's.
    pub vm_name: String,
    /// The process that wrote it.
    pub pid: u32,
    /// When, in seconds since 1970 by this host's clock. For people: nothing is decided by it.
    pub unix_time_s: u64,
    /// What it says.
    pub hand_over: HandOver,
}

impl Record {
    /// What this record means when the process that wrote it is dead: where the VM is, and what to do.
    pub const fn meaning_when_dead(&self) -> &'static str {
        match (self.hand_over.role, self.hand_over.phase) {
            (Role::Source, Phase::Running | Phase::Aborted) => {
                "the VM ran here and ended with its process, before it was handed over; start it again"
            }
            (Role::Source, Phase::GivenUp) => {
                "this side had given the VM up when its process died; ask `dunlin status` at the target whether it has taken it"
            }
            (Role::Source, Phase::PostCopy) => {
                "the VM went on at the target, but this process died with pages that were still missing there; see `dunlin status` at the target"
            }
            (Role::Source, Phase::Complete | Phase::MovedAway) => "the VM moved away; nothing is left to do here",
            (Role::Target, Phase::Receiving) => {
                "the VM was on its way here and had not arrived; it is still at the source"
            }
            (Role::Target, Phase::Ready) => {
                "the VM was ready to run here when this process died; ask `dunlin status` at the source, which still holds it"
            }
            (Role::Target, Phase::Aborted) => {
                "the migration was given up here; the VM stayed at the source, or is lost"
            }
            (Role::Target, Phase::Taken | Phase::PostCopy | Phase::Complete | Phase::Running) => {
                "the VM had been handed over, ran here and ended with its process; start it again"
            }
            (Role::Source, Phase::Receiving | Phase::Ready | Phase::Taken)
            | (Role::Target, Phase::GivenUp | Phase::MovedAway) => {
                "this phase does not belong to this role; the record was not written by dunlin's rules"
            }
        }
    }
}
