//! What a QEMU says of its migration and of its guest.

use std::fmt;
use std::time::Duration;

use dunlin_core::steer::Counters;
use dunlin_core::units::{Bytes, Nanos, PAGE_SIZE, Pages};
use serde_json::{Value, json};

use super::{Client, QmpError};

/// Where a migration is: `MigrationStatus` of qapi/migration.json. Every version of QEMU may know more of them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Phase {
    /// There has been none.
    #[default]
    None,
    /// Connecting; on the target: listening.
    Setup,
    /// Pre-copy.
    Active,
    /// The guest is paused, the rest is being sent (`pre-switchover`, `device`).
    Switchover,
    /// The target runs the guest, or is about to.
    PostCopy,
    /// The connection broke in post-copy.
    Paused,
    /// Being taken up again after that.
    Recovering,
    /// Done.
    Completed,
    /// Ended without success.
    Failed,
    /// Cancelled, or being cancelled.
    Cancelled,
    /// Something else, as QEMU calls it.
    Other(String),
}

impl Phase {
    /// As QEMU calls it.
    pub fn parse(text: &str) -> Self {
        match text {
            "none" => Self::None,
            "setup" | "wait-unplug" => Self::Setup,
            "active" => Self::Active,
            "pre-switchover" | "device" => Self::Switchover,
            // As of 10.2: the target loads the state of devices and does not run the guest yet.
            "postcopy-active" | "postcopy-device" => Self::PostCopy,
            "postcopy-paused" => Self::Paused,
            "postcopy-recover-setup" | "postcopy-recover" => Self::Recovering,
            "completed" => Self::Completed,
            "failed" | "failing" => Self::Failed,
            "cancelling" | "cancelled" => Self::Cancelled,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Whether the guest may already run on the target, so that nothing may be undone.
    pub const fn is_past_switch(&self) -> bool {
        matches!(self, Self::PostCopy | Self::Paused | Self::Recovering | Self::Completed)
    }

    /// Whether a migration is going on.
    pub const fn is_going_on(&self) -> bool {
        matches!(
            self,
            Self::Setup
                | Self::Active
                | Self::Switchover
                | Self::PostCopy
                | Self::Paused
                | Self::Recovering
                | Self::Other(_)
        )
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "pre-copy",
            Self::Switchover => "switchover",
            Self::PostCopy => "post-copy",
            Self::Paused => "post-copy-paused",
            Self::Recovering => "post-copy-recovering",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Other(name) => name,
        })
    }
}

/// The answer to `query-migrate`, as far as it is of use; what is not in it is zero.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Info {
    /// Where it is.
    pub phase: Phase,
    /// Guest RAM as it is migrated, firmware and video memory included.
    pub total: Pages,
    /// What is left.
    pub remaining: Pages,
    /// Pages sent with their contents so far.
    pub sent: Pages,
    /// Pages sent as a few bytes because they were zero.
    pub zero: Pages,
    /// How often the dirty log was read.
    pub syncs: u32,
    /// All bytes so far.
    pub transferred: Bytes,
    /// Of these, in pre-copy while the guest ran.
    pub precopy: Bytes,
    /// While it was paused.
    pub paused: Bytes,
    /// In post-copy.
    pub postcopy: Bytes,
    /// Pages that the target asked for.
    pub requests: u64,
    /// Since the beginning, by QEMU's clock.
    pub total_time: Duration,
    /// The pause, by QEMU's clock; `None` until it is over.
    pub downtime: Option<Duration>,
    /// By how many per cent the guest's processors are held back.
    pub throttle_percent: u32,
    /// Why it failed.
    pub error: Option<String>,
    /// Why it could not begin.
    pub blocked: Vec<String>,
}

impl Info {
    /// Asks.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn ask(client: &Client) -> Result<Self, QmpError> {
        Ok(Self::of(&client.execute("query-migrate", &json!({}))?))
    }

    /// Reads an answer.
    pub fn of(answer: &Value) -> Self {
        let ram = &answer["ram"];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let page_size = ram["page-size"].as_u64().filter(|size| *size > 0).unwrap_or(PAGE_SIZE);
        let bytes = |value: &Value| Pages(number(value).div_ceil(PAGE_SIZE));
        let pages = |value: &Value| Pages(number(value).saturating_mul(page_size) / PAGE_SIZE);
        let millis = |value: &Value| Duration::from_millis(number(value));
        let strings = |value: &Value| {
            let all = value.as_array().into_iter().flatten();
            all.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            phase: answer["status"].as_str().map_or(Phase::None, Phase::parse),
            total: bytes(&ram["total"]),
            remaining: bytes(&ram["remaining"]),
            sent: pages(&ram["normal"]),
            zero: pages(&ram["duplicate"]),
            syncs: u32::try_from(number(&ram["dirty-sync-count"])).unwrap_or(u32::MAX),
            transferred: Bytes(number(&ram["transferred"])),
            precopy: Bytes(number(&ram["precopy-bytes"])),
            paused: Bytes(number(&ram["downtime-bytes"])),
            postcopy: Bytes(number(&ram["postcopy-bytes"])),
            requests: number(&ram["postcopy-requests"]),
            total_time: millis(&answer["total-time"]),
            downtime: answer["downtime"].as_u64().map(Duration::from_millis),
            throttle_percent: u32::try_from(number(&answer["cpu-throttle-percentage"])).unwrap_or(u32::MAX),
            error: answer["error-desc"].as_str().map(str::to_owned),
            blocked: strings(&answer["blocked-reasons"]),
        }
    }

    /// The same for whoever makes rounds of it, at a time since the migration began.
    pub const fn counters(&self, at: Nanos) -> Counters {
        Counters {
            at,
            syncs: self.syncs,
            remaining: self.remaining,
            sent: self.sent,
            zero: self.zero,
        }
    }
}

/// What a QEMU says of its guest: `query-status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestStatus {
    /// Whether its processors run.
    pub running: bool,
    /// QEMU's word: `running`, `paused`, `inmigrate`, `postmigrate`, …
    pub name: String,
}

impl GuestStatus {
    /// Asks.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn ask(client: &Client) -> Result<Self, QmpError> {
        let answer = client.execute("query-status", &json!({}))?;
        Ok(Self {
            running: answer["running"].as_bool().unwrap_or(false),
            name: answer["status"].as_str().unwrap_or("unknown").to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whatever_is_in_it() {
        assert_eq!(Info::of(&json!({})), Info::default());
        let answer = json!({
            "status": "postcopy-active", "total-time": 1500, "never-heard-of": {},
            "ram": {
                "total": 8193, "remaining": 4096, "normal": 2, "duplicate": 3, "page-size": 16384, "dirty-sync-count": 4,
                "transferred": 70000, "postcopy-requests": 9, "dirty-pages-rate": "not a number"
            },
            "downtime": 12, "cpu-throttle-percentage": 20, "error-desc": "why", "blocked-reasons": ["a", 1, "b"]
        });
        let info = Info::of(&answer);
        assert_eq!(info.phase, Phase::PostCopy);
        assert_eq!((info.total, info.remaining), (Pages(3), Pages(1)));
        assert_eq!((info.sent, info.zero, info.syncs), (Pages(8), Pages(12), 4));
        assert_eq!(info.downtime, Some(Duration::from_millis(12)));
        assert_eq!(info.blocked, ["a", "b"]);
        let counters = info.counters(Nanos(7));
        assert_eq!((counters.at, counters.sent), (Nanos(7), Pages(8)));
    }

    #[test]
    fn unknown_phases_go_on() {
        for (text, past) in [
            ("active", false),
            ("device", false),
            ("postcopy-active", true),
            ("postcopy-recover-setup", true),
            ("colo", false),
        ] {
            let phase = Phase::parse(text);
            assert!(phase.is_going_on(), "{text}");
            assert_eq!(phase.is_past_switch(), past, "{text}");
        }
        assert_eq!(Phase::parse("colo").to_string(), "colo");
        assert!(!Phase::parse("completed").is_going_on() && !Phase::None.is_going_on());
    }
}
