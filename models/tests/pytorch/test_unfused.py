"""Bundles whose attention is standard ONNX: nothing fused is left, and they compute what they did."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from muse_models.export import random as random_bundles
from muse_models.export.bundle import write_bundle
from muse_models.export.half import write_half
from muse_models.export.tiny import WORDS, tiny_parts
from muse_models.export.unfused import main, write_unfused
from muse_models.export.unfused_graph import unfused
from muse_models.reference.bundle import Bundle
from muse_models.training.config import load_config

SMALL = Path(__file__).parents[2] / "configs/random/small.toml"
FUSED = "com.microsoft"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("unfused") / "tiny"
    write_bundle(tiny_parts(), folder)
    out = folder.with_name("plain")
    assert main(["--bundle", str(folder), "--out", str(out)]) == 0
    return folder, out


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A bundle whose weights lie beside its graphs."""
    folder = tmp_path_factory.mktemp("unfused") / "large"
    random_bundles.write_random_bundle(load_config(SMALL), folder, "f16", 3, external_above=10_000)
    write_unfused(folder, folder.with_name("plain"))
    return folder, folder.with_name("plain")


def graphs(folder):
    return {path.name: onnx.load(path, load_external_data=False) for path in folder.glob("*.onnx")}


@pytest.mark.parametrize("bundles", ["tiny", "large"])
def test_nothing_fused_is_left(bundles, request):
    before, after = (graphs(folder) for folder in request.getfixturevalue(bundles))
    assert any(node.domain == FUSED for model in before.values() for node in model.graph.node)
    for name, model in after.items():
        assert all(node.domain != FUSED for node in model.graph.node), name
        assert [domain.domain for domain in model.opset_import] == [""], name


@pytest.mark.parametrize("bundles", ["tiny", "large"])
def test_logits_and_texts_are_the_same_but_for_rounding(bundles, request):
    exact, plain = (Bundle(folder) for folder in request.getfixturevalue(bundles))
    assert plain.manifest["model"]["version"] == exact.manifest["model"]["version"] + "-unfused"
    # A short text: most keys are masked.
    (text, mask), (other_text, other_mask) = (bundle.embed(f"a {WORDS[7]}") for bundle in (exact, plain))
    np.testing.assert_array_equal(mask, other_mask)
    np.testing.assert_allclose(other_text, text, rtol=1e-3, atol=1e-4)
    for name, stage in exact.stages.items():
        other = plain.stages[name]
        low = np.random.default_rng(7).integers(0, 8, exact.stages["base"].positions) if name == "superres" else None
        tokens = np.full((1, stage.positions), stage.manifest["mask_id"])
        here = stage.masked_logits(tokens, stage.conditioning(text, mask, low))
        there = other.masked_logits(tokens, other.conditioning(text, mask, low))
        assert np.abs(there - here).max() < 1e-3 * here.std(), name


def test_weights_beside_a_graph_stay_where_they_are(large):
    beside = "base_step.onnx.data"
    assert (large[0] / beside).read_bytes() == (large[1] / beside).read_bytes()


def test_a_bundle_in_f16_is_rewritten_too(tiny, tmp_path):
    write_half(tiny[0], tmp_path / "half")
    write_unfused(tmp_path / "half", tmp_path / "plain")
    graph = graphs(tmp_path / "plain")["base_step.onnx"].graph
    added = [tensor for tensor in graph.initializer if tensor.name.startswith("attention.least")]
    assert [tensor.data_type for tensor in added] == [TensorProto.FLOAT16]


def test_bias_scale_and_mask_are_what_the_fused_kernel_makes_of_them():
    heads, width = 2, 8
    shapes = {"q": [2, 3, width], "k": [2, 5, width], "v": [2, 5, width], "bias": [1, heads, 3, 5]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    ends.append(helper.make_tensor_value_info("mask", TensorProto.INT32, [2, 5]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["q"])
    node = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v", "", "mask", "bias"], ["y"], domain=FUSED, num_heads=heads, scale=1.0
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(FUSED, 1)]
    model = helper.make_model(helper.make_graph([node], "one", ends, [output]), opset_imports=domains, ir_version=10)
    random = np.random.default_rng(0)
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs["mask"] = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]], np.int32)
    here, there = (
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for each in (model, unfused(model))
    )
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-6)


def test_attention_that_is_not_ours_is_refused():
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4]) for name in ("q", "k", "v")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4])
    node = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v"], ["y"], domain=FUSED, num_heads=2, unidirectional=1
    )
    model = helper.make_model(helper.make_graph([node], "one", ends, [output]))
    with pytest.raises(ValueError, match="more than a mask"):
        unfused(model)
