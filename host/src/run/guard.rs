//! What stands before every migration: the policy, which is read again each time, and the audit log that keeps what was decided.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dunlin_core::message::SessionId;
use dunlin_core::units::{Bytes, BytesPerSec};

use super::node::lock;
use super::options::TrustOptions;
use super::recorder::{Attempt, RecordError, Recorder};
use crate::channel::Stream;
use crate::journal::Role;
use crate::trust::Peer;
use crate::trust::audit::{AuditLog, Decision, Entry, Event};
use crate::trust::policy::{Direction, Policy, Request, Turn};

/// Refusals that get a record of their own within [`REFUSALS_EVERY`]: strangers must not fill the disk.
const REFUSALS_MAX: u64 = 60;
const REFUSALS_EVERY: Duration = Duration::from_secs(60);

/// The policy and the audit log of a process.
#[derive(Debug)]
pub(super) struct Guard {
    policy: Option<PathBuf>,
    audit: Option<Arc<AuditLog>>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug)]
struct Refusals {
    since: Instant,
    recorded: u64,
    unrecorded: u64,
}

/// What is allowed.
#[derive(Debug)]
pub(super) struct Allowed {
    /// By which rule, or why without.
    pub(super) rule: String,
    /// No faster than that.
    pub(super) bandwidth: Option<BytesPerSec>,
    /// Counts as long as it is kept.
    pub(super) turn: Option<Turn>,
}

/// What is not.
#[derive(Debug)]
pub(super) struct Denied {
    /// By which rule, if by one.
    pub(super) rule: Option<String>,
    /// Why, for this host's eyes.
    pub(super) reason: String,
}

impl Guard {
    /// Opens the audit log, and says now if the policy is of no use.
    ///
    /// # Errors
    /// [`RecordError::Audit`].
    pub(super) fn open(options: &TrustOptions) -> Result<Self, RecordError> {
        let audit = options.audit.as_deref().map(AuditLog::open).transpose()?;
        if let Err(error) = Policy::load(options.policy.as_deref()) {
            eprintln!("dunlin: every migration is refused: {}", super::chain(&error));
        }
        Ok(Self {
            policy: options.policy.clone(),
            audit: audit.map(Arc::new),
            refusals: Mutex::new(Refusals {
                since: Instant::now(),
                recorded: 0,
                unrecorded: 0,
            }),
        })
    }

    pub(super) fn audit(&self) -> Option<Arc<AuditLog>> {
        self.audit.clone()
    }

    /// Asks the policy.
    pub(super) fn ask(&self, direction: Direction, peer: &Peer, guest: &str, memory: Bytes) -> Result<Allowed, Denied> {
        let of_itself = |reason| Denied { rule: None, reason };
        let policy = Policy::load(self.policy.as_deref()).map_err(|error| of_itself(super::chain(&error)))?;
        let verdict = policy.decide(&Request {
            direction,
            peer,
            guest,
            memory,
        });
        let rule = verdict.rule();
        if !verdict.is_allowed() {
            return Err(Denied {
                rule: rule.map(ToString::to_string),
                reason: verdict.reason(),
            });
        }
        let limits = verdict.limits();
        let turn = match (rule, limits.migrations) {
            (Some(rule), Some(most)) => {
                let denied = |reason| Denied {
                    rule: Some(rule.to_string()),
                    reason,
                };
                let turn = policy.take_turn(rule, most);
                let turn = turn.map_err(|error| denied(super::chain(&error)))?;
                Some(turn.ok_or_else(|| denied(format!("{rule} allows {most} migrations at once, and as many go on")))?)
            }
            _ => None,
        };
        Ok(Allowed {
            rule: rule.map_or_else(|| verdict.to_string(), ToString::to_string),
            bandwidth: limits.bandwidth,
            turn,
        })
    }

    /// Puts a refusal on record, if there were not too many of late.
    pub(super) fn refuse(&self, recorder: &Recorder, role: Role, session: SessionId, denied: &Denied) {
        let mut refusals = lock(&self.refusals);
        if refusals.since.elapsed() >= REFUSALS_EVERY {
            (refusals.since, refusals.recorded) = (Instant::now(), 0);
        }
        if refusals.recorded >= REFUSALS_MAX {
            refusals.unrecorded += 1;
            return;
        }
        refusals.recorded += 1;
        let unrecorded = std::mem::take(&mut refusals.unrecorded);
        recorder.tell(Entry {
            decision: Some(Decision::Refused),
            rule: denied.rule.clone(),
            reason: Some(denied.reason.clone()),
            unrecorded: (unrecorded > 0).then_some(unrecorded),
            ..recorder.entry(Event::Offer, role, session)
        });
    }
}

impl Attempt {
    /// Of a VM that somebody offers over `stream`.
    pub(super) fn offered(stream: &Stream, memory: Option<Bytes>) -> Self {
        Self {
            peer: Some(peer_of(stream)),
            address: Some(stream.peer().to_owned()),
            memory: memory.map(|memory| memory.0),
            ..Self::default()
        }
    }
}

/// Who is at the other end of an accepted connection.
pub(super) fn peer_of(stream: &Stream) -> Peer {
    match stream.peer_ip() {
        Ok(ip) => Peer::from(ip, stream.trusted().map(|trusted| &trusted.peer)),
        // It is gone: whoever it was is nobody.
        Err(_) => Peer::new(false, None),
    }
}
