"""T5 encoders of Hugging Face on random weights: what is read computes what `transformers` does."""

import json

import numpy as np
import pytest
import torch

from muse_models.export import graphs
from muse_models.export.onnx_file import session, trace_apart
from muse_models.foreign.t5 import load_t5
from muse_models.foreign.weights import ForeignCheckpointError

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 96, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 3, "num_heads": 5,
    "relative_attention_num_buckets": 16, "relative_attention_max_distance": 40,
}
FORMS = {"v1.0": "relu", "v1.1": "gated-gelu"}


def original(form: str, **others):
    """A random T5 encoder of `transformers` whose every tensor matters."""
    config = transformers.T5Config(**(SIZES | {"feed_forward_proj": FORMS[form]} | others))
    model = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "layer_norm" in name:
                parameter.add_(1)
    return model


def examples(length: int):
    tokens = torch.randint(3, SIZES["vocab_size"], (3, length))
    mask = (torch.arange(length)[None] < torch.tensor([[length], [length // 2 + 1], [2]])).long()
    return tokens * mask, mask


def assert_same(encoder, model, length: int) -> None:
    tokens, mask = examples(length)
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        found = encoder(tokens, mask)
    # What stands at padding is of no use to anyone.
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [2, 9, 90])
def test_an_encoder_computes_what_the_original_does(tmp_path, form, length):
    model = original(form)
    model.save_pretrained(tmp_path)
    assert_same(load_t5(tmp_path, tmp_path), model, length)


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_need_not_divide_the_width(tmp_path, heads):
    model = original("v1.1", num_heads=heads, d_kv=7)
    model.save_pretrained(tmp_path)
    assert_same(load_t5(tmp_path, tmp_path), model, 12)


def test_a_whole_model_is_read_for_its_encoder(tmp_path):
    config = transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    whole = transformers.T5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    assert_same(load_t5(tmp_path, tmp_path), whole.encoder, 12)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_put_together(tmp_path, kind):
    model = original("v1.1")
    if kind == "safetensors":
        model.save_pretrained(tmp_path, max_shard_size="8KB")
    else:
        model.config.save_pretrained(tmp_path)
        weights = model.state_dict()
        files = {name: f"pytorch_model-{index % 3 + 1:05}-of-00003.bin" for index, name in enumerate(weights)}
        for file in set(files.values()):
            torch.save({name: weights[name].clone() for name in weights if files[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert len(list(tmp_path.glob("*-of-*"))) > 2
    assert_same(load_t5(tmp_path, tmp_path), model, 12)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_single_pytorch_file_is_read(tmp_path, old_format):
    model = original("v1.0")
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=not old_format)
    assert_same(load_t5(tmp_path, tmp_path), model, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_widened(tmp_path, dtype):
    model = original("v1.1").to(dtype)
    model.save_pretrained(tmp_path)
    encoder = load_t5(tmp_path, tmp_path)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert_same(encoder, model.float(), 12)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".safetensors")]


@pytest.mark.parametrize("form", FORMS)
def test_the_exported_graph_computes_what_the_original_does(tmp_path, form, rows_are_alike):
    model = original(form)
    model.save_pretrained(tmp_path)
    graph = graphs.text_graph(load_t5(tmp_path, tmp_path), 90)
    traced = trace_apart(graph)
    assert [node.op_type for node in traced.model.graph.node].count("MultiHeadAttention") == SIZES["num_layers"]
    running = session(traced.proto())
    for length in (5, 90):
        tokens, mask = examples(length)
        (found,) = running.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = model(input_ids=tokens, attention_mask=mask).last_hidden_state.numpy()
        seen = mask.bool().numpy()
        np.testing.assert_allclose(found[seen], expected[seen], atol=3e-5, rtol=3e-5)
    rows_are_alike(graph, traced)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "umt5"}, "model_type is 'umt5'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon"),
        ({"num_layers": 4}, "do not fit config.json"),
        ({"d_ff": 41}, "do not fit config.json"),
        ({"d_model": None}, "a size is missing"),
        ({"feed_forward_proj": "relu"}, "wi_0.weight, which no T5 encoder of this form has"),
    ],
)
def test_what_cannot_be_expressed_is_refused_in_one_line(tmp_path, changed, message):
    original("v1.1").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ForeignCheckpointError, match=message) as caught:
        load_t5(tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bias_in_each_layer_is_refused(tmp_path):
    model = original("v1.1")
    weights = model.state_dict()
    weights["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"] = torch.zeros(16, 5)
    model.config.save_pretrained(tmp_path)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ForeignCheckpointError, match="relative_attention_bias"):
        load_t5(tmp_path, tmp_path)
