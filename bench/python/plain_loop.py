#!/usr/bin/env python3
"""The bundle's graphs in a plain Python loop: what one writes who has ONNX Runtime and an afternoon.

Batched as far as that goes without a scheduler: all pictures of a batch start together, have the same number of steps and
end together. Sampling is vectorised over the batch; randomness is NumPy's own, so the pictures are not those of the engine,
only the work is the same. Conditional and unconditional rows share a pass, and the unconditional ones are left out where
guidance is 0, as the engine does; and as there, logits are asked for and sampled at masked positions alone, and a picture's
two rows share its grid, where the step graph can do that.

    plain_loop.py --bundle bundles/demo --threads 2

reads and answers as `peer` says. With --out FOLDER it also keeps the pictures, to be looked at.
"""

import argparse
import math
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
from peer import answer, png
from tokenizers import Tokenizer

MASKED = {
    "cosine": lambda done: math.cos(math.pi * done / 2),
    "linear": lambda done: 1 - done,
    "arccos": lambda done: math.acos(done) * 2 / math.pi,
}


class Model:
    """Every graph of a bundle that makes pictures, opened."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.manifest = tomllib.loads((folder / "bundle.toml").read_text())
        self.folder = folder
        self.threads = threads
        text = self.manifest["text"]
        self.tokenizer = Tokenizer.from_file(str(folder / text["tokenizer"]))
        self.encoder = self._session(text["encoder"])
        names = [name for name in ("base", "superres") if name in self.manifest]
        self.stages = [self.manifest[name] for name in names]
        self.conditions = [self._session(stage["condition"]) for stage in self.stages]
        self.steps = [self._session(stage["step"]) for stage in self.stages]
        self.decoder = self._session(self.stages[-1]["decoder"])
        self.empty = self.embed([""])

    def _session(self, file: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(str(self.folder / file), options, providers=["CPUExecutionProvider"])

    def embed(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings f32 [B, L, D] and masks int64 [B, L]; one pass for each length of padding."""
        text = self.manifest["text"]
        length, width = text["max_length"], text["width"]
        embeddings = np.zeros((len(prompts), length, width), np.float32)
        masks = np.zeros((len(prompts), length), np.int64)
        ids = [self.tokenizer.encode(prompt).ids for prompt in prompts]
        buckets = [next(bucket for bucket in text["length_buckets"] if bucket >= len(row)) for row in ids]
        for bucket in sorted(set(buckets)):
            members = [index for index, own in enumerate(buckets) if own == bucket]
            padded = np.full((len(members), bucket), text["pad_id"], np.int64)
            present = np.zeros((len(members), bucket), np.int64)
            for place, index in enumerate(members):
                padded[place, : len(ids[index])] = ids[index]
                present[place, : len(ids[index])] = 1
            (states,) = self.encoder.run(None, {"input_ids": padded, "attention_mask": present})
            embeddings[members, :bucket] = states * present[:, :, None]
            masks[members, :bucket] = present
        return embeddings, masks

    def unconditional(self, stage: dict, text: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What guidance leads away from, for each row of the batch."""
        form = stage["unconditional"]
        if form == "empty_text":
            return tuple(np.repeat(part, len(text), axis=0) for part in self.empty)
        if form == "masked_text":
            return text, np.zeros_like(mask)
        vectors = np.load(self.folder / stage["null_embedding"])
        null_text, null_mask = np.zeros_like(text), np.zeros_like(mask)
        null_text[:, : len(vectors)], null_mask[:, : len(vectors)] = vectors, 1
        return null_text, null_mask

    def decode(self, index: int, text: np.ndarray, mask: np.ndarray, low: np.ndarray | None, random) -> np.ndarray:
        """The grids [B, S] of a stage, with the bundle's default settings."""
        stage, settings = self.stages[index], self.stages[index]["defaults"]
        batch, positions = len(text), stage["grid"][0] * stage["grid"][1]
        steps = min(settings["steps"], positions)
        guided = settings["guidance"] > 0
        if guided:
            other_text, other_mask = self.unconditional(stage, text, mask)
            text, mask = np.concatenate([text, other_text]), np.concatenate([mask, other_mask])
        inputs = {"text": text, "text_mask": mask}
        if low is not None:
            inputs["low_tokens"] = np.concatenate([low, low]) if guided else low
        condition = self.conditions[index]
        names = stage.get("conditioning", [output.name for output in condition.get_outputs()])
        both = dict(zip(names, condition.run(names, inputs), strict=True))
        conditional = {name: values[:batch] for name, values in both.items()}

        tokens = np.full((batch, positions), stage["mask_id"], np.int64)
        for step in range(steps):
            # Every row has as many masked positions as the others: [B, M].
            masked = np.nonzero(tokens == stage["mask_id"])[1].reshape(batch, -1)
            t = np.float32(settings["guidance"])
            if settings["guidance_schedule"] == "linear" and steps > 1:
                t *= np.float32(step / (steps - 1))
            if t > 0:
                logits = self.logits(index, tokens, masked, both)
                logits = (1 + t) * logits[:batch] - t * logits[batch:]
            else:
                logits = self.logits(index, tokens, masked, conditional)
            drawn, confidence = sample(logits[:, :, : stage["codebook_size"]], settings, random)
            np.put_along_axis(tokens, masked, drawn, axis=1)
            keep = math.floor(positions * MASKED[settings["mask_schedule"]]((step + 1) / steps))
            keep = 0 if step == steps - 1 else min(max(keep, 1), masked.shape[1] - 1)
            if keep > 0:
                noise = settings["choice_temperature"] * (1 - (step + 1) / steps)
                confidence = confidence + np.float32(noise) * gumbel(confidence.shape, random)
                again = np.argpartition(confidence, keep - 1, axis=1)[:, :keep]
                np.put_along_axis(tokens, np.take_along_axis(masked, again, axis=1), stage["mask_id"], axis=1)
        return tokens

    def logits(self, index: int, tokens: np.ndarray, masked: np.ndarray, conditioning: dict) -> np.ndarray:
        """Logits [R, M, V] at the positions `masked` [B, M] of `tokens` [B, S], once or twice: as `conditioning` has rows R."""
        session = self.steps[index]
        batch, positions = tokens.shape
        rows = len(next(iter(conditioning.values())))
        grids = np.arange(rows) % batch
        known = {given.name for given in session.get_inputs()}
        inputs = {"tokens": tokens if "grids" in known else tokens[grids], **conditioning}
        if "grids" in known:
            inputs["grids"] = grids
        if "positions" in known:
            inputs["positions"] = (masked[grids] + positions * np.arange(rows)[:, None]).reshape(-1)
            (logits,) = session.run(["logits"], inputs)
            return logits.reshape(rows, masked.shape[1], -1)
        (logits,) = session.run(["logits"], inputs)
        return np.take_along_axis(logits, masked[grids][:, :, None], axis=1)

    def make(self, prompts: list[str], seed: int) -> list[bytes]:
        """A PNG for each prompt."""
        random = np.random.default_rng(seed)
        text, mask = self.embed(prompts)
        grids = None
        for index in range(len(self.stages)):
            grids = self.decode(index, text, mask, grids, random)
        (images,) = self.decoder.run(["image"], {"tokens": grids})
        pixels = (images.clip(0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)
        return png(pixels)


def gumbel(shape: tuple[int, ...], random) -> np.ndarray:
    """Gumbel noise, f32."""
    return -np.log(random.standard_exponential(shape, np.float32))


def sample(logits: np.ndarray, settings: dict, random) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the logarithms of their probabilities, both [B, M], from logits f32 [B, M, V]."""
    if settings["top_k"] and settings["top_k"] < logits.shape[2]:
        least = np.partition(logits, -settings["top_k"], axis=2)[:, :, -settings["top_k"], None]
        logits = np.where(logits < least, -np.inf, logits)
    if settings["temperature"] > 0:
        logits = logits / np.float32(settings["temperature"])
    logits = logits - logits.max(axis=2, keepdims=True)
    weights = np.exp(logits)
    running = weights.cumsum(axis=2)
    if settings["temperature"] > 0:
        wanted = random.random((*logits.shape[:2], 1), np.float32) * running[:, :, -1:]
        drawn = np.minimum((running <= wanted).sum(axis=2), logits.shape[2] - 1)
    else:
        drawn = logits.argmax(axis=2)
    chosen = np.take_along_axis(logits, drawn[:, :, None], axis=2)[:, :, 0]
    return drawn, chosen - np.log(running[:, :, -1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = Model(arguments.bundle, arguments.threads)

    def make(prompts: list[str], seed: int) -> list[bytes]:
        files = model.make(prompts, seed)
        if arguments.out:
            for prompt, file in zip(prompts, files, strict=True):
                (arguments.out / f"{prompt.replace(' ', '-')}.png").write_bytes(file)
        return files

    answer(make, f"ONNX Runtime {onnxruntime.__version__}, NumPy {np.__version__}")


if __name__ == "__main__":
    main()
