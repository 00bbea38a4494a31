//! Away from the pages the target asked for last.

use crate::pageset::{PageSet, Run};
use crate::strategy::Pivots;
use crate::units::{Gfn, Pages};

/// In which direction a bubble grows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Direction {
    /// Upwards only.
    Forward,
    /// Upwards and downwards in turn.
    Dual,
}

const PIVOTS_MAX: usize = Pivots::Seven.count();

/// Most runs an edge pushes in its turn.
const WEIGHT_MAX: u8 = 64;

/// The pages `low` .. `high` around a pivot, none of which was missing when it was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Territory {
    low: u64,
    high: u64,
    /// The last fault near it.
    last: u64,
    /// How many runs each edge pushes in its turn, the upper first.
    weights: [u8; 2],
}

impl Territory {
    const fn at(low: u64, high: u64) -> Self {
        Self {
            low,
            high,
            last: low,
            weights: [1; 2],
        }
    }

    /// The guest has moved there. Returns the side to which it did, or the upper.
    fn follow(&mut self, page: u64) -> usize {
        let side = usize::from(page < self.last);
        if page != self.last {
            self.weights[side] = (self.weights[side] * 2).min(WEIGHT_MAX);
            self.weights[1 - side] = (self.weights[1 - side] / 2).max(1);
        }
        self.low = self.low.min(page);
        self.high = self.high.max(page.saturating_add(1));
        self.last = page;
        side
    }

    fn slow_down(&mut self) {
        self.weights = self.weights.map(|weight| (weight / 2).max(1));
    }
}

/// `bubble`: adaptive pre-paging by bubbling (Hines & Gopalan, "Post-Copy Based Live Virtual Machine Migration Using Adaptive
/// Pre-Paging and Dynamic Self-Ballooning", VEE 2009).
///
/// A fault is a pivot; around it a bubble grows, by the run at its upper edge, and with [`Direction::Dual`] in turn by that at
/// its lower. With several pivots their edges take turns, the latest pivot's first; a fault beyond the limit takes the
/// place of the pivot least recently faulted near. An edge that meets another bubble's stops, as all between the two has been
/// pushed. Before the first fault there is one pivot, at page 0. When all edges have stopped, what is still missing goes
/// from page 0 upwards.
///
/// Where this deviates, or the paper (of which we know the abstract's numbers and the algorithm as it is commonly told)
/// leaves it open: an edge pushes a run of up to `max` pages at a time, not one page, because a link wants larger writes; with
/// `max` = 1 it is page by page. A fault inside a bubble or at its edge refreshes that bubble instead of starting another, so that
/// one sequential reader does not push all other pivots out. And the edges' turns are not of the same length: with equal ones
/// the edge before a sequential guest gets half of the link or less, so that a guest that needs more runs into it page after page.
/// So each fault further up (or down) near the same bubble doubles the runs which that edge pushes in a turn, up to 64, and
/// halves those of the other edge, as a disk's read-ahead grows; a fault anywhere else, with which another bubble
/// begins, halves those of all others.
///
/// Seven territories of memory, 248 bytes.
#[derive(Clone, Debug)]
pub struct Bubble {
    /// The most recent first; at most `limit`.
    bubbles: heapless::Vec<Territory, PIVOTS_MAX>,
    limit: usize,
    direction: Direction,
    /// Whose turn it is: edge `turn` modulo edges.
    turn: usize,
    /// Runs it has pushed in it.
    pushed: u8,
}

impl Bubble {
    /// No fault yet; as many bubbles as there are pivots, 1, 3 and 7 being what Hines & Gopalan compare.
    pub fn new(direction: Direction, pivots: Pivots) -> Self {
        Self {
            bubbles: heapless::Vec::from_iter([Territory::at(0, 0)]),
            limit: pivots.count(),
            direction,
            turn: 0,
            pushed: 0,
        }
    }

    /// The next run of an edge whose turn it is, at most `max` pages. O(pivots²).
    pub fn next_run(&mut self, missing: &PageSet<'_>, max: Pages) -> Option<Run> {
        let sides = self.sides();
        let edges = self.bubbles.len() * sides;
        for edge in self.turn..self.turn + edges {
            let edge = edge % edges;
            let (index, side) = (edge / sides, edge % sides);
            let run = match side {
                0 => self.upwards(index, missing, max),
                _ => self.downwards(index, missing, max),
            };
            if run.is_some() {
                let pushed = if edge == self.turn { self.pushed + 1 } else { 1 };
                (self.turn, self.pushed) = if pushed < self.bubbles[index].weights[side] {
                    (edge, pushed)
                } else {
                    ((edge + 1) % edges, 0)
                };
                return run;
            }
        }
        missing.next_run(Gfn::ZERO, max)
    }

    /// The target waited for this page. O(pivots).
    pub fn on_fault(&mut self, gfn: Gfn) {
        let (page, after) = (gfn.0, gfn.0.saturating_add(1));
        let near = |bubble: &Territory| bubble.low <= after && page <= bubble.high;
        let (place, side) = match self.bubbles.iter().position(near) {
            Some(place) => (place, self.bubbles[place].follow(page)),
            None => {
                if self.bubbles.len() == self.limit {
                    self.bubbles.pop();
                }
                self.bubbles.iter_mut().for_each(Territory::slow_down);
                // There is room: the limit is at most the capacity, and one less is taken.
                let _ = self.bubbles.push(Territory::at(page, after));
                (self.bubbles.len() - 1, 0)
            }
        };
        self.bubbles[..=place].rotate_right(1);
        (self.turn, self.pushed) = (side % self.sides(), 0);
    }

    const fn sides(&self) -> usize {
        match self.direction {
            Direction::Forward => 1,
            Direction::Dual => 2,
        }
    }

    /// Grows a bubble at its upper edge, unless that has met another.
    fn upwards(&mut self, index: usize, missing: &PageSet<'_>, max: Pages) -> Option<Run> {
        let edge = self.bubbles[index].high;
        let run = missing.next_run(Gfn(edge), max)?;
        let met = self
            .others(index)
            .any(|other| edge <= other.low && other.low <= run.first.0);
        if met {
            return None;
        }
        self.bubbles[index].high = run.end().0;
        Some(run)
    }

    /// Grows a bubble at its lower edge, unless that has met another.
    fn downwards(&mut self, index: usize, missing: &PageSet<'_>, max: Pages) -> Option<Run> {
        let edge = self.bubbles[index].low;
        let run = missing.previous_run(Gfn(edge), max)?;
        let met = self
            .others(index)
            .any(|other| run.end().0 <= other.high && other.high <= edge);
        if met {
            return None;
        }
        self.bubbles[index].low = run.first.0;
        Some(run)
    }

    fn others(&self, index: usize) -> impl Iterator<Item = &Territory> {
        let all = self.bubbles.iter().enumerate();
        all.filter_map(move |(other, bubble)| (other != index).then_some(bubble))
    }
}
