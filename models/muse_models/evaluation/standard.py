"""FID and CLIP score with the standard networks, when a user has their weights.

Neither network comes with this project: no weights are fetched. A network is a file, ONNX (`.onnx`) or TorchScript:

- `--fid-weights`: pictures f32 [N, 3, S, S] → features [N, D] (further axes are averaged). FID in the literature means
  the last pooling layer of Inception v3 (S = 299, D = 2048).
- `--clip-weights`: an ONNX file as Hugging Face exports CLIP: inputs `pixel_values` and `input_ids` (and
  `attention_mask`), outputs `image_embeds` and `text_embeds`; or TorchScript `(pixel_values, input_ids) →
  (image_embeds, text_embeds)`. `--clip-tokenizer` is its `tokenizer.json`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_BATCH = 16

NORMALISATIONS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and deviation of red, green and blue that a network expects to be taken out of 0…1."""


class StandardNetworkError(Exception):
    """A network does not have the interface above; one line that names the file."""


@dataclass(frozen=True)
class Input:
    """How a network wants its pictures."""

    side: int
    normalisation: str

    def prepared(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 RGB [N, H, W, 3] → f32 [N, 3, side, side]."""
        from PIL import Image

        mean, deviation = (np.array(values, np.float32) for values in NORMALISATIONS[self.normalisation])
        large = np.stack([
            np.asarray(Image.fromarray(picture).resize((self.side, self.side), Image.Resampling.BICUBIC))
            for picture in pictures
        ])
        return np.ascontiguousarray(((large.astype(np.float32) / 255 - mean) / deviation).transpose(0, 3, 1, 2))


def _session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _torchscript(path: Path):
    import torch

    return torch.jit.load(str(path), map_location="cpu").eval()


def features(path: Path, how: Input, pictures: np.ndarray) -> np.ndarray:
    """Feature vectors [N, D] of uint8 RGB pictures [N, H, W, 3]."""
    run = _onnx_features(path) if path.suffix == ".onnx" else _torch_features(path)
    parts = [run(how.prepared(pictures[start : start + _BATCH])) for start in range(0, len(pictures), _BATCH)]
    found = np.concatenate(parts)
    if found.ndim < 2:
        raise StandardNetworkError(f"{path}: its output has {found.ndim} axis, and [N, D] is expected")
    return found.reshape(*found.shape[:2], -1).mean(-1)


def _onnx_features(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    session = _session(path)
    if len(session.get_inputs()) != 1:
        raise StandardNetworkError(f"{path}: has {len(session.get_inputs())} inputs, and one is expected")
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def _torch_features(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    network = _torchscript(path)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(batch)).float().numpy()

    return run


def clip_score(path: Path, tokenizer: Path, how: Input, pictures: np.ndarray, texts: Sequence[str]) -> float:
    """Mean cosine between each picture and its own text."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.enable_padding()
    run = _onnx_clip(path) if path.suffix == ".onnx" else _torch_clip(path)
    cosines = []
    for start in range(0, len(texts), _BATCH):
        encoded = encoder.encode_batch(list(texts[start : start + _BATCH]))
        ids = np.array([one.ids for one in encoded], np.int64)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        seen, said = run(how.prepared(pictures[start : start + _BATCH]), ids, mask)
        norms = np.linalg.norm(seen, axis=1) * np.linalg.norm(said, axis=1)
        cosines.append((seen * said).sum(1) / norms)
    return float(np.concatenate(cosines).mean())


Towers = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _onnx_clip(path: Path) -> Towers:
    session = _session(path)
    inputs = {value.name for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    missing = ({"pixel_values", "input_ids"} - inputs) | ({"image_embeds", "text_embeds"} - outputs)
    if missing:
        raise StandardNetworkError(f"{path}: has no {', '.join(sorted(missing))}")

    def run(pictures: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = {"pixel_values": pictures, "input_ids": ids, "attention_mask": mask}
        seen, said = session.run(
            ["image_embeds", "text_embeds"], {name: value for name, value in given.items() if name in inputs}
        )
        return seen, said

    return run


def _torch_clip(path: Path) -> Towers:
    import torch

    network = _torchscript(path)

    def run(pictures: np.ndarray, ids: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            seen, said = network(torch.from_numpy(pictures), torch.from_numpy(ids))
        return seen.float().numpy(), said.float().numpy()

    return run
