//! Who is at the other end of a connection, and what keeps everybody else out.
//!
//! Every connection of a migration between hosts goes by mutual TLS 1.3. A certificate names its holder by URI or DNS name; the
//! source says whom it wants to reach, the target hands on who came. All connections of one migration are bound to one
//! [`Session`]: who cannot prove that he took part in the first one joins none of them, however good his certificate is.
#![forbid(unsafe_code)]

mod choice;
mod credentials;
mod error;
mod exporter;
mod identity;
pub mod pki;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod verify;

pub(crate) use choice::expected;
pub use choice::{DIRECTORY_VARIABLE, Security, default_directory};
pub use credentials::{Credentials, Files};
pub use error::TrustError;
pub use identity::{Name, NameError, Peer};
pub use session::{Binding, Session, Sessions, Trusted};
pub use tls::{Guard, Visit};
