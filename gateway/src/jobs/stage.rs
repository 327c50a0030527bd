//! The stages' names in Redis, metrics and logs.

use muse_proto::v1::{Sampling, Stage};

/// The name of a stage, or `None` for one that is not set.
pub fn stage_name(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Unspecified => None,
        Stage::Base => Some("base"),
        Stage::Superres => Some("superres"),
    }
}

/// The stage of a name.
pub fn stage_of_name(name: &str) -> Option<Stage> {
    match name {
        "base" => Some(Stage::Base),
        "superres" => Some(Stage::Superres),
        _ => None,
    }
}

/// The stage that takes up what `name` makes, of jobs that pass both.
pub fn stage_after(name: &str) -> Option<&'static str> {
    match stage_of_name(name)? {
        Stage::Base => stage_name(Stage::Superres),
        Stage::Superres | Stage::Unspecified => None,
    }
}

/// A request's sampling settings for a stage.
pub fn sampling_of(request: &muse_proto::v1::GenerationRequest, stage: Stage) -> Option<&Sampling> {
    match stage {
        Stage::Unspecified => None,
        Stage::Base => request.base.as_ref(),
        Stage::Superres => request.superres.as_ref(),
    }
}
