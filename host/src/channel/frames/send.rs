//! The sending half of a stream.

use super::*;

/// Frames up to this size are collected and leave together; larger ones leave straight from guest memory.
const SMALL_BYTES: usize = 64 * 1024;
/// Collected frames leave when they are this much: few system calls, and still in the cache.
const COLLECTED_BYTES: usize = 256 * 1024;

/// The sending half of a stream. Page frames may be collected; they leave with the next message, or by
/// [`flush`](Self::flush).
#[derive(Debug)]
pub struct FrameSender {
    stream: Arc<Stream>,
    bucket: TokenBucket,
    counts: Arc<ByteCounts>,
    sequence: u32,
    /// For encoding messages.
    message: Vec<u8>,
    collected: Outgoing,
    pieces: Vec<(Run, RunClass)>,
}

impl FrameSender {
    /// A sender that charges everything to `bucket` and counts it in `counts`.
    pub fn new(stream: Arc<Stream>, bucket: TokenBucket, counts: Arc<ByteCounts>) -> Self {
        Self {
            stream,
            bucket,
            counts,
            sequence: 0,
            message: vec![0; CONTROL_PAYLOAD_MAX],
            collected: Outgoing::default(),
            pieces: Vec::new(),
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
        let mut buffer = std::mem::take(&mut self.message);
        let result = self.encode_and_send(message, &mut buffer, wait);
        self.message = buffer;
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
            self.collected.extend(&header);
            self.leave_if_due(wait)?;
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
        let mut pieces = std::mem::take(&mut self.pieces);
        let classified = classify(memory, run, &mut pieces);
        let sent = classified.and_then(|()| self.classified(memory, &pieces, round, checksum, wait));
        self.pieces = pieces;
        sent
    }

    /// As [`pages`](Self::pages), for pages whose kind is known already, by [`classify`].
    ///
    /// # Errors
    /// [`FrameError`]; an unknown part was sent then.
    pub fn classified(
        &mut self,
        memory: &GuestMemory,
        pieces: &[(Run, RunClass)],
        round: u32,
        checksum: Checksum,
        wait: Wait<'_>,
    ) -> Result<(Pages, Pages), FrameError> {
        let bucket = self.bucket.clone();
        let room = |bytes| bucket.wait_for(bytes, wait).map_err(FrameError::from);
        self.paced(memory, pieces, (round, checksum), wait, room)
    }

    /// As [`classified`](Self::classified), charged to the rate but not held up by it: the caller has waited for
    /// [room](TokenBucket::backlog), and chosen the pages then.
    ///
    /// # Errors
    /// [`FrameError`]; an unknown part was sent then.
    pub fn classified_at_once(
        &mut self,
        memory: &GuestMemory,
        pieces: &[(Run, RunClass)],
        checksum: Checksum,
        wait: Wait<'_>,
    ) -> Result<(Pages, Pages), FrameError> {
        let bucket = self.bucket.clone();
        let charge = |bytes| {
            bucket.charge(bytes);
            Ok(())
        };
        self.paced(memory, pieces, (0, checksum), wait, charge)
    }

    fn paced(
        &mut self,
        memory: &GuestMemory,
        pieces: &[(Run, RunClass)],
        (round, checksum): (u32, Checksum),
        wait: Wait<'_>,
        room: impl Fn(u64) -> Result<(), FrameError>,
    ) -> Result<(Pages, Pages), FrameError> {
        let (mut data, mut zero) = (Pages::ZERO, Pages::ZERO);
        let most = self.frame_pages(checksum);
        for &(piece, class) in pieces {
            match class {
                RunClass::Zero => {
                    self.bare(FrameKind::Zero, piece, round, wait)?;
                    zero = zero.saturating_add(piece.count);
                }
                RunClass::Data => {
                    let mut first = piece.first;
                    while first < piece.end() {
                        let part = Run::new(first, Pages((piece.end().0 - first.0).min(most)));
                        room(HEADER_BYTES as u64 + part.count.bytes().0)?;
                        self.data_frame(memory, part, round, checksum, wait)?;
                        first = part.end();
                    }
                    data = data.saturating_add(piece.count);
                }
            }
        }
        Ok((data, zero))
    }

    /// Sends one page that somebody waits for, with data or as zeros: charged to the rate, but never held up by it.
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
        if memory.is_zero(gfn)? {
            self.bare(FrameKind::Zero, Run::new(gfn, Pages(1)), 0, wait)?;
            return self.flush(wait);
        }
        self.bucket.charge(HEADER_BYTES as u64 + PAGE_SIZE);
        self.counts
            .pages
            .fetch_add(HEADER_BYTES as u64 + PAGE_SIZE, Ordering::Relaxed);
        let run = Run::new(gfn, Pages(1));
        if !self.stream.is_plain() {
            self.collect(memory, run, 0, checksum, wait)?;
            return self.flush(wait);
        }
        self.flush(wait)?;
        let header = self.gathered_header(memory, run, 0, checksum)?;
        let total = HEADER_BYTES + PAGE_SIZE as usize;
        self.gather(memory, &[Part::Host(&header), Part::Guest(run)], total, wait)
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
        self.counts
            .pages
            .fetch_add((HEADER_BYTES + bytes) as u64, Ordering::Relaxed);
        if self.copies(checksum) || bytes <= SMALL_BYTES {
            return self.collect(memory, run, round, checksum, wait);
        }
        self.flush(wait)?;
        let header = self.gathered_header(memory, run, round, checksum)?;
        self.gather(
            memory,
            &[Part::Host(&header), Part::Guest(run)],
            HEADER_BYTES + bytes,
            wait,
        )
    }

    /// Whether pages are copied before they leave: because of their hash, or because what leaves is encrypted.
    fn copies(&self, checksum: Checksum) -> bool {
        checksum == Checksum::Copy || !self.stream.is_plain()
    }

    /// Copies pages behind their header; what is hashed is the copy, since the guest may write meanwhile.
    fn collect(
        &mut self,
        memory: &GuestMemory,
        run: Run,
        round: u32,
        checksum: Checksum,
        wait: Wait<'_>,
    ) -> Result<(), FrameError> {
        let bytes = run.count.bytes().0 as usize;
        let body = &mut self.collected.room(HEADER_BYTES + bytes)[HEADER_BYTES..HEADER_BYTES + bytes];
        memory.copy_run(run, body)?;
        let sum = (checksum != Checksum::None).then(|| XxHash3_64::oneshot(body));
        let header = self.header(FrameKind::Pages, run, sum, round);
        self.collected.room(HEADER_BYTES)[..HEADER_BYTES].copy_from_slice(&header);
        self.collected.add(HEADER_BYTES + bytes);
        self.leave_if_due(wait)
    }

    /// Lets collected frames leave when they are enough. A shaped sender never holds anything back: its pieces are timed.
    fn leave_if_due(&mut self, wait: Wait<'_>) -> Result<(), FrameError> {
        if self.collected.filled().len() >= COLLECTED_BYTES || self.bucket.rate().is_some() {
            return self.flush(wait);
        }
        Ok(())
    }

    /// Lets collected frames leave.
    ///
    /// # Errors
    /// [`FrameError::Channel`]; an unknown part was sent then.
    pub fn flush(&mut self, wait: Wait<'_>) -> Result<(), FrameError> {
        if !self.collected.is_empty() {
            let overhead = self.stream.overhead(self.collected.filled().len());
            self.bucket.charge(overhead);
            self.counts.control.fetch_add(overhead, Ordering::Relaxed);
            self.stream.write_all(self.collected.filled(), wait)?;
            self.collected.clear();
        }
        Ok(())
    }

    /// Whether nothing is collected.
    pub fn is_empty(&self) -> bool {
        self.collected.is_empty()
    }

    fn gathered_header(
        &mut self,
        memory: &GuestMemory,
        run: Run,
        round: u32,
        checksum: Checksum,
    ) -> Result<[u8; HEADER_BYTES], FrameError> {
        let sum = match checksum {
            Checksum::None => None,
            Checksum::Copy | Checksum::InPlace => Some(memory.hash_run(run)?),
        };
        Ok(self.header(FrameKind::Pages, run, sum, round))
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
        self.collected.extend(bytes);
        self.flush(wait)?;
        self.counts.control.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn frame_pages(&self, checksum: Checksum) -> u64 {
        let most = if self.copies(checksum) {
            COPIED_PAGES
        } else {
            u64::from(RUN_PAGES_MAX)
        };
        piece_pages(self.bucket.rate()).0.min(most)
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

/// Splits a run into zero and other pages.
///
/// # Errors
/// [`FrameError::Memory`].
pub fn classify(memory: &GuestMemory, run: Run, into: &mut Vec<(Run, RunClass)>) -> Result<(), FrameError> {
    into.clear();
    Ok(memory.classify_runs(run, |piece, class| into.push((piece, class)))?)
}
