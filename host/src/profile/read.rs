//! Analysing a trace file.

use std::io::Read;

use super::{Analysis, ProfileError, Tables};
use crate::report::chain;
use crate::trace::{TraceError, TraceReader};

/// Why a file is not analysed.
#[derive(Debug, thiserror::Error)]
pub enum AnalyseError {
    /// Reading it.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Its guest.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

impl<'t> Analysis<'t> {
    /// Takes in all that a reader has, or comes to have. What is damaged is left out, [noted](Self::on_gap), and given to `damaged`.
    ///
    /// # Errors
    /// [`TraceError`] of what cannot be read on.
    pub fn take_all<R: Read>(
        &mut self,
        reader: &mut TraceReader<R>,
        mut damaged: impl FnMut(&TraceError),
    ) -> Result<(), TraceError> {
        for item in reader {
            match item {
                Ok(item) => self.take(&item),
                Err(error @ TraceError::Damaged { .. }) => {
                    damaged(&error);
                    self.on_gap(chain(&error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Analyses a file from where its reader stands; the tables are made for it.
    ///
    /// # Errors
    /// [`AnalyseError`].
    pub fn of_file<R: Read>(
        reader: &mut TraceReader<R>,
        tables: &'t mut Option<Tables>,
        damaged: impl FnMut(&TraceError),
    ) -> Result<Self, AnalyseError> {
        let tables = tables.insert(Tables::for_guest(reader.head())?);
        let mut analysis = Self::new(reader.head(), tables);
        analysis.take_all(reader, damaged)?;
        Ok(analysis)
    }
}
