//! One rule: what it made of each round, as a table, and in words how it ended.

use super::{CliError, Scene, output, painted, time, time_if_known};
use crate::{
    replay::{Ending, Trial},
    report::{Paint, count, milli},
};
use dunlin_core::{
    strategy::SwitchRule,
    switch::{Decision, Reason, RoundEnd, Verdict},
    units::{Nanos, Pages},
};

/// Shows rounds as they come: a log may be longer than what fits memory.
pub(super) fn show(
    log: impl Iterator<Item = Result<RoundEnd, CliError>>,
    trial: &mut Trial,
    scene: Scene,
) -> Result<(), CliError> {
    let paint = output::paint();
    let rule = paint.strong(&trial.rule().to_string());
    let columns = Columns::new(scene);
    if !output::offer(&format!("Rule {rule}: {}\n\n{}", scene.describe(), columns.header()))? {
        return Ok(());
    }
    let mut last = None;
    for end in log {
        let end = end?;
        let Some(verdict) = trial.on_round(&end) else { continue };
        if !output::offer(&columns.row(&end, &verdict, trial, paint))? {
            return Ok(());
        }
        last = Some(end);
    }
    let closing = match (trial.ending(), last) {
        (Some(ending), _) => ended(trial.rule(), ending, scene),
        (None, Some(end)) => unfinished(trial, &end, scene),
        // The log reader lets no log without rounds pass.
        (None, None) => String::new(),
    };
    output::result(&format!("\n{closing}\n"))
}

/// Widths, settled before the first row.
struct Columns {
    pages: usize,
}

impl Columns {
    fn new(scene: Scene) -> Self {
        Self {
            pages: count(scene.setting.total.0).len().max("dirty".len()),
        }
    }

    fn header(&self) -> String {
        let pages = self.pages;
        format!(
            "round  {:>9}  {:>pages$}  {:>pages$}  {:>6}  {:>6}  {:>10}  {:9}  reason\n",
            "time", "sent", "dirty", "λ", "SDF", "rest takes", "decision"
        )
    }

    fn row(&self, end: &RoundEnd, verdict: &Verdict, trial: &Trial, paint: Paint) -> String {
        let pages = self.pages;
        // The rule sets the first to 1, whatever the round did.
        let lambda = if end.round > 1 {
            milli(end.lambda_milli())
        } else {
            "—".into()
        };
        let decision = format!("{:9}", verdict.decision.to_string());
        format!(
            "{:5}  {:>9}  {:>pages$}  {:>pages$}  {lambda:>6}  {:>6}  {:>10}  {}  {}\n",
            end.round,
            time(end.duration),
            count(end.sent.0),
            count(end.dirty.0),
            milli(end.sdf_milli()),
            time_if_known(trial.time_to_send(end.dirty)),
            painted(verdict.decision, &decision, paint),
            verdict.reason
        )
    }
}

fn ended(rule: SwitchRule, ending: &Ending, scene: Scene) -> String {
    let Ending { end, verdict, .. } = ending;
    let when = format!("After round {}, {} into the migration", end.round, time(end.elapsed));
    let (rest, takes) = (scene.pages(end.dirty), about(ending.rest_takes));
    if verdict.decision == Decision::PostCopy {
        return format!(
            "{when}, {rule} switches to post-copy: the guest goes on at the target while {rest} are still to be sent, {takes}."
        );
    }
    if end.dirty == Pages::ZERO {
        return format!("{when}, {rule} stops the guest, with nothing left to send.");
    }
    let wanted = scene.setting.downtime;
    let too_long = verdict.reason != Reason::Fits && ending.rest_takes.is_none_or(|takes| takes > wanted);
    let excess = if too_long {
        format!(", instead of the {} wanted", time(wanted))
    } else {
        String::new()
    };
    format!("{when}, {rule} stops the guest: it stands still while {rest} are sent, {takes}{excess}.")
}

fn unfinished(trial: &Trial, end: &RoundEnd, scene: Scene) -> String {
    format!(
        "The log ends after round {} without a decision: {} goes on with pre-copy, and {} are left, {}.",
        end.round,
        trial.rule(),
        scene.pages(end.dirty),
        about(trial.time_to_send(end.dirty))
    )
}

fn about(takes: Option<Nanos>) -> String {
    match takes {
        Some(takes) => format!("about {}", time(takes)),
        None => "which takes a time that no round tells".into(),
    }
}
