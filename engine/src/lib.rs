//! Muse on ONNX Runtime, as a library (arXiv 2301.00704).
//!
//! A [`Bundle`] says everything about a model. [`Runtime`] loads ONNX Runtime; [`text::TextEncoder`] turns prompts into
//! embeddings; a [`stage::StageModel`] runs forward passes over any mix of [`Row`]s; [`pixels::ImageDecoder`] turns their
//! tokens into pictures, which [`picture`] encodes. [`pipeline::Pipeline`] does all of it in one process.
//!
//! What decides tokens ([`random`], [`schedule`], [`halton`], [`guidance`], [`sampler`], [`row`]) is pure and knows no
//! ONNX Runtime: `docs/decoding.md` is its specification, shared with the Python reference. Nothing here knows gRPC,
//! Redis or an async runtime.

pub mod bundle;
pub mod error;
pub mod guidance;
pub mod halton;
pub mod picture;
pub mod pipeline;
pub mod pixels;
pub mod random;
pub mod row;
pub mod runtime;
pub mod sampler;
pub mod sampling;
pub mod schedule;
pub mod stage;
pub mod text;

pub use bundle::{Bundle, BundleError, ImageSize, Stage, StageSpec, TextSpec, Unconditional};
pub use error::Error;
pub use row::{Logits, Row, RowConditioning, RowError, RowSettings, RowState};
pub use runtime::{Provider, Runtime, RuntimeError, SessionOptions, WidenWeights};
pub use sampling::{
    FieldViolation, GuidanceSchedule, InvalidSettings, MaskSchedule, Sampling, SamplingOverrides, Scheduler,
};
pub use stage::{Conditioning, ConditioningInput, StageError, StageModel, UnconditionalSource};
pub use text::{Embedding, TextEncoder, TextError, TokenIds, Tokenizer};
