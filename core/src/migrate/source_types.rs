//! What goes in and out of a [`Source`](super::Source).

use heapless::Vec;

use crate::message::{AbortReason, Message, Mode, Regions, SessionId, TargetReport, TargetStanding, VmId};
use crate::pageset::Run;
use crate::strategy::Strategy;
use crate::switch::Verdict;
use crate::units::{Nanos, Pages};

/// Everything a source needs to know before it starts.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// This attempt.
    pub session: SessionId,
    /// The VM.
    pub vm: VmId,
    /// Its RAM.
    pub regions: Regions,
    /// How to move it.
    pub strategy: Strategy,
    /// Longest downtime wanted; the fixed cost of the hand-over is part of it.
    pub downtime: Nanos,
    /// What pausing, saving, restoring and the round trips take, as far as known (first guess: 2 ms).
    pub handover_cost: Nanos,
    /// Most pre-copy rounds.
    pub max_rounds: u32,
    /// Shortest round: without it, rounds over few pages become noise.
    pub min_round: Nanos,
    /// How long the guest is observed before anything is copied, by a strategy with a filter or `push=forecast`: what is known of
    /// its writes then is what the first round goes by.
    pub learning: Nanos,
    /// Most pages of one push, at most 512 and at least one. Pages handed out for pushing no longer count as missing: one that
    /// the guest demands before it has left is sent twice. What the link carries in some milliseconds is a good number.
    pub push_pages: Pages,
    /// Silence after which the link counts as lost.
    pub network_timeout: Nanos,
    /// Longest wait for the target to answer a request of the hand-over.
    pub handover_timeout: Nanos,
    /// Shortest time that the target has to merge what is left of a static copy once all of it is written; it has as long as the
    /// writing took, if that was longer. A target that sees another directory never merges anything.
    pub merge_patience: Nanos,
    /// Send hashes of every page for comparison.
    pub verify: bool,
    /// How long the copy waits for what an agent in the guest calls soft, after tracking has begun; `None` if there is nobody to say so.
    pub hint_patience: Option<Nanos>,
    /// Pages the target's host reads itself; they are sent while the guest is paused, never left missing.
    pub host_pages: Vec<Run, 8>,
}

impl SourceConfig {
    /// What `dunlin migrate` does unless it is told otherwise: a downtime of 300 ms, 2 ms of which the hand-over may cost, at most 30
    /// rounds of at least 100 ms, 8 s of observation where the strategy looks ahead, pushes of 64 pages, a link that is lost after 3 s of silence, 10 s for the hand-over's answers.
    /// No hashes, no agent, and no pages that the target's host reads.
    pub const fn new(session: SessionId, vm: VmId, regions: Regions, strategy: Strategy) -> Self {
        Self {
            session,
            vm,
            regions,
            strategy,
            downtime: Nanos::from_millis(300),
            handover_cost: Nanos::from_millis(2),
            max_rounds: 30,
            min_round: Nanos::from_millis(100),
            learning: Nanos::from_secs(8),
            push_pages: Pages(64),
            network_timeout: Nanos::from_secs(3),
            handover_timeout: Nanos::from_secs(10),
            merge_patience: Nanos::from_secs(30),
            verify: false,
            hint_patience: None,
            host_pages: Vec::new(),
        }
    }
}

/// Control messages a source sends; the host adds what only it knows (CPUID, configuration).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceMessage {
    /// [`Message::Hello`].
    Hello,
    /// [`Message::RoundStart`].
    RoundStart {
        /// Counted from 1.
        round: u32,
        /// Pages it will send.
        pages: Pages,
    },
    /// [`Message::RoundEnd`].
    RoundEnd {
        /// The round.
        round: u32,
    },
    /// [`Message::Commit`].
    Commit,
    /// [`Message::Abort`].
    Abort(AbortReason),
    /// [`Message::Resume`].
    Resume {
        /// The record says given-up.
        given_up: bool,
    },
    /// [`Message::Bye`].
    Bye,
}

impl SourceMessage {
    /// The message itself, but for [`SourceMessage::Hello`], of which the host knows the better part.
    pub fn message(self, config: &SourceConfig) -> Option<Message<'static>> {
        Some(match self {
            Self::Hello => return None,
            Self::RoundStart { round, pages } => Message::RoundStart { round, pages },
            Self::RoundEnd { round } => Message::RoundEnd { round },
            Self::Commit => Message::Commit,
            Self::Abort(reason) => Message::Abort(reason),
            Self::Resume { given_up } => Message::Resume {
                session: config.session,
                vm: config.vm,
                given_up,
            },
            Self::Bye => Message::Bye,
        })
    }
}

/// What a source's hand-over record must say, durably, when the action is reported done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceRecord {
    /// The VM runs here.
    Running,
    /// This side will not run the VM again unless the target says it never took it.
    GivenUp,
    /// The target has everything.
    MovedAway,
}

/// What the host is to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceAction {
    /// Send a control message on the migration channel.
    Send(SourceMessage),
    /// Open the fault channel and attach it to the session.
    OpenFaultChannel,
    /// Start dirty tracking. Everything counts as clean at that instant.
    StartTracking,
    /// Ask the agent in the guest which pages are soft from now on, and answer with [`SourceEvent::Hinted`] as it says so, and
    /// [`SourceEvent::HintsEnded`] when it has nothing more to say, or cannot be reached. Done means that it was asked.
    OpenEpoch,
    /// Tell the target that these pages are zero, whatever is in them here.
    SendZeros(Run),
    /// Begin to write all pages of the VM as a static copy to the storage channel, beside what follows; if that fails, now or
    /// later, [`SourceEvent::StaticFailed`].
    StartStatic,
    /// Stop doing so. Asked for whenever it was begun and the target did not get all of it; what was written is of no use.
    StopStatic,
    /// Collect and clear the dirty bits; answer with [`SourceEvent::Harvested`].
    Harvest,
    /// Collect and clear the dirty bits to learn from them, while the guest is observed or a round goes on; answer with
    /// [`SourceEvent::Sampled`].
    Sample,
    /// Send these pages as they are when read; answer with [`SourceEvent::PagesSent`].
    SendPages {
        /// Which.
        run: Run,
        /// For which round, counted from 1; 0 while the guest is paused.
        round: u32,
    },
    /// Stop all vCPUs with no access half done, and read their state.
    Pause,
    /// Send the final dirty set ([`Source::pending`](super::Source::pending); post-copy only), the state, and
    /// [`Message::HandOver`].
    SendHandOver(Mode),
    /// Make the record durable.
    Record(SourceRecord),
    /// Begin to write the final dirty set as it was when the guest was paused to the storage channel, beside what follows. Failed
    /// means that the target cannot count on it.
    StartPbData,
    /// Push these pages in the background; answer with [`SourceEvent::PagesSent`].
    PushPages(Run),
    /// Send the hash of every RAM page, then [`Message::HashesEnd`].
    SendHashes,
    /// Let the guest run again. Asked for after a pause that failed or was given up on the way, too: a guest that runs is left
    /// alone.
    ResumeGuest,
    /// Stop dirty tracking; also if it may never have begun.
    StopTracking,
    /// Drop what is left of the connections and open the migration channel anew.
    Reconnect,
    /// Nothing to do until something happens, or until this time.
    Wait {
        /// Poll again then at the latest.
        until: Option<Nanos>,
    },
    /// The attempt is over; all later polls say the same.
    Finish(SourceOutcome),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceEvent<'a> {
    /// The outstanding action has been carried out.
    Done,
    /// The outstanding action could not be carried out, for a reason that is not the link.
    Failed,
    /// Answer to [`SourceAction::Harvest`]: dirty bits of frames 0 and up, 64 per word.
    Harvested(&'a [u64]),
    /// Answer to [`SourceAction::Sample`], of the same form.
    Sampled(&'a [u64]),
    /// Answer to [`SourceAction::SendPages`] and [`SourceAction::PushPages`].
    PagesSent {
        /// Pages that travelled with data.
        data: Pages,
        /// Pages that travelled as zero runs.
        zero: Pages,
    },
    /// The agent in the guest says that these pages were soft at some instant since it was asked. Whatever it names, it is checked.
    Hinted(Run),
    /// It has nothing more to say.
    HintsEnded,
    /// All of the static copy was written.
    StaticWritten,
    /// What the target's state in the storage directory says, read while the link is lost. Of this session, and whole.
    TargetState {
        /// Where it stands.
        standing: TargetStanding,
        /// What it measured, if it is complete.
        report: TargetReport,
    },
    /// The static copy could not be written. The link has nothing to do with it.
    StaticFailed,
    /// The final dirty set cannot be written to the storage channel, at least for the time being.
    PbDataFailed,
    /// The link is gone; if an action was outstanding, it failed for that. Only of the present connections, never of those before
    /// the last [`SourceAction::Reconnect`].
    LinkLost,
    /// Something without meaning of its own was heard from the target.
    Heard,
    /// The link is busy until then with what was sent before: there is no push earlier. What is pushed is chosen when it can be
    /// sent, since the pages that were asked for meanwhile say where the guest is. Replaces what was said before.
    RoomAt(Nanos),
    /// A message came from the target.
    Message(&'a Message<'a>),
    /// A person wants the attempt to end. Ignored once given up.
    Cancel,
    /// The target sent something that cannot be decoded or does not belong here.
    Violation(crate::message::Violation),
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceOutcome {
    /// The guest runs on the target and nothing is missing.
    Completed,
    /// The guest runs on the source, or nothing there could make it run again (reason
    /// [`SourceGuest`](AbortReason::SourceGuest)).
    Aborted {
        /// Why.
        reason: AbortReason,
        /// The target may still hold a ready copy, because it could not be told; it cannot run it.
        target_may_hold: bool,
    },
    /// The target refused the VM; the guest never stopped.
    Refused(crate::message::Refusal),
    /// A person dropped this side's copy while the hand-over was unknown.
    GaveUp,
    /// The link broke in post-copy and the strategy says `cut=fail`: the target cannot be completed.
    Lost,
}

/// One finished round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoundReport {
    /// Counted from 1.
    pub round: u32,
    /// Time spent sending, without idling up to the minimum.
    pub duration: Nanos,
    /// Pages sent with data.
    pub sent: Pages,
    /// Pages sent as zero runs.
    pub zero: Pages,
    /// Pages dirty when the round ended.
    pub dirty: Pages,
    /// λ of the round in thousandths.
    pub lambda_milli: i64,
    /// Stop-and-copy decision factor in thousandths.
    pub sdf_milli: i64,
    /// What was decided, and why.
    pub verdict: Verdict,
}

/// What to do with a page the target asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultAnswer {
    /// Send it at once.
    Send,
    /// Not a page of this VM, or not in post-copy: the target broke the protocol.
    Refuse,
}

/// Everything the host needs to know of [`Message`]s that end or advance a source, taken out of the machine once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Heard {
    pub(super) report: Option<TargetReport>,
}
