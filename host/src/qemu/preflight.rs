//! Everything that stands in the way of a migration, found before it begins, all at once.

use std::fmt;

use dunlin_core::strategy::{Slow, SwitchRule};
use serde_json::json;

use super::{Client, Plan, QmpError, Side, Version};

/// The first version with all that steering needs.
const OLDEST: Version = version(7, 2);
/// From this one on, pages may travel by several connections, and the rest in post-copy. 10.0 refuses it, and before that the guest is lost
/// (docs of Nova, nova/conf/libvirt.py).
const MULTIFD_WITH_POST_COPY: Version = version(10, 1);
/// What 7.2 speaks on the connection for urgent pages is not what later ones do: hw/core/machine.c of 10.2, x-preempt-pre-7-2.
const PREEMPT_OF_TODAY: Version = version(8, 0);
/// QEMU's own limit, unless another is set: MAX_THROTTLE of migration/migration.c.
const USUAL_BANDWIDTH: u64 = 128 << 20;

const fn version(major: u32, minor: u32) -> Version {
    Version { major, minor, micro: 0 }
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The migration cannot be.
    Error,
    /// It can, and may disappoint.
    Warning,
    /// Good to know.
    Note,
}

/// Something that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, and what to do.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{severity}: {}", self.text)
    }
}

/// What stands in the way of `plan` between these two, worst first. Changes nothing that is not put back at once: whether the target can take
/// page faults is known only when it is told to.
///
/// # Errors
/// [`QmpError`] if one does not answer.
pub(super) fn check(
    plan: &Plan,
    source: &Side,
    target: &Side,
    target_client: &Client,
) -> Result<Vec<Finding>, QmpError> {
    let mut findings = compare(plan, source, target);
    if plan.can_post_copy() && target.knows("postcopy-ram") && !target.has_on("postcopy-ram") {
        let set = |state: bool| {
            let capabilities = json!({ "capabilities": [{ "capability": "postcopy-ram", "state": state }] });
            target_client.execute("migrate-set-capabilities", &capabilities)
        };
        match set(true) {
            Ok(_) => drop(set(false)?),
            Err(QmpError::Refused { reason, .. }) => findings.push(Finding {
                severity: Severity::Error,
                text: format!(
                    "the target cannot do post-copy ({reason}): give its process CAP_SYS_PTRACE, or set \
                     vm.unprivileged_userfaultfd=1, or take a strategy without post-copy, --strategy precopy"
                ),
            }),
            Err(error) => return Err(error),
        }
    }
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// What can be seen without asking more.
fn compare(plan: &Plan, source: &Side, target: &Side) -> Vec<Finding> {
    let mut findings = vec![];
    let mut find = |severity, text: String| findings.push(Finding { severity, text });
    for (name, side) in [("source", source), ("target", target)] {
        if side.version < OLDEST {
            find(
                Severity::Error,
                format!(
                    "the {name} is QEMU {}: {OLDEST} is the oldest that can be steered",
                    side.version
                ),
            );
        }
        for capability in plan.capabilities().into_iter().filter(|it| !side.knows(it)) {
            find(
                Severity::Error,
                format!(
                    "the {name}, QEMU {}, has no {capability}: leave out what needs it, or take a newer QEMU",
                    side.version
                ),
            );
        }
        if plan.can_post_copy() && side.has_on("release-ram") {
            find(
                Severity::Warning,
                format!(
                    "release-ram is on at the {name}: if the network fails in post-copy, the guest cannot be saved"
                ),
            );
        }
        if plan.multifd.is_some() && side.has_on("xbzrle") {
            find(
                Severity::Error,
                format!("xbzrle is on at the {name}, and excludes --multifd: switch one of them off"),
            );
        }
    }
    same(&mut find, "machine type", &source.machine, &target.machine, "-machine");
    same(&mut find, "processor", &source.processor, &target.processor, "-cpu");
    same(
        &mut find,
        "number of processors",
        &source.processors,
        &target.processors,
        "-smp",
    );
    same(&mut find, "memory in bytes", &source.memory, &target.memory, "-m");
    if target.version < source.version {
        find(
            Severity::Warning,
            format!(
                "the target is older than the source ({} and {}): devices may have a state that it does not know",
                target.version, source.version
            ),
        );
    }
    states(&mut find, source, target);
    if plan.multifd.is_some() && plan.can_post_copy() && source.version.min(target.version) < MULTIFD_WITH_POST_COPY {
        find(
            Severity::Error,
            format!(
                "--multifd and post-copy exclude each other before QEMU {MULTIFD_WITH_POST_COPY}: leave out --multifd, or take a strategy \
                 without post-copy, --strategy precopy"
            ),
        );
    }
    if plan.preempt && (source.version < PREEMPT_OF_TODAY) != (target.version < PREEMPT_OF_TODAY) {
        find(
            Severity::Error,
            format!(
                "--preempt does not work between QEMU {} and {}: versions before and from {PREEMPT_OF_TODAY} on speak differently; leave it out",
                source.version, target.version
            ),
        );
    }
    if plan.can_post_copy() && !(plan.uri.starts_with("tcp:") || plan.uri.starts_with("unix:")) {
        find(
            Severity::Error,
            format!(
                "post-copy needs a connection that goes both ways: --to tcp:HOST:PORT or unix:PATH, not {}",
                plan.uri
            ),
        );
    }
    if plan.slow == Slow::DirtyLimit && !source.kvm {
        find(
            Severity::Error,
            "dirty-limit needs KVM with a dirty ring: -accel kvm,dirty-ring-size=4096".into(),
        );
    }
    if source.version < version(8, 0) && !source.kvm && is_amd_like(&source.processor) {
        find(
            Severity::Warning,
            format!(
                "under TCG, guests with {} were seen to panic on the target with QEMU 7.2; Intel-like models (-cpu Nehalem) were not",
                source.processor
            ),
        );
    }
    if plan.bandwidth.is_none() && source.parameters["max-bandwidth"].as_u64() == Some(USUAL_BANDWIDTH) {
        find(
            Severity::Note,
            "QEMU's limit of 128 MiB/s is lifted for this migration; --bandwidth sets another".into(),
        );
    }
    if matches!(plan.rule, SwitchRule::Never | SwitchRule::Qemu) && plan.slow == Slow::None {
        find(
            Severity::Note,
            "pre-copy alone may never end, or pause the guest for long: a strategy with post-copy, or slow=auto-converge, ends it".into(),
        );
    }
    findings
}

fn same<T: PartialEq + fmt::Display>(
    find: &mut impl FnMut(Severity, String),
    what: &str,
    source: &T,
    target: &T,
    option: &str,
) {
    if source != target {
        find(
            Severity::Error,
            format!("the {what} differs, {source} and {target}: start the target with the source's {option}"),
        );
    }
}

fn states(find: &mut impl FnMut(Severity, String), source: &Side, target: &Side) {
    if source.migration.phase.is_going_on() {
        find(
            Severity::Error,
            format!(
                "the source is migrating already ({}): `dunlin qemu watch` follows it, `dunlin qemu resume` takes it over",
                source.migration.phase
            ),
        );
    }
    if source.guest.name == "inmigrate" {
        find(
            Severity::Error,
            "the source waits for a guest itself: are --source and --target mixed up?".into(),
        );
    } else if !source.guest.running && source.guest.name != "paused" {
        find(
            Severity::Error,
            format!(
                "the source's guest does not run ({}): it may be elsewhere already",
                source.guest.name
            ),
        );
    }
    if target.guest.name != "inmigrate" {
        find(
            Severity::Error,
            format!(
                "the target does not wait for a guest ({}): start it with -incoming defer",
                target.guest.name
            ),
        );
    }
    for reason in &source.migration.blocked {
        find(
            Severity::Error,
            format!("the source's guest cannot be migrated: {reason}"),
        );
    }
}

fn is_amd_like(processor: &str) -> bool {
    let name = processor.strip_suffix("-x86_64-cpu").unwrap_or(processor);
    ["max", "qemu64", "EPYC", "Opteron", "phenom", "athlon"]
        .iter()
        .any(|known| name.starts_with(known))
}
