//! Why a text got no embedding, and what the caller hears.

use std::time::Duration;

use muse_service::Error;
use thiserror::Error as ThisError;
use tonic_types::FieldViolation;

use crate::admission::Refused;

/// A passing fault of ours is tried again after this long.
const SOON: Duration = Duration::from_millis(200);

/// Cheap to clone: the callers that shared one computation share its failure.
#[derive(Clone, Debug, ThisError)]
pub(crate) enum EmbedError {
    /// The request itself is wrong, field by field.
    #[error("{} fields of the request are wrong", .0.len())]
    Request(Vec<Fault>),
    /// The caller works with another bundle than this encoder.
    #[error("{0}")]
    OtherBundle(String),
    /// The admission limit is reached.
    #[error("the encoder's queue is full")]
    Full(Refused),
    /// The model failed on this text, alone.
    #[error("the text encoder failed: {0}")]
    Model(String),
    /// The thread that runs the model is gone.
    #[error("the encoder is shutting down")]
    Stopped,
}

/// A field of the request and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) field: String,
    pub(crate) description: String,
}

impl From<EmbedError> for Error {
    fn from(error: EmbedError) -> Self {
        match error {
            EmbedError::Request(faults) => Error::invalid_fields(
                faults
                    .into_iter()
                    .map(|fault| FieldViolation::new(fault.field, fault.description))
                    .collect(),
            ),
            EmbedError::OtherBundle(message) => Error::failed_precondition(message),
            EmbedError::Full(Refused {
                queued,
                limit,
                retry_after,
            }) => {
                let message = format!("{queued} of at most {limit} tokens wait or run in this text encoder");
                let limit =
                    format!("at most {limit} padded tokens wait or run (admission.max_queued_tokens)");
                Error::exhausted(message, retry_after).quota("encoder", limit)
            }
            EmbedError::Stopped => Error::unavailable("the text encoder is shutting down", SOON),
            EmbedError::Model(_) => Error::internal(error),
        }
    }
}
