//! Which side holds the guest after a migration that somebody else has done.

/// Who has the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Holder {
    /// The source: all of it is there.
    Source,
    /// The target: all of it is there.
    Target,
    /// Neither alone: the guest runs on the target, and what is missing there is at the source.
    Both,
    /// Nobody: a part of it has gone with one of the two.
    Nobody,
    /// What is known does not tell.
    Unknown,
}

/// What is known of one side at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// It answers.
    Answers {
        /// Whether it still waits for a guest to come.
        awaits_guest: bool,
        /// Whether its guest's processors run.
        runs: bool,
    },
    /// It does not answer, which says nothing.
    Silent,
    /// Its process has ended.
    Gone,
}

/// What is known at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Whether it is complete, as far as the source says.
    pub completed: bool,
    /// Whether post-copy was entered, so that the guest may have run on the target.
    pub switched: bool,
    /// Whether the target was listened to all the time and never said that the guest runs.
    pub never_ran_there: bool,
    /// The side it came from.
    pub source: Peer,
    /// The side it went to.
    pub target: Peer,
}

impl Standing {
    /// Who has the guest. O(1).
    ///
    /// | | source gone | target gone | both there |
    /// |---|---|---|---|
    /// | completed | target | unknown | target |
    /// | ended before the switch | nobody | source | source |
    /// | ended after it | nobody | nobody; unknown if it never ran there | both |
    ///
    /// A source that runs its guest has not given it away, whatever it was told: it stops it before the target may run it.
    ///
    /// A side that is silent is taken for there where another answer would be wrong for certain, and makes it unknown else.
    pub const fn holder(&self) -> Holder {
        let (source, target) = (self.source, self.target);
        if self.completed {
            return match target {
                Peer::Answers {
                    awaits_guest: false, ..
                } => Holder::Target,
                _ => Holder::Unknown,
            };
        }
        if !self.switched || matches!(source, Peer::Answers { runs: true, .. }) {
            return match source {
                Peer::Answers { .. } => Holder::Source,
                Peer::Silent => Holder::Unknown,
                Peer::Gone => Holder::Nobody,
            };
        }
        match (source, target) {
            // The source has all of it, unless the target did run it in the moment before its end.
            (Peer::Answers { .. } | Peer::Silent, Peer::Gone) if self.never_ran_there => Holder::Unknown,
            (Peer::Gone, _) | (_, Peer::Gone) => Holder::Nobody,
            (Peer::Answers { .. }, Peer::Answers { .. }) => Holder::Both,
            _ => Holder::Unknown,
        }
    }

    /// Whether the guest may be run on at the source, where it stands still: only if it certainly never ran, nor will run, on the target.
    pub const fn may_run_at_source(&self) -> bool {
        !self.completed
            && !self.switched
            && matches!(self.source, Peer::Answers { .. })
            && matches!(self.target, Peer::Gone | Peer::Answers { awaits_guest: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const THERE: Peer = Peer::Answers {
        awaits_guest: false,
        runs: false,
    };
    const RUNNING: Peer = Peer::Answers {
        awaits_guest: false,
        runs: true,
    };
    const WAITING: Peer = Peer::Answers {
        awaits_guest: true,
        runs: false,
    };
    const PEERS: [Peer; 5] = [THERE, RUNNING, WAITING, Peer::Silent, Peer::Gone];

    fn all() -> Vec<Standing> {
        let mut all = Vec::new();
        for (flags, (source, target)) in (0..8).flat_map(|flags| {
            let pairs = PEERS.into_iter().flat_map(|one| PEERS.map(|other| (one, other)));
            pairs.map(move |pair| (flags, pair))
        }) {
            all.push(Standing {
                completed: flags & 1 != 0,
                switched: flags & 2 != 0,
                never_ran_there: flags & 4 != 0,
                source,
                target,
            });
        }
        all
    }

    #[test]
    fn the_table_of_the_documentation() {
        let standing = |completed, switched, source, target| Standing {
            completed,
            switched,
            never_ran_there: false,
            source,
            target,
        };
        let holder = |completed, switched| {
            let pairs = [(Peer::Gone, THERE), (THERE, Peer::Gone), (THERE, THERE)];
            pairs.map(|(source, target)| standing(completed, switched, source, target).holder())
        };
        assert_eq!(holder(true, false), [Holder::Target, Holder::Unknown, Holder::Target]);
        assert_eq!(holder(true, true), [Holder::Target, Holder::Unknown, Holder::Target]);
        assert_eq!(holder(false, false), [Holder::Nobody, Holder::Source, Holder::Source]);
        assert_eq!(holder(false, true), [Holder::Nobody, Holder::Nobody, Holder::Both]);
        let never_ran = Standing {
            never_ran_there: true,
            ..standing(false, true, THERE, Peer::Gone)
        };
        assert_eq!(never_ran.holder(), Holder::Unknown);
        let runs = standing(false, true, RUNNING, Peer::Gone);
        assert_eq!(
            runs.holder(),
            Holder::Source,
            "the switch was accepted, and did not take place"
        );
    }

    #[test]
    fn nobody_is_said_to_hold_it_who_is_not_there() {
        for standing in all() {
            let holder = standing.holder();
            let answers = |peer| matches!(peer, Peer::Answers { .. });
            match holder {
                Holder::Source => assert!(
                    answers(standing.source) && (!standing.switched || standing.source == RUNNING),
                    "{standing:?}"
                ),
                Holder::Target => assert!(
                    [THERE, RUNNING].contains(&standing.target) && standing.completed,
                    "{standing:?}"
                ),
                Holder::Both => assert!(answers(standing.source) && answers(standing.target), "{standing:?}"),
                Holder::Nobody => assert!(
                    [standing.source, standing.target].contains(&Peer::Gone) && !standing.completed,
                    "{standing:?}"
                ),
                Holder::Unknown => {}
            }
        }
    }

    #[test]
    fn it_is_run_at_the_source_only_where_it_is_held_there() {
        let mut may = 0;
        for standing in all().into_iter().filter(Standing::may_run_at_source) {
            assert_eq!(standing.holder(), Holder::Source, "{standing:?}");
            assert!(
                ![THERE, RUNNING, Peer::Silent].contains(&standing.target),
                "{standing:?}"
            );
            may += 1;
        }
        assert!(may > 0);
    }
}
