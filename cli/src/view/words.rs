//! Enums as the words that people and JSON see.

use muse_proto::v1::{
    AuditFault, GuidanceSchedule, ImageFormat, JobErrorReason, JobState, MaskSchedule, Priority, Scheduler,
    Stage,
};

pub(crate) const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Unspecified => "none",
        Stage::Base => "base",
        Stage::Superres => "superres",
    }
}

pub(crate) const fn state(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Delayed => "delayed",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

pub(crate) const fn is_terminal(state: JobState) -> bool {
    matches!(
        state,
        JobState::Succeeded | JobState::Failed | JobState::Cancelled
    )
}

pub(crate) const fn priority(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "low",
        Priority::Unspecified | Priority::Normal => "normal",
        Priority::High => "high",
    }
}

pub(crate) const fn format(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Unspecified | ImageFormat::Png => "png",
        ImageFormat::Webp => "webp",
        ImageFormat::Jpeg => "jpeg",
    }
}

/// Of a file name.
pub(crate) const fn extension(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "jpg",
        other => self::format(other),
    }
}

pub(crate) const fn reason(reason: JobErrorReason) -> &'static str {
    match reason {
        JobErrorReason::Unspecified => "unspecified",
        JobErrorReason::InvalidRequest => "invalid_request",
        JobErrorReason::ModelFailed => "model_failed",
        JobErrorReason::EncoderUnavailable => "encoder_unavailable",
        JobErrorReason::CrashedWorkers => "crashed_workers",
        JobErrorReason::DeadlineExceeded => "deadline_exceeded",
        JobErrorReason::Internal => "internal",
    }
}

pub(crate) const fn audit_fault(fault: AuditFault) -> &'static str {
    match fault {
        AuditFault::Unspecified => "unspecified",
        AuditFault::Misplaced => "misplaced",
        AuditFault::Orphan => "orphan",
        AuditFault::Broken => "broken",
        AuditFault::Counter => "counter",
    }
}

pub(crate) const fn guidance_schedule(schedule: GuidanceSchedule) -> &'static str {
    match schedule {
        GuidanceSchedule::Unspecified => "default",
        GuidanceSchedule::Linear => "linear",
        GuidanceSchedule::Constant => "constant",
    }
}

pub(crate) const fn mask_schedule(schedule: MaskSchedule) -> &'static str {
    match schedule {
        MaskSchedule::Unspecified => "default",
        MaskSchedule::Cosine => "cosine",
        MaskSchedule::Linear => "linear",
        MaskSchedule::Arccos => "arccos",
    }
}

pub(crate) const fn scheduler(scheduler: Scheduler) -> &'static str {
    match scheduler {
        Scheduler::Unspecified => "default",
        Scheduler::Confidence => "confidence",
        Scheduler::Halton => "halton",
    }
}
