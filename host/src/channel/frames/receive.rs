//! The receiving half of a stream.

use super::*;
use crate::trust::TrustError;

/// First bytes of an alert and of a handshake by any TLS (RFC 8446, 5.1): what a peer that speaks it begins with.
const TLS_BEGINNINGS: [[u8; 2]; 2] = [[21, 3], [22, 3]];

/// The receiving half of a stream.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: Arc<Stream>,
    /// How long the rest of a frame may take once it has begun.
    patience: Duration,
    cancel: Cancel,
    check: SequenceCheck,
    ahead: Vec<u8>,
    start: usize,
    end: usize,
    pub(super) payload: Vec<u8>,
    last_was_bulk: bool,
    received: u64,
}

impl FrameReceiver {
    /// A receiver at the beginning of a stream; a frame that has begun may take `patience`, unless `cancel` is raised.
    pub fn new(stream: Arc<Stream>, patience: Duration, cancel: Cancel) -> Self {
        Self {
            stream,
            patience,
            cancel,
            check: SequenceCheck::default(),
            ahead: vec![0; READ_AHEAD],
            start: 0,
            end: 0,
            payload: Vec::new(),
            last_was_bulk: false,
            received: 0,
        }
    }

    /// The stream it reads.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Bytes received so far, headers included.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// True if a frame may be waiting that the socket does not show any more.
    pub fn has_buffered(&self) -> bool {
        self.has_ahead() || self.stream.has_buffered()
    }

    fn has_ahead(&self) -> bool {
        self.start < self.end
    }

    /// The next header, waiting at most `idle` for it to begin; its payload, if its kind has one, must be read before the next
    /// call. `None` if nothing came.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn header(&mut self, idle: Duration) -> Result<Option<FrameHeader>, FrameError> {
        if !self.has_ahead() {
            match self.stream.wait_readable(Wait::within(idle, &self.cancel)) {
                Err(ChannelError::TimedOut { .. }) => return Ok(None),
                other => other?,
            }
        }
        self.decode().map(Some)
    }

    /// As [`header`](Self::header), reading with `read`, one of the methods of [`Stream`], instead of waiting and then
    /// reading: for frames that somebody waits for one by one.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn header_by(
        &mut self,
        read: impl FnOnce(&Stream, &mut [u8]) -> Result<Option<usize>, ChannelError>,
    ) -> Result<Option<FrameHeader>, FrameError> {
        if !self.has_ahead() {
            let ahead = self.ahead_of_header();
            match read(&self.stream, &mut self.ahead[..ahead])? {
                None => return Ok(None),
                Some(0) => return Err(self.closed()),
                Some(read) => (self.start, self.end) = (0, read),
            }
        }
        self.decode().map(Some)
    }

    /// After bulk data the next frame is probably bulk data too, which must not be read into the wrong place.
    fn ahead_of_header(&self) -> usize {
        if self.last_was_bulk { HEADER_BYTES } else { READ_AHEAD }
    }

    fn decode(&mut self) -> Result<FrameHeader, FrameError> {
        let mut bytes = [0; HEADER_BYTES];
        let filled = self.fill(&mut bytes, self.ahead_of_header());
        if self.check == SequenceCheck::default() && self.stream.is_plain() && looks_like_tls(&bytes) {
            return Err(ChannelError::Trust {
                peer: self.stream.peer().to_owned(),
                source: Box::new(TrustError::PlainHere),
            }
            .into());
        }
        filled?;
        let header = FrameHeader::decode(&bytes).map_err(|source| self.wire_error(source))?;
        self.check.accept(&header).map_err(|source| self.wire_error(source))?;
        self.last_was_bulk = header.kind == FrameKind::Pages && header.count >= 16;
        Ok(header)
    }

    /// The message of a control frame.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn message(&mut self, header: &FrameHeader) -> Result<Message<'_>, FrameError> {
        let length = (header.count as usize).min(CONTROL_PAYLOAD_MAX);
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(length, 0);
        let filled = self.fill(&mut payload, READ_AHEAD);
        self.payload = payload;
        filled?;
        if header.checksum != Some(checksum_message(&self.payload)) {
            return Err(self.wire_error(WireError::MessageChecksum));
        }
        let peer = self.stream.peer();
        decode_message(&self.payload).map_err(|source| FrameError::Wire {
            peer: peer.to_owned(),
            source,
        })
    }

    /// The pages of a data frame, straight into guest memory. They must not be watched by userfaultfd, and nothing else may
    /// write to them.
    ///
    /// # Errors
    /// [`FrameError`]; the pages hold an unknown mixture then.
    pub fn pages_into(&mut self, memory: &GuestMemory, header: &FrameHeader) -> Result<Run, FrameError> {
        let run = Run::new(header.first, Pages(u64::from(header.count)));
        memory.check(run)?;
        let total = run.count.bytes().0 as usize;
        let cancel = self.cancel.clone();
        let wait = Wait::within(self.patience, &cancel);
        let mut done = (self.end - self.start).min(total);
        if done > 0 {
            memory.write(run.first.0 * PAGE_SIZE, &self.ahead[self.start..self.start + done])?;
            self.start += done;
        }
        if !self.stream.is_plain() {
            self.decrypted_into(memory, run, done, wait)?;
            done = total;
        }
        while done < total {
            match memory.receive(self.stream.as_fd(), &[run], done) {
                Ok(0) => {
                    return Err(self.closed());
                }
                Ok(more) => done += more,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.stream.wait_readable(wait)?,
                Err(error) => return Err(self.stream.error("receive from", error).into()),
            }
            if cancel.is_raised() {
                return Err(ChannelError::Cancelled.into());
            }
        }
        self.received += total as u64;
        match header.checksum {
            Some(sum) if memory.hash_run(run)? != sum => Err(self.damaged(header)),
            _ => Ok(run),
        }
    }

    /// The rest of a data frame, of which `done` bytes are there, by way of a buffer.
    fn decrypted_into(
        &mut self,
        memory: &GuestMemory,
        run: Run,
        mut done: usize,
        wait: Wait<'_>,
    ) -> Result<(), FrameError> {
        let total = run.count.bytes().0 as usize;
        let mut piece = std::mem::take(&mut self.payload);
        piece.resize(DECRYPTED_BYTES, 0);
        let moved = loop {
            if done == total {
                break Ok(());
            }
            let wanted = piece.len().min(total - done);
            let read = match self.stream.read_some(&mut piece[..wanted], wait) {
                Ok(0) => break Err(self.closed()),
                Ok(read) => read,
                Err(error) => break Err(error.into()),
            };
            if let Err(error) = memory.write(run.first.0 * PAGE_SIZE + done as u64, &piece[..read]) {
                break Err(error.into());
            }
            done += read;
            if wait.cancel().is_raised() {
                break Err(ChannelError::Cancelled.into());
            }
        };
        self.payload = piece;
        moved
    }

    /// The pages of a data frame in a buffer of the receiver.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn pages(&mut self, header: &FrameHeader) -> Result<&[u8], FrameError> {
        let length = header.count.min(RUN_PAGES_MAX) as usize * PAGE_SIZE as usize;
        let pages = if self.end - self.start >= length {
            self.received += length as u64;
            self.start += length;
            &self.ahead[self.start - length..self.start]
        } else {
            let mut payload = std::mem::take(&mut self.payload);
            payload.resize(length, 0);
            let filled = self.fill(&mut payload, HEADER_BYTES);
            self.payload = payload;
            filled?;
            &self.payload
        };
        match header.checksum {
            Some(sum) if XxHash3_64::oneshot(pages) != sum => Err(self.damaged(header)),
            _ => Ok(pages),
        }
    }

    /// Fills `into`, first from what was read ahead; reads up to `ahead` bytes at once for small pieces.
    fn fill(&mut self, into: &mut [u8], ahead: usize) -> Result<(), FrameError> {
        let cancel = self.cancel.clone();
        let wait = Wait::within(self.patience, &cancel);
        self.received += into.len() as u64;
        let mut filled = 0;
        while filled < into.len() {
            let buffered = (self.end - self.start).min(into.len() - filled);
            if buffered > 0 {
                into[filled..filled + buffered].copy_from_slice(&self.ahead[self.start..self.start + buffered]);
                self.start += buffered;
                filled += buffered;
            } else if into.len() - filled >= ahead {
                self.stream.read_exact(&mut into[filled..], wait)?;
                filled = into.len();
            } else {
                (self.start, self.end) = (0, 0);
                match self.stream.read_some(&mut self.ahead[..ahead], wait)? {
                    0 => return Err(self.closed()),
                    read => self.end = read,
                }
            }
        }
        Ok(())
    }

    fn closed(&self) -> FrameError {
        FrameError::Channel(ChannelError::Closed {
            peer: self.stream.peer().to_owned(),
        })
    }

    fn damaged(&self, header: &FrameHeader) -> FrameError {
        FrameError::PageChecksum {
            peer: self.stream.peer().to_owned(),
            first: header.first,
            count: header.count,
        }
    }

    fn wire_error(&self, source: WireError) -> FrameError {
        FrameError::Wire {
            peer: self.stream.peer().to_owned(),
            source,
        }
    }
}

/// Also of a beginning that nothing follows: an alert is shorter than a header.
fn looks_like_tls(bytes: &[u8; HEADER_BYTES]) -> bool {
    TLS_BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning))
}

/// Reads the first message of a connection, for at most `patience`.
///
/// # Errors
/// [`FrameError`]; [`ChannelError::TimedOut`] if nothing comes, [`FrameError::Unexpected`] for any other kind of frame.
pub fn first_message(receiver: &mut FrameReceiver, patience: Duration) -> Result<Message<'_>, FrameError> {
    let Some(header) = receiver.header(patience)? else {
        return Err(ChannelError::TimedOut {
            peer: receiver.stream.peer().to_owned(),
            after: patience,
        }
        .into());
    };
    match header.kind {
        FrameKind::Control => receiver.message(&header),
        _ => Err(FrameError::unexpected(receiver.stream.peer())),
    }
}
