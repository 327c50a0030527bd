"""Bundles of random weights: complete, their weights outside of the graphs, the same in f16 as in f32."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from muse_models.export import random as random_bundles
from muse_models.export.onnx_file import session, trace
from muse_models.reference.bundle import Bundle
from muse_models.reference.pipeline import Request, generate
from muse_models.training.config import load_config
from muse_models.transformer.config import TransformerConfig
from muse_models.transformer.model import build

CONFIGS = Path(__file__).parents[2] / "configs/random"
GRAPHS = ("text_encoder", "base_condition", "base_step", "superres_condition", "superres_step")
EXTERNAL_ABOVE = 10_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The small bundle by precision."""
    folder = tmp_path_factory.mktemp("random")
    config = load_config(CONFIGS / "small.toml")
    for precision in ("f32", "f16"):
        random_bundles.write_random_bundle(config, folder / precision, precision, 3, EXTERNAL_ABOVE)
    return {precision: folder / precision for precision in ("f32", "f16")}


def outputs(folder, name):
    """What a graph makes of two rows of inputs."""
    graph = session(folder / f"{name}.onnx")
    generator = np.random.default_rng(7)
    inputs = {}
    for value in graph.get_inputs():
        shape = [side if isinstance(side, int) else (2 if axis == 0 else 8) for axis, side in enumerate(value.shape)]
        if value.type == "tensor(float)":
            inputs[value.name] = generator.normal(size=shape).astype(np.float32)
        elif "mask" in value.name:
            inputs[value.name] = np.ones(shape, np.int32 if value.type == "tensor(int32)" else np.int64)
        elif value.name == "grids":
            inputs[value.name] = np.arange(2)
        elif value.name == "positions":
            inputs[value.name] = np.arange(0, 16, 3)
        else:
            inputs[value.name] = generator.integers(0, 64, shape)
    return graph.run(None, inputs)


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_a_random_bundle_is_complete_and_makes_a_picture(folders, precision):
    bundle = Bundle(folders[precision])
    listed = {path.name for path in folders[precision].iterdir()} - {"bundle.toml"}
    assert set(bundle.manifest["files"]) == listed
    picture = generate(bundle, Request("a red circle", seed=1))
    assert picture.shape == (3, 64, 64)
    assert picture.std() > 0.01


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_lie_beside_the_graph(folders, name):
    sizes = {}
    for precision, folder in folders.items():
        model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        large = [tensor for tensor in model.graph.initializer if math.prod(tensor.dims) >= 1024]
        assert large
        assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in large)
        sizes[precision] = sum(math.prod(tensor.dims) for tensor in large)
    assert sizes["f16"] == sizes["f32"]
    sizes = {precision: (folder / f"{name}.onnx.data").stat().st_size for precision, folder in folders.items()}
    assert sizes["f16"] < 0.75 * sizes["f32"]


@pytest.mark.parametrize("name", GRAPHS)
def test_f16_weights_are_the_f32_weights_rounded(folders, name):
    for exact, rounded in zip(outputs(folders["f32"], name), outputs(folders["f16"], name), strict=True):
        assert np.isfinite(exact).all()
        assert np.abs(rounded - exact).max() <= 0.02 * max(1.0, float(exact.std()))


def test_states_and_logits_are_spread_like_a_trained_models(folders):
    (embedding,) = outputs(folders["f32"], "text_encoder")
    assert 0.5 < embedding.std() < 2
    for stage in ("base", "superres"):
        (logits,) = outputs(folders["f32"], f"{stage}_step")
        assert 0.5 < logits.std() < 5


def test_another_seed_draws_other_weights(folders, tmp_path):
    config = load_config(CONFIGS / "small.toml")
    del config["superres"]
    random_bundles.write_random_bundle(config, tmp_path / "bundle", "f16", 4, EXTERNAL_ABOVE)
    other = (tmp_path / "bundle/base_step.onnx.data").read_bytes()
    first = (folders["f16"] / "base_step.onnx.data").read_bytes()
    assert len(other) == len(first)
    assert other != first


def test_the_graph_is_the_one_that_real_weights_give(folders):
    """Node for node, but for what is computed at export from small weights alone (positions)."""
    table = load_config(CONFIGS / "small.toml")["base"]["model"]
    model = build(TransformerConfig.from_dict({**table, "text_width": 48})).requires_grad_(False).eval()
    graphs = random_bundles.graphs
    condition = graphs.condition_graph(model, torch.randn(2, 24, 48), torch.ones(2, 24, dtype=torch.int64))
    for name, graph in (("base_condition", condition), ("base_step", graphs.step_graph(model, condition))):
        expected = Counter(node.op_type for node in trace(graph).graph.node)
        found = Counter(node.op_type for node in onnx.load(folders["f32"] / f"{name}.onnx").graph.node)
        assert not expected - found
        assert found - expected <= Counter(Add=1, Reshape=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config: config["text"]["model"].update(vocabulary=10), "vocabulary"),
        (lambda config: config["superres"]["model"].update(low_grid=[4, 4]), "low_grid"),
        (lambda config: config["superres"]["tokenizer"].update(levels=3), "does not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, change, says):
    config = load_config(CONFIGS / "small.toml")
    change(config)
    with pytest.raises(ValueError, match=says):
        random_bundles.write_random_bundle(config, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "billions"), [("paper_base", 3.26), ("t5_xxl", 4.76)])
def test_configurations_of_the_papers_size_have_its_weights(name, billions):
    """Counted on shapes alone: nothing is drawn or written."""
    mode = random_bundles.FakeTensorMode(allow_non_fake_inputs=True)
    parts = random_bundles._parts(load_config(CONFIGS / f"{name}.toml"), None, mode)
    modules = (parts.text.encoder, parts.base.model)
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.01)
