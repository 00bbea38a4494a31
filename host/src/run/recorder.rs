//! What is kept of a VM's way: hand-over records of both roles in the journal, and the audit log beside it, in this order.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dunlin_core::message::{Mode, SessionId, VmId};
use dunlin_core::migrate::{SourceRecord, TargetRecord};

use super::node::lock;
use super::source::SourceRecorder;
use super::target::TargetRecorder;
use crate::journal::{HandOver, Journal, JournalError, Phase, Role};
use crate::trust::Peer;
use crate::trust::audit::{AuditError, AuditLog, Decision, Entry, Event, Outcome, Place};
use crate::trust::commit::{CommitRecord, Side, SignedCommit, Signing};

/// Why something is not on record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The hand-over record.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// Writes for one VM. Without a state directory it keeps no record, and a crash of the process leaves no trace; without an audit log it
/// keeps none.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    journal: Option<Arc<Mutex<Journal>>>,
    audit: Option<Arc<AuditLog>>,
    vm: VmId,
    name: String,
    control: Option<String>,
    attempt: Attempt,
    commit: Option<SignedCommit>,
}

/// What an attempt is about, for the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempt {
    /// Who the other side is.
    pub(super) peer: Option<Peer>,
    /// Where.
    pub(super) address: Option<String>,
    /// Who asked for it here; the process itself if nobody.
    pub(super) uid: Option<u32>,
    /// How the VM is moved.
    pub(super) strategy: Option<String>,
    /// The VM's memory in bytes.
    pub(super) memory: Option<u64>,
}

impl Recorder {
    pub(super) fn open(
        state: Option<&Path>,
        audit: Option<Arc<AuditLog>>,
        name: &str,
        vm: VmId,
        control: Option<String>,
    ) -> Result<Self, RecordError> {
        let journal = state.map(|directory| Journal::open(directory, name)).transpose()?;
        if let (Some(audit), Some(last)) = (&audit, journal.as_ref().and_then(Journal::last)) {
            audit.catch_up_with(name, &last.hand_over)?;
        }
        Ok(Self {
            journal: journal.map(|journal| Arc::new(Mutex::new(journal))),
            name: name.to_owned(),
            control,
            ..Self::without_journal(audit, vm)
        })
    }

    pub(super) fn without_journal(audit: Option<Arc<AuditLog>>, vm: VmId) -> Self {
        Self {
            journal: None,
            audit,
            vm,
            name: String::new(),
            control: None,
            attempt: Attempt::default(),
            commit: None,
        }
    }

    pub(super) fn for_attempt(&self, attempt: Attempt) -> Self {
        Self {
            attempt,
            commit: None,
            ..self.clone()
        }
    }

    /// The same for a VM of this name, of which nothing is recorded here.
    pub(super) fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }

    pub(super) fn for_vm(&self, vm: VmId) -> Self {
        Self { vm, ..self.clone() }
    }

    /// An entry about this VM and attempt.
    pub(super) fn entry(&self, event: Event, role: Role, session: SessionId) -> Entry {
        let attempt = &self.attempt;
        let entry = Entry::new(event, role, self.vm, session);
        Entry {
            uid: attempt.uid.or(entry.uid),
            peer: attempt.peer.as_ref().map(Peer::to_string),
            address: attempt.address.clone(),
            guest: (!self.name.is_empty()).then(|| self.name.clone()),
            strategy: attempt.strategy.clone(),
            memory: attempt.memory,
            ..entry
        }
    }

    /// Puts an entry into the audit log, if there is one.
    pub(super) fn audit(&self, entry: Entry) -> Result<(), AuditError> {
        self.audit.as_ref().map_or(Ok(()), |audit| audit.append(entry))
    }

    /// The same, where nothing depends on it any more.
    pub(super) fn tell(&self, entry: Entry) {
        if let Err(error) = self.audit(entry) {
            eprintln!("dunlin: {}", super::chain(&error));
        }
    }

    /// Says that an attempt goes on, and takes room for what will be said of it.
    pub(super) fn accept(&self, role: Role, session: SessionId, rule: Option<String>) -> Result<(), AuditError> {
        if let Some(audit) = &self.audit {
            audit.reserve();
        }
        let place = match role {
            Role::Source => Place::Here,
            Role::Target => Place::Elsewhere,
        };
        self.audit(Entry {
            decision: Some(Decision::Accepted),
            rule,
            ..self.entry(Event::Offer, role, session).at(place)
        })
    }

    /// Says how an attempt ended.
    pub(super) fn end(&self, role: Role, session: SessionId, outcome: Outcome, place: Place, reason: Option<String>) {
        self.tell(Entry {
            outcome: Some(outcome),
            reason,
            ..self.entry(Event::Outcome, role, session).at(place)
        });
    }

    /// Writes a hand-over record. The audit log never contradicts it, whatever is killed when: it says that the VM's place is about to
    /// change before, and where it is afterwards.
    pub(super) fn write(&self, session: SessionId, role: Role, phase: Phase) -> Result<(), RecordError> {
        let place = Place::of(role, phase);
        let known = self.audit.as_ref().and_then(|audit| audit.place(self.vm, role));
        if known.is_some_and(|known| known.contradicts(place)) {
            self.audit(self.entry(Event::HandOver, role, session).at(Place::Between))?;
        }
        if let Some(journal) = &self.journal {
            lock(journal).write(HandOver {
                vm_id: self.vm,
                session,
                role,
                phase,
                peer: self.attempt.address.clone(),
                control: self.control.clone(),
            })?;
        }
        let (event, commit) = match (role, phase) {
            (Role::Source, Phase::Running) if session == SessionId::default() => (Event::Started, None),
            (Role::Source, Phase::Running) => (Event::TakenBack, None),
            (Role::Source, Phase::GivenUp) | (Role::Target, Phase::Taken) => (Event::Commit, self.commit.clone()),
            // The outcome says it.
            _ => return Ok(()),
        };
        Ok(self.audit(Entry {
            commit,
            ..self.entry(event, role, session).at(place)
        })?)
    }

    pub(super) const fn commit_mut(&mut self) -> Option<&mut SignedCommit> {
        self.commit.as_mut()
    }

    fn keep_commit(&mut self, side: Side, session: SessionId, mode: Mode, state: &[u8], signing: Option<&Signing>) {
        let parties = signing.map(|signing| signing.parties(side)).unwrap_or_default();
        let record = CommitRecord::new(session, self.vm, &self.name, parties, mode, state);
        self.commit = Some(SignedCommit::unsigned(record));
    }
}

impl SourceRecorder for Recorder {
    fn record(&mut self, record: SourceRecord, session: SessionId) -> Result<(), Box<dyn Error>> {
        let phase = match record {
            SourceRecord::Running => Phase::Running,
            SourceRecord::GivenUp => Phase::GivenUp,
            SourceRecord::MovedAway => Phase::MovedAway,
        };
        Ok(self.write(session, Role::Source, phase)?)
    }

    fn begin_hand_over(&mut self, session: SessionId) -> Result<(), Box<dyn Error>> {
        let entry = self.entry(Event::HandOver, Role::Source, session);
        Ok(self.audit(entry.at(Place::Between))?)
    }

    fn keep(&mut self, session: SessionId, mode: Mode, state: &[u8], signing: Option<&Signing>) {
        self.keep_commit(Side::Source, session, mode, state, signing);
    }
}

impl TargetRecorder for Recorder {
    fn record(&mut self, record: TargetRecord, session: SessionId, vm: VmId) -> Result<(), Box<dyn Error>> {
        self.vm = vm;
        let phase = match record {
            TargetRecord::Receiving => Phase::Receiving,
            TargetRecord::Taken => Phase::Taken,
            TargetRecord::Complete => Phase::Complete,
            TargetRecord::NeverTaken => Phase::Aborted,
        };
        Ok(self.write(session, Role::Target, phase)?)
    }

    fn begin_hand_over(
        &mut self,
        session: SessionId,
        mode: Mode,
        state: &[u8],
        signing: Option<&Signing>,
    ) -> Result<(), Box<dyn Error>> {
        self.keep_commit(Side::Target, session, mode, state, signing);
        let entry = self.entry(Event::HandOver, Role::Target, session);
        Ok(self.audit(entry.at(Place::Between))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: VmId = VmId(5);
    const SESSION: SessionId = SessionId(6);

    fn recorder(folder: &Path) -> Recorder {
        let audit = Arc::new(AuditLog::open(&folder.join("audit.jsonl")).unwrap());
        Recorder::open(Some(folder), Some(audit), "vm", VM, None).unwrap()
    }

    fn place(recorder: &Recorder, role: Role) -> Option<Place> {
        recorder.audit.as_ref().unwrap().place(VM, role)
    }

    /// Stands for a process that dies over the hand-over record: what it had said before must not contradict what the record says then.
    #[test]
    fn that_a_place_changes_is_said_before_the_record_says_so() {
        for (role, before, after) in [
            (Role::Source, Phase::Running, Phase::MovedAway),
            (Role::Source, Phase::Running, Phase::PostCopy),
            (Role::Source, Phase::MovedAway, Phase::Running),
            (Role::Target, Phase::Receiving, Phase::Taken),
            (Role::Target, Phase::Taken, Phase::Aborted),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let recorder = recorder(folder.path());
            recorder.write(SESSION, role, before).unwrap();
            // Of the target the offer says it.
            recorder.tell(recorder.entry(Event::Offer, role, SESSION).at(Place::of(role, before)));
            // More than a record has room for.
            let dying = recorder.for_attempt(Attempt {
                address: Some("a".repeat(1 << 16)),
                ..Attempt::default()
            });
            let died = dying.write(SESSION, role, after);
            assert!(matches!(died, Err(RecordError::Journal(_))), "{died:?}");
            assert_eq!(place(&recorder, role), Some(Place::Between), "{role} {before} {after}");
            recorder.write(SESSION, role, after).unwrap();
            let said = place(&recorder, role).unwrap();
            assert!(
                !said.contradicts(Place::of(role, after)),
                "{role} {before} {after}: {said}"
            );
        }
    }

    #[test]
    fn a_hand_over_begins_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = recorder(folder.path());
        recorder.write(SESSION, Role::Source, Phase::Running).unwrap();
        SourceRecorder::begin_hand_over(&mut recorder, SESSION).unwrap();
        assert_eq!(place(&recorder, Role::Source), Some(Place::Between));
        recorder.write(SESSION, Role::Target, Phase::Receiving).unwrap();
        TargetRecorder::begin_hand_over(&mut recorder, SESSION, Mode::StopCopy, b"state", None).unwrap();
        assert_eq!(place(&recorder, Role::Target), Some(Place::Between));
    }
}
