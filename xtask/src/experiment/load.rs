//! What a guest writes, counted by running its generator: the rate for a wanted load, and the load of a rate.

use anyhow::{Context as _, ensure};
use dunlin_core::units::{Bytes, BytesPerSec, PAGE_SIZE, Pages};
use dunlin_core::workload::{Generator, Kind, Plan, Spec};

/// A guest that is to be moved over a link.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub(crate) memory: Bytes,
    pub(crate) bandwidth: BytesPerSec,
}

impl Link {
    /// All pages of the guest.
    pub(super) const fn pages(self) -> u64 {
        self.memory.0 / PAGE_SIZE
    }

    /// What the link carries.
    pub(super) fn pages_per_second(self) -> f64 {
        self.bandwidth.0 as f64 / PAGE_SIZE as f64
    }

    /// The time of one copy, M/B.
    pub(super) fn copy_seconds(self) -> f64 {
        self.memory.0 as f64 / self.bandwidth.0 as f64
    }

    /// Pages the workload writes to.
    pub(super) fn working_set(self, workload: &str) -> anyhow::Result<Pages> {
        Ok(Plan::new(&spec(workload)?, self.memory, 1)?.ws())
    }

    /// Steps per second with which a guest writes `share` of its pages in the time of one copy, each counted once.
    pub(crate) fn rate_for_share(self, workload: &str, share: f64) -> anyhow::Result<u64> {
        let wanted = (share * self.pages() as f64) as u64;
        let steps = self.steps_to_write(workload, wanted)?;
        Ok((steps as f64 / self.copy_seconds()) as u64)
    }

    /// Steps per second of a guest whose rounds settle at `wanted` pages: while they are sent, as many are written.
    pub(crate) fn rate_to_settle_at(self, workload: &str, wanted: u64) -> anyhow::Result<u64> {
        let steps = self.steps_to_write(workload, wanted)?;
        Ok((steps as f64 * self.pages_per_second() / wanted as f64).round() as u64)
    }

    /// The load: distinct pages written in the time of one copy, over the pages that are sent in it. A guest that is through
    /// with its working set earlier is measured until then, because afterwards it writes no page for the first time.
    pub(crate) fn offered_load(self, workload: &str, steps_per_second: f64) -> anyhow::Result<f64> {
        let steps = (steps_per_second * self.copy_seconds()) as u64;
        let mut pages = self.first_writes(workload)?;
        let all = self.working_set(workload)?.0;
        let (mut distinct, mut seconds) = (0_u64, self.copy_seconds());
        for (step, is_first) in (1..=steps).zip(&mut pages) {
            distinct += u64::from(is_first);
            if distinct == all {
                seconds = step as f64 / steps_per_second;
                break;
            }
        }
        Ok(distinct as f64 / seconds / self.pages_per_second())
    }

    /// What pre-copy of at most `rounds` rounds sends before the guest is paused, in copies of memory: each round what was
    /// written while the one before was sent.
    pub(super) fn precopy_copies(self, workload: &str, rate: u64, rounds: u32) -> anyhow::Result<f64> {
        let steps = (self.copy_seconds() * rate as f64) as usize;
        let written = self.first_writes(workload)?.take(steps).scan(0_u64, |sum, is_first| {
            *sum += u64::from(is_first);
            Some(*sum)
        });
        let written: Vec<u64> = written.collect();
        let (mut round, mut sent) = (self.pages(), 0);
        for _ in 0..rounds {
            sent += round;
            let steps = (round as f64 / self.pages_per_second() * rate as f64) as usize;
            round = steps
                .checked_sub(1)
                .map_or(0, |last| written[last.min(written.len() - 1)]);
        }
        Ok(sent as f64 / self.pages() as f64)
    }

    fn steps_to_write(self, workload: &str, wanted: u64) -> anyhow::Result<u64> {
        let most = self.working_set(workload)?.0;
        ensure!(
            (1..=most).contains(&wanted),
            "{workload} writes {most} pages, not {wanted}"
        );
        let is_first = self.first_writes(workload)?;
        let mut firsts = (1_u64..).zip(is_first).filter(|(_, is_first)| *is_first);
        let (steps, _) = firsts
            .nth(usize::try_from(wanted - 1)?)
            .context("a generator never ends")?;
        Ok(steps)
    }

    /// For each step of a guest that is warm whether it writes a page for the first time.
    fn first_writes(self, workload: &str) -> anyhow::Result<impl Iterator<Item = bool>> {
        let spec = spec(workload)?;
        let pages = self.working_set(workload)?;
        let warm = preheating_steps(workload, pages);
        let mut written = vec![false; usize::try_from(pages.0)?];
        let steps = Generator::new(&spec, pages, 1, 0, 1)?.skip(usize::try_from(warm)?);
        Ok(steps.map(move |step| {
            let page = &mut written[step.page as usize];
            step.kind == Kind::Write && !std::mem::replace(page, true)
        }))
    }
}

/// Steps before a workload does what it is about: `memcached` fills its slab first.
pub(super) fn preheating_steps(workload: &str, working_set: Pages) -> u64 {
    if workload.starts_with("memcached") {
        working_set.0
    } else {
        0
    }
}

fn spec(workload: &str) -> anyhow::Result<Spec> {
    let parsed: Result<Spec, _> = workload.parse();
    parsed.map_err(|error| anyhow::anyhow!("`{workload}` is no workload: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link {
        memory: Bytes(64 << 20),
        bandwidth: BytesPerSec(40_000_000),
    };

    #[test]
    fn a_sequence_writes_a_page_with_every_step() {
        let rate = LINK.rate_for_share("seq", 0.37).expect("possible");
        assert!(
            (rate as f64 / LINK.pages_per_second() / 0.37 - 1.0).abs() < 0.001,
            "{rate}"
        );
        let load = LINK.offered_load("seq", rate as f64).expect("a workload");
        assert!((load - 0.37).abs() < 0.001, "{load}");
    }

    #[test]
    fn a_load_above_one_counts_until_everything_is_written() {
        let load = LINK
            .offered_load("seq", 1.2 * LINK.pages_per_second())
            .expect("a workload");
        assert!((load - 1.2).abs() < 0.001, "{load}");
    }

    /// n steps leave a page of W unwritten with probability (1 - 1/W)^n.
    #[test]
    fn a_random_writer_needs_as_many_steps_as_chance_says() {
        let pages = LINK.working_set("uniform").expect("fits").0 as f64;
        let wanted = 0.25 * LINK.pages() as f64;
        let steps = (1.0 - wanted / pages).ln() / (1.0 - 1.0 / pages).ln();
        let per_copy = LINK.rate_for_share("uniform", 0.25).expect("possible") as f64;
        assert!((per_copy * LINK.copy_seconds() / steps - 1.0).abs() < 0.03);
        let settled = LINK.rate_to_settle_at("uniform", wanted as u64).expect("possible") as f64;
        let seconds = wanted / LINK.pages_per_second();
        assert!((settled * seconds / steps - 1.0).abs() < 0.03);
    }

    /// Three of five steps write, another three of five pages in each pass.
    #[test]
    fn reading_is_no_load() {
        let wanted = LINK.working_set("lmbench").expect("fits").0 / 2;
        let steps = LINK.steps_to_write("lmbench", wanted).expect("possible") as f64;
        assert!((steps / wanted as f64 - 5.0 / 3.0).abs() < 0.001, "{steps}");
    }

    #[test]
    fn filling_the_slab_is_not_counted() {
        let pages = LINK.working_set("memcached").expect("fits");
        assert_eq!(preheating_steps("memcached,ws=8MiB", pages), pages.0);
        assert_eq!(preheating_steps("kernel", pages), 0);
        let steps = LINK.steps_to_write("memcached", pages.0 / 4).expect("possible");
        assert!(
            steps > pages.0 / 2,
            "popular items are written again and again: {steps}"
        );
    }

    /// 1 + 0.37 + 0.37² + 0.37³, and again and again all of it.
    #[test]
    fn rounds_of_a_sequence_are_a_geometric_series() {
        let rate = |load: f64| (load * LINK.pages_per_second()) as u64;
        let converging = LINK.precopy_copies("seq", rate(0.37), 4).expect("a workload");
        assert!((converging - 1.5576).abs() < 0.001, "{converging}");
        let diverging = LINK.precopy_copies("seq", rate(1.2), 3).expect("a workload");
        assert!((2.9..=3.0).contains(&diverging), "{diverging}");
    }

    #[test]
    fn more_than_there_is_cannot_be_written() {
        assert!(LINK.rate_for_share("uniform,ws=1MiB", 0.5).is_err());
        assert!(LINK.rate_for_share("uniform", 0.0).is_err());
        assert!(LINK.rate_for_share("nothing", 0.1).is_err());
    }
}
