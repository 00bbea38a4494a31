//! Reasons in words.

use core::fmt;

use super::{Evidence, FEW_PAGES};
use crate::units::{Nanos, Pages};

/// Why it was decided so; `Display` says it in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Reason {
    /// The rest can be sent within the downtime.
    Fits,
    /// The round limit is reached.
    RoundLimit {
        /// The limit.
        max_rounds: u32,
    },
    /// The static copy beside the rounds is not merged yet.
    StaticCopyRuns {
        /// The round at whose end it is; the largest number if that is not known.
        until: u32,
    },
    /// The filter holds back every page that is dirty, so that there is nothing for another round.
    NothingToSend {
        /// How many pages that are.
        dirty: Pages,
    },
    /// The rule waits for the rest to fit.
    DoesNotFit,
    /// Fewer rounds were made than the rule makes.
    RoundsLeft {
        /// How many are still to come.
        left: u32,
    },
    /// As many rounds were made as the rule makes.
    RoundsDone {
        /// How many it makes.
        rounds: u32,
    },
    /// The rest can be sent within the downtime that the rule allows in this round (`ovirt`).
    FitsStep {
        /// That downtime.
        downtime: Nanos,
    },
    /// `xen`, `sdf`: so few pages are dirty that another round is not worth it.
    FewDirty {
        /// How many.
        dirty: Pages,
    },
    /// The rule compares a round with the one before, and this is the first.
    FirstRound,
    /// `sdf`: more progress per page sent than α.
    SdfProgress {
        /// SDF in thousandths, rounded toward zero.
        sdf_milli: i64,
        /// α in thousandths, rounded toward zero.
        alpha_milli: u16,
    },
    /// `sdf`: no more progress per page sent than α.
    SdfTooLittle {
        /// SDF in thousandths, rounded toward zero.
        sdf_milli: i64,
        /// α in thousandths, rounded toward zero.
        alpha_milli: u16,
    },
    /// `heuristic`: less is dirty than was sent.
    Shrinking {
        /// V(i).
        dirty: Pages,
        /// S(i).
        sent: Pages,
    },
    /// `heuristic`: at least as much is dirty as was sent.
    NotShrinking {
        /// V(i).
        dirty: Pages,
        /// S(i).
        sent: Pages,
    },
    /// `nova10`: at least 10 % less is dirty than at the end of the round before.
    NovaProgress {
        /// The progress in thousandths, rounded toward zero.
        progress_milli: i64,
    },
    /// `nova10`: less progress than 10 %.
    NovaTooLittle {
        /// The progress in thousandths, rounded toward zero.
        progress_milli: i64,
    },
    /// `kubevirt-stall`: nothing to compare with is as old as the window, or no bandwidth is known.
    StallUnknown,
    /// `kubevirt-stall`: less is left than before the window.
    StallProgress {
        /// The least that was left before the window.
        before: Pages,
    },
    /// `kubevirt-stall`: no progress, but more is left than at the best moment.
    StallNotMinimum {
        /// What was left then.
        best: Pages,
    },
    /// `kubevirt-stall`: no progress, but at this bandwidth the rest would arrive too late.
    StallTooSlow,
    /// `kubevirt-stall`: no progress, and little more is left than at the best moment.
    StallMinimum {
        /// What was left then.
        best: Pages,
    },
    /// `optimal`: fewer than three rounds, or no bandwidth is known.
    OptimalUnknown,
    /// `optimal`: waiting may cost less than switching.
    OptimalWaits {
        /// After so many further rounds.
        rounds: u32,
        /// The best that a round may leave of what is dirty, in thousandths, rounded down.
        factor_milli: i64,
    },
    /// `optimal`: waiting costs more than switching.
    OptimalSwitches {
        /// The best that a round may leave of what is dirty, in thousandths, rounded down.
        factor_milli: i64,
        /// What shows that it cannot be better.
        evidence: Evidence,
    },
    /// `lambda`: fewer than three values.
    LambdaTooFew {
        /// How many there are.
        values: u32,
    },
    /// `lambda`: fewer than two of the last three values are above 1.
    LambdaConverging {
        /// How many are.
        above: u32,
    },
    /// `lambda`: two of the last three values are above 1, but their mean is below.
    LambdaMeanBelowOne {
        /// The mean in thousandths, rounded toward zero.
        mean_milli: i64,
    },
    /// `lambda`: at least two of the last three values are above 1, and their mean is at least 1.
    LambdaDiverging {
        /// How many are.
        above: u32,
        /// The mean in thousandths, rounded toward zero.
        mean_milli: i64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fits => f.write_str("the rest fits the downtime"),
            Self::RoundLimit { max_rounds } => write!(f, "the limit of {max_rounds} rounds is reached"),
            Self::StaticCopyRuns { until: u32::MAX } => f.write_str("the static copy is not merged yet"),
            Self::StaticCopyRuns { until } => {
                write!(f, "the static copy is not merged before the end of round {until}")
            }
            Self::NothingToSend { dirty } => {
                write!(
                    f,
                    "the filter holds back all {dirty} dirty pages: nothing is left to send"
                )
            }
            Self::DoesNotFit => f.write_str("the rest does not fit the downtime"),
            Self::RoundsLeft { left } => write!(f, "{left} more to go before the switch"),
            Self::RoundsDone { rounds: 1 } => f.write_str("the one round before the switch is done"),
            Self::RoundsDone { rounds } => write!(f, "{rounds} rounds before the switch are done"),
            // Steps are whole milliseconds.
            Self::FitsStep { downtime } => write!(f, "the rest fits a downtime of {} ms", downtime.0 / 1_000_000),
            Self::FewDirty { dirty } => write!(f, "only {dirty} pages are dirty, fewer than {FEW_PAGES}"),
            Self::FirstRound => f.write_str("the first round has none before it to compare with"),
            Self::SdfProgress { sdf_milli, alpha_milli } => write!(
                f,
                "progress of {} per page sent, above α = {}",
                Thousandths(*sdf_milli),
                Thousandths(i64::from(*alpha_milli))
            ),
            Self::SdfTooLittle { sdf_milli, alpha_milli } => write!(
                f,
                "progress of {} per page sent, not above α = {}",
                Thousandths(*sdf_milli),
                Thousandths(i64::from(*alpha_milli))
            ),
            Self::Shrinking { dirty, sent } => write!(f, "{dirty} pages are dirty, fewer than the {sent} sent"),
            Self::NotShrinking { dirty, sent } => {
                write!(f, "{dirty} pages are dirty, no fewer than the {sent} sent")
            }
            Self::NovaProgress { progress_milli } => {
                write!(f, "progress of {} in the round", Thousandths(*progress_milli))
            }
            Self::NovaTooLittle { progress_milli } => write!(
                f,
                "progress of {} in the round, less than a tenth",
                Thousandths(*progress_milli)
            ),
            Self::StallUnknown => f.write_str("nothing older than the window to compare with"),
            Self::StallProgress { before } => {
                write!(f, "fewer pages are left than before the window ({before})")
            }
            Self::StallNotMinimum { best } => {
                write!(f, "stalled, but more pages are left than at best ({best})")
            }
            Self::StallTooSlow => f.write_str("stalled, but so slow that the rest would arrive too late"),
            Self::StallMinimum { best } => {
                write!(f, "stalled, and about as few pages are left as at best ({best})")
            }
            Self::OptimalUnknown => f.write_str("too few rounds to predict others"),
            Self::OptimalWaits { rounds, factor_milli } => {
                let factor = Thousandths(*factor_milli);
                write!(
                    f,
                    "{rounds} more rounds may pay: each may leave only {factor} of what is dirty"
                )
            }
            Self::OptimalSwitches { factor_milli, evidence } => {
                let factor = Thousandths(*factor_milli);
                let why = match evidence {
                    Evidence::Steady => "as in the rounds before",
                    Evidence::Level => "on the whole, up and down by turns",
                    Evidence::Rising => "having risen",
                    Evidence::Stuck => "having fallen no further for 16 rounds",
                };
                write!(
                    f,
                    "no number of rounds pays: each would leave {factor} of what is dirty, {why}"
                )
            }
            Self::LambdaTooFew { values } => write!(f, "{values} λ so far; the rule looks at 3"),
            Self::LambdaConverging { above } => write!(f, "{above} of the last 3 λ above 1"),
            Self::LambdaMeanBelowOne { mean_milli } => {
                write!(
                    f,
                    "2 of the last 3 λ above 1, but their mean is {}",
                    Thousandths(*mean_milli)
                )
            }
            Self::LambdaDiverging { above, mean_milli } => {
                write!(
                    f,
                    "{above} of the last 3 λ above 1, and their mean is {}",
                    Thousandths(*mean_milli)
                )
            }
        }
    }
}

/// A number of thousandths, written with three decimals.
struct Thousandths(i64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, size) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        write!(f, "{sign}{}.{:03}", size / 1000, size % 1000)
    }
}
