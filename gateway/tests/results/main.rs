//! Pictures in folders and buckets: a real gateway and a real Redis, a worker that computes nothing, and a bucket's server of
//! our own that takes no request which S3 would refuse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(unreachable_pub, reason = "modules of a test binary, not a crate")]

#[path = "../support/mod.rs"]
mod support;

mod bucket;
mod cleaning;
mod container;
mod outage;
mod signature;
mod start;
mod travel;
