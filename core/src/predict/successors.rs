//! Which page is written after which: a table of the likeliest successors, from writes in their true order.

use super::window::no_room;
use super::{PredictError, Predictor, Score, Write};
use crate::units::{Gfn, Nanos, Pages};

/// Successors kept for each page.
const KEPT: usize = 4;
/// Words of a row.
const ROW: usize = 4;
/// With each write from a page, its old counts lose 1 / 2^this.
const AGEING_SHIFT: u32 = 4;
/// What a transition adds to its count: with the ageing above, a count comes to rest below 2^16.
const COUNTED: u64 = 4095;
/// Clears what a shift carried over from the neighbouring count.
const AGED_MASK: u64 = 0x0fff_0fff_0fff_0fff;
/// Writes whose rows are read ahead at once.
const BATCH: usize = 32;
/// Virtual CPUs that are told apart.
const VCPUS: usize = 64;
/// A walk ends when it is this unlikely to get there, in units of 2⁻²⁴.
const UNLIKELY: u64 = 1 << 8;

/// A first-order Markov predictor over single writes in their true order, with the four likeliest successors of each page
/// (Joseph & Grunwald 1997, the predictor the 2017 paper cites; they order successors by recent use, here by counts
/// that age).
///
/// Each vCPU's writes follow one another by themselves; vCPUs 64 apart count as one. With each transition from a page its
/// counts lose a sixteenth and the successor's gains; a new successor replaces the one that counts least. The total of the
/// row, which ages alike, still has those replaced, so the probabilities of the four may sum to less than 1.
///
/// A horizon is walked: as many writes as the guest made, on average, in such a time so far. From each vCPU's last page the
/// walk follows the likeliest successor, multiplying probabilities; each page on the way and its other successors score
/// the probability of being reached so, the highest counts. It ends where it comes to a page for the second time, or
/// where it has become improbable (2⁻¹⁶).
///
/// 32 bytes per page. A write costs O(1), one row; windows say nothing of order and teach nothing.
/// [`aim`](Predictor::aim) costs O(writes in the horizon), at most O(pages), for each vCPU.
#[derive(Debug)]
pub struct Successors<'a> {
    rows: &'a mut [Row],
    /// The last page of each vCPU, plus 1; 0 if it has written none.
    last: &'a mut [u64],
    /// Writes told, when the first was, and when the last.
    writes: u64,
    first_at: Nanos,
    last_at: Nanos,
    /// Which aim's marks are valid.
    aim: u8,
    overlooked: u64,
    /// What reading ahead saw, kept only so that it is done.
    read_ahead: u64,
}

/// A page's row: successors by number in two words, their four counts of 16 bits in the third, the fourth [`Mark`].
type Row = [u64; ROW];

/// The fourth word of a row: the total in the lower 16 bits, then the aim that marked the page and, apart, the one that
/// walked over it in 8 bits each, then the score.
struct Mark;

impl Mark {
    const fn total(word: u64) -> u64 {
        word & 0xffff
    }
    const fn scored_by(word: u64) -> u8 {
        (word >> 16) as u8
    }
    const fn walked_by(word: u64) -> u8 {
        (word >> 24) as u8
    }
    const fn score(word: u64) -> u32 {
        (word >> 32) as u32
    }
    const fn pack(total: u64, scored_by: u8, walked_by: u8, score: u32) -> u64 {
        total | (scored_by as u64) << 16 | (walked_by as u64) << 24 | (score as u64) << 32
    }
}

impl<'a> Successors<'a> {
    /// Words of storage for a guest of `pages`, at most 2^32; `usize::MAX` if they cannot be counted.
    pub const fn words_needed(pages: Pages) -> usize {
        if pages.0 > 1 << 32 || pages.0 > usize::MAX as u64 / (2 * ROW as u64) {
            return usize::MAX;
        }
        VCPUS + pages.0 as usize * ROW + (ROW - 1)
    }

    /// Nothing known yet, of a guest of `pages`.
    ///
    /// # Errors
    /// [`PredictError::StorageTooSmall`].
    pub fn new(storage: &'a mut [u64], pages: Pages) -> Result<Self, PredictError> {
        let (needed, given) = (Self::words_needed(pages), storage.len());
        let too_small = PredictError::StorageTooSmall { needed, given };
        let storage = storage.get_mut(..needed).ok_or(too_small)?;
        storage.fill(0);
        let (last, rest) = storage.split_at_mut(VCPUS);
        // No row across two cache lines.
        let skipped = rest.as_ptr().align_offset(size_of::<Row>()).min(ROW - 1);
        let rows = &mut rest[skipped..];
        Ok(Self {
            rows: &mut rows.as_chunks_mut().0[..pages.0 as usize],
            last,
            writes: 0,
            first_at: Nanos::ZERO,
            last_at: Nanos::ZERO,
            aim: 0,
            overlooked: 0,
            read_ahead: 0,
        })
    }

    /// Counts a transition in the row it starts from.
    #[inline]
    fn count(row: &mut Row, to: u32) {
        let aged = row[2] - ((row[2] >> AGEING_SHIFT) & AGED_MASK);
        let pages = successors(row);
        // The place of the page if it has one, otherwise that with the lowest count: the least of keys that are 0 above the
        // place for a match. Written without branches, which would wait for the row to arrive from memory.
        let key = |place: usize| {
            let count = (aged >> (16 * place)) & 0xffff;
            let other = u64::from(pages[place] != to) | u64::from(count == 0);
            ((count + 1) * other) << 2 | place as u64
        };
        let least = key(0).min(key(1)).min(key(2)).min(key(3));
        let (place, found) = (least & 3, u64::from(least < 4));
        let (word, half) = ((place / 2) as usize & 1, 32 * (place % 2));
        row[word] = row[word] & !(0xffff_ffff << half) | u64::from(to) << half;
        let lane = 0xffff << (16 * place);
        row[2] = (aged & !lane) | ((aged & lane) * found);
        row[2] += COUNTED << (16 * place);
        let total = Mark::total(row[3]);
        row[3] = row[3] & !0xffff | (total - (total >> AGEING_SHIFT) + COUNTED);
    }

    /// The most writes that a horizon is expected to have: those so far, by the time they took.
    fn writes_in(&self, horizon: Nanos) -> u64 {
        let time = self.last_at.0 - self.first_at.0;
        match u128::from(time) {
            0 => 0,
            time => (u128::from(self.writes) * u128::from(horizon.0) / time).min(u128::from(u64::MAX)) as u64,
        }
    }

    /// Walks from a page and marks what may follow.
    fn walk(&mut self, from: usize, steps: u64) {
        let mut at = from;
        let mut reached = u64::from(Score::CERTAIN.0);
        for _ in 0..steps {
            let row = self.rows[at];
            let total = Mark::total(row[3]);
            if Mark::walked_by(row[3]) == self.aim || total == 0 {
                return;
            }
            let mark = row[3];
            self.rows[at][3] = Mark::pack(total, Mark::scored_by(mark), self.aim, Mark::score(mark));
            let mut best = (0, 0);
            for (place, successor) in successors(&row).into_iter().enumerate() {
                let count = row[2] >> (16 * place) & 0xffff;
                // A total has at least the counts of its row, but each loses its own part of a unit when ageing.
                let probability = reached * count.min(total) / total;
                self.mark(successor as usize, probability);
                if count > best.0 {
                    best = (count, successor);
                }
            }
            reached = reached * best.0.min(total) / total;
            if reached < UNLIKELY {
                return;
            }
            at = best.1 as usize;
        }
    }

    /// Gives a page this score unless it has a higher one.
    fn mark(&mut self, page: usize, score: u64) {
        let word = &mut self.rows[page][3];
        let scored = Mark::scored_by(*word) == self.aim;
        // A probability in units of 2^-24 fits 32 bits.
        let score = if scored {
            (score as u32).max(Mark::score(*word))
        } else {
            score as u32
        };
        *word = Mark::pack(Mark::total(*word), self.aim, Mark::walked_by(*word), score);
    }
}

/// The pages of a row.
const fn successors(row: &Row) -> [u32; KEPT] {
    [
        row[0] as u32,
        (row[0] >> 32) as u32,
        row[1] as u32,
        (row[1] >> 32) as u32,
    ]
}

impl Predictor for Successors<'_> {
    fn on_write(&mut self, gfn: Gfn, vcpu: u16, at: Nanos) -> Result<(), PredictError> {
        if gfn.0 >= self.rows.len() as u64 {
            return no_room(1, &mut self.overlooked);
        }
        if self.writes == 0 {
            self.first_at = at;
        }
        self.writes = self.writes.saturating_add(1);
        self.last_at = self.last_at.max(at);
        let last = &mut self.last[usize::from(vcpu) % VCPUS];
        let before = core::mem::replace(last, gfn.0 + 1);
        if before != 0 {
            // At most 2^32 pages: their numbers have 32 bits.
            Self::count(&mut self.rows[(before - 1) as usize], gfn.0 as u32);
        }
        Ok(())
    }

    fn on_writes(&mut self, writes: &[Write]) -> Result<(), PredictError> {
        let mut left_out = 0;
        for batch in writes.chunks(BATCH) {
            // Reading all rows first lets memory answer for them at the same time.
            self.read_ahead = batch.iter().fold(0, |seen, write| {
                seen | self.rows.get(write.gfn.0 as usize).map_or(0, |row| row[2])
            });
            for write in batch {
                left_out += u64::from(self.on_write(write.gfn, write.vcpu, write.at).is_err());
            }
        }
        match left_out {
            0 => Ok(()),
            pages => Err(PredictError::NoRoom { pages: Pages(pages) }),
        }
    }

    fn aim(&mut self, _now: Nanos, horizon: Nanos) {
        self.aim = self.aim.wrapping_add(1);
        if self.aim == 0 {
            // Marks of the aim 256 before would look valid.
            for row in &mut *self.rows {
                row[3] = Mark::pack(Mark::total(row[3]), 0, 0, 0);
            }
            self.aim = 1;
        }
        let steps = self.writes_in(horizon).min(self.rows.len() as u64);
        let writers = self.last.iter().filter(|&&last| last != 0).count() as u64;
        for vcpu in 0..VCPUS {
            if let Some(from) = self.last[vcpu].checked_sub(1) {
                self.walk(from as usize, steps.div_ceil(writers));
            }
        }
    }

    fn score(&self, gfn: Gfn) -> Score {
        let row = usize::try_from(gfn.0).ok().and_then(|page| self.rows.get(page));
        match row {
            Some(row) if self.aim != 0 && Mark::scored_by(row[3]) == self.aim => Score(Mark::score(row[3])),
            _ => Score::NONE,
        }
    }

    fn overlooked(&self) -> Pages {
        Pages(self.overlooked)
    }
}
