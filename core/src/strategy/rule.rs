//! The values of `switch`.

use core::fmt;
use core::str::FromStr;

use super::error::{Excerpt, Key, StrategyError};
use super::values::count;
use crate::units::Nanos;

/// The units a window can be written in, largest first.
const UNITS: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

/// When pre-copy ends and how; [`switch`](crate::switch) applies it and says where each rule comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SwitchRule {
    /// `never`: stop-and-copy when the rest fits the downtime, or at the round limit; no post-copy.
    Never,
    /// `rounds:N`: post-copy after N rounds, the first of which copies everything. `rounds:0` copies nothing ahead.
    Rounds(u32),
    /// `lambda`: post-copy when rounds stop converging by the λ rule of Li & Cao 2023.
    Lambda,
    /// `sdf:A`: post-copy when the progress per page sent is no more than α (the hybrid-copy paper of 2017).
    Sdf(Alpha),
    /// `sdf:auto`: the same with an α of each round, from what sending a page and waiting for one cost.
    SdfAuto,
    /// `dyn`: post-copy after a number of rounds that follows from dirty rate and bandwidth (after Altahat et al. 2020).
    Dyn,
    /// `heuristic`: post-copy when a round leaves as much as it sent (after Li et al. 2019).
    Heuristic,
    /// `optimal[:W]`: post-copy or stop-and-copy where waiting longer costs more than it saves, as predicted.
    Optimal(StallWeight),
    /// `xen`: stop-and-copy below 50 pages or after five rounds; no post-copy.
    Xen,
    /// `qemu`: stop-and-copy when the rest fits the downtime, however many rounds that takes; no post-copy.
    Qemu,
    /// `kubevirt-stall:W`: post-copy at a local minimum after no progress for W (KubeVirt's stall detector).
    KubevirtStall(Nanos),
    /// `nova10`: post-copy when a round makes less than 10 % progress (OpenStack Nova, 2016 to 2018).
    Nova10,
    /// `ovirt`: a longer downtime with every round, then post-copy (oVirt's post-copy policy).
    Ovirt,
}

impl SwitchRule {
    /// The values there are, as written.
    pub const AVAILABLE: &[&str] = &[
        "never",
        "rounds:N",
        "lambda",
        "sdf:A",
        "sdf:auto",
        "dyn",
        "heuristic",
        "optimal[:128]",
        "xen",
        "qemu",
        "kubevirt-stall[:40s]",
        "nova10",
        "ovirt",
        "libvirt (= rounds:1)",
    ];
    /// The window of `kubevirt-stall` written without one: KubeVirt's own.
    pub const STALL_WINDOW: Nanos = Nanos::from_secs(40);
    /// `optimal` written without a weight.
    pub const OPTIMAL: Self = Self::Optimal(StallWeight::DEFAULT);

    /// Reads a rule.
    ///
    /// # Errors
    /// [`StrategyError::UnknownValue`] lists the rules there are; [`StrategyError::BadCount`],
    /// [`StrategyError::BadAlpha`], [`StrategyError::BadWindow`] and [`StrategyError::BadWeight`].
    pub fn parse(value: &str) -> Result<Self, StrategyError> {
        Ok(match value {
            "never" => Self::Never,
            "lambda" => Self::Lambda,
            "sdf:auto" => Self::SdfAuto,
            "dyn" => Self::Dyn,
            "heuristic" => Self::Heuristic,
            "optimal" => Self::OPTIMAL,
            "xen" => Self::Xen,
            "qemu" => Self::Qemu,
            "kubevirt-stall" => Self::KubevirtStall(Self::STALL_WINDOW),
            "nova10" => Self::Nova10,
            "ovirt" => Self::Ovirt,
            // libvirt's --postcopy-after-precopy.
            "libvirt" => Self::Rounds(1),
            _ => return Self::parse_with_number(value),
        })
    }

    fn parse_with_number(value: &str) -> Result<Self, StrategyError> {
        let item = || Excerpt::of(value);
        match value.split_once(':') {
            Some(("rounds", text)) => count(text)
                .map(Self::Rounds)
                .ok_or_else(|| StrategyError::BadCount { item: item() }),
            Some(("sdf", text)) => Alpha::parse(text)
                .map(Self::Sdf)
                .ok_or_else(|| StrategyError::BadAlpha { item: item() }),
            Some(("kubevirt-stall", text)) => window(text)
                .map(Self::KubevirtStall)
                .ok_or_else(|| StrategyError::BadWindow { item: item() }),
            Some(("optimal", text)) => StallWeight::parse(text)
                .map(Self::Optimal)
                .ok_or_else(|| StrategyError::BadWeight { item: item() }),
            _ => Err(StrategyError::UnknownValue {
                key: Key::Switch,
                value: item(),
            }),
        }
    }

    /// True if the rule can lead to post-copy.
    pub const fn can_post_copy(self) -> bool {
        !matches!(self, Self::Never | Self::Xen | Self::Qemu)
    }

    /// True if pre-copy by this rule ends at the round limit. QEMU has none.
    pub const fn has_round_limit(self) -> bool {
        !matches!(self, Self::Qemu)
    }
}

impl FromStr for SwitchRule {
    type Err = StrategyError;

    fn from_str(text: &str) -> Result<Self, StrategyError> {
        Self::parse(text)
    }
}

impl fmt::Display for SwitchRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Rounds(count) => write!(f, "rounds:{count}"),
            Self::Lambda => f.write_str("lambda"),
            Self::Sdf(alpha) => write!(f, "sdf:{alpha}"),
            Self::SdfAuto => f.write_str("sdf:auto"),
            Self::Dyn => f.write_str("dyn"),
            Self::Heuristic => f.write_str("heuristic"),
            Self::Optimal(StallWeight::DEFAULT) => f.write_str("optimal"),
            Self::Optimal(weight) => write!(f, "optimal:{weight}"),
            Self::Xen => f.write_str("xen"),
            Self::Qemu => f.write_str("qemu"),
            Self::KubevirtStall(window) => {
                let (unit, size) = unit_of(*window);
                write!(f, "kubevirt-stall:{}{unit}", window.0 / size)
            }
            Self::Nova10 => f.write_str("nova10"),
            Self::Ovirt => f.write_str("ovirt"),
        }
    }
}

/// The α of `sdf:A`: 0 to 1 in thousandths. 0 gives up when there is no progress at all; 1 after the first round, since no
/// round can do better than clean every page it sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Alpha(u16);

impl Alpha {
    /// `milli` thousandths, if that is no more than 1.
    pub const fn from_milli(milli: u16) -> Option<Self> {
        if milli <= 1000 { Some(Self(milli)) } else { None }
    }

    /// In thousandths, at most 1000.
    pub const fn milli(self) -> u16 {
        self.0
    }

    /// Digits with at most three decimals.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (whole, decimals) = match text.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (text, ""),
        };
        if whole.is_empty() || decimals.len() > 3 {
            return None;
        }
        let mut milli = count(whole)?.checked_mul(1000)?;
        if !decimals.is_empty() {
            milli = milli.checked_add(count(decimals)? * 10u32.pow(3 - decimals.len() as u32))?;
        }
        Self::from_milli(u16::try_from(milli).ok()?)
    }
}

impl fmt::Display for Alpha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, decimals) = (self.0 / 1000, self.0 % 1000);
        match decimals {
            0 => write!(f, "{whole}"),
            _ if decimals % 100 == 0 => write!(f, "{whole}.{}", decimals / 100),
            _ if decimals % 10 == 0 => write!(f, "{whole}.{:02}", decimals / 10),
            _ => write!(f, "{whole}.{decimals:03}"),
        }
    }
}

/// The W of `optimal:W`: what a second in which the guest waits for pages costs, in seconds of the link; a whole number from 1 to 1000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct StallWeight(u16);

impl StallWeight {
    /// The least: the guest's time is worth no more than the link's.
    pub const MIN: Self = Self(1);
    /// What `optimal` goes by. A page left to post-copy then costs at the least 1 + 128·0.21 = 27.9 page times, which makes a load that
    /// falls by 10 % per round worth waiting for on every link.
    pub const DEFAULT: Self = Self(128);
    /// The largest.
    pub const MAX: Self = Self(1000);

    /// This weight, if it is from 1 to 1000.
    pub const fn new(weight: u32) -> Option<Self> {
        match weight {
            // Far below 2^16.
            1..=1000 => Some(Self(weight as u16)),
            _ => None,
        }
    }

    /// From 1 to 1000.
    pub const fn get(self) -> u16 {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        Self::new(count(text)?)
    }
}

impl fmt::Display for StallWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A whole number with its unit: `40s`, `500ms`.
fn window(text: &str) -> Option<Nanos> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let unit = &text[digits.len()..];
    let (_, size) = UNITS.into_iter().find(|&(name, _)| name == unit)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(size).map(Nanos)
}

/// The largest unit that a window is a whole number of.
fn unit_of(window: Nanos) -> (&'static str, u64) {
    let exact = UNITS.into_iter().find(|&(_, size)| window.0.is_multiple_of(size));
    exact.unwrap_or(("ns", 1))
}
