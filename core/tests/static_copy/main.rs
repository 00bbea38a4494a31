//! Both sides beside a static copy, step by step: what they ask of their hosts, and in which order.

mod channels;
mod hold;
mod source;
mod split;
mod target;

use dunlin_core::message::{Region, Regions};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};

fn regions(of: &[(u64, u64)]) -> Regions {
    let region = |&(first, pages): &(u64, u64)| Region {
        first: Gfn(first),
        pages: Pages(pages),
    };
    of.iter().map(region).collect()
}

fn run(first: u64, count: u64) -> Run {
    Run::new(Gfn(first), Pages(count))
}
