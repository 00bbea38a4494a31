//! Audit logs for people.

use comfy_table::Cell;
use std::fmt::Write as _;

use super::Paint;
use super::text::count;
use super::trace_table::headed;
use crate::trust::audit::{Disagreement, Record, Report};

/// What a check found.
pub fn audit_lines(report: &Report, compared: Option<usize>, disagreements: &[Disagreement], paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        // Into a string, which never fails.
        let _ = writeln!(text, "{words}");
    };
    let records = count(report.records);
    match &report.problem {
        None => line(paint.good(&format!("whole: {records} records"))),
        Some(problem) => {
            line(paint.bad(&format!("not whole: {problem}")));
            line(format!("the {records} records before are as they were written"));
        }
    }
    if let (Some(first), Some(last)) = (&report.first, &report.last) {
        line(format!("from {first} to {last}"));
    }
    if let Some(since) = report.since_head {
        line(format!("the kept head is in it; {} records since", count(since)));
    }
    if report.torn_lines > 0 {
        line(format!(
            "{} lines were torn by processes that died, and ended by others",
            count(report.torn_lines)
        ));
    }
    if report.unfinished_bytes > 0 {
        line(paint.warn(&format!(
            "its last line, of {} bytes, has no end: a process is writing it, or died over it, or somebody cut it",
            count(report.unfinished_bytes)
        )));
    }
    let signatures = &report.signatures;
    if signatures.good > 0 {
        line(format!(
            "{} signatures under commit records fit",
            count(signatures.good)
        ));
    }
    if signatures.bad > 0 {
        line(paint.bad(&format!(
            "{} signatures under commit records do not fit",
            count(signatures.bad)
        )));
    }
    match compared {
        Some(0) if disagreements.is_empty() => {
            line(paint.warn("no hand-over record is of a guest in it: nothing was compared"));
        }
        Some(both) if disagreements.is_empty() && report.problem.is_none() => {
            line(format!(
                "the hand-over records of {} guests say the same",
                count(both as u64)
            ));
        }
        _ => {}
    }
    for disagreement in disagreements {
        line(paint.bad(&disagreement.to_string()));
    }
    line(format!("head {}", report.head));
    text
}

/// The records of a log.
pub fn audit_table(records: &[Record]) -> String {
    let mut table = headed(&[
        "#",
        "time",
        "event",
        "side",
        "user",
        "peer",
        "guest",
        "decided",
        "the guest is",
        "why",
    ]);
    for record in records {
        let entry = &record.entry;
        let or_dash = |text: Option<String>| Cell::new(text.map_or_else(|| "—".to_owned(), |text| printable(&text)));
        let decided = entry.decision.map(|decision| decision.to_string());
        let why = [entry.rule.as_deref(), entry.reason.as_deref(), signed(record)];
        let why = why.iter().flatten().copied().collect::<Vec<_>>().join(": ");
        table.add_row([
            Cell::new(record.number),
            Cell::new(&record.time),
            Cell::new(entry.event),
            or_dash(entry.role.map(|role| role.to_string())),
            or_dash(entry.uid.map(|uid| uid.to_string())),
            or_dash(peer(record)),
            or_dash(entry.guest.clone()),
            or_dash(decided.or_else(|| entry.outcome.map(|outcome| outcome.to_string()))),
            or_dash(entry.place.map(|place| place.to_string())),
            or_dash(Some(why).filter(|why| !why.is_empty())),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

/// Whose signatures are kept; whether they fit is for [`audit_lines`] to say.
fn signed(record: &Record) -> Option<&'static str> {
    let commit = record.entry.commit.as_ref()?;
    match (&commit.source_signature, &commit.target_signature) {
        (Some(_), Some(_)) => Some("signed by source and target"),
        (Some(_), None) => Some("signed by the source"),
        (None, Some(_)) => Some("signed by the target"),
        (None, None) => None,
    }
}

fn peer(record: &Record) -> Option<String> {
    match (&record.entry.peer, &record.entry.address) {
        (Some(peer), Some(address)) => Some(format!("{peer} at {address}")),
        (peer, address) => peer.clone().or_else(|| address.clone()),
    }
}

/// Names come from other hosts: nothing of them may command a terminal.
fn printable(text: &str) -> String {
    let escape = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escape).collect()
}
