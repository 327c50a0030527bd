//! Clients and workers around real gateways and a real Redis; only the computing is left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod jobs;
mod leases;
mod losses;
mod operators;
