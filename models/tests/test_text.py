"""The T5 encoder on random weights, and the Unigram tokenizer's conventions."""

import pytest

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

from muse_models.text import vocabulary  # noqa: E402
from muse_models.text.encoder import EncoderShape, RelativePositions, T5Encoder  # noqa: E402

SHAPE = EncoderShape(vocabulary=40, width=32, layers=2, heads=2, head_width=16, hidden=48)


def encoder() -> T5Encoder:
    torch.manual_seed(0)
    return T5Encoder(SHAPE).eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    # The vocabulary needs emoji labels from a package; a few stand in for it here.
    folder = tmp_path_factory.mktemp("vocabulary")
    original = vocabulary.emoji_labels
    vocabulary.emoji_labels = lambda _: [{"label": "zebra", "tags": ["stripe", "animal"]}]
    try:
        path = vocabulary.train(folder, 400, captions=400)
    finally:
        vocabulary.emoji_labels = original
    return vocabulary.load(path)


def test_one_vector_a_token():
    tokens = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
    assert encoder()(tokens, tokens != 0).shape == (2, 4, 32)


def test_padding_does_not_change_a_text():
    model = encoder()
    short = torch.tensor([[5, 6, 7, 1]])
    padded = torch.tensor([[5, 6, 7, 1, 0, 0, 0]])
    alone = model(short, short != 0)
    with_padding = model(padded, padded != 0)[:, :4]
    assert torch.allclose(alone, with_padding, atol=1e-5)


def test_word_order_reaches_the_vectors():
    model = encoder()
    tokens = torch.tensor([[5, 6, 7, 1], [7, 6, 5, 1]])
    states = model(tokens, tokens != 0)
    assert not torch.allclose(states[0, 1], states[1, 1], atol=1e-4)


def test_relative_positions_tell_before_from_after_and_saturate():
    positions = RelativePositions(SHAPE)
    near = positions._bucket(torch.tensor([-3, 0, 3]))
    assert near.tolist() == [3, 0, 19]
    far = positions._bucket(torch.tensor([-500, 500]))
    assert far.tolist() == [15, 31]


def test_special_tokens_stand_where_t5_has_them(tokenizer):
    assert [tokenizer.id_to_token(number) for number in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert tokenizer.encode("").ids == [1]
    assert tokenizer.encode("a red apple").ids[-1] == 1


def test_text_survives_the_tokenizer_in_lower_case(tokenizer):
    ids = tokenizer.encode("  Two  RED apples to the left of a ﬁsh").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "two red apples to the left of a fish"


def test_long_text_is_cut_and_keeps_its_end(tokenizer):
    rows = vocabulary.encode(tokenizer, ["red apple " * 40, "a cat"])
    assert rows.shape == (2, vocabulary.TEXT_LENGTH)
    assert rows[0, -1] == vocabulary.END and rows[1, -1] == vocabulary.PAD
