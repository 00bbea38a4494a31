//! Reading a text.

use std::io::BufRead;

use dunlin_core::tracefile::{Head, Item, ItemError};
use dunlin_core::units::Nanos;

use super::csv::Values;
use super::error::{Fault, TextError};
use super::lines::Lines;
use super::row::{Row, RowFault};
use super::said::Said;
use super::{TextFormat, json};

/// The items of a text, one after the other. Times of what comes never fall; after an error nothing comes.
///
/// Accepted are LF and CRLF, blank lines, a byte order mark, and an end without a line break.
#[derive(Debug)]
pub struct TextReader<R> {
    lines: Lines<R>,
    format: TextFormat,
    values: Values,
    row: Row,
    said: Said,
    /// What items are checked against.
    head: Option<Head>,
    /// The first line of JSON was read and is an item.
    is_ahead: bool,
    origin: Option<Nanos>,
    last: Nanos,
    ended: bool,
    failed: bool,
}

impl<R: BufRead> TextReader<R> {
    /// Reads up to the first item.
    ///
    /// # Errors
    /// [`TextError`] if there is no proper header, or what is said of the trace cannot be.
    pub fn open(from: R, format: TextFormat) -> Result<Self, TextError> {
        let mut reader = Self {
            lines: Lines::new(from),
            format,
            values: Values::new(),
            row: Row::default(),
            said: Said::default(),
            head: None,
            is_ahead: false,
            origin: None,
            last: Nanos::ZERO,
            ended: false,
            failed: false,
        };
        match format {
            TextFormat::Csv => reader.read_header()?,
            TextFormat::JsonLines => reader.read_first_object()?,
        }
        if reader.said.from_start {
            reader.origin = Some(Nanos::ZERO);
        }
        Ok(reader)
    }

    /// What the text says of its trace.
    pub const fn said(&self) -> &Said {
        &self.said
    }

    /// Checks items against this head from here on: their pages and vCPUs.
    pub fn check_against(&mut self, head: Head) {
        self.head = Some(head);
    }

    /// That something is wrong with the line that was read last.
    pub fn wrong(&self, fault: Fault) -> TextError {
        self.lines.wrong(0, None, fault)
    }

    fn read_header(&mut self) -> Result<(), TextError> {
        while self.lines.advance()? {
            if let Some(comment) = comment(self.lines.text()) {
                let heard = self.said.hear_comment(comment);
                heard.map_err(|fault| self.wrong(fault))?;
                continue;
            }
            let header = self.values.read_header(self.lines.terminated());
            return header.map_err(|fault| self.wrong_row(fault));
        }
        Err(self.wrong(Fault::NoHeader))
    }

    fn read_first_object(&mut self) -> Result<(), TextError> {
        if self.lines.advance()? {
            let object = json::object(self.lines.text()).map_err(|fault| self.wrong_row(fault))?;
            let is_said = self.said.hear_object(&object);
            self.is_ahead = !is_said.map_err(|fault| self.wrong(fault))?;
        }
        Ok(())
    }

    fn next_item(&mut self) -> Result<Option<Item>, TextError> {
        loop {
            if !std::mem::take(&mut self.is_ahead) && !self.lines.advance()? {
                return Ok(None);
            }
            if self.format == TextFormat::JsonLines || comment(self.lines.text()).is_none() {
                break;
            }
        }
        let read = match self.format {
            TextFormat::Csv => self.values.read(self.lines.terminated(), &mut self.row),
            TextFormat::JsonLines => {
                let line = self.lines.text();
                json::object(line).and_then(|object| json::read(line, &object, &mut self.row))
            }
        };
        let item = read.and_then(|()| self.row.item()).and_then(|item| self.checked(item));
        item.map(Some).map_err(|fault| self.wrong_row(fault))
    }

    /// The item with its time from the trace's start.
    fn checked(&mut self, mut item: Item) -> Result<Item, RowFault> {
        if self.ended {
            return Err(self.row.wrong_time(Fault::Item(ItemError::AfterEnd)));
        }
        if let Some(at) = time_of(&mut item) {
            let origin = *self.origin.get_or_insert(*at);
            let earlier = Fault::Earlier { last: self.last };
            let since = at.0.checked_sub(origin.0).filter(|since| *since >= self.last.0);
            *at = Nanos(since.ok_or_else(|| self.row.wrong_time(earlier))?);
            self.last = *at;
        }
        if let Some(Err(fault)) = self.head.as_ref().map(|head| head.check_item(&item)) {
            return Err(match fault {
                ItemError::Vcpu { .. } => self.row.wrong_vcpu(Fault::Item(fault)),
                _ => self.row.wrong_page(Fault::Item(fault)),
            });
        }
        self.ended = matches!(item, Item::End { .. });
        Ok(item)
    }

    fn wrong_row(&self, fault: RowFault) -> TextError {
        self.lines.wrong(fault.byte, fault.field, fault.fault)
    }
}

impl<R: BufRead> Iterator for TextReader<R> {
    type Item = Result<Item, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_item();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// What stands behind the `#` of a comment.
fn comment(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix('#')
}

const fn time_of(item: &mut Item) -> Option<&mut Nanos> {
    match item {
        Item::Dirty { .. } => None,
        Item::Write { at, .. }
        | Item::WindowEnd { at, .. }
        | Item::Lost { at, .. }
        | Item::Steps { at, .. }
        | Item::End { at, .. } => Some(at),
    }
}
