"""T5's `spiece.model` as a tokenizer of Hugging Face's `tokenizers`, for checkpoints that come without `tokenizer.json`.

A SentencePiece model is a protocol buffer; the little of it that a Unigram vocabulary needs is read here: the pieces
with their scores, and the table of the normaliser.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .weights import ForeignCheckpointError

EXTRA_IDS = 100
"""Sentinels `<extra_id_99>` … `<extra_id_0>` that T5 puts after the pieces."""

# Field numbers of ModelProto, SentencePiece, NormalizerSpec and TrainerSpec, and what a piece's type may be.
_PIECES, _TRAINER, _NORMALISER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_CHARSMAP = 2
_MODEL_TYPE, _UNIGRAM = 3, 1
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3

Field = tuple[int, int | bytes]


def load_sentencepiece(path: Path, extra_ids: int = EXTRA_IDS) -> Tokenizer:
    """The tokenizer of T5's `spiece.model` at `path`, which appends `</s>`.

    Raises `ForeignCheckpointError` if it is no Unigram model with T5's special pieces.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == _PIECES and isinstance(value, bytes)]
        charsmap = _last(_message(fields, _NORMALISER), _CHARSMAP, b"")
        kind = _last(_message(fields, _TRAINER), _MODEL_TYPE, _UNIGRAM)
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise ForeignCheckpointError(f"{path} is no SentencePiece model: {error}") from error
    names = [piece for piece, _, _ in pieces]
    if kind != _UNIGRAM or not isinstance(charsmap, bytes) or names[:3] != ["<pad>", "</s>", "<unk>"]:
        raise ForeignCheckpointError(f"{path} is not T5's: a Unigram model that begins with <pad>, </s>, <unk>")
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(extra_ids))]
    vocabulary = [(piece, score) for piece, score, _ in pieces] + [(sentinel, 0.0) for sentinel in sentinels]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    if charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
    ])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = [piece for piece, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special + sentinels])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def _piece(content: bytes) -> tuple[str, float, int]:
    """A piece, its score, its type."""
    fields = list(_fields(content))
    piece, score, kind = _last(fields, _PIECE, b""), _last(fields, _SCORE, bytes(4)), _last(fields, _TYPE, _NORMAL)
    if not isinstance(piece, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("a piece of another form")
    return piece.decode(), struct.unpack("<f", score)[0], kind


def _message(fields: list[Field], number: int) -> list[Field]:
    content = _last(fields, number, b"")
    return list(_fields(content)) if isinstance(content, bytes) else []


def _last(fields: list[Field], number: int, otherwise: int | bytes) -> int | bytes:
    """The last value of a field counts, as protocol buffers have it."""
    return next((value for other, value in reversed(fields) if other == number), otherwise)


def _fields(content: bytes) -> Iterator[Field]:
    """Number and value of each field of a message: an integer, or the bytes of anything else."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(content, place)
            yield number, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of wire type {kind}")
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, place = _varint(content, place)
        if place + length > len(content):
            raise ValueError("it ends inside a field")
        yield number, content[place : place + length]
        place += length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while shift < 64:
        byte = content[place]
        value, place, shift = value | (byte & 0x7F) << shift, place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than 64 bits")
