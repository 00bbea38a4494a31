//! What a process is doing with its VM at this moment.

use super::StatusSchema;
use crate::journal::Role;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a process is doing with its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// No VM yet: it waits for one to arrive.
    Waiting,
    /// The VM runs here, and no migration is going on.
    Running,
    /// Memory is being copied while the VM runs at the source.
    PreCopy,
    /// The VM is paused, on its way over.
    Handover,
    /// The source has given the VM up and does not know whether the target has taken it: paused until that is known.
    HandoverUnknown,
    /// The VM runs at the target while pages are still on their way.
    PostCopy,
    /// As before, but the network is cut: vCPUs wait for missing pages.
    PostCopyPaused,
    /// The VM runs elsewhere.
    MovedAway,
    /// The VM has halted, or its process has ended.
    Ended,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::PreCopy => "pre-copy",
            Self::Handover => "handover",
            Self::HandoverUnknown => "handover-unknown",
            Self::PostCopy => "post-copy",
            Self::PostCopyPaused => "post-copy-paused",
            Self::MovedAway => "moved-away",
            Self::Ended => "ended",
        })
    }
}

/// The answer to `dunlin status`. What does not apply in a state is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which document this is.
    pub schema: StatusSchema,
    /// The VM's name; `None` while waiting for one.
    #[serde(default)]
    pub name: Option<String>,
    /// This side of the present migration, or of the last one.
    pub role: Role,
    /// What it is doing.
    pub state: State,
    /// The migration, as 32 hexadecimal digits.
    pub session: Option<String>,
    /// The present round of pre-copy, from 1.
    pub round: Option<u32>,
    /// Pages still to be sent in this round.
    pub remaining_pages: Option<u64>,
    /// Steps that its vCPUs have made so far, taken together.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Pages that the running VM still lacks.
    pub missing_pages: Option<u64>,
    /// Microseconds until this round, or post-copy, is expected to end.
    pub eta_us: Option<u64>,
    /// Why it is in this state, where that is not obvious, and what to do.
    pub reason: Option<String>,
    /// The process.
    #[serde(default)]
    pub pid: Option<u32>,
    /// How its written pages are tracked.
    #[serde(default)]
    pub tracking: Option<TrackingStatus>,
    /// The recording that goes on.
    #[serde(default)]
    pub recording: Option<RecordingStatus>,
}

/// How the pages that a VM writes are tracked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackingStatus {
    /// By what: `kvm-dirty-bitmap`, `kvm-dirty-ring` or `pagemap-scan`.
    pub source: String,
    /// Whether they are at the moment: during a migration and a recording.
    pub on: bool,
    /// How often a dirty ring was full before it was harvested, so that all pages had to count as written.
    pub overruns: u64,
}

/// A recording that goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingStatus {
    /// The trackers that are on for it; none before it has begun.
    pub serve: Vec<String>,
    /// The process that records.
    pub client_pid: Option<u32>,
    /// Windows so far.
    pub windows: u64,
}

impl Status {
    /// A status of which only this is known.
    pub const fn new(role: Role, state: State) -> Self {
        Self {
            schema: StatusSchema,
            name: None,
            role,
            state,
            session: None,
            round: None,
            remaining_pages: None,
            steps: None,
            missing_pages: None,
            eta_us: None,
            reason: None,
            pid: None,
            tracking: None,
            recording: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_document_is_the_contract() {
        let status = Status {
            session: Some("0".repeat(32)),
            round: Some(3),
            remaining_pages: Some(4),
            missing_pages: Some(5),
            eta_us: Some(6),
            steps: Some(7),
            reason: Some("why".into()),
            tracking: Some(TrackingStatus {
                source: "kvm-dirty-ring".into(),
                on: true,
                overruns: 1,
            }),
            recording: Some(RecordingStatus {
                serve: vec!["kvm-dirty-ring".into()],
                client_pid: Some(8),
                windows: 9,
            }),
            ..Status::new(Role::Target, State::PostCopyPaused)
        };
        let expected = json!({
            "schema": "dunlin.status.v1", "name": null, "role": "target", "state": "post-copy-paused", "session": "0".repeat(32),
            "round": 3, "remaining_pages": 4, "missing_pages": 5, "eta_us": 6, "steps": 7, "reason": "why", "pid": null,
            "tracking": {"source": "kvm-dirty-ring", "on": true, "overruns": 1},
            "recording": {"serve": ["kvm-dirty-ring"], "client_pid": 8, "windows": 9},
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Status>(expected).unwrap(), status);
    }

    #[test]
    fn states_read_as_they_are_written() {
        use State::*;
        for state in [
            Waiting,
            Running,
            PreCopy,
            Handover,
            HandoverUnknown,
            PostCopy,
            PostCopyPaused,
            MovedAway,
            Ended,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), json!(state.to_string()));
        }
    }
}
