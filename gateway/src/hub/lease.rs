//! A grant of the queue as the message that a worker gets.

use muse_proto::{
    internal::v1::{Checkpoint, Lease, Tensor},
    v1::{GenerationRequest, Stage},
};
use prost::{DecodeError, Message as _};

use crate::{
    jobs::{duration, timestamp},
    queue::Grant,
};

/// The message for a grant.
///
/// # Errors
/// When what lies in Redis is not what this version wrote.
pub(super) fn message(grant: &Grant, stage: Stage) -> Result<Lease, DecodeError> {
    let low_tokens = match grant.low_tokens.as_slice() {
        [] => None,
        encoded => Some(Tensor::decode(encoded)?),
    };
    let checkpoint = match grant.checkpoint.as_slice() {
        [] => None,
        // A checkpoint only saves time: without one the job begins again and gives the same result.
        encoded => Checkpoint::decode(encoded)
            .ok()
            .filter(|checkpoint| checkpoint.stage() == stage),
    };
    Ok(Lease {
        job_id: grant.id.to_string(),
        nonce: grant.nonce.to_vec(),
        stage: stage as i32,
        request: Some(GenerationRequest::decode(grant.request.as_slice())?),
        deadline: Some(timestamp(grant.deadline_ms)),
        low_tokens,
        checkpoint,
        traceparent: grant.traceparent.clone(),
        waited: Some(duration(grant.waited_ms)),
    })
}
