//! Reports as text for people.

use super::{
    migration::{ChoiceReport, HintReport, MigrationReport, Outcome, Predicted, RoundReport, SamplingReport},
    status::{State, Status},
    text::{bytes, count, duration, milli, rate},
};
use comfy_table::{Cell, CellAlignment, Table, TableComponent, presets};
use std::{fmt::Write, time::Duration};

/// The longest bar, in characters.
const BAR_CELLS: u128 = 24;

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Plain text.
    Plain,
    /// ANSI colours.
    Colour,
}

impl Paint {
    /// What went well.
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// What needs attention.
    pub fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// What went wrong.
    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// A heading.
    pub fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.into(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

/// A migration for people: what it cost, what each round did, why it switched, and whether the memories are equal.
pub fn migration_table(report: &MigrationReport, paint: Paint) -> String {
    let mut text = headline(report, paint);
    for warning in &report.warnings {
        text += &format!("{}\n", paint.warn(&format!("! {warning}")));
    }
    if report.bytes.total() == 0 && report.rounds.is_empty() {
        return text;
    }
    if let Some(choice) = &report.choice {
        let missed = report.outcome == Outcome::Completed && !report.goal_met;
        text += &chosen(choice, missed, paint);
    }
    text += "\n";
    text += &summary(report);
    if !report.rounds.is_empty() {
        text += "\n";
        text += &rounds(&report.rounds, report.static_done_after.unwrap_or(0));
    }
    if let Some(switch) = &report.switch {
        let when = match switch.round {
            0 => "before the first round".into(),
            round => format!("after round {round}"),
        };
        text += &match report.postcopy {
            Some(_) => format!("\nSwitched {when}: {} (rule: {})\n", switch.reason, switch.rule),
            None => format!("\nPaused {when}: {}\n", switch.reason),
        };
    }
    if let Some(postcopy) = &report.postcopy {
        text += &format!(
            "\nPost-copy took {}: {} pages pushed, {} demanded{}{}, {} over the network\n",
            micros(postcopy.duration_us),
            count(postcopy.pushed),
            count(postcopy.faults),
            match (postcopy.p50_us, postcopy.p99_us) {
                (Some(p50), Some(p99)) => format!(" (p50 {}, p99 {})", micros(p50), micros(p99)),
                _ => String::new(),
            },
            match postcopy.stored {
                0 => String::new(),
                stored => format!(", {} from the storage directory", count(stored)),
            },
            bytes(postcopy.bytes)
        );
    }
    text
}

/// A status for people.
pub fn status_lines(status: &Status, paint: Paint) -> String {
    let state = status.state.to_string();
    let state = match status.state {
        State::Running | State::Waiting | State::MovedAway => paint.good(&state),
        State::HandoverUnknown | State::PostCopyPaused => paint.bad(&state),
        State::PreCopy | State::Handover | State::PostCopy | State::Ended => paint.warn(&state),
    };
    // Whoever runs a VM may be asked to send it next: between migrations the role says nothing.
    let role = match (status.state, &status.session) {
        (State::Running, None) => String::new(),
        _ => format!("  {}", status.role),
    };
    let name = status.name.as_deref().unwrap_or("(no VM)");
    let mut text = format!("{}{role}  {state}", paint.strong(name));
    if let Some(pid) = status.pid {
        write!(text, "  process {pid}").expect("a string takes everything");
    }
    text += "\n";
    let facts = [
        status.session.as_ref().map(|session| format!("session {session}")),
        status.round.map(|round| format!("round {round}")),
        status
            .remaining_pages
            .filter(|pages| status.missing_pages != Some(*pages))
            .map(|pages| format!("{} pages left", count(pages))),
        status
            .missing_pages
            .map(|pages| format!("{} pages missing", count(pages))),
        status.eta_us.map(|eta| format!("ETA {}", micros(eta))),
        status.steps.map(|steps| format!("{} steps done", count(steps))),
        status.recording.as_ref().map(|recording| match recording.client_pid {
            Some(pid) => format!("recorded by process {pid}"),
            None => "recorded".to_owned(),
        }),
    ];
    let facts: Vec<_> = facts.into_iter().flatten().collect();
    if !facts.is_empty() {
        text += &format!("  {}\n", facts.join(" · "));
    }
    if let Some(reason) = &status.reason {
        text += &format!("  {reason}\n");
    }
    text
}

/// What was chosen and why, and how near what was expected came.
fn chosen(choice: &ChoiceReport, missed: bool, paint: Paint) -> String {
    let mut text = format!("\nChosen for {}: {}\n", choice.goal, choice.why);
    if missed {
        text += &paint.warn("The goal was missed.");
        text += "\n";
    }
    if let (Some(round), Some(why)) = (choice.revised_after, &choice.revised_why) {
        text += &format!("After round {round}: {why}\n");
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut row = |name: &str, value: Predicted, say: fn(u64) -> String| {
        let expected = format!(
            "{} expected, {} to {}",
            say(value.likely),
            say(value.low),
            say(value.high)
        );
        table.add_row([
            Cell::new(name),
            Cell::new(say(value.actual)).set_alignment(CellAlignment::Right),
            Cell::new(expected),
        ]);
    };
    row("time", choice.time_us, micros);
    row("downtime", choice.downtime_us, micros);
    row("pages sent", choice.bytes, bytes);
    text + "\n" + &table.trim_fmt() + "\n"
}

fn observed(sampling: &SamplingReport) -> String {
    let slowdown = sampling.slowdown_milli.map_or(String::new(), |milli| {
        format!("the guest {} slower; ", percent(milli.max(0)))
    });
    format!(
        "{slowdown}{} samples in all, {} each, {} at most",
        count(sampling.samples),
        duration(Duration::from_nanos(sampling.mean_ns)),
        micros(sampling.longest_us),
    )
}

fn hinted(hints: &HintReport) -> String {
    let mut text = heard(hints);
    if hints.requests > 0 {
        text += &format!("; asked for all the same {}×", count(hints.requests));
    }
    text
}

fn heard(hints: &HintReport) -> String {
    let took = micros(hints.took_us);
    let named = match (hints.free_pages, hints.balloon_pages) {
        (free, 0) => format!("{} free pages", count(free)),
        (free, balloon) => format!("{} free pages and {} of the balloon", count(free), count(balloon)),
    };
    match (hints.end.as_str(), &hints.refusal) {
        ("complete", _) => format!("the guest named {named} in {took}"),
        ("refused", Some(why)) => format!("no hints: {why}"),
        ("timed-out", _) if hints.pages > 0 => format!("the guest named {named}, and was not done after {took}"),
        ("timed-out", _) => format!("no hints: the agent in the guest said nothing for {took}"),
        _ => "no hints: the agent in the guest speaks another protocol".into(),
    }
}

/// Thousandths as `0.3 %`.
fn percent(milli: i64) -> String {
    let sign = if milli < 0 { "-" } else { "" };
    format!("{sign}{}.{} %", milli.unsigned_abs() / 10, milli.unsigned_abs() % 10)
}

fn headline(report: &MigrationReport, paint: Paint) -> String {
    let outcome = match report.outcome {
        Outcome::Completed => paint.good("completed"),
        Outcome::Cancelled => paint.warn("cancelled"),
        Outcome::Failed => paint.bad("failed"),
    };
    let mut text = format!("Migration by {} {outcome}", paint.strong(&report.strategy));
    if let Some(reason) = &report.reason {
        text += &format!(": {reason}");
    }
    text += &match report.verified {
        Some(verified) if verified.mismatches == 0 => {
            format!(
                ", {}: {} pages are equal",
                paint.good("verified"),
                count(verified.pages)
            )
        }
        Some(verified) => {
            let wrong = format!(
                "{} of {} pages differ",
                count(verified.mismatches),
                count(verified.pages)
            );
            format!(", {}", paint.bad(&wrong))
        }
        None => String::new(),
    };
    text + "\n"
}

fn summary(report: &MigrationReport) -> String {
    let total = report.bytes.total();
    let channels = [
        ("migration", report.bytes.migration),
        ("storage", report.bytes.storage),
        ("fault", report.bytes.fault),
        ("control", report.bytes.control),
    ];
    let shares: Vec<_> = channels
        .iter()
        .filter(|(_, sent)| *sent > 0)
        .map(|(name, sent)| format!("{name} {}", bytes(*sent)))
        .collect();
    let (slowdown, than) = match report.guest.slowdown_milli {
        None => ("—".into(), "of"),
        // Another neighbour on the host, another phase of the load.
        Some(faster) if faster < 0 => ("none".into(), "it was faster than the"),
        Some(milli) => (percent(milli), "of"),
    };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut row = |name: &str, value: String, note: String| {
        table.add_row([
            Cell::new(name),
            Cell::new(value).set_alignment(CellAlignment::Right),
            Cell::new(note),
        ]);
    };
    let without = report.sampling.map_or(String::new(), |sampling| {
        format!(
            "{} without observing the guest before",
            micros(sampling.total_time_without_us)
        )
    });
    row("total time", micros(report.total_time_us), without);
    if let Some(sampling) = &report.sampling {
        row("observed", micros(sampling.learning_us), observed(sampling));
    }
    if let Some(hints) = &report.hints {
        row("not moved", bytes(hints.saved_bytes), hinted(hints));
    }
    row(
        "downtime",
        micros(report.downtime_us),
        match (report.outcome, report.downtime_us) {
            (Outcome::Completed, _) if !report.goal_met && report.reason.is_none() && report.choice.is_none() => {
                missed_downtime(&report.rounds)
            }
            (_, 0) => String::new(),
            _ => "from the pause here to running there".into(),
        },
    );
    row(
        "longest gap",
        micros(report.guest_gap_us),
        "without progress of the guest".into(),
    );
    row(
        "slow-down",
        slowdown,
        format!("{than} {} steps/s before", count(report.guest.steps_before)),
    );
    row("transferred", bytes(total), shares.join(" · "));
    row(
        "average rate",
        rate(per_second(
            total,
            report
                .sampling
                .map_or(report.total_time_us, |sampling| sampling.total_time_without_us),
        )),
        String::new(),
    );
    table.trim_fmt() + "\n"
}

/// Why the pause was longer than wanted, and what to do about it.
fn missed_downtime(rounds: &[RoundReport]) -> String {
    let shrinks = rounds
        .last()
        .is_some_and(|last| last.lambda_milli.is_some_and(|lambda| lambda < 1000));
    let why = match shrinks {
        true => "longer than --downtime: the rounds ended while they still became shorter; allow more (--max-rounds)",
        false => "longer than --downtime: the rounds do not become shorter",
    };
    format!("{why}, or take as-hybrid or hybrid:N, which do not depend on that")
}

/// In rounds beside a static copy the SDF means nothing: most of what is left is no concern of theirs.
/// Rounds of pre-copy for people, none of them beside a static copy.
pub(crate) fn round_table(all: &[RoundReport]) -> String {
    rounds(all, 0)
}

fn rounds(rounds: &[RoundReport], beside_copy: u32) -> String {
    let largest = rounds
        .iter()
        .map(|round| round.sent_pages.max(round.dirty_pages))
        .max()
        .unwrap_or(0);
    let some_are_zero = rounds.iter().any(|round| round.zero_pages > 0);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    let zero_pages = some_are_zero.then_some("zero pages");
    let before = ["round", "sending", "sent pages"];
    let after = ["dirty pages", "bytes", "rate", "λ", "SDF", "░ sent █ dirty again"];
    table.set_header(before.into_iter().chain(zero_pages).chain(after));
    for round in rounds {
        let zero_pages = some_are_zero.then(|| count(round.zero_pages));
        let before = [
            round.round.to_string(),
            micros(round.duration_us),
            count(round.sent_pages),
        ];
        let after = [
            count(round.dirty_pages),
            bytes(round.bytes),
            rate(per_second(round.bytes, round.duration_us)),
            // The rule sets the first to 1, whatever the round did.
            round.lambda_milli.filter(|_| round.round > 1).map_or("—".into(), milli),
            round
                .sdf_milli
                .filter(|_| round.round > beside_copy)
                .map_or("—".into(), milli),
            bar(round, largest),
        ];
        table.add_row(before.into_iter().chain(zero_pages).chain(after));
    }
    let numbers = 8 + usize::from(some_are_zero);
    for column in table.column_iter_mut().take(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt() + "\n"
}

/// The pages a round sent, and over them those that were dirty at its end, both relative to `largest`.
fn bar(round: &RoundReport, largest: u64) -> String {
    let cells = |pages: u64| (u128::from(pages) * BAR_CELLS).div_ceil(u128::from(largest.max(1)));
    let (sent, dirty) = (cells(round.sent_pages), cells(round.dirty_pages));
    (0..sent.max(dirty))
        .map(|cell| if cell < dirty { '█' } else { '░' })
        .collect()
}

fn micros(micros: u64) -> String {
    duration(Duration::from_micros(micros))
}

fn per_second(bytes: u64, micros: u64) -> u64 {
    let scaled = u128::from(bytes) * 1_000_000;
    scaled
        .checked_div(micros.into())
        .map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::Role,
        report::{Verification, migration::tests::hybrid},
    };

    #[test]
    fn a_migration_reads_well() {
        let expected = "\
Migration by hybrid:2 completed, verified: 16,384 pages are equal

 total time       2.31 s  1.31 s without observing the guest before
 observed         1.00 s  the guest 0.3 % slower; 40 samples in all, 110 µs each, 321 µs at most
 downtime        3.42 ms  from the pause here to running there
 longest gap     5.12 ms  without progress of the guest
 slow-down         2.1 %  of 63,120 steps/s before
 transferred     112 MiB  migration 111 MiB · fault 336 KiB · control 12.1 KiB
 average rate  89.1 MB/s

 round  sending  sent pages  zero pages  dirty pages     bytes       rate      λ     SDF  ░ sent █ dirty again
───────────────────────────────────────────────────────────────────────────────────────────────────────────────────
     1   1.02 s      16,384           0        8,120  64.0 MiB  65.5 MB/s      —       —  ████████████░░░░░░░░░░░░
     2   512 ms       8,120          64        4,002  31.7 MiB  65.0 MB/s  0.493  -0.012  ██████░░░░░░

Switched after round 2: 2 rounds are done (rule: rounds:2)

Post-copy took 210 ms: 3,918 pages pushed, 84 demanded (p50 121 µs, p99 310 µs), 12 from the storage directory, 15.6 MiB over the network
";
        assert_eq!(migration_table(&hybrid(), Paint::Plain), expected);
    }

    #[test]
    fn what_went_wrong_is_in_the_first_line() {
        let mut report = hybrid();
        report.verified = Some(Verification {
            pages: 16_384,
            mismatches: 2,
            time_us: 0,
        });
        let text = migration_table(&report, Paint::Plain);
        assert!(
            text.lines().next().unwrap().ends_with("2 of 16,384 pages differ"),
            "{text}"
        );
        report = MigrationReport::new("precopy", Outcome::Cancelled);
        report.reason = Some("asked to by the user".into());
        let text = migration_table(&report, Paint::Colour);
        assert_eq!(
            text.lines().next().unwrap(),
            "Migration by \x1b[1mprecopy\x1b[0m \x1b[33mcancelled\x1b[0m: asked to by the user"
        );
    }

    #[test]
    fn a_status_reads_well() {
        let status = Status {
            name: Some("web".into()),
            round: Some(2),
            remaining_pages: Some(1_234),
            eta_us: Some(1_500_000),
            pid: Some(7),
            ..Status::new(Role::Source, State::PreCopy)
        };
        let text = status_lines(&status, Paint::Plain);
        assert_eq!(
            text,
            "web  source  pre-copy  process 7\n  round 2 · 1,234 pages left · ETA 1.50 s\n"
        );
        assert_eq!(
            status_lines(&Status::new(Role::Target, State::Waiting), Paint::Plain),
            "(no VM)  target  waiting\n"
        );
    }
}
