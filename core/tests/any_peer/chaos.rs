//! Hosts that do not keep their word either: whatever is reported whenever, nothing panics, and an end stays an end.

use dunlin_core::message::{TargetReport, TargetStanding, Violation};
use dunlin_core::migrate::{Resolution, SourceAction, SourceEvent, TargetAction, TargetEvent};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Nanos, Pages};
use proptest::prelude::*;

use crate::said::{Said, anything_said};
use crate::source::source;
use crate::target::target;
use crate::{pauses, runs};

/// Any call of a machine.
#[derive(Clone, Debug)]
enum Call {
    Poll,
    Done,
    Failed,
    LinkLost,
    Heard,
    RoomAt(u64),
    Cancel,
    Violation,
    HostFailed,
    Reconnected(bool),
    Resolve(bool),
    Said(Said),
    Harvested(Vec<u64>),
    Sent(u64, u64),
    Compared(u64, u64),
    Pages(Run, bool),
    Fault(u64),
    /// The other side's file in the storage directory.
    State(bool),
    /// Of the source: what is missing cannot be stored. Of the target: the directory is gone.
    NoStorage,
    /// The static copy: pages, its end, its failure.
    Static(Option<Run>, bool),
}

fn calls() -> impl Strategy<Value = Vec<(u64, Call)>> {
    let call = prop_oneof![
        60 => Just(Call::Poll),
        60 => Just(Call::Done),
        2 => Just(Call::Failed),
        2 => Just(Call::LinkLost),
        4 => Just(Call::Heard),
        2 => prop_oneof![0..4_000_000_000_u64, Just(u64::MAX)].prop_map(Call::RoomAt),
        1 => Just(Call::Cancel),
        1 => Just(Call::Violation),
        1 => Just(Call::HostFailed),
        3 => any::<bool>().prop_map(Call::Reconnected),
        3 => any::<bool>().prop_map(Call::Resolve),
        30 => anything_said().prop_map(Call::Said),
        8 => prop::collection::vec(any::<u64>(), 0..4).prop_map(Call::Harvested),
        20 => (0..80u64, prop_oneof![3 => Just(0), 1 => any::<u64>()]).prop_map(|(data, zero)| Call::Sent(data, zero)),
        3 => any::<(u64, u64)>().prop_map(|(pages, mismatches)| Call::Compared(pages, mismatches)),
        20 => (runs(), any::<bool>()).prop_map(|(run, demanded)| Call::Pages(run, demanded)),
        10 => prop_oneof![0..160u64, any::<u64>()].prop_map(Call::Fault),
        4 => any::<bool>().prop_map(Call::State),
        2 => Just(Call::NoStorage),
        6 => (prop::option::of(runs()), any::<bool>()).prop_map(|(run, good)| Call::Static(run, good)),
    ];
    prop::collection::vec((pauses(), call), 0..200)
}

fn resolution(run_here: bool) -> Resolution {
    if run_here {
        Resolution::RunHere
    } else {
        Resolution::GiveUp
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_calls_upsets_a_source(verify: bool, post_copy: bool, calls in calls()) {
        let mut source = source(if post_copy { "postcopy" } else { "hybrid:1" }, verify);
        let (mut now, mut end) = (Nanos(0), None);
        for (pause, call) in &calls {
            now = now.saturating_add(Nanos(*pause));
            let event = match call {
                Call::Poll => {
                    let action = source.poll(now);
                    prop_assert!(end.is_none_or(|end| end == action), "another end");
                    end = end.or(matches!(action, SourceAction::Finish(_)).then_some(action));
                    continue;
                }
                Call::Said(said) => {
                    source.on(now, SourceEvent::Message(&said.message()));
                    continue;
                }
                Call::Fault(gfn) => {
                    source.on_fault_request(Gfn(*gfn));
                    continue;
                }
                Call::Resolve(run_here) => {
                    prop_assert!(source.resolve(resolution(*run_here)).is_err() || end.is_none());
                    continue;
                }
                Call::Done => SourceEvent::Done,
                Call::Failed => SourceEvent::Failed,
                Call::LinkLost => SourceEvent::LinkLost,
                Call::Heard => SourceEvent::Heard,
                Call::RoomAt(time) => SourceEvent::RoomAt(Nanos(*time)),
                Call::Cancel => SourceEvent::Cancel,
                Call::Violation => SourceEvent::Violation(Violation::Frame),
                Call::Harvested(words) => SourceEvent::Harvested(words),
                Call::Sent(data, zero) => SourceEvent::PagesSent { data: Pages(*data), zero: Pages(*zero) },
                Call::State(good) => SourceEvent::TargetState {
                    standing: if *good { TargetStanding::Complete } else { TargetStanding::NeverTaken },
                    report: TargetReport::default(),
                },
                Call::NoStorage => SourceEvent::PbDataFailed,
                Call::Static(None, true) => SourceEvent::StaticWritten,
                Call::Static(None, false) => SourceEvent::StaticFailed,
                Call::Static(Some(run), _) => SourceEvent::Hinted(*run),
                Call::HostFailed | Call::Reconnected(_) | Call::Compared(..) | Call::Pages(..) => continue,
            };
            source.on(now, event);
        }
    }

    #[test]
    fn no_sequence_of_calls_upsets_a_target(verify: bool, calls in calls()) {
        let mut target = target(verify);
        let (mut now, mut end) = (Nanos(0), None);
        for (pause, call) in &calls {
            now = now.saturating_add(Nanos(*pause));
            let event = match call {
                Call::Poll => {
                    let action = target.poll(now);
                    prop_assert!(end.is_none_or(|end| end == action), "another end");
                    end = end.or(matches!(action, TargetAction::Finish(_)).then_some(action));
                    continue;
                }
                Call::Said(said) => {
                    target.on(now, TargetEvent::Message(&said.message()));
                    continue;
                }
                Call::Fault(gfn) => {
                    target.on_fault(Gfn(*gfn));
                    continue;
                }
                Call::Resolve(run_here) => {
                    prop_assert!(target.resolve(resolution(*run_here)).is_err() || end.is_none());
                    continue;
                }
                Call::Done => TargetEvent::Done,
                Call::Failed => TargetEvent::Failed,
                Call::LinkLost => TargetEvent::LinkLost,
                Call::Heard => TargetEvent::Heard,
                Call::Violation => TargetEvent::Violation(Violation::Frame),
                Call::HostFailed => TargetEvent::HostFailed,
                Call::Reconnected(given_up) => TargetEvent::Reconnected { given_up: *given_up },
                Call::Compared(pages, mismatches) => TargetEvent::Compared { pages: *pages, mismatches: *mismatches },
                Call::Pages(run, true) => TargetEvent::Installed { run: *run, demanded: true },
                Call::Pages(run, false) if target.running() => TargetEvent::Installed { run: *run, demanded: false },
                Call::Pages(run, false) => TargetEvent::Received(*run),
                Call::State(given_up) => TargetEvent::SourceState { given_up: *given_up },
                Call::NoStorage => TargetEvent::SourceEnded,
                Call::Static(None, true) => TargetEvent::StaticEnded,
                Call::Static(None, false) => TargetEvent::StaticFailed,
                Call::Static(Some(run), _) if target.running() => TargetEvent::InstalledFromStorage(*run),
                Call::Static(Some(run), _) => TargetEvent::StaticReceived(*run),
                Call::Cancel | Call::Harvested(_) | Call::Sent(..) | Call::RoomAt(_) => continue,
            };
            target.on(now, event);
        }
    }
}
