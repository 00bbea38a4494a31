//! The rules, written down a second time.

use crate::cost::RoundCost;
use crate::units::Nanos;

use super::{Decision, RoundEnd, SwitchRule, SwitchSetting};
use std::vec;
use std::vec::Vec;

/// A reduced fraction.
#[derive(Clone, Copy)]
struct Fraction(i128, i128);

impl Fraction {
    fn new(numerator: i128, denominator: i128) -> Self {
        let divisor = gcd(numerator.abs(), denominator);
        Self(numerator / divisor, denominator / divisor)
    }

    fn plus(self, other: Self) -> Self {
        let common = self.1 / gcd(self.1, other.1) * other.1;
        Self::new(self.0 * (common / self.1) + other.0 * (common / other.1), common)
    }

    fn minus(self, other: Self) -> Self {
        self.plus(Self(-other.0, other.1))
    }

    fn whole_and_rest(self) -> (i128, i128) {
        (self.0.div_euclid(self.1), self.0.rem_euclid(self.1))
    }
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

fn lambda(end: &RoundEnd) -> Fraction {
    match (end.round, end.sent.0, end.dirty.0) {
        (1, _, _) => Fraction(1, 1),
        (_, 0, 0) => Fraction(0, 1),
        (_, 0, _) => Fraction(1, 1),
        (_, sent, dirty) => Fraction::new(dirty.into(), sent.into()),
    }
}

pub(super) fn lambda_milli(end: &RoundEnd) -> i128 {
    let lambda = lambda(end);
    Fraction::new(lambda.0 * 1000, lambda.1).whole_and_rest().0
}

fn sdf(end: &RoundEnd) -> Fraction {
    match end.sent.0 {
        0 => Fraction(0, 1),
        sent => Fraction::new(i128::from(end.previous_dirty.0) - i128::from(end.dirty.0), sent.into()),
    }
}

pub(super) fn sdf_milli(end: &RoundEnd) -> i128 {
    let sdf = sdf(end);
    let size = Fraction::new(sdf.0.abs() * 1000, sdf.1).whole_and_rest().0;
    if sdf.0 < 0 { -size } else { size }
}

fn fits(history: &[RoundEnd], downtime: u64) -> bool {
    let end = history[history.len() - 1];
    let sending = history.iter().rev().find(|end| end.sent.0 > 0);
    match (end.dirty.0, sending) {
        (0, _) => true,
        (_, None) => false,
        (dirty, Some(known)) => {
            let needed = i128::from(dirty) * i128::from(known.duration.0);
            let (whole, rest) = Fraction::new(needed, known.sent.0.into()).whole_and_rest();
            whole < downtime.into() || (whole == downtime.into() && rest == 0)
        }
    }
}

fn lambda_says_switch(history: &[RoundEnd]) -> bool {
    let lambdas: Vec<Fraction> = history.iter().map(lambda).collect();
    let Some(last) = lambdas.len().checked_sub(3).map(|start| &lambdas[start..]) else {
        return false;
    };
    let above = last.iter().filter(|lambda| lambda.0 > lambda.1).count();
    let sum = last.iter().fold(Fraction(0, 1), |sum, &lambda| sum.plus(lambda));
    above >= 2 && sum.whole_and_rest().0 >= 3
}

fn sdf_says(end: &RoundEnd, alpha: Fraction) -> Decision {
    if end.dirty.0 < 50 {
        Decision::StopCopy
    } else if sdf(end).minus(alpha).0 > 0 {
        Decision::Continue
    } else {
        Decision::PostCopy
    }
}

/// The cost room has a model of its own.
fn auto_alpha(end: &RoundEnd, fault_stall: Nanos) -> Fraction {
    let cost = RoundCost {
        sent: end.sent,
        dirty: end.dirty,
        duration: end.duration,
        fault_stall,
    };
    Fraction::new(cost.alpha_milli().unwrap_or(0).into(), 1000)
}

/// Natural numbers of any size, the lowest digit first.
fn multiplied(a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut product = vec![0u32; a.len() + b.len()];
    for (i, &x) in a.iter().enumerate() {
        let mut carry = 0u64;
        for (j, &y) in b.iter().enumerate() {
            let sum = u64::from(x) * u64::from(y) + u64::from(product[i + j]) + carry;
            product[i + j] = sum as u32;
            carry = sum >> 32;
        }
        product[i + b.len()] = carry as u32;
    }
    product
}

fn digits(number: u128) -> Vec<u32> {
    (0..4).map(|digit| (number >> (32 * digit)) as u32).collect()
}

fn is_no_more(a: &[u32], b: &[u32]) -> bool {
    let length = a.len().max(b.len());
    let digit = |number: &[u32], at: usize| number.get(at).copied().unwrap_or(0);
    let differs = (0..length).rev().find(|&at| digit(a, at) != digit(b, at));
    differs.is_none_or(|at| digit(a, at) < digit(b, at))
}

/// Multiplies until 10·partⁿ ≤ wholeⁿ.
fn dynamic_rounds(first: &RoundEnd, setting: &SwitchSetting) -> u32 {
    let (part, whole) = match setting.dirty_rate_before {
        Some(rate) => (
            u128::from(rate.0) * u128::from(first.duration.0),
            u128::from(first.sent.0) * 4_096_000_000_000,
        ),
        None => (first.dirty.0.into(), first.sent.0.into()),
    };
    let cap = setting.max_rounds.max(1);
    if part >= whole {
        return 1;
    }
    let (mut parts, mut wholes) = (digits(10 * part), digits(whole));
    for n in 1..cap {
        if is_no_more(&parts, &wholes) {
            return n;
        }
        parts = multiplied(&parts, &digits(part));
        wholes = multiplied(&wholes, &digits(whole));
    }
    cap
}

/// In 1/65536 pages per second.
pub(super) fn smoothed_bandwidth(history: &[RoundEnd]) -> Option<u128> {
    let rates = history
        .iter()
        .filter(|end| end.duration.0 > 0)
        .map(|end| u128::from(end.sent.0) * 65_536 * 1_000_000_000 / u128::from(end.duration.0))
        .filter(|&rate| rate > 0)
        .map(|rate| rate.min(u64::MAX.into()));
    rates.reduce(|mean, newest| (newest * 2 + mean * 3) / 5)
}

/// Goes through the whole history for every question.
fn kubevirt_says_switch(history: &[RoundEnd], window: u64, total: u64) -> bool {
    let known: Vec<&RoundEnd> = (1..=history.len())
        .filter(|&count| smoothed_bandwidth(&history[..count]).is_some())
        .map(|count| &history[count - 1])
        .collect();
    let is_stall = |at: usize| {
        let older = known[..at]
            .iter()
            .filter(|end| end.elapsed.0 + window <= known[at].elapsed.0);
        let least = older.map(|end| end.dirty.0).min();
        least.is_some_and(|least| u128::from(known[at].dirty.0) * 100 >= u128::from(least) * 96)
    };
    let Some(stalled) = (0..known.len()).find(|&at| is_stall(at)) else {
        return false;
    };
    let mut best = known[..=stalled]
        .iter()
        .map(|end| end.dirty.0)
        .min()
        .unwrap_or_default();
    let (mut patience, mut since) = (window, known[stalled].elapsed.0);
    let mut values = Vec::new();
    for end in &known[stalled + 1..] {
        values.push(end.dirty.0);
        if end.elapsed.0 - since >= patience {
            values.sort_unstable();
            best = values.remove(0);
            patience /= 2;
            since = end.elapsed.0;
        }
    }
    let end = known[known.len() - 1];
    let deadline = u128::from(total) * 300_000_000_000 / 262_144;
    let left = deadline.saturating_sub(end.elapsed.0.into());
    let rate = smoothed_bandwidth(history).unwrap_or_default();
    let in_time = u128::from(end.dirty.0) * 65_536 * 1_000_000_000 <= left * rate;
    u128::from(end.dirty.0) * 100 <= u128::from(best) * 104 && in_time
}

fn says(rule: SwitchRule, setting: &SwitchSetting, history: &[RoundEnd]) -> Decision {
    let rounds = history.len() as u32;
    let end = &history[history.len() - 1];
    let switch = match rule {
        SwitchRule::Never | SwitchRule::Qemu => false,
        SwitchRule::Rounds(count) => rounds >= count,
        SwitchRule::Lambda => lambda_says_switch(history),
        // Its model knows no exact answer where it is on the edge.
        SwitchRule::Optimal(_) => unreachable!("decided beside this"),
        SwitchRule::Sdf(alpha) => return sdf_says(end, Fraction::new(alpha.milli().into(), 1000)),
        SwitchRule::SdfAuto => return sdf_says(end, auto_alpha(end, setting.fault_stall)),
        SwitchRule::Dyn => rounds >= dynamic_rounds(&history[0], setting),
        SwitchRule::Heuristic => rounds > 1 && end.dirty.0 >= end.sent.0,
        SwitchRule::Xen => {
            return if end.dirty.0 < 50 || rounds >= 5 {
                Decision::StopCopy
            } else {
                Decision::Continue
            };
        }
        SwitchRule::KubevirtStall(window) => kubevirt_says_switch(history, window.0, setting.total.0),
        SwitchRule::Nova10 => {
            let before = Fraction::new(i128::from(end.previous_dirty.0) * 9, 10);
            rounds > 1 && Fraction(end.dirty.0.into(), 1).minus(before).0 > 0
        }
        SwitchRule::Ovirt => rounds > 3,
    };
    if switch { Decision::PostCopy } else { Decision::Continue }
}

fn downtime(rule: SwitchRule, setting: &SwitchSetting, rounds: usize) -> u64 {
    match (rule, rounds) {
        (SwitchRule::Ovirt, 1) => 100_000_000u64.saturating_sub(setting.handover_cost.0),
        (SwitchRule::Ovirt, 2) => 150_000_000u64.saturating_sub(setting.handover_cost.0),
        (SwitchRule::Ovirt, _) => 200_000_000u64.saturating_sub(setting.handover_cost.0),
        _ => setting.downtime.0,
    }
}

pub(super) fn decide(rule: SwitchRule, setting: &SwitchSetting, history: &[RoundEnd]) -> Decision {
    decide_by(says(rule, setting, history), rule, setting, history)
}

/// The three tests, with what the rule says.
pub(super) fn decide_by(says: Decision, rule: SwitchRule, setting: &SwitchSetting, history: &[RoundEnd]) -> Decision {
    if (history.len() as u32) < setting.static_done_after {
        return Decision::Continue;
    }
    if fits(history, downtime(rule, setting, history.len())) {
        return Decision::StopCopy;
    }
    match says {
        Decision::Continue if history.len() as u32 >= setting.max_rounds => match rule {
            SwitchRule::Never | SwitchRule::Xen => Decision::StopCopy,
            SwitchRule::Qemu => Decision::Continue,
            _ => Decision::PostCopy,
        },
        decision => decision,
    }
}
