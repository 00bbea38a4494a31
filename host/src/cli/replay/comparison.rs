//! Several rules beside each other on one log.

use super::{CliError, Scene, output, painted, time, time_if_known};
use crate::{
    replay::Trial,
    report::{Paint, count},
};
use comfy_table::{CellAlignment, Table, TableComponent, presets};
use dunlin_core::switch::{Decision, RoundEnd, Verdict};

/// Shows what each rule did, once the log has ended.
pub(super) fn show(
    log: impl Iterator<Item = Result<RoundEnd, CliError>>,
    trials: &mut [Trial],
    scene: Scene,
) -> Result<(), CliError> {
    let mut last = None;
    let mut verdicts = vec![None; trials.len()];
    for end in log {
        let end = end?;
        for (trial, verdict) in trials.iter_mut().zip(&mut verdicts) {
            *verdict = trial.on_round(&end).or(*verdict);
        }
        last = Some(end);
    }
    // The log reader lets no log without rounds pass.
    let Some(last) = last else { return Ok(()) };
    let mut text = format!("{} rules about {}\n\n", trials.len(), scene.describe());
    text += &table(trials, &verdicts, &last, output::paint());
    let undecided = trials.iter().filter(|trial| trial.ending().is_none()).count();
    text += &match undecided {
        0 => format!("\nEvery rule decides before the log ends after round {}.\n", last.round),
        1 => format!(
            "\nThe log ends after round {} without a decision by 1 rule.\n",
            last.round
        ),
        _ => format!(
            "\nThe log ends after round {} without a decision by {undecided} rules.\n",
            last.round
        ),
    };
    output::result(&text)
}

fn table(trials: &[Trial], verdicts: &[Option<Verdict>], last: &RoundEnd, paint: Paint) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    table.set_header([
        "rule",
        "decision",
        "after round",
        "at",
        "sent pages",
        "pages left",
        "rest takes",
        "reason",
    ]);
    for (trial, verdict) in trials.iter().zip(verdicts) {
        let reason = verdict.map_or(String::new(), |verdict| verdict.reason.to_string());
        let rule = trial.rule().to_string();
        table.add_row(match trial.ending() {
            Some(ending) => [
                rule,
                painted(ending.verdict.decision, &ending.verdict.decision.to_string(), paint),
                ending.end.round.to_string(),
                time(ending.end.elapsed),
                count(ending.sent.0),
                count(ending.end.dirty.0),
                time_if_known(ending.rest_takes),
                reason,
            ],
            None => [
                rule,
                Decision::Continue.to_string(),
                "—".into(),
                "—".into(),
                count(trial.sent().0),
                count(last.dirty.0),
                time_if_known(trial.time_to_send(last.dirty)),
                reason,
            ],
        });
    }
    for index in 2..7 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}
