//! The closed set of ways in which a call can fail, and the one place where they become gRPC.
//!
//! A crate keeps its own small enum and turns it into an [`Error`] (`impl From<TheirError> for muse_service::Error`), choosing
//! a kind; `?` in a handler then does the rest, as `tonic::Status: From<Error>`. Details follow `google.rpc`.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt as _};

/// What the caller can do about it is the difference between two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Change the request.
    InvalidArgument,
    /// It is not there, or not the caller's.
    NotFound,
    /// The same key already stands for something else.
    AlreadyExists,
    /// Someone else got there first, such as a lease that was taken over.
    Conflict,
    /// The caller's own limit: try again later, or less.
    Exhausted,
    /// Ours, and passing: try again later.
    Unavailable,
    /// The time that the caller gave ran out.
    DeadlineExceeded,
    /// The state of things has to change first.
    FailedPrecondition,
    /// The caller gave up, or a shutdown cut the call.
    Cancelled,
    /// Say who you are.
    Unauthenticated,
    /// Known, and not allowed.
    PermissionDenied,
    /// Not offered here.
    Unimplemented,
    /// A fault of ours. What happened is logged and not told.
    Internal,
}

/// A failure on its way to a caller. The message is for people, and says what to do where it can.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    // Rare details are apart, so that `Result<T, Error>` stays small.
    details: Box<Details>,
}

#[derive(Debug, Default)]
struct Details {
    fields: Vec<FieldViolation>,
    quota: Vec<QuotaViolation>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

// === impl Error ===

impl Error {
    /// An error of `kind` without details.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            details: Box::default(),
        }
    }

    /// One field of the request is wrong. `field` is its path in the request, such as `sampling.base.steps` or `texts[2]`.
    pub fn invalid_field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::invalid_fields(vec![FieldViolation::new(field, description)])
    }

    /// Several fields are wrong; the message names all of them.
    pub fn invalid_fields(fields: Vec<FieldViolation>) -> Self {
        let described: Vec<String> = fields
            .iter()
            .map(|violation| format!("{}: {}", violation.field, violation.description))
            .collect();
        let mut error = Self::new(ErrorKind::InvalidArgument, described.join("; "));
        error.details.fields = fields;
        error
    }

    /// It is not there, or not the caller's; never say which.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// The same key already stands for something else.
    pub fn already_exists(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::AlreadyExists, message)
    }

    /// Someone else got there first.
    pub fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// A limit that belongs to the caller is reached.
    pub fn exhausted(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(ErrorKind::Exhausted, message).retry_after(retry_after)
    }

    /// The cluster is full, or something it needs is away for now.
    pub fn unavailable(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(ErrorKind::Unavailable, message).retry_after(retry_after)
    }

    /// The time that the caller gave ran out.
    pub fn deadline_exceeded(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::DeadlineExceeded, message)
    }

    /// The state of things has to change first.
    pub fn failed_precondition(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, message)
    }

    /// A fault of ours; `source` is logged where the error becomes a status, and the caller hears none of it.
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Internal, INTERNAL_MESSAGE).with_source(source)
    }

    /// When to try again (`google.rpc.RetryInfo`).
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.details.retry_after = Some(delay);
        self
    }

    /// Whose limit it was (`google.rpc.QuotaFailure`): `subject` such as `tenant:default`, and the limit in words.
    #[must_use]
    pub fn quota(mut self, subject: impl Into<String>, description: impl Into<String>) -> Self {
        self.details.quota.push(QuotaViolation::new(subject, description));
        self
    }

    /// What caused it; only for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.details.source = Some(source.into());
        self
    }

    /// The kind.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The fields at fault, of [`ErrorKind::InvalidArgument`].
    pub fn fields(&self) -> &[FieldViolation] {
        &self.details.fields
    }
}

/// What a caller hears of a fault of ours.
const INTERNAL_MESSAGE: &str = "internal error; the service's log has the cause";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.details
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        if error.kind == ErrorKind::Internal {
            let cause = error.source().map(|source| chain(source).join(": "));
            tracing::error!(
                cause = cause.as_deref().unwrap_or(&error.message),
                "internal error"
            );
        }
        let Details {
            fields,
            quota,
            retry_after,
            source: _,
        } = *error.details;
        let mut details = ErrorDetails::new();
        if !fields.is_empty() {
            details.set_bad_request(fields);
        }
        if !quota.is_empty() {
            details.set_quota_failure(quota);
        }
        if retry_after.is_some() {
            details.set_retry_info(retry_after);
        }
        Status::with_error_details(error.kind.code(), error.message, details)
    }
}

fn chain(error: &dyn StdError) -> Vec<String> {
    std::iter::successors(Some(error), |error| (*error).source())
        .map(ToString::to_string)
        .collect()
}

// === impl ErrorKind ===

impl ErrorKind {
    /// The gRPC status code.
    pub const fn code(self) -> Code {
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::Conflict => Code::Aborted,
            Self::Exhausted => Code::ResourceExhausted,
            Self::Unavailable => Code::Unavailable,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::FailedPrecondition => Code::FailedPrecondition,
            Self::Cancelled => Code::Cancelled,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::Unimplemented => Code::Unimplemented,
            Self::Internal => Code::Internal,
        }
    }
}

/// The name of a code as gRPC writes it, such as `INVALID_ARGUMENT`; for metrics and logs.
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Corrects what the gRPC library says about a request that it could not read: a message over the limit comes out as
/// OUT_OF_RANGE, and bytes that are no message as INTERNAL, which would accuse us and page someone.
pub(crate) fn correct(status: &Status) -> Option<Status> {
    match status.code() {
        Code::OutOfRange => Some(Status::new(Code::ResourceExhausted, status.message())),
        Code::Internal if status.message().starts_with("failed to decode Protobuf message") => {
            Some(Status::new(Code::InvalidArgument, status.message()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_comes_out_as_a_bad_request_that_names_it() {
        let status = Status::from(Error::invalid_field(
            "sampling.base.steps",
            "must be between 1 and 100, not 0",
        ));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "sampling.base.steps: must be between 1 and 100, not 0"
        );
        let request = status.get_details_bad_request().unwrap();
        assert_eq!(request.field_violations[0].field, "sampling.base.steps");
        assert_eq!(
            request.field_violations[0].description,
            "must be between 1 and 100, not 0"
        );
    }

    #[test]
    fn a_reached_limit_says_whose_it_is_and_when_to_come_back() {
        let error = Error::exhausted("100 jobs are waiting", Duration::from_millis(1500))
            .quota("tenant:default", "at most 100 waiting jobs");
        let status = Status::from(error);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.get_details_retry_info().unwrap().retry_delay,
            Some(Duration::from_millis(1500))
        );
        assert_eq!(
            status.get_details_quota_failure().unwrap().violations[0].subject,
            "tenant:default"
        );
    }

    #[test]
    fn a_fault_of_ours_does_not_tell_the_caller_what_it_was() {
        let status = Status::from(Error::internal("redis://user:password@host is gone"));
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), INTERNAL_MESSAGE);
        let details = String::from_utf8_lossy(status.details()).into_owned();
        assert!(!details.contains("password"), "{details}");
    }

    #[test]
    fn the_librarys_words_for_unreadable_requests_are_corrected() {
        let large = Status::out_of_range("Error, decoded message length too large: found 9 bytes");
        assert_eq!(correct(&large).unwrap().code(), Code::ResourceExhausted);
        let garbage = Status::internal("failed to decode Protobuf message: invalid wire type");
        assert_eq!(correct(&garbage).unwrap().code(), Code::InvalidArgument);
        assert!(correct(&Status::internal(INTERNAL_MESSAGE)).is_none());
    }
}
