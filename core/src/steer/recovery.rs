//! A connection that breaks in post-copy, made again.
//!
//! The guest runs on the target then, and waits for pages that only the source has. Nothing can be undone; all that can be done is to connect
//! both again, as often as it takes. [`Recovery`] is told at intervals what the source says, and answers with the next [`Remedy`].

use super::Backoff;
use crate::units::{Bytes, Nanos};

/// What the source says of its connection in post-copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connection {
    /// It is used.
    Open {
        /// What was sent since the migration began.
        sent: Bytes,
        /// Whether there is nothing more to send.
        is_done: bool,
    },
    /// It has broken (`postcopy-paused`).
    Broken,
    /// Both agree about what is missing, over a new one (`postcopy-recover`).
    Handshake,
}

/// What is to be done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// Nothing, for now.
    None,
    /// Nothing: it is there again.
    Restored,
    /// It is to be given up, because nothing has moved over it for so long, and made again once it counts as broken.
    GiveUp {
        /// For how long.
        silent: Nanos,
    },
    /// Nothing yet: it has just broken, and is tried again after [`Recovery::FIRST_WAIT`].
    Broke,
    /// Both are to connect again now.
    Attempt {
        /// Which attempt this is since the connection broke, from 1 on.
        number: u32,
        /// By which of the addresses, from 0 on.
        place: usize,
        /// If it fails at once, how long until the next.
        next_in: Nanos,
    },
    /// Nothing can be done: the handshake has taken so long that it may never end. Said once.
    Stuck {
        /// For how long.
        since: Nanos,
    },
}

/// What was tried, and when the next thing is due.
///
/// Attempts take the addresses in turn, with pauses of [`Backoff`] between them, without end: the guest is lost if nobody tries.
#[derive(Clone, Debug)]
pub struct Recovery {
    places: usize,
    silence: Nanos,
    state: State,
    made: u32,
    stuck_was_said: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// `sent` has been what it is since then.
    Open {
        sent: Bytes,
        since: Nanos,
    },
    Broken {
        backoff: Backoff,
        next_at: Nanos,
    },
    Handshake {
        backoff: Backoff,
        since: Nanos,
    },
}

impl Recovery {
    /// A network that has just failed may fail again at once, and QEMU before 9.1 does not get over that in the middle of its handshake:
    /// the first attempt waits.
    pub const FIRST_WAIT: Nanos = Nanos::from_secs(1);
    /// A handshake that takes longer than this may never end.
    pub const HANDSHAKE_MAX: Nanos = Nanos::from_secs(30);

    /// With so many addresses, at least one, for a connection that is taken for broken if nothing moves over it for `silence`.
    ///
    /// # Panics
    /// Without an address.
    pub const fn new(places: usize, silence: Nanos) -> Self {
        assert!(places > 0, "an address is needed");
        Self {
            places,
            silence,
            state: State::Open {
                sent: Bytes::ZERO,
                since: Nanos::ZERO,
            },
            made: 0,
            stuck_was_said: false,
        }
    }

    /// How often the connection was made again.
    pub const fn made(&self) -> u32 {
        self.made
    }

    /// What the source says at a time, which never goes back; what is to be done. O(1).
    pub fn on_connection(&mut self, connection: Connection, at: Nanos) -> Remedy {
        match connection {
            Connection::Open { sent, is_done } => self.open(sent, is_done, at),
            Connection::Broken => self.broken(at),
            Connection::Handshake => self.handshake(at),
        }
    }

    fn open(&mut self, sent: Bytes, is_done: bool, at: Nanos) -> Remedy {
        let State::Open { sent: before, since } = self.state else {
            self.state = State::Open { sent, since: at };
            self.made = self.made.saturating_add(1);
            self.stuck_was_said = false;
            return Remedy::Restored;
        };
        if sent != before || is_done {
            self.state = State::Open { sent, since: at };
            return Remedy::None;
        }
        let silent = at.saturating_sub(since);
        if silent < self.silence {
            return Remedy::None;
        }
        // Where giving up is refused, it is being noticed at this moment; if not, it is time again after as long.
        self.state = State::Open { sent, since: at };
        Remedy::GiveUp { silent }
    }

    fn broken(&mut self, at: Nanos) -> Remedy {
        let (mut backoff, next_at) = match self.state {
            State::Open { .. } => {
                self.state = State::Broken {
                    backoff: Backoff::new(),
                    next_at: at.saturating_add(Self::FIRST_WAIT),
                };
                return Remedy::Broke;
            }
            State::Broken { backoff, next_at } => (backoff, next_at),
            // It broke again: the pauses go on growing.
            State::Handshake { backoff, .. } => {
                let mut next = backoff;
                (backoff, at.saturating_add(next.next()))
            }
        };
        if at < next_at {
            self.state = State::Broken { backoff, next_at };
            return Remedy::None;
        }
        let place = backoff.attempts() as usize % self.places;
        let next_in = backoff.next();
        self.state = State::Broken {
            backoff,
            next_at: at.saturating_add(next_in),
        };
        Remedy::Attempt {
            number: backoff.attempts(),
            place,
            next_in,
        }
    }

    fn handshake(&mut self, at: Nanos) -> Remedy {
        let (backoff, since) = match self.state {
            State::Open { .. } => (Backoff::new(), at),
            State::Broken { backoff, .. } => (backoff, at),
            State::Handshake { backoff, since } => (backoff, since),
        };
        self.state = State::Handshake { backoff, since };
        let since = at.saturating_sub(since);
        if self.stuck_was_said || since < Self::HANDSHAKE_MAX {
            return Remedy::None;
        }
        self.stuck_was_said = true;
        Remedy::Stuck { since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPEN: Connection = Connection::Open {
        sent: Bytes(1),
        is_done: false,
    };
    const SILENCE: Nanos = Nanos::from_secs(5);

    fn at(seconds: u64) -> Nanos {
        Nanos::from_secs(seconds)
    }

    fn attempt(number: u32, place: usize, seconds: u64) -> Remedy {
        Remedy::Attempt {
            number,
            place,
            next_in: at(seconds),
        }
    }

    #[test]
    fn attempts_take_all_places_with_growing_pauses() {
        let mut recovery = Recovery::new(2, SILENCE);
        assert_eq!(recovery.on_connection(OPEN, at(1)), Remedy::None);
        assert_eq!(recovery.on_connection(Connection::Broken, at(2)), Remedy::Broke);
        assert_eq!(
            recovery.on_connection(Connection::Broken, Nanos(2_999_999_999)),
            Remedy::None
        );
        assert_eq!(recovery.on_connection(Connection::Broken, at(3)), attempt(1, 0, 1));
        assert_eq!(
            recovery.on_connection(Connection::Broken, Nanos(3_999_999_999)),
            Remedy::None
        );
        assert_eq!(recovery.on_connection(Connection::Broken, at(4)), attempt(2, 1, 2));
        assert_eq!(recovery.on_connection(Connection::Broken, at(6)), attempt(3, 0, 4));
        assert_eq!(recovery.on_connection(Connection::Handshake, at(7)), Remedy::None);
        assert_eq!(recovery.made(), 0);
        assert_eq!(recovery.on_connection(OPEN, at(8)), Remedy::Restored);
        assert_eq!(recovery.made(), 1);
        assert_eq!(recovery.on_connection(Connection::Broken, at(9)), Remedy::Broke);
        assert_eq!(
            recovery.on_connection(Connection::Broken, at(10)),
            attempt(1, 0, 1),
            "anew"
        );
    }

    #[test]
    fn a_handshake_that_breaks_lets_pauses_go_on_growing() {
        let mut recovery = Recovery::new(1, SILENCE);
        recovery.on_connection(Connection::Broken, at(0));
        assert_eq!(recovery.on_connection(Connection::Broken, at(1)), attempt(1, 0, 1));
        recovery.on_connection(Connection::Handshake, at(1));
        assert_eq!(recovery.on_connection(Connection::Broken, at(2)), Remedy::None);
        assert_eq!(recovery.on_connection(Connection::Broken, at(3)), Remedy::None);
        assert_eq!(recovery.on_connection(Connection::Broken, at(4)), attempt(2, 0, 2));
    }

    #[test]
    fn what_is_silent_is_given_up_unless_it_has_nothing_to_say() {
        let mut recovery = Recovery::new(1, SILENCE);
        let sent = |bytes, is_done| Connection::Open {
            sent: Bytes(bytes),
            is_done,
        };
        assert_eq!(recovery.on_connection(sent(1, false), at(10)), Remedy::None);
        assert_eq!(recovery.on_connection(sent(2, false), at(14)), Remedy::None);
        assert_eq!(recovery.on_connection(sent(2, false), at(18)), Remedy::None);
        let silent = at(5);
        assert_eq!(
            recovery.on_connection(sent(2, false), at(19)),
            Remedy::GiveUp { silent }
        );
        assert_eq!(recovery.on_connection(sent(2, false), at(20)), Remedy::None);
        assert_eq!(
            recovery.on_connection(sent(2, false), at(24)),
            Remedy::GiveUp { silent }
        );
        assert_eq!(recovery.on_connection(sent(2, true), at(60)), Remedy::None);
    }

    #[test]
    fn a_stuck_handshake_is_said_once() {
        let mut recovery = Recovery::new(1, SILENCE);
        assert_eq!(recovery.on_connection(Connection::Handshake, at(100)), Remedy::None);
        assert_eq!(recovery.on_connection(Connection::Handshake, at(129)), Remedy::None);
        let stuck = Remedy::Stuck { since: at(30) };
        assert_eq!(recovery.on_connection(Connection::Handshake, at(130)), stuck);
        assert_eq!(recovery.on_connection(Connection::Handshake, at(200)), Remedy::None);
    }

    fn connections() -> impl Strategy<Value = Connection> {
        prop_oneof![
            (0..4_u64, any::<bool>()).prop_map(|(sent, is_done)| Connection::Open {
                sent: Bytes(sent),
                is_done
            }),
            Just(Connection::Broken),
            Just(Connection::Handshake),
        ]
    }

    proptest! {
        /// Whatever happens: a broken connection is never left alone for longer than the longest pause, nothing is told to an open
        /// one but to give up what is silent, and addresses exist.
        #[test]
        fn a_broken_connection_is_always_tried_again(
            places in 1..4_usize,
            told in prop::collection::vec((connections(), 0..3000_u64), 1..300),
        ) {
            let mut recovery = Recovery::new(places, SILENCE);
            let (mut now, mut idle_since, mut numbers) = (Nanos::ZERO, None::<Nanos>, 0);
            for (connection, millis) in told {
                now = now.saturating_add(Nanos::from_millis(millis));
                let remedy = recovery.on_connection(connection, now);
                match (connection, remedy) {
                    (Connection::Broken, Remedy::Attempt { number, place, .. }) => {
                        prop_assert!(place < places);
                        prop_assert_eq!(number, numbers + 1);
                        (numbers, idle_since) = (number, Some(now));
                    }
                    (Connection::Broken, Remedy::Broke | Remedy::None) => {
                        let since = *idle_since.get_or_insert(now);
                        prop_assert!(now.saturating_sub(since) < Backoff::LONGEST);
                    }
                    (Connection::Open { .. }, Remedy::None | Remedy::Restored | Remedy::GiveUp { .. }) => {
                        (idle_since, numbers) = (None, 0);
                    }
                    (Connection::Handshake, Remedy::None | Remedy::Stuck { .. }) => idle_since = None,
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
