//! Bare-metal payload; see `cargo xtask build`.
fn main() {}
