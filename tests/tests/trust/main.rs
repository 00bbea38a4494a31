//! Migrations between hosts that know each other by certificates, and what becomes of everybody else.

mod hosts;
mod moves;
mod refused;
mod strangers;
