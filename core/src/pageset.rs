//! pageset
