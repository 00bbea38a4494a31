//! Steering stock QEMU, 7.2 or newer, through its machine protocol alone.
//!
//! [`Client`] speaks QMP. Its preflight finds what stands in a migration's way, [`Driver`] carries it out, with the rules of
//! [`dunlin_core::switch`] asked at the end of each pass, and brings it to an end whatever happens to the network, to either QEMU's
//! monitor, or to the driver itself.
#![forbid(unsafe_code)]

mod address;
mod agent;
mod client;
mod driver;
mod error;
mod info;
mod line;
mod link;
mod memo;
mod plan;
mod preflight;
mod recover;
mod report;
mod saving;
mod settings;
mod side;
mod soften;
mod table;
mod watch;

pub use address::{Address, AddressError};
pub use agent::AgentError;
pub use client::{Client, Notice, PATIENCE, Version};
pub use driver::{DriveError, Driver, News};
pub use error::QmpError;
pub use info::{GuestStatus, Info, Phase};
#[doc(hidden)]
pub use line::{Line, Unread, read_line};
pub use link::Role;
pub use memo::{Memo, Steered, usual_folder};
pub use plan::Plan;
pub use preflight::{Finding, Severity};
pub use report::{Outcome, Report, Switch, pass_json, turn_json};
pub use saving::{Origin, Saving};
pub use settings::Settings;
pub use side::Side;
pub use soften::SofteningReport;
pub use table::{progress_line, qemu_table, turn_line};
pub use watch::{Look, Sight, Watch, look_json, look_lines, outlook_line};
