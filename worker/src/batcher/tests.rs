//! The batcher over a model that computes logits from a row's own tokens and conditioning, and takes time on a clock of the
//! test's.

mod fake;
mod faults;
mod order;
mod results;
