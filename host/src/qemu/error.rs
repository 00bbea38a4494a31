//! What can go wrong with a QEMU.

use std::io;

use super::Address;

/// Why a QEMU does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens.
    #[error("No QEMU listens at {address}; start it with -qmp {address},server=on,wait=off")]
    Connect {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },

    /// Somebody listens, and says nothing.
    #[error(
        "{0} does not greet; QEMU serves one client at a socket: end the other one (libvirt?), or give QEMU a second -qmp"
    )]
    Busy(Address),

    /// What came is no QMP.
    #[error(
        "What the QMP socket says is no QMP ({0}); is it the socket of another protocol, such as the human monitor's?"
    )]
    NoQmp(String),

    /// A thread could not be started.
    #[error("Could not start a thread for QMP; raise `ulimit -u` or the pids limit of the cgroup")]
    Thread(#[source] io::Error),

    /// The connection broke.
    #[error("The QMP connection to {address} broke; has QEMU ended?")]
    Broken {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },

    /// No answer came.
    #[error(
        "QEMU at {address} does not answer {command}; its main loop hangs, as it may while post-copy waits for pages"
    )]
    Silent {
        /// Where.
        address: Address,
        /// The command.
        command: &'static str,
    },

    /// QEMU refused a command.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Which kind of error QEMU calls it, `CommandNotFound` for example.
        class: String,
        /// What it said.
        reason: String,
    },
}

impl QmpError {
    /// Whether QEMU does not know the command.
    pub fn is_unknown_command(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "CommandNotFound")
    }

    /// Whether nothing is to be had from this connection any more.
    pub const fn is_broken(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Connect { .. } | Self::Busy(_))
    }
}
