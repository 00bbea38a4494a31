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

/// Memory of which QEMU reads the dirty log a word at a time. Under TCG, stores are not noticed afterwards before 9.0
/// (`cpu_physical_memory_sync_dirty_bitmap` of include/exec/ram_addr.h; mended by "physmem: Fix migration dirty bitmap coherency with TCG
/// memory access"): seen with 7.2.
const WORD_OF_PAGES: u64 = 64 * 4096;
/// The first version without that.
const TCG_NOTICES_STORES: Version = version(9, 0);

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
        if side.is_libvirts {
            find(
                Severity::Error,
                format!(
                    "the {name} is a domain of libvirt, which would not learn that the guest has moved, and could run it twice: move it by \
                     virsh migrate; `dunlin qemu watch` follows that"
                ),
            );
        }
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
    if source.has_free_page_hints != target.has_free_page_hints {
        find(
            Severity::Error,
            "free-page-hint=on is at one balloon only, and the target would not take the other's state: start both sides with the same devices".into(),
        );
    }
    let mut there = target.devices.clone();
    let lacks = source.devices.iter().filter(|device| {
        let found = there.iter().position(|other| other == *device);
        found.map(|at| there.swap_remove(at)).is_none()
    });
    let lacks: Vec<&str> = lacks.map(String::as_str).collect();
    if !lacks.is_empty() {
        find(
            Severity::Warning,
            format!(
                "the target lacks {} of the source's devices, and may refuse what it is sent in the end: start it with the source's -device options, \
                 in the same order",
                lacks.join(", ")
            ),
        );
    }
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
    if let Some(id) = &plan.tls_creds {
        for (name, side, endpoint) in [("source", source, "client"), ("target", target, "server")] {
            if !side.credentials.contains(id) {
                find(
                    Severity::Error,
                    format!(
                        "the {name} has no TLS credentials {id}: start it with -object tls-creds-x509,id={id},dir=…,endpoint={endpoint}"
                    ),
                );
            }
        }
    }
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
    if source.version < TCG_NOTICES_STORES && !source.kvm && source.memory.is_multiple_of(WORD_OF_PAGES) {
        find(
            Severity::Warning,
            format!(
                "under TCG, QEMU {} loses what a guest with a multiple of 256 KiB of memory writes during pre-copy, from its second pass on: the \
                 guest may be damaged; start both sides with 8 KiB more (-m {}B), or with KVM",
                source.version,
                source.memory + 8192
            ),
        );
    }
    if plan.bandwidth.is_none() && source.parameters["max-bandwidth"].as_u64() == Some(USUAL_BANDWIDTH) {
        find(
            Severity::Note,
            "QEMU's limit of 128 MiB/s is lifted for this migration; --bandwidth sets another".into(),
        );
    }
    if plan.agent.is_some() && !plan.can_post_copy() && !source.hints_free_pages(plan) {
        find(
            Severity::Note,
            "without post-copy, a balloon that asks for free pages while they are copied takes no time before: start both sides with \
             -object iothread,id=hints -device virtio-balloon,free-page-hint=on,iothread=hints"
                .into(),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{GuestStatus, Info, Phase};
    use super::*;

    fn side(version_of: Version, status: &str) -> Side {
        Side {
            version: version_of,
            machine: "pc".into(),
            processor: "cpu".into(),
            processors: 1,
            memory: 1 << 30,
            kvm: true,
            capabilities: ["events", "postcopy-ram", "multifd", "postcopy-preempt"]
                .map(|name| (name.to_owned(), false))
                .into(),
            parameters: json!({ "max-bandwidth": USUAL_BANDWIDTH }),
            is_libvirts: false,
            has_free_page_hints: false,
            devices: vec!["e1000".into(), "virtio-balloon-pci".into()],
            credentials: vec![],
            guest: GuestStatus {
                running: status == "running",
                name: status.into(),
            },
            migration: Info::default(),
        }
    }

    fn plan() -> Plan {
        Plan {
            source: super::super::Address::Tcp("a:1".into()),
            target: super::super::Address::Tcp("b:1".into()),
            uri: "tcp:b:2".into(),
            listen: None,
            recover: vec![],
            rule: SwitchRule::OPTIMAL,
            slow: Slow::None,
            bandwidth: None,
            postcopy_bandwidth: None,
            downtime: Duration::from_millis(300),
            max_rounds: 30,
            drain: None,
            network_timeout: Duration::from_secs(15),
            agent: None,
            target_agent: None,
            agent_timeout: Duration::from_secs(30),
            reserve: None,
            multifd: None,
            preempt: false,
            tls_creds: None,
            tls_hostname: None,
        }
    }

    fn found(plan: &Plan, source: &Side, target: &Side) -> String {
        compare(plan, source, target)
            .iter()
            .map(|finding| format!("{finding}\n"))
            .collect()
    }

    /// Nothing but the note about bandwidth where all is well.
    #[test]
    fn each_obstacle_is_named() {
        let (source, target) = (side(version(8, 2), "running"), side(version(8, 2), "inmigrate"));
        let well = found(&plan(), &source, &target);
        assert_eq!(well.lines().count(), 1, "{well}");
        assert!(well.starts_with("note: QEMU's limit of 128 MiB/s"), "{well}");
        type Change = fn(&mut Plan, &mut Side, &mut Side);
        let changes: [(Change, &str); 21] = [
            (
                |_, source, _| source.is_libvirts = true,
                "error: the source is a domain of libvirt",
            ),
            (
                |_, source, _| source.version = version(6, 2),
                "error: the source is QEMU 6.2.0",
            ),
            (
                |plan, _, _| plan.slow = Slow::DirtyLimit,
                "error: the target, QEMU 8.2.0, has no dirty-limit",
            ),
            (
                |plan, _, _| plan.multifd = Some(2),
                "error: --multifd and post-copy exclude each other",
            ),
            (
                |_, _, target| target.memory = 1,
                "error: the memory in bytes differs, 1073741824 and 1",
            ),
            (
                |_, _, target| target.machine = "q35".into(),
                "error: the machine type differs, pc and q35",
            ),
            (
                |_, _, target| target.processor = "max".into(),
                "error: the processor differs",
            ),
            (
                |_, _, target| target.processors = 2,
                "error: the number of processors differs, 1 and 2",
            ),
            (
                |_, _, target| target.version = version(7, 2),
                "warning: the target is older",
            ),
            (
                |_, source, _| source.migration.phase = Phase::Active,
                "error: the source is migrating already (pre-copy)",
            ),
            (|_, source, _| source.guest.name = "inmigrate".into(), "mixed up"),
            (
                |_, _, target| target.has_free_page_hints = true,
                "error: free-page-hint=on is at one balloon only",
            ),
            (
                |_, source, _| source.devices.push("e1000".into()),
                "warning: the target lacks e1000 of the source's devices",
            ),
            (
                |_, source, _| {
                    source.guest = GuestStatus {
                        running: false,
                        name: "postmigrate".into(),
                    };
                },
                "error: the source's guest does not run (postmigrate)",
            ),
            (
                |_, _, target| target.guest.name = "running".into(),
                "error: the target does not wait for a guest (running)",
            ),
            (
                |_, source, _| source.migration.blocked.push("a disk".into()),
                "cannot be migrated: a disk",
            ),
            (
                |plan, _, _| plan.uri = "exec:cat".into(),
                "error: post-copy needs a connection that goes both ways",
            ),
            (
                |plan, source, _| {
                    plan.tls_creds = Some("tls0".into());
                    source.credentials.push("tls0".into());
                },
                "error: the target has no TLS credentials tls0: start it with -object tls-creds-x509,id=tls0,",
            ),
            (
                |plan, _, _| {
                    plan.rule = SwitchRule::Never;
                    plan.agent = Some(plan.source.clone());
                },
                "note: without post-copy, a balloon that asks for free pages",
            ),
            (
                |plan, _, _| plan.rule = SwitchRule::Never,
                "note: pre-copy alone may never end",
            ),
            (
                |_, source, target| {
                    (source.version, source.kvm) = (version(7, 2), false);
                    target.version = version(7, 2);
                },
                "warning: under TCG, QEMU 7.2.0 loses",
            ),
        ];
        for (change, text) in changes {
            let (mut plan, mut source, mut target) = (plan(), source.clone(), target.clone());
            change(&mut plan, &mut source, &mut target);
            let found = found(&plan, &source, &target);
            assert!(found.contains(text), "{text}: {found}");
        }
        let (mut asking, mut hinting) = (plan(), source.clone());
        (asking.rule, asking.agent) = (SwitchRule::Never, Some(asking.source.clone()));
        hinting.has_free_page_hints = true;
        let mut also = target.clone();
        also.has_free_page_hints = true;
        let asked = found(&asking, &hinting, &also);
        assert!(!asked.contains("a balloon that asks"), "{asked}");
        assert!(!hinting.hints_free_pages(&plan()), "post-copy may follow");
        hinting.capabilities.insert("postcopy-ram".into(), true);
        assert!(!hinting.hints_free_pages(&asking), "QEMU allows for post-copy");
        let mut preempt = plan();
        preempt.preempt = true;
        let old = side(version(7, 2), "running");
        let found = found(&preempt, &old, &target);
        assert!(
            found.contains("error: --preempt does not work between QEMU 7.2.0 and 8.2.0"),
            "{found}"
        );
    }
}
