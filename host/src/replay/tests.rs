//! The exact text of every error, and decisions that are those of a [`Switcher`] told directly.

use super::*;
use proptest::{collection::vec, prelude::*};
use std::io::BufReader;

const TOTAL: Pages = Pages(1000);

fn read(text: impl AsRef<[u8]>) -> Result<Vec<RoundEnd>, String> {
    let rounds = RoundLog::open(text.as_ref(), TOTAL).and_then(Iterator::collect);
    rounds.map_err(|error: LogError| error.to_string())
}

/// What a line after a good header and a good first round gives.
fn second(line: &str) -> Result<Vec<RoundEnd>, String> {
    read(format!("{HEADER}\n1,500,1000,800\n{line}\n"))
}

fn end(round: u32, duration_us: u64, sent: u64, dirty: u64, previous_dirty: u64, elapsed_us: u64) -> RoundEnd {
    RoundEnd {
        round,
        sent: Pages(sent),
        dirty: Pages(dirty),
        previous_dirty: Pages(previous_dirty),
        duration: Nanos::from_micros(duration_us),
        elapsed: Nanos::from_micros(elapsed_us),
    }
}

#[test]
fn a_log_says_what_happened_in_each_round() {
    let expected = [
        end(1, 500, 1000, 800, 1000, 500),
        end(2, 0, 0, 0, 800, 500),
        end(3, 7, 1, 1000, 0, 507),
    ];
    assert_eq!(
        read(format!("{HEADER}\n1,500,1000,800\n2,0,0,0\n3,7,1,1000\n")).unwrap(),
        expected
    );
}

/// As `dunlin qemu watch --json` and `migrate --json` write them.
#[test]
fn json_lines_will_do() {
    let text = r#"{"schema":"dunlin.qemu-watch.v1","total_pages":1000}
{"round":2,"duration_us":500,"sent_pages":600,"dirty_pages":800,"zero_pages":400,"lambda_milli":3}

{"round":3,"duration_us":10,"sent_pages":790,"dirty_pages":"100"}
"#;
    let expected = [end(2, 500, 600, 800, 600, 500), end(3, 10, 790, 100, 800, 510)];
    assert_eq!(read(text).unwrap(), expected);
    let object = |rest: &str| {
        read(format!(
            "{{\"round\":1,\"duration_us\":1,\"sent_pages\":1,\"dirty_pages\":1}}\n{rest}\n"
        ))
    };
    for (line, error) in [
        ("[1]", "line 2, column 1: this is no JSON object"),
        ("{\"round\":2}", "line 2, column 1 (duration_us): there is no value"),
        ("{\"round\":-2}", "line 2, column 1 (round): \"-2\" is negative"),
        (
            "{\"round\":4,\"duration_us\":1,\"sent_pages\":1,\"dirty_pages\":1}",
            "line 2, column 1 (round): ",
        ),
    ] {
        let found = object(line).unwrap_err();
        assert!(found.starts_with(error), "{found}");
    }
    assert!(read("{}\n").unwrap_err().contains("no round"));
}

/// Pages that went as a few bytes were no part of what the round had to send.
#[test]
fn zero_pages_may_be_told() {
    let header = HEADER_WITH_ZEROS;
    let expected = [end(1, 500, 600, 800, 600, 500), end(2, 10, 790, 100, 790, 510)];
    assert_eq!(
        read(format!("{header}\n1,500,600,800,400\n2,10,790,100,10\n")).unwrap(),
        expected
    );
    for (line, text) in [
        (
            "2,10,20,30",
            "line 3, column 11 (zero_pages): the line ends before this value: a line has 5, ",
        ),
        ("2,10,20,30,-1", "line 3, column 12 (zero_pages): \"-1\" is negative"),
        (
            "2,10,600,30,401",
            "line 3, column 13 (zero_pages): 1001 pages are more than the 1000",
        ),
        (
            "2,10,20,30,1,1",
            "line 3, column 14: \"1\" is a value too many: a line has 5, ",
        ),
    ] {
        let error = read(format!("{header}\n1,500,600,800,400\n{line}\n")).expect_err(line);
        assert!(error.starts_with(text), "{line}: {error}");
    }
}

#[test]
fn how_a_log_is_written_does_not_matter() {
    let plain = read(format!("{HEADER}\n1,500,1000,800\n2,10,20,30\n")).unwrap();
    let variants = [
        format!("{HEADER}\n1,500,1000,800\n2,10,20,30"),
        format!("{HEADER}\r\n1,500,1000,800\r\n2,10,20,30\r\n"),
        format!("{HEADER}\r\n1,500,1000,800\n2,10,20,30\r"),
        format!("\u{feff}{HEADER}\n1,500,1000,800\n2,10,20,30\n"),
        format!("\n \n{HEADER}\n\n1,500,1000,800\n\r\n\t\n2,10,20,30\n\n"),
        format!(" {} \n 1 ,500,\t1000,800 \n2,10,20, 30\n", HEADER.replace(',', " , ")),
        "\"round\",\"duration_us\",\"sent_pages\",\"dirty_pages\"\n\"1\",\"500\",1000,800\n2,10,\"20\",\" 30\"\n"
            .into(),
        format!("{HEADER}\n01,0500,1000,800\n2,00000000000000000000000010,20,30\n"),
    ];
    for text in variants {
        assert_eq!(read(&text).as_ref(), Ok(&plain), "{text:?}");
    }
}

#[test]
fn the_first_line_may_tell_of_a_static_copy() {
    let done = |text: &str| {
        RoundLog::open(text.as_bytes(), TOTAL)
            .map(|log| log.static_done_after())
            .map_err(|error| error.to_string())
    };
    assert_eq!(done(&format!("{HEADER}\n")), Ok(0));
    for comment in [
        "# static_done_after=7",
        "#static_done_after = 7 ",
        "\u{feff} # static_done_after=7\r",
        "\n# static_done_after=07",
    ] {
        assert_eq!(done(&format!("{comment}\n{HEADER}\n1,1,1,1\n")), Ok(7), "{comment:?}");
    }
    let wrong = [
        (
            "# rounds of web-3",
            "line 1, column 1: this comment has no meaning: write # static_done_after=K, or leave it out",
        ),
        (
            "  # static_done=7",
            "line 1, column 3: this comment has no meaning: write # static_done_after=K, or leave it out",
        ),
        (
            "# static_done_after=",
            "line 1, column 21: there is no value: write a number, 0 if it is none",
        ),
        (
            "# static_done_after= x ",
            "line 1, column 22: \"x\" is not a number: write decimal digits only",
        ),
        (
            "# static_done_after=-1",
            "line 1, column 21: \"-1\" is negative: write a number from 0 on",
        ),
        (
            "# static_done_after=4294967296",
            "line 1, column 21: \"4294967296\" is too large: at most 4294967295 can be counted",
        ),
    ];
    for (comment, text) in wrong {
        assert_eq!(done(&format!("{comment}\n{HEADER}\n1,1,1,1\n")), Err(text.into()));
    }
    assert_eq!(
        second("# static_done_after=2").unwrap_err(),
        "line 3, column 1 (round): a comment stands in the first line only, and says # static_done_after=K: leave this one out"
    );
}

#[test]
fn a_log_begins_with_its_header() {
    let header = "the header is round,duration_us,sent_pages,dirty_pages";
    let cases = [
        (
            "",
            "line 1, column 1: there is no header: the log begins with round,duration_us,sent_pages,dirty_pages".into(),
        ),
        (
            "\n\n",
            "line 3, column 1: there is no header: the log begins with round,duration_us,sent_pages,dirty_pages".into(),
        ),
        (
            "# static_done_after=3\n",
            "line 2, column 1: there is no header: the log begins with round,duration_us,sent_pages,dirty_pages".into(),
        ),
        (
            "1,500,1000,800\n",
            format!("line 1, column 1: \"1\" is not the name of this column: {header}"),
        ),
        (
            "round,duration_us,pages,dirty_pages\n",
            format!("line 1, column 19: \"pages\" is not the name of this column: {header}"),
        ),
        (
            "round,sent_pages,duration_us,dirty_pages\n",
            format!("line 1, column 7: \"sent_pages\" is not the name of this column: {header}"),
        ),
        (
            "Round,duration_us\n",
            format!("line 1, column 1: \"Round\" is not the name of this column: {header}"),
        ),
        (
            "round,duration_us,sent_pages\n1,2,3\n",
            "line 1, column 29: the header ends here: it is round,duration_us,sent_pages,dirty_pages".into(),
        ),
        (
            "round,duration_us,sent_pages,dirty_pages,bytes\n",
            format!("line 1, column 42: \"bytes\" is a column too many: {header}"),
        ),
        (
            "round;duration_us;sent_pages;dirty_pages\n",
            format!(
                "line 1, column 1: \"round;duration_us;sent_pages;dirty_pages\" is not the name of this column: {header}"
            ),
        ),
        (
            "round,duration_us,sent_pages,dirty_pages\n",
            "line 2, column 1: the log has a header and no rounds: write a line for every round, from 1 on".into(),
        ),
        (
            "round,duration_us,sent_pages,dirty_pages",
            "line 2, column 1: the log has a header and no rounds: write a line for every round, from 1 on".into(),
        ),
    ];
    for (text, error) in cases {
        assert_eq!(read(text), Err(error), "{text:?}");
    }
}

#[test]
fn a_wrong_value_is_named_with_its_place() {
    let cases = [
        (
            "2,10,20",
            "line 3, column 8 (dirty_pages): the line ends before this value: a line has 4, round,duration_us,sent_pages,dirty_pages",
        ),
        (
            "2",
            "line 3, column 2 (duration_us): the line ends before this value: a line has 4, round,duration_us,sent_pages,dirty_pages",
        ),
        (
            "2,10,20,30,40",
            "line 3, column 12: \"40\" is a value too many: a line has 4, round,duration_us,sent_pages,dirty_pages, and numbers have no separators",
        ),
        (
            "2,10,20,30,",
            "line 3, column 12: \"\" is a value too many: a line has 4, round,duration_us,sent_pages,dirty_pages, and numbers have no separators",
        ),
        (
            "2,,20,30",
            "line 3, column 3 (duration_us): there is no value: write a number, 0 if it is none",
        ),
        (
            "2,10,20, ",
            "line 3, column 9 (dirty_pages): there is no value: write a number, 0 if it is none",
        ),
        (
            ",,,",
            "line 3, column 1 (round): there is no value: write a number, 0 if it is none",
        ),
        (
            "2,10,-20,30",
            "line 3, column 6 (sent_pages): \"-20\" is negative: write a number from 0 on",
        ),
        (
            "-2,10,20,30",
            "line 3, column 1 (round): \"-2\" is negative: write a number from 0 on",
        ),
        (
            "2,10,20,-0.5",
            "line 3, column 9 (dirty_pages): \"-0.5\" is negative: write a number from 0 on",
        ),
        (
            "2,10.5,20,30",
            "line 3, column 3 (duration_us): \"10.5\" is not a whole number: round it",
        ),
        (
            "2,10,1e3,30",
            "line 3, column 6 (sent_pages): \"1e3\" is not a number: write decimal digits only",
        ),
        (
            "2,10,+3,30",
            "line 3, column 6 (sent_pages): \"+3\" is not a number: write decimal digits only",
        ),
        (
            "2,10,0x3,30",
            "line 3, column 6 (sent_pages): \"0x3\" is not a number: write decimal digits only",
        ),
        (
            "2,10,2 0,30",
            "line 3, column 6 (sent_pages): \"2 0\" is not a number: write decimal digits only",
        ),
        (
            "2,ten,20,30",
            "line 3, column 3 (duration_us): \"ten\" is not a number: write decimal digits only",
        ),
        (
            "2, ²,20,30",
            "line 3, column 4 (duration_us): \"²\" is not a number: write decimal digits only",
        ),
        (
            "2,\"ä\",x,30",
            "line 3, column 3 (duration_us): \"ä\" is not a number: write decimal digits only",
        ),
        (
            "2,18446744073709551616,20,30",
            "line 3, column 3 (duration_us): \"18446744073709551616\" is too large: at most 18446744073709551615 can be counted",
        ),
        (
            "2,10,20,99999999999999999999999999999999999999999999",
            "line 3, column 9 (dirty_pages): \"9999999999999999999999999999999999999999\"… is too large: at most 18446744073709551615 can be counted",
        ),
        (
            "2,18446744073709551615,20,30",
            "line 3, column 3 (duration_us): the rounds up to here last longer than 584 years together: durations are in microseconds",
        ),
        (
            // The first round took 500.
            "2,18446744073709052,20,30",
            "line 3, column 3 (duration_us): the rounds up to here last longer than 584 years together: durations are in microseconds",
        ),
        (
            "2,10,1001,30",
            "line 3, column 6 (sent_pages): 1001 pages are more than the 1000 that the guest has: correct the value or --total-pages",
        ),
        (
            "2,10,20,1001",
            "line 3, column 9 (dirty_pages): 1001 pages are more than the 1000 that the guest has: correct the value or --total-pages",
        ),
        (
            "2,0,20,30",
            "line 3, column 3 (duration_us): 20 pages in no time would be a link without limits: write how long they took, at least 1",
        ),
        (
            "2,10,\"20,30",
            "line 3, column 6: a quotation mark that does not end in this line: numbers need none",
        ),
        (
            "2,10\r,20,30",
            "line 3, column 5: a carriage return within a line: end lines with LF or CRLF",
        ),
    ];
    for (line, error) in cases {
        assert_eq!(second(line), Err(error.into()), "{line:?}");
    }
    assert!(second("2,18446744073709051,20,30").is_ok(), "the longest there may be");
}

#[test]
fn rounds_follow_each_other() {
    let stands = |number: u64| {
        format!(
            "line 3, column 1 (round): round {number} stands where round 2 should: rounds follow each other by one, without gaps or repeats"
        )
    };
    for number in [0, 1, 3, u64::MAX] {
        assert_eq!(second(&format!("{number},10,20,30")), Err(stands(number)));
    }
    for first in [0, 2] {
        assert_eq!(
            read(format!("{HEADER}\n{first},10,20,30\n")),
            Err(format!(
                "line 2, column 1 (round): the log begins with round {first}: it must begin with round 1, the copy of the whole guest"
            ))
        );
    }
}

#[test]
fn what_is_no_text_is_named_with_its_place() {
    let mut bytes = format!("\u{feff}{HEADER}\n1,500,1000,800\n2,ä").into_bytes();
    bytes.extend(b"\xff,20,30\n");
    assert_eq!(
        read(bytes).unwrap_err(),
        "line 3, column 4: this is no character of UTF-8: save the log as plain text"
    );
    let long = second(&"9".repeat(5000)).unwrap_err();
    assert_eq!(
        long,
        "line 3, column 1: the line is longer than 4096 bytes, as no line of a round log is: is this the right file?"
    );
}

#[test]
fn after_an_error_the_log_has_ended() {
    let text = format!("{HEADER}\n1,500,1000,800\nx\n2,10,20,30\n");
    let mut log = RoundLog::open(text.as_bytes(), TOTAL).unwrap();
    assert!(log.next().unwrap().is_ok());
    assert!(log.next().unwrap().is_err());
    assert!(log.next().is_none() && log.next().is_none());
}

#[test]
fn a_round_beyond_what_can_be_counted_is_refused() {
    let text = format!("{HEADER}\n1,500,1000,800\n4294967295,1,1,1\n4294967296,1,1,1\n");
    let mut log = RoundLog::open(text.as_bytes(), TOTAL).unwrap();
    log.next().unwrap().unwrap();
    log.skip_to_round(4_294_967_294);
    assert_eq!(log.next().unwrap().unwrap().round, u32::MAX);
    assert_eq!(
        log.next().unwrap().unwrap_err().to_string(),
        "line 4, column 1 (round): \"4294967296\" is too large: at most 4294967295 can be counted"
    );
}

/// A log of a million rounds that never stands in memory.
struct Million {
    next: u32,
    last: &'static str,
}

impl std::io::Read for Million {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let line = match self.next {
            0 => format!("{HEADER}\n"),
            1_000_000 => self.last.into(),
            1_000_001.. => String::new(),
            round => format!("{round},500,1000,1000\n"),
        };
        self.next += 1;
        buffer[..line.len()].copy_from_slice(line.as_bytes());
        Ok(line.len())
    }
}

#[test]
fn a_million_rounds_are_read_one_by_one() {
    let log = |last| RoundLog::open(BufReader::new(Million { next: 0, last }), TOTAL).unwrap();
    let setting = SwitchSetting {
        max_rounds: u32::MAX,
        ..SwitchSetting::new(TOTAL)
    };
    let mut trial = Trial::new(
        SwitchRule::Lambda,
        SwitchSetting {
            downtime: Nanos::ZERO,
            ..setting
        },
    );
    for end in log("1000000,500,1000,0") {
        trial.on_round(&end.unwrap());
    }
    let ending = trial.ending().unwrap();
    assert_eq!((ending.end.round, ending.sent), (1_000_000, Pages(1_000_000_000)));
    let error = log("1000000,500,1000,-1\n").find_map(Result::err).unwrap();
    assert_eq!(
        error.to_string(),
        "line 1000001, column 18 (dirty_pages): \"-1\" is negative: write a number from 0 on"
    );
}

#[test]
fn a_trial_ends_with_the_first_decision() {
    let mut trial = Trial::new(SwitchRule::Rounds(2), SwitchSetting::new(TOTAL));
    let rounds = read(format!(
        "{HEADER}\n1,1000000,1000,800\n2,800000,800,700\n3,700000,700,600\n"
    ))
    .unwrap();
    let decisions: Vec<_> = rounds
        .iter()
        .map(|end| trial.on_round(end).map(|verdict| verdict.decision))
        .collect();
    assert_eq!(decisions, [Some(Decision::Continue), Some(Decision::PostCopy), None]);
    let ending = trial.ending().unwrap();
    assert_eq!((ending.end, ending.sent), (rounds[1], Pages(1800)));
    assert_eq!(
        ending.rest_takes,
        Some(Nanos::from_millis(700)),
        "700 pages at 1000 a second"
    );
}

#[test]
fn there_is_an_example_of_every_rule() {
    let examples: Vec<_> = example_rules().iter().map(ToString::to_string).collect();
    for name in SwitchRule::AVAILABLE {
        let stem = name.split([':', '[', ' ']).next().unwrap();
        // A name for a rule that has another one.
        let rule = SwitchRule::parse(stem).map_or(stem.to_owned(), |rule| rule.to_string());
        let covered = examples.iter().any(|example| example.starts_with(&rule));
        assert!(covered, "{name} is not in {examples:?}");
    }
    let mut distinct = examples.clone();
    distinct.dedup();
    assert_eq!(distinct, examples);
}

/// A valid log as rounds and as one of the texts that stand for them.
fn log() -> impl Strategy<Value = (u32, Vec<(u64, u64, u64)>, String)> {
    let round = (1..1u64 << 40, 0..=TOTAL.0, 0..=TOTAL.0);
    let writing = (any::<bool>(), any::<bool>(), any::<bool>(), 0..6u32, vec(0..8u8, 64));
    (vec(round, 1..40), writing).prop_map(|(rounds, (mark, crlf, final_break, done, style))| {
        let line_end = if crlf { "\r\n" } else { "\n" };
        let mut lines = Vec::new();
        if done > 0 {
            lines.push(format!("# {STATIC_DONE_AFTER}={done}"));
        }
        lines.push(HEADER.to_owned());
        for (index, (duration, sent, dirty)) in rounds.iter().enumerate() {
            let style = style[index % style.len()];
            let quote = |number: u64| match style {
                0 => format!("\"{number}\""),
                1 => format!(" {number}\t"),
                _ => number.to_string(),
            };
            lines.push(format!(
                "{},{},{},{}",
                index + 1,
                quote(*duration),
                quote(*sent),
                quote(*dirty)
            ));
            if style == 2 {
                lines.push(String::new());
            }
        }
        let mark = if mark { "\u{feff}" } else { "" };
        let last = if final_break { line_end } else { "" };
        (done, rounds, format!("{mark}{}{last}", lines.join(line_end)))
    })
}

proptest! {
    #[test]
    fn a_replay_decides_as_a_switcher_does(
        (done, rounds, text) in log(),
        rule in prop::sample::select(example_rules()),
        downtime in 0..1u64 << 50,
        max_rounds in 1..50u32,
    ) {
        let log = RoundLog::open(text.as_bytes(), TOTAL).unwrap();
        prop_assert_eq!(log.static_done_after(), done);
        let setting = SwitchSetting {
            downtime: Nanos(downtime),
            max_rounds,
            static_done_after: log.static_done_after(),
            ..SwitchSetting::new(TOTAL)
        };
        let mut trial = Trial::new(rule, setting);
        let replayed: Vec<_> = log.filter_map(|end| trial.on_round(&end.unwrap())).collect();

        let mut switcher = Switcher::new(rule, setting);
        let (mut previous_dirty, mut elapsed, mut direct) = (TOTAL, Nanos::ZERO, Vec::new());
        for (round, (duration_us, sent, dirty)) in (1..).zip(rounds) {
            let duration = Nanos(duration_us * 1000);
            elapsed = elapsed.saturating_add(duration);
            let (sent, dirty) = (Pages(sent), Pages(dirty));
            direct.push(switcher.on_round(&RoundEnd { round, sent, dirty, previous_dirty, duration, elapsed }));
            if direct[direct.len() - 1].decision != Decision::Continue {
                break;
            }
            previous_dirty = dirty;
        }
        prop_assert_eq!(&replayed, &direct);
        let decided = direct.last().is_some_and(|verdict| verdict.decision != Decision::Continue);
        prop_assert_eq!(trial.ending().is_some(), decided);
    }

    #[test]
    fn no_text_panics(text in "[0-9,.\"#\r\n -]{0,60}", bytes in vec(any::<u8>(), 0..60)) {
        let _ = read(format!("{HEADER}\n{text}"));
        let _ = read(bytes);
    }
}
