//! The side of the command line.

use super::{
    ControlError,
    line::{LineReader, encode},
    protocol::{MigrateRequest, Request, Resolution, Response},
    recording::RecordRequest,
    session::RecordingSession,
};
use crate::{
    channel::{Address, ChannelError, Stream, Wait, connect},
    report::{MigrationReport, Progress, Status},
};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The longest response, in bytes: a report with a hundred thousand rounds.
const RESPONSE_MAX_BYTES: usize = 16 << 20;

/// A connection to the process that holds a VM.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    lines: LineReader,
    path: PathBuf,
}

/// News of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It goes on.
    Progress(Progress),
    /// It is over.
    Done(Box<MigrationReport>),
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ControlError::NotServed`], [`ControlError::Address`], [`ControlError::Channel`].
    pub fn connect(path: &Path, wait: Wait<'_>) -> Result<Self, ControlError> {
        let stream = connect(&Address::unix(path)?, wait).map_err(|error| match error {
            ChannelError::Refused { .. } => ControlError::NotServed { path: path.into() },
            error => error.into(),
        })?;
        Ok(Self {
            stream,
            lines: LineReader::new(RESPONSE_MAX_BYTES),
            path: path.into(),
        })
    }

    /// The process at the other end, if the system tells.
    pub fn server_pid(&self) -> Option<i32> {
        rustix::net::sockopt::socket_peercred(&self.stream)
            .ok()
            .map(|peer| peer.pid.as_raw_nonzero().get())
    }

    /// What the process is doing.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn status(&mut self, wait: Wait<'_>) -> Result<Status, ControlError> {
        self.ask(&Request::Status, wait)
    }

    /// Stops the migration that is going on.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn cancel(&mut self, wait: Wait<'_>) -> Result<Status, ControlError> {
        self.ask(&Request::Cancel, wait)
    }

    /// Decides about a VM between two hosts.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn resolve(&mut self, resolution: Resolution, wait: Wait<'_>) -> Result<Status, ControlError> {
        self.ask(&Request::Resolve { resolution }, wait)
    }

    /// Starts to move the VM. Then call [`next_event`](Self::next_event) until it is over.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn start_migration(&mut self, request: &MigrateRequest, wait: Wait<'_>) -> Result<(), ControlError> {
        self.send(&Request::Migrate(Box::new(request.clone())), wait)
    }

    /// Waits for news of the migration that this client started. After an error of its `wait` it may be called again.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn next_event(&mut self, wait: Wait<'_>) -> Result<Event, ControlError> {
        match self.response(wait)? {
            Response::Progress(progress) => Ok(Event::Progress(progress)),
            Response::Result(document) => Ok(Event::Done(Box::new(self.document(document)?))),
            Response::Error(failure) => Err(ControlError::Failed(failure)),
        }
    }

    /// Asks for a recording. Nothing is tracked before [`RecordingSession::go`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn start_recording(
        mut self,
        request: &RecordRequest,
        wait: Wait<'_>,
    ) -> Result<RecordingSession, ControlError> {
        let answer = self.ask(&Request::Record(Box::new(request.clone())), wait)?;
        Ok(RecordingSession::new(self, answer))
    }

    pub(super) const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// What was read beyond the last line.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        self.lines.take_rest()
    }

    /// Gives back what was read and is no message.
    pub(super) fn put_rest(&mut self, rest: &[u8]) {
        self.lines.put_rest(rest);
    }

    pub(super) fn lost(&self) -> ControlError {
        ControlError::Lost {
            path: self.path.clone(),
        }
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request, wait: Wait<'_>) -> Result<T, ControlError> {
        self.send(request, wait)?;
        loop {
            match self.response(wait)? {
                Response::Progress(_) => {}
                Response::Result(document) => return self.document(document),
                Response::Error(failure) => return Err(ControlError::Failed(failure)),
            }
        }
    }

    pub(super) fn send(&self, request: &Request, wait: Wait<'_>) -> Result<(), ControlError> {
        match self.stream.write_all(&encode(request), wait) {
            Err(ChannelError::Closed { .. }) => Err(self.lost()),
            sent => Ok(sent?),
        }
    }

    fn response(&mut self, wait: Wait<'_>) -> Result<Response, ControlError> {
        let line = self.lines.next(&self.stream, wait)?.ok_or_else(|| self.lost())?;
        serde_json::from_slice(&line).map_err(|error| self.misunderstood(&error))
    }

    fn document<T: DeserializeOwned>(&self, document: serde_json::Value) -> Result<T, ControlError> {
        serde_json::from_value(document).map_err(|error| self.misunderstood(&error))
    }

    fn misunderstood(&self, error: &serde_json::Error) -> ControlError {
        ControlError::Response {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}
