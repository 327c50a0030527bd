//! Requests that the tests send.

use muse_proto::v1::{GenerationRequest, Sampling, TextToImage, generation_request::Task};

/// A picture of `prompt`, defaults for all else.
pub fn text_to_image(prompt: &str, seed: u64) -> GenerationRequest {
    GenerationRequest {
        task: Some(Task::TextToImage(TextToImage {
            prompt: prompt.to_owned(),
            ..TextToImage::default()
        })),
        seed: Some(seed),
        ..GenerationRequest::default()
    }
}

/// So many pictures in so many steps that the job can be caught in the middle, in either stage.
pub fn long(prompt: &str, seed: u64) -> GenerationRequest {
    let mut request = text_to_image(prompt, seed);
    if let Some(Task::TextToImage(task)) = &mut request.task {
        task.count = Some(8);
    }
    request.base = Some(Sampling {
        steps: Some(48),
        ..Sampling::default()
    });
    request.superres = Some(Sampling {
        steps: Some(24),
        ..Sampling::default()
    });
    request
}
