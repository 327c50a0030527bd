//! What the shard does with a lease: one task for each job, from the lease to its report.

mod jobs;
mod rest;
mod run_job;

pub use jobs::{Parts, Shard};
