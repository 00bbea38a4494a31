//! What decides how a guest is built; the target of a migration builds the same again.

use dunlin_core::units::Bytes;
use dunlin_core::workload::{BootBlock, Fill, Spec};
use serde::{Deserialize, Serialize};

use super::GuestError;

/// Most bytes an encoded configuration may have: names and workloads are short.
const ENCODED_MAX: usize = 16 * 1024;

/// What runs the guest's code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// A virtual machine under KVM.
    Kvm,
    /// Threads of this process; for machines without KVM.
    Thread,
}

/// Everything that decides what a guest is and does. With equal configurations, after equal steps, all RAM is equal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestConfig {
    /// For people; no part of what the guest does. A guest without one logs nothing.
    pub name: String,
    /// What runs it.
    pub kind: GuestKind,
    /// RAM.
    pub memory: Bytes,
    /// vCPUs.
    pub vcpus: u32,
    /// The workload, in the grammar of the command line.
    pub workload: String,
    /// Where the workload's random numbers start.
    pub seed: u64,
    /// Steps each vCPU does before it halts; `None`: it never does.
    pub steps: Option<u64>,
    /// What memory holds before the start.
    pub fill: Fill,
    /// Whether a KVM guest has interrupt controllers in the kernel. The workloads need none.
    pub irqchip: bool,
}

impl GuestConfig {
    /// What the guest's program is told, checked: the workload exists and fits.
    ///
    /// # Errors
    /// [`GuestError::Workload`].
    pub fn boot_block(&self) -> Result<BootBlock, GuestError> {
        let unusable = |error: &dyn std::fmt::Display| GuestError::Workload(error.to_string());
        let spec: Spec = self.workload.parse().map_err(|error| unusable(&error))?;
        if self.steps == Some(0) {
            return Err(unusable(
                &"0 steps are no work; give --steps at least 1, or leave it out for an endless guest",
            ));
        }
        let boot = BootBlock {
            spec,
            seed: self.seed,
            steps: self.steps.unwrap_or(0),
            vcpus: self.vcpus,
            memory: self.memory,
            fill: self.fill,
        };
        boot.plan().map_err(|error| unusable(&error))?;
        Ok(boot)
    }

    /// As bytes for the other side of a migration.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("strings and numbers can always be encoded")
    }

    /// Reads what [`encode`](Self::encode) wrote. Only the form is checked; whether such a guest can be built shows
    /// when it is.
    ///
    /// # Errors
    /// [`GuestError::ConfigMalformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, GuestError> {
        if bytes.len() > ENCODED_MAX {
            return Err(GuestError::ConfigMalformed);
        }
        match postcard::take_from_bytes(bytes) {
            Ok((config, [])) => Ok(config),
            _ => Err(GuestError::ConfigMalformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuestConfig {
        GuestConfig {
            name: "alpha".into(),
            kind: GuestKind::Thread,
            memory: Bytes(32 << 20),
            vcpus: 2,
            workload: "uniform,rate=100".into(),
            seed: 7,
            steps: Some(1000),
            fill: Fill::Random,
            irqchip: false,
        }
    }

    #[test]
    fn the_other_side_reads_what_was_written() {
        let bytes = config().encode();
        assert_eq!(GuestConfig::decode(&bytes).unwrap(), config());
        for cut in 0..bytes.len() {
            assert!(
                matches!(GuestConfig::decode(&bytes[..cut]), Err(GuestError::ConfigMalformed)),
                "{cut} bytes"
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(GuestConfig::decode(&longer), Err(GuestError::ConfigMalformed)));
        assert!(matches!(
            GuestConfig::decode(&vec![0; ENCODED_MAX + 1]),
            Err(GuestError::ConfigMalformed)
        ));
    }
}
