"""Trains the Unigram tokenizer with T5's conventions and reads it back.

`<pad>` 0, `</s>` 1 (appended to every text), `<unk>` 2; words begin with "▁"; text is NFKC-normalised
and lower-cased. `tokenizer.json` is the Hugging Face format, which the engine reads as well.
"""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ..data.captions import caption
from ..data.packages import emoji_labels
from ..data.scene import random_scene

PAD, END, UNKNOWN = 0, 1, 2
TEXT_LENGTH = 32
"""Most text tokens a model sees, `</s>` among them."""


def _corpus(work_dir: Path, captions: int) -> Iterable[str]:
    rng = random.Random("vocabulary")
    for _ in range(captions):
        yield caption(random_scene(rng), rng).text
    for emoji in emoji_labels(work_dir):
        for words in [emoji["label"], *emoji.get("tags", [])]:
            for _ in range(3):
                yield words


def train(work_dir: Path, size: int, captions: int = 40000) -> Path:
    """Writes `<work_dir>/text/tokenizer.json` with `size` pieces and returns its path."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        initial_alphabet=[chr(code) for code in range(33, 127) if not chr(code).isupper()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(work_dir, captions), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    path = work_dir / "text" / "tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def load(path: Path) -> Tokenizer:
    """The tokenizer, cutting texts to `TEXT_LENGTH` tokens with `</s>` kept at the end."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(TEXT_LENGTH)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """int64 [N, 32], padded with 0."""
    rows = np.zeros((len(texts), TEXT_LENGTH), np.int64)
    for row, encoding in zip(rows, tokenizer.encode_batch(texts), strict=True):
        row[: len(encoding.ids)] = encoding.ids
    return rows
