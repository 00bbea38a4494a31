//! A migration in advance: round by round with the real switch rules, under one set of assumptions.

use super::setting::{Limits, Link};
use crate::control::{AutoConverge, AutoConvergeSetting, Congestion};
use crate::cost::{Dirtied, PostCopy};
use crate::pattern::Profile;
use crate::strategy::{Clear, Filter, First, Push, Slow, Strategy, SwitchRule};
use crate::switch::{Decision, RoundEnd, SwitchSetting, Switcher};
use crate::units::{BytesPerSec, Nanos, Pages};

/// Most rounds that are walked; what goes on longer is taken to go on for ever.
const ROUNDS_MAX: u32 = 10_000;
/// Rounds beside a static copy that are walked one by one before equal ones are taken together.
const ROUNDS_APART: u32 = 200;
/// Points at which the mean over a round is taken for `clear=late`.
const SAMPLES: u64 = 8;

/// Everything a walk goes by.
#[derive(Clone, Copy)]
pub(super) struct Assumed<'a> {
    pub(super) profile: &'a Profile,
    pub(super) link: &'a Link,
    pub(super) limits: &'a Limits,
    pub(super) dirtied: Dirtied<'a>,
    pub(super) bandwidth: BytesPerSec,
    pub(super) storage_bandwidth: Option<BytesPerSec>,
    /// How well predictors foresee: 0 not at all, 1000 perfectly.
    pub(super) foresight_permille: u32,
    /// True if counts scatter.
    pub(super) noisy: bool,
}

impl Assumed<'_> {
    /// How long a round takes that sends for this long.
    fn round_length(&self, sending: Nanos) -> Nanos {
        sending.saturating_add(self.link.round_trip).max(self.limits.min_round)
    }
}

/// How a migration ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum End {
    /// With the rest sent within the downtime.
    StopCopy,
    /// With the rest sent while the guest is paused for longer than the downtime.
    ForcedStopCopy,
    /// With post-copy.
    PostCopy,
    /// Not at all: no rest ever fits the downtime, and nothing else ends the rounds.
    Never,
}

/// What a migration costs under one set of assumptions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    pub(super) time: Nanos,
    pub(super) downtime: Nanos,
    pub(super) bytes: u64,
    pub(super) rounds: u32,
    pub(super) faults: Pages,
    pub(super) post_copy_time: Nanos,
    pub(super) stall: Nanos,
    pub(super) end: End,
}

/// Where a migration stands between two rounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Rounds done.
    pub(super) round: u32,
    /// What the next round would send.
    pub(super) dirty: Pages,
    /// What the switch rules are told was dirty before: in the beginning the whole guest.
    pub(super) previous_dirty: Pages,
    /// How long the last round was in the guest's time; `None` if any page may be dirty.
    pub(super) window: Option<Nanos>,
    pub(super) elapsed: Nanos,
    /// Pages sent.
    pub(super) sent: u64,
    /// By how much the guest has fallen behind.
    pub(super) stall: Nanos,
    pub(super) throttle: Throttle,
    /// When the static copy will be merged.
    pub(super) merged_at: Nanos,
}

impl Standing {
    /// After a round that was measured; what waits beside it is merged.
    pub(super) fn after(end: &RoundEnd, sent: u64, idle: Nanos) -> Self {
        Self {
            round: end.round,
            dirty: end.dirty,
            previous_dirty: end.dirty,
            window: Some(end.duration.saturating_add(idle)),
            elapsed: end.elapsed,
            sent,
            stall: Nanos::ZERO,
            throttle: Throttle::none(),
            merged_at: Nanos::ZERO,
        }
    }

    /// Before the first round.
    pub(super) fn start(strategy: &Strategy, assumed: &Assumed<'_>) -> Self {
        let used = assumed.profile.used;
        let (dirty, sent, merged_at) = match (strategy.first, assumed.storage_bandwidth) {
            (First::Parallel, Some(storage)) => (Pages::ZERO, used.0, storage.time_to_send(used.bytes())),
            _ => (used, 0, Nanos::ZERO),
        };
        Self {
            round: 0,
            dirty,
            previous_dirty: assumed.profile.total,
            window: None,
            elapsed: Nanos::ZERO,
            sent,
            stall: Nanos::ZERO,
            throttle: Throttle::none(),
            merged_at,
        }
    }
}

/// A switcher that decides as the one of the migration will.
pub(super) fn switcher(strategy: &Strategy, assumed: &Assumed<'_>) -> Switcher {
    let limits = assumed.limits;
    let setting = SwitchSetting {
        downtime: limits.downtime.saturating_sub(limits.handover),
        max_rounds: limits.max_rounds,
        fault_stall: assumed.link.fault_stall(assumed.bandwidth),
        handover_cost: limits.handover,
        ..SwitchSetting::new(assumed.profile.total)
    };
    Switcher::new(strategy.switch, setting)
}

/// Goes on from here until the migration ends.
pub(super) fn walk(strategy: &Strategy, mut switcher: Switcher, mut at: Standing, assumed: &Assumed<'_>) -> Outcome {
    if at.round == 0 && switcher.starts_with_post_copy() {
        at.sent = 0;
        at.dirty = assumed.profile.used;
        return post_copy(strategy, at, assumed);
    }
    if at.round > 0 && matches!(strategy.switch, SwitchRule::Rounds(rounds) if rounds <= at.round) {
        return post_copy(strategy, at, assumed);
    }
    let mut before_that = (Pages(u64::MAX), at.throttle);
    for _ in 0..ROUNDS_MAX {
        let before = (at.dirty, at.throttle);
        let end = round(strategy, &mut at, assumed);
        let verdict = switcher.on_round(&end);
        if at.elapsed < at.merged_at {
            if at.round >= ROUNDS_APART {
                repeat_until_merged(&mut at, &end, assumed);
            }
            continue;
        }
        match verdict.decision {
            Decision::PostCopy => return post_copy(strategy, at, assumed),
            Decision::StopCopy => return stop_copy(at, assumed),
            Decision::Continue => {}
        }
        // A round like the last one or the last but one (counts scatter in turn): only a limit can end this.
        let limited = strategy.switch.has_round_limit() && assumed.limits.max_rounds <= ROUNDS_MAX;
        if !limited && !strategy.switch.can_post_copy() && [before, before_that].contains(&(at.dirty, at.throttle)) {
            break;
        }
        before_that = before;
    }
    Outcome {
        time: Nanos(u64::MAX),
        downtime: Nanos::ZERO,
        bytes: u64::MAX,
        rounds: at.round,
        faults: Pages::ZERO,
        post_copy_time: Nanos::ZERO,
        stall: at.stall,
        end: End::Never,
    }
}

/// One round of pre-copy.
fn round(strategy: &Strategy, at: &mut Standing, assumed: &Assumed<'_>) -> RoundEnd {
    let held = held_back(strategy.filter, at, assumed);
    let sent = at.dirty.saturating_sub(held);
    let duration = assumed.bandwidth.time_to_send(sent.bytes());
    // A round ends when the target has said that it has everything.
    let length = assumed.round_length(duration);
    let window = at.throttle.guest_time(length);
    let unlimited = assumed.dirtied.pages_in(window);
    let written = at.throttle.limited(unlimited, window);
    let dirty = match strategy.clear {
        Clear::Round => written,
        Clear::Late => written_after_being_sent(at, at.throttle.guest_time(duration), window, assumed).min(written),
    };
    let rewritten = rewritten_of_held(strategy.filter, held, dirty, assumed);
    let dirty = held.saturating_add(dirty).saturating_sub(rewritten);
    let dirty = scattered(dirty, at.round, assumed).min(assumed.profile.total);

    let limited_by = u128::from(window.0) * u128::from(unlimited.0 - written.0) / u128::from(unlimited.0.max(1));
    let behind = length.saturating_sub(window).saturating_add(Nanos(limited_by as u64));
    at.stall = at.stall.saturating_add(behind);
    at.throttle
        .after_round(strategy.slow, sent, dirty, assumed.profile.vcpus);
    at.round += 1;
    at.elapsed = at.elapsed.saturating_add(length);
    at.sent = at.sent.saturating_add(sent.0);
    at.window = if held == Pages::ZERO { Some(window) } else { None };
    let end = RoundEnd {
        round: at.round,
        sent,
        dirty,
        previous_dirty: at.previous_dirty,
        duration,
        elapsed: at.elapsed,
    };
    at.dirty = dirty;
    at.previous_dirty = dirty;
    end
}

/// In turn more and less: the scatter of a count of random pages is about the square root of it.
fn scattered(dirty: Pages, round: u32, assumed: &Assumed<'_>) -> Pages {
    let scatter = Pages(dirty.0.isqrt() / 2);
    match (assumed.noisy, round.is_multiple_of(2)) {
        (false, _) => dirty,
        (true, true) => dirty.saturating_add(scatter),
        (true, false) => dirty.saturating_sub(scatter),
    }
}

/// Rounds beside a static copy soon resemble each other; the rest of them pass at once.
fn repeat_until_merged(at: &mut Standing, end: &RoundEnd, assumed: &Assumed<'_>) {
    let length = assumed.round_length(end.duration);
    if length == Nanos::ZERO {
        at.elapsed = at.merged_at;
        return;
    }
    // The last of them is walked.
    let rounds = (at.merged_at.saturating_sub(at.elapsed).0 - 1) / length.0;
    at.round = at.round.saturating_add(u32::try_from(rounds).unwrap_or(u32::MAX));
    at.elapsed = at.elapsed.saturating_add(Nanos(length.0.saturating_mul(rounds)));
    at.sent = at.sent.saturating_add(end.sent.0.saturating_mul(rounds));
}

/// The pages a filter holds back: exactly half for the paper's, otherwise those of the dirty pages that are written again within
/// the round, as far as they are foreseen.
fn held_back(filter: Filter, at: &Standing, assumed: &Assumed<'_>) -> Pages {
    match filter {
        Filter::None => Pages::ZERO,
        Filter::MarkovHalf => Pages(at.dirty.0 / 2),
        Filter::Markov | Filter::Hazard | Filter::Ppm | Filter::Frequency => {
            let horizon = assumed.bandwidth.time_to_send(at.dirty.bytes());
            let again = match at.window {
                Some(window) => assumed.dirtied.written_again(window, horizon),
                None => assumed.dirtied.pages_in(horizon),
            };
            let foreseen = u128::from(again.min(at.dirty).0) * u128::from(assumed.foresight_permille) / 1000;
            Pages(foreseen as u64)
        }
    }
}

/// How many of the pages held back are among those written in the round: all that can be if the filter foresees, as many as of
/// any other pages of the working set if it does not.
fn rewritten_of_held(filter: Filter, held: Pages, written: Pages, assumed: &Assumed<'_>) -> Pages {
    let all = held.min(written);
    if filter != Filter::MarkovHalf {
        return all;
    }
    let of = u128::from(assumed.profile.used.max(held).0.max(1));
    let blind = Pages((u128::from(held.0) * u128::from(written.0) / of) as u64).min(all);
    let foreseen = u128::from(all.0 - blind.0) * u128::from(assumed.foresight_permille) / 1000;
    blind.saturating_add(Pages(foreseen as u64))
}

/// Pages dirty at the end of a round that clears each dirty bit as it sends its page: of the pages sent, those written after
/// that, at a time that is equally likely anywhere in the sending; of the others, all that were written.
fn written_after_being_sent(at: &Standing, sending: Nanos, window: Nanos, assumed: &Assumed<'_>) -> Pages {
    let dirtied = &assumed.dirtied;
    let (likely_to_be_written, of) = match at.window {
        None => (assumed.profile.used, None),
        Some(before) => (dirtied.pages_in(before), Some(before)),
    };
    // Pages that are sent in this round and written in a window.
    let of_sent = |window: Nanos| {
        let again = match of {
            None => dirtied.pages_in(window),
            Some(before) => dirtied.written_again(before, window),
        };
        let scaled = u128::from(again.0) * u128::from(at.dirty.0) / u128::from(likely_to_be_written.0.max(1));
        scaled.min(u128::from(again.0))
    };
    let tail = window.saturating_sub(sending);
    let after = (0..SAMPLES).map(|sample| {
        let part = u128::from(sending.0) * u128::from(2 * sample + 1) / u128::from(2 * SAMPLES);
        of_sent(tail.saturating_add(Nanos(part as u64)))
    });
    let mean = after.sum::<u128>() / u128::from(SAMPLES);
    let others = u128::from(dirtied.pages_in(window).0).saturating_sub(of_sent(window));
    Pages((mean + others) as u64)
}

fn stop_copy(at: Standing, assumed: &Assumed<'_>) -> Outcome {
    let rest = assumed.bandwidth.time_to_send(at.dirty.bytes());
    let downtime = rest.saturating_add(assumed.limits.handover);
    Outcome {
        time: at.elapsed.saturating_add(downtime),
        downtime,
        bytes: Pages(at.sent).saturating_add(at.dirty).bytes().0,
        rounds: at.round,
        faults: Pages::ZERO,
        post_copy_time: Nanos::ZERO,
        stall: at.stall,
        end: if downtime <= assumed.limits.downtime {
            End::StopCopy
        } else {
            End::ForcedStopCopy
        },
    }
}

fn post_copy(strategy: &Strategy, at: Standing, assumed: &Assumed<'_>) -> Outcome {
    let model = PostCopy {
        dirtied: assumed.dirtied,
        missing: at.dirty,
        written_in: at.window,
        link: assumed.bandwidth,
        fault_stall: assumed.link.fault_stall(assumed.bandwidth),
        vcpus: assumed.profile.vcpus,
    };
    let cost = model.cost();
    // An order that foresees half of what will be touched saves half the faults.
    let blind_permille = match strategy.push {
        Push::Sequential => 1000,
        Push::Bubble(_) | Push::Forecast | Push::Recorded => 1000 - assumed.foresight_permille,
    };
    let of_blind = |amount: u64| (u128::from(amount) * u128::from(blind_permille)).div_ceil(1000) as u64;
    let post_copy_time = cost.time.saturating_add(assumed.link.round_trip);
    Outcome {
        time: at
            .elapsed
            .saturating_add(assumed.limits.handover)
            .saturating_add(post_copy_time),
        downtime: assumed.limits.handover,
        bytes: Pages(at.sent).saturating_add(at.dirty).bytes().0,
        rounds: at.round,
        faults: Pages(of_blind(cost.faults.0)),
        post_copy_time,
        stall: at.stall.saturating_add(Nanos(of_blind(cost.stalled.0))),
        end: End::PostCopy,
    }
}

/// How far a guest that writes too fast is slowed down, by the controllers that slow it down live, asked once a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Throttle {
    auto_converge: AutoConverge,
    congestion: Congestion,
    /// The pages a second that the guest may dirty, for dirty-limit.
    pages_per_sec: Option<u64>,
}

impl Throttle {
    /// QEMU's default of `vcpu-dirty-limit`, 1 MB/s, in pages of each vCPU.
    const DIRTY_LIMIT: u64 = 256;

    fn none() -> Self {
        let setting = AutoConvergeSetting::default();
        Self {
            auto_converge: AutoConverge::new(setting),
            congestion: Congestion::new(setting.threshold),
            pages_per_sec: None,
        }
    }

    fn after_round(&mut self, slow: Slow, sent: Pages, dirty: Pages, vcpus: u32) {
        match slow {
            Slow::None => {}
            Slow::AutoConverge => {
                self.auto_converge.on_period(dirty.bytes(), sent.bytes());
            }
            Slow::DirtyLimit => {
                if self.congestion.on_period(dirty.bytes(), sent.bytes()) {
                    self.pages_per_sec = Some(Self::DIRTY_LIMIT * u64::from(vcpus));
                }
            }
        }
    }

    /// How long the guest runs meanwhile.
    const fn guest_time(&self, time: Nanos) -> Nanos {
        let running = 100 - self.auto_converge.throttle().percent() as u128;
        Nanos((time.0 as u128 * running / 100) as u64)
    }

    /// What is left of the pages it would write.
    fn limited(&self, pages: Pages, time: Nanos) -> Pages {
        let Some(rate) = self.pages_per_sec else { return pages };
        let most = u128::from(rate) * u128::from(time.0) / 1_000_000_000;
        pages.min(Pages(u64::try_from(most).unwrap_or(u64::MAX)))
    }
}
