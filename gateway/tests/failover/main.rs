//! A primary with replicas: confirmations, demotions, and Sentinel's failover, with real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "../support/mod.rs"]
mod support;

mod confirmation;
mod nodes;
mod primaries;
mod sentinel;
mod slots;
