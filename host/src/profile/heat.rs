//! Where was written when: a picture of fixed resolution, however long the recording and however large the guest.

/// Most columns; when time goes on, neighbours become one.
pub(super) const COLUMNS: usize = 128;
/// Rows; when pages further apart are written, neighbours become one.
pub(super) const ROWS: usize = 64;

/// Events by time and place. Times are ticks, places are pages of RAM in their order; a column has 2^c times the first ticks, a row
/// 2^r pages, both as few as hold all that was seen. 64 KiB. O(1) per event.
#[derive(Clone, Debug)]
pub(super) struct Heat {
    columns: Vec<[u64; ROWS]>,
    column_ticks: u64,
    /// The first page of the lowest row, a multiple of the row's pages.
    base: u64,
    row_shift: u32,
    /// Whether there was an event.
    some: bool,
}

impl Heat {
    /// Nothing seen; columns of so many ticks at first, at least one.
    pub(super) fn new(column_ticks: u64) -> Self {
        Self {
            columns: Vec::with_capacity(COLUMNS),
            column_ticks: column_ticks.max(1),
            base: 0,
            row_shift: 0,
            some: false,
        }
    }

    /// An event at this tick.
    #[inline]
    pub(super) fn on_event(&mut self, tick: u64, page: u64) {
        if !self.some {
            (self.base, self.some) = (page, true);
        }
        let inside = page >= self.base && (page - self.base) >> self.row_shift < ROWS as u64;
        if !inside {
            self.reach(page);
        }
        let column = tick / self.column_ticks;
        if column >= self.columns.len() as u64 {
            self.extend_to(tick);
        }
        let column = (tick / self.column_ticks) as usize;
        self.columns[column][((page - self.base) >> self.row_shift) as usize] += 1;
    }

    /// Makes rows larger until this page is in one of them.
    #[cold]
    fn reach(&mut self, page: u64) {
        let last = self.base + (((ROWS as u64) << self.row_shift) - 1);
        let used = self
            .highest_row()
            .map_or(last, |row| self.base + (((row as u64 + 1) << self.row_shift) - 1));
        let (low, high) = (self.base.min(page), used.max(page));
        let mut shift = self.row_shift;
        let base = |shift: u32| low >> shift << shift;
        while (high - base(shift)) >> shift >= ROWS as u64 {
            shift += 1;
        }
        let (from, to) = (self.base, base(shift));
        let old = self.row_shift;
        for column in &mut self.columns {
            let mut moved = [0; ROWS];
            for (row, events) in (0u64..).zip(*column).filter(|(_, events)| *events > 0) {
                moved[((from + (row << old) - to) >> shift) as usize] += events;
            }
            *column = moved;
        }
        (self.base, self.row_shift) = (to, shift);
    }

    fn highest_row(&self) -> Option<usize> {
        (0..ROWS)
            .rev()
            .find(|&row| self.columns.iter().any(|column| column[row] > 0))
    }

    /// Makes columns longer until this tick is in one of them.
    #[cold]
    pub(super) fn extend_to(&mut self, tick: u64) {
        while tick / self.column_ticks >= COLUMNS as u64 {
            self.widen();
        }
        let needed = (tick / self.column_ticks) as usize + 1;
        if self.columns.len() < needed {
            self.columns.resize(needed, [0; ROWS]);
        }
    }

    fn widen(&mut self) {
        self.column_ticks = self.column_ticks.saturating_mul(2);
        let together = |pair: &[[u64; ROWS]]| {
            let mut sum = pair[0];
            for (mine, theirs) in sum.iter_mut().zip(pair.get(1).into_iter().flatten()) {
                *mine += theirs;
            }
            sum
        };
        self.columns = self.columns.chunks(2).map(together).collect();
    }

    /// Columns that are at least so long.
    pub(super) fn at_least(mut self, ticks: u64) -> Self {
        while self.column_ticks < ticks && self.columns.len() > 1 {
            self.widen();
        }
        self
    }

    /// How many ticks a column is long.
    pub(super) const fn column_ticks(&self) -> u64 {
        self.column_ticks
    }

    /// Pages of a row.
    pub(super) const fn row_pages(&self) -> u64 {
        1 << self.row_shift
    }

    /// The first page of each row up to the highest with an event; none without an event.
    pub(super) fn rows(&self) -> impl Iterator<Item = u64> + '_ {
        let rows = self.highest_row().map_or(0, |row| row + 1);
        (0..rows as u64).map(|row| self.base + (row << self.row_shift))
    }

    /// The columns, each with as many rows as [`rows`](Self::rows).
    pub(super) fn cells(&self) -> Vec<Vec<u64>> {
        let rows = self.rows().count();
        self.columns.iter().map(|column| column[..rows].to_vec()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_event_is_in_its_cell(
            base in 0..1u64 << 40,
            spread in 1..1u64 << 20,
            events in vec((0..1u64 << 22, 0..1u64 << 30), 1..200),
            ticks in 1..1_000u64,
        ) {
            let mut heat = Heat::new(ticks);
            let mut events: Vec<_> = events.into_iter().map(|(tick, page)| (tick, base + page % spread)).collect();
            events.sort_by_key(|event| event.0);
            for &(tick, page) in &events {
                heat.on_event(tick, page);
            }
            let (length, pages) = (heat.column_ticks(), heat.row_pages());
            let rows: Vec<u64> = heat.rows().collect();
            let mut naive = vec![vec![0; rows.len()]; heat.cells().len()];
            for &(tick, page) in &events {
                let row = rows.iter().position(|first| (*first..first + pages).contains(&page));
                naive[(tick / length) as usize][row.expect("every page has a row")] += 1;
            }
            prop_assert_eq!(heat.cells(), naive);
            // No larger than need be.
            let (low, high) = (events.iter().map(|event| event.1).min().unwrap(), events.iter().map(|event| event.1).max().unwrap());
            prop_assert!(pages == 1 || (high / pages - low / pages) * 2 + 6 >= ROWS as u64, "{pages} for {low} to {high}");
            prop_assert!(heat.cells().len() <= COLUMNS);
            prop_assert!(length == ticks || heat.cells().len() >= COLUMNS / 2);
        }
    }

    #[test]
    fn the_ends_of_all_numbers_have_a_place() {
        let mut heat = Heat::new(1);
        heat.on_event(0, u64::MAX >> 12);
        heat.on_event(u64::MAX, 0);
        assert_eq!(heat.cells().iter().flatten().sum::<u64>(), 2);
        assert!(Heat::new(1).rows().next().is_none());
        let wide = heat.clone().at_least(u64::MAX);
        assert_eq!(wide.cells().iter().flatten().sum::<u64>(), 2);
    }
}
