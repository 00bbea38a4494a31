//! Writing a trace file.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use dunlin_core::tracefile::{EncodeError, Encoder, FRAME_BYTES_MAX, Head, Item};
use dunlin_core::units::Nanos;

use super::TraceError;

/// The longest time, by that of the items, that a frame stays open.
const FLUSH_EVERY: Nanos = Nanos::from_secs(1);

/// What became of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Items in it.
    pub items: u64,
    /// Whether it ended with an [`Item::End`]; readers call it cut off otherwise.
    pub is_complete: bool,
}

/// Writes a trace, in whole frames: whenever the process ends, all but the open frame can be read. Memory: 64 KiB.
///
/// A frame is written when it is full, when an item comes that is a second later than the frame's beginning, on
/// [`flush`](Self::flush), and when the writer is dropped.
pub struct TraceWriter<W: Write = File> {
    to: W,
    path: PathBuf,
    encoder: Encoder<Vec<u8>>,
    written: Written,
}

impl TraceWriter<File> {
    /// Makes the file, or empties one that is there, and writes the head.
    ///
    /// # Errors
    /// [`TraceError::Io`], [`TraceError::Refused`] for a head that cannot be.
    pub fn create(path: &Path, head: &Head) -> Result<Self, TraceError> {
        // A head that is refused leaves an old file alone.
        let encoder = encoder(path, head)?;
        let file = File::create(path).map_err(|error| TraceError::io("make", path, error))?;
        Self::with(file, path.into(), encoder)
    }
}

impl<W: Write> TraceWriter<W> {
    /// Writes to anything; `name` stands in errors. Writes are as large as frames, so nothing has to be buffered.
    ///
    /// # Errors
    /// As [`create`](TraceWriter::create).
    pub fn new(to: W, name: &str, head: &Head) -> Result<Self, TraceError> {
        let path = PathBuf::from(name);
        let encoder = encoder(&path, head)?;
        Self::with(to, path, encoder)
    }

    fn with(to: W, path: PathBuf, encoder: Encoder<Vec<u8>>) -> Result<Self, TraceError> {
        let mut writer = Self {
            to,
            path,
            encoder,
            written: Written {
                bytes: 0,
                items: 0,
                is_complete: false,
            },
        };
        writer.flush()?;
        Ok(writer)
    }

    /// Adds an item.
    ///
    /// # Errors
    /// [`TraceError::Io`] if a frame cannot be written, which is then lost; [`TraceError::Refused`], and the trace is as it was, if the
    /// item lies before the last, outside the head's memory or vCPUs, or behind an [`Item::End`].
    pub fn push(&mut self, item: &Item) -> Result<(), TraceError> {
        if let Some(at) = item.at() {
            let (_, from) = self.encoder.times();
            if at.saturating_sub(from) >= FLUSH_EVERY && self.encoder.items() > 0 {
                self.flush()?;
            }
        }
        let mut pushed = self.encoder.push(item);
        if pushed == Err(EncodeError::Full) {
            self.flush()?;
            pushed = self.encoder.push(item);
        }
        pushed.map_err(|fault| TraceError::Refused {
            path: self.path.clone(),
            fault,
        })?;
        self.written.items += 1;
        self.written.is_complete = matches!(item, Item::End { .. });
        Ok(())
    }

    /// Writes what there is as a whole frame. Whoever records calls it when nothing has come for a while: by itself the writer looks at
    /// the time of items only.
    ///
    /// # Errors
    /// [`TraceError::Io`], and the frame is lost.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        let frames = self.encoder.frame();
        let written = self.to.write_all(frames).and_then(|()| self.to.flush());
        written.map_err(|error| TraceError::io("write", &self.path, error))?;
        self.written.bytes += frames.len() as u64;
        Ok(())
    }

    /// Writes what is left. A trace is complete only if an [`Item::End`] was pushed.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn finish(mut self) -> Result<Written, TraceError> {
        self.flush()?;
        Ok(self.written)
    }

    /// What was written so far, and pushed.
    pub const fn written(&self) -> Written {
        self.written
    }
}

impl<W: Write> fmt::Debug for TraceWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceWriter")
            .field("path", &self.path)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl<W: Write> Drop for TraceWriter<W> {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _: Result<(), TraceError> = self.flush();
    }
}

fn encoder(path: &Path, head: &Head) -> Result<Encoder<Vec<u8>>, TraceError> {
    Encoder::new(vec![0; FRAME_BYTES_MAX], head).map_err(|fault| TraceError::Refused {
        path: path.into(),
        fault,
    })
}
