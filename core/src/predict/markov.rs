//! The first-order Markov model of the 2017 paper, over sampling windows, without its matrix.

use super::window::{Inside, bitmap_words, bits, no_room};
use super::{PredictError, Predictor, Score};
use crate::units::{Gfn, Nanos, Pages};

/// Windows that are remembered: 160 of 50 ms are the paper's 8 s of observation.
const WINDOWS: usize = 160;
/// Bytes of a page's column, one bit per window.
const COLUMN: usize = WINDOWS / 8;
/// Words of the table of sums: one half-word for each value of each byte of a column.
const TABLE_WORDS: usize = COLUMN * 256 / 2;

/// The Markov model of "A novel hybrid-copy algorithm for live migration" (2017), section 3.1, over the last 160 windows.
///
/// States are pages. Each page written in window k is followed by each page written in window k + 1; transitions are
/// counted over all windows and each row of the count matrix is divided by its sum, which gives P. The paper does not
/// say how to forecast from a *set* of states; here score(j) = Σ P(i→j) over the pages i of the last window, the mean
/// number of transitions into j if each page written makes one.
///
/// The matrix is quadratic in the working set and need not exist. With D_k the pages of window k and
/// rowsum(i) = Σ |D_{k+1}| over the windows k < last that have i, each transition from i weighs 1/rowsum(i), so that
/// w_k = Σ 1/rowsum(i) over i in both D_last and D_k, and **score(j) = Σ w_k over the windows k + 1 that have j**. Kept
/// are the windows' bitmaps alone. The score of a page is the sum of 20 entries of a table, one for each byte of its
/// column of 160 bits. In the paper's example {1,2},{2,3,4},{1,4,5} page 1 leads to 2, 3 and 4 with 1/3 each; the paper
/// prints 50, 25 and 25 %, which no normalisation of its counts gives.
///
/// The forecast is for the next window, whatever the horizon: the paper predicts 50 ms ahead for rounds that last seconds.
/// The paper observes before the migration only; here windows go on during the rounds and replace the oldest.
///
/// Rounding: 1/rowsum is rounded down to 2⁻⁶⁴, w_k to the nearest multiple of 2⁻²⁴, but never to zero if it is not; so a
/// score is off by less than 160·2⁻²⁴ ≈ 10⁻⁵, unless it stops at 256.
///
/// Memory: the working set is kept in groups of 64 neighbouring pages, 20 bytes for each page of a group in which any was
/// written, half a byte for each page of the guest, and 22 KiB. A window costs O(words of the guest + groups),
/// [`aim`](Predictor::aim) O(windows that have a page, summed over the pages of the last window), a score 20 look-ups.
#[derive(Debug)]
pub struct Markov<'a> {
    /// For each word of the guest's bitmap, the number of its group from 1, 0 if it has none; two to a word.
    directory: &'a mut [u64],
    /// For each group, its bitmap word in each window of the ring.
    groups: &'a mut [[u64; WINDOWS]],
    groups_used: usize,
    /// For each byte of a column and each value of it, the sum of the weights of its bits.
    table: &'a mut [[u64; 128]],
    /// |D_k| for each place of the ring.
    sizes: &'a mut [u64],
    /// The newest window's place, and how many there are.
    newest: usize,
    filled: usize,
    pages: u64,
    overlooked: u64,
}

impl<'a> Markov<'a> {
    /// Words of storage for a guest of `pages` of which no more than `working_set` are ever written, if these lie close
    /// together: written pages 64 apart take a group each. `usize::MAX` if they cannot be counted.
    pub const fn words_needed(pages: Pages, working_set: Pages) -> usize {
        let (Some(words), Some(groups)) = (bitmap_words(pages), bitmap_words(working_set)) else {
            return usize::MAX;
        };
        match groups.checked_mul(WINDOWS) {
            Some(group_words) => group_words
                .saturating_add(words.div_ceil(2))
                .saturating_add(TABLE_WORDS + WINDOWS),
            None => usize::MAX,
        }
    }

    /// Nothing known yet, of a guest of `pages` of which `working_set` are written, in whole groups.
    ///
    /// # Errors
    /// [`PredictError::StorageTooSmall`].
    pub fn new(storage: &'a mut [u64], pages: Pages, working_set: Pages) -> Result<Self, PredictError> {
        let (needed, given) = (Self::words_needed(pages, working_set), storage.len());
        let too_small = PredictError::StorageTooSmall { needed, given };
        let storage = storage.get_mut(..needed).ok_or(too_small)?;
        storage.fill(0);
        let (sizes, rest) = storage.split_at_mut(WINDOWS);
        let (table, rest) = rest.split_at_mut(TABLE_WORDS);
        let (directory, groups) = rest.split_at_mut(bitmap_words(pages).ok_or(too_small)?.div_ceil(2));
        Ok(Self {
            directory,
            groups: groups.as_chunks_mut().0,
            groups_used: 0,
            table: table.as_chunks_mut().0,
            sizes,
            newest: WINDOWS - 1,
            filled: 0,
            pages: pages.0,
            overlooked: 0,
        })
    }

    /// The group of a bitmap word.
    fn group(&self, index: usize) -> Option<usize> {
        let entry = self.directory.get(index / 2)? >> (index % 2 * 32) & 0xffff_ffff;
        (entry as usize).checked_sub(1)
    }

    /// The group of a bitmap word, new if it has none; `None` if there is no room for one.
    fn group_or_new(&mut self, index: usize) -> Option<usize> {
        if let Some(group) = self.group(index) {
            return Some(group);
        }
        if self.groups_used == self.groups.len() {
            return None;
        }
        self.groups_used += 1;
        // Groups of 64 pages of a guest of 2^32 pages and more still have numbers of 32 bits.
        self.directory[index / 2] |= (self.groups_used as u64) << (index % 2 * 32);
        Some(self.groups_used - 1)
    }

    /// The place of the window that many windows before the newest.
    const fn place(&self, before: usize) -> usize {
        (self.newest + WINDOWS - before) % WINDOWS
    }

    /// w_k in units of 2⁻⁶⁴ for every window k but the newest, by its place in the ring.
    fn weights(&self) -> [u128; WINDOWS] {
        let mut weights = [0; WINDOWS];
        if self.filled < 2 {
            return weights;
        }
        // What each window adds to the rows of its pages: the size of the next.
        let mut next_size = [0; WINDOWS];
        for before in 1..self.filled {
            next_size[self.place(before)] = self.sizes[self.place(before - 1)];
        }
        for group in &self.groups[..self.groups_used] {
            for bit in bits(group[self.newest]) {
                // The newest window itself leads nowhere yet: it adds 0.
                let rowsum = (0..WINDOWS).map(|k| (group[k] >> bit & 1) * next_size[k]).sum::<u64>();
                if rowsum == 0 {
                    continue;
                }
                let share = (1_u128 << 64) / u128::from(rowsum);
                for (weight, word) in weights.iter_mut().zip(group) {
                    *weight += share * u128::from(word >> bit & 1);
                }
            }
        }
        weights[self.newest] = 0;
        weights
    }

    /// The score of bit `bit` of a group's words.
    fn score_in(&self, group: &[u64; WINDOWS], bit: u32) -> u32 {
        let mut sum = 0_u64;
        for (bytes, words) in self.table.iter().zip(group.as_chunks::<8>().0) {
            let value = (0..8).fold(0, |value, k| value | (words[k] >> bit & 1) << k);
            sum += entry(bytes, value as usize);
        }
        sum.min(u64::from(u32::MAX)) as u32
    }
}

/// A value's entry in a byte's part of the table.
#[inline(always)]
fn entry(bytes: &[u64; 128], value: usize) -> u64 {
    bytes[(value / 2) & 127] >> (value % 2 * 32) & 0xffff_ffff
}

/// Turns eight bytes into their columns: byte c of the result has bit r set if bit c of byte r is (Warren, "Hacker's
/// Delight", section 7-3).
const fn transpose(rows: u64) -> u64 {
    let swap = (rows ^ rows >> 7) & 0x00aa_00aa_00aa_00aa;
    let rows = rows ^ swap ^ swap << 7;
    let swap = (rows ^ rows >> 14) & 0x0000_cccc_0000_cccc;
    let rows = rows ^ swap ^ swap << 14;
    let swap = (rows ^ rows >> 28) & 0x0000_0000_f0f0_f0f0;
    rows ^ swap ^ swap << 28
}

impl Predictor for Markov<'_> {
    fn on_window(&mut self, written: &[u64], _end: Nanos) -> Result<(), PredictError> {
        let place = (self.newest + 1) % WINDOWS;
        for group in &mut self.groups[..self.groups_used] {
            group[place] = 0;
        }
        let inside = Inside::of(written, self.pages);
        let (mut size, mut left_out) = (0, inside.outside);
        for (index, word) in inside.words().filter(|&(_, word)| word != 0) {
            let count = u64::from(word.count_ones());
            match self.group_or_new(index) {
                Some(group) => {
                    self.groups[group][place] = word;
                    size += count;
                }
                None => left_out += count,
            }
        }
        self.sizes[place] = size;
        self.newest = place;
        self.filled = (self.filled + 1).min(WINDOWS);
        no_room(left_out, &mut self.overlooked)
    }

    fn aim(&mut self, _now: Nanos, _horizon: Nanos) {
        let weights = self.weights().map(|weight| {
            let rounded = (weight + (1 << 39)) >> 40;
            rounded.max(u128::from(weight > 0)).min(u128::from(u32::MAX)) as u64
        });
        // A window scores by the weight of the one before. The oldest has none before it: what precedes it in the ring is
        // the newest, or empty.
        let score_of = |place: usize| weights[(place + WINDOWS - 1) % WINDOWS];
        for (byte, entries) in self.table.iter_mut().enumerate() {
            for (pair, entry) in entries.iter_mut().enumerate() {
                let sum = |value: usize| {
                    (0..8)
                        .map(|bit| (value as u64 >> bit & 1) * score_of(byte * 8 + bit))
                        .sum::<u64>()
                        .min(u64::from(u32::MAX))
                };
                *entry = sum(pair * 2) | sum(pair * 2 + 1) << 32;
            }
        }
    }

    fn score(&self, gfn: Gfn) -> Score {
        if gfn.0 >= self.pages {
            return Score::NONE;
        }
        let group = self.group((gfn.0 / 64) as usize);
        Score(group.map_or(0, |group| self.score_in(&self.groups[group], (gfn.0 % 64) as u32)))
    }

    fn score_word(&self, index: usize, pages: u64, scores: &mut [u32]) {
        let mut sums = [0; 64];
        if let Some(group) = self.group(index) {
            for (entries, words) in self.table.iter().zip(self.groups[group].as_chunks::<8>().0) {
                for (byte, sums) in sums.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let rows = (0..8).fold(0, |rows, k| rows | ((words[k] >> (8 * byte)) & 0xff) << (8 * k));
                    if rows == 0 {
                        continue;
                    }
                    let columns = transpose(rows).to_le_bytes();
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum += entry(entries, column as usize);
                    }
                }
            }
        }
        for (score, bit) in scores.iter_mut().zip(bits(pages)) {
            *score = sums[bit as usize].min(u64::from(u32::MAX)) as u32;
        }
    }

    fn overlooked(&self) -> Pages {
        Pages(self.overlooked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// The scores of pages 0 to 7 in thousandths after these windows.
    fn scores(windows: &[u64]) -> [u64; 8] {
        let pages = Pages(8);
        let mut storage = vec![u64::MAX; Markov::words_needed(pages, pages)];
        let mut markov = Markov::new(&mut storage, pages, pages).expect("storage fits");
        for (number, window) in windows.iter().enumerate() {
            let end = Nanos::from_millis(50 * (number as u64 + 1));
            markov.on_window(&[*window], end).expect("has room");
        }
        markov.aim(Nanos::from_secs(1), Nanos::from_secs(1));
        std::array::from_fn(|page| (u64::from(markov.score(Gfn(page as u64)).0) * 1000 + (1 << 23)) >> 24)
    }

    /// The paper's figure 2 prints 50, 25 and 25 % for this sequence; counts divided by their sum give a third each.
    #[test]
    fn the_papers_example_gives_thirds() {
        let windows = [0b00_0110, 0b01_1100, 0b11_0010];
        // From {1}, with an empty window between so that nothing else precedes: page 1 led to 2, 3 and 4.
        assert_eq!(
            scores(&[windows[0], windows[1], 0, 0b10]),
            [0, 0, 333, 333, 333, 0, 0, 0]
        );
        // From {1,4,5}: page 1 led to {2,3,4}, page 4 to {1,4,5}, page 5 to nothing yet.
        assert_eq!(scores(&windows), [0, 333, 333, 333, 667, 333, 0, 0]);
        // With a fourth window {1}, page 1 leads to 2, 3, 4 and, once, to itself: a quarter each.
        let four = [windows[0], windows[1], windows[2], 0b10];
        assert_eq!(scores(&four), [0, 250, 250, 250, 250, 0, 0, 0]);
        // From {2}: {1,2}→{2,3,4}→{1,4,5}→{2}: page 2 led to 2, 3, 4, 1, 4, 5.
        let five = [windows[0], windows[1], windows[2], 0b100];
        assert_eq!(scores(&five), [0, 167, 167, 167, 333, 167, 0, 0]);
    }

    #[test]
    fn a_page_that_was_followed_by_nothing_says_nothing() {
        assert_eq!(scores(&[]), [0; 8]);
        assert_eq!(scores(&[0xff]), [0; 8]);
        assert_eq!(scores(&[0xff, 0]), [0; 8]);
        assert_eq!(scores(&[0, 0xff]), [0; 8]);
        assert_eq!(scores(&[1, 0, 1]), [0; 8]);
    }

    #[test]
    fn the_oldest_windows_make_room() {
        let mut windows = vec![0b01, 0b10];
        windows.extend([0; WINDOWS - 3]);
        windows.push(0b01);
        assert_eq!(scores(&windows)[1], 1000);
        windows.push(0b01);
        // Now the first window is gone, and page 0 was followed by itself alone.
        assert_eq!(scores(&windows)[..2], [1000, 0]);
    }

    #[test]
    fn a_full_working_set_is_named_and_counted() {
        let (pages, working_set) = (Pages(200), Pages(64));
        let mut storage = vec![0; Markov::words_needed(pages, working_set)];
        let mut markov = Markov::new(&mut storage, pages, working_set).expect("storage fits");
        assert_eq!(markov.on_window(&[0, 7], Nanos(1)), Ok(()));
        let full = Err(PredictError::NoRoom {
            pages: Pages(2 + 64 + 1),
        });
        assert_eq!(markov.on_window(&[3, 7, 0, u64::MAX, 1], Nanos(2)), full);
        assert_eq!(markov.overlooked(), Pages(2 + 64 + 1));
        markov.aim(Nanos(2), Nanos(1));
        assert_eq!(
            markov.score(Gfn(64)),
            Score(Score::CERTAIN.0),
            "three pages, a third from each"
        );
        assert_eq!(markov.score(Gfn(0)), Score::NONE);
    }

    #[test]
    fn columns_become_rows() {
        for (row, column) in (0..8).flat_map(|row| (0..8).map(move |column| (row, column))) {
            assert_eq!(transpose(1 << (8 * row + column)), 1 << (8 * column + row));
        }
    }
}
