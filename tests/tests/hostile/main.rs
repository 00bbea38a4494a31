//! Whoever can reach a waiting `dunlin receive`, or was let in, against the real process: it stays up, has no more memory than a guest of
//! the size it takes needs, and a guest whose owner keeps to the protocol comes meanwhile, or afterwards.

// The peer that says anything, and the guest that moves on from attack to attack, are those of the cases one by one.
#[path = "../bad_input/chain.rs"]
mod chain;
#[path = "../bad_input/peer.rs"]
#[expect(dead_code, reason = "only some of what a peer can do is done here")]
mod peer;

mod callers;
mod session;
