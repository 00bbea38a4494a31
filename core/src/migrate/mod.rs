//! The sans-I/O state machines of a migration.
//!
//! A host owns one [`Source`] or one [`Target`] per attempt and repeats: `poll` for the next action, carry it out, report it
//! with `on(Done)` (or what became of it), and feed whatever else happens (messages, a lost link, a person's wish) in
//! between. `poll` never returns a new action while one is outstanding. A machine may change its mind while the host carries
//! out an action (the link is lost, a person cancels): the host still reports what became of it, before it polls again, and the
//! report is ignored. The machines read no clock: every call carries the time.
//!
//! ```text
//! source  Hello ─▶ rounds ─▶ Pause ─▶ harvest ─▶ state ─▶ (Ready) ─▶ record given-up ─▶ Commit ─▶ (Running) ─▶ push ─▶ (Complete)
//! target  (Hello) build ─▶ pages ─▶ prepare, restore ─▶ Ready ─▶ (Commit) ─▶ record taken ─▶ run ─▶ Running ─▶ install ─▶ Complete
//! ```
//!
//! Who may run the VM, at every instant:
//!
//! * the source until its record says *given-up*; whatever fails before that resumes the VM there;
//! * the target from its record *taken* on, and only after `Commit`, which the source sends only after *given-up*;
//! * nobody in between. A lost link there leaves both sides holding everything until they reach each other again
//!   (`Resume`), or a person decides. A target that says `Abort`, or that it never took the VM, has promised never to
//!   run it in this session, so the source may.

mod advisor;
mod compat;
mod foresight;
mod regions;
mod source;
mod source_types;
mod support;
mod target;
mod target_types;

pub use advisor::{Advisor, AdvisorSetting};
pub use compat::{Offer, agree_on_version, check};
pub use foresight::{ForesightError, ForesightNeed, ForesightStorage, SourceStorageError};
pub use source::Source;
pub use source_types::{
    FaultAnswer, RoundReport, SourceAction, SourceConfig, SourceEvent, SourceMessage, SourceOutcome, SourceRecord,
};
pub use support::{UnsupportedStrategy, check_strategy};
pub use target::Target;
pub use target_types::{
    FaultDecision, TargetAction, TargetConfig, TargetEvent, TargetMessage, TargetOutcome, TargetRecord, TargetTotals,
};

/// Where an attempt stands, for people and for `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Agreeing on what is to be moved.
    Connecting,
    /// Copying while the guest runs on the source.
    PreCopy,
    /// The guest is paused; the target is made ready.
    HandOver,
    /// The link broke while only one side may run the guest and neither knows which: both hold everything.
    HandOverUnknown,
    /// The guest runs on the target while pages are missing.
    PostCopy,
    /// The same, with the link lost.
    PostCopyPaused,
    /// The guest runs on the target and nothing is missing. The attempt itself ends a little later, with `Finish`: the target still
    /// says so, hashes are compared, records written.
    Complete,
    /// The attempt is over; the guest runs on the source.
    Aborted,
}

/// What a person decided about a hand-over that no protocol can settle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Run the VM on this side; the other side is dead and stays so.
    RunHere,
    /// Drop what this side holds.
    GiveUp,
}

/// A resolution does not fit where the attempt stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotResolvable;

impl core::fmt::Display for NotResolvable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("there is nothing to resolve: only a hand-over whose outcome is unknown can be decided by hand")
    }
}

impl core::error::Error for NotResolvable {}
