//! Who may move which VM where, and what is kept about who did.
//!
//! [`policy`] decides before anything is allocated or connected, [`audit`] keeps what was decided and what came of it, and
//! [`commit`] has both sides sign what they hand over, so that neither can deny it later. [`sandbox`] takes from the process what
//! it does not need.

pub mod audit;
pub mod commit;
mod peer;
pub mod policy;
pub mod sandbox;

pub use peer::Peer;
