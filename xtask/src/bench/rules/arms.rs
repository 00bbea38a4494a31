//! The rules that are compared, the guests, and what all of them are given.

use std::time::Duration;

use anyhow::Context as _;
use dunlin_core::units::{Bytes, BytesPerSec};
use dunlin_tests::linux::Workload;

/// QEMU's own pre-copy, by which it is judged what a guest needs.
pub(super) const QEMU: &str = "qemu";
/// What is judged.
pub(super) const OPTIMAL: &str = "optimal";

/// What may be sent per second, in pre-copy and in post-copy. The memcached and the stressor write more in the 300 ms of
/// [`DOWNTIME`] than can be sent in them, so that pre-copy does not end; the compiler and the idle guest do not.
pub(super) const BANDWIDTH: BytesPerSec = BytesPerSec(48_000_000);
/// Longest pause: QEMU's default.
pub(super) const DOWNTIME: Duration = Duration::from_millis(300);
/// Of every guest; see [`LinuxOptions::new`](dunlin_tests::linux::LinuxOptions::new).
pub(super) const MEMORY: Bytes = Bytes(256 << 20);
/// A migration that has not ended by then is cancelled, if it can be: ten copies, and nearly twice the window of `kubevirt-stall`.
pub(super) const LIMIT: Duration = Duration::from_secs(55);

/// The guest that KubeVirt's window of 40 s is taken to be made for: so much memory…
const TYPICAL_MEMORY: Bytes = Bytes(1 << 30);
/// …over such a link. One copy takes 8 s.
const TYPICAL_BANDWIDTH: BytesPerSec = BytesPerSec(128 << 20);
/// KubeVirt's own window.
const TYPICAL_WINDOW: Duration = Duration::from_secs(40);

/// A way to move a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Arm {
    /// What it is called in tables.
    pub(super) name: &'static str,
    /// What `dunlin qemu migrate --strategy` is given.
    pub(super) strategy: String,
}

/// All of them.
pub(super) fn arms() -> Vec<Arm> {
    let arm = |name, strategy: &str| Arm {
        name,
        strategy: strategy.to_owned(),
    };
    let window = stall_window(MEMORY, BANDWIDTH);
    vec![
        arm(QEMU, "qemu"),
        arm("auto-converge", "precopy,switch=qemu,slow=auto-converge"),
        arm("libvirt", "rounds:1"),
        arm("kubevirt-stall", &format!("kubevirt-stall:{}ms", window.as_millis())),
        arm("lambda", "lambda"),
        arm("sdf:auto", "sdf:auto"),
        arm(OPTIMAL, "optimal"),
    ]
}

/// KubeVirt's window for a guest of this memory over this link: as many copies long as its 40 s are where 1 GiB is sent at
/// 128 MiB/s. With M bytes at B bytes per second,
///
/// W = 40 s · (M / B) / 8 s.
///
/// Unscaled, it would be seven copies of these guests instead of five.
pub(super) fn stall_window(memory: Bytes, bandwidth: BytesPerSec) -> Duration {
    let copy = |memory: Bytes, bandwidth: BytesPerSec| memory.0 as f64 / bandwidth.0 as f64;
    TYPICAL_WINDOW.mul_f64(copy(memory, bandwidth) / copy(TYPICAL_MEMORY, TYPICAL_BANDWIDTH))
}

/// The guests by their names.
pub(super) const GUESTS: [(&str, Workload); 4] = [
    ("memcached", Workload::memcached()),
    ("compile", Workload::Compile),
    ("stress-vm", Workload::stress_vm()),
    ("idle", Workload::Idle),
];

/// Those guests whose names are in `names`, separated by commas; all without it.
///
/// # Errors
/// If there is no such guest.
pub(super) fn guests(names: Option<&str>) -> anyhow::Result<Vec<(&'static str, Workload)>> {
    let Some(names) = names else {
        return Ok(GUESTS.into());
    };
    let find = |name: &str| {
        let found = GUESTS.into_iter().find(|guest| guest.0 == name);
        let there_are = GUESTS.map(|guest| guest.0).join(", ");
        found.with_context(|| format!("no guest is called `{name}`; there are: {there_are}"))
    };
    names.split(',').map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_five_copies() {
        let window = |memory, bandwidth| stall_window(Bytes(memory), BytesPerSec(bandwidth));
        assert_eq!(window(1 << 30, 128 << 20), Duration::from_secs(40));
        assert_eq!(window(256 << 20, 32 << 20), Duration::from_secs(40));
        assert_eq!(window(256 << 20, 64 << 20), Duration::from_secs(20));
        assert_eq!(stall_window(MEMORY, BANDWIDTH).as_millis(), 27_962);
    }

    #[test]
    fn guests_are_found_by_name() {
        assert_eq!(guests(None).expect("all").len(), 4);
        let chosen = guests(Some("idle,memcached")).expect("both are there");
        assert_eq!((chosen[0].0, chosen[1].0, chosen.len()), ("idle", "memcached", 2));
        assert!(guests(Some("idle,")).is_err());
    }

    #[test]
    fn what_is_judged_is_among_the_arms() {
        let arms = arms();
        for name in [QEMU, OPTIMAL] {
            assert!(arms.iter().any(|arm| arm.name == name), "{name}");
        }
        assert_eq!(arms[3].strategy, "kubevirt-stall:27962ms");
    }
}
