//! Every order in which the parts of post-copy can act, for VMs so small that all orders can be tried: faults and their answers on
//! one channel, the push on another, and whoever comes second finds the page installed.

use super::*;

/// Two pages that can be missing, and the one that the host reads itself.
pub(crate) const TWO_MISSING: Shape = &[(0, 3)];

/// What was chosen in a run: what the run before chose, but for the last choice that had another possibility.
#[derive(Default)]
pub(crate) struct Choices {
    taken: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    fn choose(&mut self, of: usize) -> usize {
        if self.at == self.taken.len() {
            self.taken.push((0, of));
        }
        let (choice, known) = self.taken[self.at];
        assert_eq!(known, of, "the same choices lead to the same world");
        self.at += 1;
        choice
    }

    /// On to the next run; false when all have been made.
    pub(crate) fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, of)) = self.taken.pop() {
            if choice + 1 < of {
                self.taken.push((choice + 1, of));
                return true;
            }
        }
        false
    }
}

/// Who acts next.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// A vCPU that touches a page; an index of those that have not yet.
    Vcpu(usize),
    /// The next action of the source, as a whole: taken out of the set, sent, and reported.
    Push,
    /// What is first on the fault channel reaches the source.
    Demand,
    /// What is first on a channel reaches the target.
    Arrival(Lane),
}

/// When the target does what follows from an installed page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TargetActs {
    AtOnce,
    Last,
}

impl World {
    /// Runs a migration by post-copy in which each of `touched` is touched once, by a vCPU of its own, at any time after the
    /// guest has begun to run on the target, until the source has nothing more to push and nothing is under way.
    pub(crate) fn post_copy_by(&mut self, choices: &mut Choices, touched: &[u64], target: TargetActs) {
        self.begin_post_copy();
        let mut touches = touched.to_vec();
        let mut pushing = true;
        loop {
            let mut parts: Vec<Part> = (0..touches.len()).map(Part::Vcpu).collect();
            if pushing {
                parts.push(Part::Push);
            }
            if self.link.for_source().contains(&Lane::Fault) {
                parts.push(Part::Demand);
            }
            parts.extend(self.link.for_target().into_iter().map(Part::Arrival));
            if parts.is_empty() {
                return;
            }
            let part = parts[choices.choose(parts.len())];
            self.trace("next acts", &part);
            match part {
                Part::Vcpu(index) => {
                    let page = touches.remove(index);
                    self.touch(page);
                }
                Part::Push => pushing = self.push_acts(),
                Part::Demand => self.demand_arrives(),
                Part::Arrival(lane) => {
                    self.deliver_to_target_from(lane);
                }
            }
            while target == TargetActs::AtOnce && self.target_step() {}
        }
    }

    /// Up to the moment when the guest runs on the target and the source knows, before anything is pushed.
    fn begin_post_copy(&mut self) {
        while self.owner != Owner::Target {
            self.source_step();
            self.deliver_to_target();
            self.target_step();
            self.deliver_to_source();
        }
        while self.target_step() || self.deliver_to_target() || self.deliver_to_source() {}
        assert_eq!(self.phase_of_source(), Some(Phase::PostCopy), "{self}");
        assert!(self.source_doing.is_none(), "{self}");
    }

    /// False if there is nothing to push any more.
    fn push_acts(&mut self) -> bool {
        let acted = self.source_step();
        while self.source_doing.is_some() {
            self.source_step();
        }
        acted
    }

    fn demand_arrives(&mut self) {
        match self.link.pipe(Lane::Fault).next_for_source() {
            Arrival::Frame(Frame::Request(page)) => self.serve(page),
            _ => panic!("{self}: only requests come on the fault channel"),
        }
    }

    fn touch(&mut self, page: u64) {
        match self.target_memory[page as usize] {
            Some(found) => assert_eq!(
                found, self.truth[page as usize],
                "{self}: the guest read a stale page {page}"
            ),
            None => {
                let target = self.target.as_ref().expect("the guest runs on it");
                assert_eq!(
                    target.on_fault(Gfn(page)),
                    FaultDecision::Request,
                    "{self}: page {page}"
                );
                self.link.fault.send_to_source(Frame::Request(page));
            }
        }
    }

    /// Pages that were installed because a vCPU waited, and because the push brought them.
    pub(crate) fn demanded_and_pushed(&self) -> (u64, u64) {
        let totals = self.target.as_ref().expect("the guest runs on it").totals();
        (totals.demanded, totals.pushed)
    }
}
