//! A connection to a QEMU that is made again when it breaks.

use std::fs;
use std::io;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use dunlin_core::steer::Backoff;
use serde_json::Value;

use super::{Address, Client, Notice, QmpError};

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// That which has the guest at the beginning.
    Source,
    /// That which is to have it.
    Target,
}

impl Role {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// A connection to one of the two.
#[derive(Debug)]
pub(super) struct Link {
    role: Role,
    address: Address,
    client: Option<Client>,
    notices: Sender<(Role, Notice)>,
    backoff: Backoff,
    next_attempt: Instant,
    /// The process at the other end.
    peer: Option<u32>,
    gone: bool,
}

impl Link {
    pub(super) fn connect(role: Role, address: &Address, notices: Sender<(Role, Notice)>) -> Result<Self, QmpError> {
        let mut link = Self {
            role,
            address: address.clone(),
            client: None,
            notices,
            backoff: Backoff::new(),
            next_attempt: Instant::now(),
            peer: None,
            gone: false,
        };
        let client = link.open()?;
        (link.peer, link.client) = (client.peer(), Some(client));
        Ok(link)
    }

    fn open(&self) -> Result<Client, QmpError> {
        let (role, notices) = (self.role, self.notices.clone());
        // Whoever waits for nothing more has gone.
        Client::connect(&self.address, move |notice| drop(notices.send((role, notice))))
    }

    /// The connection, if there is one.
    pub(super) const fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Whether its process has ended: nobody listens at the socket file any more, and whoever did is not there. Of other hosts that cannot be
    /// known.
    pub(super) const fn is_gone(&self) -> bool {
        self.gone
    }

    /// It has ended.
    pub(super) fn lost(&mut self) {
        if self.client.take().is_some() {
            (self.backoff, self.next_attempt) = (Backoff::new(), Instant::now());
        }
    }

    /// Connects again if it is time for that; whether it is connected now.
    pub(super) fn keep(&mut self) -> bool {
        if self.client.is_some() {
            return true;
        }
        if Instant::now() < self.next_attempt {
            return false;
        }
        self.next_attempt = Instant::now() + Duration::from_nanos(self.backoff.next().0);
        match self.open() {
            Ok(client) => {
                (self.client, self.gone) = (Some(client), false);
                true
            }
            Err(error) => {
                self.gone = is_refused(&error) && self.peer.is_some_and(has_ended);
                false
            }
        }
    }

    pub(super) fn execute(&self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        self.connected()?.execute(command, arguments)
    }

    pub(super) fn execute_out_of_band(&self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        self.connected()?.execute_out_of_band(command, arguments)
    }

    pub(super) fn connected(&self) -> Result<&Client, QmpError> {
        self.client.as_ref().ok_or_else(|| QmpError::Broken {
            address: self.address.clone(),
            source: io::ErrorKind::NotConnected.into(),
        })
    }
}

/// Also one that its parent has not asked for yet: a zombie is still to be seen.
fn has_ended(process: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else {
        return true;
    };
    // Behind the name, in which there may be anything.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| state.starts_with(['Z', 'X']))
}

fn is_refused(error: &QmpError) -> bool {
    let QmpError::Connect { source, .. } = error else {
        return false;
    };
    matches!(
        source.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!has_ended(child.id()));
        child.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has_ended(child.id()) {
            assert!(Instant::now() < deadline, "nobody has asked for it, but it has ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
        assert!(has_ended(child.id()));
    }
}
