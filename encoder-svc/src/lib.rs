//! T5 embeddings: batching and caching around the engine's text encoder.
