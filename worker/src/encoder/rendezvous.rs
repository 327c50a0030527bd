//! Rendezvous hashing: every shard sends one prompt to the same encoder, so that it is embedded once in the cluster, and an
//! encoder that leaves moves only its own prompts.

use sha2::{Digest as _, Sha256};

/// The order in which `endpoints` are asked for (bundle, text), best first, as indices. The same everywhere: it depends on
/// the endpoints' names and not on their order.
pub(super) fn order(endpoints: &[String], bundle_digest: &str, text: &str) -> Vec<usize> {
    let mut weighted: Vec<([u8; 32], usize)> = endpoints
        .iter()
        .enumerate()
        .map(|(index, endpoint)| (weight(endpoint, bundle_digest, text), index))
        .collect();
    weighted.sort_unstable_by(|left, right| right.cmp(left));
    weighted.into_iter().map(|(_, index)| index).collect()
}

fn weight(endpoint: &str, bundle_digest: &str, text: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [endpoint, bundle_digest, text] {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: usize) -> Vec<String> {
        (0..count)
            .map(|index| format!("http://encoder-{index}:7710"))
            .collect()
    }

    fn first<'a>(endpoints: &'a [String], text: &str) -> &'a str {
        &endpoints[order(endpoints, "digest", text)[0]]
    }

    #[test]
    fn the_order_does_not_depend_on_how_the_endpoints_are_listed() {
        let forward = endpoints(5);
        let backward: Vec<String> = forward.iter().rev().cloned().collect();
        for prompt in 0..50 {
            let text = format!("prompt {prompt}");
            assert_eq!(first(&forward, &text), first(&backward, &text));
        }
    }

    #[test]
    fn an_encoder_that_leaves_moves_only_its_own_prompts() {
        let all = endpoints(5);
        let fewer = &all[..4];
        for prompt in 0..200 {
            let text = format!("prompt {prompt}");
            let before = first(&all, &text);
            if before != all[4] {
                assert_eq!(before, first(fewer, &text), "{text}");
            }
        }
    }

    #[test]
    fn prompts_spread_over_the_encoders() {
        let all = endpoints(4);
        let mut counts = [0usize; 4];
        for prompt in 0..400 {
            counts[order(&all, "digest", &format!("prompt {prompt}"))[0]] += 1;
        }
        assert!(
            counts.iter().all(|count| (60..=140).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn every_encoder_is_tried_once() {
        let mut seen = order(&endpoints(7), "digest", "text");
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
    }
}
