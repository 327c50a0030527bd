//! The ways in which a call to the gateway can fail, and what a client hears of each.

use std::time::Duration;

use muse_service::{Tenant, error::Error as CallError};
use tonic_types::FieldViolation;

use crate::{connection::RedisError, queue::Refusal, results::ResultsError};

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Change these fields.
    #[error("invalid fields: {0:?}")]
    Invalid(Vec<FieldViolation>),
    /// No such job, or another tenant's.
    #[error("no such job")]
    UnknownJob,
    /// No worker of that name is attached anywhere.
    #[error("no such worker")]
    UnknownWorker,
    /// The job has no such picture (yet).
    #[error("{0}")]
    NoImage(String),
    /// The idempotency key stands for another request.
    #[error("the idempotency key stands for another request")]
    IdempotencyConflict,
    /// A limit of the whole queue is reached.
    #[error("the queue is full: {}", .refusal.limit)]
    Full {
        /// Which.
        refusal: Refusal,
        /// When to try again.
        retry: Duration,
    },
    /// A limit of the tenant's own is reached.
    #[error("the tenant's {} is reached", .refusal.limit)]
    Quota {
        /// Whose.
        tenant: Tenant,
        /// Which.
        refusal: Refusal,
        /// When to try again.
        retry: Duration,
    },
    /// Redis has no room for more jobs.
    #[error("Redis is short of memory")]
    MemoryShort,
    /// Nothing can be served yet.
    #[error("no worker has attached yet")]
    NoModel {
        /// When to try again.
        retry: Duration,
    },
    /// A job that has succeeded or was cancelled cannot be put back.
    #[error("the job has ended")]
    HasEnded,
    /// An audit did not come to its end.
    #[error("{0}")]
    AuditStopped(String),
    /// This gateway is going away.
    #[error("this gateway is shutting down")]
    ShuttingDown,
    /// Another build of the model is being served.
    #[error("{0}")]
    OtherBundle(String),
    /// See [`ResultsError`]; never one of Redis.
    #[error("the store of pictures is not available: {reason}")]
    NoStore {
        /// For the log.
        reason: String,
        /// When to try again.
        retry: Duration,
    },
    /// See [`RedisError`].
    #[error(transparent)]
    Redis(#[from] RedisError),
}

impl From<ResultsError> for Error {
    fn from(error: ResultsError) -> Self {
        match error {
            ResultsError::Redis(error) => Self::Redis(error),
            ResultsError::Unavailable { reason, retry } => Self::NoStore { reason, retry },
        }
    }
}

impl Error {
    /// One wrong field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldViolation::new(field, description)])
    }
}

/// What a client waits before it tries a full cluster again.
const FULL_RETRY: Duration = Duration::from_secs(5);
/// What a client waits before it tries again during an outage, or another gateway.
const OUTAGE_RETRY: Duration = Duration::from_secs(1);

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(fields) => Self::invalid_fields(fields),
            Error::UnknownJob => Self::not_found("there is no such job"),
            Error::UnknownWorker => {
                Self::not_found("no worker of that name is attached; ListWorkers tells the names")
            }
            Error::NoImage(message) => Self::not_found(message),
            Error::IdempotencyConflict => Self::already_exists(
                "request.idempotency_key: the key was used before with another request; use a new key, or send the same \
                 request",
            ),
            Error::Full { refusal, retry } => {
                let why = match refusal.limit.as_str() {
                    "bytes" => "its jobs take up as many bytes as allowed".to_owned(),
                    "rate" => format!("it takes {} submissions a second", refusal.value),
                    _ => "as many jobs as allowed are waiting".to_owned(),
                };
                Self::unavailable(format!("the queue is full: {why}"), retry)
            }
            Error::Quota {
                tenant,
                refusal: Refusal { limit, value, .. },
                retry,
            } => {
                let why = match limit.as_str() {
                    "max_queued" => format!("{value} jobs wait, as many as tenant {tenant} may have"),
                    "max_bytes" => {
                        format!("the jobs of tenant {tenant} would take up more than {value} bytes")
                    }
                    _ => format!("tenant {tenant} may submit {value} jobs a second"),
                };
                Self::exhausted(why.clone(), retry)
                    .quota(format!("tenant:{tenant}"), format!("{limit}: {why}"))
            }
            Error::MemoryShort => Self::unavailable("the queue's memory is nearly full", FULL_RETRY),
            Error::NoModel { retry } => {
                Self::unavailable("no worker has attached yet, so no model is served", retry)
            }
            Error::HasEnded => Self::failed_precondition(
                "the job has succeeded or was cancelled; submit its request again for another one",
            ),
            Error::AuditStopped(why) => Self::conflict(why),
            Error::ShuttingDown => {
                Self::unavailable("this gateway is shutting down; call again", OUTAGE_RETRY)
            }
            Error::OtherBundle(message) => Self::failed_precondition(message),
            Error::NoStore { reason, retry } => {
                Self::unavailable("the picture cannot be read for now; the job keeps it", retry)
                    .with_source(reason)
            }
            Error::Redis(RedisError::Unavailable(reason)) => {
                Self::unavailable("the queue is not available for now", OUTAGE_RETRY).with_source(reason)
            }
            Error::Redis(RedisError::NotConfirmed { wanted, got }) => Self::unavailable(
                format!(
                    "the job is queued, but only {got} of {wanted} copies were confirmed in time: a failover may lose it. \
                     Send it again under the same idempotency key; without one it would be another job"
                ),
                OUTAGE_RETRY,
            ),
            Error::Redis(RedisError::OutOfMemory) => {
                Self::unavailable("the queue's memory is full", FULL_RETRY)
            }
            Error::Redis(error @ RedisError::Refused(_)) => Self::internal(error),
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        CallError::from(error).into()
    }
}
