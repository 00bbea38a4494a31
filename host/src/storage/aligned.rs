//! Bytes at page boundaries, as direct I/O wants them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::block::BLOCK_BYTES;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_BYTES]);

/// A number of pages in one piece.
#[derive(Clone)]
pub(super) struct AlignedPages(Vec<Page>);

impl AlignedPages {
    /// So many pages of zeros.
    pub(super) fn zeroed(pages: usize) -> Self {
        Self(vec![Page([0; BLOCK_BYTES]); pages])
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}
