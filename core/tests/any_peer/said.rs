//! Messages that own their bytes, so that they can be made up.

use dunlin_core::message::{
    AbortReason, Capabilities, Hello, Message, Mode, Refusal, SessionId, TargetReport, TargetStanding, Violation, VmId,
};
use dunlin_core::units::{Gfn, Nanos, Pages};
use proptest::prelude::*;

use crate::regions;

/// What a peer says.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    Hello,
    Welcome(u16),
    Refused,
    Attach,
    Attached,
    RoundStart(u32, u64),
    RoundEnd(u32),
    RoundReached(u32),
    FinalSet(u64, Vec<u8>),
    State(u32, usize),
    HandOver(bool, u32, u64),
    Ready,
    Commit,
    Running,
    Abort(AbortReason),
    Resume(bool),
    Resumed(TargetStanding),
    Missing(u64, Vec<u8>),
    MissingEnd(u64),
    Hashes(u64, usize),
    HashesEnd,
    Complete,
    Bye,
    Static(bool),
    Signed(usize),
}

/// Large enough for every state chunk that is made up.
static ZEROS: [u8; 70_000] = [0; 70_000];

impl Said {
    pub(crate) fn message(&self) -> Message<'_> {
        let session = SessionId(1);
        match self {
            Self::Hello => Message::Hello(Hello {
                protocol_min: 1,
                protocol_max: 1,
                capabilities: Capabilities::empty(),
                session,
                vm: VmId(1),
                page_size: 4096,
                regions: regions(),
                vcpus: 1,
                tsc_khz: 0,
                state_version: 1,
                network_timeout: Nanos(1),
                cpuid: &[],
                config: &[],
            }),
            Self::Welcome(protocol) => Message::Welcome { protocol: *protocol },
            Self::Refused => Message::Refused(Refusal::Busy),
            Self::Attach => Message::Attach { session },
            Self::Attached => Message::Attached,
            Self::RoundStart(round, pages) => Message::RoundStart {
                round: *round,
                pages: Pages(*pages),
            },
            Self::RoundEnd(round) => Message::RoundEnd { round: *round },
            Self::RoundReached(round) => Message::RoundReached { round: *round },
            Self::FinalSet(first_word, words) => Message::FinalSet {
                first_word: *first_word,
                words,
            },
            Self::State(offset, length) => Message::State {
                offset: *offset,
                bytes: &ZEROS[..*length],
            },
            Self::HandOver(post_copy, state_bytes, final_dirty) => Message::HandOver {
                mode: if *post_copy { Mode::PostCopy } else { Mode::StopCopy },
                state_bytes: *state_bytes,
                final_dirty: Pages(*final_dirty),
            },
            Self::Ready => Message::Ready,
            Self::Commit => Message::Commit,
            Self::Running => Message::Running,
            Self::Abort(reason) => Message::Abort(*reason),
            Self::Resume(given_up) => Message::Resume {
                session,
                vm: VmId(1),
                given_up: *given_up,
            },
            Self::Resumed(standing) => Message::Resumed(*standing),
            Self::Missing(first_word, words) => Message::Missing {
                first_word: *first_word,
                words,
            },
            Self::MissingEnd(pages) => Message::MissingEnd { pages: Pages(*pages) },
            Self::Hashes(first, length) => Message::Hashes {
                first: Gfn(*first),
                bytes: &ZEROS[..*length],
            },
            Self::HashesEnd => Message::HashesEnd,
            Self::Complete => Message::Complete(TargetReport::default()),
            Self::Bye => Message::Bye,
            Self::Static(true) => Message::StaticMerged,
            Self::Static(false) => Message::StaticFailed,
            Self::Signed(length) => Message::Signed {
                signature: &ZEROS[..*length],
            },
        }
    }
}

fn words() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        2 => prop::collection::vec(Just(0u8), 0..40),
        // All of the VM, and nothing of the hole.
        1 => Just(whole_bitmap()),
    ]
}

/// Every page of the VM and nothing else.
pub(crate) fn whole_bitmap() -> Vec<u8> {
    let mut bytes = vec![0u8; 24];
    for (first, pages) in crate::SHAPE {
        for page in first..first + pages {
            bytes[page as usize / 8] |= 1 << (page % 8);
        }
    }
    bytes
}

fn anywhere() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..4u64, 2 => 0..200u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

pub(crate) fn anything_said() -> impl Strategy<Value = Said> {
    let reasons = prop::sample::select(vec![
        AbortReason::Cancelled,
        AbortReason::Protocol(Violation::Frame),
        AbortReason::TargetGuest,
        AbortReason::Record,
        AbortReason::Resolved,
    ]);
    let standings = prop::sample::select(vec![
        TargetStanding::Ready,
        TargetStanding::Complete,
        TargetStanding::PostCopy,
        TargetStanding::NeverTaken,
        TargetStanding::Unknown,
    ]);
    let plain = prop::sample::select(vec![
        Said::Hello,
        Said::Refused,
        Said::Attach,
        Said::Attached,
        Said::Ready,
        Said::Commit,
        Said::Running,
        Said::HashesEnd,
        Said::Complete,
        Said::Bye,
        Said::Signed(70),
        Said::Static(true),
        Said::Static(false),
    ]);
    prop_oneof![
        10 => plain,
        1 => any::<u16>().prop_map(Said::Welcome),
        2 => (0..4u32, anywhere()).prop_map(|(round, pages)| Said::RoundStart(round, pages)),
        1 => (0..4u32).prop_map(Said::RoundEnd),
        1 => (0..4u32).prop_map(Said::RoundReached),
        2 => (anywhere(), words()).prop_map(|(first, words)| Said::FinalSet(first, words)),
        2 => (prop_oneof![Just(0u32), any::<u32>()], 0..70_000usize).prop_map(|(at, length)| Said::State(at, length)),
        2 => (any::<bool>(), 0..3u32, anywhere()).prop_map(|(mode, state, dirty)| Said::HandOver(mode, state, dirty)),
        2 => reasons.prop_map(Said::Abort),
        1 => any::<bool>().prop_map(Said::Resume),
        3 => standings.prop_map(Said::Resumed),
        2 => (anywhere(), words()).prop_map(|(first, words)| Said::Missing(first, words)),
        2 => anywhere().prop_map(Said::MissingEnd),
        2 => (anywhere(), 0..1200usize).prop_map(|(first, length)| Said::Hashes(first, length)),
    ]
}
