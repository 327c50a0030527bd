//! How a command can fail: what a person reads, and the exit code that a script sees.

use std::{io, process::ExitCode};

use muse_proto::v1::JobState;
use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{cluster::ClusterError, view::words};

/// Failed in some other way.
pub(crate) const FAILED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const JOB_FAILED: u8 = 4;
const NOT_FOUND: u8 = 5;
const LIMITED: u8 = 6;
/// As a shell reports SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// No gateway answers.
    #[error("cannot reach a gateway: {0}; is the cluster up (`musectl up`), and --endpoint right?")]
    Unreachable(String),
    /// The gateway refused.
    #[error("{}", refusal(.0))]
    Refused(Box<Status>),
    /// The job ended without its pictures.
    #[error("job {id} {}{}", words::state(*.state), .reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    JobEnded {
        id: String,
        state: JobState,
        reason: Option<String>,
    },
    /// Some lines of a batch have no picture.
    #[error("{0}")]
    Incomplete(String),
    /// The local cluster does not run.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A bundle or the model in this process.
    #[error("{0}")]
    Failed(String),
    /// Ctrl-C.
    #[error("interrupted{0}")]
    Interrupted(String),
}

impl Failure {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Failed(format!("{what}: {error}"))
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Unreachable(_) => UNREACHABLE,
            Self::Refused(status) => match status.code() {
                Code::InvalidArgument | Code::AlreadyExists | Code::Unimplemented => USAGE,
                Code::Unavailable => UNREACHABLE,
                Code::DeadlineExceeded | Code::Cancelled => JOB_FAILED,
                Code::NotFound => NOT_FOUND,
                Code::ResourceExhausted => LIMITED,
                _ => FAILED,
            },
            Self::JobEnded { .. } | Self::Incomplete(_) => JOB_FAILED,
            Self::Cluster(_) | Self::Failed(_) => FAILED,
            Self::Interrupted(_) => INTERRUPTED,
        }
    }

    /// Prints what happened, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("musectl: {self}");
        ExitCode::from(self.code())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// The wrong fields one a line, whose limit it was, and when to try again.
fn refusal(status: &Status) -> String {
    let details = status.get_error_details();
    let fields = details
        .bad_request()
        .map(|request| request.field_violations.as_slice())
        .unwrap_or_default();
    let mut lines = Vec::new();
    if fields.is_empty() {
        lines.push(format!("the gateway refused: {}", status.message()));
    } else {
        lines.push("the gateway refused the request:".to_owned());
        lines.extend(
            fields
                .iter()
                .map(|fault| format!("  {}: {}", fault.field, fault.description)),
        );
    }
    if let Some(quota) = details.quota_failure() {
        lines.extend(
            quota
                .violations
                .iter()
                .map(|limit| format!("  limit of {}: {}", limit.subject, limit.description)),
        );
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        lines.push(format!("  try again in {:.1} s", delay.as_secs_f64()));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    #[test]
    fn each_wrong_field_has_its_line() {
        let fields = vec![
            FieldViolation::new("base.steps", "must be 1 or more"),
            FieldViolation::new("seed", "odd"),
        ];
        let status = Status::with_error_details(
            Code::InvalidArgument,
            "bad",
            ErrorDetails::with_bad_request(fields),
        );
        let failure = Failure::from(status);
        let text = failure.to_string();
        assert_eq!(
            text,
            "the gateway refused the request:\n  base.steps: must be 1 or more\n  seed: odd"
        );
        assert_eq!(failure.code(), 2);
    }

    #[test]
    fn a_full_cluster_says_when_to_try_again() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1500)));
        let failure = Failure::from(Status::with_error_details(
            Code::Unavailable,
            "the queue is full",
            details,
        ));
        assert_eq!(
            failure.to_string(),
            "the gateway refused: the queue is full\n  try again in 1.5 s"
        );
        assert_eq!(failure.code(), 3);
    }

    #[test]
    fn exit_codes_are_as_documented() {
        let refused = |code| Failure::from(Status::new(code, "")).code();
        let codes = [
            Code::NotFound,
            Code::ResourceExhausted,
            Code::Internal,
            Code::AlreadyExists,
        ]
        .map(refused);
        assert_eq!(codes, [5, 6, 1, 2]);
        let ended = Failure::JobEnded {
            id: "7".to_owned(),
            state: JobState::Failed,
            reason: Some("why".to_owned()),
        };
        assert_eq!(
            (ended.to_string().as_str(), ended.code()),
            ("job 7 failed: why", 4)
        );
        assert_eq!(Failure::Interrupted(String::new()).code(), 130);
        assert_eq!(Failure::Unreachable(String::new()).code(), 3);
    }
}
