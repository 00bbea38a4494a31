//! Logs that were written, torn and tampered with.

use super::*;
use crate::journal::{HandOver, Journal, Phase, Role};
use dunlin_core::message::{SessionId, VmId};
use proptest::prelude::*;
use std::fs;

fn entry(event: Event, reason: &str) -> Entry {
    Entry {
        reason: Some(reason.to_owned()),
        guest: Some("web".into()),
        ..Entry::new(event, Role::Source, VmId(7), SessionId(9))
    }
}

/// A log of `count` records besides its header, and its lines.
fn written(count: usize) -> (tempfile::TempDir, PathBuf, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let log = AuditLog::open(&path).unwrap();
    for index in 0..count {
        log.append(entry(Event::Offer, &format!("number {index}"))).unwrap();
    }
    let lines = lines_of(&fs::read(&path).unwrap());
    assert_eq!(lines.len(), count + 1);
    (dir, path, lines)
}

fn lines_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

fn flaw(path: &Path) -> Option<(u64, Flaw)> {
    let problem = verify(path, None).unwrap().problem;
    problem.map(|problem| (problem.line, problem.flaw))
}

#[test]
fn only_the_user_reads_it_and_several_write_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    const WRITERS: usize = 4;
    const EACH: usize = 25;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let path = &path;
            scope.spawn(move || {
                for index in 0..EACH {
                    // Opened anew now and then, as by processes that come and go.
                    let log = AuditLog::open(path).unwrap();
                    log.append(entry(Event::Offer, &format!("{writer} {index}"))).unwrap();
                    log.append(entry(Event::Outcome, &format!("{writer} {index}"))).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let (records, report) = read(&path).unwrap();
    assert_eq!((records.len(), report.problem), (2 * WRITERS * EACH, None));
    for writer in 0..WRITERS {
        let mine = records.iter().map(|record| record.entry.reason.clone().unwrap());
        let mine: Vec<_> = mine.filter(|text| text.starts_with(&format!("{writer} "))).collect();
        let expected: Vec<_> = (0..EACH)
            .flat_map(|index| vec![format!("{writer} {index}"); 2])
            .collect();
        assert_eq!(mine, expected, "each writer's records are in its order");
    }
}

#[test]
fn every_changed_byte_is_found_where_it_is() {
    let (_dir, path, lines) = written(3);
    let whole = lines.concat();
    for at in 0..whole.len() - 1 {
        let mut edited = whole.clone();
        edited[at] ^= 1 << (at % 8);
        fs::write(&path, &edited).unwrap();
        let line = 1 + whole[..at].iter().filter(|byte| **byte == b'\n').count() as u64;
        let found = flaw(&path).unwrap_or_else(|| panic!("byte {at} of line {line} is not missed"));
        assert_eq!(found.0, line, "byte {at}: {found:?}");
        let kind = if line == 1 { Flaw::NoHeader } else { Flaw::Edited };
        assert_eq!(found.1, kind, "byte {at}");
        assert!(
            matches!(AuditLog::open(&path), Err(AuditError::Broken { .. })),
            "byte {at}"
        );
        assert_eq!(fs::read(&path).unwrap(), edited, "evidence stays as it is");
    }
    // The last end of a line: what is before it is whole.
    let mut edited = whole.clone();
    *edited.last_mut().unwrap() = b'x';
    fs::write(&path, &edited).unwrap();
    let report = verify(&path, None).unwrap();
    assert!(report.unfinished_bytes > 0 && report.records == 2, "{report:?}");
}

#[test]
fn lines_that_were_removed_moved_repeated_or_replaced_are_told_apart() {
    let (_dir, path, lines) = written(5);
    let with = |order: &[usize]| {
        let bytes: Vec<u8> = order.iter().flat_map(|index| lines[*index].clone()).collect();
        fs::write(&path, bytes).unwrap();
        flaw(&path)
    };
    assert_eq!(with(&[0, 1, 2, 3, 4, 5]), None);
    assert_eq!(
        with(&[0, 1, 2]),
        None,
        "without a kept hash a missing end cannot be seen"
    );
    assert_eq!(with(&[1, 2, 3]), Some((1, Flaw::NoHeader)));
    assert_eq!(with(&[]), Some((1, Flaw::NoHeader)));
    assert_eq!(with(&[0, 1, 3, 4]), Some((3, Flaw::Removed { first: 2, last: 2 })));
    assert_eq!(with(&[0, 1, 5]), Some((3, Flaw::Removed { first: 2, last: 4 })));
    assert_eq!(with(&[0, 2, 1, 3]), Some((2, Flaw::Reordered { expected: 1 })));
    assert_eq!(with(&[0, 1, 2, 2, 3]), Some((4, Flaw::Repeated { number: 2 })));
    assert_eq!(with(&[0, 1, 2, 1]), Some((4, Flaw::Repeated { number: 1 })));

    // Another with a hash that fits.
    let (mut record, _): (Record, String) = line::decode(lines[2].trim_ascii_end()).unwrap();
    record.entry.reason = Some("nothing happened".into());
    let mut forged = lines.clone();
    forged[2] = line::encode(&record).0;
    fs::write(&path, forged.concat()).unwrap();
    assert_eq!(flaw(&path), Some((3, Flaw::Replaced)));
    // Of another log.
    let (_other_dir, _, others) = written(5);
    forged[2].clone_from(&others[2]);
    fs::write(&path, forged.concat()).unwrap();
    assert_eq!(flaw(&path), Some((2, Flaw::Replaced)));
}

#[test]
fn a_kept_hash_shows_what_was_cut_off() {
    let (_dir, path, lines) = written(4);
    let heads: Vec<String> = (1..=4)
        .map(|records| {
            fs::write(&path, lines[..=records].concat()).unwrap();
            verify(&path, None).unwrap().head
        })
        .collect();
    for kept in 1..=4 {
        fs::write(&path, lines[..=kept].concat()).unwrap();
        for (index, head) in heads.iter().enumerate() {
            let report = verify(&path, Some(head)).unwrap();
            if index < kept {
                assert_eq!(
                    (report.problem, report.since_head),
                    (None, Some((kept - index - 1) as u64))
                );
            } else {
                assert_eq!(report.problem.unwrap().flaw, Flaw::HeadMissing);
            }
        }
    }
}

#[test]
fn nothing_is_added_to_a_log_that_became_shorter() {
    let (_dir, path, lines) = written(2);
    let log = AuditLog::open(&path).unwrap();
    fs::write(&path, &lines[0]).unwrap();
    let error = log.append(entry(Event::Offer, "late")).unwrap_err();
    assert!(matches!(error, AuditError::Shortened(_)), "{error}");
    assert_eq!(fs::read(&path).unwrap(), lines[0]);
}

#[test]
fn what_is_no_log_is_left_alone_and_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("notes"), "buy milk\n").unwrap();
    let error = AuditLog::open(&at("notes")).unwrap_err().to_string();
    assert!(error.contains("line 1 does not begin an audit log"), "{error}");
    assert_eq!(fs::read(at("notes")).unwrap(), b"buy milk\n");
    std::os::unix::fs::symlink(at("elsewhere"), at("link")).unwrap();
    assert!(matches!(AuditLog::open(&at("link")), Err(AuditError::NotAFile(_))));
    assert!(matches!(AuditLog::open(dir.path()), Err(AuditError::NotAFile(_))));
    assert!(matches!(
        AuditLog::open(&at("absent/log")),
        Err(AuditError::NoFolder(_))
    ));
    assert!(matches!(verify(&at("absent"), None), Err(AuditError::Missing(_))));
}

#[test]
fn what_a_dead_process_did_not_say_is_said_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let log = AuditLog::open(&path).unwrap();
    log.append(entry(Event::HandOver, "about to").at(Place::Between))
        .unwrap();
    let hand_over = HandOver {
        vm_id: VmId(7),
        session: SessionId(9),
        role: Role::Source,
        phase: Phase::MovedAway,
        peer: None,
        control: None,
    };
    log.catch_up_with("web", &hand_over).unwrap();
    assert_eq!(log.place(VmId(7), Role::Source), Some(Place::Elsewhere));
    log.catch_up_with("web", &hand_over).unwrap();
    let (records, _) = read(&path).unwrap();
    assert_eq!(records.len(), 2, "said once");
    assert_eq!(records[1].entry.event, Event::Found);

    let mut journal = Journal::open(dir.path(), "web").unwrap();
    journal.write(hand_over.clone()).unwrap();
    assert_eq!(against_journals(&path, dir.path()).unwrap(), (1, vec![]));
    journal
        .write(HandOver {
            phase: Phase::Running,
            ..hand_over
        })
        .unwrap();
    let (_, disagreements) = against_journals(&path, dir.path()).unwrap();
    let expected = Disagreement {
        guest: "web".into(),
        recorded: Place::Here,
        audited: Some(Place::Elsewhere),
    };
    assert_eq!(disagreements, [expected]);
}

/// What happens to a log.
#[derive(Clone, Debug)]
enum Step {
    Append(String),
    Reopen,
    /// The last line keeps so many thousandths of its bytes, and then these.
    Tear(usize, Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let noise = prop::collection::vec(any::<u8>().prop_filter("no end of a line", |byte| *byte != b'\n'), 0..4);
    let step = prop_oneof![
        4 => ".{0,30}".prop_map(Step::Append),
        1 => Just(Step::Reopen),
        2 => (0usize..=1000, noise).prop_map(|(kept, noise)| Step::Tear(kept, noise)),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Beside a plain list of what was appended.
    #[test]
    fn a_log_holds_what_was_written_to_the_end_whatever_is_torn(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut log = AuditLog::open(&path).unwrap();
        let (mut model, mut torn) = (Vec::new(), 0u64);
        for step in steps {
            match step {
                Step::Append(text) => {
                    log.append(entry(Event::Offer, &text)).unwrap();
                    model.push(text);
                }
                Step::Reopen => log = AuditLog::open(&path).unwrap(),
                Step::Tear(kept, noise) => {
                    let bytes = fs::read(&path).unwrap();
                    let mut lines = lines_of(&bytes);
                    if lines.len() < 2 || read(&path).unwrap().0.last().unwrap().entry.event != Event::Offer {
                        continue;
                    }
                    let mut last = lines.pop().unwrap();
                    let whole = last.len() - 1;
                    last.truncate(whole * kept / 1000);
                    let complete = last.len() == whole && noise.is_empty();
                    let nothing = last.is_empty() && noise.is_empty();
                    last.extend(noise);
                    lines.push(last);
                    drop(log);
                    fs::write(&path, lines.concat()).unwrap();
                    let before = verify(&path, None).unwrap();
                    prop_assert_eq!(&before.problem, &None);
                    prop_assert_eq!(before.unfinished_bytes > 0, !nothing);
                    log = AuditLog::open(&path).unwrap();
                    if !complete {
                        model.pop();
                        torn += u64::from(!nothing);
                    }
                }
            }
            let (records, report) = read(&path).unwrap();
            prop_assert_eq!(&report.problem, &None);
            prop_assert_eq!((report.torn_lines, report.unfinished_bytes), (torn, 0));
            let found: Vec<_> = records.into_iter().filter_map(|record| record.entry.reason).collect();
            prop_assert_eq!(&found, &model);
        }
    }
}
