"""Reads a bundle: the manifest, with digests checked, and its graphs as ONNX Runtime sessions."""

import hashlib
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from .sampler import Settings


class BundleError(Exception):
    """A fault of a bundle, as one line that names the file."""


class Bundle:
    """A bundle in folder `path`. Every file is checked against its digest before anything is loaded."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """`threads` is how many threads one operator may use; 1 is enough to compare and takes no other's CPU."""
        self.path = path
        self.digest = hashlib.sha256((path / "bundle.toml").read_bytes()).hexdigest()
        self.manifest: dict[str, Any] = tomllib.loads((path / "bundle.toml").read_text())
        self._threads = threads
        for name, entry in self.manifest["files"].items():
            self._check(name, entry)
        self.stages = {name: Stage(self, name) for name in ("base", "superres") if name in self.manifest}

    def _check(self, name: str, entry: dict[str, Any]) -> None:
        if not (self.path / name).is_file():
            raise BundleError(f"{name}: missing")
        content = (self.path / name).read_bytes()
        if len(content) != entry["size"]:
            raise BundleError(f"{name}: {len(content)} bytes, but the manifest says {entry['size']}")
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise BundleError(f"{name}: not the file that the manifest describes (SHA-256 differs)")

    def session(self, name: str) -> onnxruntime.InferenceSession:
        """A CPU session on the graph in file `name`."""
        if name not in self.manifest["files"]:
            raise BundleError(f"{name}: not listed in [files]")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(str(self.path / name), options, providers=["CPUExecutionProvider"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.path / self.manifest["text"]["tokenizer"]))

    @cached_property
    def text_encoder(self) -> onnxruntime.InferenceSession:
        return self.session(self.manifest["text"]["encoder"])

    def embed(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Embedding f32 [1, max_length, D] and mask int64 [1, max_length] of `prompt`, zero where it is padding."""
        text = self.manifest["text"]
        ids = self.tokenizer.encode(prompt).ids
        if len(ids) > text["max_length"]:
            raise ValueError(f"the prompt has {len(ids)} tokens, and the model takes {text['max_length']}")
        bucket = next(length for length in text["length_buckets"] if length >= len(ids))
        input_ids = np.full((1, bucket), text["pad_id"], np.int64)
        input_ids[0, : len(ids)] = ids
        attention_mask = (np.arange(bucket) < len(ids)).astype(np.int64)[None]
        (states,) = self.text_encoder.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})
        embedding = np.zeros((1, text["max_length"], text["width"]), np.float32)
        embedding[:, :bucket] = np.where(attention_mask[:, :, None] == 1, states, np.float32(0))
        mask = np.zeros((1, text["max_length"]), np.int64)
        mask[:, :bucket] = attention_mask
        return embedding, mask


class Stage:
    """One stage of a bundle. Graphs are loaded when they are first used."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle = bundle
        self.name = name
        self.manifest: dict[str, Any] = bundle.manifest[name]
        self.grid: tuple[int, int] = tuple(self.manifest["grid"])
        self.positions = self.grid[0] * self.grid[1]
        self.defaults = Settings(**self.manifest["defaults"])

    @cached_property
    def condition(self) -> onnxruntime.InferenceSession:
        return self.bundle.session(self.manifest["condition"])

    @cached_property
    def step(self) -> onnxruntime.InferenceSession:
        return self.bundle.session(self.manifest["step"])

    @cached_property
    def decoder(self) -> onnxruntime.InferenceSession:
        return self.bundle.session(self.manifest["decoder"])

    @cached_property
    def encoder(self) -> onnxruntime.InferenceSession:
        return self.bundle.session(self.manifest["encoder"])

    def conditioning(self, text: np.ndarray, mask: np.ndarray, low_tokens: np.ndarray | None) -> dict[str, np.ndarray]:
        """What the steps reuse: the outputs of `condition` that `step` takes, by name."""
        inputs = {"text": text, "text_mask": mask}
        if low_tokens is not None:
            inputs["low_tokens"] = low_tokens[None]
        outputs = [output.name for output in self.condition.get_outputs()]
        wanted = self.manifest.get("conditioning", outputs)
        return dict(zip(wanted, self.condition.run(wanted, inputs), strict=True))

    def masked_logits(self, tokens: np.ndarray, conditioning: dict[str, np.ndarray]) -> np.ndarray:
        """Logits f32 [M, logits_size] at the masked positions of `tokens` [B, S] int64, row after row."""
        masked = np.flatnonzero(tokens == self.manifest["mask_id"])
        inputs = {"tokens": tokens, **conditioning}
        optional = {"grids": np.arange(len(tokens)), "positions": masked}
        inputs |= {name: values for name, values in optional.items() if name in self._step_inputs}
        (logits,) = self.step.run(["logits"], inputs)
        return logits if "positions" in self._step_inputs else logits.reshape(-1, logits.shape[2])[masked]

    @cached_property
    def _step_inputs(self) -> set[str]:
        return {given.name for given in self.step.get_inputs()}

    def unconditional_text(self, text: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embedding and mask of the unconditional input, in the form that the manifest names.

        `text` and `mask` are the prompt's own.
        """
        form = self.manifest["unconditional"]
        if form == "empty_text":
            return self.bundle.embed("")
        if form == "masked_text":
            return text, np.zeros_like(mask)
        if form == "null_embedding":
            vectors = np.load(self.bundle.path / self.manifest["null_embedding"])
            null_text, null_mask = np.zeros_like(text), np.zeros_like(mask)
            null_text[0, : len(vectors)], null_mask[0, : len(vectors)] = vectors, 1
            return null_text, null_mask
        raise BundleError(f'bundle.toml: unconditional = "{form}" is not known')
