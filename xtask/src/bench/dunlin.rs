//! Migrations by the `dunlin` command, as the groups need them.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dunlin_tests::Capability;
use dunlin_tests::process;
use dunlin_tests::scene::{GuestOptions, Host, Kind, Scene};
use serde_json::Value;

/// A release build of `dunlin`, and the kind of guest this machine can run.
pub(crate) struct Dunlin {
    program: PathBuf,
    /// What executes the guests.
    pub(crate) kind: Kind,
}

impl Dunlin {
    pub(crate) fn build() -> anyhow::Result<Self> {
        let kind = match Capability::Kvm.probe() {
            Ok(()) => Kind::Kvm,
            Err(why) => {
                eprintln!("There is no KVM here ({why}): guests are threads of a process instead.");
                Kind::Thread
            }
        };
        Ok(Self::new(process::build(true)?, kind))
    }

    /// One that was built already.
    pub(crate) const fn new(program: PathBuf, kind: Kind) -> Self {
        Self { program, kind }
    }

    /// Where it is.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn scene(&self) -> anyhow::Result<Scene> {
        Scene::with_program(&self.program)
    }

    /// Starts `guest`, moves it once, and ends both sides; the migration's report.
    pub(crate) fn migrate(
        &self,
        guest: &GuestOptions,
        receiver: &[&str],
        strategy: &str,
        migration: &[&str],
    ) -> anyhow::Result<Value> {
        let scene = self.scene()?;
        let target = scene.receiver("target", receiver)?;
        let source = scene.guest("source", guest)?;
        scene.migrate(&source, &target, strategy, migration)
    }

    /// Moves `guest` from process to process, `times` times; a report for each.
    pub(crate) fn migrate_on(
        &self,
        guest: &GuestOptions,
        strategy: &str,
        times: usize,
        mut each: impl FnMut(&Host, &Host, Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let scene = self.scene()?;
        let mut holder = scene.guest("guest", guest)?;
        for hop in 0..times {
            let target = scene.receiver(&format!("hop-{hop}"), &[])?;
            let report = scene.migrate(&holder, &target, strategy, &[])?;
            each(&holder, &target, report)?;
            holder.moved_away()?;
            holder = target;
        }
        Ok(())
    }
}

/// A number in a report.
pub(crate) fn number(report: &Value, pointer: &str) -> anyhow::Result<f64> {
    let value = report.pointer(pointer).and_then(Value::as_f64);
    value.with_context(|| format!("the report has no number at {pointer}: {report}"))
}
