//! What is handed over is signed by both sides: the target before it is given up, this side with the word that it is.

use super::*;
use crate::trust::commit::{CommitError, Side};

impl Worker<'_, '_, '_, '_> {
    pub(super) fn record(&mut self, record: SourceRecord) {
        if record == SourceRecord::Running {
            self.take_back_word();
        }
        let signed = match record {
            SourceRecord::GivenUp => self.sign_hand_over(),
            SourceRecord::Running | SourceRecord::MovedAway => Ok(()),
        };
        match signed.and_then(|()| self.run.recorder.record(record, self.link.session)) {
            Ok(()) => self.shared.feed(SourceEvent::Done),
            Err(error) => {
                self.shared.note(error.as_ref());
                self.shared.feed(SourceEvent::Failed);
            }
        }
    }

    /// Nothing is given up to a target that has not signed what it takes; in plain nobody signs.
    fn sign_hand_over(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        if self.link.visit.is_none() {
            return Ok(());
        }
        let (signature, signing) = self.shared.take_signature().ok_or(CommitError::Unsigned)?;
        self.run
            .recorder
            .countersign(Side::Target, &signing, Some(&signature))?;
        self.run.recorder.sign(Side::Source, &signing).map(drop)
    }

    /// Says on the connection of the moment that this side has given up what it hands over, by its key there.
    pub(super) fn send_signature(&mut self) -> Result<(), FrameError> {
        let stream = self.migration.as_ref().map(|sender| Arc::clone(sender.stream()));
        let Some((stream, signing)) = stream.and_then(|stream| {
            let signing = stream.trusted()?.signing.clone();
            Some((stream, signing))
        }) else {
            return Ok(());
        };
        let signature =
            self.run.recorder.sign(Side::Source, &signing).map_err(|error| {
                stream.error("sign what is handed over to", std::io::Error::other(error.to_string()))
            })?;
        self.message(&Message::Signed { signature: &signature })
    }
}
