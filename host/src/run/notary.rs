//! Both sides sign what is handed over, so that neither can deny it later.

use std::error::Error;

use super::recorder::Recorder;
use crate::trust::commit::{CommitError, Side, Signing};

/// Keeps what is handed over until both sides have signed it.
pub trait Notary: Send {
    /// Signs it as `side`, this host's.
    ///
    /// # Errors
    /// Whatever keeps it from being signed, in words.
    fn sign(&mut self, side: Side, signing: &Signing) -> Result<Vec<u8>, Box<dyn Error>>;

    /// Takes the signature of `side`, the other host's, which came over a connection; `None` if none came.
    ///
    /// # Errors
    /// Why it is not one of what is handed over, in words; then it must not be.
    fn countersign(&mut self, side: Side, signing: &Signing, signature: Option<&[u8]>) -> Result<(), Box<dyn Error>>;
}

impl Notary for Recorder {
    fn sign(&mut self, side: Side, signing: &Signing) -> Result<Vec<u8>, Box<dyn Error>> {
        let commit = self.commit_mut().ok_or(CommitError::Unsigned)?;
        let signature = signing.sign(&commit.record, side)?;
        let bytes = signature.bytes()?;
        commit.add(side, signature)?;
        Ok(bytes)
    }

    fn countersign(&mut self, side: Side, signing: &Signing, signature: Option<&[u8]>) -> Result<(), Box<dyn Error>> {
        let (commit, signature) = (self.commit_mut(), signature.ok_or(CommitError::Unsigned)?);
        let commit = commit.ok_or(CommitError::Unsigned)?;
        Ok(commit.add(side, signing.of_peer(signature))?)
    }
}
