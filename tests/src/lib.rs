//! Shared by the tests that cross crates, and by the demo and the benchmarks: what this machine can do, the `dunlin`
//! command as a child process, and whole migrations in a few lines.

pub mod baseline;
pub mod capability;
pub mod folder;
pub mod golden;
pub mod initramfs;
pub mod lab;
pub mod linux;
pub mod mount;
pub mod netns;
pub mod oracle;
pub mod pairs;
pub mod process;
pub mod qemu;
pub mod relay;
pub mod scene;
pub mod stock;
pub mod tap;
pub mod wire;

pub use capability::{Capability, require};
pub use process::Dunlin;
