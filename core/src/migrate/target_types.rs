//! What goes in and out of a [`Target`](super::Target).

use crate::message::{AbortReason, Message, Mode, Regions, SessionId, TargetReport, TargetStanding, Violation, VmId};
use crate::pageset::Run;
use crate::units::{Nanos, Pages};

/// Everything a target needs to know once a VM has been accepted.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// This attempt.
    pub session: SessionId,
    /// The VM.
    pub vm: VmId,
    /// Its RAM.
    pub regions: Regions,
    /// The protocol version agreed on.
    pub protocol: u16,
    /// The source sends hashes at the end.
    pub verify: bool,
    /// The source writes the final dirty set to the storage channel, too, once the guest runs here.
    pub pb_data: bool,
    /// The source writes a static copy of all pages to the storage channel.
    pub static_copy: bool,
    /// The source sends a part of it on the migration channel.
    pub split: bool,
    /// Silence after which the link counts as lost.
    pub network_timeout: Nanos,
}

/// Control messages a target sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetMessage {
    /// [`Message::Welcome`].
    Welcome {
        /// The version both will speak.
        protocol: u16,
    },
    /// [`Message::RoundReached`].
    RoundReached {
        /// The round.
        round: u32,
    },
    /// [`Message::Ready`].
    Ready,
    /// [`Message::Running`].
    Running,
    /// [`Message::Abort`].
    Abort(AbortReason),
    /// [`Message::Resumed`].
    Resumed(TargetStanding),
    /// [`Message::StaticMerged`].
    StaticMerged,
    /// [`Message::StaticFailed`].
    StaticFailed,
    /// [`Message::Complete`]; the host adds its measurements to what is here.
    Complete {
        /// Pages compared and pages that differed.
        verified: Option<(u64, u64)>,
    },
}

impl TargetMessage {
    /// The message itself; `report` is what the host measured, for [`TargetMessage::Complete`].
    pub fn message(self, report: &TargetReport) -> Message<'static> {
        match self {
            Self::Welcome { protocol } => Message::Welcome { protocol },
            Self::RoundReached { round } => Message::RoundReached { round },
            Self::Ready => Message::Ready,
            Self::Running => Message::Running,
            Self::Abort(reason) => Message::Abort(reason),
            Self::Resumed(standing) => Message::Resumed(standing),
            Self::StaticMerged => Message::StaticMerged,
            Self::StaticFailed => Message::StaticFailed,
            Self::Complete { verified } => Message::Complete(TargetReport { verified, ..*report }),
        }
    }
}

/// What a target's hand-over record must say, durably, when the action is reported done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetRecord {
    /// Memory is being received; the VM has not run here.
    Receiving,
    /// The VM runs here from now on.
    Taken,
    /// Nothing is missing any more.
    Complete,
    /// The VM never ran here in this session and never will.
    NeverTaken,
}

/// What the host is to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetAction {
    /// Build the VM: memory, vCPUs, devices, nothing running.
    CreateGuest,
    /// Make the record durable.
    Record(TargetRecord),
    /// Send a control message on the migration channel.
    Send(TargetMessage),
    /// Discard every page of [`Target::missing`](super::Target::missing), register it as missing, check that it is absent, and start
    /// answering faults.
    PrepareMissing,
    /// Load the vCPU and device state that was received.
    RestoreState,
    /// Let the guest run. Failed means that not one instruction of it was executed.
    RunGuest,
    /// Send [`Target::missing`](super::Target::missing) and [`Message::MissingEnd`].
    SendMissing,
    /// Begin to install what is missing from the storage channel, as far as it is there and as it comes, beside what follows;
    /// report it as [`TargetEvent::InstalledFromStorage`]. The network is gone. If it cannot begin it is asked again at once.
    ReadPbData,
    /// Nothing is missing any more: stop answering faults.
    FinishPostCopy,
    /// Compare the received hashes with those of the pages as installed; answer with [`TargetEvent::Compared`].
    CompareHashes,
    /// Drop the VM and its memory.
    Discard,
    /// Nothing to do until something happens, or until this time.
    Wait {
        /// Poll again then at the latest.
        until: Option<Nanos>,
    },
    /// The attempt is over; all later polls say the same.
    Finish(TargetOutcome),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetEvent<'a> {
    /// The outstanding action has been carried out.
    Done,
    /// The outstanding action could not be carried out, for a reason that is not the link.
    Failed,
    /// Answer to [`TargetAction::CompareHashes`].
    Compared {
        /// Pages compared.
        pages: u64,
        /// Pages that differ.
        mismatches: u64,
    },
    /// Pages stand in guest memory as the source sent them (before the guest runs here).
    Received(Run),
    /// Pages of the static copy stand in guest memory, but for those which [`Received`](Self::Received) was told of before: what
    /// came on the migration channel is newer and stays. Of each page the host does either as one step.
    StaticReceived(Run),
    /// The last page of the static copy was received so.
    StaticEnded,
    /// The static copy, or what is left of it, is of no use.
    StaticFailed,
    /// Pages were installed that were missing when the guest was started; pages that were not missing any more do no harm.
    Installed {
        /// Which.
        run: Run,
        /// They answer a fault, rather than being pushed.
        demanded: bool,
    },
    /// The same, from the storage channel.
    InstalledFromStorage(Run),
    /// The link is gone; if an action was outstanding, it failed for that. Only of the present connections, never of those before
    /// the last [`TargetEvent::Reconnected`].
    LinkLost,
    /// Something without meaning of its own was heard from the source.
    Heard,
    /// A message came from the source. For state and hashes the host keeps the bytes, after this says they fit.
    Message(&'a Message<'a>),
    /// This host cannot take what comes: it has no memory left, for example.
    HostFailed,
    /// What the source's last word in the storage directory says, read while the link is lost. Of this session, and whole; a word
    /// from before it gave the VM up is none.
    SourceState {
        /// It gave the VM up; otherwise it runs the VM itself.
        given_up: bool,
    },
    /// The source has read in the storage directory that the VM is whole here: it has taken away what it had there, which nobody
    /// else does.
    SourceEnded,
    /// The source is back on a new connection.
    Reconnected {
        /// Its record says given-up; otherwise it runs the VM itself.
        given_up: bool,
    },
    /// The source sent something that cannot be decoded or does not belong here.
    Violation(Violation),
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetOutcome {
    /// The guest runs here and nothing is missing.
    Completed {
        /// How it came.
        mode: Mode,
    },
    /// The guest never ran here; everything was dropped.
    Aborted(AbortReason),
}

/// What to do with a fault of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultDecision {
    /// Ask the source.
    Request,
    /// The page was received as zero and never touched: fill it with zeros here.
    ZeroFill,
    /// Not a page of this VM.
    Outside,
}

/// Totals for the report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TargetTotals {
    /// Pages that were missing when the guest began to run here.
    pub missing_at_start: Pages,
    /// Faults answered by the source.
    pub demanded: u64,
    /// Pages installed by the push.
    pub pushed: u64,
    /// Pages installed from the storage channel.
    pub stored: u64,
}

impl TargetTotals {
    /// Adds the totals to what the host measured.
    pub fn fill(&self, report: &mut TargetReport) {
        report.faults = self.demanded;
        report.pushed = self.pushed;
        report.stored = self.stored;
    }
}
