//! Hand-over records of both roles, in the journal if there is one.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dunlin_core::message::{SessionId, VmId};
use dunlin_core::migrate::{SourceRecord, TargetRecord};

use super::node::lock;
use super::source::SourceRecorder;
use super::target::TargetRecorder;
use crate::channel::Address;
use crate::journal::{HandOver, Journal, JournalError, Phase, Role};

/// Writes records for one VM; without a state directory it keeps none, and a crash of the process leaves no trace.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    journal: Option<Arc<Mutex<Journal>>>,
    vm: VmId,
    peer: Option<String>,
    control: Option<String>,
}

impl Recorder {
    pub(super) fn open(
        state: Option<&Path>,
        name: &str,
        vm: VmId,
        control: Option<String>,
    ) -> Result<Self, JournalError> {
        let journal = state.map(|directory| Journal::open(directory, name)).transpose()?;
        Ok(Self {
            journal: journal.map(|journal| Arc::new(Mutex::new(journal))),
            vm,
            peer: None,
            control,
        })
    }

    pub(super) fn without_journal(vm: VmId) -> Self {
        Self {
            journal: None,
            vm,
            peer: None,
            control: None,
        }
    }

    pub(super) fn for_session(&self, peer: &Address) -> Self {
        Self {
            peer: Some(peer.to_string()),
            ..self.clone()
        }
    }

    pub(super) fn for_vm(&self, vm: VmId) -> Self {
        Self { vm, ..self.clone() }
    }

    pub(super) fn write(&self, session: SessionId, role: Role, phase: Phase) -> Result<(), JournalError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let hand_over = HandOver {
            vm_id: self.vm,
            session,
            role,
            phase,
            peer: self.peer.clone(),
            control: self.control.clone(),
        };
        lock(journal).write(hand_over).map(drop)
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
}
