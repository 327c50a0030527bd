//! A whole worker in this process, on the tiny bundle, between a gateway and encoders that do what a test says.
//!
//! Needs ONNX Runtime: `scripts/fetch-deps`, or `MUSE__RUNTIME__ONNXRUNTIME`.

mod attaching;
mod encoder;
mod failing;
mod gateway;
mod results;
mod worker;
