//! Embeddings from encoder-svc: one prompt always asks the same encoder first ([`rendezvous`]), and the next when that one
//! fails ([`client`]).

mod client;
mod rendezvous;

pub use client::{Client, EmbedError};
