//! What confines the processes that hold guests.

use super::Probe;
use crate::trust::sandbox::{Offered, offered};

const USE: &str = "keeping whoever takes a process over from the files of its user";

pub(super) fn probes() -> [Probe; 1] {
    let name = "sandbox";
    let fix = "use Linux 6.12 or newer, built with CONFIG_SECURITY_LANDLOCK and booted with landlock in lsm=";
    [match offered() {
        Ok(Offered::Everything) => Probe::ok(name, USE, "Landlock, all of it".into()),
        Ok(Offered::Part) => Probe::limited(name, USE, "Landlock, but an older one".into(), fix),
        Ok(Offered::Nothing) => Probe::limited(name, USE, "no Landlock".into(), fix),
        Err(error) => Probe::limited(name, USE, crate::report::chain(&error), fix),
    }]
}
