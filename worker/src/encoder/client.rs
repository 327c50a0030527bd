//! Asks the encoders, in rendezvous order, until one answers or patience ends; keeps what it got.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use muse_engine::Embedding;
use muse_proto::internal::v1::{
    ElementType, EmbedRequest, EmbedResponse, text_encoder_client::TextEncoderClient,
};
use muse_service::{client::Channel, config::ConfigError};
use tonic::{Code, Status};
use tracing::warn;

use super::rendezvous;
use crate::config::Encoder;

/// A failure, by what can be done about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EmbedError {
    /// The text cannot be embedded by this model; another attempt cannot help.
    #[error("{0}")]
    Invalid(String),
    /// No encoder answered in time.
    #[error("no text encoder answered in {waited:?}; the last said: {last}")]
    Unavailable {
        /// How long was tried.
        waited: Duration,
        /// The last failure.
        last: String,
    },
}

struct Member {
    client: TextEncoderClient<Channel>,
    cool_until: Mutex<Option<Instant>>,
}

/// See the module. Cheap to share behind an `Arc`.
pub struct Client {
    names: Vec<String>,
    members: Vec<Member>,
    config: Encoder,
    model: String,
    bundle_digest: String,
    width: usize,
    max_tokens: usize,
    cache: moka::future::Cache<String, Embedding>,
}

/// What one call came to.
enum Answer {
    Embedding(Embedding),
    /// The text is refused: no encoder will take it.
    Refused(String),
    /// This encoder failed; another may not.
    Failed(String),
}

impl Client {
    /// A client for one bundle, whose embeddings are `width` wide and at most `max_tokens` long. Connects at the first call.
    ///
    /// # Errors
    /// The endpoint that is not one.
    pub fn new(
        config: Encoder,
        model: String,
        bundle_digest: String,
        width: usize,
        max_tokens: usize,
    ) -> Result<Self, ConfigError> {
        let members = config.endpoints.iter().map(|name| {
            let channel = muse_service::client::connect(name, &config.client)
                .map_err(|error| ConfigError::invalid("encoder.endpoints", error.to_string()))?;
            let client = TextEncoderClient::new(channel).max_decoding_message_size(config.max_message_bytes);
            Ok(Member {
                client,
                cool_until: Mutex::new(None),
            })
        });
        let members = members.collect::<Result<Vec<_>, ConfigError>>()?;
        let cache = moka::future::Cache::builder()
            .max_capacity(config.cache_bytes)
            .weigher(|text: &String, embedding: &Embedding| {
                u32::try_from(text.len() + embedding.values.len() * size_of::<f32>()).unwrap_or(u32::MAX)
            })
            .build();
        Ok(Client {
            names: config.endpoints.clone(),
            members,
            config,
            model,
            bundle_digest,
            width,
            max_tokens,
            cache,
        })
    }

    /// The embedding of `text`. Callers that ask for the same text at once share one call.
    ///
    /// # Errors
    /// [`EmbedError`], by what can be done about it.
    pub async fn embed(&self, text: &str) -> Result<Embedding, EmbedError> {
        self.cache
            .try_get_with_by_ref(text, self.ask(text))
            .await
            .map_err(|error| EmbedError::clone(&error))
    }

    async fn ask(&self, text: &str) -> Result<Embedding, EmbedError> {
        let begun = Instant::now();
        let patience = Duration::from_millis(self.config.patience_ms);
        let first_pause = Duration::from_millis(self.config.retry_pause_ms.max(1));
        let mut pause = first_pause;
        loop {
            let mut last = String::new();
            for index in self.order(text) {
                match self.call(index, text).await {
                    Answer::Embedding(embedding) => {
                        self.cool(index, None);
                        return Ok(embedding);
                    }
                    Answer::Refused(message) => return Err(EmbedError::Invalid(message)),
                    Answer::Failed(message) => {
                        warn!(
                            encoder = self.names[index],
                            reason = message,
                            "an encoder failed; asking the next"
                        );
                        metrics::counter!("muse_encoder_failures_total").increment(1);
                        let until = Instant::now() + Duration::from_millis(self.config.cool_down_ms);
                        self.cool(index, Some(until));
                        last = message;
                    }
                }
                if begun.elapsed() >= patience {
                    break;
                }
            }
            if begun.elapsed() >= patience {
                return Err(EmbedError::Unavailable {
                    waited: begun.elapsed(),
                    last,
                });
            }
            tokio::time::sleep(pause.min(patience.saturating_sub(begun.elapsed()))).await;
            pause = (pause * 2).min(first_pause * 10);
        }
    }

    /// Rendezvous order, with those that failed a moment ago last.
    fn order(&self, text: &str) -> Vec<usize> {
        let now = Instant::now();
        let mut order = rendezvous::order(&self.names, &self.bundle_digest, text);
        order.sort_by_key(|index| {
            let cool = self.members[*index]
                .cool_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            cool.is_some_and(|until| until > now)
        });
        order
    }

    fn cool(&self, index: usize, until: Option<Instant>) {
        *self.members[index]
            .cool_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = until;
    }

    async fn call(&self, index: usize, text: &str) -> Answer {
        let mut request = tonic::Request::new(EmbedRequest {
            model: self.model.clone(),
            texts: vec![text.to_owned()],
            bundle_digest: self.bundle_digest.clone(),
        });
        let limit = Duration::from_millis(self.config.timeout_ms);
        request.set_timeout(limit);
        let mut client = self.members[index].client.clone();
        match tokio::time::timeout(limit, client.embed(request)).await {
            Ok(Ok(response)) => match self.read(response.into_inner()) {
                Ok(embedding) => Answer::Embedding(embedding),
                Err(fault) => Answer::Failed(fault),
            },
            Ok(Err(status)) => judge(&status),
            Err(_) => Answer::Failed(format!("no answer in {limit:?}")),
        }
    }

    fn read(&self, response: EmbedResponse) -> Result<Embedding, String> {
        let [embedding] = <[_; 1]>::try_from(response.embeddings)
            .map_err(|all| format!("{} embeddings for one text", all.len()))?;
        let tensor = embedding.embedding.ok_or("an answer without a tensor")?;
        let [tokens, width] = <[u64; 2]>::try_from(tensor.shape.clone())
            .map_err(|shape| format!("an embedding of shape {shape:?}, not [tokens, width]"))?;
        let (tokens, width) = (tokens as usize, width as usize);
        let fits =
            tensor.element_type() == ElementType::F32 && width == self.width && tokens <= self.max_tokens;
        let embedding = fits
            .then(|| Embedding::new(floats(&tensor.data), tokens, width))
            .flatten()
            .filter(|embedding| embedding.values.len() * size_of::<f32>() == tensor.data.len())
            .ok_or_else(|| {
                format!(
                    "an embedding {} [{tokens}, {width}] in {} bytes; this bundle's are F32 [1 to {}, {}]",
                    tensor.element_type().as_str_name(),
                    tensor.data.len(),
                    self.max_tokens,
                    self.width
                )
            })?;
        if embedding.values.iter().any(|value| !value.is_finite()) {
            return Err("an embedding with values that are not finite".to_owned());
        }
        Ok(embedding)
    }
}

/// A status, by whether asking another encoder can help.
fn judge(status: &Status) -> Answer {
    match status.code() {
        Code::InvalidArgument => Answer::Refused(status.message().to_owned()),
        code => Answer::Failed(format!("{} ({code})", status.message())),
    }
}

fn floats(data: &Bytes) -> Arc<[f32]> {
    data.chunks_exact(size_of::<f32>())
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect()
}
