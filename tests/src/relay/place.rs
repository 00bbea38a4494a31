//! Places of a migration, told by what passes on its connections: the same place of the protocol in each run, however
//! fast the machine is.

use dunlin::channel::Direction;
use dunlin_core::message::{Message, Mode};
use dunlin_core::strategy::{First, Strategy, SwitchRule};
use dunlin_core::units::PAGE_SIZE;
use dunlin_core::wire::{FrameHeader, FrameKind};

/// One of the connections of a migration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Messages, rounds and pushed pages.
    Migration,
    /// Demanded pages.
    Fault,
}

/// A frame on its way.
pub struct Passing<'a> {
    /// On which connection.
    pub lane: Lane,
    /// To which side.
    pub direction: Direction,
    /// What it says of itself.
    pub header: &'a FrameHeader,
    /// What it says, if it is a message.
    pub message: Option<Message<'a>>,
    /// Bytes that have passed to the target before it, on all connections.
    pub bytes: u64,
}

impl Passing<'_> {
    fn carries_pages(&self) -> bool {
        self.direction == Direction::Forward && matches!(self.header.kind, FrameKind::Pages | FrameKind::Zero)
    }
}

/// A place of a migration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The source says hello.
    Hello,
    /// The target agrees.
    Welcome,
    /// Pages of the rounds; with post-copy alone, the first that are pushed.
    Copy,
    /// A round but the first begins.
    Round,
    /// The target tells what became of the static copy.
    Merged,
    /// The guest is paused: the first that is sent of its state.
    Pause,
    /// Everything for the hand-over has been sent.
    HandOver,
    /// The target could run the guest.
    Ready,
    /// The source has given the guest up and says so.
    Commit,
    /// The target has heard that; the only place behind what passes instead of before it.
    Committed,
    /// The guest runs on the target, which says so.
    Running,
    /// Pages that are pushed while the guest runs on the target.
    Push,
    /// A page that the guest waits for is asked for.
    Demand,
    /// And comes.
    Answer,
    /// The target has everything and says so.
    Complete,
    /// After some number of bytes, wherever that is.
    Moment,
}

impl Place {
    /// Every place, in the order of a migration.
    pub const ALL: [Self; 16] = [
        Self::Hello,
        Self::Welcome,
        Self::Copy,
        Self::Round,
        Self::Merged,
        Self::Pause,
        Self::HandOver,
        Self::Ready,
        Self::Commit,
        Self::Committed,
        Self::Running,
        Self::Push,
        Self::Demand,
        Self::Answer,
        Self::Complete,
        Self::Moment,
    ];

    /// This place, or any moment where migrations by `strategy` never come to it.
    pub fn of(self, strategy: Strategy) -> Self {
        let exists = match self {
            Self::Merged => strategy.first == First::Parallel,
            Self::Round => strategy.switch != SwitchRule::Rounds(0),
            Self::Push | Self::Demand | Self::Answer => strategy.can_post_copy(),
            _ => true,
        };
        if exists { self } else { Self::Moment }
    }

    /// How often it must have been reached, of `random` a part that a small guest still comes to.
    fn count(self, random: u64) -> u64 {
        match self {
            Self::Copy | Self::Push => random % 12,
            Self::Demand | Self::Answer => random % 40,
            Self::Round => random % 2,
            Self::Moment => random % (10 << 20),
            _ => 0,
        }
    }
}

/// A place, and how often it has been reached.
pub struct Trigger {
    place: Place,
    count: u64,
    seen: u64,
    /// How the guest was handed over, once it was.
    handed_over: Option<(Mode, u64)>,
    committed: bool,
    running: bool,
}

impl Trigger {
    /// A trigger at a place that `random` chooses more closely.
    pub fn new(place: Place, random: u64) -> Self {
        Self {
            place,
            count: place.count(random),
            seen: 0,
            handed_over: None,
            committed: false,
            running: false,
        }
    }

    /// How the guest was handed over, and how many pages were dirty then.
    pub const fn handed_over(&self) -> Option<(Mode, u64)> {
        self.handed_over
    }

    /// The source has said that it gave the guest up.
    pub const fn committed(&self) -> bool {
        self.committed
    }

    /// True if it strikes behind the frame.
    pub const fn is_behind(&self) -> bool {
        matches!(self.place, Place::Committed)
    }

    /// Looks at what passes; true where it is to strike.
    pub fn meets(&mut self, passing: &Passing<'_>) -> bool {
        if let Some(Message::HandOver { mode, final_dirty, .. }) = &passing.message {
            self.handed_over = Some((*mode, final_dirty.0));
        }
        self.committed |= matches!(passing.message, Some(Message::Commit));
        if !self.is_here(passing) {
            self.running |= matches!(passing.message, Some(Message::Running));
            return false;
        }
        self.seen += 1;
        self.place == Place::Moment || self.seen > self.count
    }

    fn is_here(&self, passing: &Passing<'_>) -> bool {
        let on_migration = passing.lane == Lane::Migration;
        match (self.place, &passing.message) {
            (Place::Hello, Some(Message::Hello(_)))
            | (Place::Welcome, Some(Message::Welcome { .. }))
            | (Place::Merged, Some(Message::StaticMerged | Message::StaticFailed))
            | (Place::Pause, Some(Message::FinalSet { .. } | Message::State { .. }))
            | (Place::HandOver, Some(Message::HandOver { .. }))
            | (Place::Ready, Some(Message::Ready))
            | (Place::Commit | Place::Committed, Some(Message::Commit))
            | (Place::Running, Some(Message::Running))
            | (Place::Complete, Some(Message::Complete(_))) => true,
            (Place::Round, Some(Message::RoundStart { round, .. })) => *round > 1,
            (Place::Copy, None) => on_migration && passing.carries_pages(),
            (Place::Push, None) => self.running && on_migration && passing.carries_pages(),
            (Place::Demand, None) => passing.header.kind == FrameKind::PageRequest,
            (Place::Answer, None) => !on_migration && passing.carries_pages(),
            (Place::Moment, _) => passing.bytes >= self.count,
            _ => false,
        }
    }
}

/// Bytes behind the header of a frame.
pub(super) fn payload_bytes(header: &FrameHeader) -> usize {
    let count = header.count as usize;
    match header.kind {
        FrameKind::Control => count,
        FrameKind::Pages => count * PAGE_SIZE as usize,
        FrameKind::Zero | FrameKind::Announce | FrameKind::PageRequest | FrameKind::Heartbeat => 0,
    }
}

#[cfg(test)]
mod tests {
    use dunlin_core::units::{Gfn, Pages};

    use super::*;

    fn header(kind: FrameKind) -> FrameHeader {
        FrameHeader {
            kind,
            stream: 0,
            sequence: 0,
            count: 1,
            first: Gfn(0),
            checksum: None,
            round: 0,
        }
    }

    fn says(trigger: &mut Trigger, message: Message<'_>) -> bool {
        trigger.meets(&Passing {
            lane: Lane::Migration,
            direction: Direction::Forward,
            header: &header(FrameKind::Control),
            message: Some(message),
            bytes: 0,
        })
    }

    fn pages(trigger: &mut Trigger, lane: Lane, bytes: u64) -> bool {
        trigger.meets(&Passing {
            lane,
            direction: Direction::Forward,
            header: &header(FrameKind::Pages),
            message: None,
            bytes,
        })
    }

    #[test]
    fn a_push_is_a_page_behind_the_start_on_the_target() {
        let mut push = Trigger::new(Place::Push, 1);
        assert!(!pages(&mut push, Lane::Migration, 0));
        assert!(!says(&mut push, Message::Running));
        assert!(!pages(&mut push, Lane::Fault, 0), "an answer is no push");
        assert!(!pages(&mut push, Lane::Migration, 0), "the second is meant");
        assert!(pages(&mut push, Lane::Migration, 0));
    }

    #[test]
    fn messages_are_met_at_once_and_what_they_say_is_kept() {
        let mut commit = Trigger::new(Place::Commit, 99);
        let hand_over = Message::HandOver {
            mode: Mode::PostCopy,
            state_bytes: 1,
            final_dirty: Pages(7),
        };
        assert!(!says(&mut commit, hand_over));
        assert_eq!(commit.handed_over(), Some((Mode::PostCopy, 7)));
        assert!(!commit.committed());
        assert!(says(&mut commit, Message::Commit));
        assert!(commit.committed());
        let start = |round| Message::RoundStart { round, pages: Pages(1) };
        let mut round = Trigger::new(Place::Round, 0);
        assert!(!says(&mut round, start(1)));
        assert!(says(&mut round, start(2)));
    }

    #[test]
    fn a_moment_is_a_number_of_bytes() {
        let mut moment = Trigger::new(Place::Moment, 4096);
        assert!(!pages(&mut moment, Lane::Migration, 4095));
        assert!(pages(&mut moment, Lane::Fault, 4096));
    }

    #[test]
    fn where_a_strategy_never_comes_any_moment_will_do() {
        let precopy = Strategy::parse("precopy").expect("a strategy");
        let parallel = Strategy::parse("par-migrate").expect("a strategy");
        assert_eq!(Place::Demand.of(precopy), Place::Moment);
        assert_eq!(Place::Merged.of(precopy), Place::Moment);
        assert_eq!(Place::Merged.of(parallel), Place::Merged);
        assert_eq!(Place::Commit.of(precopy), Place::Commit);
    }
}
