"""A few steps of the text encoder's pre-training: it learns, makes its vocabulary, and goes on where it stopped."""

import pytest

from muse_models.text import corpus, pretrain, vocabulary
from muse_models.text.vocabulary import END
from muse_models.training import checkpoint

LABELS = [
    {"label": name, "tags": ["animal"], "group": 3, "subgroup": index}
    for index, name in enumerate(("zebra", "camel", "giraffe", "otter"))
]


@pytest.fixture
def config(monkeypatch):
    # The labels come from a package; a few stand in for them.
    for module in (corpus, vocabulary):
        monkeypatch.setattr(module, "emoji_labels", lambda _: LABELS)
    return {"name": "text", "model": {
        "vocabulary": 500, "width": 32, "layers": 2, "heads": 2, "head_width": 16, "hidden": 48,
    }, "training": {
        "seed": 1, "batch": 16, "learning_rate": 5e-3, "positions_rate": 10, "warmup_minutes": 0, "average_decay": 0.9,
    }}


def test_pre_training_learns_and_goes_on_where_it_stopped(config, tmp_path, capsys, counted_budget):
    pretrain.train(config, tmp_path, minutes=5)
    pretrain.train(config, tmp_path, minutes=160)
    saved = checkpoint.load(tmp_path / "text" / "checkpoint.pt")
    assert (saved["step"], saved["seen"]) == (160, 160 * 16)
    first, last = (
        float(line.split("held-out/background")[1].split()[0])
        for line in capsys.readouterr().out.splitlines() if "held-out/background" in line
    )
    assert last > max(0.4, first + 0.05), (first, last)
    encoder = pretrain.load_encoder(tmp_path)
    assert encoder.shape.vocabulary == vocabulary.load(tmp_path / "text" / "tokenizer.json").get_vocab_size()
    assert vocabulary.load(tmp_path / "text" / "tokenizer.json").encode("a zebra").ids[-1] == END


def test_an_encoder_from_a_bundle_is_used_and_not_trained_further(config, tmp_path, counted_budget):
    checkpoint.save(tmp_path / "text" / "checkpoint.pt", {"model": {}, "config": config})
    with pytest.raises(ValueError, match="not a run to go on with"):
        pretrain.train(config, tmp_path, minutes=1)
