//! What the process that holds the guest harvests itself.

use dunlin_core::tracefile::Source;

use super::{Items, RecordingError, RecordingSource};
use crate::control::{Message, RecordingAnswer};

/// The first tracker that is served, passed on as it is.
#[derive(Debug)]
pub struct Served {
    source: Source,
    overruns: Option<u64>,
}

impl Served {
    /// Of the session that was answered so.
    ///
    /// # Errors
    /// [`RecordingError::Contradiction`] when it serves nothing.
    pub fn new(answer: &RecordingAnswer) -> Result<Self, RecordingError> {
        let served = answer.serve.first().filter(|service| service.pages);
        let served = served.ok_or(RecordingError::Contradiction("it serves no pages"))?;
        Ok(Self {
            source: served.source,
            overruns: None,
        })
    }
}

impl RecordingSource for Served {
    fn source(&self) -> Source {
        self.source
    }

    fn on(&mut self, message: &Message, items: &mut Items<'_>) -> Result<(), RecordingError> {
        match message {
            Message::Dirty { service: 0, pages } => {
                for run in pages.runs() {
                    items.dirty(run.ok_or(RecordingError::Contradiction("it names pages that cannot be"))?)?;
                }
            }
            Message::Writes {
                service: 0,
                at_ns,
                vcpu,
                pages,
            } => {
                for gfn in pages.pages() {
                    items.write(*at_ns, Some(*vcpu), gfn)?;
                }
            }
            Message::Window { at_ns, overruns, .. } => {
                // What was before the recording is of no matter.
                if self
                    .overruns
                    .replace(*overruns)
                    .is_some_and(|before| before < *overruns)
                {
                    items.lost(*at_ns, None)?;
                }
                items.window_end(*at_ns, None)?;
            }
            _ => {}
        }
        Ok(())
    }
}
