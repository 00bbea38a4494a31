//! Where knowledge of written pages comes from.

pub mod pagemap;
