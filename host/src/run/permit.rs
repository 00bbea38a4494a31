//! Whether a VM may leave this host: asked before anybody is connected to.

use dunlin_core::message::SessionId;
use dunlin_core::migrate::SourceOutcome;

use super::node::{Node, lock};
use super::recorder::{Attempt, Recorder};
use super::source::SourceOptions;
use crate::control::{Caller, ControlError, MigrateRequest};
use crate::guest::{AnyGuest, Guest as _};
use crate::journal::Role;
use crate::trust::Peer;
use crate::trust::audit::{Entry, Event, Outcome, Place};
use crate::trust::policy::{Direction, Turn};

/// A migration that may begin.
pub(super) struct Permit {
    /// Its name.
    pub(super) session: SessionId,
    /// What is kept of it.
    pub(super) recorder: Recorder,
    /// Counts as long as it is kept.
    pub(super) turn: Option<Turn>,
}

/// Says how a migration ended; without an outcome it could not begin.
pub(super) fn end(recorder: &Recorder, session: SessionId, outcome: Option<SourceOutcome>, reason: Option<String>) {
    let (outcome, place) = match outcome {
        Some(SourceOutcome::Completed) => (Outcome::Completed, Place::Elsewhere),
        Some(SourceOutcome::Aborted { .. }) | None => (Outcome::Aborted, Place::Here),
        Some(SourceOutcome::Refused(_)) => (Outcome::Refused, Place::Here),
        Some(SourceOutcome::GaveUp) => (Outcome::GivenUp, Place::Elsewhere),
        Some(SourceOutcome::Lost) => (Outcome::Lost, Place::Elsewhere),
    };
    recorder.end(Role::Source, session, outcome, place, reason);
}

impl Node {
    /// Asks the policy, and puts on record what it says. What it limits is limited in `options`.
    pub(super) fn permit(
        &self,
        caller: Caller,
        request: &MigrateRequest,
        options: &mut SourceOptions,
        guest: &AnyGuest,
    ) -> Result<Permit, ControlError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|_| ControlError::failed("the system gives no random numbers to name the migration: try again"))?;
        let session = SessionId(u128::from_le_bytes(id));
        // Whoever else answers there is hung up on.
        let expected = options.tls.as_ref().map(|(_, name)| name.as_str());
        let peer = Peer::at(&options.to, expected);
        let memory = guest.memory().layout().bytes();
        let recorder = lock(&self.recorder).for_attempt(Attempt {
            peer: Some(peer.clone()),
            address: Some(options.to.to_string()),
            uid: Some(caller.uid),
            strategy: Some(request.strategy.clone()),
            memory: Some(memory.0),
        });
        let name = lock(&self.name).clone();
        let allowed = self.guard.ask(Direction::Out, &peer, &name, memory).map_err(|denied| {
            self.guard.refuse(&recorder, Role::Source, session, &denied);
            ControlError::refused(format!(
                "this host's policy does not let VM {name:?} go to {} ({peer}): {}",
                options.to, denied.reason
            ))
        })?;
        recorder
            .accept(Role::Source, session, Some(allowed.rule))
            .map_err(|error| ControlError::refused(super::chain(&error)))?;
        if let Some(most) = allowed.bandwidth {
            options.bandwidth = Some(options.bandwidth.map_or(most, |wanted| wanted.min(most)));
        }
        Ok(Permit {
            session,
            recorder,
            turn: allowed.turn,
        })
    }

    /// Puts a person's decision on record.
    pub(super) fn tell_decision(&self, caller: Caller, what: &str) {
        let (vm, name) = (*lock(&self.vm), lock(&self.name).clone());
        let role = match self.is_receiving() {
            true => Role::Target,
            false => Role::Source,
        };
        let recorder = Recorder::without_journal(self.guard.audit(), vm).named(&name);
        recorder.tell(Entry {
            uid: Some(caller.uid),
            reason: Some(what.to_owned()),
            ..recorder.entry(Event::Decision, role, SessionId::default())
        });
    }
}
