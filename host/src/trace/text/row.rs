//! What a line says, before it is an item.

use dunlin_core::pageset::Run;
use dunlin_core::tracefile::{Item, VCPU_UNKNOWN};
use dunlin_core::units::{Gfn, Nanos, PAGE_SIZE, Pages};

use super::error::{Fault, Field, Unit};

/// A value as it stands in a line.
#[derive(Clone, Copy, Debug)]
struct Cell {
    field: Field,
    /// Where its text is in `texts`.
    from: usize,
    to: usize,
    /// Byte of the line at which it begins.
    byte: usize,
}

/// The values of a line, not more than one a slot.
#[derive(Debug, Default)]
pub(super) struct Row {
    texts: String,
    cells: [Option<Cell>; Field::SLOTS],
}

/// What is wrong with a row, and with which of its values, or byte of the line.
pub(super) struct RowFault {
    pub(super) byte: usize,
    pub(super) field: Option<Field>,
    pub(super) fault: Fault,
}

impl Row {
    pub(super) fn clear(&mut self) {
        self.texts.clear();
        self.cells = [None; Field::SLOTS];
    }

    /// Adds a value that stands at a byte of the line. An empty one is none.
    ///
    /// # Errors
    /// [`Fault::Twice`].
    pub(super) fn add(&mut self, field: Field, text: &str, byte: usize) -> Result<(), RowFault> {
        if text.is_empty() {
            return Ok(());
        }
        let from = self.texts.len();
        self.texts.push_str(text);
        let cell = Cell {
            field,
            from,
            to: self.texts.len(),
            byte,
        };
        match self.cells[field.slot()].replace(cell) {
            None => Ok(()),
            Some(first) => Err(RowFault {
                byte,
                field: Some(field),
                fault: Fault::Twice {
                    first: first.field,
                    second: field,
                },
            }),
        }
    }

    /// The item of this row. Its time is as in the text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn item(&self) -> Result<Item, RowFault> {
        let kind = self.cell(Field::Kind).map_or("write", |cell| self.text(cell));
        Ok(match kind {
            "write" => {
                self.only(
                    "a write",
                    &[Field::At(Unit::Nanos), Field::Vcpu, Field::Gfn, Field::Pages],
                )?;
                if let Some(pages) = self.number(Field::Pages)?.filter(|pages| *pages != 1) {
                    return Err(self.fault(Field::Pages, Fault::WidePage(pages)));
                }
                Item::Write {
                    at: self.at()?,
                    vcpu: self.vcpu()?,
                    gfn: self.page()?,
                }
            }
            "dirty" => {
                self.only("dirty", &[Field::Gfn, Field::Pages])?;
                let pages = Pages(self.number(Field::Pages)?.unwrap_or(1));
                Item::Dirty {
                    run: Run::new(self.page()?, pages),
                }
            }
            "window-end" => {
                self.only("window-end", &[Field::At(Unit::Nanos), Field::Vcpu])?;
                Item::WindowEnd {
                    at: self.at()?,
                    vcpu: self.vcpu()?,
                }
            }
            "lost" => {
                self.only("lost", &[Field::At(Unit::Nanos), Field::Value])?;
                Item::Lost {
                    at: self.at()?,
                    events: self.value("how many were lost: write it as value")?,
                }
            }
            "steps" => {
                self.only("steps", &[Field::At(Unit::Nanos), Field::Vcpu, Field::Value])?;
                Item::Steps {
                    at: self.at()?,
                    vcpu: self.vcpu()?,
                    steps: self.value("how many steps there were: write it as value")?,
                }
            }
            "end" => {
                self.only("end", &[Field::At(Unit::Nanos), Field::Value])?;
                Item::End {
                    at: self.at()?,
                    overhead: Nanos(self.number(Field::Value)?.unwrap_or(0)),
                }
            }
            other => return Err(self.fault(Field::Kind, Fault::Kind(other.into()))),
        })
    }

    /// That the row says something wrong, at the time if it has one.
    pub(super) fn wrong_time(&self, fault: Fault) -> RowFault {
        self.fault(Field::At(Unit::Nanos), fault)
    }

    /// The same at the page.
    pub(super) fn wrong_page(&self, fault: Fault) -> RowFault {
        self.fault(Field::Gfn, fault)
    }

    /// The same at the vCPU.
    pub(super) fn wrong_vcpu(&self, fault: Fault) -> RowFault {
        self.fault(Field::Vcpu, fault)
    }

    fn cell(&self, field: Field) -> Option<&Cell> {
        self.cells[field.slot()].as_ref()
    }

    fn text(&self, cell: &Cell) -> &str {
        &self.texts[cell.from..cell.to]
    }

    /// That a value is wrong, or is not there.
    fn fault(&self, field: Field, fault: Fault) -> RowFault {
        let cell = self.cell(field);
        RowFault {
            byte: cell.map_or(0, |cell| cell.byte),
            field: cell.map(|cell| cell.field),
            fault,
        }
    }

    /// Kind and these are all that there is.
    fn only(&self, kind: &'static str, fields: &[Field]) -> Result<(), RowFault> {
        let has_place = |cell: &Cell| {
            let slot = cell.field.slot();
            slot == Field::Kind.slot() || fields.iter().any(|field| field.slot() == slot)
        };
        match self.cells.iter().flatten().find(|cell| !has_place(cell)) {
            None => Ok(()),
            Some(cell) => Err(self.fault(cell.field, Fault::NoPlace { kind })),
        }
    }

    fn at(&self) -> Result<Nanos, RowFault> {
        let missing = || Fault::Missing("when it was: write at_ns, at_us, at_ms or at_s");
        let Some(cell) = self.cell(Field::At(Unit::Nanos)) else {
            return Err(self.fault(Field::Kind, missing()));
        };
        let places = match cell.field {
            Field::At(unit) => unit.places(),
            _ => 0,
        };
        let nanos = scaled(self.text(cell), places).map_err(|fault| self.fault(cell.field, fault))?;
        Ok(Nanos(nanos))
    }

    fn vcpu(&self) -> Result<u32, RowFault> {
        match self.number(Field::Vcpu)? {
            None => Ok(VCPU_UNKNOWN),
            Some(vcpu) => match u32::try_from(vcpu) {
                Ok(vcpu) if vcpu != VCPU_UNKNOWN => Ok(vcpu),
                _ => Err(self.fault(Field::Vcpu, Fault::TooLarge(vcpu.to_string()))),
            },
        }
    }

    fn page(&self) -> Result<Gfn, RowFault> {
        let Some(cell) = self.cell(Field::Gfn) else {
            return Err(self.fault(Field::Kind, Fault::Missing("which page it was: write gfn or address")));
        };
        let text = self.text(cell);
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => hexadecimal(text, digits),
            None => decimal(text),
        };
        let number = number.map_err(|fault| self.fault(cell.field, fault))?;
        Ok(Gfn(match cell.field {
            Field::Address => number / PAGE_SIZE,
            _ => number,
        }))
    }

    fn value(&self, what: &'static str) -> Result<u64, RowFault> {
        let value = self.number(Field::Value)?;
        value.ok_or_else(|| self.fault(Field::Kind, Fault::Missing(what)))
    }

    fn number(&self, field: Field) -> Result<Option<u64>, RowFault> {
        let Some(cell) = self.cell(field) else { return Ok(None) };
        let number = decimal(self.text(cell)).map_err(|fault| self.fault(field, fault))?;
        Ok(Some(number))
    }
}

/// A number of decimal digits alone.
pub(super) fn decimal(text: &str) -> Result<u64, Fault> {
    scaled(text, 0)
}

fn hexadecimal(text: &str, digits: &str) -> Result<u64, Fault> {
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(Fault::NotANumber(text.into()));
    }
    u64::from_str_radix(digits, 16).map_err(|_| Fault::TooLarge(text.into()))
}

/// A number times a power of ten, rounded down. Only with a power above 0 it may have a decimal point.
fn scaled(text: &str, places: usize) -> Result<u64, Fault> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_decimal = |text: &str| match text.split_once('.') {
        Some((whole, part)) => digits(whole) && digits(part),
        None => digits(text),
    };
    if !is_decimal(text) {
        let is_exponent = |text: &str| {
            let parts = text.split_once(['e', 'E']);
            parts.is_some_and(|(number, power)| is_decimal(number) && digits(power.trim_start_matches(['-', '+'])))
        };
        return Err(match text.strip_prefix('-') {
            Some(rest) if is_decimal(rest) => Fault::Negative(text.into()),
            _ if is_exponent(text) => Fault::Fraction(text.into()),
            _ => Fault::NotANumber(text.into()),
        });
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if places == 0 && text.contains('.') {
        return Err(Fault::Fraction(text.into()));
    }
    let padded = part.bytes().chain(std::iter::repeat(b'0')).take(places);
    let number = whole.bytes().chain(padded).try_fold(0_u64, |number, digit| {
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    number.ok_or_else(|| Fault::TooLarge(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_every_unit_are_exact() {
        for (text, places, nanos) in [
            ("0", 0, 0),
            ("18446744073709551615", 0, u64::MAX),
            ("12345.678901234", 9, 12_345_678_901_234),
            ("0.0000000019", 9, 1),
            ("20.5", 3, 20_500),
            ("7", 6, 7_000_000),
            ("000000000000000000000000001.5", 3, 1_500),
        ] {
            assert_eq!(scaled(text, places), Ok(nanos), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_named() {
        let text = |text: &str| text.to_owned();
        for (number, places, fault) in [
            ("1.5", 0, Fault::Fraction(text("1.5"))),
            ("1e-5", 9, Fault::Fraction(text("1e-5"))),
            ("-5", 0, Fault::Negative(text("-5"))),
            ("-5.5", 9, Fault::Negative(text("-5.5"))),
            ("+5", 0, Fault::NotANumber(text("+5"))),
            (".5", 9, Fault::NotANumber(text(".5"))),
            ("5.", 9, Fault::NotANumber(text("5."))),
            ("1.2.3", 9, Fault::NotANumber(text("1.2.3"))),
            ("soon", 9, Fault::NotANumber(text("soon"))),
            ("18446744073709551616", 0, Fault::TooLarge(text("18446744073709551616"))),
            ("18446744074", 9, Fault::TooLarge(text("18446744074"))),
        ] {
            assert_eq!(scaled(number, places), Err(fault));
        }
        assert_eq!(hexadecimal("0xff", "ff"), Ok(255));
        assert_eq!(hexadecimal("0x", ""), Err(Fault::NotANumber(text("0x"))));
        assert_eq!(hexadecimal("0x+f", "+f"), Err(Fault::NotANumber(text("0x+f"))));
        let long = "0x10000000000000000";
        assert_eq!(hexadecimal(long, &long[2..]), Err(Fault::TooLarge(text(long))));
    }
}
