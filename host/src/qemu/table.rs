//! A steered migration, and its rounds, for people.

use std::time::Duration;

use dunlin_core::steer::{Holder, Turn};

use super::report::holder_sentence;
use super::{Info, Origin, Outcome, Phase, Report, Saving, SofteningReport};
use crate::report::{Paint, RoundReport, bytes, count, duration, rate, round_table};

/// What it cost, what each round did, and why it switched.
pub fn qemu_table(report: &Report, paint: Paint) -> String {
    let headline = format!("{} by {}", report.outcome.name(), report.rule);
    let mut text = match report.outcome {
        Outcome::Completed => paint.good(&headline),
        Outcome::Cancelled | Outcome::Left => paint.warn(&headline),
        Outcome::Failed => paint.bad(&headline),
    };
    if let Some(reason) = &report.reason {
        text += &format!(": {reason}");
    }
    text += "\n";
    let holder = holder_sentence(report.holder);
    text += &match report.holder {
        Holder::Source | Holder::Target => holder.to_owned(),
        Holder::Both | Holder::Unknown => paint.warn(holder),
        Holder::Nobody => paint.bad(holder),
    };
    text += "\n";
    for warning in &report.warnings {
        text += &format!("{}\n", paint.warn(&format!("! {warning}")));
    }
    text += "\n";
    let mut line = |name: &str, value: String| text += &format!("{name:<12}{value}\n");
    line("total time", duration(report.total_time));
    match (report.pause, report.downtime) {
        (Some(pause), Some(qemu)) => line("downtime", format!("{} ({} by QEMU)", duration(pause), duration(qemu))),
        (Some(pause), None) => line("downtime", duration(pause)),
        (None, Some(qemu)) => line("downtime", format!("{} by QEMU", duration(qemu))),
        (None, None) => {}
    }
    let [precopy, paused, postcopy, total] = report.bytes.map(|it| bytes(it.0));
    line(
        "sent",
        format!("{total}: {precopy} in pre-copy, {paused} in the pause, {postcopy} in post-copy"),
    );
    if let Some(softening) = &report.softening {
        line("guest", softened(softening));
    }
    if !report.savings.is_empty() {
        line("spared", spared(&report.savings));
    }
    if !report.rounds.is_empty() {
        let rounds: Vec<RoundReport> = report.rounds.iter().map(round_of).collect();
        text += &format!("\n{}", round_table(&rounds));
    }
    if let Some(switch) = &report.switch {
        let when = match switch.round {
            0 => "before the first round".into(),
            round => format!("after round {round}"),
        };
        text += &format!("\nSwitched to post-copy {when}: {}\n", switch.reason);
        let recoveries = match report.recoveries {
            0 => String::new(),
            times => format!(", the connection made again {times}×"),
        };
        text += &format!(
            "Post-copy took {}: {} pages asked for{recoveries}\n",
            duration(switch.lasted),
            count(report.requests)
        );
    }
    text
}

fn softened(report: &SofteningReport) -> String {
    let mut parts = vec![];
    if let Some([original, least]) = report.memory {
        parts.push(format!("lent {} of {}", bytes(original.0 - least.0), bytes(original.0)));
    }
    if report.by_hints {
        parts.push("named free pages to its balloon's device".into());
    }
    let done = report.done[0]
        .iter_names()
        .map(|(name, _)| name.to_lowercase().replace('_', " "));
    parts.extend(done);
    let mut text = match parts.is_empty() {
        true => "was made small by the driver before".to_owned(),
        false => format!("{} in {}", parts.join(", "), duration(report.took)),
    };
    if report.was_short {
        text += ", was short of memory and got some back";
    }
    match report.restored {
        Some(true) => text + "; has all of it again",
        Some(false) => text + "; DOES NOT HAVE ALL OF IT AGAIN: `balloon` at its monitor gives it back",
        None => text,
    }
}

fn spared(savings: &[Saving]) -> String {
    let parts = savings.iter().map(|saving| {
        let origin = match saving.origin {
            Origin::PageCache => "page cache",
            Origin::FreeMemory => "free memory",
        };
        let took = saving
            .time
            .map_or_else(String::new, |time| format!(" ({})", duration(time)));
        format!("{} of {origin}{took}", bytes(saving.bytes.0))
    });
    format!("at most {}", parts.collect::<Vec<_>>().join(", "))
}

fn round_of(turn: &Turn) -> RoundReport {
    let end = &turn.pass.end;
    RoundReport {
        round: end.round,
        duration_us: end.duration.0 / 1000,
        sent_pages: end.sent.0,
        dirty_pages: end.dirty.0,
        zero_pages: turn.pass.zero.0,
        bytes: end.sent.bytes().0,
        lambda_milli: Some(end.lambda_milli()),
        sdf_milli: Some(end.sdf_milli()),
    }
}

/// A round in a line.
pub fn turn_line(turn: &Turn) -> String {
    let end = &turn.pass.end;
    let per_second = (u128::from(end.sent.bytes().0) * 1_000_000_000)
        .checked_div(end.duration.0.into())
        .unwrap_or(0);
    let mut line = format!(
        "round {}: {} pages sent in {} ({}), {} dirty: {}: {}",
        end.round,
        count(end.sent.0),
        duration(Duration::from_nanos(end.duration.0)),
        rate(u64::try_from(per_second).unwrap_or(u64::MAX)),
        count(end.dirty.0),
        turn.verdict.decision,
        turn.verdict.reason
    );
    if let Some(refusal) = turn.refusal {
        line += &format!("; not done: {refusal}");
    }
    line
}

/// How far it is, in a line.
pub fn progress_line(info: &Info) -> String {
    let throttle = match info.throttle_percent {
        0 => String::new(),
        percent => format!(", processors held back by {percent} %"),
    };
    let round = match info.phase {
        Phase::Active => format!(", round {}", info.syncs),
        _ => String::new(),
    };
    format!(
        "{}{round}, {} left, {} sent, {}{throttle}",
        info.phase,
        bytes(info.remaining.bytes().0),
        bytes(info.transferred.0),
        duration(info.total_time)
    )
}
