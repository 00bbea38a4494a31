//! The doing half of Dunlin: guests, trackers, channels, runners, command line.

mod block;
pub mod channel;
pub mod cli;
pub mod control;
pub mod guest;
pub mod journal;
pub mod memory;
pub mod predict;
pub mod profile;
pub mod push_order;
pub mod qemu;
pub mod replay;
pub mod report;
pub mod run;
pub mod sim;
pub mod storage;
pub mod trace;
pub mod track;
pub mod trust;
