//! A recording as its client sees it.

use super::{
    ControlError,
    client::Client,
    protocol::Request,
    recording::{Decoder, Message, RecordingAnswer},
};
use crate::channel::Wait;

/// A connection over which a VM is recorded. When it is dropped the recording ends.
#[derive(Debug)]
pub struct RecordingSession {
    client: Client,
    decoder: Decoder,
    answer: RecordingAnswer,
}

impl RecordingSession {
    pub(super) fn new(mut client: Client, answer: RecordingAnswer) -> Self {
        Self {
            decoder: Decoder::new(client.take_rest()),
            client,
            answer,
        }
    }

    /// What the process says of the VM.
    pub const fn answer(&self) -> &RecordingAnswer {
        &self.answer
    }

    /// Lets tracking begin. Whoever looks into the kernel does so from before this on.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn go(&self, wait: Wait<'_>) -> Result<(), ControlError> {
        self.client.send(&Request::Go, wait)
    }

    /// Lets it end; messages follow up to [`Message::End`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn stop(&self, wait: Wait<'_>) -> Result<(), ControlError> {
        self.client.send(&Request::Stop, wait)
    }

    /// Waits for the next message. After an error of its `wait` it may be called again.
    ///
    /// # Errors
    /// [`ControlError`]; [`ControlError::Lost`] when the process is gone.
    pub fn next(&mut self, wait: Wait<'_>) -> Result<Message, ControlError> {
        let message = self.decoder.next(self.client.stream(), wait)?;
        message.ok_or_else(|| self.client.lost())
    }

    /// The connection, after [`Message::End`], for further questions.
    pub fn into_client(mut self) -> Client {
        self.client.put_rest(self.decoder.rest());
        self.client
    }
}
