//! Who is at the other end of a connection, what that one may, and what is kept about who did.
//!
//! Every connection of a migration between hosts goes by mutual TLS 1.3. A certificate names its holder by URI or DNS name; the
//! source says whom it wants to reach, the target hands on who came. All connections of one migration are bound to one
//! [`Session`]: who cannot prove that he took part in the first one joins none of them, however good his certificate is.
//!
//! [`policy`] decides before anything is allocated or connected, [`audit`] keeps what was decided and what came of it, and
//! [`commit`] has both sides sign what they hand over, so that neither can deny it later. [`sandbox`] takes from the process what
//! it does not need.

pub mod audit;
mod choice;
pub mod commit;
mod credentials;
mod error;
mod exporter;
mod identity;
mod peer;
pub mod pki;
pub mod policy;
pub mod sandbox;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod verify;

pub(crate) use choice::expected;
pub use choice::{DIRECTORY_VARIABLE, Security, default_directory};
pub use credentials::{Credentials, Files};
pub use error::TrustError;
pub use identity::{Identity, Name, NameError};
pub use peer::Peer;
pub use session::{Binding, Session, Sessions, Trusted};
pub use tls::{Admission, Visit};
