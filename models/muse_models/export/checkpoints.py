"""Finds the models that a bundle is made of: this project's checkpoints, those of others, or random weights.

Whose a checkpoint is, is told from what is in it: a folder is a T5 encoder of Hugging Face; a file with `config` and
`model` in it is this project's; any other is looked through for what lucidrains' packages save.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn

from ..foreign.lucidrains import UNCONDITIONAL, LucidrainsTransformer, load_transformer, transformer_prefixes
from ..foreign.lucidrains_vqgan import VqganOptions, load_vqgan, same_tokens, vqgan_prefixes
from ..foreign.sentencepiece import load_sentencepiece
from ..foreign.t5 import load_t5
from ..foreign.weights import ForeignCheckpointError, read_file, read_pickle, state_dict
from ..reference.sampler import Settings
from ..text.encoder import T5Encoder
from ..tokenizer.model import ImageTokenizer
from ..training.config import load_config
from ..transformer.config import TransformerConfig
from ..transformer.model import build
from .parts import BundleParts, StagePart, TextPart

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Sources:
    """The files of a bundle's parts; where a file is None, weights are random and shapes those of `configs/`.

    `base_tokenizer` and `superres_tokenizer` may also be None where the transformer's own file holds its tokenizer, as
    lucidrains' do.
    """

    tokenizer: Tokenizer
    text: Path | None = None
    base: Path | None = None
    superres: Path | None = None
    base_tokenizer: Path | None = None
    superres_tokenizer: Path | None = None


def gather(config: dict[str, Any], sources: Sources, config_dir: Path, scratch: Path | None = None) -> BundleParts:
    """The parts of the bundle that `config` (`configs/bundle.toml`) describes; without `[superres]`, of one stage.

    `scratch` is a folder with room for foreign weights in f32. Raises `FileNotFoundError` for a checkpoint that is not
    there, and `ValueError` where parts do not fit together or cannot be expressed.
    """
    stored = config["weights"]
    encoder = _encoder(sources, config_dir, scratch or Path(tempfile.gettempdir()))
    _check_tokenizer(sources.tokenizer, encoder)
    base = _stage("base", config, sources.base, sources.base_tokenizer, config_dir, None)
    superres = None
    if "superres" in config:
        superres = _stage("superres", config, sources.superres, sources.superres_tokenizer, config_dir, base)
        _check_low_tokens(base, superres)
    for name, stage in (("base", base), ("superres", superres)):
        if stage is not None and stage.model.config.text_width != encoder.shape.width:
            raise ValueError(
                f"{name}: the transformer reads text of {stage.model.config.text_width} numbers a token, and the text "
                f"encoder writes {encoder.shape.width}"
            )
    text = TextPart(
        encoder, sources.tokenizer, config["text"]["max_length"], config["text"]["length_buckets"], stored["text"]
    )
    return BundleParts(**config["model"], text=text, base=base, superres=superres)


def load_text_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json`, or the `spiece.model` that T5 has in its place."""
    if not path.is_file():
        raise FileNotFoundError(path)
    if path.suffix == ".model":
        return load_sentencepiece(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer: {error}") from error


def text_tokenizer_beside(folder: Path) -> Path:
    """The tokenizer that a Hugging Face folder comes with."""
    for name in ("tokenizer.json", "spiece.model"):
        if (folder / name).is_file():
            return folder / name
    raise ForeignCheckpointError(f"{folder} has neither tokenizer.json nor spiece.model: name one with --tokenizer")


def _encoder(sources: Sources, config_dir: Path, scratch: Path) -> T5Encoder:
    if sources.text is not None and sources.text.is_dir():
        return load_t5(sources.text, scratch)
    encoder_config, weights = _saved(sources.text, config_dir / "text.toml")
    encoder_config["model"]["vocabulary"] = sources.tokenizer.get_vocab_size()
    return _filled(T5Encoder.from_config(encoder_config), weights)


def _check_tokenizer(tokenizer: Tokenizer, encoder: T5Encoder) -> None:
    words, rows = tokenizer.get_vocab_size(), encoder.shape.vocabulary
    if words > rows:
        raise ValueError(f"the tokenizer knows {words} tokens, and the text encoder {rows}")
    tokenizer.no_padding()
    end = tokenizer.encode("").ids
    if len(end) != 1 or tokenizer.encode("a").ids[-1] != end[0]:
        raise ValueError("the tokenizer does not end a text with </s>; the text encoder was trained with it")


def _check_low_tokens(base: StagePart, superres: StagePart) -> None:
    shape = superres.model.config
    if shape.low_grid != base.model.config.grid:
        raise ValueError(f"superres: made for base grids of {shape.low_grid}, and the base is {base.model.config.grid}")
    if shape.low_vocab_size < base.model.config.codebook_size:
        raise ValueError(
            f"superres: knows {shape.low_vocab_size} base tokens, and the base has {base.model.config.codebook_size}"
        )


def _stage(
    name: str,
    config: dict[str, Any],
    transformer: Path | None,
    tokenizer: Path | None,
    config_dir: Path,
    base: StagePart | None,
) -> StagePart:
    """The stage `name`; `base` is the base stage where this is super-resolution."""
    options = config[name].get("lucidrains", {})
    if transformer is None or is_own(transformer):
        model_config, weights = _saved(transformer, config_dir / f"{name}.toml")
        model: nn.Module = _filled(build(TransformerConfig.from_dict(model_config["model"])), weights)
        own_form = "empty_text"
    else:
        low_grid = None if base is None else base.model.config.grid
        model = _lucidrains_transformer(name, transformer, options, low_grid)
        own_form = UNCONDITIONAL
        tokenizer = tokenizer or transformer
        if base is not None:
            _check_condition_tokenizer(transformer, options, base)
    if tokenizer is None or is_own(tokenizer):
        tokenizer_config, weights = _saved(tokenizer, config_dir / f"tokenizer_{name}.toml")
        image_tokenizer: nn.Module = _filled(ImageTokenizer.from_config(tokenizer_config), weights)
        codes, grid = image_tokenizer.quantiser.codebook_size, (image_tokenizer.grid_side,) * 2
    else:
        image_tokenizer = _lucidrains_tokenizer(name, tokenizer, options, model.config.grid)
        codes, grid = image_tokenizer.codebook_size, image_tokenizer.grid
    shape = model.config
    if codes != shape.codebook_size or grid != shape.grid:
        raise ValueError(
            f"{name}: the tokenizer makes grids of {grid} tokens of {codes} codes, the transformer knows grids of "
            f"{shape.grid} of {shape.codebook_size}"
        )
    form = config[name].get("unconditional", own_form)
    if isinstance(model, LucidrainsTransformer) and form != own_form:
        raise ValueError(f'{name}: unconditional = "{form}", and the transformer was trained with "{own_form}"')
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        images = image_tokenizer.decode(torch.randint(0, codes, (2, shape.positions), generator=generator))
    return StagePart(
        model,
        image_tokenizer,
        images,
        Settings(**config[name]["defaults"]),
        unconditional=form,
        precision=config["weights"]["transformers"],
        tokenizer_precision=config["weights"]["tokenizers"],
    )


def _lucidrains_transformer(
    name: str, path: Path, options: dict[str, Any], low_grid: tuple[int, int] | None
) -> LucidrainsTransformer:
    tensors = read_file(path)
    prefix = _choose(transformer_prefixes(tensors), options.get("prefix"), f"{name}_maskgit.", path, "transformer")
    grid = options.get("grid")
    return load_transformer(tensors, prefix, None if grid is None else tuple(grid), low_grid, f"{path} ({prefix}*)")


def _lucidrains_tokenizer(name: str, path: Path, options: dict[str, Any], grid: tuple[int, int]) -> nn.Module:
    tensors = read_file(path)
    # The tokenizer that super-resolution is conditioned by is not the stage's own.
    prefixes = [prefix for prefix in vqgan_prefixes(tensors) if not prefix.endswith("cond_vae.")]
    prefix = _choose(prefixes, options.get("vae_prefix"), f"{name}_maskgit.", path, "image tokenizer")
    return load_vqgan(tensors, prefix, grid, _vqgan_options(options), f"{path} ({prefix}*)")


def _check_condition_tokenizer(path: Path, options: dict[str, Any], base: StagePart) -> None:
    """Super-resolution must have been trained on tokens of the base stage's tokenizer, where its file tells."""
    tensors = read_file(path)
    prefixes = [prefix for prefix in vqgan_prefixes(tensors) if prefix.endswith("cond_vae.")]
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if prefix.startswith("superres_maskgit.")]
    if not prefixes:
        print(f"{path} does not say which tokenizer made its base tokens; the base stage's is taken to have", flush=True)
        return
    grid = base.model.config.grid
    conditioned = load_vqgan(tensors, prefixes[0], grid, _vqgan_options(options), f"{path} ({prefixes[0]}*)")
    if not same_tokens(conditioned, base.tokenizer):
        raise ForeignCheckpointError(
            f"{path}: super-resolution was trained on tokens of another tokenizer ({prefixes[0]}*) than the base stage's, "
            "and stages of a bundle pass tokens, not pictures"
        )


def _vqgan_options(options: dict[str, Any]) -> VqganOptions:
    known = {key: options[key] for key in ("groups", "codebook_scale") if key in options}
    return VqganOptions(**known)


def _choose(prefixes: list[str], chosen: str | None, stage_prefix: str, path: Path, what: str) -> str:
    """The one of `prefixes` to read: the configuration's, or the only one, or the only one of the stage."""
    if chosen is not None:
        if chosen not in prefixes:
            raise ForeignCheckpointError(f"{path}: no {what} under {chosen!r}; there are {prefixes}")
        return chosen
    averaged = [prefix for prefix in prefixes if not prefix.endswith("online_model.")]
    for candidates in (prefixes, averaged, [prefix for prefix in prefixes if prefix.startswith(stage_prefix)]):
        if len(candidates) == 1:
            return candidates[0]
    if not prefixes:
        raise ForeignCheckpointError(f"{path} holds no {what} of this project or of lucidrains' packages")
    key = "vae_prefix" if what == "image tokenizer" else "prefix"
    raise ForeignCheckpointError(f"{path} holds several of {what}: set `{key}` to one of {prefixes}")


def is_own(path: Path) -> bool:
    """Whether the file at `path` was written by this project's training; raises `FileNotFoundError` without one."""
    if not path.is_file():
        raise FileNotFoundError(path)
    if path.suffix == ".safetensors":
        return False
    saved = read_pickle(path)
    config = saved.get("config") if isinstance(saved, dict) else None
    return isinstance(config, dict) and "model" in config


def _saved(path: Path | None, random_config: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
    """Configuration and weights of a checkpoint of this project, or the configuration alone for random weights."""
    if path is None:
        return load_config(random_config), None
    if not is_own(path):
        raise ForeignCheckpointError(f"{path} is no checkpoint of this project's training")
    saved = read_pickle(path)
    return saved["config"], state_dict(saved, path)


def _filled(model: Model, weights: dict[str, torch.Tensor] | None) -> Model:
    if weights is not None:
        model.load_state_dict(weights)
    return model.requires_grad_(False).eval()
