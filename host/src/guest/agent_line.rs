//! The line to the agent in a guest: bytes both ways, on a serial line that nobody need listen to.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most bytes that wait for whoever reads; what an agent says beyond that is lost.
const HEARD_MAX: usize = 64 * 1024;
/// Most bytes that wait for the guest to take them.
const SAID_MAX: usize = 4 * 1024;

/// A line to an agent. The guest's side never blocks: an agent that floods loses what it says.
#[derive(Debug, Default)]
pub struct AgentLine {
    bytes: Mutex<Bytes>,
    heard: Condvar,
}

#[derive(Debug, Default)]
struct Bytes {
    to_guest: VecDeque<u8>,
    from_guest: VecDeque<u8>,
    lost: u64,
}

impl AgentLine {
    fn bytes(&self) -> MutexGuard<'_, Bytes> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a conversation: what either side has said and nobody has heard is forgotten.
    pub fn begin(&self) {
        let mut bytes = self.bytes();
        bytes.to_guest.clear();
        bytes.from_guest.clear();
    }

    /// Says something to the agent, which hears it when it looks; `false` if it has not taken what was said before.
    pub fn say(&self, said: &[u8]) -> bool {
        let mut bytes = self.bytes();
        let fits = bytes.to_guest.len() + said.len() <= SAID_MAX;
        if fits {
            bytes.to_guest.extend(said);
        }
        fits
    }

    /// What the agent has said since the last call, after waiting for it for no longer than `patience`.
    pub fn hear(&self, patience: Duration) -> Vec<u8> {
        let deadline = Instant::now() + patience;
        let mut bytes = self.bytes();
        while bytes.from_guest.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            bytes = self
                .heard
                .wait_timeout(bytes, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        bytes.from_guest.drain(..).collect()
    }

    /// Bytes that came faster than anybody heard them.
    pub fn lost(&self) -> u64 {
        self.bytes().lost
    }

    /// The guest's side: what it says.
    pub(super) fn on_said(&self, said: &[u8]) {
        let mut bytes = self.bytes();
        let room = HEARD_MAX - bytes.from_guest.len();
        let taken = said.len().min(room);
        bytes.from_guest.extend(&said[..taken]);
        bytes.lost += (said.len() - taken) as u64;
        drop(bytes);
        self.heard.notify_all();
    }

    /// The guest's side: at most so many bytes of what it is told.
    pub(super) fn to_guest(&self, most: usize) -> Vec<u8> {
        let mut bytes = self.bytes();
        let count = bytes.to_guest.len().min(most);
        bytes.to_guest.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_in_order_and_bounded() {
        let line = AgentLine::default();
        assert!(line.say(b"one") && line.say(b"two"));
        assert_eq!((line.to_guest(4), line.to_guest(9)), (b"onet".to_vec(), b"wo".to_vec()));
        assert!(!line.say(&[0; SAID_MAX + 1]));
        line.on_said(b"yes");
        assert_eq!(line.hear(Duration::from_secs(5)), b"yes");
        assert_eq!(line.hear(Duration::ZERO), b"");
        line.on_said(&vec![7; HEARD_MAX + 10]);
        assert_eq!((line.hear(Duration::ZERO).len(), line.lost()), (HEARD_MAX, 10));
        line.say(b"old");
        line.on_said(b"old");
        line.begin();
        assert!(line.to_guest(9).is_empty() && line.hear(Duration::ZERO).is_empty());
    }
}
