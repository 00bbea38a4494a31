//! A link that can be cut or swallow everything, with frames on the way in both directions.

use std::collections::VecDeque;

use dunlin_core::units::Nanos;

pub(crate) enum Frame {
    Control(Vec<u8>),
    Pages {
        first: u64,
        values: Vec<u64>,
        demanded: bool,
    },
    Request(u64),
}

pub(crate) struct Link {
    to_target: VecDeque<Frame>,
    to_source: VecDeque<Frame>,
    /// No connection until it is opened again, which cannot be before this time.
    broken_until: Option<Nanos>,
    swallows_until: Option<Nanos>,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            to_target: VecDeque::new(),
            to_source: VecDeque::new(),
            broken_until: None,
            swallows_until: None,
        }
    }

    /// Keeps a third, two thirds or all of what is on its way to the target: what the kernel had already passed on.
    pub(crate) fn cut(&mut self, keep_thirds: u64, until: Nanos) {
        let keep = self.to_target.len() * (keep_thirds as usize + 1) / 3;
        self.to_target.truncate(keep);
        self.to_source.clear();
        self.broken_until = Some(until);
    }

    pub(crate) fn swallow(&mut self, until: Nanos) {
        self.to_target.clear();
        self.to_source.clear();
        self.swallows_until = Some(until);
    }

    pub(crate) fn up(&self, now: Nanos) -> bool {
        self.broken_until.is_none() && self.swallows_until.is_none_or(|until| now >= until)
    }

    /// A connection that lost something carries nothing any more until it is opened anew.
    pub(crate) fn is_black_hole(&self) -> bool {
        self.swallows_until.is_some()
    }

    pub(crate) fn reopen(&mut self, now: Nanos) -> bool {
        if self.broken_until.is_some_and(|until| now < until) || self.swallows_until.is_some_and(|until| now < until) {
            return false;
        }
        self.broken_until = None;
        self.swallows_until = None;
        self.to_target.clear();
        self.to_source.clear();
        true
    }

    /// False if the sender learns that the link is gone. What is swallowed seems sent.
    pub(crate) fn send_to_target(&mut self, frame: Frame) -> bool {
        if self.broken_until.is_some() {
            return false;
        }
        // A connection that swallowed something never delivers what comes after it.
        if self.swallows_until.is_none() {
            self.to_target.push_back(frame);
        }
        true
    }

    pub(crate) fn send_to_source(&mut self, frame: Frame) -> bool {
        if self.broken_until.is_some() {
            return false;
        }
        if self.swallows_until.is_none() {
            self.to_source.push_back(frame);
        }
        true
    }

    pub(crate) fn next_for_target(&mut self) -> Option<Frame> {
        self.to_target.pop_front()
    }

    pub(crate) fn next_for_source(&mut self) -> Option<Frame> {
        self.to_source.pop_front()
    }

    pub(crate) fn has_for_target(&self) -> bool {
        !self.to_target.is_empty()
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.to_target.is_empty() && self.to_source.is_empty()
    }
}
