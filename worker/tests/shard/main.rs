//! A whole worker in this process, on the tiny bundle, between a gateway and encoders that do what a test says.
//!
//! Needs ONNX Runtime: `scripts/fetch-deps`, or `MUSE__RUNTIME__ONNXRUNTIME`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod attaching;
mod encoder;
mod failing;
mod gateway;
mod results;
mod worker;
