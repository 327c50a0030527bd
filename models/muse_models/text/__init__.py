"""The text encoder: a small T5 v1.1 encoder with a T5-style Unigram tokenizer, frozen after pre-training."""
