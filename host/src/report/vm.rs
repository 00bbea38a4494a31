//! What the processes that hold VMs print: where they listen, and what became of the VM.

use super::{GuestSchema, ReceiveSchema};
use crate::channel::Address;
use serde::{Deserialize, Serialize};

/// The end of a VM that halted after a given number of steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Which document this is.
    pub schema: GuestSchema,
    /// The steps that each vCPU made.
    pub steps: u64,
    /// BLAKE3 of the whole guest RAM in hexadecimal.
    pub ram_blake3: String,
}

impl GuestReport {
    /// The report of a guest whose vCPUs made `steps` steps each.
    pub fn new(steps: u64, ram_blake3: impl Into<String>) -> Self {
        Self {
            schema: GuestSchema,
            steps,
            ram_blake3: ram_blake3.into(),
        }
    }
}

/// The first line of `dunlin receive --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveReport {
    /// Which document this is.
    pub schema: ReceiveSchema,
    /// Where it listens, with the port the system chose if 0 was asked for.
    pub listening: Address,
}

impl ReceiveReport {
    /// The report of a receiver that listens at `listening`.
    pub const fn new(listening: Address) -> Self {
        Self {
            schema: ReceiveSchema,
            listening,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_are_the_contract() {
        assert_eq!(
            serde_json::to_string(&GuestReport::new(5, "ab")).unwrap(),
            r#"{"schema":"dunlin.guest.v1","steps":5,"ram_blake3":"ab"}"#
        );
        assert_eq!(
            serde_json::to_string(&ReceiveReport::new("127.0.0.1:7000".parse().unwrap())).unwrap(),
            r#"{"schema":"dunlin.receive.v1","listening":"127.0.0.1:7000"}"#
        );
    }
}
