//! The agent in the guest: it names pages that the guest has freed, while the guest uses them again; or it lies.

use std::collections::VecDeque;

use super::*;

/// After this the source copies without.
pub(super) const PATIENCE: Nanos = Nanos::from_millis(30);

/// What an agent is like. In a world's name it follows the strategy, behind a `+`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Honest,
    /// Names pages that are in use, pages that do not exist, and the same ones again and again.
    Liar,
    /// Never answers.
    Silent,
}

impl Kind {
    pub(super) fn of(strategy: &str) -> Option<Self> {
        Some(match strategy.split_once('+')?.1 {
            "honest" => Self::Honest,
            "liar" => Self::Liar,
            "silent" => Self::Silent,
            other => panic!("there is no agent called {other}"),
        })
    }
}

pub(super) struct Agent {
    kind: Kind,
    asked: bool,
    /// Where it looks next.
    at: u64,
    said: u64,
    /// On its way to the source; the end is `None`.
    line: VecDeque<Option<Run>>,
}

impl Agent {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            asked: false,
            at: 0,
            said: 0,
            line: VecDeque::new(),
        }
    }
}

impl World {
    /// The source asks which pages are soft.
    pub(super) fn open_epoch(&mut self) {
        assert!(self.tracking, "{self}: asked before anything is tracked");
        let agent = self.agent.as_mut().expect("nobody else is asked");
        (agent.asked, agent.at, agent.said) = (true, 0, 0);
        // What was said before is still on its way, now and then.
    }

    /// The guest frees a page: from now on nothing can be said of what is in it.
    pub(super) fn guest_frees(&mut self) {
        if self.agent.is_none() {
            return;
        }
        let (first, pages) = self.shape[self.below(self.shape.len() as u64) as usize];
        let (first, count) = (first + self.below(pages), 1 + self.below(6));
        for page in first..(first + count).min(self.end()) {
            if self.is_ram(page) && page != guest::host_page(self.shape) {
                self.soft[page as usize] = true;
            }
        }
    }

    pub(super) fn agent_acts(&mut self) {
        let Some(kind) = self.agent.as_ref().map(|agent| agent.kind) else {
            return;
        };
        if self.below(2) == 0
            && let Some(said) = self.agent.as_mut().and_then(|agent| agent.line.pop_front())
        {
            self.hints_heard += u64::from(self.source.as_ref().is_some_and(|it| it.listens_until().is_some()));
            self.tell_source(said.map_or(SourceEvent::HintsEnded, SourceEvent::Hinted));
        }
        // Its process may be asked while the guest is on the source only.
        if self.owner != Owner::Source || !self.agent.as_ref().is_some_and(|agent| agent.asked) {
            return;
        }
        match kind {
            Kind::Honest => self.look_on(),
            Kind::Liar => self.lie(),
            Kind::Silent => {}
        }
    }

    /// Names the next pages that are soft at this moment.
    fn look_on(&mut self) {
        let (from, end) = (self.agent.as_ref().map_or(0, |agent| agent.at), self.end());
        let until = (from + 1 + self.below(40)).min(end);
        let mut said = Vec::new();
        let mut page = from;
        while page < until {
            let count = (page..until).take_while(|page| self.soft[*page as usize]).count() as u64;
            if count > 0 {
                said.push(Some(Run::new(Gfn(page), Pages(count))));
            }
            page += count.max(1);
        }
        if until == end {
            said.push(None);
        }
        let agent = self.agent.as_mut().expect("it looks");
        agent.line.extend(said);
        (agent.at, agent.asked) = (until, until < end);
    }

    fn lie(&mut self) {
        let end = self.end();
        let first = self.below(end + 20);
        let count = match self.below(8) {
            0 => u64::MAX - self.below(300),
            1 => 0,
            2..=4 => 1 + self.below(end),
            _ => 1 + self.below(10),
        };
        let agent = self.agent.as_mut().expect("it lies");
        agent.said += 1;
        if agent.said > 30 {
            // Says that it is done, and goes on.
            agent.line.push_back(None);
            agent.asked = agent.said < 40;
            return;
        }
        agent.line.push_back(Some(Run::new(Gfn(first), Pages(count))));
        for page in first..first.saturating_add(count).min(end) {
            // Whatever the guest has written since it is tracked is safe from lies, and what its host reads.
            if !self.written[page as usize] && page != guest::host_page(self.shape) {
                self.soft[page as usize] = true;
            }
        }
    }

    /// Hints that were taken by the source so far, pages that are zero on the target because of them, and how often one was heard.
    pub(crate) fn hinted(&self) -> (Pages, u64) {
        let taken = self.source.as_ref().map_or(Pages::ZERO, |source| source.hinted());
        (taken, self.hints_heard)
    }

    /// How often the target asked for a page that it had been told is zero.
    pub(crate) fn hinted_requests(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| source.hinted_requests())
    }
}
