//! In which order pages travel: which dirty pages a pre-copy round leaves for later, and what post-copy pushes next.

pub mod filter;
pub mod push;
