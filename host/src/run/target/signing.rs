//! What is handed over is signed by both sides: by this one when it is ready to take it, by the source when it has given it up.

use super::*;
use crate::trust::commit::Side;

impl Worker<'_, '_, '_, '_> {
    /// Says on the connection of the moment what this side is ready to take, by its key there.
    pub(super) fn send_signature(&mut self) -> Result<(), FrameError> {
        let Some(signing) = self.mouth.signing() else {
            return Ok(());
        };
        let signature = self
            .recorder
            .sign(Side::Target, &signing)
            .map_err(|error| ChannelError::Io {
                action: "sign what is handed over to",
                peer: "the source".to_owned(),
                source: std::io::Error::other(error.to_string()),
            })?;
        self.mouth.say(&Message::Signed { signature: &signature })
    }

    /// Nothing is taken of a source that has not signed that it gave it up. What it says in the directory, which nobody else can seal,
    /// is believed without; in plain nobody signs.
    pub(super) fn countersign(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        match self.commit.take() {
            Some((signature, signing)) => self.recorder.countersign(Side::Source, &signing, signature.as_deref()),
            None => Ok(()),
        }
    }
}
