//! Strategies and workloads as somebody may type them: reading never panics, and what is read prints to the same value.

use dunlin_core::strategy::Strategy;
use dunlin_core::units::Bytes;
use dunlin_core::workload::{Plan, Spec};

/// The check.
pub(crate) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(strategy) = text.parse::<Strategy>() {
        assert_eq!(strategy.to_string().parse(), Ok(strategy));
    }
    if let Ok(spec) = text.parse::<Spec>() {
        assert_eq!(spec.to_string().parse(), Ok(spec.clone()));
        // Any workload either fits a guest or says why not.
        for vcpus in 0..6 {
            let _ = Plan::new(&spec, Bytes(32 << 20), vcpus);
        }
    }
}
