//! In the place of reports: numbers for people.

/// So many bytes.
pub fn bytes(bytes: u64) -> String {
    format!("{bytes} B")
}
