//! What Dunlin reports: the JSON documents of the command line, and their tables for people.
//!
//! Field names, units and meanings are a contract. Later versions add fields, never change or drop one.
#![forbid(unsafe_code)]

pub mod chart;
mod migration;
mod progress;
mod record;
mod schema;
mod status;
mod table;
mod text;
mod vm;

pub use migration::{
    ByteCounts, ChoiceReport, GuestImpact, MigrationReport, Outcome, PostcopyReport, Predicted, RoundReport,
    SamplingReport, SwitchReport, Verification,
};
pub use progress::Progress;
pub use record::{OverheadReport, RecordReport, record_summary};
pub use schema::{GuestSchema, MigrationSchema, ReceiveSchema, RecordSchema, RecordingSchema, StatusSchema};
pub use status::{RecordingStatus, State, Status, TrackingStatus};
pub use table::{Paint, migration_table, status_lines};
pub use text::{bytes, chain, count, duration, milli, rate};
pub use vm::{GuestReport, ReceiveReport};
