//! Requests and responses.

use super::recording::RecordRequest;
use crate::{channel::Address, report::Progress, trust::Name};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// What the process is doing; answered with a [`Status`](crate::report::Status).
    Status,
    /// Move the VM; answered with progress, and a [`MigrationReport`](crate::report::MigrationReport) at the end.
    Migrate(Box<MigrateRequest>),
    /// Stop the migration that is going on; answered with the status after it, as soon as the VM runs on here.
    Cancel,
    /// Decide about a VM whose other side cannot be reached; answered with the status after it.
    Resolve {
        /// The decision.
        resolution: Resolution,
    },
    /// Record which pages the VM writes; answered with a [`RecordingAnswer`](super::RecordingAnswer).
    Record(Box<RecordRequest>),
    /// Begin the recording that was asked for over this connection.
    Go,
    /// End it.
    Stop,
}

/// A person's decision about a VM that waits between two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// Run it here. Only right if the other side is dead: otherwise two copies of the VM run.
    RunHere,
    /// Forget it here. Only right if it runs at the other side.
    GiveUp,
}

/// A migration as asked for. Every field but the first two may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Where the target listens.
    pub to: Address,
    /// A preset, a composition, or `auto`.
    pub strategy: String,
    /// The directory with this host's credentials, for TLS.
    #[serde(default)]
    pub tls_dir: Option<PathBuf>,
    /// Whom the certificate of the target must name; `None` for the host in `to`.
    #[serde(default)]
    pub peer: Option<Name>,
    /// Whether to connect in plain to another host.
    #[serde(default)]
    pub insecure: bool,
    /// What `auto` is to choose by; `None` for a downtime below `downtime_us`.
    #[serde(default)]
    pub goal: Option<String>,
    /// Limit for all network bytes, in bytes per second; `None` for no limit.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// A directory that both hosts mount.
    #[serde(default)]
    pub storage: Option<PathBuf>,
    /// Limit for what is written there, in bytes per second; `None` for no limit.
    #[serde(default)]
    pub storage_bandwidth: Option<u64>,
    /// The file whose order `push=recorded` goes by.
    #[serde(default)]
    pub push_order: Option<PathBuf>,
    /// Where to write the order in which the guest needs pages in post-copy.
    #[serde(default)]
    pub record_order: Option<PathBuf>,
    /// The longest pause that pre-copy aims at, in microseconds.
    #[serde(default = "MigrateRequest::default_downtime_us")]
    pub downtime_us: u64,
    /// The most rounds of pre-copy.
    #[serde(default = "MigrateRequest::default_max_rounds")]
    pub max_rounds: u32,
    /// The shortest round of pre-copy, in microseconds: a round that is done earlier waits.
    #[serde(default = "MigrateRequest::default_min_round_us")]
    pub min_round_us: u64,
    /// How long to observe the guest before anything is copied, in microseconds, by a strategy that looks ahead; `None` for 8 s, or
    /// with `auto` as long as one copy takes, from 2 to 8 s.
    #[serde(default)]
    pub profile_us: Option<u64>,
    /// How long the network may be silent before it counts as cut, in microseconds.
    #[serde(default = "MigrateRequest::default_network_timeout_us")]
    pub network_timeout_us: u64,
    /// How long the agent in the guest may take to say which pages need not move, in microseconds; 0 asks nobody.
    #[serde(default = "MigrateRequest::default_hint_timeout_us")]
    pub hint_timeout_us: u64,
    /// Whether to compare both memories after completion.
    #[serde(default)]
    pub verify: bool,
    /// Whether page runs carry checksums.
    #[serde(default = "MigrateRequest::default_checksum")]
    pub checksum: bool,
}

impl MigrateRequest {
    /// A migration with every default.
    pub fn new(to: Address, strategy: impl Into<String>) -> Self {
        Self {
            to,
            strategy: strategy.into(),
            tls_dir: None,
            peer: None,
            insecure: false,
            goal: None,
            bandwidth: None,
            storage: None,
            storage_bandwidth: None,
            push_order: None,
            record_order: None,
            downtime_us: Self::default_downtime_us(),
            max_rounds: Self::default_max_rounds(),
            min_round_us: Self::default_min_round_us(),
            profile_us: None,
            network_timeout_us: Self::default_network_timeout_us(),
            hint_timeout_us: Self::default_hint_timeout_us(),
            verify: false,
            checksum: Self::default_checksum(),
        }
    }

    const fn default_downtime_us() -> u64 {
        300_000
    }

    const fn default_max_rounds() -> u32 {
        30
    }

    const fn default_hint_timeout_us() -> u64 {
        2_000_000
    }

    const fn default_min_round_us() -> u64 {
        100_000
    }

    const fn default_network_timeout_us() -> u64 {
        3_000_000
    }

    const fn default_checksum() -> bool {
        true
    }
}

/// A line that a client reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// News of a migration; more lines follow.
    Progress(Progress),
    /// The answer: the document that the request promises.
    Result(serde_json::Value),
    /// The answer: it could not be done.
    Error(Failure),
}

/// Why a request could not be fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened, why, and what to do.
    pub message: String,
    /// 1: begun and failed; 2: wrong usage or environment.
    pub exit_code: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json, to_value};

    #[test]
    fn requests_are_the_contract() {
        for (request, text) in [
            (Request::Status, json!({"command": "status"})),
            (Request::Cancel, json!({"command": "cancel"})),
            (
                Request::Resolve {
                    resolution: Resolution::RunHere,
                },
                json!({"command": "resolve", "resolution": "run-here"}),
            ),
            (
                Request::Record(Box::default()),
                json!({"command": "record", "serve": [], "window_us": 50_000, "exact": false}),
            ),
            (Request::Go, json!({"command": "go"})),
            (Request::Stop, json!({"command": "stop"})),
            (
                Request::Migrate(Box::new(MigrateRequest::new("host:7000".parse().unwrap(), "precopy"))),
                json!({
                    "command": "migrate", "to": "host:7000", "strategy": "precopy", "tls_dir": null, "peer": null, "insecure": false, "goal": null, "bandwidth": null,
                    "storage": null, "storage_bandwidth": null, "push_order": null, "record_order": null, "downtime_us": 300_000, "max_rounds": 30, "min_round_us": 100_000, "profile_us": null, "network_timeout_us": 3_000_000, "hint_timeout_us": 2_000_000, "verify": false, "checksum": true,
                }),
            ),
        ] {
            assert_eq!(to_value(&request).unwrap(), text);
            assert_eq!(from_value::<Request>(text).unwrap(), request);
        }
    }

    #[test]
    fn the_short_form_of_a_migration_has_the_defaults() {
        let short = json!({"command": "migrate", "to": "unix:/s", "strategy": "postcopy"});
        let full = Request::Migrate(Box::new(MigrateRequest::new("unix:/s".parse().unwrap(), "postcopy")));
        assert_eq!(from_value::<Request>(short).unwrap(), full);
    }

    #[test]
    fn a_misspelt_option_is_not_ignored() {
        let request = json!({"command": "migrate", "to": "host:1", "strategy": "precopy", "bandwith": 5});
        assert!(
            from_value::<Request>(request)
                .unwrap_err()
                .to_string()
                .contains("bandwith")
        );
        let request = json!({"command": "migrate", "to": "nowhere", "strategy": "precopy"});
        assert!(
            from_value::<Request>(request)
                .unwrap_err()
                .to_string()
                .contains("write host:port")
        );
    }
}
