//! How a steered migration went.

use std::time::Duration;

use dunlin_agent::message::{Facts, Work};
use dunlin_core::steer::{Holder, Pass, Turn};
use dunlin_core::units::Bytes;
use serde_json::{Value, json};

use super::{Finding, Saving, SofteningReport, Version};

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The guest runs on the target.
    Completed,
    /// It was cancelled before that.
    Cancelled,
    /// It failed.
    Failed,
    /// It goes on without this driver.
    Left,
}

impl Outcome {
    /// As it stands in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Left => "left",
        }
    }
}

/// Who has the guest, as it stands in reports.
const fn holder_name(holder: Holder) -> &'static str {
    match holder {
        Holder::Source => "source",
        Holder::Target => "target",
        Holder::Both => "both",
        Holder::Nobody => "nobody",
        Holder::Unknown => "unknown",
    }
}

/// Who has the guest, in a sentence.
pub(super) const fn holder_sentence(holder: Holder) -> &'static str {
    match holder {
        Holder::Source => "the source has the guest",
        Holder::Target => "the target has the guest",
        Holder::Both => "the target has the guest, and needs the source until the rest has arrived: end neither",
        Holder::Nobody => "the guest is lost: part of its memory was with a QEMU that is gone",
        Holder::Unknown => "which side has the guest cannot be said: one of them does not answer",
    }
}

/// A switch to post-copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Switch {
    /// After this round.
    pub round: u32,
    /// Why.
    pub reason: String,
    /// From the command to the end of the migration.
    pub lasted: Duration,
}

/// What is told of a migration.
#[derive(Clone, Debug)]
pub struct Report {
    /// The rule, in its notation.
    pub rule: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it was completed.
    pub reason: Option<String>,
    /// Who has the guest.
    pub holder: Holder,
    /// The two versions.
    pub versions: [Version; 2],
    /// From the command to the end.
    pub total_time: Duration,
    /// From the source's STOP to the target's RESUME, as their events arrived; `None` if either was not heard.
    pub pause: Option<Duration>,
    /// QEMU's own word on it.
    pub downtime: Option<Duration>,
    /// The rounds of pre-copy.
    pub rounds: Vec<Turn>,
    /// The switch, if there was one.
    pub switch: Option<Switch>,
    /// Bytes in pre-copy, in the pause, and in post-copy, and all.
    pub bytes: [Bytes; 4],
    /// Pages that the target had to ask for.
    pub requests: u64,
    /// How often the connection broke in post-copy, and was made again.
    pub recoveries: u32,
    /// What the guest did to make itself small; `None` if it was not asked.
    pub softening: Option<SofteningReport>,
    /// What that has spared, by where it came from.
    pub savings: Vec<Saving>,
    /// What was found before.
    pub findings: Vec<Finding>,
    /// What is to be known besides.
    pub warnings: Vec<String>,
}

impl Report {
    /// One JSON object.
    pub fn to_json(&self) -> Value {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let findings: Vec<Value> = self.findings.iter().map(|finding| json!(finding.to_string())).collect();
        json!({
            "schema": "dunlin.qemu.v1",
            "rule": self.rule,
            "outcome": self.outcome.name(),
            "reason": self.reason,
            "guest_is_on": holder_name(self.holder),
            "qemu": { "source": self.versions[0].to_string(), "target": self.versions[1].to_string() },
            "total_time_us": us(self.total_time),
            "downtime_us": self.pause.map(us),
            "qemu_downtime_us": self.downtime.map(us),
            "rounds": self.rounds.iter().map(turn_json).collect::<Vec<_>>(),
            "switch": self.switch.as_ref().map(|switch| json!({
                "round": switch.round,
                "reason": switch.reason,
            })),
            "postcopy": self.switch.as_ref().map(|switch| json!({
                "duration_us": us(switch.lasted),
                "faults": self.requests,
                "bytes": self.bytes[2].0,
                "recoveries": self.recoveries,
            })),
            "bytes": {
                "precopy": self.bytes[0].0,
                "paused": self.bytes[1].0,
                "postcopy": self.bytes[2].0,
                "total": self.bytes[3].0,
            },
            "guest": self.softening.as_ref().map(|softening| softening_json(softening, &self.savings)),
            "findings": findings,
            "warnings": self.warnings,
        })
    }
}

fn softening_json(report: &SofteningReport, savings: &[Saving]) -> Value {
    let facts = |facts: &Option<Facts>| {
        facts.as_ref().map(|facts| {
            json!({
                "total_bytes": facts.total.0,
                "free_bytes": facts.free.0,
                "available_bytes": facts.available.0,
                "cached_bytes": facts.cached.0,
                "swap_used_bytes": facts.swap_used.0,
                "memory_pressure_milli": facts.memory_pressure_milli,
            })
        })
    };
    let work = |work: Work| {
        work.iter_names()
            .map(|(name, _)| name.to_lowercase())
            .collect::<Vec<_>>()
    };
    json!({
        "kernel": report.kernel,
        "before": facts(&report.facts[0]),
        "prepared": facts(&report.facts[1]),
        "memory_bytes": report.memory.map(|[original, _]| original.0),
        "least_memory_bytes": report.memory.map(|[_, least]| least.0),
        "done_before": work(report.done[0]),
        "done_after": work(report.done[1]),
        "failed": work(report.failed[0] | report.failed[1]),
        "preparing_us": u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX),
        "forgotten_bytes": report.forgotten.0,
        "by_free_page_hints": report.by_hints,
        "spared": savings.iter().copied().map(Saving::to_json).collect::<Vec<_>>(),
        "was_short": report.was_short,
        "restored": report.restored,
    })
}

/// A round as a line of a log that `dunlin replay` reads, with the decision beside it.
pub fn turn_json(turn: &Turn) -> Value {
    let mut line = pass_json(&turn.pass);
    line["decision"] = json!(turn.verdict.decision.to_string());
    line["reason"] = json!(turn.verdict.reason.to_string());
    line["refused"] = json!(turn.refusal.map(|refusal| refusal.to_string()));
    line["lambda_milli"] = json!(turn.pass.end.lambda_milli());
    line["sdf_milli"] = json!(turn.pass.end.sdf_milli());
    line
}

/// A round as a line of a log that `dunlin replay` reads.
pub fn pass_json(pass: &Pass) -> Value {
    json!({
        "round": pass.end.round,
        "duration_us": pass.end.duration.0 / 1000,
        "sent_pages": pass.end.sent.0,
        "dirty_pages": pass.end.dirty.0,
        "zero_pages": pass.zero.0,
    })
}
