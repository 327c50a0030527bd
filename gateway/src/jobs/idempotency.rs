//! What a client's idempotency key stands for.

use muse_proto::v1::GenerationRequest;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::queue::Idempotency;

/// The request's key and what it stands for: the request as the client sent it, so that one without a seed still equals itself. `None`
/// without a key.
pub(super) fn of(request: &GenerationRequest) -> Option<Idempotency> {
    if request.idempotency_key.is_empty() {
        return None;
    }
    let mut bare = GenerationRequest {
        labels: Default::default(),
        ..request.clone()
    };
    bare.idempotency_key.clear();
    let mut hash = Sha256::new();
    hash.update(bare.encode_to_vec());
    // A map is encoded in no particular order.
    let mut labels: Vec<_> = request.labels.iter().collect();
    labels.sort_unstable();
    for (name, text) in labels {
        for part in [name, text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    let key = hex::encode(Sha256::digest(request.idempotency_key.as_bytes()));
    Some(Idempotency {
        key,
        request: hex::encode(hash.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(labels: &[(&str, &str)]) -> GenerationRequest {
        let labels = labels
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        GenerationRequest {
            idempotency_key: "k".to_owned(),
            labels,
            ..GenerationRequest::default()
        }
    }

    #[test]
    fn the_same_request_stands_for_itself_whatever_the_order_of_its_labels() {
        let labels = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")];
        let mut reversed = labels;
        reversed.reverse();
        assert_eq!(of(&request(&labels)), of(&request(&reversed)));
        assert_ne!(of(&request(&labels)), of(&request(&labels[1..])));
        assert_ne!(of(&request(&[("a", "bc")])), of(&request(&[("ab", "c")])));
        let seeded = GenerationRequest {
            seed: Some(1),
            ..request(&labels)
        };
        assert_ne!(of(&request(&labels)), of(&seeded));
    }

    #[test]
    fn no_key_no_promise() {
        assert_eq!(of(&GenerationRequest::default()), None);
    }
}
