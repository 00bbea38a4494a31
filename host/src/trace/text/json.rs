//! Lines of JSON.

use serde_json::{Map, Value};

use super::error::{Fault, Field};
use super::row::{Row, RowFault};

/// The object of a line.
pub(super) fn object(line: &str) -> Result<Map<String, Value>, RowFault> {
    serde_json::from_str(line).map_err(|error| {
        // The place is said already.
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        let before = line.len().min(error.column().saturating_sub(1));
        RowFault {
            byte: before,
            field: None,
            fault: Fault::Json(reason),
        }
    })
}

/// Reads an object.
pub(super) fn read(line: &str, object: &Map<String, Value>, row: &mut Row) -> Result<(), RowFault> {
    row.clear();
    for (key, value) in object {
        let byte = || line.find(&format!("{key:?}")).unwrap_or(0);
        let Some(field) = Field::from_name(key) else {
            return Err(RowFault {
                byte: byte(),
                field: None,
                fault: Fault::UnknownField(key.clone()),
            });
        };
        match value {
            Value::Null => {}
            // The shortest text that means the number, which is that of the line but for what no number can hold.
            Value::Number(number) => row.add(field, &number.to_string(), byte())?,
            Value::String(text) => row.add(field, text.trim(), byte())?,
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                return Err(RowFault {
                    byte: byte(),
                    field: Some(field),
                    fault: Fault::NotANumber(value.to_string()),
                });
            }
        }
    }
    Ok(())
}
