//! A shard: takes leases from the hub and decodes them in shared passes.
//!
//! ```text
//! hub::Client ──lease──► shard (a task for each job) ──embed──► encoder::Client
//!      ▲                        │  ▲                └──picture──► pixels (thread)
//!      │ report                 ▼  │ rows done
//!      └────────────────── device (thread) ── batcher ── muse_engine::StageModel
//! ```
//!
//! [`batcher`] and [`hub::Protocol`] are pure; the rest moves data between them.

pub mod batcher;
pub mod board;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod encoder;
pub mod grid;
pub mod hello;
pub mod hub;
pub mod lease;
pub mod load;
pub mod painter;
pub mod pixels;
pub mod settings;
pub mod shard;
mod worker;

pub use config::WorkerConfig;
pub use worker::{Worker, run};
