//! The log: a header, and a line of numbers for every round.

use super::{
    error::{Column, Fault, LogError, Place},
    lines::{Line, Lines},
};
use csv_core::ReadFieldResult;
use dunlin_core::{
    switch::RoundEnd,
    units::{Nanos, Pages},
};
use serde_json::Value;
use std::{fmt, io::BufRead};

/// What a log begins with, save for a comment.
pub const HEADER: &str = "round,duration_us,sent_pages,dirty_pages";

/// The same with the column that may be left out.
pub const HEADER_WITH_ZEROS: &str = "round,duration_us,sent_pages,dirty_pages,zero_pages";

/// What the comment in the first line may tell: the round at whose end the static copy was merged.
pub const STATIC_DONE_AFTER: &str = "static_done_after";

/// The rounds of a log, one after the other.
///
/// A log is CSV with the header [`HEADER`]. In the line of round i, `duration_us` is T(i) and `sent_pages` S(i), and `dirty_pages`
/// is V(i), what is dirty as the round ends. A fifth column, `zero_pages`, tells of pages that were dirty, too, and went as a few
/// bytes because they were zero: they are no part of what the round had to send. Before the header may stand `# static_done_after=K`.
///
/// JSON lines will do as well, an object for each round with these names, as `dunlin qemu` writes them; other names in it, and objects without
/// `round`, are of no interest. Such a log may begin with a later round.
///
/// Accepted are LF and CRLF, blank lines, a byte order mark, spaces around values, values in quotation marks, and an end without
/// a line break. Everything else is an error; after one, the log has ended.
pub struct RoundLog<R> {
    lines: Lines<R>,
    values: Values,
    columns: usize,
    /// The first line, of a log in JSON lines.
    json: Option<Option<(u64, String)>>,
    total: Pages,
    static_done_after: u32,
    last: Last,
    failed: bool,
}

/// What a round is judged by: the one before.
#[derive(Clone, Copy, Debug)]
struct Last {
    round: u64,
    dirty: Pages,
    elapsed: Nanos,
}

impl<R: BufRead> RoundLog<R> {
    /// Reads up to the first round of a log about a guest of `total` pages.
    ///
    /// # Errors
    /// [`LogError`] if it has no proper header.
    pub fn open(reader: R, total: Pages) -> Result<Self, LogError> {
        let mut log = Self {
            lines: Lines::new(reader),
            values: Values::new(),
            columns: Column::REQUIRED,
            json: None,
            total,
            static_done_after: 0,
            last: Last {
                round: 0,
                dirty: total,
                elapsed: Nanos::ZERO,
            },
            failed: false,
        };
        log.preamble()?;
        Ok(log)
    }

    /// K: no rule decides before the end of this round; 0 if there was no static copy.
    pub const fn static_done_after(&self) -> u32 {
        self.static_done_after
    }

    /// As if `round` had been the last one read.
    #[cfg(test)]
    pub(super) const fn skip_to_round(&mut self, round: u64) {
        self.last.round = round;
    }

    fn preamble(&mut self) -> Result<(), LogError> {
        let mut line = self.lines.next()?;
        if let Some(first) = line
            && let Some(round) = static_done_after(first)?
        {
            self.static_done_after = round;
            line = self.lines.next()?;
        }
        match line {
            Some(line) if line.text().trim_start().starts_with('{') => {
                self.json = Some(Some((line.number(), line.text().to_owned())));
                Ok(())
            }
            Some(line) => {
                self.columns = check_header(&mut self.values, line)?;
                Ok(())
            }
            None => Err(self.lines.wrong_end(Fault::NoHeader)),
        }
    }

    fn next_round(&mut self) -> Result<Option<RoundEnd>, LogError> {
        if self.json.is_some() {
            return self.next_json_round();
        }
        let Some(line) = self.lines.next()? else {
            return match self.last.round {
                0 => Err(self.lines.wrong_end(Fault::NoRounds)),
                _ => Ok(None),
            };
        };
        let (numbers, bytes) = numbers(&mut self.values, self.columns, line)?;
        let wrong = |column: Column, fault| line.wrong(bytes[column as usize], Some(column), fault);
        let end = round_end(numbers, &self.last, self.total, wrong)?;
        self.ended(&end);
        Ok(Some(end))
    }

    fn next_json_round(&mut self) -> Result<Option<RoundEnd>, LogError> {
        loop {
            let first = self.json.as_mut().and_then(Option::take);
            let (number, text) = match first {
                Some(first) => first,
                None => match self.lines.next()? {
                    Some(line) => (line.number(), line.text().to_owned()),
                    None if self.last.round == 0 => return Err(self.lines.wrong_end(Fault::NoRounds)),
                    None => return Ok(None),
                },
            };
            let wrong = |name: Option<Column>, fault| LogError::Wrong {
                place: Place {
                    line: number,
                    column: 1,
                    name,
                },
                fault,
            };
            let Some(numbers) = json_numbers(&text).map_err(|(name, fault)| wrong(name, fault))? else {
                continue;
            };
            if self.last.round == 0 {
                self.last.round = numbers[0].saturating_sub(1);
            }
            let end = round_end(numbers, &self.last, self.total, |column, fault| {
                wrong(Some(column), fault)
            })?;
            self.ended(&end);
            return Ok(Some(end));
        }
    }

    fn ended(&mut self, end: &RoundEnd) {
        self.last = Last {
            round: u64::from(end.round),
            dirty: end.dirty,
            elapsed: end.elapsed,
        };
    }
}

impl<R: BufRead> Iterator for RoundLog<R> {
    type Item = Result<RoundEnd, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_round();
        self.failed = next.is_err();
        next.transpose()
    }
}

impl<R> fmt::Debug for RoundLog<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoundLog")
            .field("total", &self.total)
            .field("static_done_after", &self.static_done_after)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// K, if the line is a comment.
fn static_done_after(line: Line<'_>) -> Result<Option<u32>, LogError> {
    let text = line.text();
    let Some(comment) = text.trim_start().strip_prefix('#') else {
        return Ok(None);
    };
    let known = comment
        .trim()
        .strip_prefix(STATIC_DONE_AFTER)
        .and_then(|rest| rest.trim_start().strip_prefix('='));
    let Some(value) = known else {
        return Err(line.wrong(text.len() - comment.len() - 1, None, Fault::WrongComment));
    };
    // What stands before the value is all of the line but the value and the blanks behind it.
    let byte = text.trim_end().len() - value.trim_start().len();
    let value = value.trim();
    let round = number(value).and_then(|round| within_u32(value, round));
    round.map(Some).map_err(|fault| line.wrong(byte, None, fault))
}

/// How many columns the log has.
fn check_header(values: &mut Values, line: Line<'_>) -> Result<usize, LogError> {
    values.begin(line);
    for (index, column) in Column::ALL.into_iter().enumerate() {
        match values.next(line)? {
            None if index == Column::REQUIRED => return Ok(index),
            None => return Err(line.wrong(line.text().len(), None, Fault::ShortHeader)),
            Some(value) if value.text != column.name() && index == Column::REQUIRED => {
                return Err(line.wrong(value.byte, None, Fault::LongHeader(value.text.into())));
            }
            Some(value) if value.text != column.name() => {
                return Err(line.wrong(value.byte, None, Fault::WrongHeader(value.text.into())));
            }
            Some(_) => {}
        }
    }
    match values.next(line)? {
        Some(value) => Err(line.wrong(value.byte, None, Fault::LongHeader(value.text.into()))),
        None => Ok(Column::ALL.len()),
    }
}

/// The values of a line, and where they begin in it.
fn numbers(
    values: &mut Values,
    columns: usize,
    line: Line<'_>,
) -> Result<([u64; Column::ALL.len()], [usize; Column::ALL.len()]), LogError> {
    let mut numbers = [0; Column::ALL.len()];
    let mut bytes = [0; Column::ALL.len()];
    values.begin(line);
    for (index, column) in Column::ALL.into_iter().enumerate().take(columns) {
        let Some(value) = values.next(line)? else {
            return Err(line.wrong(line.text().len(), Some(column), Fault::Missing { columns }));
        };
        bytes[index] = value.byte;
        numbers[index] = number(value.text).map_err(|fault| line.wrong(value.byte, Some(column), fault))?;
    }
    if let Some(value) = values.next(line)? {
        let text = value.text.into();
        return Err(line.wrong(value.byte, None, Fault::ExtraValue { text, columns }));
    }
    Ok((numbers, bytes))
}

/// The same of an object; `None` if it tells of no round.
fn json_numbers(text: &str) -> Result<Option<[u64; Column::ALL.len()]>, (Option<Column>, Fault)> {
    let Ok(Value::Object(object)) = serde_json::from_str::<Value>(text) else {
        return Err((None, Fault::NoObject));
    };
    if !object.contains_key(Column::Round.name()) {
        return Ok(None);
    }
    let mut numbers = [0; Column::ALL.len()];
    for (index, column) in Column::ALL.into_iter().enumerate() {
        numbers[index] = match object.get(column.name()) {
            Some(value) => number(value.to_string().trim_matches('"')).map_err(|fault| (Some(column), fault))?,
            None if index >= Column::REQUIRED => 0,
            None => return Err((Some(column), Fault::NoValue)),
        };
    }
    Ok(Some(numbers))
}

fn round_end(
    numbers: [u64; Column::ALL.len()],
    last: &Last,
    total: Pages,
    wrong: impl Fn(Column, Fault) -> LogError,
) -> Result<RoundEnd, LogError> {
    let [round, duration_us, sent, dirty, zero] = numbers;

    let expected = last.round + 1;
    if round != expected {
        return Err(wrong(Column::Round, Fault::OutOfOrder { round, expected }));
    }
    let round = within_u32(&round.to_string(), round).map_err(|fault| wrong(Column::Round, fault))?;
    let duration = duration_us.checked_mul(1000).map(Nanos);
    let elapsed = duration.and_then(|duration| last.elapsed.0.checked_add(duration.0));
    let (Some(duration), Some(elapsed)) = (duration, elapsed) else {
        return Err(wrong(Column::DurationUs, Fault::TooLong));
    };
    let with_zeros = sent.saturating_add(zero);
    for (column, pages) in [
        (Column::SentPages, sent),
        (Column::DirtyPages, dirty),
        (Column::ZeroPages, with_zeros),
    ] {
        if pages > total.0 {
            return Err(wrong(column, Fault::MoreThanAll { pages, total: total.0 }));
        }
    }
    if duration == Nanos::ZERO && sent > 0 {
        return Err(wrong(Column::DurationUs, Fault::NoTime { sent }));
    }
    Ok(RoundEnd {
        round,
        sent: Pages(sent),
        dirty: Pages(dirty),
        previous_dirty: last.dirty.saturating_sub(Pages(zero)),
        duration,
        elapsed: Nanos(elapsed),
    })
}

/// A number of decimal digits alone.
fn number(text: &str) -> Result<u64, Fault> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let decimal = |text: &str| match text.split_once('.') {
        Some((whole, part)) => digits(whole) && digits(part),
        None => digits(text),
    };
    if digits(text) {
        return text.parse().map_err(|_| Fault::TooLarge {
            text: text.into(),
            max: u64::MAX,
        });
    }
    Err(match text.strip_prefix('-') {
        _ if text.is_empty() => Fault::NoValue,
        _ if text.starts_with('#') => Fault::LateComment,
        Some(rest) if decimal(rest) => Fault::Negative(text.into()),
        None if decimal(text) => Fault::Fraction(text.into()),
        _ => Fault::NotANumber(text.into()),
    })
}

fn within_u32(text: &str, number: u64) -> Result<u32, Fault> {
    u32::try_from(number).map_err(|_| Fault::TooLarge {
        text: text.into(),
        max: u64::from(u32::MAX),
    })
}

/// Takes a line apart at its commas.
struct Values {
    parser: csv_core::Reader,
    /// Room for a whole line.
    unquoted: Vec<u8>,
    /// Up to where the line was read, or `None` at its end.
    next: Option<usize>,
}

/// A value without quotation marks and surrounding blanks, and where it begins in the line.
struct Field<'a> {
    text: &'a str,
    byte: usize,
}

impl Values {
    fn new() -> Self {
        Self {
            parser: csv_core::Reader::new(),
            unquoted: Vec::new(),
            next: None,
        }
    }

    fn begin(&mut self, line: Line<'_>) {
        self.parser.reset();
        self.unquoted.resize(line.terminated().len(), 0);
        self.next = Some(0);
    }

    fn next(&mut self, line: Line<'_>) -> Result<Option<Field<'_>>, LogError> {
        let Some(start) = self.next else {
            return Ok(None);
        };
        let rest = &line.terminated()[start..];
        let (found, read, written) = self.parser.read_field(rest.as_bytes(), &mut self.unquoted);
        let end = start + read;
        self.next = match found {
            ReadFieldResult::Field { record_end: false } => Some(end),
            ReadFieldResult::Field { record_end: true } if end == line.terminated().len() => None,
            ReadFieldResult::Field { record_end: true } => {
                return Err(line.wrong(end - 1, None, Fault::CarriageReturn));
            }
            // The line feed belongs to the value.
            _ => return Err(line.wrong(start, None, Fault::OpenQuote)),
        };
        let text = str::from_utf8(&self.unquoted[..written]).unwrap_or_default().trim();
        let blanks = if text.is_empty() {
            0
        } else {
            rest.len() - rest.trim_start().len()
        };
        Ok(Some(Field {
            text,
            byte: start + blanks,
        }))
    }
}
