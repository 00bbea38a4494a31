//! How far several recordings agree, as a document and as a table.

use comfy_table::{Cell, CellAlignment};
use serde::{Deserialize, Serialize};

use super::text::count;
use super::trace_table::{headed, percent};
use super::{Paint, SimilaritySchema};

/// Every pair of recordings, in the order given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimilarityReport {
    /// Which document this is.
    pub schema: SimilaritySchema,
    /// The pairs.
    pub pairs: Vec<SimilarPair>,
}

/// Two recordings. Shares are in thousandths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimilarPair {
    /// A file.
    pub one: String,
    /// Another.
    pub other: String,
    /// Pages that were written in both.
    pub common_pages: u64,
    /// Of the pages written in one or the other, those written in both: Jaccard's index. `null` if nothing was written.
    pub jaccard_milli: Option<u64>,
    /// Of the pairs of common pages, those that came in the same order for the first time: 1000 is the same order, 500 chance. Pairs that
    /// came in one window count for nothing. `null` without a pair.
    pub order_milli: Option<u64>,
}

/// The pairs for people.
pub fn similarity_table(report: &SimilarityReport, paint: Paint) -> String {
    let mut table = headed(&["trace", "and", "common pages", "Jaccard", "same order"]);
    for pair in &report.pairs {
        let number = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let share = |milli: Option<u64>| number(milli.map_or_else(|| "—".into(), percent));
        table.add_row([
            Cell::new(&pair.one),
            Cell::new(&pair.other),
            number(count(pair.common_pages)),
            share(pair.jaccard_milli),
            share(pair.order_milli),
        ]);
    }
    format!(
        "{}\n{}\nJaccard: pages of both over pages of either. Same order: of the pairs of common pages, by first write; 50 % is chance.\n",
        paint.strong("Between runs"),
        table.trim_fmt()
    )
}
