//! What one migration did and cost.

use super::MigrationSchema;
use serde::{Deserialize, Serialize};

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The VM runs at the target, with all of its memory.
    Completed,
    /// Somebody cancelled it; the VM runs on at the source.
    Cancelled,
    /// It could not be done; the reason says where the VM is.
    Failed,
}

/// One migration, from the command to the end. Times are in microseconds, pages have 4096 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// Which document this is.
    pub schema: MigrationSchema,
    /// The strategy as it was asked for.
    pub strategy: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not complete; `None` if it did.
    #[serde(default)]
    pub reason: Option<String>,
    /// What went otherwise than it should and did no harm, such as a storage directory that was of no use.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// From the command until the target was known to be complete, or the VM to run on here; without the time of comparing
    /// memories.
    pub total_time_us: u64,
    /// From the source's request to pause until it heard that the VM runs at the target; 0 if it was never paused.
    pub downtime_us: u64,
    /// Whether the downtime that was wanted was kept, or no round limit forced the VM to stop while it was out of reach.
    #[serde(default = "kept")]
    pub goal_met: bool,
    /// The longest time without progress of the guest, as the guest's own counters show it.
    pub guest_gap_us: u64,
    /// All pages of the VM.
    #[serde(default)]
    pub total_pages: u64,
    /// The round at whose end pre-copy could end for the first time, because a static copy went on beside it; `None` without one.
    #[serde(default)]
    pub static_done_after: Option<u32>,
    /// What was chosen and why, and what that was to cost; `None` if the strategy was given.
    #[serde(default)]
    pub choice: Option<ChoiceReport>,
    /// What observing the guest took; `None` if it was not observed.
    #[serde(default)]
    pub sampling: Option<SamplingReport>,
    /// What the agent in the guest said of pages that need not move; `None` if there is none, or it was not asked.
    #[serde(default)]
    pub hints: Option<HintReport>,
    /// The rounds of pre-copy, the last transfer of stop-and-copy included.
    pub rounds: Vec<RoundReport>,
    /// The decision that ended pre-copy; `None` if none was taken.
    pub switch: Option<SwitchReport>,
    /// The part after the hand-over; `None` without post-copy.
    pub postcopy: Option<PostcopyReport>,
    /// Everything that was sent.
    pub bytes: ByteCounts,
    /// What the guest felt.
    pub guest: GuestImpact,
    /// The comparison of both memories; `None` if it was not asked for.
    pub verified: Option<Verification>,
}

/// A strategy that was chosen, and what it was expected to cost beside what it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceReport {
    /// What it was chosen by.
    pub goal: String,
    /// The strategy it went by in the end, in full.
    pub strategy: String,
    /// What was chosen at first, by how much, and why.
    pub why: String,
    /// The round after which another strategy was taken, the last time; `None` if it stayed with the first.
    pub revised_after: Option<u32>,
    /// Which, and why.
    pub revised_why: Option<String>,
    /// The time of the migration, without observing the guest, in microseconds.
    pub time_us: Predicted,
    /// The downtime, in microseconds.
    pub downtime_us: Predicted,
    /// Bytes of pages; headers are part of what it was.
    pub bytes: Predicted,
}

/// A quantity as it was expected and as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicted {
    /// The least that was expected.
    pub low: u64,
    /// What was likely.
    pub likely: u64,
    /// The most.
    pub high: u64,
    /// What it was.
    pub actual: u64,
}

/// What it took to observe what the guest writes, before the copy and during its rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplingReport {
    /// How long the guest was observed before anything was copied.
    pub learning_us: u64,
    /// The total time without that.
    pub total_time_without_us: u64,
    /// Samples taken, then and in the rounds.
    pub samples: u64,
    /// What all samples took together: reading the dirty bits and learning from them.
    pub time_us: u64,
    /// What one took in the mean, in nanoseconds.
    pub mean_ns: u64,
    /// What the longest took.
    pub longest_us: u64,
    /// 1000 − 1000 · (steps per second of the guest while it was observed) ÷ (those in the second before the migration); `None`
    /// for a guest that did nothing before.
    pub slowdown_milli: Option<i64>,
}

/// Pages that did not move because the guest said that nobody will read them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintReport {
    /// Pages that were not sent for it.
    pub pages: u64,
    /// What sending them would have taken on the network, at most: some may have been zero anyway.
    pub saved_bytes: u64,
    /// How often the target asked for one of them over the network in post-copy all the same.
    #[serde(default)]
    pub requests: u64,
    /// Pages that the agent called free.
    pub free_pages: u64,
    /// Pages that it said the balloon has.
    pub balloon_pages: u64,
    /// Pages that it named and the guest does not have.
    pub outside_pages: u64,
    /// From the question until it had said all, or was not waited for any longer. The copy begins after it.
    pub took_us: u64,
    /// Processor time of the guest for it, by its own word.
    pub cpu_us: u64,
    /// How it ended: `complete`, `timed-out`, `unable`, or `refused`.
    pub end: String,
    /// Why it refused.
    #[serde(default)]
    pub refusal: Option<String>,
}

/// One round of pre-copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundReport {
    /// Counted from 1.
    pub round: u32,
    /// How long it took.
    pub duration_us: u64,
    /// Pages sent in it with their data.
    pub sent_pages: u64,
    /// Pages that were zero and went as a few bytes.
    #[serde(default)]
    pub zero_pages: u64,
    /// Pages dirty at its end: what the next round would send.
    pub dirty_pages: u64,
    /// Bytes on the network.
    pub bytes: u64,
    /// Pages dirtied per page sent, times 1000; `None` when nothing was sent.
    pub lambda_milli: Option<i64>,
    /// The speed difference function, times 1000; `None` where it is not defined, as in the first round.
    pub sdf_milli: Option<i64>,
}

/// Why pre-copy ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchReport {
    /// The round after which it ended; 0 if there was none.
    pub round: u32,
    /// The rule that decided.
    pub rule: String,
    /// Its reason, with numbers.
    pub reason: String,
}

/// What happened while the VM ran at the target with pages missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostcopyReport {
    /// From running at the target until nothing was missing.
    pub duration_us: u64,
    /// Pages that the guest had to wait for.
    pub faults: u64,
    /// Pages that came before the guest asked.
    pub pushed: u64,
    /// Pages that came by the shared directory, once the network was gone.
    #[serde(default)]
    pub stored: u64,
    /// Median time from fault to installed page; `None` without faults.
    pub p50_us: Option<u64>,
    /// 99th percentile of the same.
    pub p99_us: Option<u64>,
    /// The median in nanoseconds: over a fast link a microsecond is a tenth of it.
    pub p50_ns: Option<u64>,
    /// The 99th percentile in nanoseconds.
    pub p99_ns: Option<u64>,
    /// Bytes on the network.
    pub bytes: u64,
}

/// Bytes sent over each channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteCounts {
    /// Pages over the network, except fault replies.
    pub migration: u64,
    /// Pages over the shared directory.
    pub storage: u64,
    /// Fault requests and replies.
    pub fault: u64,
    /// Everything that is not pages.
    pub control: u64,
}

impl ByteCounts {
    /// All channels together.
    pub const fn total(&self) -> u64 {
        self.migration
            .saturating_add(self.storage)
            .saturating_add(self.fault)
            .saturating_add(self.control)
    }
}

/// What a migration did to the guest's speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestImpact {
    /// Steps per second of the whole guest in the second before the migration.
    pub steps_before: u64,
    /// 1000 − 1000 · (steps per second during the migration) ÷ `steps_before`; `None` for a guest that did nothing
    /// before.
    pub slowdown_milli: Option<i64>,
}

/// The comparison of the source's frozen memory with what the target installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Pages compared.
    pub pages: u64,
    /// Pages that differed.
    pub mismatches: u64,
    /// How long hashing and comparing took after the VM ran at the target, with all its memory in place or on its way.
    #[serde(default)]
    pub time_us: u64,
}

impl MigrationReport {
    /// A report of a migration of which nothing is known yet.
    pub fn new(strategy: impl Into<String>, outcome: Outcome) -> Self {
        Self {
            schema: MigrationSchema,
            strategy: strategy.into(),
            outcome,
            reason: None,
            warnings: Vec::new(),
            total_time_us: 0,
            downtime_us: 0,
            goal_met: true,
            guest_gap_us: 0,
            total_pages: 0,
            static_done_after: None,
            choice: None,
            sampling: None,
            hints: None,
            rounds: Vec::new(),
            switch: None,
            postcopy: None,
            bytes: ByteCounts::default(),
            guest: GuestImpact::default(),
            verified: None,
        }
    }

    /// Whether everything that was asked for was reached: the VM moved without being forced to stop for longer than wanted, and
    /// no page differs.
    pub fn is_success(&self) -> bool {
        self.outcome == Outcome::Completed
            && self.goal_met
            && self.verified.is_none_or(|verified| verified.mismatches == 0)
    }
}

fn kept() -> bool {
    true
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A hybrid migration of a 64 MiB guest.
    pub(in super::super) fn hybrid() -> MigrationReport {
        MigrationReport {
            total_time_us: 2_314_567,
            downtime_us: 3_420,
            guest_gap_us: 5_120,
            total_pages: 16_384,
            static_done_after: Some(1),
            sampling: Some(SamplingReport {
                learning_us: 1_000_123,
                total_time_without_us: 1_314_444,
                samples: 40,
                time_us: 4_400,
                mean_ns: 110_000,
                longest_us: 321,
                slowdown_milli: Some(3),
            }),
            rounds: vec![
                RoundReport {
                    round: 1,
                    duration_us: 1_024_000,
                    sent_pages: 16_384,
                    zero_pages: 0,
                    dirty_pages: 8_120,
                    bytes: 67_108_864,
                    lambda_milli: Some(496),
                    sdf_milli: None,
                },
                RoundReport {
                    round: 2,
                    duration_us: 512_000,
                    sent_pages: 8_120,
                    zero_pages: 64,
                    dirty_pages: 4_002,
                    bytes: 33_259_520,
                    lambda_milli: Some(493),
                    sdf_milli: Some(-12),
                },
            ],
            switch: Some(SwitchReport {
                round: 2,
                rule: "rounds:2".into(),
                reason: "2 rounds are done".into(),
            }),
            postcopy: Some(PostcopyReport {
                duration_us: 210_000,
                faults: 84,
                pushed: 3_918,
                stored: 12,
                p50_us: Some(121),
                p99_us: Some(310),
                p50_ns: Some(121_400),
                p99_ns: Some(310_200),
                bytes: 16_392_192,
            }),
            bytes: ByteCounts {
                migration: 116_760_576,
                storage: 0,
                fault: 344_064,
                control: 12_345,
            },
            guest: GuestImpact {
                steps_before: 63_120,
                slowdown_milli: Some(21),
            },
            verified: Some(Verification {
                pages: 16_384,
                mismatches: 0,
                time_us: 12_345,
            }),
            ..MigrationReport::new("hybrid:2", Outcome::Completed)
        }
    }

    #[test]
    fn the_document_is_the_contract() {
        let expected = json!({
            "schema": "dunlin.migration.v1", "strategy": "hybrid:2", "outcome": "completed", "reason": null, "warnings": [],
            "total_time_us": 2_314_567, "downtime_us": 3_420, "goal_met": true, "guest_gap_us": 5_120,
            "total_pages": 16_384, "static_done_after": 1, "choice": null,
            "sampling": {"learning_us": 1_000_123, "total_time_without_us": 1_314_444, "samples": 40, "time_us": 4_400, "mean_ns": 110_000,
                "longest_us": 321, "slowdown_milli": 3},
            "rounds": [
                {"round": 1, "duration_us": 1_024_000, "sent_pages": 16_384, "zero_pages": 0, "dirty_pages": 8_120, "bytes": 67_108_864,
                 "lambda_milli": 496, "sdf_milli": null},
                {"round": 2, "duration_us": 512_000, "sent_pages": 8_120, "zero_pages": 64, "dirty_pages": 4_002, "bytes": 33_259_520,
                 "lambda_milli": 493, "sdf_milli": -12},
            ],
            "switch": {"round": 2, "rule": "rounds:2", "reason": "2 rounds are done"},
            "postcopy": {"duration_us": 210_000, "faults": 84, "pushed": 3_918, "stored": 12, "p50_us": 121, "p99_us": 310, "p50_ns": 121_400, "p99_ns": 310_200, "bytes": 16_392_192},
            "hints": {"pages": 900, "saved_bytes": 3_686_400, "requests": 0, "free_pages": 1_000, "balloon_pages": 12, "outside_pages": 3,
                "took_us": 40_123, "cpu_us": 2_100, "end": "complete", "refusal": null},
            "bytes": {"migration": 116_760_576, "storage": 0, "fault": 344_064, "control": 12_345},
            "guest": {"steps_before": 63_120, "slowdown_milli": 21},
            "verified": {"pages": 16_384, "mismatches": 0, "time_us": 12_345},
        });
        let report = MigrationReport {
            hints: Some(HintReport {
                pages: 900,
                saved_bytes: 3_686_400,
                requests: 0,
                free_pages: 1_000,
                balloon_pages: 12,
                outside_pages: 3,
                took_us: 40_123,
                cpu_us: 2_100,
                end: "complete".into(),
                refusal: None,
            }),
            ..hybrid()
        };
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        assert_eq!(serde_json::from_value::<MigrationReport>(expected).unwrap(), report);
    }

    #[test]
    fn what_did_not_happen_is_null() {
        let report = MigrationReport::new("precopy", Outcome::Cancelled);
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (&value["switch"], &value["postcopy"], &value["verified"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
        assert_eq!(value["outcome"], "cancelled");
    }

    #[test]
    fn another_schema_is_refused() {
        let mut value = serde_json::to_value(hybrid()).unwrap();
        value["schema"] = json!("dunlin.migration.v2");
        let error = serde_json::from_value::<MigrationReport>(value).unwrap_err();
        assert!(error.to_string().contains("dunlin.migration.v1"), "{error}");
    }

    #[test]
    fn a_difference_is_no_success() {
        let mut report = hybrid();
        assert!(report.is_success());
        report.verified = Some(Verification {
            pages: 16_384,
            mismatches: 1,
            time_us: 0,
        });
        assert!(!report.is_success());
        assert!(!MigrationReport::new("precopy", Outcome::Failed).is_success());
    }
}
