//! `dunlin qemu`: migrations between two stock QEMUs.

mod migrate;
mod view;
mod watch;

use std::process::ExitCode;

use clap::Subcommand;
use dunlin_core::strategy::{Slow, Strategy, SwitchRule};

use super::CliError;
use crate::qemu::{Outcome, Report, qemu_table};

/// Move guests of stock QEMU.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Move the guest of one QEMU into another one that was started with -incoming defer.
    Migrate(Box<migrate::Args>),
    /// Take over a migration whose driver has ended: steer it on, connect again after a cut, put settings back.
    Resume(Box<migrate::Args>),
    /// Follow a migration that somebody else has begun: where it leads, and what each rule would do. Never acts.
    Watch(watch::Args),
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Migrate(args) => args.run(),
            Command::Resume(args) => args.resume(),
            Command::Watch(args) => args.run(),
        }
    }
}

/// What of a strategy can be had from QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rule {
    switch: SwitchRule,
    slow: Slow,
}

/// A switch rule by its name, or a strategy of which QEMU can do everything but its order of pages.
fn rule(text: &str) -> Result<Rule, String> {
    if let Ok(switch) = SwitchRule::parse(text) {
        return Ok(Rule {
            switch,
            slow: Slow::None,
        });
    }
    // Ours, that chooses: between QEMU's pre-copy and post-copy, that is this rule.
    if text == "auto" {
        return rule("optimal");
    }
    let strategy = Strategy::parse(text).map_err(|error| {
        let rules = SwitchRule::AVAILABLE.join(", ");
        format!("{error}; or a rule for the switch alone: {rules}")
    })?;
    let usual = Strategy {
        switch: strategy.switch,
        slow: strategy.slow,
        push: strategy.push,
        cut: strategy.cut,
        ..Strategy::with_switch(strategy.switch)
    };
    if strategy != usual {
        return Err(format!(
            "QEMU sends pages by itself: of {text}, only what switch= and slow= say can be had; write switch={},slow={}",
            strategy.switch, strategy.slow
        ));
    }
    Ok(Rule {
        switch: strategy.switch,
        slow: strategy.slow,
    })
}

fn finish(report: &Report, json: bool) -> Result<ExitCode, CliError> {
    if json {
        super::output::json(&report.to_json())?;
    } else {
        super::output::result(&qemu_table(report, super::output::paint()))?;
    }
    Ok(match report.outcome {
        Outcome::Completed => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_strategies_are_understood() {
        let switch = |text| rule(text).map(|rule| rule.switch);
        assert_eq!(switch("sdf:auto"), Ok(SwitchRule::SdfAuto));
        assert_eq!(switch("as-hybrid"), Ok(SwitchRule::Lambda));
        assert_eq!(switch("precopy"), Ok(SwitchRule::Never));
        assert_eq!(switch("postcopy"), Ok(SwitchRule::Rounds(0)));
        assert_eq!(switch("auto"), Ok(SwitchRule::OPTIMAL));
        assert_eq!(
            rule("precopy,slow=auto-converge").map(|rule| rule.slow),
            Ok(Slow::AutoConverge)
        );
        for text in ["par-migrate", "as-hybrid,filter=markov"] {
            let error = switch(text).unwrap_err();
            assert!(error.contains("QEMU sends pages by itself"), "{error}");
        }
        let error = switch("magic").unwrap_err();
        assert!(error.contains("kubevirt-stall"), "{error}");
    }
}
