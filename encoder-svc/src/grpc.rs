//! `muse.internal.v1.TextEncoder` over an [`Encoder`].

use std::sync::Arc;

use muse_proto::internal::v1::{
    ElementType, EmbedRequest, EmbedResponse, Embedding, Tensor, text_encoder_server::TextEncoder,
};
use muse_service::Error;
use tonic::{Request, Response, Status};

use crate::{
    cache::{Outcome, Stored},
    encoder::Encoder,
    error::EmbedError,
    model::Tokenize,
};

/// The bundle that is served, as callers name it.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) model: String,
    pub(crate) digest: String,
}

/// See the module.
pub(crate) struct GrpcEncoder<T: Tokenize> {
    pub(crate) encoder: Arc<Encoder<T>>,
    pub(crate) served: Served,
}

#[tonic::async_trait]
impl<T: Tokenize> TextEncoder for GrpcEncoder<T> {
    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let EmbedRequest {
            model,
            texts,
            bundle_digest,
        } = request.into_inner();
        self.served.check(&model, &bundle_digest).map_err(Error::from)?;
        let answers = self.encoder.embed(&texts).await.map_err(Error::from)?;
        let embeddings = answers
            .into_iter()
            .map(|(stored, outcome)| embedding(stored, outcome))
            .collect();
        Ok(Response::new(EmbedResponse { embeddings }))
    }
}

impl Served {
    fn check(&self, model: &str, digest: &str) -> Result<(), EmbedError> {
        if !model.is_empty() && model != self.model {
            let message = format!(
                "this text encoder serves the bundle {:?}, not {model:?}",
                self.model
            );
            return Err(EmbedError::OtherBundle(message));
        }
        if !digest.is_empty() && !digest.eq_ignore_ascii_case(&self.digest) {
            let message = format!(
                "this text encoder's bundle has the digest {}, the caller's {digest}; give both the same bundle",
                self.digest
            );
            return Err(EmbedError::OtherBundle(message));
        }
        Ok(())
    }
}

fn embedding(stored: Stored, outcome: Outcome) -> Embedding {
    Embedding {
        tokens: stored.tokens,
        cached: outcome != Outcome::Miss,
        embedding: Some(Tensor {
            element_type: ElementType::F32.into(),
            shape: vec![u64::from(stored.tokens), u64::from(stored.width)],
            data: stored.data,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_with_another_bundle_is_refused() {
        let served = Served {
            model: "muse-demo".to_owned(),
            digest: "ab01".to_owned(),
        };
        for (model, digest) in [("", ""), ("muse-demo", ""), ("", "AB01"), ("muse-demo", "ab01")] {
            assert!(served.check(model, digest).is_ok(), "{model} {digest}");
        }
        for (model, digest) in [("other", ""), ("", "ab02"), ("muse-demo", "ab")] {
            let status = Status::from(Error::from(served.check(model, digest).unwrap_err()));
            assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{model} {digest}");
        }
    }
}
