//! The attacker's suite: whoever listens on the wire, alters what passes, plays it again, reads or edits the directory, comes with another's
//! certificate or with none, asks for what the policy denies, or says what nobody says, all against live processes; and migrations with
//! everything switched on that is there against that.

// The peer that says anything, and the guest that moves on from attack to attack, are those of the cases one by one.
#[path = "../bad_input/chain.rs"]
mod chain;
#[path = "../bad_input/peer.rs"]
#[expect(dead_code, reason = "only some of what a peer can do is done here")]
mod peer;

mod altered;
mod callers;
mod capture;
mod everything;
mod hosts;
mod refused;
mod session;
mod strangers;
mod unauthorised;
