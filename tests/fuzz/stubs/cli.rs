//! In the place of the command line: how values are written.

#[path = "../../../host/src/cli/values.rs"]
#[expect(dead_code, reason = "not all kinds of values are in a policy")]
pub mod values;
