//! Lines of CSV.

use csv_core::ReadFieldResult;

use super::error::{Fault, Field, Unit};
use super::row::{Row, RowFault};

/// Takes lines apart at their commas.
#[derive(Debug)]
pub(super) struct Values {
    parser: csv_core::Reader,
    /// Room for a whole line.
    unquoted: Vec<u8>,
    /// What the header names.
    columns: Vec<Field>,
}

impl Values {
    pub(super) fn new() -> Self {
        Self {
            parser: csv_core::Reader::new(),
            unquoted: Vec::new(),
            columns: Vec::new(),
        }
    }

    /// Reads the header.
    pub(super) fn read_header(&mut self, terminated: &str) -> Result<(), RowFault> {
        let mut columns: Vec<Field> = Vec::new();
        self.split(terminated, |_, name, byte| {
            let wrong = |field, fault| RowFault { byte, field, fault };
            let Some(second) = Field::from_name(name) else {
                return Err(wrong(None, Fault::UnknownField(name.into())));
            };
            if let Some(first) = columns.iter().copied().find(|first| first.slot() == second.slot()) {
                return Err(wrong(Some(second), Fault::Twice { first, second }));
            }
            columns.push(second);
            Ok(())
        })?;
        for (field, what) in [
            (
                Field::At(Unit::Nanos),
                "when something was: add at_ns, at_us, at_ms or at_s",
            ),
            (Field::Gfn, "which page it was: add gfn or address"),
        ] {
            if columns.iter().all(|column| column.slot() != field.slot()) {
                return Err(RowFault {
                    byte: terminated.len() - 1,
                    field: None,
                    fault: Fault::NoColumn(what),
                });
            }
        }
        self.columns = columns;
        Ok(())
    }

    /// Reads a line of values.
    pub(super) fn read(&mut self, terminated: &str, row: &mut Row) -> Result<(), RowFault> {
        row.clear();
        let columns = std::mem::take(&mut self.columns);
        let count = columns.len();
        let found = self.split(terminated, |index, text, byte| match columns.get(index) {
            Some(field) => row.add(*field, text, byte),
            None => Err(RowFault {
                byte,
                field: None,
                fault: Fault::LongLine { columns: count },
            }),
        });
        self.columns = columns;
        match found? {
            values if values < count => Err(RowFault {
                byte: terminated.len() - 1,
                field: self.columns.get(values).copied(),
                fault: Fault::ShortLine { columns: count },
            }),
            _ => Ok(()),
        }
    }

    /// Calls `each` with the number of every value, the value without quotation marks and blanks around it, and where in the line
    /// it begins. Returns how many there are.
    fn split(
        &mut self,
        terminated: &str,
        mut each: impl FnMut(usize, &str, usize) -> Result<(), RowFault>,
    ) -> Result<usize, RowFault> {
        self.parser.reset();
        self.unquoted.resize(terminated.len(), 0);
        let mut start = 0;
        for index in 0.. {
            let rest = &terminated[start..];
            let (found, read, written) = self.parser.read_field(rest.as_bytes(), &mut self.unquoted);
            let end = start + read;
            let wrong = |byte, fault| RowFault {
                byte,
                field: None,
                fault,
            };
            let is_last = match found {
                ReadFieldResult::Field { record_end: false } => false,
                ReadFieldResult::Field { record_end: true } if end == terminated.len() => true,
                ReadFieldResult::Field { record_end: true } => return Err(wrong(end - 1, Fault::CarriageReturn)),
                // The line feed belongs to the value.
                _ => return Err(wrong(start, Fault::OpenQuote)),
            };
            let text = str::from_utf8(&self.unquoted[..written]).unwrap_or_default().trim();
            let blanks = match text {
                "" => 0,
                _ => rest.len() - rest.trim_start().len(),
            };
            each(index, text, start + blanks)?;
            if is_last {
                return Ok(index + 1);
            }
            start = end;
        }
        Ok(0)
    }
}
