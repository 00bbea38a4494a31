//! What a plan is made of, as it is written.

use dunlin_core::strategy::{Strategy, StrategyError};
use dunlin_core::units::{Bytes, BytesPerSec, Nanos};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::cli::values;
use crate::sim::{CutAt, Varies, Work};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestPart {
    pub(super) workload: Workload,
    pub(super) memory: Size,
    pub(super) vcpus: Option<u32>,
    pub(super) fill: Option<FillPart>,
    pub(super) warm_up: Option<Time>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FillPart {
    Zero,
    Random,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkPart {
    pub(super) bandwidth: Rate,
    pub(super) storage_bandwidth: Option<Rate>,
    pub(super) merge_bandwidth: Option<Rate>,
    pub(super) latency: Option<Time>,
    pub(super) jitter: Option<Time>,
    pub(super) loss_ppm: Option<u32>,
    pub(super) varies: Option<VariesPart>,
    pub(super) cut: Option<CutPart>,
}

/// Between which share of the rate and all of it, and how often it changes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VariesPart {
    pub(super) least: f64,
    pub(super) every: Time,
}

/// When the network is cut in post-copy, and for how long.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CutPart {
    pub(super) after: Time,
    pub(super) lasts: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsPart {
    pub(super) downtime: Option<Time>,
    pub(super) max_rounds: Option<u32>,
    pub(super) min_round: Option<Time>,
    pub(super) profile: Option<Time>,
    /// What a migration must not take longer than to be a success.
    pub(super) within: Option<Time>,
}

/// What is measured on a machine rather than chosen.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CostsPart {
    pub(super) step: Option<Time>,
    pub(super) fault_service: Option<Time>,
    pub(super) handover: Option<Time>,
}

impl From<&VariesPart> for Varies {
    fn from(part: &VariesPart) -> Self {
        Self {
            // What is no share is refused with the setup.
            least_milli: (part.least * 1000.0).round() as u32,
            every: part.every.value,
        }
    }
}

impl From<&CutPart> for CutAt {
    fn from(part: &CutPart) -> Self {
        Self {
            after: part.after.value,
            lasts: part.lasts.as_ref().map(|time| time.value),
        }
    }
}

/// A value that is written as text, and the text.
macro_rules! written {
    ($name:ident, $value:ty, $parse:expr) => {
        #[derive(Clone, Debug)]
        pub(super) struct $name {
            pub(super) text: String,
            pub(super) value: $value,
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                let value = $parse(&text).map_err(|error| D::Error::custom(format!("{text:?}: {error}")))?;
                Ok(Self { text, value })
            }
        }
    };
}

written!(Workload, Work, Work::parse);
written!(Size, Bytes, values::size);
written!(Rate, BytesPerSec, values::rate);
written!(Time, Nanos, time);
written!(WayPart, Way, way);

/// How an arm moves the guest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// By this strategy.
    Given(Strategy),
    /// By one that is chosen then.
    Auto,
}

fn way(text: &str) -> Result<Way, StrategyError> {
    match text {
        "auto" => Ok(Way::Auto),
        text => Strategy::parse(text).map(Way::Given),
    }
}

pub(super) fn time(text: &str) -> Result<Nanos, values::ValueError> {
    // Steps take less than a microsecond.
    match text.strip_suffix("ns").and_then(|number| number.parse().ok()) {
        Some(nanos) => Ok(Nanos(nanos)),
        None => values::time(text).map(|time| Nanos::from_micros(time.0)),
    }
}
