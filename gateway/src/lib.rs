//! The gateway: public API, jobs in Redis, worker hub, results. The only part of Muse Serve that talks to Redis.
//!
//! - [`api`]: the gRPC services, thin; [`jobs`] and [`models`] hold what they do.
//! - [`validate`]: what a request may ask for, and its defaults. Pure.
//! - [`queue`]: jobs in Redis, moved by Lua scripts; [`connection`]: the way there.
//! - [`hub`]: where workers attach; [`results`]: finished pictures.
//! - [`watch`]: news of jobs; [`reaper`]: what time overtakes.
//!
//! Every gateway is like every other and keeps nothing that matters in memory: kill one, and clients and workers go on at
//! the next.

pub mod api;
pub mod config;
pub mod connection;
mod error;
pub mod hub;
pub mod jobs;
pub mod models;
pub mod queue;
pub mod reaper;
pub mod results;
mod service;
pub mod validate;
pub mod watch;

pub use self::{
    config::Config,
    error::Error,
    service::{Gateway, run},
};
