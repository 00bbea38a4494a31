//! The sending half of a stream.

use super::*;

/// The sending half of a stream.
#[derive(Debug)]
pub struct FrameSender {
    stream: Arc<Stream>,
    bucket: TokenBucket,
    counts: Arc<ByteCounts>,
    sequence: u32,
    buffer: Vec<u8>,
}

impl FrameSender {
    /// A sender that charges everything to `bucket` and counts it in `counts`.
    pub fn new(stream: Arc<Stream>, bucket: TokenBucket, counts: Arc<ByteCounts>) -> Self {
        Self {
            stream,
            bucket,
            counts,
            sequence: 0,
            buffer: vec![0; CONTROL_PAYLOAD_MAX],
        }
    }

    /// The stream it sends on.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Sends a message. Messages are charged to the rate but never wait for it: they are small, and hand-overs hang on them.
    ///
    /// # Errors
    /// [`FrameError::Channel`]; [`FrameError::Wire`] for a message that is too long.
    pub fn message(&mut self, message: &Message<'_>, wait: Wait<'_>) -> Result<(), FrameError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.encode_and_send(message, &mut buffer, wait);
        self.buffer = buffer;
        result
    }

    fn encode_and_send(&mut self, message: &Message<'_>, buffer: &mut [u8], wait: Wait<'_>) -> Result<(), FrameError> {
        let length = encode_message(message, &mut buffer[HEADER_BYTES..]).map_err(|source| self.wire_error(source))?;
        let payload = &buffer[HEADER_BYTES..HEADER_BYTES + length];
        let header = self.header(
            FrameKind::Control,
            Run::new(Gfn::ZERO, Pages(length as u64)),
            Some(checksum_message(payload)),
            0,
        );
        buffer[..HEADER_BYTES].copy_from_slice(&header);
        self.control(&buffer[..HEADER_BYTES + length], wait)
    }

    /// Sends a frame without payload: zero runs of any length, announcements, page requests.
    ///
    /// # Errors
    /// [`FrameError::Channel`].
    pub fn bare(&mut self, kind: FrameKind, run: Run, round: u32, wait: Wait<'_>) -> Result<(), FrameError> {
        let mut first = run.first;
        while first < run.end() {
            let count = (run.end().0 - first.0).min(u64::from(ZERO_RUN_PAGES_MAX));
            let header = self.header(kind, Run::new(first, Pages(count)), None, round);
            self.bucket.charge(HEADER_BYTES as u64);
            self.stream.write_all(&header, wait)?;
            self.counts.pages.fetch_add(HEADER_BYTES as u64, Ordering::Relaxed);
            first = Gfn(first.0 + count);
        }
        Ok(())
    }

    /// Says that this side is alive.
    ///
    /// # Errors
    /// [`FrameError::Channel`].
    pub fn heartbeat(&mut self, wait: Wait<'_>) -> Result<(), FrameError> {
        let header = self.header(FrameKind::Heartbeat, Run::new(Gfn::ZERO, Pages::ZERO), None, 0);
        self.control(&header, wait)
    }

    /// Sends pages as they are when read: runs of zeros as such, the rest with data, waiting for the rate. Returns how many pages
    /// went with data and how many as zeros.
    ///
    /// # Errors
    /// [`FrameError`]; an unknown part was sent then.
    pub fn pages(
        &mut self,
        memory: &GuestMemory,
        run: Run,
        round: u32,
        checksum: Checksum,
        wait: Wait<'_>,
    ) -> Result<(Pages, Pages), FrameError> {
        let mut pieces = Vec::with_capacity(8);
        memory.classify_runs(run, |piece, class| pieces.push((piece, class)))?;
        let (mut data, mut zero) = (Pages::ZERO, Pages::ZERO);
        for (piece, class) in pieces {
            match class {
                RunClass::Zero => {
                    self.bare(FrameKind::Zero, piece, round, wait)?;
                    zero = zero.saturating_add(piece.count);
                }
                RunClass::Data => {
                    self.data(memory, piece, round, checksum, wait)?;
                    data = data.saturating_add(piece.count);
                }
            }
        }
        Ok((data, zero))
    }

    fn data(
        &mut self,
        memory: &GuestMemory,
        run: Run,
        round: u32,
        checksum: Checksum,
        wait: Wait<'_>,
    ) -> Result<(), FrameError> {
        let most = self.frame_pages(checksum);
        let mut first = run.first;
        while first < run.end() {
            let piece = Run::new(first, Pages((run.end().0 - first.0).min(most)));
            let bytes = HEADER_BYTES as u64 + piece.count.bytes().0;
            self.bucket.wait_for(bytes, wait)?;
            self.data_frame(memory, piece, round, checksum, wait)?;
            first = piece.end();
        }
        Ok(())
    }

    /// Sends one page that somebody waits for: charged to the rate, but never held up by it.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn urgent_page(
        &mut self,
        memory: &GuestMemory,
        gfn: Gfn,
        checksum: Checksum,
        wait: Wait<'_>,
    ) -> Result<(), FrameError> {
        self.bucket.charge(HEADER_BYTES as u64 + PAGE_SIZE);
        self.data_frame(memory, Run::new(gfn, Pages(1)), 0, checksum, wait)
    }

    fn data_frame(
        &mut self,
        memory: &GuestMemory,
        run: Run,
        round: u32,
        checksum: Checksum,
        wait: Wait<'_>,
    ) -> Result<(), FrameError> {
        let bytes = run.count.bytes().0 as usize;
        match checksum {
            Checksum::None | Checksum::InPlace => {
                let sum = if checksum == Checksum::InPlace {
                    Some(memory.hash_run(run)?)
                } else {
                    None
                };
                let header = self.header(FrameKind::Pages, run, sum, round);
                self.gather(
                    memory,
                    &[Part::Host(&header), Part::Guest(run)],
                    HEADER_BYTES + bytes,
                    wait,
                )?;
            }
            Checksum::Copy => {
                let mut copy = std::mem::take(&mut self.buffer);
                copy.resize((HEADER_BYTES + bytes).max(CONTROL_PAYLOAD_MAX), 0);
                let (head, body) = copy.split_at_mut(HEADER_BYTES);
                let body = &mut body[..bytes];
                let copied = memory.copy_run(run, body);
                head.copy_from_slice(&self.header(FrameKind::Pages, run, Some(XxHash3_64::oneshot(body)), round));
                let sent = self.stream.write_all(&copy[..HEADER_BYTES + bytes], wait);
                self.buffer = copy;
                copied?;
                sent?;
            }
        }
        self.counts
            .pages
            .fetch_add((HEADER_BYTES + bytes) as u64, Ordering::Relaxed);
        Ok(())
    }

    fn gather(&self, memory: &GuestMemory, parts: &[Part<'_>], total: usize, wait: Wait<'_>) -> Result<(), FrameError> {
        let mut sent = 0;
        while sent < total {
            match memory.send(self.stream.as_fd(), parts, sent) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.stream.wait_writable(wait)?,
                Err(error) => return Err(self.stream.error("send to", error).into()),
            }
            if wait.cancel().is_raised() {
                return Err(ChannelError::Cancelled.into());
            }
        }
        Ok(())
    }

    fn control(&mut self, bytes: &[u8], wait: Wait<'_>) -> Result<(), FrameError> {
        self.bucket.charge(bytes.len() as u64);
        self.stream.write_all(bytes, wait)?;
        self.counts.control.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn frame_pages(&self, checksum: Checksum) -> u64 {
        let most = if checksum == Checksum::Copy {
            COPIED_PAGES
        } else {
            u64::from(RUN_PAGES_MAX)
        };
        match self.bucket.rate() {
            Some(rate) => (rate.0 * SHAPED_PIECE.as_millis() as u64 / 1000 / PAGE_SIZE).clamp(1, most),
            None => most,
        }
    }

    fn header(&mut self, kind: FrameKind, run: Run, checksum: Option<u64>, round: u32) -> [u8; HEADER_BYTES] {
        let header = FrameHeader {
            kind,
            stream: 0,
            sequence: self.sequence,
            count: u32::try_from(run.count.0).unwrap_or(u32::MAX),
            first: run.first,
            checksum,
            round,
        };
        self.sequence = self.sequence.wrapping_add(1);
        header.encode()
    }

    fn wire_error(&self, source: WireError) -> FrameError {
        FrameError::Wire {
            peer: self.stream.peer().to_owned(),
            source,
        }
    }
}
