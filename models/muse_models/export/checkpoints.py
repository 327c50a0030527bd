"""Finds the models that a bundle is made of: trained checkpoints, or random weights of the same shapes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn

from ..reference.sampler import Settings
from ..text.encoder import T5Encoder
from ..tokenizer.model import ImageTokenizer
from ..training import checkpoint
from ..training.config import load_config
from ..transformer.config import TransformerConfig
from ..transformer.model import build
from .bundle import BundleParts, StagePart, TextPart

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Sources:
    """The files of a bundle's parts; where a file is None, weights are random and shapes those of `configs/`."""

    tokenizer: Tokenizer
    text: Path | None = None
    base: Path | None = None
    superres: Path | None = None
    base_tokenizer: Path | None = None
    superres_tokenizer: Path | None = None


def gather(config: dict[str, Any], sources: Sources, config_dir: Path) -> BundleParts:
    """The parts of the bundle that `config` (`configs/bundle.toml`) describes.

    Raises `FileNotFoundError` for a checkpoint that is not there, and `ValueError` where parts do not fit together.
    """
    tokenizer = sources.tokenizer
    encoder_config, weights = _saved(sources.text, config_dir / "text.toml")
    encoder_config["model"]["vocabulary"] = tokenizer.get_vocab_size()
    encoder = _filled(T5Encoder.from_config(encoder_config), weights)
    stored = config["weights"]
    return BundleParts(
        **config["model"],
        text=TextPart(
            encoder, tokenizer, config["text"]["max_length"], config["text"]["length_buckets"], stored["text"]
        ),
        base=_stage("base", config, sources.base, sources.base_tokenizer, config_dir),
        superres=_stage("superres", config, sources.superres, sources.superres_tokenizer, config_dir),
    )


def _stage(
    name: str, config: dict[str, Any], transformer: Path | None, tokenizer: Path | None, config_dir: Path
) -> StagePart:
    model_config, weights = _saved(transformer, config_dir / f"{name}.toml")
    model = _filled(build(TransformerConfig.from_dict(model_config["model"])), weights)
    tokenizer_config, weights = _saved(tokenizer, config_dir / f"tokenizer_{name}.toml")
    image_tokenizer = _filled(ImageTokenizer.from_config(tokenizer_config), weights)
    codes = image_tokenizer.quantiser.codebook_size
    if codes != model.config.codebook_size or image_tokenizer.grid_side**2 != model.config.positions:
        raise ValueError(
            f"{name}: the tokenizer makes {image_tokenizer.grid_side**2} tokens of {codes} codes, "
            f"the transformer knows {model.config.positions} of {model.config.codebook_size}"
        )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        images = image_tokenizer.decode(torch.randint(0, codes, (2, model.config.positions), generator=generator))
    return StagePart(
        model,
        image_tokenizer,
        images,
        Settings(**config[name]["defaults"]),
        unconditional=config[name]["unconditional"],
        precision=config["weights"]["transformers"],
        tokenizer_precision=config["weights"]["tokenizers"],
    )


def _saved(path: Path | None, random_config: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
    """Configuration and weights of a checkpoint, or the configuration alone where weights are to be random."""
    if path is None:
        return load_config(random_config), None
    saved = checkpoint.load(path)
    if saved is None:
        raise FileNotFoundError(path)
    return saved["config"], saved["model"]


def _filled(model: Model, weights: dict[str, torch.Tensor] | None) -> Model:
    if weights is not None:
        model.load_state_dict(weights)
    return model.requires_grad_(False).eval()
