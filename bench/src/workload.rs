//! The pictures that are asked for: their prompts differ, so that no cache hides work.

use muse_engine::SamplingOverrides;
use muse_proto::v1::{GenerationRequest, Sampling, TextToImage, generation_request::Task};

const COLOURS: [&str; 8] = [
    "red", "blue", "green", "yellow", "black", "white", "orange", "pink",
];
const THINGS: [&str; 8] = ["star", "heart", "circle", "square", "cat", "dog", "apple", "fish"];
const COUNTS: [&str; 4] = ["a", "two", "three", "four"];
const GROUNDS: [&str; 6] = ["", "red", "blue", "green", "yellow", "white"];
/// So many pictures have prompts of their own; then they begin again.
const PROMPTS: usize = COLOURS.len() * THINGS.len() * COUNTS.len() * GROUNDS.len();

/// Steps of the base stage and of super-resolution that eight clients with different wishes ask for.
pub(crate) const MIX: [(u32, u32); 8] = [
    (8, 4),
    (12, 6),
    (16, 8),
    (24, 8),
    (8, 8),
    (32, 12),
    (16, 4),
    (20, 10),
];

/// One picture; what it does not say comes from the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    /// Base, super-resolution.
    pub(crate) steps: Option<(u32, u32)>,
}

impl Order {
    /// The `index`-th picture of a run.
    pub(crate) fn numbered(index: usize) -> Self {
        // Short prompts first: a bundle for tests may take no longer ones.
        let mut left = index % PROMPTS;
        let mut next = |words: &[&'static str]| {
            let word = words[left % words.len()];
            left /= words.len();
            word
        };
        let (colour, thing, count, ground) = (next(&COLOURS), next(&THINGS), next(&COUNTS), next(&GROUNDS));
        let plural = if count == "a" || thing == "fish" { "" } else { "s" };
        let mut prompt = format!("{count} {colour} {thing}{plural}");
        if !ground.is_empty() {
            prompt.push_str(&format!(" on a {ground} background"));
        }
        Self {
            prompt,
            seed: index as u64,
            steps: None,
        }
    }

    /// The `index`-th picture of eight clients whose wishes differ.
    pub(crate) fn mixed(index: usize) -> Self {
        Self {
            steps: Some(MIX[index % MIX.len()]),
            ..Self::numbered(index)
        }
    }

    /// What it overrides of the bundle's defaults: base, super-resolution.
    pub(crate) fn overrides(&self) -> [SamplingOverrides; 2] {
        let steps = [self.steps.map(|steps| steps.0), self.steps.map(|steps| steps.1)];
        steps.map(|steps| SamplingOverrides {
            steps,
            ..SamplingOverrides::default()
        })
    }

    /// As the cluster takes it.
    pub(crate) fn request(&self) -> GenerationRequest {
        let sampling = |steps: Option<u32>| Sampling {
            steps,
            ..Sampling::default()
        };
        GenerationRequest {
            task: Some(Task::TextToImage(TextToImage {
                prompt: self.prompt.clone(),
                ..TextToImage::default()
            })),
            base: Some(sampling(self.steps.map(|steps| steps.0))),
            superres: Some(sampling(self.steps.map(|steps| steps.1))),
            seed: Some(self.seed),
            ..GenerationRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_prompt_comes_twice_in_a_run() {
        let prompts: BTreeSet<String> = (0..PROMPTS).map(|index| Order::numbered(index).prompt).collect();
        assert_eq!(prompts.len(), PROMPTS);
        assert_eq!(Order::numbered(0).prompt, "a red star");
        assert_eq!(
            Order::numbered(PROMPTS - 1).prompt,
            "four pink fish on a white background"
        );
    }

    #[test]
    fn the_engine_and_the_cluster_are_asked_for_the_same() {
        let order = Order::mixed(5);
        let (engine, wire) = (order.overrides(), order.request());
        assert_eq!(engine[0].steps, wire.base.unwrap().steps);
        assert_eq!(engine[1].steps, wire.superres.unwrap().steps);
        assert_eq!(wire.seed, Some(5));
    }
}
