//! Analysing a trace file.

use dunlin_core::tracefile::{Head, Item};

use super::{Analysis, ProfileError, Tables};
use crate::report::chain;
use crate::trace::TraceError;

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
    /// Takes in all items of a trace. What is damaged is left out, [noted](Self::on_gap), and given to `damaged`.
    ///
    /// # Errors
    /// [`TraceError`] of what cannot be read on.
    pub fn take_all(
        &mut self,
        items: impl IntoIterator<Item = Result<Item, TraceError>>,
        mut damaged: impl FnMut(&TraceError),
    ) -> Result<(), TraceError> {
        for item in items {
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

    /// Analyses a whole trace; the tables are made for it.
    ///
    /// # Errors
    /// [`AnalyseError`].
    pub fn of_trace(
        head: &Head,
        items: impl IntoIterator<Item = Result<Item, TraceError>>,
        tables: &'t mut Option<Tables>,
        damaged: impl FnMut(&TraceError),
    ) -> Result<Self, AnalyseError> {
        let tables = tables.insert(Tables::for_guest(head)?);
        let mut analysis = Self::new(head, tables);
        analysis.take_all(items, damaged)?;
        Ok(analysis)
    }
}
