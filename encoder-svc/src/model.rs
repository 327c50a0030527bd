//! The model, as the rest of this crate sees it, and the engine's text encoder as one.

use std::sync::Arc;

use anyhow::Context as _;
use muse_engine::{
    Bundle, Embedding, Provider, Runtime, TextEncoder, TextError, TokenIds, Tokenizer,
    runtime::release_memory,
};
use muse_service::config::ConfigError;

use crate::EncoderConfig;

/// Text to tokens; used by many calls at once.
pub(crate) trait Tokenize: Send + Sync + 'static {
    /// A text's tokens.
    type Tokens: Send + 'static;

    /// The tokens, and the length bucket that they are padded to.
    fn tokenize(&self, text: &str) -> Result<Tokenized<Self::Tokens>, TokenizeError>;
}

/// Tokens to embeddings; owned by one thread.
pub(crate) trait Embed: Send + 'static {
    /// A text's tokens.
    type Tokens: Send + 'static;

    /// One pass over texts of one bucket: as many embeddings, in order, or the reason why none.
    fn embed(&mut self, texts: &[Self::Tokens]) -> Result<Vec<Embedding>, String>;
}

/// A text that can be embedded.
#[derive(Clone, Debug)]
pub(crate) struct Tokenized<T> {
    pub(crate) tokens: T,
    /// Tokens that it is padded to.
    pub(crate) bucket: usize,
}

/// Why a text has no tokens. Names the text's fault, never the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenizeError {
    /// More tokens than the model takes.
    TooLong { tokens: usize, limit: usize },
    /// Anything else.
    Other(String),
}

/// What start-up opens.
pub(crate) struct Model {
    pub(crate) bundle: Bundle,
    pub(crate) encoder: TextEncoder,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl Model {
    /// Loads ONNX Runtime and the bundle's text encoder; blocks for as long as that takes.
    ///
    /// # Errors
    /// One line that names the file, or the provider, and the fault.
    pub(crate) fn open(config: &EncoderConfig) -> anyhow::Result<Self> {
        if config.bundle.as_os_str().is_empty() {
            // Not part of the configuration's own check, so that `--check` prints the defaults.
            return Err(
                ConfigError::invalid("bundle", "name the bundle's folder, such as bundles/demo").into(),
            );
        }
        let bundle = Bundle::load(&config.bundle)?;
        let limit = config.admission.max_queued_tokens;
        if limit < bundle.text().max_length {
            let longest = bundle.text().max_length;
            anyhow::bail!(
                "admission.max_queued_tokens is {limit}, so that a text of {longest} tokens could never be taken on; \
                 set it to {longest} or more"
            );
        }
        Runtime::initialise(config.runtime.onnxruntime.as_deref())?;
        let encoder = TextEncoder::open(&bundle, &config.runtime).context("cannot open the text encoder")?;
        let tokenizer = Arc::new(encoder.tokenizer().clone());
        // What opening took.
        release_memory().context("cannot give memory back")?;
        Ok(Self {
            bundle,
            encoder,
            tokenizer,
        })
    }

    /// What the model runs on.
    pub(crate) fn provider(&self) -> Provider {
        self.encoder.provider()
    }
}

impl Tokenize for Tokenizer {
    type Tokens = TokenIds;

    fn tokenize(&self, text: &str) -> Result<Tokenized<TokenIds>, TokenizeError> {
        match Tokenizer::tokenize(self, text) {
            Ok(tokens) => {
                let bucket = self.bucket(&tokens);
                Ok(Tokenized { tokens, bucket })
            }
            Err(TextError::TooLong { tokens, limit }) => Err(TokenizeError::TooLong { tokens, limit }),
            Err(other) => Err(TokenizeError::Other(other.to_string())),
        }
    }
}

impl Embed for TextEncoder {
    type Tokens = TokenIds;

    fn embed(&mut self, texts: &[TokenIds]) -> Result<Vec<Embedding>, String> {
        TextEncoder::embed(self, texts).map_err(|error| error.to_string())
    }
}

/// Texts that together reach every bucket that a text can have, for warm-up: longer and longer ones, until too long.
pub(crate) fn texts_of_every_bucket<T: Tokenize>(tokenizer: &T) -> Vec<Tokenized<T::Tokens>> {
    let mut found: Vec<Tokenized<T::Tokens>> = Vec::new();
    let mut text = String::new();
    while let Ok(tokenized) = tokenizer.tokenize(&text) {
        if found.last().is_none_or(|last| last.bucket < tokenized.bucket) {
            found.push(tokenized);
        }
        // A tokenizer that swallows any number of words would never say "too long".
        if text.len() > LONGEST_WARM_UP {
            break;
        }
        text.push_str("a ");
    }
    found
}

/// Bytes; above any bucket that a text encoder has.
const LONGEST_WARM_UP: usize = 16 * 1024;
