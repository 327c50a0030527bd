//! The crate's errors in one: each module has its own small enum, this one is for callers that pass them on.

use crate::bundle::BundleError;
use crate::picture::PictureError;
use crate::pixels::PixelsError;
use crate::row::RowError;
use crate::runtime::RuntimeError;
use crate::sampling::InvalidSettings;
use crate::stage::StageError;
use crate::text::TextError;

/// Anything that can go wrong between a prompt and a picture. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bundle is faulty.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// ONNX Runtime cannot be loaded, or fails.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A text cannot be embedded.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Settings out of range; the caller's fault.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// A row cannot be built from what was given.
    #[error(transparent)]
    Row(#[from] RowError),
    /// A stage failed.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// Tokens do not become pixels.
    #[error(transparent)]
    Pixels(#[from] PixelsError),
    /// A picture cannot be encoded.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The bundle cannot do what was asked.
    #[error("{0}")]
    Unsupported(String),
}
