//! What the lines of an audit log say.

use crate::journal::{Phase, Role};
use crate::trust::commit::SignedCommit;
use dunlin_core::message::{SessionId, VmId};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt};

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Which document this is: `dunlin.audit.v1`.
    pub schema: AuditSchema,
    /// Random: no line of one log fits another.
    pub id: String,
    /// When it was begun, in UTC (RFC 3339).
    pub time: String,
}

/// Marks an audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditSchema {
    /// This format.
    #[serde(rename = "dunlin.audit.v1")]
    V1,
}

/// Every other line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts the records of this log, from 1.
    pub number: u64,
    /// The hash at the end of the line before.
    pub previous: String,
    /// When, in UTC by this host's clock (RFC 3339).
    pub time: String,
    /// The process that wrote it.
    pub pid: u32,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// What kind of thing.
    pub event: Event,
    /// This side of the migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The local user who asked for it, or whose process it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Who the other side is: the identity it proved, `local`, or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Where the other side is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The VM, on whatever host it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// Its memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// How it is moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
    /// What was decided about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the VM is from here on, as far as this host knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What is handed over, and the signatures under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<SignedCommit>,
    /// The line before this one, if it was not written to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub torn: Option<TornLine>,
    /// Offers that were refused since the last record without one of their own, because there were too many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<u64>,
}

/// A line that its process did not write to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TornLine {
    /// Its bytes.
    pub bytes: u64,
    /// Their BLAKE3.
    pub blake3: String,
}

/// Kinds of things that happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A VM was started here.
    #[default]
    Started,
    /// A migration was asked for, and allowed or refused.
    Offer,
    /// The place of the VM is about to change.
    HandOver,
    /// Source: the VM is given up. Target: it is taken.
    Commit,
    /// The VM runs on at the source after all.
    TakenBack,
    /// A migration is over.
    Outcome,
    /// A source that had lost this host asked what became of its VM.
    Answer,
    /// A person decided.
    Decision,
    /// A process that died left a hand-over record that says more than this log did.
    Found,
    /// A process that died left a line that ends in the middle.
    Torn,
}

/// What was decided about an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// It may go on.
    Accepted,
    /// It may not.
    Refused,
}

/// How a migration ended for this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The VM is at the target, whole.
    Completed,
    /// It stayed at the source, as far as this side knows.
    Aborted,
    /// The target refused it.
    Refused,
    /// A person gave up what was left of it here.
    GivenUp,
    /// It can never be whole at the target.
    Lost,
}

/// Where a VM is, as one host knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On this host; if its process died, it ended here.
    Here,
    /// Not on this host.
    Elsewhere,
    /// This host alone cannot know.
    Between,
}

impl Place {
    /// Where a VM is by a hand-over record.
    pub const fn of(role: Role, phase: Phase) -> Self {
        match (role, phase) {
            (Role::Source, Phase::Running | Phase::Aborted) => Self::Here,
            (Role::Source, Phase::MovedAway | Phase::Complete | Phase::PostCopy) => Self::Elsewhere,
            (Role::Target, Phase::Receiving | Phase::Aborted) => Self::Elsewhere,
            (Role::Target, Phase::Running | Phase::Taken | Phase::PostCopy | Phase::Complete) => Self::Here,
            (Role::Target, Phase::GivenUp | Phase::MovedAway | Phase::Ready)
            | (Role::Source, Phase::GivenUp | Phase::Receiving | Phase::Ready | Phase::Taken) => Self::Between,
        }
    }

    /// Whether one of the two must be wrong.
    pub const fn contradicts(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Here, Self::Elsewhere) | (Self::Elsewhere, Self::Here)
        )
    }
}

/// Where each VM is by a log. Each role has its own word: both sides of a migration on one host may write one log.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(HashMap<(String, Role), Place>);

impl Places {
    /// Takes note of what a record says.
    pub(super) fn note(&mut self, entry: &Entry) {
        if let (Some(vm), Some(role), Some(place)) = (&entry.vm, entry.role, entry.place) {
            self.0.insert((vm.clone(), role), place);
        }
    }

    pub(super) fn get(&self, vm: VmId, role: Role) -> Option<Place> {
        self.0.get(&(vm_text(vm), role)).copied()
    }
}

impl Entry {
    /// Something that happened to a VM in a session; a VM that was never moved has none.
    pub fn new(event: Event, role: Role, vm: VmId, session: SessionId) -> Self {
        Self {
            event,
            role: Some(role),
            uid: Some(rustix::process::getuid().as_raw()),
            vm: Some(vm_text(vm)),
            session: (session.0 != 0).then(|| session.to_string()),
            ..Self::default()
        }
    }

    /// The same, after which the VM is there.
    pub fn at(self, place: Place) -> Self {
        Self {
            place: Some(place),
            ..self
        }
    }
}

/// A VM as the log names it.
fn vm_text(vm: VmId) -> String {
    format!("{:032x}", vm.0)
}

macro_rules! as_in_json {
    ($($name:ident { $($variant:ident = $text:literal),* $(,)? })*) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $text),* })
            }
        })*
    };
}

as_in_json! {
    Event {
        Started = "started", Offer = "offer", HandOver = "hand-over", Commit = "commit", TakenBack = "taken-back",
        Outcome = "outcome", Answer = "answer", Decision = "decision", Found = "found", Torn = "torn",
    }
    Decision { Accepted = "accepted", Refused = "refused" }
    Outcome { Completed = "completed", Aborted = "aborted", Refused = "refused", GivenUp = "given-up", Lost = "lost" }
    Place { Here = "here", Elsewhere = "elsewhere", Between = "between" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_log() {
        for (word, json) in [
            (Event::HandOver.to_string(), serde_json::to_value(Event::HandOver)),
            (Event::TakenBack.to_string(), serde_json::to_value(Event::TakenBack)),
            (Outcome::GivenUp.to_string(), serde_json::to_value(Outcome::GivenUp)),
            (Decision::Refused.to_string(), serde_json::to_value(Decision::Refused)),
            (Place::Elsewhere.to_string(), serde_json::to_value(Place::Elsewhere)),
        ] {
            assert_eq!(json.unwrap(), word);
        }
    }

    #[test]
    fn between_contradicts_nothing() {
        use Place::{Between, Elsewhere, Here};
        for place in [Here, Elsewhere, Between] {
            assert!(!Between.contradicts(place) && !place.contradicts(Between) && !place.contradicts(place));
        }
        assert!(Here.contradicts(Elsewhere) && Elsewhere.contradicts(Here));
    }
}
