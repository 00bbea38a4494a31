//! What each side makes of each message in each state it can be in: accepted, ignored, or a breach of the protocol. The tables are what
//! was decided; a machine that decides otherwise fails.

mod source;
mod target;

use dunlin_core::message::{
    AbortReason, Capabilities, Hello, Message, Mode, Refusal, Region, Regions, SIGNATURE_BYTES_MAX, SessionId,
    TargetReport, TargetStanding, VmId,
};
use dunlin_core::units::{Gfn, Nanos, Pages};

/// No time passes.
const NOW: Nanos = Nanos(1);
const PAGES: Pages = Pages(4);

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It belongs there, and has its effect.
    Accepted,
    /// It has none: it comes from a connection that is lost, or after the end.
    Ignored,
    /// It ends the attempt, and is no breach: who says so may.
    Ends,
    /// A breach, before the VM can have changed hands: the attempt is over.
    Breach,
    /// A breach when the attempt can no longer be ended: the connection is not trusted any more, and another is waited for.
    Dropped,
}

impl Fate {
    /// Of an attempt that ended, by the reason that its machine shows.
    fn of_end(machine: &str) -> Self {
        if machine.contains("Protocol(") {
            Self::Breach
        } else {
            Self::Ends
        }
    }

    const fn sign(self) -> char {
        match self {
            Self::Accepted => '+',
            Self::Ignored => '.',
            Self::Ends => 'E',
            Self::Breach => 'X',
            Self::Dropped => 'D',
        }
    }
}

fn regions() -> Regions {
    let region = Region {
        first: Gfn(0),
        pages: PAGES,
    };
    [region].into_iter().collect()
}

/// Every message, some of them with several contents that matter.
fn messages() -> Vec<(&'static str, Message<'static>)> {
    let session = SessionId(1);
    let round = |round, pages| Message::RoundStart {
        round,
        pages: Pages(pages),
    };
    let set = |first_word, words| Message::FinalSet { first_word, words };
    let missing = |first_word, words| Message::Missing { first_word, words };
    let hand_over = |mode, state_bytes, dirty| Message::HandOver {
        mode,
        state_bytes,
        final_dirty: Pages(dirty),
    };
    vec![
        (
            "Hello",
            Message::Hello(Hello {
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
                network_timeout: Nanos::from_secs(3),
                cpuid: &[],
                config: &[],
            }),
        ),
        ("Welcome", Message::Welcome { protocol: 1 }),
        ("Welcome, never offered", Message::Welcome { protocol: 77 }),
        ("Refused", Message::Refused(Refusal::Busy)),
        ("Attach", Message::Attach { session }),
        ("Attached", Message::Attached),
        ("RoundStart 1", round(1, 4)),
        ("RoundStart 2", round(2, 4)),
        ("RoundStart 0", round(0, 0)),
        ("RoundStart 1, too many", round(1, 5)),
        ("RoundEnd 0", Message::RoundEnd { round: 0 }),
        ("RoundEnd 1", Message::RoundEnd { round: 1 }),
        ("RoundEnd 2", Message::RoundEnd { round: 2 }),
        ("RoundReached 0", Message::RoundReached { round: 0 }),
        ("RoundReached 1", Message::RoundReached { round: 1 }),
        ("RoundReached 2", Message::RoundReached { round: 2 }),
        ("FinalSet", set(0, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("FinalSet, half a word", set(0, &[1, 0, 0, 0])),
        ("FinalSet, too far", set(1, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("FinalSet, at the end of all", set(u64::MAX, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("State", Message::State { offset: 0, bytes: &[7] }),
        ("State, with a gap", Message::State { offset: 9, bytes: &[7] }),
        ("HandOver, post-copy", hand_over(Mode::PostCopy, 0, 0)),
        ("HandOver, stop-copy", hand_over(Mode::StopCopy, 0, 0)),
        ("HandOver, more dirty", hand_over(Mode::PostCopy, 0, 1)),
        ("HandOver, more state", hand_over(Mode::PostCopy, 1, 0)),
        ("Ready", Message::Ready),
        ("Commit", Message::Commit),
        ("Running", Message::Running),
        ("Abort", Message::Abort(AbortReason::Cancelled)),
        (
            "Resume",
            Message::Resume {
                session,
                vm: VmId(1),
                given_up: true,
            },
        ),
        ("Resumed, ready", Message::Resumed(TargetStanding::Ready)),
        ("Resumed, complete", Message::Resumed(TargetStanding::Complete)),
        ("Resumed, post-copy", Message::Resumed(TargetStanding::PostCopy)),
        ("Resumed, never taken", Message::Resumed(TargetStanding::NeverTaken)),
        ("Resumed, unknown", Message::Resumed(TargetStanding::Unknown)),
        ("Missing", missing(0, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("Missing, half a word", missing(0, &[1, 0, 0, 0])),
        ("Missing, too far", missing(1, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("MissingEnd", Message::MissingEnd { pages: Pages(0) }),
        ("MissingEnd, of more", Message::MissingEnd { pages: Pages(9) }),
        (
            "Hashes",
            Message::Hashes {
                first: Gfn(0),
                bytes: &[0; 32],
            },
        ),
        (
            "Hashes, too many",
            Message::Hashes {
                first: Gfn(0),
                bytes: &[0; 40],
            },
        ),
        (
            "Hashes, cut",
            Message::Hashes {
                first: Gfn(0),
                bytes: &[0; 31],
            },
        ),
        ("HashesEnd", Message::HashesEnd),
        ("Complete", Message::Complete(TargetReport::default())),
        ("Bye", Message::Bye),
        ("StaticMerged", Message::StaticMerged),
        ("StaticFailed", Message::StaticFailed),
        ("Signed", Message::Signed { signature: &[7; 72] }),
        (
            "Signed, too long",
            Message::Signed {
                signature: &[7; SIGNATURE_BYTES_MAX + 1],
            },
        ),
    ]
}

/// The table as text: a line for each message, a column for each state.
fn table(states: &[&str], mut fate: impl FnMut(&str, &Message<'_>) -> Fate) -> String {
    let lines = messages().into_iter().map(|(name, message)| {
        let fates: String = states.iter().map(|state| fate(state, &message).sign()).collect();
        format!("{name:<29}{fates}\n")
    });
    lines.collect()
}

fn expect(states: &[&str], found: &str, expected: &str) {
    let numbered: Vec<String> = states
        .iter()
        .enumerate()
        .map(|(at, state)| format!("{at} {state}"))
        .collect();
    assert!(
        found == expected,
        "the states are {numbered:#?}, and what was found is\n{found}"
    );
}
