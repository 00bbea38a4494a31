//! The storage channel: guest pages as files in a directory that both hosts mount.
//!
//! One migration has a folder of its own, `dunlin-SESSION`, under the directory given with `--storage`. Pages travel in
//! *segments*, files of at most [`SEGMENT_PAGES_MAX`] pages of data. A segment is written to a temporary name, synced and then
//! renamed, so that a reader, also one on another host of the same NFS, finds either nothing or all of it.
//!
//! # Format of a segment, version 1, little-endian
//!
//! | part | bytes | content |
//! |---|---|---|
//! | header | 4096 | magic `DUNLSEG`, version, CRC-32, length, [`Header`] (postcard), zeros |
//! | data | 4096 each | the pages of the data runs, in the order of the index |
//! | index | 24 per run, padded with zeros to 4096 | first page (8), pages (4), 1 if all zeros (4), XXH3-64 of the data or 0 (8) |
//!
//! With a [`SealKey`] version is 2 and the parts are encrypted and authenticated where they are: the first block as
//! `storage/seal.rs` describes it, the data by runs, the index with its padding. A run in the index then takes 32 bytes, with the tag of its data (16)
//! instead of a hash. A migration that seals reads only what is sealed, and one that does not only what is plain.
//!
//! The folder also has `source.state` and `target.state`, written while no network joins the hosts; see [`State`].
//!
//! Everything lies at multiples of 4096, so that the files can bypass the page cache where the file system allows that.
//! Runs ascend and have at most [`RUN_PAGES_MAX`] pages; runs of zeros have no data.

mod aligned;
mod directory;
mod error;
mod forge;
mod format;
mod reader;
mod seal;
mod state;
mod writer;

pub use directory::{Leftover, SessionDirectory, leftovers};
pub use error::{Place, StorageError};
#[doc(hidden)]
pub use forge::forged;
pub use format::{Header, Kind, RUN_PAGES_MAX, SEGMENT_PAGES_MAX, Vm};
pub use reader::{Content, SegmentReader};
pub use seal::SealKey;
pub use state::{SourceState, State, TargetState};
pub use writer::{SegmentWriter, Written};

#[cfg(test)]
mod tests;
