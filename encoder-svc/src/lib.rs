//! Text to embeddings as a service: batching and caching around the engine's text encoder.
//!
//! A call's way: [`grpc`] checks it, [`encoder`] tokenizes, looks into the [`cache`] and, for what is missing, passes
//! [`admission`]; [`passes`] owns the model on a thread of its own and runs what [`batch`] puts together.
//!
//! Nothing here knows ONNX Runtime, except `model`, which opens the engine's text encoder.

mod admission;
mod batch;
mod cache;
mod config;
mod encoder;
mod error;
mod grpc;
mod model;
mod passes;
mod service;

pub use self::{
    config::{Admission, Batch, Cache, DEFAULT_PORT, EncoderConfig, Request},
    service::{Service, run},
};
