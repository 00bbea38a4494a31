//! Seeing which pages a guest writes.

pub mod ebpf;
pub mod foreign;
pub mod ladder;
