"""Bundles whose transformers compute in f16: what is rewritten, how far it is off, and what must not be."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from muse_models.export import random as random_bundles
from muse_models.export.bundle import write_bundle
from muse_models.export.half import main
from muse_models.export.half_graph import halved
from muse_models.export.tiny import WORDS, tiny_parts
from muse_models.reference.bundle import Bundle
from muse_models.reference.pipeline import Request, generate
from muse_models.training.config import load_config

SMALL = Path(__file__).parents[2] / "configs/random/small.toml"
GRAPHS = ("base_condition", "base_step", "superres_condition", "superres_step")


def half(folder):
    out = folder.with_name(folder.name + "-half")
    assert main(["--bundle", str(folder), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny bundle (int8 weights in base, f16 in super-resolution), and the same in f16."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("half") / "tiny"
    write_bundle(tiny_parts(), folder)
    return folder, half(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A bundle whose weights lie beside its graphs, and the same in f16."""
    folder = tmp_path_factory.mktemp("half") / "large"
    random_bundles.write_random_bundle(load_config(SMALL), folder, "f16", 3, external_above=10_000)
    return folder, half(folder)


def types(values):
    return {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_but_the_ends_is_f32(tiny, name):
    graph = onnx.load(tiny[1] / f"{name}.onnx").graph
    assert all(tensor.data_type != TensorProto.FLOAT for tensor in graph.initializer)
    ends = types([*graph.input, *graph.output])
    assert {end for end, kind in ends.items() if kind == TensorProto.FLOAT} <= {"text", "logits"}
    widening = [node for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT]
    assert [node.output[0] for node in widening] == (["logits"] if name.endswith("step") else [])


@pytest.mark.parametrize("name", ["base", "superres"])
def test_what_the_steps_take_is_what_the_conditioning_gives(tiny, name):
    given = types(onnx.load(tiny[1] / f"{name}_condition.onnx").graph.output)
    taken = types(onnx.load(tiny[1] / f"{name}_step.onnx").graph.input)
    assert given == {end: taken[end] for end in given}
    assert TensorProto.FLOAT16 in given.values()


@pytest.mark.parametrize("bundles", ["tiny", "large"])
def test_pictures_are_near_and_no_more_than_near(bundles, request):
    exact, rounded = (Bundle(folder) for folder in request.getfixturevalue(bundles))
    assert rounded.manifest["model"]["version"] == exact.manifest["model"]["version"] + "-f16"
    for name, stage in exact.stages.items():
        other = rounded.stages[name]
        random = np.random.default_rng(7)
        text, mask = exact.embed(f"a {WORDS[7]}")
        low = random.integers(0, 8, exact.stages["base"].positions) if name == "superres" else None
        tokens = np.full((1, stage.positions), stage.manifest["mask_id"])
        here = stage.masked_logits(tokens, stage.conditioning(text, mask, low))
        there = other.masked_logits(tokens, other.conditioning(text, mask, low))
        assert here.dtype == there.dtype == np.float32
        off = np.sqrt(np.square(there - here).mean()) / here.std()
        assert 0 < off < 0.02, name
    assert np.isfinite(generate(rounded, Request("a red circle", seed=1))).all()


def test_weights_beside_a_graph_stay_where_they_are(large):
    exact, rounded = large
    for name in GRAPHS:
        beside = f"{name}.onnx.data"
        assert (rounded / beside).read_bytes() == (exact / beside).read_bytes()


def test_a_damaged_bundle_is_refused_and_nothing_is_written(tiny, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny[0], damaged)
    with (damaged / "base_step.onnx").open("ab") as file:
        file.write(b"\0")
    assert main(["--bundle", str(damaged), "--out", str(tmp_path / "out")]) == 1
    assert "base_step.onnx: not the file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["--bundle", str(damaged), "--out", str(damaged)]) == 1


def test_a_graph_within_a_graph_is_refused():
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([node], "outer", [], []))
    with pytest.raises(ValueError, match="a graph of its own"):
        halved(model, frozenset())


def test_minus_infinity_of_a_mask_stays_finite():
    constant = helper.make_tensor("value", TensorProto.FLOAT, [2], [-3.4e38, 0.5])
    node = helper.make_node("Constant", [], ["y"], value=constant)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    model = halved(helper.make_model(helper.make_graph([node], "graph", [], [output])), frozenset())
    values = onnx.numpy_helper.to_array(model.graph.node[0].attribute[0].t)
    assert values.dtype == np.float16 and list(values) == [np.finfo(np.float16).min, 0.5]
    assert types(model.graph.output) == {"y": TensorProto.FLOAT16}
