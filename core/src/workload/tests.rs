//! Tests that look at the workload from outside, one file per concept.

mod zipf;
