//! What several commands share: where to find a guest, and what a record says about it.

use super::{ANSWER_PATIENCE, CliError};
use crate::{
    channel::{Cancel, Wait},
    control::Client,
    journal::{self, Listed, Phase, Reading, Role},
    report::{State, Status},
};
use std::path::{Path, PathBuf};

/// A process that answers, or the records it keeps.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Place {
    /// Ask the process that serves this control socket
    #[arg(long, value_name = "SOCK")]
    pub(super) control: Option<PathBuf>,

    /// Read the hand-over records in this directory: works when the process is dead, too
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
}

/// Connects to the control socket at `path` and asks one question.
pub(super) fn ask<T>(
    path: &Path,
    question: impl FnOnce(&mut Client, Wait<'_>) -> Result<T, crate::control::ControlError>,
) -> Result<T, CliError> {
    let cancel = Cancel::new();
    let wait = Wait::within(ANSWER_PATIENCE, &cancel);
    Ok(question(&mut Client::connect(path, wait)?, wait)?)
}

/// The records in `directory`, of all VMs or of one.
pub(super) fn records(directory: &Path, name: Option<&str>) -> Result<Vec<Listed>, CliError> {
    let listed = match name {
        Some(name) => vec![Listed {
            vm_name: name.into(),
            reading: journal::read(directory, name),
        }],
        None => journal::list(directory)?,
    };
    if listed.is_empty() {
        return Err(journal::JournalError::NoRecord(directory.into()).into());
    }
    Ok(listed)
}

/// What a record says, for a process that cannot be asked itself.
pub(super) fn status_of(reading: &Reading) -> Status {
    let Some(record) = &reading.record else {
        let state = if reading.held { State::Waiting } else { State::Ended };
        return Status {
            name: Some(reading.vm_name.clone()),
            pid: reading.holder,
            ..Status::new(Role::Target, state)
        };
    };
    let hand_over = &record.hand_over;
    let state = if reading.held {
        state_while_held(hand_over.role, hand_over.phase)
    } else {
        state_when_dead(hand_over.role, hand_over.phase)
    };
    Status {
        name: Some(reading.vm_name.clone()),
        session: (hand_over.session.0 != 0).then(|| hand_over.session.to_string()),
        pid: reading.holder,
        reason: (!reading.held).then(|| record.meaning_when_dead().into()),
        ..Status::new(hand_over.role, state)
    }
}

const fn state_while_held(role: Role, phase: Phase) -> State {
    match (role, phase) {
        (_, Phase::Receiving) => State::PreCopy,
        (_, Phase::Ready | Phase::GivenUp) => State::Handover,
        (_, Phase::PostCopy) => State::PostCopy,
        (_, Phase::MovedAway) | (Role::Source, Phase::Complete) => State::MovedAway,
        (Role::Target, Phase::Aborted) => State::Waiting,
        (_, Phase::Running | Phase::Taken | Phase::Complete | Phase::Aborted) => State::Running,
    }
}

const fn state_when_dead(role: Role, phase: Phase) -> State {
    match (role, phase) {
        (Role::Source, Phase::GivenUp) => State::HandoverUnknown,
        (Role::Source, Phase::Complete | Phase::MovedAway) => State::MovedAway,
        _ => State::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{HandOver, Record};
    use dunlin_core::message::{SessionId, VmId};

    fn reading(role: Role, phase: Phase, holder: Option<u32>) -> Reading {
        let hand_over = HandOver {
            vm_id: VmId(1),
            session: SessionId(255),
            role,
            phase,
            peer: None,
            control: None,
        };
        let record = Record {
            sequence: 1,
            vm_name: "web".into(),
            pid: 7,
            unix_time_s: 0,
            hand_over,
        };
        Reading {
            vm_name: "web".into(),
            record: Some(record),
            held: holder.is_some(),
            holder,
        }
    }

    #[test]
    fn a_record_without_its_process_says_where_the_vm_is() {
        let status = status_of(&reading(Role::Source, Phase::GivenUp, None));
        assert_eq!((status.state, status.pid), (State::HandoverUnknown, None));
        assert!(status.reason.unwrap().contains("ask `dunlin status` at the target"));
        assert_eq!(status.session.unwrap(), format!("{:032x}", 255));
        assert_eq!(
            status_of(&reading(Role::Source, Phase::MovedAway, None)).state,
            State::MovedAway
        );
        assert_eq!(
            status_of(&reading(Role::Source, Phase::Running, None)).state,
            State::Ended
        );
        assert_eq!(
            status_of(&reading(Role::Target, Phase::Taken, None)).state,
            State::Ended
        );
    }

    #[test]
    fn a_record_with_its_process_says_what_it_does() {
        let status = status_of(&reading(Role::Target, Phase::Taken, Some(7)));
        assert_eq!(
            (status.state, status.pid, status.reason),
            (State::Running, Some(7), None)
        );
        assert_eq!(
            status_of(&reading(Role::Target, Phase::Receiving, Some(7))).state,
            State::PreCopy
        );
        assert_eq!(
            status_of(&reading(Role::Source, Phase::Aborted, Some(7))).state,
            State::Running
        );
        assert_eq!(
            status_of(&reading(Role::Target, Phase::Aborted, Some(7))).state,
            State::Waiting
        );
        let empty = Reading {
            record: None,
            ..reading(Role::Target, Phase::Ready, Some(7))
        };
        assert_eq!(status_of(&empty).state, State::Waiting);
    }
}
