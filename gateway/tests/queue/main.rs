//! Every script against a real Redis, without a gateway around it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(unreachable_pub, reason = "modules of a test binary, not a crate")]

mod ahead;
mod audits;
mod coalescing;
mod dead;
mod harness;
mod order;
mod pictures;
mod recount;
mod scripts;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tenants;
mod time;
mod watching;
